//! Direct routing: the packet goes to the backend's MAC address as it is, with the VIP still its
//! destination, and the backend answers the client itself.
//!
//! TTL and hop limit fall by one, as in IPVS: a packet that a misconfigured backend sends back to
//! us dies instead of circling.

use super::super::counters::DropReason;
use super::super::flow::Address;
use super::super::parse::{ETHERNET, Packet};
use super::super::route::Link;
use super::{decrement_ttl, write_macs};

#[inline(always)]
pub fn forward<A: Address>(
    frame: &mut [u8],
    packet: &Packet<A>,
    link: &Link,
) -> Result<(), DropReason> {
    decrement_ttl::<A>(&mut frame[usize::from(packet.l3)..])?;
    write_macs(frame, link);
    Ok(())
}

/// The same of a plain packet, whose offsets are constants.
#[inline(always)]
pub fn forward_plain<A: Address>(frame: &mut [u8], link: &Link) -> Result<(), DropReason> {
    let Some(head) = frame.get_mut(..ETHERNET + A::HEADER) else {
        return Err(DropReason::Truncated);
    };
    decrement_ttl::<A>(&mut head[ETHERNET..])?;
    write_macs(head, link);
    Ok(())
}
