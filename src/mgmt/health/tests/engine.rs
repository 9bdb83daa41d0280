//! The plan of checks and the counting of results.

use super::super::*;
use super::network::*;
use std::time::Duration;

fn check(n: usize) -> CheckSpec {
    let address = format!("10.0.{}.{}", n >> 8, n & 255);
    let route = Route::plain(ip("10.255.0.1"), socket(&format!("{address}:80")));
    spec(&address, Probe::Tcp, route)
}

fn add(world: &World, count: usize) -> Vec<CheckSpec> {
    let checks: Vec<CheckSpec> = (0..count).map(check).collect();
    for check in &checks {
        world.add_backend(&check.backend);
    }
    checks
}

#[tokio::test(start_paused = true)]
async fn five_thousand_checks_are_spread_evenly_and_each_keeps_its_pace() {
    let mut world = World::new();
    let checks = add(&world, 5000);
    world.engine.apply(checks);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut before = world.engine.pace().started;
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = world.engine.pace().started;
        // 250 in each tenth of a second, as chance spreads them.
        assert!((150..=350).contains(&(now - before)), "{}", now - before);
        before = now;
    }
    let pace = world.engine.pace();
    assert_eq!((pace.late, pace.skipped), (0, 0), "{pace:?}");
    let reports = world.engine.reports();
    assert_eq!(reports.len(), 5000);
    for report in reports {
        assert!((2..=3).contains(&report.checks), "{report:?}");
        assert_eq!((report.failures, report.up), (0, true));
        assert_eq!(report.answer, "connected");
    }
    assert_eq!(world.next(Duration::from_millis(1)).await, None);
    assert_eq!(world.engine.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_stays_keeps_its_state_and_what_goes_is_forgotten() {
    let mut world = World::new();
    let checks = add(&world, 3);
    world.change("10.0.0.0", |b| b.open_ports.clear());
    world.engine.apply(checks.clone());
    let down = world.next(Duration::from_secs(8)).await.unwrap();
    assert_eq!((&*down.backend, down.up), ("10.0.0.0", false));
    assert_eq!((down.check, &*down.answer), ("tcp", "connection refused"));
    // Other options: it is still down, and needs as many good results as the new ones say.
    let mut changed = checks.clone();
    changed[0].thresholds.rise = 4;
    changed[0].interval = Duration::from_secs(1);
    world.engine.apply(changed);
    world.change("10.0.0.0", |b| {
        b.open_ports.insert(80);
    });
    assert_eq!(world.next(Duration::from_millis(2900)).await, None);
    let up = world.next(Duration::from_millis(1200)).await.unwrap();
    assert!(up.up);
    // Gone, and its probe with it.
    world.engine.apply(checks[1..].to_vec());
    world.change("10.0.0.0", |b| b.open_ports.clear());
    assert_eq!(world.next(Duration::from_secs(20)).await, None);
    assert_eq!(world.engine.reports().len(), 2);
    // Back, as a new one.
    world.engine.apply(checks);
    let down = world.next(Duration::from_secs(8)).await.unwrap();
    assert!(!down.up);
}

#[tokio::test(start_paused = true)]
async fn applying_the_same_again_disturbs_nothing() {
    let world = World::new();
    let checks = add(&world, 100);
    for _ in 0..100 {
        world.engine.apply(checks.clone());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for report in world.engine.reports() {
        assert!((4..=5).contains(&report.checks), "{report:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_bad_result_in_a_row_of_good_ones_changes_nothing() {
    let mut world = World::new();
    let checks = add(&world, 1);
    world.engine.apply(checks);
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(4)).await;
        world.change("10.0.0.0", |b| b.open_ports.clear());
        tokio::time::sleep(Duration::from_secs(4)).await;
        world.change("10.0.0.0", |b| {
            b.open_ports.insert(80);
        });
    }
    assert_eq!(world.next(Duration::from_secs(4)).await, None);
    assert_eq!(world.engine.reports()[0].failures, 20);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_outlasts_its_interval_is_not_asked_twice_at_a_time() {
    let world = World::new();
    let mut slow = check(0);
    slow.timeout = Duration::from_millis(4500);
    world.engine.apply(vec![slow]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let pace = world.engine.pace();
    assert!(pace.started <= 11 && pace.skipped >= 18, "{pace:?}");
    assert!(world.engine.in_flight() <= 1);
}

#[tokio::test(start_paused = true)]
async fn a_fault_is_found_in_time_where_the_timeout_is_the_whole_interval() {
    for jitter in [Duration::ZERO, Duration::from_millis(400)] {
        let mut world = World::new();
        let mut checks = add(&world, 1);
        checks[0].timeout = checks[0].interval;
        checks[0].jitter = jitter;
        world.engine.apply(checks.clone());
        // Silent from right after a good check: the worst moment.
        while world.engine.reports().first().is_none_or(|r| r.checks == 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.change("10.0.0.0", |b| b.addresses.clear());
        let since = tokio::time::Instant::now();
        let down = world.next(Duration::from_secs(60)).await.expect("found");
        let spec = &checks[0];
        let wobble = jitter / 2 * spec.thresholds.fall;
        let allowed = spec.interval * spec.thresholds.fall + spec.timeout + wobble;
        let took = since.elapsed();
        assert!(!down.up && took <= allowed, "{took:?} of {allowed:?}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let pace = world.engine.pace();
        assert_eq!(pace.skipped, 0, "{pace:?}");
        assert!(pace.started >= 33, "{pace:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn good_answers_are_measured_where_somebody_wants_to_know() {
    let world = World::new();
    let mut checks = add(&world, 3);
    checks[1].measure = true;
    checks[2].measure = true;
    world.change("10.0.0.2", |b| b.open_ports.clear());
    world.engine.apply(checks.clone());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let measured = world.engine.measured();
    let ids: Vec<_> = measured.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [checks[1].id]);
    assert_eq!(world.engine.measured(), []);
    let refused = world.engine.report(checks[2].id).expect("a report");
    assert_eq!(refused.failure, "connection refused");
}

#[tokio::test(start_paused = true)]
async fn jitter_moves_checks_and_keeps_their_mean() {
    let world = World::new();
    let mut checks = add(&world, 50);
    for check in &mut checks {
        check.jitter = Duration::from_secs(1);
    }
    world.engine.apply(checks);
    tokio::time::sleep(Duration::from_secs(100)).await;
    let started = world.engine.pace().started;
    assert!((2400..=2600).contains(&started), "{started}");
}

#[tokio::test(start_paused = true)]
async fn after_a_stall_the_plan_starts_anew() {
    let world = World::new();
    let checks = add(&world, 10);
    world.engine.apply(checks);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let before = world.engine.pace();
    // Nothing runs while the clock jumps.
    tokio::time::advance(Duration::from_secs(600)).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    let after = world.engine.pace();
    assert_eq!(
        after.started - before.started,
        10,
        "one each, not three hundred"
    );
    assert_eq!(after.late - before.late, 10);
}

#[tokio::test(start_paused = true)]
async fn what_ran_out_of_time_while_management_stood_still_says_nothing_about_a_backend() {
    let mut world = World::new();
    let mut silent = check(0);
    silent.thresholds.fall = 1;
    world.engine.apply(vec![silent]);
    while world.engine.in_flight() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Nothing runs while the clock jumps, so an answer would still lie in its ring.
    tokio::time::advance(Duration::from_secs(30)).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let pace = world.engine.pace();
    assert_eq!(pace.unjudged, 1, "{pace:?}");
    assert_eq!(world.next(Duration::from_millis(1)).await, None);
    // The next one is judged.
    let down = world.next(Duration::from_secs(4)).await.expect("a verdict");
    assert_eq!(down.answer, "no answer to SYN within 1s");
    assert_eq!(world.engine.pace().unjudged, 1);
}

/// A tunnel's header is longer than this MTU, which validation would not let through.
#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_counts_as_failed_and_the_next_is_made() {
    let (out, _wire) = tokio::sync::mpsc::channel(1);
    let (sender, mut transitions) = tokio::sync::mpsc::unbounded_channel();
    let (engine, mut runner) = HealthEngine::new(10, out, sender);
    tokio::spawn(async move { runner.run().await });
    let (source, vip) = (ip("10.255.0.1"), socket("192.0.2.80:80"));
    let route = Route::tunnel(source, vip, source, ip("10.0.0.1"));
    let check = spec("10.0.0.1", Probe::Tcp, route);
    engine.apply(vec![check.clone()]);
    let down = transitions.recv().await.expect("three panics");
    assert!(!down.up);
    let answer = "not checked: a fault in evenkeel, which its log describes";
    assert_eq!(down.answer, answer);
    assert_eq!(engine.report(check.id).expect("a report").failures, 3);
    assert_eq!(engine.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_is_begun_again_knows_its_checks_and_loses_no_turn() {
    let (out, mut wire) = tokio::sync::mpsc::channel::<Outgoing>(100);
    let (sender, mut transitions) = tokio::sync::mpsc::unbounded_channel();
    let (engine, mut runner) = HealthEngine::new(1500, out, sender);
    engine.apply(vec![check(0)]);
    // Given up in the middle of a probe, as a panic gives it up.
    tokio::select! {
        () = runner.run() => panic!("it has no end"),
        _ = wire.recv() => {}
    }
    assert_eq!((engine.in_flight(), engine.pace().started), (1, 1));
    runner.put_in_order();
    // The runtime's turn, in which the probe that was given up goes.
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(engine.in_flight(), 0);
    let begun = tokio::time::Instant::now();
    tokio::spawn(async move { runner.run().await });
    assert!(!transitions.recv().await.expect("no answers").up);
    // Three failures: the first within an interval, two more, and the last one's timeout.
    let took = begun.elapsed().as_millis();
    assert!((5000..=7010).contains(&took), "{took}");
    assert_eq!(engine.pace().started, 4);
}

#[tokio::test(start_paused = true)]
async fn a_full_way_out_is_counted_and_only_fails_the_checks() {
    let (out, wire) = tokio::sync::mpsc::channel(1);
    let (sender, mut transitions) = tokio::sync::mpsc::unbounded_channel();
    let (engine, mut runner) = HealthEngine::new(1500, out, sender);
    let running = tokio::spawn(async move { runner.run().await });
    engine.apply((0..20).map(check).collect());
    for _ in 0..20 {
        assert!(!transitions.recv().await.unwrap().up);
    }
    assert!(engine.packets().not_sent > 20);
    assert_eq!(engine.packets().sent, 1);
    drop((engine, wire));
    // The last handle is gone, so the runner ends.
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn packets_from_others_do_not_reach_a_probe() {
    let world = World::new();
    let mut slow = check(0);
    slow.timeout = Duration::from_secs(2);
    world.engine.apply(vec![slow]);
    while world.engine.in_flight() == 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // A SYN-ACK from each local port there is, but from another backend.
    let liar = Backend {
        addresses: [ip("10.9.9.9")].into(),
        open_ports: [80].into(),
        ..Backend::default()
    };
    let syn = |port: u16| syn_packet("10.255.0.1", port, "10.9.9.9", 80);
    for port in 1..=u16::MAX {
        let answer = liar.answer(&syn(port)).unwrap();
        assert!(!world.engine.receive(&answer, std::time::Instant::now()));
    }
    assert_eq!(world.engine.packets().received, 0);
}
