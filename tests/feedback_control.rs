//! The controller: bounds, staleness, orders of agents, slow start, and which weights it pushes.

#[path = "feedback/start.rs"]
mod start;

use std::time::Duration;

use evenkeel::lb::snapshot::{BackendId, ServiceId};
use evenkeel::mgmt::feedback::agent::{Advice, parse};
use evenkeel::mgmt::feedback::poll::Heard;
use evenkeel::mgmt::feedback::relative::STEP;
use evenkeel::mgmt::feedback::{
    Change, Controller, Counted, Feedback, Member, Policy, Reason, Sample, ServiceSpec, Source,
    Spec,
};
use proptest::prelude::*;

const INTERVAL: Duration = Duration::from_secs(5);

struct Rig {
    controller: Controller,
    members: Vec<Member>,
    now: Duration,
    weights: Vec<u32>,
}

impl Rig {
    fn new(policy: Policy, weights: &[u32]) -> Self {
        let spec = Spec {
            policy,
            interval: INTERVAL,
            slow_start: Duration::from_secs(50),
        };
        let member = |(n, &weight): (usize, &u32)| Member {
            id: BackendId(n as u32),
            weight,
        };
        let members: Vec<Member> = weights.iter().enumerate().map(member).collect();
        Self {
            controller: Controller::new(spec, &members),
            members,
            now: Duration::from_secs(100),
            weights: weights.to_vec(),
        }
    }

    fn advise(&mut self, n: u32, line: &str) {
        let advice = parse(line.as_bytes(), true).expect("a good line");
        let sample = Sample {
            source: Source::Agent,
            advice: Some(advice),
            ..Sample::default()
        };
        self.controller.observe(BackendId(n), sample, self.now);
    }

    /// One interval in which servers say these processor shares, at equal arrivals.
    fn step(&mut self, cpus: &[Option<f64>]) -> Vec<(BackendId, u32, Reason)> {
        for (n, cpu) in cpus.iter().enumerate() {
            let sample = Sample {
                source: Source::Exporter,
                cpu: *cpu,
                ..Sample::default()
            };
            if cpu.is_some() {
                self.controller
                    .observe(BackendId(n as u32), sample, self.now);
            }
            let sample = Sample {
                rate: Some(100.0),
                ..Sample::default()
            };
            self.controller
                .observe(BackendId(n as u32), sample, self.now);
        }
        let changed = self.controller.step(self.now);
        self.now += INTERVAL;
        for (id, weight, _) in &changed {
            self.weights[id.0 as usize] = *weight;
        }
        changed
    }

    fn reason(&self, n: usize) -> String {
        self.controller.status()[n].reason.to_string()
    }

    fn faults(&self, n: usize) -> String {
        self.controller.status()[n].faults.join("; ")
    }

    /// Each weight over its configured one, against the least.
    fn factors(&self) -> Vec<f64> {
        let each = || {
            self.members
                .iter()
                .zip(&self.weights)
                .map(|(m, w)| f64::from(*w) / f64::from(m.weight))
        };
        let least = each().fold(f64::INFINITY, f64::min);
        each().map(|f| f / least).collect()
    }
}

#[test]
fn while_all_are_equally_loaded_weights_keep_their_ratios_at_any_level() {
    for level in [0.02, 0.3, 0.7, 0.94, 1.0] {
        let mut rig = Rig::new(Policy::Relative, &[10, 20, 5]);
        for _ in 0..50 {
            let changed = rig.controller.step(rig.now);
            assert!(changed.is_empty());
            for (n, rate) in [200.0, 400.0, 100.0].into_iter().enumerate() {
                let sample = Sample {
                    cpu: Some(level),
                    rate: Some(rate),
                    ..Sample::default()
                };
                rig.controller.observe(BackendId(n as u32), sample, rig.now);
            }
            rig.now += INTERVAL;
        }
        assert!(
            rig.reason(0).contains("1.00 of its configured share"),
            "{}",
            rig.reason(0)
        );
    }
}

