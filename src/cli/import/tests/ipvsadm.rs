use std::time::Duration;

use super::*;
use crate::cli::import::ipvsadm::import;

const SAVED: &str = "\
-A -t 192.0.2.80:80 -s wlc
-a -t 192.0.2.80:80 -r 192.0.2.11:80 -g -w 1
-a -t 192.0.2.80:80 -r 192.0.2.12:80 -g -w 3 -x 1000 -y 800
-A -t 192.0.2.81:443 -s sh -p 600 -M 255.255.255.0 -b sh-fallback,sh-port
-a -t 192.0.2.81:443 -r 10.1.0.1:8443 -m -w 0
-a -t 192.0.2.81:443 -r 10.1.0.2:443 -m -w 100000
-A -u [2001:db8::53]:53 -s mh -o
-a -u [2001:db8::53]:53 -r [2001:db8::11]:53 -i -w 1 --tun-type ipip
-A -t 192.0.2.82:0 -s rr -p 300
-a -t 192.0.2.82:0 -r 192.0.2.11:0 -g -w 1
-A -f 7 -s rr
-a -f 7 -r 192.0.2.11:0 -g -w 1
";

#[test]
fn a_saved_table_becomes_services() {
    let import = import("rules", SAVED).unwrap();
    let config = read_back("ipvsadm", &import);
    assert_eq!(
        config.services,
        services(&import),
        "what is written reads back"
    );
    let [web, secure, dns, all] = config.services.as_slice() else {
        panic!("{:?}", config.services)
    };

    assert_eq!(web.name, "tcp-192.0.2.80-80");
    assert_eq!(web.listen[0].to_string(), "tcp:192.0.2.80:80");
    assert_eq!(
        (web.method, web.scheduler),
        (Method::DirectRouting, Scheduler::Wlc)
    );
    let second = &web.backends[1];
    assert_eq!(
        (second.port, second.weight, second.upper, second.lower),
        (None, 3, Some(1000), Some(800))
    );

    assert_eq!(
        (secure.method, secure.scheduler),
        (Method::Nat, Scheduler::Sh)
    );
    assert!(secure.hash_port && secure.hash_fallback);
    let persistence = secure.persistence.as_ref().unwrap();
    assert_eq!(
        (persistence.timeout, persistence.prefix_v4),
        (Duration::from_secs(600), 24)
    );
    assert_eq!(
        (secure.backends[0].port, secure.backends[0].weight),
        (Some(8443), 0)
    );
    assert_eq!(
        (secure.backends[1].port, secure.backends[1].weight),
        (None, 65_535)
    );

    assert!(dns.one_packet);
    assert_eq!(
        (dns.method, dns.untracked),
        (Method::Tunnel, Untracked::Hash)
    );
    assert_eq!(all.listen[0].ports, Ports::ALL);
}

#[test]
fn what_has_no_equivalent_is_listed_with_its_line() {
    let text = format!(
        "{SAVED}-A -t 192.0.2.83:80 -s weird --pe sip -b flag-3\n-a -t 192.0.2.83:80 -r 192.0.2.11:80 -g -w 1\n-a -t 192.0.2.83:80 -r 192.0.2.12:80 -m -w 1\n-a -t 192.0.2.83:80 -r 192.0.2.13:81 -g -w 1 -y 5 --tun-type gue\n"
    );
    let import = import("rules", &text).unwrap();
    let expected = [
        "6: the weight 100000 is above the largest, 65535, which stands in its place",
        "11: a service by firewall mark or of SCTP has no equivalent; write a service that listens on the addresses and ports themselves",
        "13: the persistence engine \"sip\" has no equivalent; clients are told apart by address",
        "13: the scheduler \"weird\" has no equivalent; wlc stands in its place",
        "13: the scheduler flag flag-3 has no equivalent; it is left out",
        "15: the real server 192.0.2.12 uses nat and its service direct-routing, which a service has one of; it is left out, give it a service of its own",
        "16: direct-routing cannot change the port of the real server 192.0.2.13; it keeps the service's",
        "16: the lower threshold 5 has no upper one above it; it is left out",
        "16: the option --tun-type has no equivalent; it is left out",
    ];
    assert_eq!(notes(&import), expected);
    let config = read_back("ipvsadm", &import);
    assert_eq!(config.services[4].backends.len(), 2);
    let toml = write::to_toml("ipvsadm", &import);
    assert!(
        toml.contains("#   rules:11: a service by firewall mark"),
        "{toml}"
    );
    assert!(
        toml.contains("# From rules:4\n[[service]]\nname = \"tcp-192.0.2.81-443\""),
        "{toml}"
    );
}

const FAULTS: &[Case] = &[
    (
        "§hello\n",
        "\"hello\" is not a line of `ipvsadm -Sn`; give its output as it is",
    ),
    ("-A §-t\n", "-t has no value; add it"),
    (
        "-A -t 192.0.2.80:80 §rr\n",
        "\"rr\" is not a line of `ipvsadm -Sn`; give its output as it is",
    ),
    ("§-A -s rr\n", "a service (-t, -u or -f) is missing; add it"),
    (
        "-A -t §192.0.2.300:80 -s rr\n",
        "\"192.0.2.300\" is not an IP address; write it like \"192.0.2.1\" or \"2001:db8::1\"",
    ),
    (
        "-A -t §192.0.2.80:http -s rr\n",
        "\"http\" is not a whole number; correct it",
    ),
    (
        "\n  §-a -t 192.0.2.80:80 -r 192.0.2.11:80 -g -w 1\n",
        "there is no service tcp:192.0.2.80:80 above this line; put its -A line first",
    ),
    (
        "-A -t 192.0.2.80:80 -s rr -M §255.0.255.0\n",
        "\"255.0.255.0\" is not a network mask; correct it",
    ),
    (
        "-A -t 192.0.2.80:80 -s rr --netmask=§255.0.255.0\n",
        "\"255.0.255.0\" is not a network mask; correct it",
    ),
    (
        "-A -t 192.0.2.80:80 -s rr\n§-A -t 192.0.2.80:80 -s rr\n",
        "tcp:192.0.2.80:80 is here twice; remove one of them",
    ),
    (
        "-A -t 192.0.2.80:80 -s rr\n§-a -t 192.0.2.80:80 -g\n",
        "a real server (-r) is missing; add it",
    ),
    (
        "-A -t 192.0.2.80:80 -s rr\n-a -t 192.0.2.80:80 -r 192.0.2.11:80 -w §-1\n",
        "\"-1\" is not a whole number; correct it",
    ),
    (
        "-A -t 192.0.2.80:80 -s rr\n-a -t 192.0.2.80:80 -r 192.0.2.11:80\n§-a -t 192.0.2.80:80 -r 192.0.2.11:80\n",
        "the real server 192.0.2.11 is here twice; remove one of them",
    ),
];

/// What is wrong with each of them.
pub(super) fn faults() -> Vec<Reason> {
    let fault = |(text, said): &Case| {
        let (text, place) = unmark("rules", text);
        reason(import("rules", &text).unwrap_err(), &place, said)
    };
    FAULTS.iter().map(fault).collect()
}
