//! What the bytes of an input mean: a configuration, then one operation after the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::lb::fixture::{Build, OUR_MAC, between};
use crate::lb::frame::{Frame, MemoryFrame};
use crate::lb::snapshot::BackendState;
use crate::lb::{Arrival, Pass, Verdict};
use crate::model;
use crate::world::{BACKENDS, Choice, Outcome, Travelling, Worlds, backend};

/// An input must not take forever.
const FRAMES: u64 = 24;
const REMEMBERED: usize = 8;

#[derive(Default)]
pub struct Sum {
    pub frames: u64,
    pub forwarded: u64,
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    /// The next byte, or 0 past the end.
    fn next(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }
}

struct Run<'w> {
    worlds: &'w mut Worlds,
    lab: crate::lb::fixture::Lab,
    choice: Choice,
    /// Frames that went out lately: replies and errors are about these.
    out: Vec<Vec<u8>>,
    /// Damage for the next frame.
    damage: Vec<(u16, u8)>,
    mend: bool,
    length: Option<u8>,
    sum: Sum,
}

pub fn run(worlds: &mut Worlds, input: &[u8]) -> Sum {
    let mut bytes = Bytes(input);
    let choice = Choice(bytes.next(), bytes.next());
    let lab = worlds.lab(choice);
    let mut run = Run {
        worlds,
        lab,
        choice,
        out: Vec::new(),
        damage: Vec::new(),
        mend: false,
        length: None,
        sum: Sum::default(),
    };
    while !bytes.0.is_empty() && run.sum.frames < FRAMES {
        run.step(&mut bytes);
    }
    run.worlds.forget(choice);
    run.sum
}

impl Run<'_> {
    fn step(&mut self, bytes: &mut Bytes) {
        match bytes.next() % 18 {
            0..=5 => {
                let packet = request(bytes);
                self.send(packet.frame(), bytes);
            }
            6..=8 => {
                if let Some(packet) = self.reply(bytes) {
                    self.send(packet.frame(), bytes);
                }
            }
            9 => {
                if let Some(frame) = self.error(bytes) {
                    self.send(frame, bytes);
                }
            }
            10 | 11 => {
                let whole = match bytes.next() % 3 {
                    0 => self.reply(bytes).unwrap_or_else(|| request(bytes)),
                    _ => request(bytes),
                };
                for piece in pieces(&whole.frame(), bytes) {
                    self.send(piece, bytes);
                }
            }
            12 => self.backend(bytes),
            13 => {
                let step = [
                    1_000_000,
                    300_000_000,
                    1_500_000_000,
                    11_000_000_000,
                    61_000_000_000,
                ];
                self.worlds
                    .pass(step[usize::from(bytes.next()) % step.len()]);
                self.release();
            }
            14 | 15 => {
                let at = u16::from_be_bytes([bytes.next() & 1, bytes.next()]);
                self.damage.push((at, bytes.next()));
                self.mend = at % 8 != 0;
            }
            16 => self.length = Some(bytes.next()),
            _ => {
                self.worlds.outbox.buffers = match bytes.next() % 4 {
                    0 => 0,
                    1 => 1,
                    _ => usize::MAX,
                };
            }
        }
    }

    fn backend(&mut self, bytes: &mut Bytes) {
        let (n, how) = (u32::from(bytes.next()) % BACKENDS, bytes.next());
        let mut backend = self.lab.backend(n);
        backend.state = [
            BackendState::Up,
            BackendState::Removed,
            BackendState::Down,
            BackendState::Drained,
        ][usize::from(how & 3)];
        if how & 0x1c == 0x1c {
            backend.link = None;
        }
        if how & 0x60 == 0x60 {
            backend.weight = u32::from(how & 7);
        }
    }

    /// A backend's answer to a request, or the client's to an answer.
    fn reply(&self, bytes: &mut Bytes) -> Option<Build> {
        let frame = self.remembered(bytes)?;
        let seen = model::read(frame)?;
        let (source, destination) = seen.ends()?;
        Some(dressed(between(destination, source, seen.protocol), bytes))
    }

    fn remembered(&self, bytes: &mut Bytes) -> Option<&Vec<u8>> {
        let count = self.out.len();
        (count > 0).then(|| &self.out[usize::from(bytes.next()) % count])
    }

    /// An ICMP error about a frame that went out.
    fn error(&self, bytes: &mut Bytes) -> Option<Vec<u8>> {
        let quoted = self.remembered(bytes)?;
        let seen = model::read(quoted)?;
        let how = bytes.next();
        let v6 = seen.source.is_ipv6();
        let from: IpAddr = match (how & 1 == 0, v6) {
            (true, _) => seen.destination,
            (false, false) => Ipv4Addr::new(203, 0, 113, 9).into(),
            (false, true) => Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 9).into(),
        };
        let kinds = if v6 {
            [1, 2, 3, 4, 128, 1, 2, 3]
        } else {
            [3, 11, 12, 3, 8, 5, 3, 3]
        };
        let kind = kinds[usize::from(how >> 1 & 7)];
        let keep = (8 + usize::from(bytes.next())).min(quoted.len() - seen.l3);
        let mut body = vec![
            kind,
            if kind == 3 { 4 } else { 0 },
            0,
            0,
            0,
            0,
            5,
            bytes.next(),
        ];
        body.extend(&quoted[seen.l3..seen.l3 + keep]);
        Some(model::icmp(from, seen.source, body))
    }

    fn send(&mut self, mut frame: Vec<u8>, bytes: &mut Bytes) {
        self.sum.frames += 1;
        for (at, value) in self.damage.drain(..) {
            let at = usize::from(at) % frame.len().max(1);
            if let Some(byte) = frame.get_mut(at) {
                *byte ^= value;
            }
        }
        if std::mem::take(&mut self.mend) {
            model::mend(&mut frame);
        }
        match self.length.take() {
            Some(cut @ 0..=0x7f) => frame.truncate(usize::from(cut)),
            Some(more) => frame.resize(frame.len() + usize::from(more & 0x3f), 0xee),
            None => {}
        }
        let worker = usize::from(frame.len() as u8 ^ self.sum.frames as u8);
        let sent: Arc<[u8]> = frame.as_slice().into();
        let travelling = Travelling {
            frame: MemoryFrame::new(&frame),
            sent,
        };
        let _ = bytes;
        self.take(worker, Arrival::Port(0), travelling);
        self.release();
    }

    fn take(&mut self, worker: usize, arrival: Arrival, travelling: Travelling) {
        let outcome = self
            .worlds
            .follow(&self.lab, self.choice, worker, arrival, travelling);
        let Outcome {
            verdict,
            travelling,
        } = outcome;
        let out = travelling.frame.bytes();
        let sent = std::mem::take(&mut self.worlds.outbox.sent);
        match verdict {
            Verdict::Transmit(port) => {
                assert_eq!(port, 0);
                self.sum.forwarded += 1;
                let cut = !sent.is_empty();
                model::forwarded(self.choice, &travelling.sent, out, cut);
                if self.out.len() == REMEMBERED {
                    self.out.remove(0);
                }
                self.out.push(out.to_vec());
            }
            Verdict::Reply { port, .. } => {
                assert_eq!(port, 0);
                model::answered(&travelling.sent, out);
            }
            Verdict::Pass(Pass::Local) => {
                for (_, beside) in &sent {
                    model::asked(&travelling.sent, beside.bytes());
                }
            }
            Verdict::Drop(_) | Verdict::Pass(_) | Verdict::Hold(_) => {}
            Verdict::HandOff(_) => panic!("handed on at the end"),
        }
        for (port, beside) in &sent {
            assert_eq!(*port, 0);
            model::sound(beside.bytes());
        }
    }

    fn release(&mut self) {
        while let Some((at, held)) = self.worlds.released(self.choice) {
            if let Some(held) = held {
                self.take(at, Arrival::HandOff, held);
            }
        }
    }
}

