//! What the command line prints, from made-up answers.

use clap::{CommandFactory as _, Parser as _};

use super::status::{Columns, render};
use super::table::{bytes, count, duration};
use super::*;
use crate::mgmt::api::*;

fn backend(name: &str, address: &str, weight: u32, active: u64) -> BackendStatus {
    BackendStatus {
        name: name.to_owned(),
        address: address.to_owned(),
        method: "direct-routing".to_owned(),
        weight,
        effective_weight: weight,
        active,
        inactive: 2 * active,
        traffic: Traffic {
            connections: 1000 + active,
            in_packets: 123_456_789,
            out_packets: 0,
            in_bytes: 1_234_567_890_123,
            out_bytes: 5,
        },
        ..BackendStatus::default()
    }
}

fn sample() -> Status {
    let mut slow = backend("web-2", "192.0.2.12", 4, 0);
    slow.effective_weight = 0;
    slow.state = BackendState::Down;
    slow.reason = Some("http 503".to_owned());
    let mut nat = backend("dns-1", "2001:db8::11", 1, 3);
    nat.port = Some(5353);
    nat.method = "nat".to_owned();
    Status {
        version: "0.1.0".to_owned(),
        uptime_seconds: 3 * 3600 + 12 * 60,
        generation: 17,
        services: vec![
            ServiceStatus {
                name: "web".to_owned(),
                listen: vec![
                    "tcp:192.0.2.80:80".to_owned(),
                    "tcp:[2001:db8::80]:80".to_owned(),
                ],
                method: "direct-routing".to_owned(),
                scheduler: "wrr".to_owned(),
                flags: vec!["persistent 300".to_owned()],
                quorum: None,
                traffic: Traffic {
                    connections: 2010,
                    ..Traffic::default()
                },
                backends: vec![slow, backend("web-1", "192.0.2.9", 2, 10)],
            },
            ServiceStatus {
                name: "dns".to_owned(),
                listen: vec!["udp:[2001:db8::53]:53".to_owned()],
                method: "nat".to_owned(),
                scheduler: "mh".to_owned(),
                backends: vec![nat],
                ..ServiceStatus::default()
            },
        ],
        ports: vec![PortStatus {
            name: "wan".to_owned(),
            device: "net_tap0,iface=ek0".to_owned(),
            link_up: true,
            speed: Some(10_000),
            rx_packets: 1_500_000,
            rx_bytes: 2_000_000_000,
            queues: "computed: the device has no RSS".to_owned(),
            ..PortStatus::default()
        }],
        workers: vec![WorkerStatus {
            core: 1,
            busy: Some(12),
            received: 10,
            capacity: 2_000_000,
            ..WorkerStatus::default()
        }],
        drops: vec![Reason {
            reason: "no_backend".to_owned(),
            count: 12,
            explanation: "No backend of the service can take a new connection.".to_owned(),
        }],
        notes: vec!["wan: RSS is done in software".to_owned()],
        ..Status::default()
    }
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
    for bad in [
        &["evenkeel"][..],
        &["evenkeel", "status", "-c"],
        &["evenkeel", "status", "--stats", "--rate"],
        &["evenkeel", "stop"],
    ] {
        assert_eq!(
            Cli::try_parse_from(bad).unwrap_err().exit_code(),
            2,
            "{bad:?}"
        );
    }
    let cli = Cli::try_parse_from(["evenkeel", "status", "--json", "--socket", "/tmp/s"]).unwrap();
    assert!(cli.shared.json && cli.shared.socket.as_os_str() == "/tmp/s");
}

#[test]
fn status_shows_what_an_operator_knows() {
    let expected = "\
evenkeel 0.1.0, up 3 h 12 min, configuration 17
note: wan: RSS is done in software

Prot LocalAddress:Port   Scheduler
  -> RemoteAddress:Port  Forward            Weight ActiveConn InActConn Name
TCP  192.0.2.80:80       wrr persistent 300                10        20 web
TCP  [2001:db8::80]:80
  -> 192.0.2.12:80       direct-routing     0 of 4          0         0 web-2 down: http 503
  -> 192.0.2.9:80        direct-routing          2         10        20 web-1
UDP  [2001:db8::53]:53   mh                                 3         6 dns
  -> [2001:db8::11]:5353 nat                     1          3         6 dns-1

Port Device   Link RxPkts  RxBytes TxPkts TxBytes Missed Errors
wan  net_tap0 10G   1500k 1907 MiB      0     0 B      0      0

Queues
wan    computed: the device has no RSS

Worker Core Busy Received Sent Dropped Passed Handed Conns    of
0      1    12 %       10    0       0      0      0     0 2000k

Dropped    Packets
no_backend      12 No backend of the service can take a new connection.
";
    let text = render(&sample(), Columns::Weights);
    assert_eq!(text, expected, "\n{text}");
}

