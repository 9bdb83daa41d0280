//! Reads `[[service]]` and what lies below it, except `health`. Pure.

use std::net::IpAddr;
use std::time::Duration;

use super::error::ConfigError;
use super::model::*;
use super::read::{BackendSpans, DAY, MILLISECOND, SECOND, ServiceSpans, span_or, unzip};
use super::read_health::read_health;
use super::reader::Reader;
use super::values::*;

const MINUTE: Duration = Duration::from_secs(60);
/// The largest prime that Maglev's authors report on; larger tables do not pay for their memory.
const LARGEST_TABLE: u32 = 655_373;

pub(super) fn read_service(mut r: Reader<'_>) -> Option<(Service, ServiceSpans)> {
    let name = r.parsed("name", parse_name);
    r.require("name", "\"web\"");
    let (listen, listen_spans) = unzip(r.list("listen", str::parse));
    r.require("listen", "[\"tcp:192.0.2.80:80\"]");
    let method = r.choice("method", Method::NAMES);
    r.require("method", "\"nat\"");
    let scheduler = r.choice("scheduler", Scheduler::NAMES);
    r.require("scheduler", "\"rr\"");
    let mut spans = ServiceSpans {
        listen: listen_spans,
        ..ServiceSpans::default()
    };
    let mut options = read_options(&mut r, &mut spans);
    let mut backends = Vec::new();
    for backend in r.tables("backend") {
        if let Some((backend, span)) = read_backend(backend) {
            backends.push(backend);
            spans.backends.push(span);
        }
    }
    r.finish();
    let (name, method, scheduler) = (name?, method?, scheduler?);
    if listen.is_empty() {
        return None;
    }
    spans.name = name.span;
    spans.method = method.span;
    options.name = name.value;
    options.listen = listen;
    options.method = method.value;
    options.scheduler = scheduler.value;
    if spans.untracked == Default::default() {
        options.untracked = Untracked::default_for(scheduler.value);
    }
    options.backends = backends;
    Some((options, spans))
}

/// Reads every optional key; the required ones are the caller's, who fills them in.
fn read_options(r: &mut Reader<'_>, spans: &mut ServiceSpans) -> Service {
    let mut service = Service::new(String::new(), Vec::new(), Method::Nat, Scheduler::Rr);
    if let Some(at) = r.integer("table_size", 3..=LARGEST_TABLE) {
        (service.table_size, spans.table_size) = (Some(at.value), at.span);
    }
    service.hash_port = r.boolean("hash_port").is_some_and(|at| at.value);
    service.hash_fallback = r.boolean("hash_fallback").is_some_and(|at| at.value);
    service.persistence = read_persistence(r);
    if let Some(at) = r.choice("when_no_backend", WhenNoBackend::NAMES) {
        service.when_no_backend = at.value;
    }
    if let Some(at) = r.choice("untracked", Untracked::NAMES) {
        (service.untracked, spans.untracked) = (at.value, at.span);
    }
    service.timeouts = r
        .table("timeouts")
        .map_or_else(Timeouts::default, read_timeouts);
    if let Some(at) = r.boolean("one_packet") {
        (service.one_packet, spans.one_packet) = (at.value, at.span);
    }
    service.mss_clamp = r.integer("mss_clamp", 88..=9_560).map(|at| at.value);
    service.limits = r.table("limits").map_or_else(Limits::default, read_limits);
    if let Some(at) = r.choice("advertise", Advertise::NAMES) {
        (service.advertise, spans.advertise) = (at.value, at.span);
    }
    (service.local_addresses, spans.local_addresses) =
        unzip(r.list("local_addresses", parse_unicast));
    if let Some(at) = r.parsed("tunnel_source", network) {
        (service.tunnel_source, spans.tunnel_source) = (Some(at.value), at.span);
    }
    if let Some(reader) = r.table("health") {
        spans.health = reader.span;
        service.health = read_health(reader, &mut spans.health_timeout);
    }
    read_availability(r, spans, &mut service);
    service
}

fn network(text: &str) -> Result<Prefix, ValueError> {
    let prefix: Prefix = text.parse()?;
    if prefix == prefix.network() {
        Ok(prefix)
    } else {
        Err(ValueError::HostBits(prefix.network()))
    }
}

/// Quorum, sorry server, hooks, feedback, slow start and drain.
fn read_availability(r: &mut Reader<'_>, spans: &mut ServiceSpans, service: &mut Service) {
    let quorum = r.integer("quorum", 1..=u32::MAX);
    let hysteresis = r.integer("quorum_hysteresis", 0..=u32::MAX);
    if quorum.is_some() || hysteresis.is_some() {
        spans.quorum = span_or(&quorum, span_or(&hysteresis, r.span));
        service.quorum = Some(Quorum {
            backends: quorum.map_or(1, |at| at.value),
            hysteresis: hysteresis.map_or(0, |at| at.value),
        });
    }
    if let Some(reader) = r.table("sorry_server") {
        spans.sorry_server = reader.span;
        service.sorry_server = read_sorry_server(reader);
    }
    service.inhibit = r.boolean("inhibit").is_some_and(|at| at.value);
    let argument = |text: &str| {
        if text.is_empty() {
            Err(ValueError::Empty)
        } else {
            Ok(text.to_owned())
        }
    };
    service.on_change = unzip(r.list("on_change", argument)).0;
    service.feedback = read_feedback(r);
    service.slow_start = r
        .time("slow_start", SECOND..=DAY, MILLISECOND)
        .map(|at| at.value);
    service.drain_timeout = r
        .time("drain_timeout", SECOND..=DAY * 30, SECOND)
        .map(|at| at.value);
}

