//! What must become of an ICMP message, and of one that quotes a packet of a flow.

use super::*;

impl Judge {
    pub(super) fn icmp(&mut self, sent: &Sent, packet: &Packet) -> Expect {
        let body = &sent.bytes[packet.l4..packet.end];
        let v4 = packet.source.is_ipv4();
        let follows = match (v4, body.first()) {
            (true, Some(kind)) => [3, 11, 12].contains(kind),
            (false, Some(kind)) => (1..=4).contains(kind),
            (_, None) => false,
        };
        if body.len() < 8 || !follows {
            return Expect::Pass;
        }
        let balanced = VIPS.contains(&packet.destination);
        if balanced && (is_nobody(packet.source) || is_ours(packet.source)) {
            return Expect::Drop(BadSource);
        }
        if self.tiny {
            return Expect::Unjudged;
        }
        if let Some(expected) = self.related(sent, packet, &body[8..]) {
            return expected;
        }
        if balanced {
            Expect::Drop(IcmpUnrelated)
        } else {
            Expect::Pass
        }
    }

    fn related(&mut self, sent: &Sent, packet: &Packet, quote: &[u8]) -> Option<Expect> {
        let v4 = packet.source.is_ipv4();
        let quoted = if v4 {
            look::ipv4(quote, false)
        } else {
            look::ipv6(quote, false)
        }
        .ok()?;
        if !matches!(quoted.protocol, 6 | 17) || quoted.source != packet.destination {
            return None;
        }
        let l4 = quote.get(quoted.l4..quoted.l4 + 8)?;
        let (from, to) = (
            u16::from_be_bytes([l4[0], l4[1]]),
            u16::from_be_bytes([l4[2], l4[3]]),
        );
        let gone = packet.ttl <= 1;
        let key = (quoted.destination, to, quoted.source, from, quoted.protocol);
        if let Some(flow) = self.flows.get(&key).copied() {
            if self.state(flow.backend) == BackendState::Removed {
                return Some(Expect::Drop(BackendGone));
            }
            return Some(self.unanswered(sent, packet, flow.backend));
        }
        let vip = VIPS[usize::from(!v4)];
        let outward = PORTS.iter().any(|&port| {
            let key = (quoted.source, from, vip, port, quoted.protocol);
            let flow = self.flows.get(&key);
            let at = flow.map(|flow| World::backend(flow.backend));
            at == Some(quoted.destination) && to == NAT_PORT
        });
        let from_local = self.method == ForwardMethod::FullNat && to == NAT_PORT && {
            let backend = (0..BACKENDS).find(|&n| World::backend(n) == quoted.destination);
            let local = |n| self.by_local.contains_key(&(n, !v4, quoted.protocol, from));
            LOCALS.contains(&quoted.source) && backend.is_some_and(local)
        };
        let fullnat = self.method == ForwardMethod::FullNat && LOCALS.contains(&quoted.source);
        if fullnat && !from_local && self.hides(!v4, quoted.protocol) {
            return Some(Expect::Skip);
        }
        (self.is_nat() && outward || from_local).then_some(if gone {
            Expect::Drop(TtlExpired)
        } else {
            Expect::Forward
        })
    }
}
