//! The lab without a balancer: what it promises to the other tests.

use crate::lab::{Arms, CLIENT, EVENKEEL, Lab, NAMES, ROUTER, VIPS, balancer, process, tool, web};

#[test]
fn the_client_reaches_each_backend_by_the_router() {
    let Some(mut lab) = Lab::new(Arms::One) else {
        return;
    };
    lab.start_web();
    for (address, name) in lab.addresses().iter().zip(NAMES) {
        // Without evenkeel nobody carries what leaves from the backend's own address.
        lab.backends.iter().for_each(|backend| {
            backend.try_ip(&format!("route replace default via {ROUTER} table 100"));
        });
        let answer = web::curl(&lab.client, &[&format!("http://{address}/")]);
        let [who, whom, port] = answer.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("not three words: {answer}");
        };
        assert_eq!((who, whom, port), (name, CLIENT, "80"));
    }
    let large = lab.folder().join("large");
    let copy = lab.folder().join("copy");
    let url = format!("http://{}:{}/large", lab.addresses()[0], web::SECOND_PORT);
    web::curl(
        &lab.client,
        &["--output", copy.to_str().expect("UTF-8"), &url],
    );
    assert_eq!(
        std::fs::metadata(&copy).expect("the copy").len(),
        50_000_000
    );
    assert_eq!(web::sha256(&copy), web::sha256(&large));
}

#[test]
fn no_backend_answers_arp_for_a_vip() {
    let Some(lab) = Lab::new(Arms::One) else {
        return;
    };
    let ping = |address: &str| {
        let output = lab.balancer.run("ping", &["-c1", "-W1", "-n", address]);
        output.status.success()
    };
    assert!(ping(&lab.addresses()[0]), "the switch carries packets");
    for vip in VIPS {
        assert!(!ping(vip), "a backend answered for {vip}");
    }
}

#[test]
fn a_backend_handles_what_is_inside_an_ipip_packet() {
    let Some(mut lab) = Lab::new(Arms::One) else {
        return;
    };
    lab.start_unwrapping();
    tool::run(&lab.balancer, &["wrap", ROUTER, &lab.addresses()[1]]);
    let unwrapped = |backend: usize| tool::unwrapped(&lab.backends[backend]);
    process::wait_for("the inner packet on the TUN device", || {
        (unwrapped(1) == 1).then_some(())
    });
    // The kernel took it for a ping, and answered the one who asked.
    process::wait_for("an echo reply", || {
        let counts = lab.balancer.run("cat", &["/proc/net/snmp"]);
        let counts = String::from_utf8_lossy(&counts.stdout).into_owned();
        (counter(&counts, "IcmpMsg", "InType0") == Some(1)).then_some(())
    });
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
    balancer::attach(&lab, &mut testpmd, balancer::TAP, "lan", EVENKEEL);
    // Through the switch, not only from the namespace that holds it.
    let ping = lab.backends[0].run("ping", &["-c3", "-i0.2", "-W2", "-n", EVENKEEL]);
    assert!(ping.status.success(), "{ping:?}");
    let (status, _) = testpmd.terminate();
    assert!(status.success(), "{status}");
    let device = lab.balancer.try_ip(&format!("link show {}", balancer::TAP));
    assert_eq!(device, None, "the TAP device goes with its port");
}

/// A counter of `/proc/net/snmp`, which prints a line of names and a line of values for each group.
fn counter(snmp: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = snmp
        .lines()
        .filter(|line| line.split(':').next() == Some(group));
    let column = lines
        .next()?
        .split_whitespace()
        .position(|word| word == name)?;
    lines.next()?.split_whitespace().nth(column)?.parse().ok()
}