fn read_persistence(r: &mut Reader<'_>) -> Option<Persistence> {
    let mut r = r.table("persistence")?;
    let persistence = Persistence {
        timeout: r
            .time("timeout", SECOND..=DAY, SECOND)
            .map_or(MINUTE * 5, |at| at.value),
        prefix_v4: r.integer("prefix_v4", 1..=32).map_or(32, |at| at.value),
        prefix_v6: r.integer("prefix_v6", 1..=128).map_or(128, |at| at.value),
        group: r.parsed("group", parse_name).map(|at| at.value),
    };
    r.finish();
    Some(persistence)
}

fn read_timeouts(mut r: Reader<'_>) -> Timeouts {
    let default = Timeouts::default();
    let mut time = |key, default| {
        r.time(key, SECOND..=Timeouts::LONGEST, SECOND)
            .map_or(default, |at| at.value)
    };
    let timeouts = Timeouts {
        established: time("established", default.established),
        syn_sent: time("syn_sent", default.syn_sent),
        syn_recv: time("syn_recv", default.syn_recv),
        fin_wait: time("fin_wait", default.fin_wait),
        time_wait: time("time_wait", default.time_wait),
        close: time("close", default.close),
        close_wait: time("close_wait", default.close_wait),
        last_ack: time("last_ack", default.last_ack),
        udp: time("udp", default.udp),
    };
    r.finish();
    timeouts
}

fn read_limits(mut r: Reader<'_>) -> Limits {
    let limits = Limits {
        connections: r.integer("connections", 1..=u32::MAX).map(|at| at.value),
        rate: r.integer("rate", 1..=u32::MAX).map(|at| at.value),
    };
    r.finish();
    limits
}

fn read_sorry_server(mut r: Reader<'_>) -> Option<SorryServer> {
    let address = r.parsed("address", parse_unicast);
    r.require("address", "\"192.0.2.99\"");
    let port = r.integer("port", 1..=u16::MAX).map(|at| at.value);
    let method = r.choice("method", Method::NAMES).map(|at| at.value);
    r.finish();
    Some(SorryServer {
        address: address?.value,
        port,
        method,
    })
}

/// A table, or the short form `feedback = "hash-too"`.
fn read_feedback(r: &mut Reader<'_>) -> Option<Feedback> {
    if r.is_string("feedback") {
        r.choice("feedback", &[("hash-too", ())])?;
        return Some(Feedback {
            hash_too: true,
            ..Feedback::default()
        });
    }
    let mut r = r.table("feedback")?;
    let default = Feedback::default();
    let feedback = Feedback {
        policy: r
            .choice("policy", FeedbackPolicy::NAMES)
            .map_or(default.policy, |at| at.value),
        interval: r
            .time("interval", SECOND..=MINUTE * 10, MILLISECOND)
            .map_or(default.interval, |at| at.value),
        agent_port: r.integer("agent_port", 1..=u16::MAX).map(|at| at.value),
        exporter_port: r.integer("exporter_port", 1..=u16::MAX).map(|at| at.value),
        hash_too: r.boolean("hash_too").is_some_and(|at| at.value),
    };
    r.finish();
    Some(feedback)
}

fn read_backend(mut r: Reader<'_>) -> Option<(Backend, BackendSpans)> {
    let name = r.parsed("name", parse_name);
    let address = r.parsed("address", parse_unicast);
    r.require("address", "\"192.0.2.11\"");
    let port = r.integer("port", 1..=u16::MAX);
    let weight = r.integer("weight", 0..=u16::MAX).map_or(1, |at| at.value);
    let upper = r.integer("upper", 1..=u32::MAX);
    let lower = r.integer("lower", 1..=u32::MAX);
    let drain = r.boolean("drain").is_some_and(|at| at.value);
    if upper.is_none()
        && let Some(lower) = &lower
    {
        r.sink.push(lower.span, ConfigError::LowerWithoutUpper);
    }
    r.finish();
    let address = address?;
    let spans = BackendSpans {
        name: span_or(&name, address.span),
        address: address.span,
        port: span_or(&port, address.span),
        lower: span_or(&lower, address.span),
    };
    let port = port.map(|at| at.value);
    let backend = Backend {
        name: name.map_or_else(|| endpoint(address.value, port), |at| at.value),
        address: address.value,
        port,
        weight,
        upper: upper.map(|at| at.value),
        lower: lower.map(|at| at.value),
        drain,
    };
    Some((backend, spans))
}

/// A backend as people write it; without brackets where there is no port.
pub(super) fn endpoint(address: IpAddr, port: Option<u16>) -> String {
    match port {
        None => address.to_string(),
        Some(port) if address.is_ipv4() => format!("{address}:{port}"),
        Some(port) => format!("[{address}]:{port}"),
    }
}