/// A client's packet to the service, or beside it.
fn request(bytes: &mut Bytes) -> Build {
    let (who, to) = (bytes.next(), bytes.next());
    let v6 = who & 1 != 0;
    let protocol = if who & 2 != 0 { 17 } else { 6 };
    let client: IpAddr = match v6 {
        false => Ipv4Addr::new(10, 10, 0, who >> 4).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, u16::from(who >> 4)).into(),
    };
    let vip: IpAddr = match v6 {
        false => Ipv4Addr::new(192, 0, 2, 80).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x80).into(),
    };
    let destination = match to {
        0xf0..=0xf3 => SocketAddr::new(backend(u32::from(to & 2) + u32::from(v6)), 8080),
        0xf4..=0xff => SocketAddr::new(vip, 81),
        _ => SocketAddr::new(vip, 80),
    };
    let port = 1024 + u16::from(who >> 2 & 3) + 4 * u16::from(to & 7);
    dressed(
        between(SocketAddr::new(client, port), destination, protocol),
        bytes,
    )
}

/// Flags, lengths and options.
fn dressed(build: Build, bytes: &mut Bytes) -> Build {
    const FLAGS: [u8; 8] = [0x02, 0x10, 0x18, 0x11, 0x04, 0x12, 0x14, 0x02];
    let (how, size) = (bytes.next(), bytes.next());
    let length = match size {
        0..=0xdf => usize::from(size),
        _ => 1300 + 16 * usize::from(size & 0x1f),
    };
    let mut build = build
        .flags(FLAGS[usize::from(how & 7)])
        .tos(size ^ how)
        .identification(u16::from(size) << 8 | u16::from(how))
        .dont_fragment(how & 8 != 0)
        .payload(&vec![how; length]);
    if how & 0x70 == 0x70 {
        build = build.ttl(1 + (how >> 7));
    }
    if how & 0x70 == 0x60 {
        build = build.vlan(7);
    }
    if how & 0x70 == 0x50 {
        build = build.extension(60, &[0; 6]).extension(43, &[0; 6]);
    }
    if how & 0x70 == 0x40 {
        build = build.options(&[2, 4, 5, 0xb4]);
    }
    build
}

/// A packet cut into fragments, in an order that the bytes say.
fn pieces(whole: &[u8], bytes: &mut Bytes) -> Vec<Vec<u8>> {
    let Some(seen) = model::read(whole) else {
        return Vec::new();
    };
    let data = &whole[seen.l4..];
    let size = 8 + 8 * usize::from(bytes.next() & 0x1f);
    let order = bytes.next();
    let mut pieces: Vec<Vec<u8>> = data
        .chunks(size)
        .enumerate()
        .take(8)
        .map(|(n, chunk)| {
            let more = n * size + chunk.len() < data.len();
            model::fragment(whole, &seen, n * size, more, chunk)
        })
        .collect();
    if order & 1 != 0 {
        pieces.reverse();
    }
    if order & 2 != 0 {
        pieces.rotate_left(1);
    }
    if order & 4 != 0 {
        pieces.truncate(pieces.len().saturating_sub(1).max(1));
    }
    for piece in &mut pieces {
        piece[..6].copy_from_slice(&OUR_MAC);
    }
    pieces
}
