use std::time::Duration;

use super::*;
use crate::cli::import::keepalived::import;

const MAIN: &str = r#"
! A pair of balancers, as operators write it
global_defs {
    router_id lb1
}
$VIP=192.0.2.80
$DELAY = 6

vrrp_instance VI_1 {
    state MASTER
    virtual_ipaddress {
        192.0.2.80
    }
}

virtual_server_group dns_group {
    192.0.2.53 53
    192.0.2.54-55 53   # a range
    fwmark 3
}

virtual_server $VIP 80 {
    delay_loop ${DELAY}
    lb_algo wrr
    lb_kind DR
    persistence_timeout 50
    persistence_granularity 255.255.255.0
    protocol TCP
    quorum 2
    hysteresis 1
    quorum_down "/usr/local/bin/alarm down"
    sorry_server 192.0.2.99 80

    real_server 192.0.2.11 80 {
        weight 3
        HTTP_GET {
            url {
              path /health?full
              status_code 200-204 301
            }
            connect_timeout 3
            retry 2
            delay_before_retry 1
        }
    }
    real_server 192.0.2.12 80
    {
        weight 1
        uthreshold 500
        lthreshold 300
        inhibit_on_failure
        HTTP_GET {
            url { path /health?full
                  status_code 200-204 301 }
            connect_timeout 3
            retry 2
        }
        notify_down "/bin/page me"
    }
    real_server 192.0.2.13 80 {
        TCP_CHECK { }
        PING_CHECK
    }
}

