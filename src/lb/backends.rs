//! The backends of a snapshot, and of each the few bytes that its settled packets need.
//! Built by management, read by workers, never changed.

use std::sync::Arc;

use super::route::Link;
use super::snapshot::{Backend, BackendId, BackendState, Chunked, ForwardMethod};

/// What forwards a settled packet: a backend's next hop, and by which method it is reached. A cache line
/// holds those of four backends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(16))]
pub struct Hop {
    pub link: Link,
    /// A [`ForwardMethod`]'s number, or [`Hop::NO_METHOD`].
    method: u8,
    /// [`Backend::mtu`].
    pub mtu: u16,
}

const _: () = assert!(size_of::<Hop>() == 16);

impl Default for Hop {
    /// Leads nowhere.
    fn default() -> Self {
        let (macs, port) = ([0; 12], 0);
        Self {
            link: Link { macs, port },
            method: Self::NO_METHOD,
            mtu: 0,
        }
    }
}

impl Hop {
    /// Of a backend that is removed, or whose next hop is not known: no packet of it is settled.
    const NO_METHOD: u8 = u8::MAX;

    fn of(backend: &Backend) -> Self {
        match backend.link {
            Some(link) if backend.state != BackendState::Removed => Self {
                link,
                method: backend.method as u8,
                mtu: backend.mtu,
            },
            _ => Self::default(),
        }
    }

    /// How packets reach the backend, if they do.
    #[inline(always)]
    pub fn method(&self) -> Option<ForwardMethod> {
        ForwardMethod::ALL.get(usize::from(self.method)).copied()
    }

    /// Whether packets reach the backend by this method and leave by this port: one comparison.
    #[inline(always)]
    pub fn is_by(&self, method: ForwardMethod, port: u8) -> bool {
        [self.link.port, self.method] == [port, method as u8]
    }
}

/// Backends by their ids. An id without one is a hole: a backend that is gone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backends {
    all: Chunked<Option<Backend>>,
    /// [`Hop::of`] each, found without a look at a list of chunks. Weights, checks and drains change
    /// none of them, so that most successors share them all.
    hops: Arc<Vec<Hop>>,
}

impl Backends {
    #[inline(always)]
    pub fn get(&self, id: BackendId) -> Option<&Backend> {
        self.all.get(id.0)?.as_ref()
    }

    #[inline(always)]
    pub fn hop(&self, id: BackendId) -> Option<&Hop> {
        self.hops().get(id.0 as usize)
    }

    /// By id.
    #[inline(always)]
    pub fn hops(&self) -> &[Hop] {
        &self.hops
    }

    /// Places, with the holes.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Backend> {
        self.all.iter().flatten()
    }

    /// Puts a backend, or a hole, in its place, if it has one.
    pub fn set(&mut self, id: BackendId, backend: Option<Backend>) {
        let hop = backend.as_ref().map(Hop::of).unwrap_or_default();
        let at = id.0 as usize;
        if self.hops.get(at).is_some_and(|present| *present != hop) {
            Arc::make_mut(&mut self.hops)[at] = hop;
        }
        self.all.set(id.0, backend);
    }

    /// Makes places of all ids below `length`, with holes in those that are new.
    pub fn grow(&mut self, length: usize) {
        self.all.grow(length);
        if length > self.hops.len() {
            Arc::make_mut(&mut self.hops).resize(length, Hop::default());
        }
    }

    /// Chunks that two have in common, and all of this one; none where the hops are not in common.
    #[cfg(test)]
    pub fn shared(&self, other: &Self) -> (usize, usize) {
        let (shared, all) = self.all.shared(&other.all);
        match Arc::ptr_eq(&self.hops, &other.hops) {
            true => (shared, all),
            false => (0, all),
        }
    }
}

impl FromIterator<Backend> for Backends {
    /// The first one has the id 0, and so on.
    fn from_iter<I: IntoIterator<Item = Backend>>(backends: I) -> Self {
        let all: Chunked<_> = backends.into_iter().map(Some).collect();
        let hops: Vec<_> = all.iter().flatten().map(Hop::of).collect();
        let hops = Arc::new(hops);
        Self { all, hops }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lb::fixture::Lab;
    use crate::lb::snapshot::Scheduler;

    #[test]
    fn a_hop_follows_its_backend() {
        let mut backends = Lab::new(Scheduler::RoundRobin, &[1, 1]).snapshot.backends;
        let second = BackendId(1);
        let is_by = |backends: &Backends, port| {
            let hop = backends.hop(second).expect("a place");
            hop.is_by(ForwardMethod::DirectRouting, port)
        };
        let backend = backends.get(second).expect("there").clone();
        assert!(is_by(&backends, 0) && !is_by(&backends, 1));
        let hop = backends.hop(second).expect("a place");
        assert_eq!((Some(hop.link), hop.mtu), (backend.link, backend.mtu));
        assert_eq!(hop.method(), Some(backend.method));
        assert!(!hop.is_by(ForwardMethod::Nat, 0));
        let removed = Backend {
            state: BackendState::Removed,
            ..backend.clone()
        };
        let unresolved = Backend {
            link: None,
            ..backend.clone()
        };
        for none in [Some(removed), Some(unresolved), None] {
            backends.set(second, none);
            assert_eq!(backends.hop(second), Some(&Hop::default()));
            assert!(!is_by(&backends, 0) && Hop::default().method().is_none());
            backends.set(second, Some(backend.clone()));
            assert!(is_by(&backends, 0));
        }
        for (number, method) in ForwardMethod::ALL.into_iter().enumerate() {
            assert_eq!(method as usize, number);
        }
        backends.grow(100);
        assert_eq!((backends.len(), backends.iter().count()), (100, 2));
        assert_eq!(backends.hop(BackendId(99)), Some(&Hop::default()));
    }
}
