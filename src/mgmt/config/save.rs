//! Writes a [`Config`] as TOML that reads back as the same [`Config`]. Keys at their default are left
//! out, so the file says what was decided and no more. Runs on the management thread.

use std::fmt::{Display, Write as _};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use super::error::FileError;
use super::model::*;
use super::values::{format_cores, format_size, format_time};

/// The configuration as the text of a file.
pub fn to_toml(config: &Config) -> String {
    let mut out = Writer::default();
    write_workers(&mut out, &config.workers);
    write_management(&mut out, &config.management);
    for port in &config.ports {
        write_port(&mut out, port);
    }
    for service in &config.services {
        write_service(&mut out, service);
    }
    out.text
}

/// One service alone, as [`to_toml`] writes it.
pub fn service_to_toml(service: &Service) -> String {
    let mut out = Writer::default();
    write_service(&mut out, service);
    out.text
}

/// One backend alone.
pub fn backend_to_toml(backend: &Backend) -> String {
    let mut out = Writer::default();
    write_backend(&mut out, backend);
    out.text
}

/// Writes the file whole or not at all: into a new file beside it, which then takes its name. The
/// permissions of an existing file are kept.
pub fn save(config: &Config, path: &Path) -> Result<(), FileError> {
    replace(path, &to_toml(config)).map_err(|error| FileError::Write {
        path: path.to_owned(),
        error,
    })
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    // A link is followed, or the file it points to would keep the old text.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = target
        .file_name()
        .ok_or(io::ErrorKind::InvalidInput)?
        .to_string_lossy();
    let beside = target.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = write_synced(&beside, &target, text).and_then(|()| fs::rename(&beside, &target));
    if written.is_err() {
        // The first error is the one to tell; a leftover that cannot be removed changes nothing.
        let _ = fs::remove_file(&beside);
    }
    written
}

fn write_synced(beside: &Path, target: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(beside)?;
    if let Ok(old) = fs::metadata(target) {
        file.set_permissions(old.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// TOML text under construction.
#[derive(Default)]
pub(super) struct Writer {
    pub text: String,
}

impl Writer {
    pub fn header(&mut self, name: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text += &format!("{name}\n");
    }

    pub fn raw(&mut self, key: &str, value: impl Display) {
        // Writing into a string cannot fail.
        let _ = writeln!(self.text, "{key} = {value}");
    }

    pub fn string(&mut self, key: &str, value: impl Display) {
        self.raw(key, quoted(value));
    }

    fn optional(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.raw(key, value);
        }
    }

    fn optional_string(&mut self, key: &str, value: Option<impl Display>) {
        self.optional(key, value.map(quoted));
    }

    pub fn strings<T: Display>(&mut self, key: &str, values: &[T]) {
        if !values.is_empty() {
            let values: Vec<String> = values.iter().map(quoted).collect();
            self.raw(key, format_args!("[{}]", values.join(", ")));
        }
    }

    fn flag(&mut self, key: &str, value: bool) {
        if value {
            self.raw(key, true);
        }
    }

    /// Writes `value` unless it is the default.
    fn changed<T: PartialEq, D: Display>(
        &mut self,
        key: &str,
        value: &T,
        default: &T,
        show: impl Fn(&T) -> D,
    ) {
        if value != default {
            self.raw(key, show(value));
        }
    }
}

/// A TOML string with its quotes.
pub(super) fn quoted(value: impl Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}

fn named<T: Copy + PartialEq>(names: &'static [(&'static str, T)]) -> impl Fn(&T) -> String {
    |value| quoted(name_of(names, *value))
}

fn time(time: &std::time::Duration) -> String {
    quoted(format_time(*time))
}

fn write_workers(out: &mut Writer, workers: &Workers) {
    let default = Workers::default();
    out.header("[workers]");
    out.string("cores", format_cores(&workers.cores));
    out.raw("connections", workers.connections);
    out.string("memory", format_size(workers.memory));
    out.changed("idle", &workers.idle, &default.idle, named(Idle::NAMES));
    out.optional("flood_guard", workers.flood_guard);
    out.optional("buffers", workers.buffers);
    out.changed(
        "buffer_size",
        &workers.buffer_size,
        &default.buffer_size,
        u16::to_string,
    );
}