include servers/*.conf
"#;

const SECURE: &str = r#"
virtual_server 192.0.2.81 443 {
    lvs_sched mh
    mh-port
    lvs_method NAT
    alpha
    virtualhost www.example.org
    real_server 10.0.0.11 8443 {
        SSL_GET {
            enable_sni
            url {
                path /
                digest 9b3a0c85a887a256d6939da88aabd8cd
            }
        }
    }
}
"#;

const DNS: &str = r#"
virtual_server group dns_group {
    delay_loop 0.5
    lb_algo sed
    lb_kind TUN
    protocol UDP
    ops
    real_server 10.0.0.53 53 {
        DNS_CHECK {
            name example.org
            type AAAA
        }
    }
}
virtual_server 192.0.2.90 25 {
    real_server 10.0.0.25 25 {
        MISC_CHECK {
            misc_path "/usr/bin/check_smtp -H 10.0.0.25"
            misc_timeout 5
        }
    }
}
virtual_server fwmark 5 {
}
"#;

fn sample() -> (Scratch, Import) {
    let scratch = Scratch::new("sample");
    std::fs::create_dir(scratch.0.join("servers")).unwrap();
    scratch.file("servers/10-secure.conf", SECURE);
    scratch.file("servers/20-dns.conf", DNS);
    scratch.file("servers/readme.txt", "no configuration {");
    let main = scratch.file("keepalived.conf", MAIN);
    let import = import(&main).unwrap();
    (scratch, import)
}

#[test]
fn virtual_servers_become_services() {
    let (_scratch, import) = sample();
    let config = read_back("keepalived", &import);
    assert_eq!(
        config.services,
        services(&import),
        "what is written reads back"
    );
    let [web, secure, dns, mail] = config.services.as_slice() else {
        panic!("{:?}", config.services)
    };

    assert_eq!(web.listen[0].to_string(), "tcp:192.0.2.80:80");
    assert_eq!(
        (web.method, web.scheduler),
        (Method::DirectRouting, Scheduler::Wrr)
    );
    let persistence = web.persistence.as_ref().unwrap();
    assert_eq!(
        (persistence.timeout, persistence.prefix_v4),
        (Duration::from_secs(50), 24)
    );
    assert_eq!(
        web.quorum,
        Some(Quorum {
            backends: 2,
            hysteresis: 1
        })
    );
    assert_eq!(
        web.sorry_server.as_ref().unwrap().address.to_string(),
        "192.0.2.99"
    );
    assert!(web.inhibit);
    let weights: Vec<u16> = web.backends.iter().map(|backend| backend.weight).collect();
    assert_eq!(weights, [3, 1, 1]);
    assert_eq!(
        (web.backends[1].upper, web.backends[1].lower),
        (Some(500), Some(300))
    );
    let health = web.health.as_ref().unwrap();
    assert_eq!(
        (health.interval, health.timeout),
        (Duration::from_secs(6), Duration::from_secs(3))
    );
    assert_eq!((health.fall, health.via), (3, Via::Direct));
    let Check::Http(http) = &health.check else {
        panic!("{health:?}")
    };
    assert_eq!(
        (http.path.as_str(), http.status.as_slice()),
        ("/health?full", &[(200, 204), (301, 301)][..])
    );

    let health = secure.health.as_ref().unwrap();
    assert_eq!(
        (secure.backends[0].port, health.start),
        (Some(8443), StartState::Down)
    );
    assert!(secure.hash_port && secure.untracked == Untracked::Hash);
    let Check::Http(http) = &health.check else {
        panic!("{health:?}")
    };
    let tls = Tls {
        verify: false,
        sni: Some("www.example.org".to_owned()),
    };
    assert_eq!(
        (http.host.as_deref(), http.tls.as_ref()),
        (Some("www.example.org"), Some(&tls))
    );
    assert_eq!(health.interval, Duration::from_secs(60));

    let listens: Vec<String> = dns.listen.iter().map(Listen::to_string).collect();
    assert_eq!(
        listens,
        [
            "udp:192.0.2.53:53",
            "udp:192.0.2.54:53",
            "udp:192.0.2.55:53"
        ]
    );
    assert!(dns.one_packet && dns.method == Method::Tunnel);
    let health = dns.health.as_ref().unwrap();
    assert_eq!(
        health.check,
        Check::Dns {
            query: "example.org".to_owned(),
            record: "AAAA".to_owned()
        }
    );
    assert_eq!(
        (health.interval, health.timeout),
        (Duration::from_millis(500), Duration::from_millis(500))
    );

    let Check::Script { command } = &mail.health.as_ref().unwrap().check else {
        panic!("{mail:?}")
    };
    assert_eq!(command.join("|"), "/usr/bin/check_smtp|-H|10.0.0.25");
    assert_eq!((mail.method, mail.scheduler), (Method::Nat, Scheduler::Wlc));
}

#[test]
fn what_has_no_equivalent_is_listed_with_file_and_line() {
    let (scratch, import) = sample();
    let directory = format!("{}/", scratch.0.display());
    let mut notes = import.notes.clone();
    notes.sort();
    let listed: Vec<String> = notes
        .iter()
        .map(|note| {
            let file = note.place.file.strip_prefix(&directory).unwrap();
            let start = note.text.split([';', ':']).next().unwrap();
            format!("{file}:{}: {start}", note.place.line)
        })
        .collect();
    let expected = [
        "keepalived.conf:3: global_defs",
        "keepalived.conf:9: vrrp_instance",
        "keepalived.conf:19: a firewall mark has no equivalent",
        "keepalived.conf:31: quorum_down \"/usr/local/bin/alarm down\"",
        "keepalived.conf:51: inhibit_on_failure is the whole service's here",
        "keepalived.conf:58: notify_down \"/bin/page me\"",
        "keepalived.conf:60: this real server is checked in another way than the first of its service, which has one check for all",
        "keepalived.conf:62: PING_CHECK is a further check of the same real server, and a service has one",
        "servers/10-secure.conf:13: digest has no equivalent",
        "servers/20-dns.conf:19: misc_timeout has no equivalent",
        "servers/20-dns.conf:23: a virtual server by firewall mark has no equivalent",
    ];
    assert_eq!(listed, expected);
}

const FAULTS: &[Case] = &[
    (
        "virtual_server 192.0.2.80 80 §{\n",
        "a { is never closed; add the } that belongs to it",
    ),
    (" §}\n", "a } closes nothing; remove it or add its {"),
    ("\n§{\n}\n", "the keyword in front of { is missing; add it"),
    (
        "a §\"b\n",
        "a quote is never closed; add the other one on this line",
    ),
    ("§virtual_server\n", "virtual_server has no value; add it"),
    (
        "virtual_server 192.0.2.80 §http {\n}\n",
        "\"http\" is not a whole number; correct it",
    ),
    (
        "virtual_server 192.0.2.80 §90-80 {\n}\n",
        "\"90-80\" is not a range of ports; correct it",
    ),
    (
        "virtual_server group §none {\n}\n",
        "there is no virtual_server_group none; define it or correct the name",
    ),
    (
        "virtual_server_group g {\n §192.0.2.9-5 80\n}\n",
        "\"192.0.2.9-5\" is not a range of addresses; correct it",
    ),
    (
        "virtual_server_group g {\n}\n§virtual_server_group g {\n}\n",
        "virtual_server_group g is here twice; remove one of them",
    ),
    (
        "virtual_server 192.0.2.80 80 {\n lb_kind §XYZ\n}\n",
        "\"XYZ\" is not NAT, DR or TUN; correct it",
    ),
    (
        "virtual_server 192.0.2.80 80 {\n delay_loop §x\n}\n",
        "\"x\" is not a number of seconds; correct it",
    ),
    (
        "virtual_server 192.0.2.80 80 {\n delay_loop §-1\n}\n",
        "\"-1\" is not a number of seconds; correct it",
    ),
    (
        "virtual_server 192.0.2.80 80 {\n real_server §ten 80 {\n }\n}\n",
        "\"ten\" is not an IP address; write it like \"192.0.2.1\" or \"2001:db8::1\"",
    ),
    (
        "virtual_server 192.0.2.80 80 {\n real_server 192.0.2.1 80 {\n  §HTTP_GET {\n  }\n }\n}\n",
        "a url block is missing; add it",
    ),
    (
        "virtual_server 192.0.2.80 80 {\n real_server 192.0.2.1 80 {\n  HTTP_GET {\n   url {\n    status_code 200 §99\n   }\n  }\n }\n}\n",
        "\"99\" is not an HTTP status or a range of them; correct it",
    ),
    (
        "virtual_server 192.0.2.80 80 {\n real_server 192.0.2.1 80 {\n  §MISC_CHECK {\n  }\n }\n}\n",
        "misc_path is missing; add it",
    ),
    (
        "virtual_server 192.0.2.80 80 {\n}\n§virtual_server 192.0.2.80 80 {\n}\n",
        "virtual_server tcp:192.0.2.80:80 is here twice; remove one of them",
    ),
    (
        "include §gone.conf\n",
        "cannot read the included FOLDER/gone.conf: No such file or directory (os error 2); correct the path or remove the include",
    ),
    (
        "include §broken.conf\n",
        "FOLDER/broken.conf includes itself; remove the include",
    ),
];

/// What is wrong with each of them.
pub(super) fn faults() -> Vec<Reason> {
    let scratch = Scratch::new("broken");
    let folder = scratch.0.display().to_string();
    let fault = |(text, said): &Case| {
        let path = scratch.0.join("broken.conf");
        let (text, place) = unmark(&path.display().to_string(), text);
        scratch.file("broken.conf", &text);
        let said = said.replace("FOLDER", &folder);
        reason(import(&path).unwrap_err(), &place, &said)
    };
    FAULTS.iter().map(fault).collect()
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let scratch = Scratch::new("absent");
    let error = import(&scratch.0.join("none.conf")).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("cannot read ") && text.contains("; check the path"),
        "{text}"
    );
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "[a-z0-9.:{}\"$=#! \n_-]{0,80}") {
        let scratch = Scratch::new("any");
        let path = scratch.file("any.conf", &format!("virtual_server 192.0.2.80 80 {{\n{text}\n}}\n{text}"));
        let read = import(&path);
        proptest::prop_assert!(read.is_ok() || !read.unwrap_err().to_string().contains('\n'));
    }
}
