//! Sends bursts of packets of one kind through [`Shard::process`]; `scripts/instructions` counts the
//! instructions under callgrind. What is counted happens in [`measured`] alone: callgrind is told to
//! collect there and nowhere else.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::exit;
use std::sync::Arc;

use balancer::arch::Cpu;
use balancer::lb::counters::WorkerCounters;
use balancer::lb::fixture::{
    Build, Lab, TestOutbox, VIP, VIP6, checksums_are_right, tcp4, tcp6, udp4, udp6,
};
use balancer::lb::flow::{Address, FlowKey, Seed};
use balancer::lb::frame::{Frame, MemoryFrame};
use balancer::lb::owner::Ownership;
use balancer::lb::parse::{Parsed, parse, tcp};
use balancer::lb::shard::{Shard, ShardSize};
use balancer::lb::snapshot::{ForwardMethod, Scheduler, Snapshot};
use balancer::lb::{Arrival, MAX_BURST, Now, Pass, Verdict};

const BURST: usize = 32;
const FLOWS: usize = 32 * BURST;
const BACKENDS: usize = 16;
const NOW: u64 = 1_000_000_000;
/// Any numbers without a pattern; always the same, so that every run does the same.
const SEED: Seed = Seed([
    0x9e37_79b9_7f4a_7c15,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
]);

/// What one run sends.
struct Case {
    method: ForwardMethod,
    v6: bool,
    tcp: bool,
    what: What,
    scheduler: Scheduler,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// Clients' packets of established flows.
    Requests,
    /// Backends' answers in established flows.
    Replies,
    /// The first packet of each flow.
    NewFlows,
    /// The same, of flows whose entry is there and has expired.
    Again,
    /// Requests of which the worker has to find out, and they belong to it, to another one, or about
    /// every second one to each.
    Owned,
    Elsewhere,
    Mixed,
    /// Requests that another worker handed over.
    Taken,
}

/// Of which several workers the four last go by.
const OWNERSHIP: Ownership = Ownership {
    reta: 128,
    workers: 2,
    compute: true,
};

/// A name such as `nat-ipv6-reply`: method, family, and what if not UDP requests.
fn case(name: &str) -> Option<Case> {
    let (method, rest) = [
        ("direct-routing-", ForwardMethod::DirectRouting),
        ("tunnel-", ForwardMethod::Tunnel),
        ("nat-", ForwardMethod::Nat),
        ("fullnat-", ForwardMethod::FullNat),
    ]
    .into_iter()
    .find_map(|(word, method)| Some((method, name.strip_prefix(word)?)))?;
    let (family, what) = rest.split_once('-').unwrap_or((rest, ""));
    let v6 = match family {
        "ipv4" => false,
        "ipv6" => true,
        _ => return None,
    };
    let mut scheduler = Scheduler::WeightedRoundRobin;
    let what = match what.strip_prefix("new-") {
        Some(word) => {
            scheduler = Scheduler::ALL.into_iter().find(|s| s.name() == word)?;
            "new"
        }
        None => what,
    };
    let (what, tcp) = match what {
        "" => (What::Requests, false),
        "tcp" => (What::Requests, true),
        "reply" => (What::Replies, false),
        "new" => (What::NewFlows, false),
        "again" => (What::Again, false),
        "owned" => (What::Owned, false),
        "elsewhere" => (What::Elsewhere, false),
        "mixed" => (What::Mixed, false),
        "taken" => (What::Taken, false),
        _ => return None,
    };
    Some(Case {
        method,
        v6,
        tcp,
        what,
        scheduler,
    })
}

