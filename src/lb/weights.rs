//! A service's backends as schedulers scan them: ids and weights side by side, sixteen bytes each,
//! with the sums that a draw or a cycle needs. Part of a snapshot: built by management whenever a
//! weight or a state changes, read by workers, never changed.

use super::backends::Backends;
use super::snapshot::BackendId;

/// One backend of a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    pub id: BackendId,
    /// Weight in force; 0 where the backend takes no new connections for whatever reason.
    pub weight: u32,
    /// Sum of the weights up to and with this one.
    pub upto: u64,
}

/// All backends of a service, in the configuration's order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Weights {
    candidates: Box<[Candidate]>,
    gcd: u32,
    heaviest: u32,
}

impl Weights {
    /// The weights in force: a backend that is not up, or gone, keeps its place with weight 0.
    pub fn of(ids: &[BackendId], backends: &Backends) -> Self {
        let weight = |id: BackendId| {
            let backend = backends.get(id);
            backend.filter(|b| b.is_eligible()).map_or(0, |b| b.weight)
        };
        let mut weights = Self::default();
        let mut upto = 0;
        weights.candidates = ids
            .iter()
            .map(|&id| {
                let weight = weight(id);
                upto += u64::from(weight);
                weights.gcd = gcd(weights.gcd, weight);
                weights.heaviest = weights.heaviest.max(weight);
                Candidate { id, weight, upto }
            })
            .collect();
        weights
    }

    #[inline(always)]
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// The greatest common divisor of the weights; 0 when there is none to choose.
    pub fn gcd(&self) -> u32 {
        self.gcd
    }

    pub fn heaviest(&self) -> u32 {
        self.heaviest
    }

    pub fn total(&self) -> u64 {
        self.candidates.last().map_or(0, |c| c.upto)
    }

    /// The candidate at `point` of a line on which each takes up its weight: `point` drawn evenly
    /// below [`Self::total`] is a weighted draw.
    pub fn at(&self, point: u64) -> Option<&Candidate> {
        self.candidates
            .get(self.candidates.partition_point(|c| c.upto <= point))
    }
}

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
