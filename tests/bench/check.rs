//! Whether every frame came out as its method asks.
//!
//! Frames leave in the order in which they came. What evenkeel says of its own (ARP, neighbour
//! discovery) lies between them.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::Failure;
use crate::frame::{Ip, L2, OUR_MAC};
use crate::make::is_v6;
use crate::pcap::frames;

/// The port of a NAT backend.
const BACKEND_PORT: u16 = 8080;
const BACKENDS: usize = 16;

pub struct Found {
    pub frames: usize,
    pub flows: usize,
    /// Flows per backend.
    pub backends: Vec<usize>,
}

/// Checks every frame, and that all packets of a flow reached one backend.
pub fn check(
    method: &str,
    kind: &str,
    family: &str,
    sent: &Path,
    received: &Path,
) -> Result<Found, Failure> {
    let v6 = is_v6(family)?;
    let (sent, received) = (std::fs::read(sent)?, std::fs::read(received)?);
    let mut balanced = frames(&received).filter(|frame| !is_our_own(frame));
    let mut found = Found {
        frames: 0,
        flows: 0,
        backends: vec![0; BACKENDS],
    };
    let mut flows = HashMap::new();
    let mut ends = HashSet::new();
    for before in frames(&sent) {
        let Some(after) = balanced.next() else {
            return Err(format!("only {} frames came out", found.frames).into());
        };
        let judged = judge(method, v6, before, after);
        let seen = judged.map_err(|what| {
            format!(
                "frame {} of {kind} came out wrong, {what}:\n in {}\nout {}",
                found.frames,
                hex(before),
                hex(after)
            )
        })?;
        let client = Ip::of(&before[L2..]);
        let end = seen.end.clone();
        let flow = flows.entry((client.source().to_vec(), client.port(0)));
        let known = flow.or_insert_with(|| {
            found.flows += 1;
            found.backends[seen.backend] += 1;
            seen.clone()
        });
        if *known != seen {
            return Err(format!("frame {} left its flow's backend", found.frames).into());
        }
        if let Some(end) = end {
            ends.insert(end);
        }
        found.frames += 1;
    }
    if balanced.next().is_some() {
        return Err("more frames came out than went in".into());
    }
    if method == "fullnat" && ends.len() != found.flows {
        return Err("two flows share a local endpoint at one backend".into());
    }
    Ok(found)
}

/// What a frame shows of its flow.
#[derive(Clone, PartialEq)]
struct Seen {
    backend: usize,
    /// FullNAT: local address, local port, backend.
    end: Option<(Vec<u8>, u16, usize)>,
}

/// ARP, and ICMPv6 from us.
fn is_our_own(frame: &[u8]) -> bool {
    frame[12..14] == [0x08, 0x06] || frame[12..14] == [0x86, 0xdd] && frame[20] == 58
}

fn judge(method: &str, v6: bool, before: &[u8], after: &[u8]) -> Result<Seen, &'static str> {
    fn must(holds: bool, what: &'static str) -> Result<(), &'static str> {
        if holds { Ok(()) } else { Err(what) }
    }
    // Backends' MAC addresses end with their number.
    let backend = usize::from(after[5]);
    must(
        after[..5] == [2, 0, 0, 0, 1] && backend < BACKENDS,
        "not to a backend",
    )?;
    must(after[6..12] == OUR_MAC, "not from our MAC")?;
    must(after[12..14] == before[12..14], "another ethertype")?;
    let old = Ip::of(&before[L2..]);
    let outer = Ip::of(&after[L2..]);
    must(
        outer.v6 == v6 && outer.header_sum_is_right(),
        "header checksum",
    )?;
    let to_backend = is_backend(outer.destination(), backend);
    let new = match method {
        "tunnel" => {
            must(to_backend, "outer destination")?;
            must(outer.protocol() == if v6 { 41 } else { 4 }, "no IP in IP")?;
            Ip::of(outer.l4())
        }
        _ => outer,
    };
    must(
        new.header_sum_is_right() && new.l4_sum_is_right(),
        "checksum",
    )?;
    must(new.hops() == old.hops() - 1, "TTL")?;
    must(new.bytes.len() == old.bytes.len(), "length")?;
    must(new.protocol() == old.protocol(), "protocol")?;
    let payload = if old.protocol() == crate::frame::UDP {
        8
    } else {
        20
    };
    must(new.l4()[payload..] == old.l4()[payload..], "payload")?;
    if method == "direct-routing" || method == "tunnel" {
        must(new.destination() == old.destination(), "destination")?;
        must(new.l4() == old.l4(), "ports")?;
    } else {
        must(to_backend, "destination")?;
        must(new.port(2) == BACKEND_PORT, "destination port")?;
    }
    if method == "fullnat" {
        must(new.source() != old.source(), "source")?;
        let end = Some((new.source().to_vec(), new.port(0), backend));
        return Ok(Seen { backend, end });
    }
    must(
        new.source() == old.source() && new.port(0) == old.port(0),
        "source",
    )?;
    Ok(Seen { backend, end: None })
}

/// 198.18.0.1 and up, 2001:db8::1 and up.
fn is_backend(address: &[u8], backend: usize) -> bool {
    let last = backend as u8 + 1;
    match address.len() {
        4 => address == [198, 18, 0, last],
        _ => {
            address[..4] == [0x20, 0x01, 0x0d, 0xb8]
                && address[4..15] == [0; 11]
                && address[15] == last
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