fn write_management(out: &mut Writer, management: &Management) {
    let default = Management::default();
    out.header("[management]");
    out.string("socket", management.socket.display());
    out.changed("core", &management.core, &default.core, u16::to_string);
    out.changed(
        "metrics",
        &management.metrics,
        &default.metrics,
        |metrics| match metrics {
            Some(address) => quoted(address),
            None => quoted("off"),
        },
    );
    out.changed(
        "log",
        &management.log,
        &default.log,
        named(LogFormat::NAMES),
    );
    out.optional(
        "announce_every",
        management.announce_every.as_ref().map(time),
    );
    out.optional("vip_table", management.vip_table);
    out.changed(
        "linger",
        &management.linger,
        &Management::default_linger(management.vip_table),
        time,
    );
}

fn write_port(out: &mut Writer, port: &Port) {
    out.header("[[port]]");
    out.string("name", &port.name);
    match &port.attachment {
        Attachment::Device(device) => out.string("device", device),
        Attachment::Vlan { parent, id } => {
            out.string("parent", parent);
            out.raw("vlan", id);
        }
    }
    out.strings("addresses", &port.addresses);
    out.strings("check_address", &port.check_addresses);
    out.strings("gateway", &port.gateways);
    if port.device().is_some() {
        out.changed("mtu", &port.mtu, &Port::DEFAULT_MTU, u16::to_string);
    }
    out.changed("rss", &port.rss, &Rss::Auto, named(Rss::NAMES));
    out.optional_string("kernel_interface", port.kernel_interface.as_ref());
    out.changed(
        "rx_descriptors",
        &port.rx_descriptors,
        &Port::DEFAULT_DESCRIPTORS,
        u16::to_string,
    );
    out.changed(
        "tx_descriptors",
        &port.tx_descriptors,
        &Port::DEFAULT_DESCRIPTORS,
        u16::to_string,
    );
    for route in &port.routes {
        out.header("[[port.route]]");
        out.string("to", route.to);
        out.string("via", route.via);
    }
    for neighbour in &port.neighbours {
        out.header("[[port.neighbour]]");
        out.string("address", neighbour.address);
        out.string("mac", neighbour.mac);
    }
}

pub(super) fn write_service(out: &mut Writer, service: &Service) {
    let default = Service::new(String::new(), Vec::new(), service.method, service.scheduler);
    out.header("[[service]]");
    out.string("name", &service.name);
    out.strings("listen", &service.listen);
    out.string("method", service.method.name());
    out.string("scheduler", service.scheduler.name());
    out.optional("table_size", service.table_size);
    out.flag("hash_port", service.hash_port);
    out.flag("hash_fallback", service.hash_fallback);
    let no_backend = named(WhenNoBackend::NAMES);
    out.changed(
        "when_no_backend",
        &service.when_no_backend,
        &default.when_no_backend,
        no_backend,
    );
    out.changed(
        "untracked",
        &service.untracked,
        &default.untracked,
        named(Untracked::NAMES),
    );
    out.changed(
        "advertise",
        &service.advertise,
        &default.advertise,
        named(Advertise::NAMES),
    );
    out.flag("one_packet", service.one_packet);
    out.optional("mss_clamp", service.mss_clamp);
    out.strings("local_addresses", &service.local_addresses);
    out.optional_string("tunnel_source", service.tunnel_source);
    if let Some(quorum) = &service.quorum {
        out.raw("quorum", quorum.backends);
        out.changed("quorum_hysteresis", &quorum.hysteresis, &0, u32::to_string);
    }
    out.flag("inhibit", service.inhibit);
    out.strings("on_change", &service.on_change);
    out.optional("slow_start", service.slow_start.as_ref().map(time));
    out.optional("drain_timeout", service.drain_timeout.as_ref().map(time));
    write_service_tables(out, service);
    for backend in &service.backends {
        write_backend(out, backend);
    }
}

