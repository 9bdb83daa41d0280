//! The kernel's network interface behind a virtual device, where there is one.

use std::io;

/// Sets the MTU of the interface with this index in this process's network namespace (netdevice(7)).
pub(super) fn set_mtu(index: u32, mtu: u16) -> io::Result<()> {
    // SAFETY: all zeros is a valid ifreq: bytes, numbers and unions of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the array has room for a name, IF_NAMESIZE bytes.
    if unsafe { libc::if_indextoname(index, request.ifr_name.as_mut_ptr()) }.is_null() {
        return Err(io::Error::last_os_error());
    }
    request.ifr_ifru.ifru_mtu = mtu.into();
    // Any socket will do to ask with, bound to no address: the loopback interface may be down.
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: an open socket, and a request that has a name and a number.
    let rc = unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SIOCSIFMTU,
            &request,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