#[test]
fn the_lvs_formula_loses_the_ratios_below_its_target_and_the_default_does_not() {
    let cpus = [Some(0.1), Some(0.8)];
    let mut lvs = Rig::new(Policy::Lvs, &[10, 10]);
    let mut relative = Rig::new(Policy::Relative, &[10, 10]);
    for _ in 0..200 {
        lvs.step(&cpus);
        relative.step(&cpus);
    }
    // Both at the cap, but for the threshold below which nothing is pushed.
    assert!(lvs.weights.iter().all(|w| *w > 90), "{:?}", lvs.weights);
    assert!(
        relative.weights[0] >= relative.weights[1] * 3,
        "{:?}",
        relative.weights
    );
}

#[test]
fn weights_change_by_bounded_steps_within_bounds() {
    let mut rig = Rig::new(Policy::Relative, &[10, 10]);
    let mut before = rig.factors();
    for _ in 0..60 {
        rig.step(&[Some(0.0), Some(1.0)]);
        let after = rig.factors();
        let change = (after[0] / after[1]) / (before[0] / before[1]);
        // A step for each of the two, and rounding.
        assert!((0.93..=STEP * STEP * 1.07).contains(&change), "{change}");
        before = after;
    }
    assert!(before[0] <= 100.0 * 1.07, "{before:?}");
}

#[test]
fn noise_near_full_pushes_next_to_nothing() {
    let mut rig = Rig::new(Policy::Relative, &[1, 1, 1, 1]);
    let mut pushes = 0;
    for n in 0..200u32 {
        let noisy =
            |k: u32| Some((0.95 + 0.04 * f64::from((n * 7 + k * 13) % 11) / 5.0 - 0.04).min(1.0));
        pushes += usize::from(
            !rig.step(&[noisy(0), noisy(1), noisy(2), noisy(3)])
                .is_empty(),
        );
    }
    assert!(pushes <= 2, "{pushes}");
    pushes = 0;
    // The formula's cube root turns far less noise into pushes.
    let mut rig = Rig::new(Policy::Lvs, &[5; 4]);
    for n in 0..200u32 {
        // With equal arrivals for a quarter, loads of 0.94 and 0.96.
        let cpu = Some(if n % 2 == 0 { 0.92 } else { 0.947 });
        pushes += usize::from(!rig.step(&[cpu; 4]).is_empty());
    }
    assert!(pushes > 10, "{pushes}");
}

#[test]
fn stale_input_decays_to_the_configured_weight() {
    let mut rig = Rig::new(Policy::Relative, &[10, 10, 10]);
    for _ in 0..20 {
        rig.step(&[Some(0.9), Some(0.3), Some(0.3)]);
    }
    let held = rig.factors();
    assert!(held[1] / held[0] > 2.0, "{held:?}");
    // Silence of one: for three intervals its last word counts, then it goes back by steps.
    let mut last = held[1] / held[0];
    for n in 0..20 {
        rig.step(&[None, Some(0.3), Some(0.3)]);
        let now = rig.factors()[1] / rig.factors()[0];
        assert!(now <= last * 1.07, "interval {n}: {now} after {last}");
        last = now;
    }
    assert!(rig.reason(0).contains("nothing heard"), "{}", rig.reason(0));
    assert_eq!(rig.weights, [10, 10, 10]);
}

