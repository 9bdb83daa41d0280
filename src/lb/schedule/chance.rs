//! random and twos: weighted draws.

use super::super::maglev::mix;
use super::super::snapshot::Backend;
use super::{Field, Place};

/// A worker's own random numbers: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    /// Workers draw from different sequences of one seed.
    pub(super) fn new(seed: u64, place: Place) -> Self {
        Self(mix(seed ^ mix(u64::from(place.worker) + 1)))
    }

    /// A number below `end`, evenly; 0 when `end` is 0.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ((u128::from(mix(self.0)) * u128::from(end)) >> 64) as u64
    }
}

/// Draws by weight. Drawing again while the one drawn cannot take it, and drawing once among
/// those that can, give the same odds; the second costs a scan.
pub(super) fn random<'s, U: Fn(&Backend) -> bool>(
    field: &Field<'s, '_, U>,
    dice: &mut Dice,
) -> Option<&'s Backend> {
    const TRIES: usize = 4;
    let weights = &field.service.weights;
    for _ in 0..TRIES {
        let drawn = weights.at(dice.below(weights.total()))?;
        if let Some(backend) = field.take(drawn) {
            return Some(backend);
        }
    }
    let able = || {
        field
            .candidates()
            .iter()
            .filter_map(|c| Some((field.take(c)?, c.weight)))
    };
    let mut point = dice.below(able().map(|(_, weight)| u64::from(weight)).sum());
    for (backend, weight) in able() {
        match point.checked_sub(u64::from(weight)) {
            Some(rest) => point = rest,
            None => return Some(backend),
        }
    }
    None
}

/// Two draws by weight; the one with less overhead for its weight wins, the first a tie.
pub(super) fn two_choices<'s, U: Fn(&Backend) -> bool>(
    field: &Field<'s, '_, U>,
    dice: &mut Dice,
) -> Option<&'s Backend> {
    let (first, second) = (random(field, dice)?, random(field, dice)?);
    let cost = |backend: &Backend| u128::from(field.load(backend.id).overhead());
    let second_is_better =
        cost(second) * u128::from(first.weight) < cost(first) * u128::from(second.weight);
    Some(if second_is_better { second } else { first })
}
