//! What would become of a packet that nobody sent, in words. Runs on the management thread: it
//! makes the packet, has the owning worker asked what it knows ([`crate::lb::trace`]), and reads
//! the answer. No packet leaves, and no worker's state changes.

use std::net::{IpAddr, SocketAddr};

use axum::http::StatusCode;
use smoltcp::wire::{EthernetFrame, Ipv4Packet, Ipv6Packet, PrettyPrinter};
use tokio::sync::oneshot;

use crate::lb::fixture::between;
use crate::lb::flow::{FlowKey, protocol};
use crate::lb::parse::{ETHERNET, tcp};
use crate::lb::snapshot::{BackendId, Service, Snapshot};
use crate::lb::trace::{Flow, Foreseen, Question, Why};
use crate::lb::{Pass, Verdict};

use super::api::{BackendState, Problem, Trace, TraceRequest};
use super::status::Source;

/// A question under way.
pub struct Tracing {
    pub number: u64,
    packet: Packet,
    reply: oneshot::Sender<Result<Trace, Problem>>,
}

/// The packet that is asked about.
struct Packet {
    from: SocketAddr,
    to: SocketAddr,
    protocol: u8,
    words: String,
    bytes: Vec<u8>,
    /// The interface that it comes in on.
    port: u8,
}

/// The service that a packet to there belongs to.
fn service_at(snapshot: &Snapshot, protocol: u8, to: SocketAddr) -> Option<&Service> {
    let found = snapshot.service_map.find(protocol, to.ip(), to.port())?;
    snapshot.service(found.id).map(|service| &**service)
}

impl Tracing {
    /// The packet that was asked about and the question for its worker.
    pub fn begin(
        number: u64,
        request: &TraceRequest,
        snapshot: &Snapshot,
        reply: oneshot::Sender<Result<Trace, Problem>>,
    ) -> Option<(Self, Box<Question>)> {
        let packet = match Packet::new(request, snapshot) {
            Ok(packet) => packet,
            Err(reason) => {
                let _ = reply.send(Err(Problem::bad_query(reason)));
                return None;
            }
        };
        let service = service_at(snapshot, packet.protocol, packet.to);
        let question = Question::new(number, packet.flow()?, snapshot, service);
        let tracing = Self {
            number,
            packet,
            reply,
        };
        Some((tracing, Box::new(question)))
    }

    /// Answers, now that all workers that know something have been asked.
    pub fn answer(self, question: &Question, source: &Source<'_>) {
        let owner = usize::from(question.owner());
        let counters = |worker: u8| {
            let link = source.workers.get(usize::from(worker))?;
            Some(&*link.counters)
        };
        let Packet { bytes, port, .. } = &self.packet;
        let answered = question.foresee(source.snapshot, counters, bytes, *port);
        let answer = match answered {
            Ok(Some(foreseen)) => Ok(describe(&self.packet, owner, &foreseen, source)),
            Ok(None) => Err(Problem::fault()),
            Err(error) => Err(Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no-memory",
                "No memory",
                format!("there is no memory to try the packet in: {error}; free some"),
            )),
        };
        let _ = self.reply.send(answer);
    }
}

impl Packet {
    fn new(request: &TraceRequest, snapshot: &Snapshot) -> Result<Self, &'static str> {
        let (from, to) = (request.from, request.to);
        if from.is_ipv4() != to.is_ipv4() {
            return Err("`from` and `to` are of different families; use two of one");
        }
        let (protocol, flags) = match request.protocol.as_str() {
            "tcp" => (protocol::TCP, flags(&request.flags)?),
            "udp" => (protocol::UDP, 0),
            _ => return Err("`protocol` must be tcp or udp"),
        };
        // Its sender is where an answer to it would go.
        let back = snapshot.routes.link(from.ip());
        let port = back.map_or(0, |link| link.port);
        let view = snapshot.ports.get(usize::from(port));
        let mac = view.map_or([0; 6], |port| port.mac);
        let sender = back.and_then(|link| link.macs.first_chunk::<6>().copied());
        let packet = between(from, to, protocol);
        let packet = packet.macs(mac, sender.unwrap_or([2, 0, 0, 0, 0, 0]));
        let words = match protocol {
            protocol::TCP => format!("tcp {} {from} -> {to}", request.flags),
            _ => format!("udp {from} -> {to}"),
        };
        Ok(Self {
            from,
            to,
            protocol,
            words,
            bytes: packet.flags(flags).frame(),
            port,
        })
    }

    fn flow(&self) -> Option<Flow> {
        let (source_port, destination_port) = (self.from.port(), self.to.port());
        let protocol = self.protocol;
        Some(match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Flow::V4(FlowKey {
                source,
                destination,
                source_port,
                destination_port,
                protocol,
            }),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Flow::V6(FlowKey {
                source,
                destination,
                source_port,
                destination_port,
                protocol,
            }),
            _ => return None,
        })
    }
}