#[test]
fn agents_words() {
    let quiet = [None, None];
    let mut rig = Rig::new(Policy::Relative, &[8, 8]);
    rig.advise(0, "75%");
    rig.step(&quiet);
    assert_eq!(rig.weights, [3, 4]);
    assert_eq!(rig.reason(0), "the agent said 75%");
    for (word, reason) in [
        ("drain", "the agent said drain"),
        ("maint", "the agent said maint"),
        ("ready down # disk full", "the agent said down: disk full"),
    ] {
        rig.advise(0, word);
        rig.step(&quiet);
        assert_eq!((rig.weights[0], rig.reason(0).as_str()), (0, reason));
        assert_eq!(rig.weights[1], 8);
    }
    // What a line does not mention stays: the percentage of long ago.
    rig.advise(0, "up");
    rig.step(&quiet);
    assert_eq!(rig.weights, [3, 4]);
    rig.advise(0, "100%");
    rig.step(&quiet);
    assert_eq!(rig.weights, [8, 8]);
    // Asking for more than configured has its bound.
    rig.advise(0, "1000%");
    rig.advise(1, "0%");
    rig.step(&quiet);
    assert_eq!(rig.weights[1], 0);
    rig.advise(1, "1%");
    rig.step(&quiet);
    assert!(rig.weights[0] <= rig.weights[1] * 107, "{:?}", rig.weights);
}

#[test]
fn a_configured_weight_of_nought_stays_nought() {
    for policy in [Policy::Relative, Policy::Lvs, Policy::Fixed] {
        let mut rig = Rig::new(policy, &[0, 10]);
        rig.advise(0, "1000% up ready");
        for _ in 0..20 {
            rig.step(&[Some(0.0), Some(0.9)]);
        }
        assert_eq!(rig.weights[0], 0);
    }
}

#[test]
fn slow_start_climbs_and_ends() {
    let mut rig = Rig::new(Policy::Fixed, &[10, 10]);
    rig.controller.went_down(BackendId(0));
    rig.step(&[None, None]);
    rig.controller.came_back(BackendId(0), rig.now);
    let mut share = Vec::new();
    for _ in 0..11 {
        rig.step(&[None, None]);
        share.push(f64::from(rig.weights[0]) / f64::from(rig.weights[1]));
    }
    assert!((share[0] - 0.1).abs() < 0.01, "{share:?}");
    assert!(share.windows(2).all(|w| w[1] >= w[0] * 0.97), "{share:?}");
    assert!((share[5] - 0.5).abs() < 0.05, "{share:?}");
    assert_eq!(rig.weights, [10, 10]);
    assert_eq!(rig.reason(0), "as configured");
}

#[test]
fn the_lvs_policy_takes_out_who_is_unreachable_but_never_all() {
    let mut rig = Rig::new(Policy::Lvs, &[10, 10]);
    rig.step(&[Some(0.5), Some(0.5)]);
    for _ in 0..5 {
        rig.step(&[Some(0.5), None]);
    }
    assert_eq!(
        (rig.weights[1], rig.reason(1).as_str()),
        (0, "no source of its load answers")
    );
    for _ in 0..5 {
        rig.step(&[None, None]);
    }
    assert_eq!(rig.weights, [10, 10]);
}