impl Case {
    fn lab(&self) -> Lab {
        let mut lab = Lab::with_method(self.method, self.scheduler, &[1; BACKENDS]);
        for n in 0..BACKENDS as u16 {
            if self.v6 {
                let mut backend = lab.backend(n.into());
                backend.address = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, n + 1).into();
                backend.outer_source = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xfe).into();
                backend.mtu = 1460;
            }
        }
        lab
    }

    fn packet(&self, from: SocketAddr, to: SocketAddr, flags: u8) -> MemoryFrame {
        let (from, to) = (from.to_string(), to.to_string());
        let make: fn(&str, &str) -> Build = match (self.v6, self.tcp) {
            (false, false) => udp4,
            (true, false) => udp6,
            (false, true) => tcp4,
            (true, true) => tcp6,
        };
        let build = make(&from, &to).flags(flags).payload(&[0x5a; 18]);
        MemoryFrame::new(&build.frame())
    }

    /// The packet of a flow that belongs to worker `owner`, where that matters.
    fn request(&self, flow: usize, flags: u8) -> MemoryFrame {
        let wanted = match self.what {
            What::Owned => 0,
            What::Elsewhere | What::Taken => 1,
            _ => return self.any_request(flow, flags),
        };
        let owner = |frame: &MemoryFrame| match parse(frame.bytes(), false) {
            Parsed::V4(packet) => OWNERSHIP.one_way(&packet.key),
            Parsed::V6(packet) => OWNERSHIP.one_way(&packet.key),
            _ => fail("a request does not parse"),
        };
        // About every second one is.
        let from = flow * 64;
        let mut requests = (from..from + 64).map(|flow| self.any_request(flow, flags));
        let request = requests.find(|frame| owner(frame) == wanted);
        request.unwrap_or_else(|| fail("no flow of 64 belongs to the worker"))
    }

    fn any_request(&self, flow: usize, flags: u8) -> MemoryFrame {
        // Spread over addresses and ports, each flow once.
        let (low, port) = (flow as u32 / 16, 10_000 + (flow % 16) as u16 * 331);
        let client: IpAddr = match self.v6 {
            false => Ipv4Addr::from_bits(0x0a80_0000 + low).into(),
            true => Ipv6Addr::from_bits(0x2001_0db8_00c1_u128 << 80 | u128::from(low)).into(),
        };
        let vip = if self.v6 { VIP6 } else { VIP };
        let vip = vip
            .parse()
            .unwrap_or_else(|_| fail("the VIP is an endpoint"));
        self.packet((client, port).into(), vip, flags)
    }

    /// The backend's answer to a packet that was forwarded to it.
    fn reply(&self, forwarded: &MemoryFrame) -> MemoryFrame {
        fn ends<A: Address>(key: &FlowKey<A>) -> (SocketAddr, SocketAddr) {
            (
                SocketAddr::new(key.destination.into(), key.destination_port),
                SocketAddr::new(key.source.into(), key.source_port),
            )
        }
        let (from, to) = match parse(forwarded.bytes(), false) {
            Parsed::V4(packet) => ends(&packet.key),
            Parsed::V6(packet) => ends(&packet.key),
            _ => fail("a forwarded packet does not parse"),
        };
        self.packet(from, to, tcp::ACK)
    }
}

fn fail(what: &str) -> ! {
    eprintln!("instructions: {what}");
    exit(1)
}

struct Bench {
    shard: Shard,
    snapshot: Snapshot,
    arrival: Arrival,
    second: u64,
    /// What may become of a packet.
    wanted: Vec<Verdict>,
    verdicts: [Verdict; MAX_BURST],
    outbox: TestOutbox,
}

/// The only function in which callgrind collects.
#[inline(never)]
fn measured(bench: &mut Bench, burst: &mut [MemoryFrame]) {
    bench.process(burst);
}

impl Bench {
    #[inline(always)]
    fn process(&mut self, burst: &mut [MemoryFrame]) {
        self.shard.process(
            &self.snapshot,
            Now::from_nanos(NOW + self.second * 1_000_000_000),
            self.arrival,
            black_box(burst),
            &mut self.verdicts,
            &mut self.outbox,
        );
    }

    /// Sends the frames, in bursts, and holds what became of them against what should.
    fn send(
        &mut self,
        mut frames: Vec<MemoryFrame>,
        run: fn(&mut Self, &mut [MemoryFrame]),
    ) -> Vec<MemoryFrame> {
        for burst in frames.chunks_mut(BURST) {
            self.verdicts = [Verdict::Pass(Pass::Local); MAX_BURST];
            let length = burst.len();
            run(self, burst);
            for (verdict, frame) in self.verdicts[..length].iter().zip(burst) {
                if !self.wanted.contains(verdict) || !checksums_are_sound(frame.bytes()) {
                    fail(&format!("{verdict:?}: {:02x?}", frame.bytes()));
                }
            }
        }
        frames
    }
}

