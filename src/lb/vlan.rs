//! 802.1Q: VLANs of a port as interfaces of their own, as Linux has them.
//!
//! Workers take the tag off what comes in and put one on what goes out, so that nothing in between
//! knows of tags, and packets of a VLAN take the same short way as all others. Interfaces are numbered
//! through: the ports first, then the VLANs. Pure; where no VLAN is configured, nobody asks, and tags
//! stay as they are. Runs on workers.

use super::counters::DropReason;
use super::forward::write_u16;
use super::frame::Frame;
use super::parse::{ETHERNET, ETHERTYPE_VLAN, VLAN_TAG, read_u16};

/// The bits of a tag that hold the VLAN's id; the others are priorities.
const ID: u16 = 0x0fff;

/// A VLAN of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vlan {
    /// The port's index.
    pub port: u8,
    /// 1 to 4094.
    pub id: u16,
}

/// All VLANs of all ports.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Vlans {
    /// Ports, whose interfaces come first.
    ports: u8,
    /// In order of their interfaces.
    vlans: Vec<Vlan>,
}

impl Vlans {
    /// At most 255 interfaces, ports and VLANs together.
    pub fn new(ports: u8, vlans: Vec<Vlan>) -> Self {
        debug_assert!(usize::from(ports) + vlans.len() <= usize::from(u8::MAX));
        Self { ports, vlans }
    }

    /// No VLAN is configured.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.vlans.is_empty()
    }

    /// Finds out on which interface a frame came in that `port` received, notes it on the frame and
    /// takes the tag off. `stripped` is the tag that the NIC took off. A tag of priorities alone
    /// (IEEE 802.1Q 9.6) is no VLAN's.
    pub fn receive<F: Frame>(
        &self,
        port: u8,
        frame: &mut F,
        stripped: Option<u16>,
    ) -> Result<(), DropReason> {
        let bytes = frame.bytes_mut();
        let is_tagged = bytes.len() >= ETHERNET + VLAN_TAG && read_u16(bytes, 12) == ETHERTYPE_VLAN;
        let interface = if is_tagged {
            let id = read_u16(bytes, 14) & ID;
            let interface = self.interface(port, id).ok_or(DropReason::UnknownVlan)?;
            bytes.copy_within(..12, VLAN_TAG);
            frame.trim_front(VLAN_TAG);
            interface
        } else {
            // What the NIC strips without being asked is its own affair (a virtual function does not
            // know which VLAN it was put into), unless it is a VLAN of ours.
            let id = stripped.unwrap_or(0) & ID;
            self.interface(port, id).unwrap_or(port)
        };
        frame.set_interface(interface);
        Ok(())
    }

    fn interface(&self, port: u8, id: u16) -> Option<u8> {
        if id == 0 {
            return Some(port);
        }
        let at = self.vlans.iter().position(|&v| v == Vlan { port, id })?;
        Some(self.ports + at as u8)
    }

    /// Puts the tag of `interface`, which is a VLAN, on a frame; returns the port to send it out of.
    pub fn send<F: Frame>(&self, interface: u8, frame: &mut F) -> Result<u8, DropReason> {
        let at = interface.checked_sub(self.ports);
        let vlan = at.and_then(|at| self.vlans.get(usize::from(at)));
        let &Vlan { port, id } = vlan.ok_or(DropReason::NoNeighbour)?;
        if !frame.prepend(VLAN_TAG) {
            return Err(DropReason::NoHeadroom);
        }
        let bytes = frame.bytes_mut();
        bytes.copy_within(VLAN_TAG..VLAN_TAG + 12, 0);
        write_u16(bytes, 12, ETHERTYPE_VLAN);
        write_u16(bytes, 14, id);
        Ok(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lb::fixture::{VIP, tcp4};
    use crate::lb::frame::{HEADROOM, MemoryFrame};

    /// Two ports, three VLANs.
    fn vlans() -> Vlans {
        let vlan = |(port, id)| Vlan { port, id };
        Vlans::new(2, [(0, 7), (1, 7), (0, 4094)].map(vlan).to_vec())
    }

    fn received(port: u8, bytes: &[u8], stripped: Option<u16>) -> (Option<u8>, Vec<u8>) {
        let mut frame = MemoryFrame::new(bytes);
        match vlans().receive(port, &mut frame, stripped) {
            Ok(()) => (frame.interface(), frame.bytes().to_vec()),
            Err(DropReason::UnknownVlan) => (None, frame.bytes().to_vec()),
            Err(reason) => panic!("{reason:?}"),
        }
    }

    #[test]
    fn a_tag_names_the_interface_and_goes() {
        let packet = tcp4("10.0.0.1:1", VIP);
        let plain = packet.frame();
        for (port, id, interface) in [(0, 7, 2), (1, 7, 3), (0, 4094, 4), (0, 0, 0), (1, 0, 1)] {
            let tagged = packet.clone().vlan(id).frame();
            let want = (Some(interface), plain.clone());
            assert_eq!(received(port, &tagged, None), want, "{port} {id}");
            // As the NIC hands it over that stripped it, priority and all.
            let stripped = Some(id | 0xe000);
            assert_eq!(received(port, &plain, stripped), want, "{port} {id}");
        }
        assert_eq!(received(1, &plain, None), (Some(1), plain.clone()));
    }

    #[test]
    fn what_is_no_vlan_of_the_port_is_refused_unless_the_nic_stripped_it() {
        let packet = tcp4("10.0.0.1:1", VIP);
        let tagged = packet.clone().vlan(4094).frame();
        assert_eq!(received(1, &tagged, None), (None, tagged.clone()));
        let plain = packet.frame();
        assert_eq!(received(1, &plain, Some(4094)), (Some(1), plain));
        // Too short to have a tag.
        assert_eq!(received(0, &tagged[..17], None).0, Some(0));
        assert_eq!(received(0, &[], None).0, Some(0));
    }

    #[test]
    fn what_leaves_gets_the_tag_that_it_would_come_with() {
        let packet = tcp4("10.0.0.1:1", VIP);
        for (interface, port, id) in [(2, 0, 7), (3, 1, 7), (4, 0, 4094)] {
            let mut frame = MemoryFrame::new(&packet.frame());
            assert_eq!(vlans().send(interface, &mut frame), Ok(port));
            assert_eq!(frame.bytes(), packet.clone().vlan(id).frame());
        }
    }

    #[test]
    fn a_frame_without_room_or_an_interface_that_is_gone_is_refused() {
        let mut frame = MemoryFrame::new(&tcp4("10.0.0.1:1", VIP).frame());
        for gone in [0, 1, 5, 255] {
            let refused = Err(DropReason::NoNeighbour);
            assert_eq!(vlans().send(gone, &mut frame), refused);
        }
        assert!(frame.prepend(HEADROOM - 3));
        assert_eq!(vlans().send(2, &mut frame), Err(DropReason::NoHeadroom));
    }
}
