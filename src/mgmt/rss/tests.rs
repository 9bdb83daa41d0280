use super::*;
use crate::mgmt::config;

fn info(fields: u64, reta_size: u16) -> PortInfo {
    PortInfo {
        driver: "net_test".into(),
        mac: [2; 6],
        numa: None,
        max_rx_queues: 4,
        max_tx_queues: 4,
        reta_size,
        rss_key_size: 40,
        rss_fields: fields,
        rx_offloads: 0,
        tx_offloads: 0,
        min_mtu: 68,
        max_mtu: 9000,
        rx_descriptors: (0, 0),
        tx_descriptors: (0, 0),
    }
}

/// A port for clients, and one for backends of one service.
fn config(method: &str, key: &str) -> Config {
    let text = format!(
        "[workers]\ncores = \"1-4\"\n\
         [[port]]\nname = \"wan\"\ndevice = \"a\"\naddresses = \"192.0.2.2/24\"\n{key}\n\
         [[port]]\nname = \"lan\"\ndevice = \"b\"\n\
         [[port]]\nname = \"in\"\nparent = \"lan\"\nvlan = 7\naddresses = \"10.0.0.2/24\"\n\
         [[service]]\nname = \"s\"\nlisten = \"tcp:192.0.2.80:80\"\nmethod = \"{method}\"\nscheduler = \"rr\"\n\
         [[service.backend]]\naddress = \"10.0.0.11\"\n"
    );
    config::parse(&text).unwrap()
}

const ENDS: u64 = rss::L3_SRC_ONLY | rss::L4_SRC_ONLY | rss::L3_DST_ONLY | rss::L4_DST_ONLY;

fn plan(config: &Config, port: usize, info: &PortInfo) -> Plan {
    Plan::of(config, &config.ports[port], info, 128)
}

fn why(plan: Plan) -> String {
    match plan {
        Plan::Compute(why) => why,
        asked => panic!("{asked:?}"),
    }
}

#[test]
fn devices_are_asked_for_what_the_services_need() {
    let (one_way, two_way) = (config("tunnel", ""), config("nat", ""));
    let able = info(FIELDS | ENDS, 512);
    let asked = |config, port| match plan(config, port, &able) {
        Plan::Ask { by, settings } => (by, settings.hash_fields & ENDS),
        plan => panic!("{plan:?}"),
    };
    assert_eq!(asked(&one_way, 0), (By::Both, 0));
    assert_eq!(asked(&one_way, 1), (By::Both, 0));
    let source = rss::L3_SRC_ONLY | rss::L4_SRC_ONLY;
    assert_eq!(asked(&two_way, 0), (By::Source, source));
    assert_eq!(asked(&two_way, 1), (By::Destination, ENDS & !source));
    let settings = plan(&one_way, 0, &able).settings().unwrap();
    assert_eq!(settings.key, [0x6d, 0x5a]);
    assert_eq!(
        (settings.hash_fields, settings.reta_period),
        (FIELDS, Some(128))
    );
}

#[test]
fn where_a_device_cannot_do_it_owners_are_computed() {
    let (one_way, two_way) = (config("tunnel", ""), config("nat", ""));
    assert_eq!(why(plan(&one_way, 0, &info(0, 0))), "the device has no RSS");
    let cannot = "the device cannot hash the source alone, as NAT needs it";
    assert_eq!(why(plan(&two_way, 0, &info(FIELDS, 128))), cannot);
    let mut few = info(FIELDS, 128);
    few.max_rx_queues = 2;
    let too_few = "it has 2 receive queues for 4 workers";
    assert_eq!(why(plan(&one_way, 0, &few)), too_few);
    assert_eq!(
        why(plan(&one_way, 0, &info(FIELDS, 2))),
        "its redirection table has 2 entries"
    );
    let off = config("tunnel", "rss = \"off\"");
    assert_eq!(why(plan(&off, 0, &info(FIELDS, 128))), "rss = \"off\"");
    let assumed = config("nat", "rss = \"assume\"");
    assert_eq!(
        plan(&assumed, 0, &info(0, 0)),
        Plan::Assume { by: By::Source }
    );
    let mut single = one_way;
    single.workers.cores.truncate(1);
    assert_eq!(
        why(plan(&single, 0, &info(FIELDS, 128))),
        "there is one worker"
    );
}

#[test]
fn the_smallest_table_counts() {
    let of = |sizes: &[u16]| {
        let infos: Vec<_> = sizes.iter().map(|&size| info(FIELDS, size)).collect();
        reta(infos.iter(), 4)
    };
    assert_eq!(of(&[]), 128);
    assert_eq!(of(&[512, 0]), 128);
    assert_eq!(of(&[512, 64]), 64);
    assert_eq!(of(&[100]), 64);
    assert_eq!(of(&[2]), 128, "too small to be of use");
}

