//! How feedback begins: quick steps and questions while nothing is known of the backends.

use std::time::Duration;

use evenkeel::lb::snapshot::{BackendId, ServiceId};
use evenkeel::mgmt::feedback::poll::Heard;
use evenkeel::mgmt::feedback::relative::STEP;
use evenkeel::mgmt::feedback::{
    Change, Counted, Feedback, Member, Policy, Sample, ServiceSpec, Source, Spec,
};

use super::INTERVAL;

/// One service of backends 0 to 3 on a clock of its own, led by the whole of feedback.
struct Start {
    feedback: Feedback,
    now: Duration,
    connections: u64,
    live: [u64; 4],
}

impl Start {
    fn new(policy: Policy) -> Self {
        let member = |n| Member {
            id: BackendId(n),
            weight: 10,
        };
        let service = ServiceSpec {
            id: ServiceId(0),
            spec: Spec {
                policy,
                interval: INTERVAL,
                ..Spec::default()
            },
            members: (0..4).map(member).collect(),
        };
        let mut feedback = Feedback::default();
        feedback.configure(vec![service], Duration::ZERO);
        Self {
            feedback,
            now: Duration::ZERO,
            connections: 0,
            live: [5; 4],
        }
    }

    /// The next step, before which each backend got so many connections and was so busy.
    fn step(&mut self, connections: u64, cpus: [f64; 4]) -> Vec<Change> {
        self.now = self.feedback.due().expect("a service");
        for (n, cpu) in cpus.into_iter().enumerate() {
            let sample = Sample {
                source: Source::Exporter,
                cpu: Some(cpu),
                ..Sample::default()
            };
            let heard = Heard {
                id: BackendId(n as u32),
                source: Source::Exporter,
                answer: Ok(sample),
            };
            self.feedback.heard(heard, self.now);
        }
        self.connections += connections;
        let (connections, live) = (self.connections, self.live);
        let counted = |id: BackendId| Counted {
            connections,
            live: live[id.0 as usize],
        };
        self.feedback.tick(counted, self.now)
    }

    /// Until the next step.
    fn wait(&self) -> Duration {
        self.feedback.due().expect("a service") - self.now
    }
}

#[test]
fn steps_come_quickly_in_the_first_interval() {
    let mut start = Start::new(Policy::Relative);
    // The first one only begins to count.
    assert!(start.step(0, [0.5; 4]).is_empty());
    assert_eq!(start.now, Duration::ZERO);
    let quick = start.feedback.quick().expect("news");
    assert_eq!(quick.len(), 4);
    for _ in 0..10 {
        assert_eq!(start.wait(), INTERVAL / 10);
        start.step(50, [0.5; 4]);
    }
    assert_eq!((start.now, start.wait()), (INTERVAL, INTERVAL));
    let quick = start.feedback.quick().expect("news");
    assert!(quick.is_empty(), "{quick:?}");
    start.step(500, [0.5; 4]);
    assert_eq!(start.wait(), INTERVAL);
    assert_eq!(start.feedback.quick(), None);
}

#[test]
fn the_other_policies_keep_to_their_interval() {
    for policy in [Policy::Lvs, Policy::Fixed] {
        let mut start = Start::new(policy);
        for _ in 0..5 {
            start.step(50, [0.5; 4]);
            assert_eq!(start.wait(), INTERVAL);
        }
        assert!(start.feedback.quick().expect("news").is_empty());
    }
}

#[test]
fn an_idle_service_asks_at_leisure_and_quickly_when_clients_come() {
    let mut start = Start::new(Policy::Relative);
    while start.now <= INTERVAL * 30 {
        start.step(0, [0.01; 4]);
    }
    assert!(start.feedback.quick().expect("news").is_empty());
    assert_eq!(start.wait(), INTERVAL / 10);
    start.step(50, [0.5; 4]);
    assert_eq!(start.feedback.quick().expect("news").len(), 4);
    for _ in 0..9 {
        assert_eq!(start.wait(), INTERVAL / 10);
        start.step(50, [0.5; 4]);
    }
    assert_eq!(start.wait(), INTERVAL);
}

/// Response times of a tenth of an interval are mostly chance.
#[test]
fn response_times_count_when_the_quick_steps_are_over() {
    let mut start = Start::new(Policy::Relative);
    let (mut quick, mut changes) = (0, Vec::new());
    for n in 0..60u64 {
        start.now = start.feedback.due().expect("a service");
        for id in 0..4 {
            // Backend 0 gets slower and slower.
            let slower = if id == 0 { n } else { 0 };
            let response = Duration::from_millis(10 + 2 * slower);
            start.feedback.responded(BackendId(id), response, start.now);
        }
        start.connections += 100;
        let connections = start.connections;
        let counted = |_| Counted {
            connections,
            live: 1,
        };
        let changed = start.feedback.tick(counted, start.now);
        let is_quick = start.wait() < INTERVAL;
        quick += usize::from(is_quick);
        assert!(!is_quick || changed.is_empty(), "{changed:?}");
        changes.extend(changed);
    }
    // The first step only begins to count.
    assert_eq!(quick, 10);
    assert!(!changes.is_empty());
    assert!(start.feedback.quick().expect("news").is_empty());
}

/// Two of four are too small for their shares, and requests pile up there.
#[test]
fn a_wrong_start_is_put_right_within_the_first_interval_by_bounded_steps() {
    let mut start = Start::new(Policy::Relative);
    start.step(0, [0.0; 4]);
    let mut weights = [10.0; 4];
    let mut relieved = None;
    for n in 1..=10 {
        start.live = [5 + 20 * n, 5 + 20 * n, 5, 5];
        let before = weights;
        for change in start.step(50, [1.0, 1.0, 0.4, 0.4]) {
            weights[change.backend.0 as usize] = f64::from(change.weight);
        }
        let ratio = |w: [f64; 4]| w[0] / w[2];
        let step = ratio(before) / ratio(weights);
        // A step for each of the two, either way, and rounding.
        let most = STEP * STEP * 1.07;
        assert!((1.0 / most..=most).contains(&step), "{step}");
        if ratio(weights) < 0.5 {
            relieved.get_or_insert(start.now);
        }
    }
    let relieved = relieved.expect("less for who is too small");
    assert!(relieved <= INTERVAL / 2, "{relieved:?}");
    let status = start.feedback.status(ServiceId(0)).expect("known");
    assert!(
        status[0].weight * 10 <= status[2].weight * 107,
        "{status:?}"
    );
    assert!(status[0].weight * 107 >= status[2].weight, "{status:?}");
}
