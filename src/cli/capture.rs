//! `evenkeel capture`: packets from the data path, to a file or a line each.

use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use pcap_file::PcapError;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::blocks::interface_statistics::InterfaceStatisticsOption;
use pcap_file::pcapng::{Block, PcapNgParser};

use super::query::query;
use super::{CliError, ClientError, Shared, client, print};
use crate::mgmt::api::Clients;

#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// Write a pcapng file; `-` is standard output
    #[arg(long, short, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// Only packets to and from the VIPs of this service
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// tcp or udp
    #[arg(long)]
    pub protocol: Option<String>,
    /// One end of the packet: an address, a prefix, or an address and a port
    #[arg(long, value_name = "END", value_parser = end)]
    pub client: Option<End>,
    /// The other end: a VIP or a backend
    #[arg(long, value_name = "END", value_parser = end)]
    pub server: Option<End>,
    /// Only what is not sent on
    #[arg(long)]
    pub dropped: bool,
    /// Bytes of each packet
    #[arg(long, default_value_t = 256)]
    pub snap: u16,
    /// End after so many packets
    #[arg(long, short = 'n', default_value_t = 1000)]
    pub packets: u64,
    /// End after so many seconds
    #[arg(long, default_value_t = 60)]
    pub seconds: u32,
    /// At most so many packets a second
    #[arg(long, default_value_t = 10_000)]
    pub rate: u32,
}

/// Addresses and perhaps a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End(Clients, Option<u16>);

fn end(text: &str) -> Result<End, String> {
    if let Ok(end) = text.parse::<std::net::SocketAddr>() {
        let address: IpAddr = end.ip();
        let alone = address.to_string().parse();
        return alone
            .map(|alone| End(alone, Some(end.port())))
            .map_err(str::to_owned);
    }
    text.parse()
        .map(|clients| End(clients, None))
        .map_err(str::to_owned)
}

/// The request's path and query.
pub(super) fn path(args: &CaptureArgs) -> String {
    let address = |end: Option<End>| end.map(|end| end.0.to_string());
    let port = |end: Option<End>| Some(end?.1?.to_string());
    let pairs = [
        ("service", args.service.clone()),
        ("protocol", args.protocol.clone()),
        ("client", address(args.client)),
        ("client_port", port(args.client)),
        ("server", address(args.server)),
        ("server_port", port(args.server)),
        ("dropped", Some(args.dropped.to_string())),
        ("snap", Some(args.snap.to_string())),
        ("packets", Some(args.packets.to_string())),
        ("seconds", Some(args.seconds.to_string())),
        ("rate", Some(args.rate.to_string())),
    ];
    query("/v1/capture", pairs)
}

pub fn run(args: &CaptureArgs, shared: &Shared) -> Result<(), CliError> {
    let mut file = match args.write.as_deref().map(|path| (path, path.to_str())) {
        None | Some((_, Some("-"))) => None,
        Some((path, _)) => Some(File::create(path).map_err(CliError::Output)?),
    };
    let is_raw = args.write.is_some() && file.is_none();
    let mut lines = Lines::default();
    let mut failed = None;
    let take = |bytes: &[u8]| {
        let done = match (&mut file, is_raw) {
            (Some(file), _) => file.write_all(bytes).map_err(CliError::Output),
            (None, true) => std::io::stdout().write_all(bytes).map_err(CliError::Output),
            (None, false) => Ok(()),
        };
        let done =
            done.and_then(|()| lines.take(bytes))
                .and_then(|told| match args.write.is_none() {
                    true => print(&told),
                    false => Ok(()),
                });
        failed = done.err();
        failed.is_none()
    };
    let followed = client::block_on(client::follow(&shared.socket, &path(args), take));
    if let Some(error) = failed {
        return Err(error);
    }
    followed?;
    match lines.sums {
        // Beside the packets, which may go to standard output.
        Some(sums) => eprintln!("{sums}"),
        None => return Err(CliError::Ended),
    }
    Ok(())
}

/// A file that comes in pieces, in lines.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
    parser: Option<PcapNgParser>,
    /// What the file says of itself at its end.
    sums: Option<String>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8]) -> Result<String, CliError> {
        self.rest.extend_from_slice(bytes);
        let mut told = String::new();
        let mut source = &self.rest[..];
        loop {
            let next = match &mut self.parser {
                None => PcapNgParser::new(source).map(|(rest, parser)| {
                    self.parser = Some(parser);
                    (rest, None)
                }),
                Some(parser) => parser.next_block(source).map(|(rest, block)| {
                    (rest, line(&block, &mut self.sums).map(|line| (line, block)))
                }),
            };
            match next {
                Ok((rest, line)) => {
                    if let (Some((line, block)), Some(parser)) = (line, &self.parser) {
                        told += &format!("{} {line}\n", interface(&block, parser));
                    }
                    source = rest;
                }
                Err(PcapError::IncompleteBuffer) => break,
                Err(error) => return Err(ClientError::Answer(error.to_string()).into()),
            }
        }
        let done = self.rest.len() - source.len();
        self.rest.drain(..done);
        Ok(told)
    }
}

fn interface(block: &Block<'_>, parser: &PcapNgParser) -> String {
    let Block::EnhancedPacket(packet) = block else {
        return String::new();
    };
    let options = parser.packet_interface(packet).map(|of| &of.options);
    let name = options
        .into_iter()
        .flatten()
        .find_map(|option| match option {
            InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
            _ => None,
        });
    let time = std::time::UNIX_EPOCH + packet.timestamp;
    let time = humantime::format_rfc3339_micros(time);
    format!("{time} {}", name.unwrap_or_else(|| "?".into()))
}

/// What a packet's comment says; what the statistics say goes to `sums`.
fn line(block: &Block<'_>, sums: &mut Option<String>) -> Option<String> {
    match block {
        Block::EnhancedPacket(packet) => packet.options.iter().find_map(|option| match option {
            EnhancedPacketOption::Comment(comment) => {
                Some(format!("{} bytes, {comment}", packet.original_len))
            }
            _ => None,
        }),
        Block::InterfaceStatistics(block) => {
            let said = block.options.iter().find_map(|option| match option {
                InterfaceStatisticsOption::Comment(comment) => Some(comment.to_string()),
                _ => None,
            });
            *sums = said.or(sums.take());
            None
        }
        _ => None,
    }
}
