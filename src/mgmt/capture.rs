//! A capture of packets from the data path, as pcapng. Runs on the management thread: it makes the
//! records that workers fill, takes them back, and hands the file piece by piece to whoever asked.
//! Workers wait for nothing; what they or the reader are too slow for is counted.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use pcap_file::DataLink;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{
    InterfaceStatisticsBlock, InterfaceStatisticsOption,
};
use pcap_file::pcapng::{PcapNgBlock, PcapNgWriter};
use tokio::sync::mpsc;

use crate::lb::Verdict;
use crate::lb::capture::{Copied, Ends, Filter, Record};
use crate::lb::flow::protocol;
use crate::lb::snapshot::Snapshot;
use crate::port::ring::{self, Consumer, Producer, RingError};
use crate::worker::Clock;
use crate::worker::capture::{Tap, Totals};

use super::api::CaptureRequest;

/// Memory for the records of one worker.
const MEMORY: usize = 8 << 20;
/// Pieces of the file that may wait for the reader.
const PIECES: usize = 64;
/// Records taken from one worker at a time.
const AT_ONCE: usize = 256;

/// The reader's end: pieces of the file, until it is whole.
pub type Pieces = mpsc::Receiver<Bytes>;

/// One worker's records: empty ones to it, and full ones from it.
struct Records {
    free: Producer<Box<Record>>,
    full: Consumer<Box<Record>>,
    totals: Arc<Totals>,
}

/// A capture under way.
pub struct Capture {
    workers: Vec<Records>,
    file: File,
    sender: mpsc::Sender<Bytes>,
    /// Packets still to be captured.
    left: u64,
    until: Instant,
    /// Packets that the reader was too slow for.
    unread: u64,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    pub captured: u64,
    pub wanted: u64,
    pub skipped: u64,
    pub lost: u64,
}

impl Capture {
    /// Makes a capture on `workers` workers, and for each of them what it needs. `interfaces` are
    /// the names of the ports and VLANs.
    pub fn new(
        request: &CaptureRequest,
        filter: &Filter,
        workers: usize,
        interfaces: &[String],
        clock: Clock,
    ) -> Result<(Self, Vec<Tap>, Pieces), RingError> {
        let bytes = usize::from(request.snap);
        let count = (MEMORY / (2 * bytes + size_of::<Record>())).clamp(64, 4096);
        let rate = request.rate.div_ceil(workers.max(1) as u32);
        let (mut records, mut taps) = (Vec::new(), Vec::new());
        for _ in 0..workers {
            let (mut free, free_in) = ring::spsc("capfree", count as u32)?;
            let (full_out, full) = ring::spsc("capfull", count as u32)?;
            for _ in 0..count {
                let _ = free.push(Box::new(record(bytes)));
            }
            let totals = Arc::new(Totals::default());
            let tap = Tap::new(
                filter.clone(),
                bytes,
                rate,
                free_in,
                full_out,
                totals.clone(),
            );
            taps.push(tap);
            records.push(Records { free, full, totals });
        }
        let (sender, pieces) = mpsc::channel(PIECES);
        let capture = Self {
            workers: records,
            file: File::new(interfaces, request.snap, clock),
            sender,
            left: request.packets,
            until: Instant::now() + Duration::from_secs(request.seconds.into()),
            unread: 0,
        };
        Ok((capture, taps, pieces))
    }

    /// Takes what workers have captured and sends it on. False when the capture is over. `index_of`
    /// tells an interface from a record's arrival.
    pub fn look(
        &mut self,
        now: Instant,
        snapshot: &Snapshot,
        index_of: impl Fn(u16) -> u32,
    ) -> bool {
        let mut taken = 0;
        for worker in &mut self.workers {
            for _ in 0..AT_ONCE {
                if taken == self.left {
                    break;
                }
                let Some(record) = worker.full.pop() else {
                    break;
                };
                self.file.add(&record, index_of(record.arrival), snapshot);
                taken += 1;
                let _ = worker.free.push(record);
            }
        }
        self.left -= taken;
        if !self.file.is_empty() {
            let piece = self.file.take();
            // Room is left for the end.
            match self.sender.capacity() > 1 {
                true => drop(self.sender.try_send(piece)),
                false => self.unread += taken,
            }
        }
        self.left > 0 && now < self.until && !self.sender.is_closed()
    }

    /// Ends the file. The workers' ends go when they give back what they were sent.
    pub fn finish(mut self) -> Sums {
        let of = |count: fn(&Totals) -> u64| self.workers.iter().map(|w| count(&w.totals)).sum();
        let sums = Sums {
            captured: self.file.packets - self.unread,
            wanted: of(|totals| totals.wanted.get()),
            skipped: of(|totals| totals.skipped.get()),
            lost: of(|totals| totals.lost.get()) + self.unread,
        };
        self.file.close(&sums);
        let _ = self.sender.try_send(self.file.take());
        sums
    }
}

