//! Whole numbers in given proportions. Pure.

/// Proportions are met within this factor.
pub const TOLERANCE: f64 = 1.04;
/// The lightest one's weight at most: rounding is then within the tolerance for all.
const FINEST: u32 = 26;

/// The simplest whole numbers in the proportions of `wanted`; nought stays nought, and nothing
/// else becomes so. Simple, because wrr's cycle is as long as its weights are large, and serves
/// the heaviest many times in a row.
pub fn simplest(wanted: &[f64]) -> Vec<u32> {
    let positive = || wanted.iter().copied().filter(|w| *w > 0.0);
    let lightest = positive().fold(f64::INFINITY, f64::min);
    let round = |unit: u32| {
        let scale = f64::from(unit) / lightest;
        let whole = |w: &f64| {
            if *w > 0.0 {
                (w * scale).round().max(1.0) as u32
            } else {
                0
            }
        };
        wanted.iter().map(whole).collect::<Vec<u32>>()
    };
    let is_near = |whole: &[u32]| {
        let ratios = || {
            wanted
                .iter()
                .zip(whole)
                .filter(|(w, _)| **w > 0.0)
                .map(|(w, n)| f64::from(*n) / w)
        };
        ratios().fold(0.0, f64::max) <= TOLERANCE * ratios().fold(f64::INFINITY, f64::min)
    };
    let mut units = (1..FINEST).map(round);
    units
        .find(|whole| is_near(whole))
        .unwrap_or_else(|| round(FINEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn simple_where_it_can_be() {
        assert_eq!(simplest(&[1.02, 1.97, 4.05, 0.0]), [1, 2, 4, 0]);
        assert_eq!(simplest(&[100.0, 75.0]), [4, 3]);
        assert_eq!(simplest(&[0.01, 0.01]), [1, 1]);
        assert_eq!(simplest(&[0.0, 0.0]), [0, 0]);
        assert_eq!(simplest(&[]), [0; 0]);
    }

    proptest! {
        #[test]
        fn proportions_are_kept(wanted in prop::collection::vec(0.1..1000.0f64, 1..40)) {
            let whole = simplest(&wanted);
            let ratios: Vec<f64> = whole.iter().zip(&wanted).map(|(n, w)| f64::from(*n) / w).collect();
            let (least, most) = (
                ratios.iter().copied().fold(f64::INFINITY, f64::min),
                ratios.iter().copied().fold(0.0, f64::max),
            );
            prop_assert!(most / least <= TOLERANCE + 0.001, "{whole:?}");
        }
    }
}
