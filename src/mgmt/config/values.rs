//! The small values that configuration text is made of: prefixes, MAC addresses, times, sizes and
//! core lists, each with its parser and the text it is saved as. Pure; used on the management
//! thread. Parsing never panics, and what a type prints it also reads.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// Why a string is not the value it should be. The text is `reason; fix`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ValueError {
    #[error("is not an IP address; write it like \"192.0.2.1\" or \"2001:db8::1\"")]
    Address,
    #[error("is not an address with a prefix length; write it like \"192.0.2.0/24\"")]
    Prefix,
    #[error("has bits set behind its prefix length; write {0}")]
    HostBits(Prefix),
    #[error("is not a MAC address; write it like \"02:00:00:00:00:01\"")]
    Mac,
    #[error("is no address of one device; use a unicast MAC")]
    MacNotUnicast,
    #[error("is not a time; write a whole number and a unit (ms, s, m, h, d), like \"15m\"")]
    Time,
    #[error("is not an amount of memory; write a whole number and KiB, MiB or GiB, like \"2GiB\"")]
    Size,
    #[error("is not a list of cores; write it like \"1-3,5\"")]
    Cores,
    #[error(
        "does not say what to listen on; write \"tcp:192.0.2.80:80\" or \"udp:[2001:db8::80]:53\""
    )]
    Listen,
    #[error("names no usable port; write one (80), a range (8000-8099) or * for all")]
    Ports,
    #[error("is not an address and a port; write it like \"127.0.0.1:9718\"")]
    SocketAddress,
    #[error("is no address that one host can have; use a unicast address")]
    NotUnicast,
    #[error("is not a name; use up to 63 letters, digits, '-', '_', '.' or ':'")]
    Name,
    #[error("is not an interface name; use 1 to 15 letters, digits, '-', '_' or '.'")]
    Interface,
    #[error("is not an HTTP status or a range of them; write it like \"200\" or \"200-299\"")]
    Status,
    #[error("is empty; write a value or remove the key")]
    Empty,
}

/// An address and a prefix length. The address keeps its host bits: a port's own address is written
/// this way; [`Prefix::network`] clears them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    pub address: IpAddr,
    /// 0..=32 for IPv4, 0..=128 for IPv6.
    pub length: u8,
}

impl Prefix {
    /// The prefix that holds `address` alone.
    pub fn host(address: IpAddr) -> Self {
        Prefix {
            address,
            length: width(address),
        }
    }

    /// Whether it holds one address alone.
    pub fn is_host(&self) -> bool {
        self.length == width(self.address)
    }

    /// The same prefix with its host bits cleared.
    pub fn network(&self) -> Self {
        Prefix {
            address: mask(self.address, self.length),
            length: self.length,
        }
    }

    /// Whether `address` lies in this prefix; false across families.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && mask(self.address, self.length) == mask(address, self.length)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn mask(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let keep = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & keep).into())
        }
        IpAddr::V6(v6) => {
            let keep = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & keep).into())
        }
    }
}

impl FromStr for Prefix {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (address, length) = text.split_once('/').ok_or(ValueError::Prefix)?;
        let address: IpAddr = address.parse().map_err(|_| ValueError::Prefix)?;
        let length: u8 = digits(length).ok_or(ValueError::Prefix)?;
        if length > width(address) {
            return Err(ValueError::Prefix);
        }
        Ok(Prefix { address, length })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// An Ethernet address, in the order of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|p| p.len() == 2)
                .ok_or(ValueError::Mac)?;
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(ValueError::Mac);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| ValueError::Mac)?;
        }
        if parts.next().is_some() {
            return Err(ValueError::Mac);
        }
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(ValueError::MacNotUnicast);
        }
        Ok(Mac(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

const TIME_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];
const SIZE_UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Reads a time such as `"500ms"`, `"2s"` or `"15m"`.
pub fn parse_time(text: &str) -> Result<Duration, ValueError> {
    with_unit(text, &TIME_UNITS)
        .map(Duration::from_millis)
        .ok_or(ValueError::Time)
}

/// The text [`parse_time`] reads back to the same time; anything below a millisecond is cut off.
pub fn format_time(time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    in_units(millis, &TIME_UNITS, "ms")
}

/// Reads an amount of memory such as `"2GiB"`, in bytes.
pub fn parse_size(text: &str) -> Result<u64, ValueError> {
    with_unit(text, &SIZE_UNITS).ok_or(ValueError::Size)
}

/// The text [`parse_size`] reads back to the same number of bytes, which is whole KiB.
pub fn format_size(bytes: u64) -> String {
    in_units(bytes, &SIZE_UNITS, "KiB")
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    digits::<u64>(number)?.checked_mul(*factor)
}

fn in_units(amount: u64, units: &[(&str, u64)], smallest: &str) -> String {
    match units
        .iter()
        .find(|(_, factor)| amount > 0 && amount.is_multiple_of(*factor))
    {
        Some((name, factor)) => format!("{}{name}", amount / factor),
        None => format!("0{smallest}"),
    }
}

/// A whole number of decimal digits alone, without the sign that `parse` would accept.
pub(super) fn digits<T: FromStr>(text: &str) -> Option<T> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Reads a core list such as `"1-3,5"`, in the order written.
pub fn parse_cores(text: &str) -> Result<Vec<u16>, ValueError> {
    /// The most cores DPDK is built for in the distributions' packages is below this.
    const MOST: u16 = 1024;
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |t: &str| {
            digits::<u16>(t.trim())
                .filter(|c| *c < MOST)
                .ok_or(ValueError::Cores)
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(ValueError::Cores);
        }
        cores.extend(first..=last);
    }
    Ok(cores)
}

/// The text [`parse_cores`] reads back to the same list.
pub fn format_cores(cores: &[u16]) -> String {
    let mut parts: Vec<(u16, u16)> = Vec::new();
    for &core in cores {
        match parts.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(core) => *last = core,
            _ => parts.push((core, core)),
        }
    }
    let text = |(a, b): &(u16, u16)| {
        if a == b {
            a.to_string()
        } else {
            format!("{a}-{b}")
        }
    };
    parts.iter().map(text).collect::<Vec<_>>().join(",")
}

/// Reads an address that a host can have: not unspecified, multicast, loopback or broadcast.
pub fn parse_unicast(text: &str) -> Result<IpAddr, ValueError> {
    let address: IpAddr = text.parse().map_err(|_| ValueError::Address)?;
    check_unicast(address)
}

pub(super) fn check_unicast(address: IpAddr) -> Result<IpAddr, ValueError> {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast() || v4.octets()[0] == 0);
    if broadcast || address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(ValueError::NotUnicast);
    }
    Ok(address)
}

/// Reads a name that metrics, logs and the command line can carry without quoting.
pub fn parse_name(text: &str) -> Result<String, ValueError> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    if text.is_empty() || text.len() > 63 || !text.bytes().all(legal) {
        return Err(ValueError::Name);
    }
    Ok(text.to_owned())
}

/// Reads the name of a Linux network interface (at most IFNAMSIZ - 1 = 15 bytes).
pub fn parse_interface(text: &str) -> Result<String, ValueError> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if text.is_empty() || text.len() > 15 || !text.bytes().all(legal) || text == "." || text == ".."
    {
        return Err(ValueError::Interface);
    }
    Ok(text.to_owned())
}
