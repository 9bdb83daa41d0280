//! A TAP device: a Linux interface whose other end is ours. It goes when this value does.
//!
//! Management thread; it never waits.

use std::io::{self, ErrorKind};

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

pub struct Tap {
    device: SyncDevice,
}

impl Tap {
    /// A new interface of this name, up, in the network namespace of the program.
    ///
    /// # Errors
    /// When the system refuses it: without the rights to make one, or where the name is taken.
    pub fn create(name: &str, mac: [u8; 6], mtu: u16) -> io::Result<Self> {
        let device = DeviceBuilder::new()
            .name(name)
            .layer(Layer::L2)
            .mac_addr(mac)
            .mtu(mtu)
            .enable(true)
            .build_sync()?;
        device.set_nonblocking(true)?;
        Ok(Self { device })
    }

    /// The number that netlink knows it by.
    pub fn index(&self) -> io::Result<u32> {
        self.device.if_index()
    }

    pub fn set_mac(&self, mac: [u8; 6]) -> io::Result<()> {
        self.device.set_mac_address(mac)
    }

    /// The length of the next frame that Linux sends, which is then in `buffer`.
    pub fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            match self.device.recv(buffer) {
                Ok(length) => return Some(length),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nothing there, or the interface is down.
                Err(_) => return None,
            }
        }
    }

    /// Gives Linux a frame; false where it has no room, or the interface is down.
    pub fn send(&self, frame: &[u8]) -> bool {
        loop {
            match self.device.send(frame) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                sent => return sent.is_ok(),
            }
        }
    }
}
