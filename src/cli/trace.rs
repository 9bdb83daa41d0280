//! `evenkeel trace`: what would become of a packet, and why.

use std::net::{IpAddr, SocketAddr};

use clap::Args;

use super::query::encode;
use super::{CliError, Shared, client, print, print_json};
use crate::mgmt::api::Trace;

#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Who sends it: an address, or an address and a port
    #[arg(value_name = "CLIENT", value_parser = client)]
    pub from: SocketAddr,
    /// Whom it is sent to: an address and a port, such as 192.0.2.80:80
    #[arg(value_name = "VIP:PORT")]
    pub to: SocketAddr,
    /// tcp or udp
    #[arg(long, default_value = "tcp")]
    pub protocol: String,
    /// TCP flags: syn, ack, fin, rst, several with commas between them
    #[arg(long, default_value = "syn")]
    pub flags: String,
}

/// The port of a client that has none on the command line: any would do.
const ANY_PORT: u16 = 40_000;

fn client(text: &str) -> Result<SocketAddr, String> {
    let alone = || {
        text.parse::<IpAddr>()
            .map(|ip| SocketAddr::new(ip, ANY_PORT))
    };
    text.parse().or_else(|_| alone()).map_err(|_| {
        "write an address such as 198.51.100.7, or with a port 198.51.100.7:40000 or [2001:db8::7]:40000".into()
    })
}

pub fn run(args: &TraceArgs, shared: &Shared) -> Result<(), CliError> {
    let path = format!(
        "/v1/trace?from={}&to={}&protocol={}&flags={}",
        encode(&args.from.to_string()),
        encode(&args.to.to_string()),
        encode(&args.protocol),
        encode(&args.flags)
    );
    let trace: Trace = client::block_on(client::get(&shared.socket, &path))?;
    if shared.json {
        print_json(&trace)
    } else {
        print(&render(&trace))
    }
}

pub(super) fn render(trace: &Trace) -> String {
    let mut text = String::new();
    let mut line = |what: &str, value: String| text += &format!("{what:<10} {value}\n");
    line("packet", format!("{}, in on {}", trace.packet, trace.port));
    line("worker", format!("{} on core {}", trace.worker, trace.core));
    if let Some(service) = &trace.service {
        let option = |value: &Option<String>| value.clone().unwrap_or_default();
        let (method, scheduler) = (option(&trace.method), option(&trace.scheduler));
        line("service", format!("{service}: {method}, {scheduler}"));
    }
    if let Some(state) = &trace.connection {
        line("connection", state.clone());
    }
    if let Some(backend) = &trace.backend {
        let address = trace.backend_address.as_deref().unwrap_or_default();
        line("backend", format!("{backend} {address}"));
    }
    line("why", trace.why.clone());
    let reason = trace.reason.as_ref().map(|reason| format!(" ({reason})"));
    let verdict = format!("{}{}", trace.verdict, reason.unwrap_or_default());
    let way = match (&trace.out_port, &trace.next_hop) {
        (Some(port), Some(hop)) => format!(", out of {port} to {hop}"),
        _ => String::new(),
    };
    line("verdict", verdict + &way);
    line("", trace.explanation.clone());
    for (number, header) in trace.headers.iter().enumerate() {
        line(if number == 0 { "headers" } else { "" }, header.clone());
    }
    for note in &trace.notes {
        line("note", note.clone());
    }
    text
}
