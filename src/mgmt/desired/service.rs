//! A service as workers see it: the configuration's words in the balancer's. Runs on the
//! management thread.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Desired, config};
use crate::lb::conn::{State, Timeouts};
use crate::lb::maglev::Maglev;
use crate::lb::persistence::Persistence;
use crate::lb::snapshot::{
    Backend, ForwardMethod, Limits, Scheduler, Service, Untracked, WhenNoBackend,
};

impl Desired {
    /// Indexes of a service's local addresses.
    fn local_indexes(&self, service: &config::Service) -> Arc<[u16]> {
        let index = |address: &IpAddr| self.locals.iter().position(|known| known == address);
        let indexes = service.local_addresses.iter().filter_map(index);
        indexes.map(|index| index as u16).collect()
    }

    /// The service at this place, but for its weights.
    pub(super) fn build_service(
        &self,
        place: usize,
        maglev: Arc<Maglev>,
        sorry: Option<&Backend>,
    ) -> Service {
        let (service, named) = (&self.config.services[place], &self.places[place]);
        let sorry = sorry.filter(|_| self.sorry_in_force(place).is_some());
        Service {
            id: named.id,
            name: service.name.as_str().into(),
            method: sorry.map_or(method(service.method), |sorry| sorry.method),
            scheduler: scheduler(service.scheduler),
            backends: sorry.map_or_else(|| named.backends.clone(), |sorry| vec![sorry.id]),
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
