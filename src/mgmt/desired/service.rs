//! A service as workers see it: the configuration's words in the balancer's. Runs on the
//! management thread.

use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::lb::conn::{State, Timeouts};
use crate::lb::persistence::Persistence;
use crate::lb::snapshot::*;

impl Desired {
    /// Indexes of a service's local addresses.
    fn local_indexes(&mut self, service: &config::Service) -> Arc<[u16]> {
        let index = |address: &IpAddr| {
            let known = self.locals.iter().position(|known| known == address);
            known.unwrap_or_else(|| {
                self.locals.push(*address);
                self.locals.len() - 1
            }) as u16
        };
        service.local_addresses.iter().map(index).collect()
    }

    pub(super) fn build_service(
        &mut self,
        service: &config::Service,
        id: ServiceId,
        backends: Vec<BackendId>,
        sorry: Option<&Backend>,
    ) -> Service {
        let sorry = sorry.filter(|_| self.sorry_in_force(service).is_some());
        let maglev = self.tables.table_now(&self.table_key(service));
        Service {
            id,
            name: service.name.as_str().into(),
            method: sorry.map_or(method(service.method), |sorry| sorry.method),
            scheduler: scheduler(service.scheduler),
            backends: sorry.map_or(backends, |sorry| vec![sorry.id]),
            weights: Arc::default(),
            maglev,
            hash_port: service.hash_port,
            hash_fallback: service.hash_fallback,
            when_no_backend: match service.when_no_backend {
                config::WhenNoBackend::Reset => WhenNoBackend::Reset,
                config::WhenNoBackend::Drop => WhenNoBackend::Drop,
                config::WhenNoBackend::UseAll => WhenNoBackend::UseAll,
            },
            untracked: match service.untracked {
                config::Untracked::Hash => Untracked::Hash,
                config::Untracked::Reset => Untracked::Reset,
                config::Untracked::Drop => Untracked::Drop,
            },
            timeouts: timeouts(&service.timeouts),
            locals: self.local_indexes(service),
            one_packet: service.one_packet,
            mss_clamp: service.mss_clamp.unwrap_or(0),
            limits: Limits {
                connections: service.limits.connections.unwrap_or(0),
                rate: service.limits.rate.unwrap_or(0),
            },
            persistence: service.persistence.as_ref().map(|p| Persistence {
                timeout: p.timeout.as_secs() as u32,
                prefix_v4: p.prefix_v4,
                prefix_v6: p.prefix_v6,
                group: group(p.group.as_deref(), &service.name),
            }),
        }
    }
}

/// The number of a persistence group, or of a service that is one by itself.
fn group(name: Option<&str>, service: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (name.is_some(), name.unwrap_or(service)).hash(&mut hasher);
    hasher.finish()
}

pub(super) fn method(method: config::Method) -> ForwardMethod {
    match method {
        config::Method::Nat => ForwardMethod::Nat,
        config::Method::FullNat => ForwardMethod::FullNat,
        config::Method::Tunnel => ForwardMethod::Tunnel,
        config::Method::DirectRouting => ForwardMethod::DirectRouting,
    }
}

fn scheduler(scheduler: config::Scheduler) -> Scheduler {
    match scheduler {
        config::Scheduler::Rr => Scheduler::RoundRobin,
        config::Scheduler::Wrr => Scheduler::WeightedRoundRobin,
        config::Scheduler::Random => Scheduler::Random,
        config::Scheduler::Lc => Scheduler::LeastConnection,
        config::Scheduler::Wlc => Scheduler::WeightedLeastConnection,
        config::Scheduler::Sed => Scheduler::ShortestExpectedDelay,
        config::Scheduler::Nq => Scheduler::NeverQueue,
        config::Scheduler::Lblc => Scheduler::Locality,
        config::Scheduler::Lblcr => Scheduler::LocalityReplicated,
        config::Scheduler::Dh => Scheduler::DestinationHash,
        config::Scheduler::Sh => Scheduler::SourceHash,
        config::Scheduler::Mh => Scheduler::Maglev,
        config::Scheduler::Fo => Scheduler::Failover,
        config::Scheduler::Ovf => Scheduler::Overflow,
        config::Scheduler::Twos => Scheduler::TwoChoices,
    }
}

fn timeouts(config: &config::Timeouts) -> Timeouts {
    let mut timeouts = Timeouts::default();
    for (state, time) in [
        (State::Established, config.established),
        (State::SynSent, config.syn_sent),
        (State::SynRecv, config.syn_recv),
        (State::FinWait, config.fin_wait),
        (State::TimeWait, config.time_wait),
        (State::Close, config.close),
        (State::CloseWait, config.close_wait),
        (State::LastAck, config.last_ack),
        (State::Udp, config.udp),
    ] {
        timeouts.set(state, time.as_secs().min(65_535) as u16);
    }
    timeouts
}
