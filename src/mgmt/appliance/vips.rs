//! Who answers for the VIPs, and the appliance's own drain: what workers know nothing of.

use std::time::Instant;

use super::Appliance;
use crate::mgmt::api::{Drain, Problem, Ready, VipStatus};
use crate::mgmt::config::Service;
use crate::mgmt::events::{EventKind, Happening};
use crate::mgmt::kernel::vips::{self, Announced};

/// Whether traffic is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Standing {
    #[default]
    Serving,
    /// An operator has drained it.
    Drained,
    /// It ends at this time, and has withdrawn its VIPs.
    Ending(Instant),
}

impl Appliance {
    /// Withdraws the VIPs, or announces them again.
    pub(super) fn drain(&mut self, drain: Drain) -> Drain {
        let (wanted, kind, message) = match drain.drain {
            true => (
                Standing::Drained,
                EventKind::DrainBegun,
                "drained as a whole: VIPs are withdrawn, and connections are still forwarded",
            ),
            false => (
                Standing::Serving,
                EventKind::DrainEnded,
                "no longer drained: VIPs are announced again",
            ),
        };
        let may_change = !matches!(self.standing, Standing::Ending(_));
        if may_change && self.standing != wanted {
            self.standing = wanted;
            self.tell(Happening::new(kind, message));
            self.announce_vips();
        }
        Drain {
            drain: self.standing != Standing::Serving,
        }
    }

    /// A signal asks for the end. True where it is there: there is nothing to wait for, or this is
    /// not the first signal.
    pub(super) fn begin_to_end(&mut self) -> bool {
        let linger = self.desired.config.management.linger;
        if linger.is_zero() || matches!(self.standing, Standing::Ending(_)) {
            return true;
        }
        self.standing = Standing::Ending(Instant::now() + linger);
        tracing::info!(
            "VIPs are withdrawn; the end comes after {}",
            crate::mgmt::config::format_time(linger)
        );
        self.announce_vips();
        false
    }

    /// Has those VIPs stand in the table for routing daemons that lead somewhere.
    pub(super) fn announce_vips(&mut self) {
        let config = &self.desired.config;
        if config.management.vip_table.is_none() {
            return;
        }
        let has_quorum = |service: &Service| self.desired.quorum_is_met(service);
        let announced = match self.standing {
            Standing::Serving => vips::announced(config, has_quorum),
            Standing::Drained | Standing::Ending(_) => Announced::new(),
        };
        self.kernel.announce(announced);
    }

    pub(super) fn vips(&self) -> Vec<VipStatus> {
        let has_quorum = |service: &Service| self.desired.quorum_is_met(service);
        let (config, learned) = (&self.desired.config, self.kernel.learned());
        vips::statuses(config, learned, &self.net, has_quorum)
    }

    pub(super) fn ready(&self, service: Option<&str>) -> Result<Ready, Problem> {
        match self.standing {
            Standing::Serving => {}
            Standing::Drained => return Err(Problem::not_ready("it is drained")),
            Standing::Ending(_) => return Err(Problem::not_ready("it is about to end")),
        }
        let services = &self.desired.config.services;
        if let Some(name) = service {
            let found = services.iter().find(|service| service.name == name);
            let service = found.ok_or_else(|| Problem::no_service(name))?;
            if !self.desired.quorum_is_met(service) {
                let reason = format!("service {name} has lost its quorum");
                return Err(Problem::not_ready(&reason));
            }
        }
        Ok(Ready { ready: true })
    }
}