#[test]
fn absurd_values_are_named_and_change_nothing() {
    let mut rig = Rig::new(Policy::Relative, &[10, 10]);
    for _ in 0..20 {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -3.0, 1e300] {
            rig.step(&[Some(0.5), Some(0.5)]);
            let sample = Sample {
                source: Source::Exporter,
                cpu: Some(bad),
                load: Some(bad),
                ..Sample::default()
            };
            rig.controller.observe(BackendId(0), sample, rig.now);
        }
    }
    assert_eq!(rig.weights, [10, 10]);
    let faults = rig.faults(0);
    assert!(
        faults.contains("exporter: its load is") && faults.contains("cannot be"),
        "{faults}"
    );
    rig.step(&[Some(0.5), Some(0.5)]);
    assert_eq!(rig.faults(0), "");
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(-1.0),
        Just(0.0),
        Just(1e308),
        Just(f64::MIN_POSITIVE),
        0.0..1.0f64,
        0.0..100.0f64,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever sources say, nobody leaves the bounds: a tenth and ten times the configured
    /// share, and by the formula of LVS the configured weight and ten times that.
    #[test]
    fn no_source_can_push_a_weight_out_of_bounds(
        steps in prop::collection::vec(
            (0..3u32, prop::option::of(any_number()), prop::option::of(any_number()), prop::option::of(any_number()),
             prop::option::of(any_number()), prop::option::of(0..=1000u32)), 1..120),
        lvs in any::<bool>(),
    ) {
        let policy = if lvs { Policy::Lvs } else { Policy::Relative };
        let mut rig = Rig::new(policy, &[10, 20, 40]);
        for (n, cpu, load, memory, rate, percent) in steps {
            let sample = Sample {
                source: Source::Exporter, cpu, load, memory, rate,
                advice: percent.map(|percent| Advice { percent: Some(percent), ..Advice::default() }),
                ..Sample::default()
            };
            rig.controller.observe(BackendId(n), sample, rig.now);
            for (id, weight, _) in rig.controller.step(rig.now) {
                rig.weights[id.0 as usize] = weight;
            }
            rig.now += INTERVAL;
            let factors: Vec<f64> = rig.members.iter().zip(&rig.weights)
                .filter(|(_, w)| **w > 0)
                .map(|(m, w)| f64::from(*w) / f64::from(m.weight)).collect();
            let least = factors.iter().copied().fold(f64::INFINITY, f64::min);
            for factor in factors {
                prop_assert!(factor / least <= 100.0 * 1.07);
                prop_assert!(!lvs || (0.09..=10.01).contains(&factor));
            }
        }
    }
}

#[test]
fn services_share_one_clock_and_count_for_themselves() {
    let mut feedback = Feedback::default();
    let spec = |id, first: u32| ServiceSpec {
        id: ServiceId(id),
        spec: Spec {
            interval: INTERVAL,
            ..Spec::default()
        },
        members: (first..first + 2)
            .map(|n| Member {
                id: BackendId(n),
                weight: 10,
            })
            .collect(),
    };
    let seconds = Duration::from_secs;
    feedback.configure(vec![spec(0, 0), spec(1, 2)], seconds(0));
    assert_eq!(feedback.due(), Some(seconds(0)));
    let mut changes: Vec<Change> = Vec::new();
    for second in 1..=120 {
        let now = seconds(second);
        for n in 0..4 {
            // Backend 1 is twice as busy as 0 with the same arrivals; service 1 is in balance.
            let cpu = if n == 1 { 0.8 } else { 0.4 };
            let answer = Ok(Sample {
                source: Source::Exporter,
                cpu: Some(cpu),
                ..Sample::default()
            });
            feedback.heard(
                Heard {
                    id: BackendId(n),
                    source: Source::Exporter,
                    answer,
                },
                now,
            );
        }
        changes.extend(feedback.tick(
            |_| Counted {
                connections: second * 50,
                live: 5,
            },
            now,
        ));
    }
    assert!(
        !changes.is_empty() && changes.iter().all(|c| c.service == ServiceId(0)),
        "{changes:?}"
    );
    let status = feedback.status(ServiceId(0)).expect("known");
    assert!(status[0].weight > status[1].weight, "{status:?}");
    assert!(
        status[1].reason.to_string().contains("load 0.80"),
        "{}",
        status[1].reason
    );
    // A reload keeps what was learned, and forgets services that are gone.
    feedback.configure(vec![spec(0, 0)], seconds(121));
    assert_eq!(feedback.status(ServiceId(0)).expect("known"), status);
    assert!(feedback.status(ServiceId(1)).is_none());
    let silent = Heard {
        id: BackendId(1),
        source: Source::Agent,
        answer: Err("10.0.0.2:9000: refused".into()),
    };
    feedback.heard(silent, seconds(122));
    let status = feedback.status(ServiceId(0)).expect("known");
    assert_eq!(status[1].faults, ["agent: 10.0.0.2:9000: refused"]);
}
