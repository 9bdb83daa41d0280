//! Rewriting a packet for its way to a backend or back to a client.
//! One file per method; pure; runs on workers for every forwarded packet. Offsets were checked
//! by the parser.

pub mod direct;
pub mod nat;
pub mod tunnel;

use super::checksum::Change;
use super::counters::DropReason;
use super::flow::Address;
use super::route::Link;

/// Puts the next hop's and our own MAC address in front.
#[inline(always)]
pub fn write_macs(frame: &mut [u8], link: &Link) {
    frame[..12].copy_from_slice(&link.macs);
}

#[inline(always)]
pub fn write_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Takes one off TTL or hop limit, with IPv4's header checksum following. A packet that would
/// leave with zero is not forwarded (RFC 1812 5.3.1, RFC 8200 3).
#[inline(always)]
pub fn decrement_ttl<A: Address>(ip: &mut [u8]) -> Result<(), DropReason> {
    if A::HEADER == 20 {
        if ip[8] <= 1 {
            return Err(DropReason::TtlExpired);
        }
        ip[8] -= 1;
        // The TTL is the high byte of its word: the word falls by 0x0100, so the checksum rises
        // by it (RFC 1141), in whatever byte order (RFC 1071 2 B).
        let checksum = u16::from_ne_bytes([ip[10], ip[11]]);
        let (sum, carry) = checksum.overflowing_add(u16::from_be(0x0100));
        ip[10..12].copy_from_slice(&(sum + u16::from(carry)).to_ne_bytes());
    } else {
        if ip[7] <= 1 {
            return Err(DropReason::TtlExpired);
        }
        ip[7] -= 1;
    }
    Ok(())
}

/// Writes an address at `at` of the IP header, with IPv4's header checksum following. Returns the
/// change, for the checksums of what the packet carries.
#[inline(always)]
pub fn write_address<A: Address>(ip: &mut [u8], at: usize, old: A, new: A) -> Change {
    new.write(&mut ip[at..]);
    let change = Change::default().address(old, new);
    if A::HEADER == 20 {
        change.apply(ip, 10);
    }
    change
}

/// The same of both addresses.
#[inline(always)]
pub fn rewrite_addresses<A: Address>(ip: &mut [u8], source: A, destination: A) -> Change {
    let old = (
        A::read(&ip[A::SOURCE_AT..]),
        A::read(&ip[A::DESTINATION_AT..]),
    );
    source.write(&mut ip[A::SOURCE_AT..]);
    destination.write(&mut ip[A::DESTINATION_AT..]);
    let change = Change::default()
        .address(old.0, source)
        .address(old.1, destination);
    if A::HEADER == 20 {
        change.apply(ip, 10);
    }
    change
}
