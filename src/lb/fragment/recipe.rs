//! What to do with a datagram's later fragments, read off its first one after that was forwarded.
//! They carry no ports, so under NAT the recipe is the new addresses alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::counters::DropReason;
use super::super::flow::Address;
use super::super::forward::{decrement_ttl, rewrite_addresses, write_macs};
use super::super::frame::Frame;
use super::super::parse::{ETHERNET, read_u16};
use super::super::route::Link;
use super::super::snapshot::BackendId;
use super::super::{Pass, Verdict};

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Recipe {
    pub action: Action,
    /// Whom to count for, and whether this is the backend's reply.
    pub backend: Option<(BackendId, bool)>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Action {
    /// To a backend by direct routing or tunnel, with the hash of the flow.
    OneWay {
        backend: BackendId,
        hash: u64,
    },
    /// New addresses, and out by this link; management finds it where it is not known.
    Rewrite {
        link: Option<Link>,
        source: IpAddr,
        destination: IpAddr,
    },
    /// Not balanced: for management, as it is, by the way of the first.
    Pass(Pass),
    Drop,
}

impl Action {
    /// What `verdict` did with a first fragment of a two-way flow, of which `frame` is the outcome.
    pub fn read(verdict: Verdict, frame: &[u8]) -> Self {
        let port = match verdict {
            Verdict::Transmit(port) => Some(port),
            Verdict::Pass(Pass::Resolve) => None,
            Verdict::Pass(pass @ (Pass::Local | Pass::Check)) => return Self::Pass(pass),
            _ => return Self::Drop,
        };
        let (Some(macs), Some((source, destination))) =
            (frame.first_chunk::<12>(), addresses(frame))
        else {
            return Self::Drop;
        };
        Self::Rewrite {
            link: port.map(|port| Link { macs: *macs, port }),
            source,
            destination,
        }
    }
}

/// Source and destination.
fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let mut l3 = ETHERNET;
    if frame.len() > 18 && read_u16(frame, 12) == 0x8100 {
        l3 += 4;
    }
    let ip = frame.get(l3..)?;
    match ip.first()? >> 4 {
        4 => {
            let at = |at: usize| ip.get(at..)?.first_chunk::<4>().copied();
            let (source, destination) = (Ipv4Addr::from(at(12)?), Ipv4Addr::from(at(16)?));
            Some((source.into(), destination.into()))
        }
        6 => {
            let at = |at: usize| ip.get(at..)?.first_chunk::<16>().copied();
            let (source, destination) = (Ipv6Addr::from(at(8)?), Ipv6Addr::from(at(24)?));
            Some((source.into(), destination.into()))
        }
        _ => None,
    }
}

/// Rewrites the addresses of a later fragment, whose payload has no checksum of ours to keep.
pub fn rewrite<A: Address, F: Frame>(
    frame: &mut F,
    l3: usize,
    link: Option<&Link>,
    source: IpAddr,
    destination: IpAddr,
) -> Result<(), DropReason> {
    let (Some(source), Some(destination)) = (A::from_ip(source), A::from_ip(destination)) else {
        return Err(DropReason::MalformedIp);
    };
    let bytes = frame.bytes_mut();
    decrement_ttl::<A>(&mut bytes[l3..])?;
    rewrite_addresses(&mut bytes[l3..], source, destination);
    if let Some(link) = link {
        write_macs(bytes, link);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_to_management_goes_by_the_way_of_its_first_fragment() {
        for pass in [Pass::Local, Pass::Check] {
            assert_eq!(Action::read(Verdict::Pass(pass), &[]), Action::Pass(pass));
        }
        let drop = Verdict::Drop(DropReason::NoBackend);
        assert_eq!(Action::read(drop, &[]), Action::Drop);
    }
}