fn record(bytes: usize) -> Record {
    Record {
        nanos: 0,
        arrival: 0,
        verdict: Verdict::Pass(crate::lb::Pass::Local),
        before: Copied::with_room(bytes),
        after: Copied::with_room(bytes),
    }
}

/// The file, as far as it has not been sent.
struct File {
    writer: PcapNgWriter<Vec<u8>>,
    packets: u64,
    interfaces: u32,
    /// Since 1970, when the workers' clock began.
    origin: Duration,
}

/// Values of pcapng's flags: received, and sent.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
/// Time stamps are in nanoseconds: ten to the power of minus this.
const RESOLUTION: u8 = 9;

impl File {
    fn new(interfaces: &[String], snap: u16, clock: Clock) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let since = Duration::from_nanos(clock.now().nanos);
        // Writing to a vector cannot fail, and interfaces are counted from 0.
        let mut writer = match PcapNgWriter::new(Vec::new()) {
            Ok(writer) => writer,
            Err(error) => unreachable!("a vector takes all: {error}"),
        };
        for name in interfaces {
            let interface = InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: snap.into(),
                options: vec![
                    InterfaceDescriptionOption::IfName(Cow::Borrowed(name)),
                    InterfaceDescriptionOption::IfTsResol(RESOLUTION),
                ],
            };
            let _ = writer.write_block(&interface.into_block());
        }
        Self {
            writer,
            packets: 0,
            interfaces: interfaces.len() as u32,
            origin: wall.unwrap_or_default().saturating_sub(since),
        }
    }

    fn is_empty(&self) -> bool {
        self.writer.get_ref().is_empty()
    }

    fn take(&mut self) -> Bytes {
        std::mem::take(self.writer.get_mut()).into()
    }

    /// A packet as it came, and as it left if it did.
    fn add(&mut self, record: &Record, arrival: u32, snapshot: &Snapshot) {
        self.packets += 1;
        let time = self.origin + Duration::from_nanos(record.nanos);
        let words = describe(record, snapshot);
        let number = self.packets;
        let came = format!("packet {number} in: {words}");
        self.write(arrival, time, &record.before, INBOUND, came);
        let (Verdict::Transmit(port) | Verdict::Reply { port, .. }) = record.verdict else {
            return;
        };
        let left = format!("packet {number} out");
        self.write(port.into(), time, &record.after, OUTBOUND, left);
    }

    fn write(&mut self, interface: u32, time: Duration, of: &Copied, flags: u32, comment: String) {
        let block = EnhancedPacketBlock {
            interface_id: interface.min(self.interfaces.saturating_sub(1)),
            timestamp: time,
            original_len: of.length,
            data: Cow::Borrowed(&of.bytes),
            options: vec![
                EnhancedPacketOption::Comment(comment.into()),
                EnhancedPacketOption::Flags(flags),
            ],
        };
        let _ = self.writer.write_block(&block.into_block());
    }

    /// The statistics at the end.
    fn close(&mut self, sums: &Sums) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanos = now.unwrap_or_default().as_nanos() as u64;
        let comment = format!(
            "{} packets captured of {} that were wanted; {} left out above the rate, {} lost",
            sums.captured, sums.wanted, sums.skipped, sums.lost
        );
        let block = InterfaceStatisticsBlock {
            interface_id: 0,
            // The format has the upper half first.
            timestamp: nanos.rotate_left(32),
            options: vec![
                InterfaceStatisticsOption::Comment(comment.into()),
                InterfaceStatisticsOption::IsbIfDrop(sums.skipped + sums.lost),
            ],
        };
        let _ = self.writer.write_block(&block.into_block());
    }
}

/// Ends, service and verdict.
fn describe(record: &Record, snapshot: &Snapshot) -> String {
    let ends = Ends::of(&record.before.bytes);
    let mut words = ends.map_or_else(String::new, |ends| {
        let protocol = match ends.protocol {
            protocol::TCP => "tcp".to_owned(),
            protocol::UDP => "udp".to_owned(),
            other => format!("protocol {other}"),
        };
        let end = |(address, port): (std::net::IpAddr, u16)| match port {
            0 => address.to_string(),
            port => std::net::SocketAddr::new(address, port).to_string(),
        };
        format!(
            "{protocol} {} -> {}; ",
            end(ends.source),
            end(ends.destination)
        )
    });
    let after = Ends::of(&record.after.bytes);
    let sides = || ends.iter().chain(&after);
    let id = sides().find_map(|side| side.service(snapshot));
    if let Some(service) = id.and_then(|id| snapshot.service(id)) {
        words += &format!("service {}; ", service.name);
    }
    words
        + &match record.verdict {
            Verdict::Transmit(_) => "transmit".to_owned(),
            Verdict::Reply { reason, .. } => format!("answer {}", reason.token()),
            Verdict::Drop(reason) => format!("drop {}", reason.token()),
            Verdict::Pass(pass) => format!("pass {}", pass.token()),
            Verdict::HandOff(_) | Verdict::Hold(_) => "hand-over".to_owned(),
        }
}
