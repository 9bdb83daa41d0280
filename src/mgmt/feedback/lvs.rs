//! The LVS project's own formula, as written: for operators who know it. Pure.
//!
//! Its flaws are its own. It adds up: while everybody is below the target, all weights climb to
//! the cap and their differences vanish; and the cube root is infinitely steep at the target, so
//! that weights jitter there. The policy `relative` has neither.

use super::input::View;

/// Target utilisation, gain, and the cap in multiples of the configured weight.
const TARGET: f64 = 0.95;
const A: f64 = 5.0;
const SCALE: f64 = 10.0;
/// The share of each input: new connections, processor, disk, memory, processes, response time.
const R: [f64; 6] = [0.1, 0.3, 0.1, 0.1, 0.1, 0.3];
/// A weight is pushed when it differs from the one in force by more than this share of it.
pub(super) const THRESHOLD: f64 = 0.1;

/// The load of each backend, 1 being full: inputs that a backend does not give count for
/// nothing, and the shares of the others grow to a sum of one. `None`: unreachable.
pub fn aggregate_loads(views: &[View]) -> Vec<Option<f64>> {
    let rates = relative_to_mean(views, |v| v.rate);
    let responses = relative_to_mean(views, |v| v.response);
    let load = |(n, view): (usize, &View)| {
        let known = [view.cpu, view.disk, view.memory, view.load, view.response];
        known.iter().any(Option::is_some).then_some(())?;
        let inputs = [
            rates[n],
            view.cpu,
            view.disk,
            view.memory,
            view.load,
            responses[n],
        ];
        let given = || {
            inputs
                .iter()
                .zip(R)
                .filter_map(|(input, r)| Some((r, (*input)?)))
        };
        let shares: f64 = given().map(|(r, _)| r).sum();
        Some(given().map(|(r, input)| r * input).sum::<f64>() / shares)
    };
    views.iter().enumerate().map(load).collect()
}

/// Each one's part over the mean: INPUT in the formula.
fn relative_to_mean(views: &[View], of: impl Fn(&View) -> Option<f64>) -> Vec<Option<f64>> {
    let known: Vec<f64> = views.iter().filter_map(&of).collect();
    let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
    let part = |view: &View| of(view).map(|x| if mean > 0.0 { x / mean } else { 0.0 });
    views.iter().map(part).collect()
}

/// The next weight from the last: `w + A cbrt(0.95 - load)`, kept between the configured weight
/// and ten times that; nought for a backend that cannot be reached.
pub fn next_weight(last: f64, configured: u32, load: Option<f64>) -> f64 {
    let (lowest, highest) = (f64::from(configured), SCALE * f64::from(configured));
    match load {
        Some(load) => (last + A * (TARGET - load).cbrt()).clamp(lowest, highest),
        None => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formula_by_hand() {
        let view = |rate, cpu, response| View {
            rate: Some(rate),
            cpu: Some(cpu),
            disk: Some(0.2),
            memory: Some(0.5),
            load: Some(0.4),
            response: Some(response),
            ..View::default()
        };
        let loads = aggregate_loads(&[view(10.0, 0.9, 0.3), view(30.0, 0.1, 0.1)]);
        // 0.1 * 10/20 + 0.3 * 0.9 + 0.1 * (0.2 + 0.5 + 0.4) + 0.3 * 0.3/0.2
        let by_hand = 0.05 + 0.27 + 0.11 + 0.45;
        assert!((loads[0].expect("known") - by_hand).abs() < 1e-12);
        let weight = next_weight(20.0, 10, loads[0]);
        assert!((weight - (20.0 + 5.0 * (0.95f64 - by_hand).cbrt())).abs() < 1e-12);
    }

    #[test]
    fn bounds_and_the_unreachable() {
        assert_eq!(next_weight(99.0, 10, Some(0.0)), 100.0);
        assert_eq!(next_weight(10.5, 10, Some(5.0)), 10.0);
        assert_eq!(next_weight(50.0, 10, None), 0.0);
        assert_eq!(next_weight(0.0, 0, Some(0.1)), 0.0);
        assert_eq!(aggregate_loads(&[View::default()]), [None]);
    }
}