/// What the device says is in force when it did as asked.
fn in_force(plan: &Plan) -> RssState {
    let settings = plan.settings().unwrap();
    RssState {
        key: settings.key.iter().copied().cycle().take(40).collect(),
        hash_fields: settings.hash_fields,
        reta: (0..512).map(|entry| entry % 128 % 4).collect(),
    }
}

#[test]
fn what_the_device_says_is_in_force_must_be_what_was_asked() {
    let asked = plan(&config("tunnel", ""), 0, &info(FIELDS, 512));
    let good = in_force(&asked);
    assert_eq!(asked.fault(Some(&good), 4), None);
    assert!(asked.fault(None, 4).unwrap().contains("does not say"));
    let broken = |change: fn(&mut RssState)| {
        let mut state = good.clone();
        change(&mut state);
        asked.fault(Some(&state), 4).unwrap_or("nothing")
    };
    assert!(broken(|s| s.key[17] ^= 1).contains("key"));
    assert!(broken(|s| s.key.clear()).contains("key"));
    assert!(broken(|s| s.hash_fields &= !rss::IPV6_UDP).contains("hash all"));
    assert!(broken(|s| s.reta[130] = 3).contains("table"));
}

/// A trial with four workers.
struct Trial {
    rss: Rss,
    workers: Vec<Arc<WorkerCounters>>,
    now: Instant,
}

impl Trial {
    fn new() -> Self {
        let asked = plan(&config("tunnel", ""), 0, &info(FIELDS, 512));
        let state = in_force(&asked);
        let now = Instant::now();
        let workers = (0..4).map(|_| Arc::new(WorkerCounters::new(1)));
        Self {
            rss: Rss::new(vec![("wan".into(), asked, Some(state))], 4, 128, now),
            workers: workers.collect(),
            now,
        }
    }

    fn look(&mut self, seconds: u64) -> bool {
        self.now += Duration::from_secs(seconds);
        self.rss.look(self.now, self.workers.iter())
    }

    /// Packets of these entries of the table come by their owner's queue.
    fn agree(&self, class: usize, entries: std::ops::Range<u16>) {
        for entry in entries {
            let worker = &self.workers[usize::from(entry % 4)];
            worker.queues[0].note(class, entry, true);
        }
    }

    fn said(&self) -> String {
        self.rss.describe(0).unwrap()
    }
}

#[test]
fn packets_prove_it_kind_by_kind() {
    let mut trial = Trial::new();
    assert!(!trial.look(0));
    assert_eq!(
        trial.rss.queues(),
        [None],
        "not before the port has settled"
    );
    assert!(trial.look(1));
    let (by, proven) = (By::Both, Classes::NONE);
    assert_eq!(trial.rss.queues(), [Some(Queues { by, proven })]);
    trial.agree(0, 0..95);
    assert!(!trial.look(1), "95 of 128 entries are too few");
    assert_eq!(trial.said(), "on trial, by both ends");
    trial.agree(0, 95..96);
    assert!(trial.look(1) && !trial.look(1));
    let proven = Classes::NONE.with(0);
    assert_eq!(trial.rss.queues(), [Some(Queues { by, proven })]);
    (1..4).for_each(|class| trial.agree(class, 20..128));
    assert!(trial.look(1));
    let proven = Classes::ALL;
    assert_eq!(trial.rss.queues(), [Some(Queues { by, proven })]);
    let all = "proven for IPv4 TCP, IPv4 UDP, IPv6 TCP, IPv6 UDP, by both ends";
    assert_eq!(trial.said(), all);
}

#[test]
fn one_packet_by_a_wrong_queue_ends_it_until_the_port_is_reset() {
    let mut trial = Trial::new();
    trial.look(1);
    (0..4).for_each(|class| trial.agree(class, 0..128));
    assert!(trial.look(1));
    trial.workers[2].queues[0].note(1, 7, false);
    assert!(trial.look(1));
    assert_eq!(trial.rss.queues(), [None]);
    assert_eq!(
        trial.said(),
        "computed: packets came in on other queues than asked for"
    );
    assert!(!trial.look(100));
    // A reset: the workers forget, and it all begins again.
    trial.workers.iter().for_each(|w| w.queues[0].forget());
    let state = in_force(&trial.rss.ports[0].plan);
    trial.rss.begin(0, Some(&state), trial.now);
    assert!(!trial.look(0) && trial.look(1));
    assert_eq!(trial.said(), "on trial, by both ends");
    assert!(!trial.look(1));
}
