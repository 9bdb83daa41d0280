//! Each kind of check against backends that have or lack what it needs.

use super::super::*;
use super::network::*;
use std::time::Duration;

const CHECK: &str = "192.0.2.3";
const VIP: &str = "192.0.2.80:80";
const BACKEND: &str = "192.0.2.11";

fn plain(address: &str) -> Route {
    Route::plain(ip(CHECK), socket(address))
}

/// A check whose first result decides, asked once.
async fn once(world: &mut World, probe: Probe, route: Route) -> (bool, String) {
    let mut check = spec("once", probe, route);
    check.start = Start::Unknown;
    world.engine.apply(vec![check]);
    let transition = world.next(Duration::from_secs(4)).await.unwrap();
    world.engine.apply(Vec::new());
    (transition.up, transition.answer)
}

#[tokio::test(start_paused = true)]
async fn tcp_connects_or_is_refused_or_hears_nothing() {
    let mut world = World::new();
    world.add_backend(BACKEND);
    let good = once(&mut world, Probe::Tcp, plain("192.0.2.11:80")).await;
    assert_eq!(good, (true, "connected".into()));
    let refused = once(&mut world, Probe::Tcp, plain("192.0.2.11:81")).await;
    assert_eq!(refused, (false, "connection refused".into()));
    let silent = once(&mut world, Probe::Tcp, plain("192.0.2.12:80")).await;
    assert_eq!(silent, (false, "no answer to SYN within 1s".into()));
    assert_eq!(
        world.engine.in_flight(),
        0,
        "every local port was given back"
    );
    assert_eq!(world.engine.packets().not_sent, 0);
}

#[tokio::test(start_paused = true)]
async fn udp_wants_its_answer_and_heeds_icmp() {
    let mut world = World::new();
    world.add_backend(BACKEND);
    let ask = |expect: Option<&str>| {
        Probe::Udp(UdpProbe {
            payload: b"hello".to_vec(),
            expect: expect.map(|e| e.as_bytes().to_vec()),
        })
    };
    let open = plain("192.0.2.11:80");
    let good = once(&mut world, ask(Some("re: hel")), open).await;
    assert_eq!(good, (true, "9 bytes received".into()));
    let other = once(&mut world, ask(Some("no")), open).await;
    let text = "9 bytes received, but not the expected ones";
    assert_eq!(other, (false, text.into()));
    assert!(once(&mut world, ask(None), open).await.0);
    let closed = once(&mut world, ask(None), plain("192.0.2.11:81")).await;
    let text = "ICMP destination port unreachable from 192.0.2.11";
    assert_eq!(closed, (false, text.into()));
    let silent = plain("192.0.2.12:80");
    assert_eq!(
        once(&mut world, ask(None), silent).await,
        (true, "no error".into())
    );
    let waited = once(&mut world, ask(Some("")), silent).await;
    assert_eq!(waited, (false, "no answer within 1s".into()));
}

#[tokio::test(start_paused = true)]
async fn ping_and_the_others_over_ipv6() {
    let mut world = World::new();
    world.add_backend("2001:db8::11");
    let route = |to: &str| Route::plain(ip("2001:db8::3"), socket(to));
    let echo = once(&mut world, Probe::Ping, route("[2001:db8::11]:0")).await;
    assert_eq!(echo, (true, "echo reply".into()));
    let silent = once(&mut world, Probe::Ping, route("[2001:db8::12]:0")).await;
    assert_eq!(silent, (false, "no echo reply within 1s".into()));
    let tcp = once(&mut world, Probe::Tcp, route("[2001:db8::11]:80")).await;
    assert_eq!(tcp, (true, "connected".into()));
    let udp = Probe::Udp(UdpProbe::default());
    let closed = once(&mut world, udp, route("[2001:db8::11]:81")).await;
    let text = "ICMPv6 port unreachable from 2001:db8::11";
    assert_eq!(closed, (false, text.into()));
}