/// The tables below a service; TOML wants them behind its plain keys.
fn write_service_tables(out: &mut Writer, service: &Service) {
    if let Some(persistence) = &service.persistence {
        out.header("[service.persistence]");
        out.raw("timeout", time(&persistence.timeout));
        out.changed("prefix_v4", &persistence.prefix_v4, &32, u8::to_string);
        out.changed("prefix_v6", &persistence.prefix_v6, &128, u8::to_string);
        out.optional_string("group", persistence.group.as_ref());
    }
    let default = Timeouts::default();
    if service.timeouts != default {
        out.header("[service.timeouts]");
        let timeouts = &service.timeouts;
        out.changed(
            "established",
            &timeouts.established,
            &default.established,
            time,
        );
        out.changed("syn_sent", &timeouts.syn_sent, &default.syn_sent, time);
        out.changed("syn_recv", &timeouts.syn_recv, &default.syn_recv, time);
        out.changed("fin_wait", &timeouts.fin_wait, &default.fin_wait, time);
        out.changed("time_wait", &timeouts.time_wait, &default.time_wait, time);
        out.changed("close", &timeouts.close, &default.close, time);
        out.changed(
            "close_wait",
            &timeouts.close_wait,
            &default.close_wait,
            time,
        );
        out.changed("last_ack", &timeouts.last_ack, &default.last_ack, time);
        out.changed("udp", &timeouts.udp, &default.udp, time);
    }
    if service.limits != Limits::default() {
        out.header("[service.limits]");
        out.optional("connections", service.limits.connections);
        out.optional("rate", service.limits.rate);
    }
    if let Some(health) = &service.health {
        write_health(out, health);
    }
    if let Some(sorry) = &service.sorry_server {
        out.header("[service.sorry_server]");
        out.string("address", sorry.address);
        out.optional("port", sorry.port);
        out.optional_string("method", sorry.method.map(Method::name));
    }
    if let Some(feedback) = &service.feedback {
        out.header("[service.feedback]");
        out.raw("policy", named(FeedbackPolicy::NAMES)(&feedback.policy));
        out.raw("interval", time(&feedback.interval));
        out.optional("agent_port", feedback.agent_port);
        out.optional("exporter_port", feedback.exporter_port);
        out.flag("hash_too", feedback.hash_too);
    }
}

fn write_health(out: &mut Writer, health: &Health) {
    out.header("[service.health]");
    let kind = match &health.check {
        Check::Tcp => CheckType::Tcp,
        Check::Http(HttpCheck { tls: None, .. }) => CheckType::Http,
        Check::Http(HttpCheck { tls: Some(_), .. }) => CheckType::Https,
        Check::Udp { .. } => CheckType::Udp,
        Check::Dns { .. } => CheckType::Dns,
        Check::Ping => CheckType::Ping,
        Check::Script { .. } => CheckType::Script,
    };
    out.string("type", name_of(CheckType::NAMES, kind));
    out.changed("via", &health.via, &Via::DataPath, named(Via::NAMES));
    out.raw("interval", time(&health.interval));
    out.raw("timeout", time(&health.timeout));
    out.raw("fall", health.fall);
    out.raw("rise", health.rise);
    out.changed(
        "start",
        &health.start,
        &StartState::Up,
        named(StartState::NAMES),
    );
    out.changed("jitter", &health.jitter, &10, u8::to_string);
    out.optional_string("address", health.address);
    out.optional("port", health.port);
    match &health.check {
        Check::Tcp | Check::Ping => {}
        Check::Http(http) => write_http(out, http),
        Check::Udp { payload, reply } => {
            out.optional_string(
                "payload",
                Some(payload).filter(|payload| !payload.is_empty()),
            );
            out.optional_string("reply", reply.as_ref());
        }
        Check::Dns { query, record } => {
            out.string("query", query);
            out.string("record", record);
        }
        Check::Script { command } => out.strings("command", command),
    }
}

fn write_http(out: &mut Writer, http: &HttpCheck) {
    out.string("method", &http.method);
    out.optional_string("host", http.host.as_ref());
    out.string("path", &http.path);
    let range = |(first, last): &(u16, u16)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    out.strings("status", &http.status.iter().map(range).collect::<Vec<_>>());
    out.optional_string("body", http.body.as_ref());
    if let Some(tls) = &http.tls {
        out.changed("tls_verify", &tls.verify, &true, bool::to_string);
        out.optional_string("sni", tls.sni.as_ref());
    }
}

fn write_backend(out: &mut Writer, backend: &Backend) {
    out.header("[[service.backend]]");
    out.string("name", &backend.name);
    out.string("address", backend.address);
    out.optional("port", backend.port);
    out.changed("weight", &backend.weight, &1, u16::to_string);
    out.optional("upper", backend.upper);
    out.optional("lower", backend.lower);
    out.flag("drain", backend.drain);
}