/// TCP flags by their names.
fn flags(text: &str) -> Result<u8, &'static str> {
    text.split(',').try_fold(0, |flags, name| {
        let flag = match name.trim() {
            "syn" => tcp::SYN,
            "ack" => tcp::ACK,
            "fin" => tcp::FIN,
            "rst" => tcp::RST,
            _ => return Err("`flags` must be syn, ack, fin or rst, with commas between several"),
        };
        Ok(flags | flag)
    })
}

fn describe(packet: &Packet, owner: usize, end: &Foreseen, source: &Source<'_>) -> Trace {
    let snapshot = source.snapshot;
    let interface = |index: u8| {
        let facts = source.desired.ports().get(usize::from(index));
        facts.map_or_else(|| index.to_string(), |facts| facts.name.clone())
    };
    let backend = end.backend.and_then(|id| snapshot.backend(id));
    let of_backend = backend.and_then(|b| snapshot.service(b.service));
    let of_backend = of_backend.map(|service| &**service);
    let service = service_at(snapshot, packet.protocol, packet.to).or(of_backend);
    let mut trace = Trace {
        packet: packet.words.clone(),
        port: interface(packet.port),
        worker: owner as u16,
        core: source.workers.get(owner).map_or(0, |worker| worker.core),
        service: service.map(|service| service.name.to_string()),
        method: service.map(|service| service.method.name().into()),
        scheduler: service.map(|service| service.scheduler.name().into()),
        connection: match end.why {
            Why::Tracked { state, .. } => Some(super::status::state_name(state).into()),
            _ => None,
        },
        backend: end.backend.map(|id| name(source, id)),
        backend_address: backend.map(|b| match b.port {
            0 => SocketAddr::new(b.address, packet.to.port()).to_string(),
            port => SocketAddr::new(b.address, port).to_string(),
        }),
        why: why(end, service, source),
        ..Trace::default()
    };
    let leaves = |trace: &mut Trace, port: u8| {
        trace.out_port = Some(interface(port));
        trace.headers = headers(&end.frame);
        let frame = EthernetFrame::new_checked(&end.frame[..]);
        trace.next_hop = frame.ok().map(|frame| frame.dst_addr().to_string());
    };
    match end.verdict {
        Verdict::Transmit(port) => {
            trace.verdict = "transmit".into();
            trace.explanation = "The packet is sent on.".into();
            leaves(&mut trace, port);
        }
        Verdict::Reply { port, reason } => {
            trace.verdict = "answer".into();
            trace.reason = Some(reason.token().into());
            trace.explanation = reason.explanation().into();
            leaves(&mut trace, port);
        }
        Verdict::Drop(reason) => {
            trace.verdict = "drop".into();
            trace.reason = Some(reason.token().into());
            trace.explanation = reason.explanation().into();
        }
        Verdict::Pass(pass) => {
            trace.verdict = "pass".into();
            trace.reason = Some(pass.token().into());
            trace.explanation = passed(pass).into();
        }
        // One worker alone hands nothing over, and no whole packet waits for another.
        Verdict::HandOff(_) | Verdict::Hold(_) => {
            trace.verdict = "drop".into();
            trace.explanation = "The packet is of a kind that cannot be traced.".into();
        }
    }
    trace.notes = notes(packet, end, service, source);
    trace
}

fn name(source: &Source<'_>, id: BackendId) -> String {
    let name = source.desired.backend_name(id);
    name.unwrap_or_else(|| "(removed)".into())
}