/// The point of decision 6: what a client would meet is found, and `direct` does not see it.
async fn lost_and_regained(route: Route, lose: fn(&mut Backend), regain: fn(&mut Backend)) {
    let mut world = World::new();
    world.add_backend(BACKEND);
    world.change(BACKEND, regain);
    let direct = spec("direct", Probe::Tcp, plain("192.0.2.11:80"));
    world
        .engine
        .apply(vec![spec("b1", Probe::Tcp, route), direct]);
    assert_eq!(world.next(Duration::from_secs(60)).await, None);
    world.change(BACKEND, lose);
    // fall x interval + timeout.
    let down = world.next(Duration::from_secs(3 * 2 + 1)).await.unwrap();
    assert_eq!((&*down.backend, down.up), ("b1", false));
    assert_eq!(down.answer, "no answer to SYN within 1s");
    world.change(BACKEND, regain);
    let up = world.next(Duration::from_secs(2 * 2 + 1)).await.unwrap();
    assert_eq!((&*up.backend, up.up), ("b1", true));
    assert_eq!(
        world.next(Duration::from_secs(60)).await,
        None,
        "direct saw nothing"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_vip_is_found_under_direct_routing() {
    let route = Route::direct_routing(ip(CHECK), socket(VIP), ip(BACKEND));
    lost_and_regained(
        route,
        |b| {
            b.addresses.remove(&socket(VIP).ip());
        },
        |b| {
            b.addresses.insert(socket(VIP).ip());
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_tunnel_is_found() {
    let route = Route::tunnel(ip(CHECK), socket(VIP), ip("192.0.2.2"), ip(BACKEND));
    lost_and_regained(
        route,
        |b| b.tunnel = false,
        |b| {
            b.tunnel = true;
            b.addresses.insert(socket(VIP).ip());
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_default_route_is_found_under_nat() {
    let outside = Route::plain(ip("198.51.100.3"), socket("192.0.2.11:80"));
    lost_and_regained(
        outside,
        |b| b.answers_only = Some([ip(CHECK)].into()),
        |b| b.answers_only = None,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn probes_from_a_local_address_leave_its_other_ports_to_connections() {
    let (out, mut wire) = tokio::sync::mpsc::channel::<Outgoing>(5000);
    let (sender, _transitions) = tokio::sync::mpsc::unbounded_channel();
    let (engine, mut runner) = HealthEngine::new(1500, out, sender);
    tokio::spawn(async move { runner.run().await });
    let route = Route::full_nat(ip("10.255.0.1"), socket("10.0.0.1:80"));
    let name = |n: usize| format!("backend-{n}");
    let checks = (0..1500).map(|n| spec(&name(n), Probe::Tcp, route));
    engine.apply(checks.collect());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let mut ports = std::collections::HashSet::new();
    while let Ok(sent) = wire.try_recv() {
        ports.insert(u16::from_be_bytes([sent.packet[20], sent.packet[21]]));
    }
    assert_eq!(ports.len(), 1024, "each in its turn");
    assert!(ports.iter().all(|port| (1024..2048).contains(port)));
}

#[tokio::test]
async fn scripts_answer_by_exit_status() {
    let mut world = World::new();
    let exit = |script: &str| {
        Probe::Script(ScriptProbe {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
        })
    };
    let route = Route::direct_routing(ip(CHECK), socket(VIP), ip(BACKEND));
    let told = "test $EVENKEEL_SERVICE,$EVENKEEL_BACKEND = web,once \
                && test $EVENKEEL_ADDRESS,$EVENKEEL_PORT = 192.0.2.11,80";
    let mut check = spec("once", exit(told), route);
    // Programs need real time.
    check.interval = Duration::from_millis(100);
    check.timeout = Duration::from_secs(60);
    check.start = Start::Unknown;
    let mut run = async |probe: Probe, timeout: Duration| {
        let mut check = check.clone();
        (check.probe, check.timeout) = (probe, timeout);
        world.engine.apply(vec![check]);
        let transition = world.next(Duration::from_secs(60)).await.unwrap();
        world.engine.apply(Vec::new());
        (transition.up, transition.weight, transition.answer)
    };
    let long = Duration::from_secs(60);
    let up = run(exit(told), long).await;
    assert_eq!(up, (true, None, "exit status 0".into()));
    let down = run(exit("exit 1"), long).await;
    assert_eq!(down, (false, None, "exit status 1".into()));
    let weight = run(exit("exit 12"), long).await;
    assert_eq!(weight, (true, Some(10), "exit status 12, weight 10".into()));
    let stuck = run(exit("exec sleep 1000"), Duration::from_millis(200)).await;
    assert_eq!(stuck.2, "the script did not end within 200ms");
    let none = ScriptProbe {
        program: "/nonexistent".into(),
        arguments: Vec::new(),
    };
    let missing = run(Probe::Script(none), long).await;
    assert!(
        missing
            .2
            .starts_with("not checked: cannot run /nonexistent"),
        "{missing:?}"
    );
}