#[test]
fn status_fits_a_terminal() {
    for columns in [Columns::Weights, Columns::Stats, Columns::Rate] {
        for line in render(&sample(), columns).lines() {
            // A reason may run over; it stands last so that nothing behind it is moved.
            assert!(
                line.chars().count() <= 80 || line.contains("down:"),
                "{line}"
            );
        }
    }
}

#[test]
fn ipvsadm_listings_are_the_same_to_the_column() {
    let expected = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  192.0.2.80:80 wrr persistent 300
  -> 192.0.2.9:80                 Route   2      10         20        
  -> 192.0.2.12:80                Route   0      0          0         
TCP  [2001:db8::80]:80 wrr persistent 300
  -> 192.0.2.9:80                 Route   2      10         20        
  -> 192.0.2.12:80                Route   0      0          0         
UDP  [2001:db8::53]:53 mh
  -> [2001:db8::11]:5353          Masq    1      3          6         
";
    assert_eq!(ipvsadm::services(&sample(), Columns::Weights), expected);

    let mut one = sample();
    one.services.truncate(1);
    one.services[0].listen.truncate(1);
    one.services[0].backends.truncate(1);
    let expected = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes
  -> RemoteAddress:Port
TCP  192.0.2.80:80                    2010        0        0        0        0
  -> 192.0.2.12:80                    1000  123456K        0    1234G        5
";
    assert_eq!(ipvsadm::services(&one, Columns::Stats), expected);
    let rate = ipvsadm::services(&one, Columns::Rate);
    assert_eq!(
        rate.lines().nth(1),
        Some("Prot LocalAddress:Port                 CPS    InPPS   OutPPS    InBPS   OutBPS")
    );
}

fn connection(client: &str, state: &str, expires: u32) -> ConnectionStatus {
    ConnectionStatus {
        protocol: "tcp".to_owned(),
        client: client.to_owned(),
        virtual_address: "192.0.2.80:80".to_owned(),
        backend_address: "192.0.2.11:8080".to_owned(),
        service: "web".to_owned(),
        backend: "web-1".to_owned(),
        state: state.to_owned(),
        expires,
        ..ConnectionStatus::default()
    }
}

#[test]
fn connections_are_listed_in_both_manners() {
    let all = Connections {
        connections: vec![
            connection("198.51.100.7:40000", "established", 899),
            connection("[2001:db8::7]:1", "fin_wait", 5),
        ],
        more: true,
    };
    let expected = "\
IPVS connection entries
pro expire state       source             virtual            destination
TCP 14:59  ESTABLISHED 198.51.100.7:40000 192.0.2.80:80      192.0.2.11:8080
TCP 00:05  FIN_WAIT    [2001:db8::7]:1    192.0.2.80:80      192.0.2.11:8080
";
    assert_eq!(ipvsadm::connections(&all), expected);
    let expected = "\
Prot     Expires State       Client             Virtual       Backend         Name
TCP  14 min 59 s established 198.51.100.7:40000 192.0.2.80:80 192.0.2.11:8080 web-1
TCP          5 s fin_wait    [2001:db8::7]:1    192.0.2.80:80 192.0.2.11:8080 web-1
... and more; raise --limit above 2
";
    assert_eq!(connections::render(&all), expected);
}

#[test]
fn filters_are_encoded() {
    let filter = ConnectionFilter {
        service: Some("a&b c".to_owned()),
        client: Some("2001:db8::/32".parse().unwrap()),
        ..ConnectionFilter::default()
    };
    let path = connections::path(&filter);
    assert_eq!(
        path,
        "/v1/connections?service=a%26b%20c&client=2001%3Adb8%3A%3A%2F32&limit=1000"
    );
}

#[test]
fn numbers_carry_their_unit() {
    assert_eq!(count(0), "0");
    assert_eq!(count(999_999), "999999");
    assert_eq!(count(1_000_000), "1000k");
    assert_eq!(count(123_456_789), "123M");
    assert!(count(u64::MAX).len() <= 6);
    assert_eq!(bytes(999_999), "999999 B");
    assert_eq!(bytes(10_000_000), "9765 KiB");
    assert!(bytes(u64::MAX).len() <= 9);
    assert_eq!(duration(59), "59 s");
    assert_eq!(duration(90), "1 min 30 s");
    assert_eq!(duration(100_000), "1 d 3 h");
}
