//! What is learned from the outcome: the backend that a new flow got, its local port, and what its
//! fragments are rewritten to.

use super::*;

impl Judge {
    /// Checks the frame that came out, and takes note of a new flow's backend.
    pub fn learn(
        &mut self,
        sent: &Sent,
        expected: Expect,
        outcome: &Outcome,
        context: &dyn Fn() -> String,
    ) {
        let mut expected = expected;
        if let Some(opened) = self.opened.take() {
            let backend = outcome
                .attached
                .unwrap_or_else(|| panic!("no entry: {}", context()));
            assert!(
                opened.usable.contains(&backend),
                "backend {backend}: {}",
                context()
            );
            let flow = Flow {
                backend,
                tcp: opened.tcp,
                local: None,
            };
            self.flows.insert(opened.key, flow);
            self.shows = Some(opened.key);
            expected = self.onward(sent, &opened.packet, backend);
            assert!(
                expected.allows(outcome.verdict),
                "{expected:?} {}",
                context()
            );
        } else if expected != Expect::Unjudged {
            assert_eq!(outcome.attached, None, "an entry was made: {}", context());
        }
        let out = &outcome.bytes;
        let answered = matches!(outcome.verdict, Verdict::Reply { .. });
        let forwarded = outcome.verdict == Verdict::Transmit(0);
        if answered || forwarded && expected != Expect::Unjudged {
            look::assert_sound(out);
        }
        if expected == Expect::Forward {
            let (before, after) = (
                look::transport_checksum_is_right(&sent.bytes),
                look::transport_checksum_is_right(out),
            );
            // An ICMP message has none of its own, and a packet that was cut none that can be read.
            let exempt =
                matches!(look(&sent.bytes), Seen::Icmp(_) | Seen::Fragment(_)) || is_cut(out);
            assert!(exempt || before == after, "checksum: {}", context());
            assert_eq!(
                self.rewritten,
                self.rewritten.and_then(|_| fragments::rewritten(out))
            );
        }
        let to = (0..BACKENDS).find(|&n| out.get(..6) == Some(&backend_mac(n as u8)));
        if let (true, Some(bound)) = (forwarded, self.bound) {
            assert_eq!(to, Some(bound), "another backend: {}", context());
        }
        if let (Expect::Forward, Some(key)) = (expected, self.shows.take()) {
            self.see_local(key, out, context);
        }
        if let Some(datagram) = self.heads.take()
            && expected != Expect::Unjudged
        {
            let known = match (outcome.verdict, self.bound) {
                (Verdict::Transmit(_), Some(backend)) if !self.is_two_way() => {
                    Known::OneWay(backend)
                }
                (Verdict::Transmit(_), _) => {
                    fragments::rewritten(out).unwrap_or_else(|| panic!("no packet: {}", context()))
                }
                (Verdict::Pass(pass), _) => Known::Passed(pass),
                _ => Known::Dropped,
            };
            self.fragments.known.insert(datagram, known);
        }
    }

    /// FullNAT: a flow keeps its local port, and shares it with no other toward one backend.
    fn see_local(&mut self, key: Key, out: &[u8], context: &dyn Fn() -> String) {
        if self.method != ForwardMethod::FullNat {
            return;
        }
        let packet = fragments::outcome(out).unwrap_or_else(|| panic!("{}", context()));
        assert_eq!(
            packet.source,
            LOCALS[usize::from(key.0.is_ipv6())],
            "{}",
            context()
        );
        let port = u16::from_be_bytes([out[packet.l4], out[packet.l4 + 1]]);
        let flow = self
            .flows
            .get_mut(&key)
            .unwrap_or_else(|| panic!("{}", context()));
        assert!(
            flow.local.is_none_or(|known| known == port),
            "{}",
            context()
        );
        flow.local = Some(port);
        let local = (flow.backend, key.0.is_ipv6(), key.4, port);
        let other = self.by_local.insert(local, key);
        if other.is_none() {
            self.shown.push(local);
        }
        assert!(
            other.is_none_or(|other| other == key),
            "two flows look alike: {}",
            context()
        );
    }
}

/// Whether the packet inside is a fragment.
fn is_cut(frame: &[u8]) -> bool {
    let l3 = if frame[12..14] == [0x81, 0] { 18 } else { 14 };
    let inner = match frame[l3] >> 4 {
        4 if frame[l3 + 9] == 4 => l3 + 20,
        6 if frame[l3 + 6] == 4 => l3 + 40,
        _ => l3,
    };
    frame[inner] >> 4 == 4 && frame[inner + 6] & 0x20 != 0
}