/// The checksums of a packet, or of that inside a tunnel (IPIP or IPv6 in IPv6).
fn checksums_are_sound(frame: &[u8]) -> bool {
    let inner = match (frame[12], frame[23], frame[20]) {
        (0x08, 4, _) => 20,
        (0x86, _, 41) => 40,
        _ => return checksums_are_right(frame),
    };
    checksums_are_right(&[&frame[..14], &frame[14 + inner..]].concat())
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(case), Some(Ok(bursts))) = (
        arguments.first().and_then(|name| case(name)),
        arguments.get(1).map(|count| count.parse::<usize>()),
    ) else {
        fail("usage: instructions CASE BURSTS");
    };
    let size = ShardSize {
        connections_v4: 1 << 16,
        connections_v6: 1 << 16,
        services: 1,
    };
    let counters = Arc::new(WorkerCounters::new(BACKENDS));
    let mut shard = Shard::new(size, SEED, 0, 1, Arc::clone(&counters))
        .and_then(|shard| shard.with_local_ports(2, 4, Ownership::default()))
        .unwrap_or_else(|error| fail(&error.to_string()));
    // The same code on every machine.
    shard.cpu = Cpu::ANY;
    let mut bench = Bench {
        shard,
        snapshot: case.lab().snapshot,
        arrival: Arrival::Port(0),
        second: 0,
        wanted: vec![Verdict::Transmit(0)],
        verdicts: [Verdict::Pass(Pass::Local); MAX_BURST],
        outbox: TestOutbox::default(),
    };
    let round = |flags| (0..FLOWS).map(|n| case.request(n, flags)).collect();
    // Two rounds: a SYN and an ACK, or what UDP needs to be taken for real.
    bench.send(round(tcp::SYN), Bench::process);
    let forwarded = bench.send(round(tcp::ACK), Bench::process);
    let established = counters.new_connections.get();
    if let What::Owned | What::Elsewhere | What::Mixed | What::Taken = case.what {
        bench.snapshot.ownership = OWNERSHIP;
    }
    match case.what {
        What::Elsewhere => bench.wanted = vec![Verdict::HandOff(1)],
        What::Mixed => bench.wanted.push(Verdict::HandOff(1)),
        _ => {}
    }
    for done in 0..bursts {
        let flows = (0..BURST).map(|n| (done * BURST + n) % FLOWS);
        let frames = match case.what {
            What::Replies => flows.map(|n| case.reply(&forwarded[n])).collect(),
            What::NewFlows => (0..BURST)
                .map(|n| case.request(FLOWS + done * BURST + n, tcp::SYN))
                .collect(),
            What::Again => {
                // Longer than any entry lives, each time that all flows have come by.
                bench.second = 1000 * (1 + done * BURST / FLOWS) as u64;
                flows.map(|n| case.request(n, tcp::SYN)).collect()
            }
            What::Taken => {
                bench.arrival = Arrival::Port(0);
                bench.wanted = vec![Verdict::HandOff(1)];
                let frames = flows.map(|n| case.request(n, tcp::ACK)).collect();
                let frames = bench.send(frames, Bench::process);
                bench.arrival = Arrival::HandOff;
                bench.wanted = vec![Verdict::Transmit(0)];
                frames
            }
            _ => flows.map(|n| case.request(n, tcp::ACK)).collect(),
        };
        bench.send(frames, measured);
    }
    let new = counters.new_connections.get() - established;
    let expected = match case.what {
        What::NewFlows | What::Again => bursts * BURST,
        _ => 0,
    };
    if established != FLOWS as u64 || new != expected as u64 || !bench.outbox.sent.is_empty() {
        fail(&format!(
            "{established} flows were established and {new} were new"
        ));
    }
}
