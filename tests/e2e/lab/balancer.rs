//! A DPDK program in the balancer's namespace and its TAP ports on the switch.

use super::Lab;
use super::process::{self, Running};

/// The port's kernel end, as in `net_tap0,iface=ek0`.
pub const TAP: &str = "ek0";

/// Plugs the kernel end of the TAP port of `program` into the switch; returns when `address`, which
/// the program owns, answers a ping through it.
pub fn attach(lab: &Lab, program: &mut Running, address: &str) {
    process::wait_for(&format!("an answer from {address}"), || {
        program.assert_running();
        // The DPDK driver gives the port's MAC address to the kernel end too, and a bridge keeps
        // frames to its members' addresses for itself. Starting the port sets it again, so this
        // must be repeated until the port is up.
        lab.balancer
            .try_ip(&format!("link set {TAP} address 02:00:00:00:00:fe"))?;
        lab.balancer
            .try_ip(&format!("link set {TAP} master lan up"))?;
        let answer = lab.balancer.run("ping", &["-c1", "-W1", "-n", address]);
        answer.status.success().then_some(())
    });
}
