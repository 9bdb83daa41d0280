//! A flow's TCP state.

use super::*;

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Tcp {
    SynReceived,
    Established,
    FinWait,
    CloseWait,
    TimeWait,
    Close,
}

impl Judge {
    /// IPVS's table: RST, then SYN, then FIN, then ACK.
    pub(super) fn next(&self, tcp: Tcp, client: bool, ports: &Ports) -> Tcp {
        use Tcp::*;
        let half = !self.is_two_way();
        if ports.rst {
            return match (tcp, client) {
                (SynReceived, true) => SynReceived,
                (TimeWait, false) => TimeWait,
                _ => Close,
            };
        }
        if ports.syn {
            return tcp;
        }
        if ports.fin {
            return match (tcp, client) {
                (Established, true) if half => FinWait,
                (Established, true) => CloseWait,
                (Established, false) | (SynReceived, false) => FinWait,
                (SynReceived, true) => TimeWait,
                (FinWait, true) if !half => TimeWait,
                (CloseWait, false) => TimeWait,
                _ => tcp,
            };
        }
        match tcp {
            SynReceived if ports.ack => Established,
            _ => tcp,
        }
    }

    pub(super) fn is_over(&self, tcp: Tcp) -> bool {
        match tcp {
            Tcp::TimeWait | Tcp::Close => true,
            Tcp::FinWait => !self.is_two_way(),
            _ => false,
        }
    }
}
