//! The backends of a snapshot, and of each the few bytes that its settled packets need.
//! Built by management, read by workers, never changed.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::flow::Address;
use super::forward::nat::Endpoint;
use super::forward::server_end;
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

/// What a backend's settled packets need beside the hop where the method writes IPv4 addresses. A cache
/// line holds those of four.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FarEnd {
    pub address: Ipv4Addr,
    /// [`Backend::outer_source`].
    pub source: Ipv4Addr,
    /// [`Backend::outer_spread`].
    pub spread: u32,
    /// 0 leaves the destination port as it is.
    port: u16,
    /// The backend has IPv4 addresses.
    is_there: bool,
}

const _: () = assert!(size_of::<FarEnd>() == 16);

impl FarEnd {
    const NONE: Self = Self {
        address: Ipv4Addr::UNSPECIFIED,
        source: Ipv4Addr::UNSPECIFIED,
        spread: 0,
        port: 0,
        is_there: false,
    };

    pub fn of(backend: &Backend) -> Option<Self> {
        let (IpAddr::V4(address), IpAddr::V4(source)) = (backend.address, backend.outer_source)
        else {
            return None;
        };
        Some(Self {
            address,
            source,
            spread: backend.outer_spread,
            port: backend.port,
            is_there: true,
        })
    }

    #[inline(always)]
    pub fn is_there(&self) -> bool {
        self.is_there
    }

    /// What serves what clients send to `port`, by NAT; `None` for another family.
    #[inline(always)]
    pub fn server<A: Address>(&self, port: u16) -> Option<Endpoint<A>> {
        server_end(self.address.into(), self.port, port)
    }
}

/// Backends by their ids. An id without one is a hole: a backend that is gone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backends {
    all: Chunked<Option<Backend>>,
    /// [`Hop::of`] each, found without a look at a list of chunks. Weights, checks and drains change
    /// none of them, so that most successors share them all.
    hops: Arc<Vec<Hop>>,
    /// The same of [`FarEnd::of`] each.
    far_ends: Arc<Vec<FarEnd>>,
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

    /// By id; those that are not there are of backends with other addresses, or of none.
    #[inline(always)]
    pub fn far_ends(&self) -> &[FarEnd] {
        &self.far_ends
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
        let far_end = backend.as_ref().and_then(FarEnd::of);
        replace(&mut self.hops, id, hop);
        replace(&mut self.far_ends, id, far_end.unwrap_or(FarEnd::NONE));
        self.all.set(id.0, backend);
    }

    /// Makes places of all ids below `length`, with holes in those that are new.
    pub fn grow(&mut self, length: usize) {
        self.all.grow(length);
        if length > self.hops.len() {
            Arc::make_mut(&mut self.hops).resize(length, Hop::default());
            Arc::make_mut(&mut self.far_ends).resize(length, FarEnd::NONE);
        }
    }

    /// Chunks that two have in common, and all of this one; none where the hops or far ends are not.
    #[cfg(test)]
    pub fn shared(&self, other: &Self) -> (usize, usize) {
        let (shared, all) = self.all.shared(&other.all);
        let hops = Arc::ptr_eq(&self.hops, &other.hops);
        match hops && Arc::ptr_eq(&self.far_ends, &other.far_ends) {
            true => (shared, all),
            false => (0, all),
        }
    }
}

/// Puts it in its place, if it has one and is not there already.
fn replace<T: Copy + PartialEq>(places: &mut Arc<Vec<T>>, id: BackendId, value: T) {
    let at = id.0 as usize;
    if places.get(at).is_some_and(|present| *present != value) {
        Arc::make_mut(places)[at] = value;
    }
}

impl FromIterator<Backend> for Backends {
    /// The first one has the id 0, and so on.
    fn from_iter<I: IntoIterator<Item = Backend>>(backends: I) -> Self {
        let all: Chunked<_> = backends.into_iter().map(Some).collect();
        let hops: Vec<_> = all.iter().flatten().map(Hop::of).collect();
        let far_ends = all.iter().flatten();
        let far_ends: Vec<_> = far_ends
            .map(|backend| FarEnd::of(backend).unwrap_or(FarEnd::NONE))
            .collect();
        let (hops, far_ends) = (Arc::new(hops), Arc::new(far_ends));
        Self {
            all,
            hops,
            far_ends,
        }
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

    #[test]
    fn a_far_end_follows_its_backend() {
        let mut backends = Lab::new(Scheduler::RoundRobin, &[1, 1]).snapshot.backends;
        let second = BackendId(1);
        let backend = backends.get(second).expect("there").clone();
        let source = "10.9.0.0".parse().expect("IPv4");
        let changed = Backend {
            outer_source: IpAddr::V4(source),
            outer_spread: 0xffff,
            port: 8080,
            ..backend.clone()
        };
        backends.set(second, Some(changed));
        let end = backends.far_ends()[1];
        assert_eq!(IpAddr::V4(end.address), backend.address);
        assert_eq!((end.source, end.spread), (source, 0xffff));
        let server = |end: FarEnd, port| end.server::<Ipv4Addr>(port).map(|s| (s.address, s.port));
        assert_eq!(server(end, 80), Some((end.address, 8080)));
        assert!(end.server::<std::net::Ipv6Addr>(80).is_none());
        let same_port = Backend {
            port: 0,
            ..backend.clone()
        };
        backends.set(second, Some(same_port));
        let end = backends.far_ends()[1];
        assert_eq!(server(end, 80), Some((end.address, 80)));
        let v6 = Backend {
            address: std::net::Ipv6Addr::LOCALHOST.into(),
            ..backend
        };
        for none in [Some(v6), None] {
            backends.set(second, none);
            assert_eq!(backends.far_ends()[1], FarEnd::NONE);
        }
        backends.grow(100);
        assert_eq!(backends.far_ends().len(), backends.hops().len());
        assert!(backends.far_ends()[0].is_there() && !backends.far_ends()[99].is_there());
    }
}
