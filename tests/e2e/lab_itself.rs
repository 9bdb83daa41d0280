//! The lab without a balancer: what it promises to the other tests.

use crate::lab::address::with_port;
use crate::lab::{Arms, FAMILIES, Family, Lab, METHODS, NAMES, balancer, process, tool, web};

#[test]
fn the_client_reaches_each_backend_by_the_router() {
    let Some(mut lab) = Lab::new(Arms::One) else {
        return;
    };
    lab.start_web();
    // Without evenkeel nobody carries what leaves from the backend's own address.
    for backend in &lab.backends {
        for family in FAMILIES {
            let router = Arms::One.router(family);
            backend.ip(&format!("route replace default via {router} table 100"));
        }
    }
    for family in FAMILIES {
        for (address, name) in Arms::One.backends(family).iter().zip(NAMES) {
            let url = format!("http://{}/", with_port(address, 80));
            let answer = web::curl(&lab.client, &[&url]);
            assert_eq!(answer, format!("{name} {} 80\n", family.client()));
        }
    }
    let large = lab.folder().join("large");
    let copy = lab.folder().join("copy");
    let backend = &Arms::One.backends(Family::V4)[0];
    let url = format!("http://{}/large", with_port(backend, web::SECOND_PORT));
    let output = copy.to_str().expect("a path in UTF-8");
    web::curl(&lab.client, &["--output", output, &url]);
    let length = std::fs::metadata(&copy).expect("the copy").len();
    assert_eq!(length, 50_000_000);
    assert_eq!(web::sha256(&copy), web::sha256(&large));
}

#[test]
fn no_backend_answers_for_a_vip() {
    let Some(lab) = Lab::new(Arms::One) else {
        return;
    };
    let ping = |address: &str| {
        let output = lab.balancer.run("ping", &["-c1", "-W1", "-n", address]);
        output.status.success()
    };
    for family in FAMILIES {
        assert!(
            ping(&Arms::One.backends(family)[0]),
            "the switch carries packets"
        );
        for method in METHODS {
            assert!(
                !ping(&family.vip(method)),
                "a backend answered {family:?}, {method}"
            );
        }
    }
}

#[test]
fn a_backend_handles_what_is_inside_a_tunnelled_packet() {
    let Some(mut lab) = Lab::new(Arms::One) else {
        return;
    };
    lab.start_unwrapping();
    let unwrapped = |backend: usize| tool::unwrapped(&lab.backends[backend]);
    // Two pairs of families: IPIP and 6in6.
    for (family, file, counter) in [
        (Family::V4, "snmp", "Icmp:InEchoReps"),
        (Family::V6, "snmp6", "Icmp6InEchoReplies"),
    ] {
        let (router, backend) = (Arms::One.router(family), &Arms::One.backends(family)[1]);
        let before = unwrapped(1);
        tool::run(&lab.balancer, &["wrap", &router, backend]);
        process::wait_for("the inner packet on the TUN device", || {
            (unwrapped(1) > before).then_some(())
        });
        // The kernel took it for a ping, and answered the one who asked.
        process::wait_for("an echo reply", || {
            let path = format!("/proc/net/{file}");
            let counts = lab.balancer.run("cat", &[&path]);
            let counts = String::from_utf8_lossy(&counts.stdout).into_owned();
            (kernel_counter(&counts, counter) == Some(1)).then_some(())
        });
    }
    assert_eq!((unwrapped(0), unwrapped(2)), (0, 0));
}

#[test]
fn udp_questions_are_answered_by_name() {
    let Some(mut lab) = Lab::new(Arms::One) else {
        return;
    };
    let at = "198.51.100.10:5300";
    let echo = tool::start(
        &lab.client,
        &["udp-echo", "me", at],
        lab.folder().join("echo.log"),
    );
    lab.keep(echo);
    let answers = tool::run(&lab.balancer, &["udp-ask", at, "2"]);
    assert_eq!(answers, "me question 0\nme question 1\n");
}

/// DPDK's own test program stands in for evenkeel: it answers ARP and pings.
#[test]
fn a_dpdk_tap_port_joins_the_switch() {
    let Some(lab) = Lab::new(Arms::One) else {
        return;
    };
    let device = format!("--vdev=net_tap0,iface={}", balancer::TAP);
    let options = "--no-pci --no-huge --no-shconf -m 64 --lcores 0@0,1@0";
    let application = "--forward-mode=icmpecho --total-num-mbufs=2048 --auto-start";
    let words = format!("{options} {device} -- {application} --stats-period=1");
    let arguments: Vec<_> = words.split_whitespace().collect();
    let log = lab.folder().join("testpmd.log");
    let mut testpmd = lab.balancer.start("dpdk-testpmd", &arguments, log);
    balancer::attach(&lab, &mut testpmd, balancer::TAP, Arms::One);
    // Through the switch, not only from the namespace that holds it.
    let ping = lab.backends[0].run(
        "ping",
        &["-c3", "-i0.2", "-W2", "-n", &Arms::One.evenkeel(Family::V4)],
    );
    assert!(ping.status.success(), "{ping:?}");
    let (status, _) = testpmd.terminate();
    assert!(status.success(), "{status}");
    let device = lab.balancer.try_ip(&format!("link show {}", balancer::TAP));
    assert_eq!(device, None, "the TAP device goes with its port");
}

/// A counter of `/proc/net/snmp6`, which prints one on each line, or as `group:name` of
/// `/proc/net/snmp`, which prints a line of names and a line of values for each group.
fn kernel_counter(text: &str, name: &str) -> Option<u64> {
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let Some((group, name)) = name.split_once(':') else {
        let line = text.lines().map(words).find(|words| words[0] == name)?;
        return line.get(1)?.parse().ok();
    };
    let mut lines = text
        .lines()
        .filter(|line| line.split(':').next() == Some(group));
    let column = words(lines.next()?).iter().position(|word| word == name)?;
    words(lines.next()?).get(column)?.parse().ok()
}
