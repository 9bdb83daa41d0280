//! NAT: the destination becomes the backend's address and port, and in its replies the source
//! becomes the service's again. All checksums are adjusted by the difference (RFC 1624), so a
//! wrong one arrives as wrong as it was.

use super::super::checksum::Change;
use super::super::counters::DropReason;
use super::super::flow::{Address, protocol};
use super::super::parse::Packet;
use super::{adjust_header, lower_ttl, write_u16};

/// One end of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Endpoint<A> {
    pub address: A,
    pub port: u16,
}

/// Toward the backend.
#[inline(always)]
pub fn rewrite_destination<A: Address>(
    frame: &mut [u8],
    packet: &Packet<A>,
    new: Endpoint<A>,
) -> Result<(), DropReason> {
    let old = Endpoint {
        address: packet.key.destination,
        port: packet.key.destination_port,
    };
    rewrite(frame, packet, A::DESTINATION_AT, 2, old, new)
}

/// Toward the client.
#[inline(always)]
pub fn rewrite_source<A: Address>(
    frame: &mut [u8],
    packet: &Packet<A>,
    new: Endpoint<A>,
) -> Result<(), DropReason> {
    let old = Endpoint {
        address: packet.key.source,
        port: packet.key.source_port,
    };
    rewrite(frame, packet, A::SOURCE_AT, 0, old, new)
}

/// Both ends at once (FullNAT), with one step of TTL and one adjustment of each checksum.
#[inline(always)]
pub fn rewrite_both<A: Address>(
    frame: &mut [u8],
    packet: &Packet<A>,
    source: Endpoint<A>,
    destination: Endpoint<A>,
) -> Result<(), DropReason> {
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    let (key, ip) = (&packet.key, &mut frame[l3..]);
    lower_ttl::<A>(ip)?;
    source.address.write(&mut ip[A::SOURCE_AT..]);
    destination.address.write(&mut ip[A::DESTINATION_AT..]);
    let change = Change::default()
        .address(key.source, source.address)
        .address(key.destination, destination.address);
    adjust_header::<A>(ip, change);
    let l4 = &mut frame[l4..];
    write_u16(l4, 0, source.port);
    write_u16(l4, 2, destination.port);
    let change = change
        .word(key.source_port, source.port)
        .word(key.destination_port, destination.port);
    adjust_l4(l4, key.protocol, change);
    Ok(())
}

#[inline(always)]
fn rewrite<A: Address>(
    frame: &mut [u8],
    packet: &Packet<A>,
    address_at: usize,
    port_at: usize,
    old: Endpoint<A>,
    new: Endpoint<A>,
) -> Result<(), DropReason> {
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    let ip = &mut frame[l3..];
    lower_ttl::<A>(ip)?;
    new.address.write(&mut ip[address_at..]);
    let change = Change::default().address(old.address, new.address);
    adjust_header::<A>(ip, change);
    let l4 = &mut frame[l4..];
    write_u16(l4, port_at, new.port);
    adjust_l4(l4, packet.key.protocol, change.word(old.port, new.port));
    Ok(())
}

/// Adjusts a TCP or UDP checksum.
#[inline(always)]
pub fn adjust_l4(l4: &mut [u8], number: u8, change: Change) {
    match number {
        protocol::UDP => change.apply_udp(l4, 6),
        _ => change.apply(l4, 16),
    }
}

#[cfg(test)]
mod tests {
    use super::super::decrement_ttl;
    use super::*;
    use crate::lb::fixture::{tcp4, udp4};
    use crate::lb::parse::{Parsed, parse};
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn packet(frame: &[u8]) -> Packet<Ipv4Addr> {
        match parse(frame, false) {
            Parsed::V4(packet) => packet,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn out_and_back_in_is_identity(address: u32, port: u16, payload: Vec<u8>, tcp: bool) {
            let frame = if tcp {
                tcp4("10.0.0.1:1000", "192.0.2.80:80").payload(&payload).frame()
            } else {
                udp4("10.0.0.1:1000", "192.0.2.80:80").payload(&payload).frame()
            };
            let old = packet(&frame);
            let mut there = frame.clone();
            let new = Endpoint { address: Ipv4Addr::from_bits(address), port };
            rewrite_destination(&mut there, &old, new).expect("TTL is left");
            prop_assert!(crate::lb::fixture::checksums_are_right(&there));
            let moved = packet(&there);
            prop_assert_eq!((moved.key.destination, moved.key.destination_port), (new.address, port));
            let back = Endpoint { address: old.key.destination, port: old.key.destination_port };
            rewrite_destination(&mut there, &moved, back).expect("TTL is left");
            let mut want = frame;
            // Two hops were taken.
            decrement_ttl::<Ipv4Addr>(&mut want[14..]).expect("TTL is left");
            decrement_ttl::<Ipv4Addr>(&mut want[14..]).expect("TTL is left");
            prop_assert_eq!(there, want);
        }
    }
}