fn passed(pass: Pass) -> &'static str {
    match pass {
        Pass::Local => {
            "No service takes it: it is given to management, as whatever is sent to evenkeel itself."
        }
        Pass::Check => "It is for a check address: it is given to health checks.",
        Pass::Resolve => {
            "Its next hop is not known yet: management asks for it and then sends the packet."
        }
    }
}

/// Why the backend, or why none.
fn why(end: &Foreseen, service: Option<&Service>, source: &Source<'_>) -> String {
    let scheduler = service.map_or("?", |service| service.scheduler.name());
    match end.why {
        Why::Tracked { expires, reply, .. } => {
            let whose = if reply { "its reply" } else { "its packet" };
            format!("a connection is tracked there and this is {whose}; forgotten in {expires} s")
        }
        Why::Persistent => "its client stays there (persistence)".into(),
        Why::Flood => "by the consistent hash, as the flood guard is up".into(),
        Why::Scheduled if service.is_some_and(|s| s.scheduler.is_hash()) => {
            format!("by the consistent hash ({scheduler}), which this packet always meets alike")
        }
        Why::Scheduled => {
            let backends = service.map_or(&[][..], |service| &service.backends);
            let able = backends
                .iter()
                .filter_map(|&id| source.snapshot.backend(id));
            let able = able.filter(|backend| backend.is_eligible()).count();
            format!("{scheduler} chooses it now, of {able} that take new connections")
        }
        Why::Nobody if service.is_none() => "no service listens there".into(),
        Why::Nobody => "no backend was chosen".into(),
    }
}

/// What an operator would look at next.
fn notes(
    packet: &Packet,
    end: &Foreseen,
    service: Option<&Service>,
    source: &Source<'_>,
) -> Vec<String> {
    let is_sent = matches!(end.verdict, Verdict::Transmit(_));
    let mut notes = Vec::new();
    if source.snapshot.routes.link(packet.from.ip()).is_none() {
        notes.push(format!(
            "the next hop back to {} is not known: check gateway and routes",
            packet.from.ip()
        ));
    }
    if is_sent {
        return notes;
    }
    let Some(service) = service else {
        let listens = source.desired.config.services.iter().flat_map(|service| {
            let of_vip = service.listen.iter();
            let of_vip = of_vip.filter(|listen| listen.addresses.contains(packet.to.ip()));
            of_vip.map(move |listen| format!("service {} listens on {listen}", service.name))
        });
        notes.extend(listens);
        return notes;
    };
    let status = source.status();
    let found = status.services.iter().find(|s| s.name == *service.name);
    for backend in found.iter().flat_map(|service| &service.backends) {
        let state = match backend.state {
            BackendState::Up if backend.weight == 0 => "has weight 0".to_owned(),
            BackendState::Up if backend.effective_weight > 0 => continue,
            state => format!("is {}", state.name()),
        };
        let reason = backend.reason.as_deref();
        let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        let (name, address) = (&backend.name, &backend.address);
        notes.push(format!("backend {name} {address} {state}{reason}"));
    }
    notes
}

/// The headers of a frame, a line each.
fn headers(frame: &[u8]) -> Vec<String> {
    let mut text = PrettyPrinter::<EthernetFrame<&[u8]>>::new("", &frame).to_string();
    let inner = |outer: usize| frame.get(ETHERNET + outer..).unwrap_or_default();
    let (kind, rest) = (frame.get(12..14), frame.get(ETHERNET..).unwrap_or_default());
    let next = match kind {
        Some([0x08, 0x00]) => rest.get(9).map(|&next| (next, 20)),
        Some([0x86, 0xdd]) => rest.get(6).map(|&next| (next, 40)),
        _ => None,
    };
    match next {
        Some((4, outer)) => {
            text += &PrettyPrinter::<Ipv4Packet<&[u8]>>::new("\n", &inner(outer)).to_string();
        }
        Some((41, outer)) => {
            text += &PrettyPrinter::<Ipv6Packet<&[u8]>>::new("\n", &inner(outer)).to_string();
        }
        _ => {}
    }
    let lines = text
        .lines()
        .map(|line| line.trim_start_matches(['\\', '└', '─', ' ']));
    lines
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}
