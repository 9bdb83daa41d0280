//! A text for every fault there is, with the place and the words in which it must be told.

/// What every case stands on. `§` in a case marks where the fault is reported.
pub(super) const PORT: &str =
    "[[port]]\nname = \"wan\"\ndevice = \"net_null0\"\naddresses = [\"192.0.2.2/24\"]\n";
pub(super) const VLAN: &str = "[[port]]\nname = \"in7\"\nvlan = 7\nparent = \"wan\"\n";
pub(super) const NAT: &str = "[[service]]\nname = \"web\"\nlisten = \"tcp:198.51.100.80:80\"\nmethod = \"nat\"\nscheduler = \"rr\"\n";
pub(super) const BACKEND: &str = "[[service.backend]]\nname = \"a\"\naddress = \"192.0.2.11\"\n";

/// A text and the one fault that it must give.
pub(super) struct Case {
    pub(super) text: String,
    pub(super) fault: &'static str,
}

pub(super) fn case(text: impl Into<String>, fault: &'static str) -> Case {
    Case {
        text: text.into(),
        fault,
    }
}

/// A service in which `options` are added to the one that works.
pub(super) fn service(options: &str) -> String {
    format!("{PORT}{NAT}{options}\n{BACKEND}")
}

pub(super) fn syntax_cases() -> Vec<Case> {
    vec![
        case(
            format!("{PORT}[workers]\nidle = §poll\n"),
            "string values must be quoted, expected literal string; correct the TOML here",
        ),
        case(
            format!("{PORT}[workers]\n§core = \"1\"\n"),
            "unknown key \"core\" in [workers]; did you mean \"cores\"?",
        ),
        case(
            format!("{PORT}§gatewy = \"192.0.2.1\"\n"),
            "unknown key \"gatewy\" in [port]; did you mean \"gateway\"?",
        ),
        case(
            format!("{PORT}[§firewall]\n"),
            "unknown key \"firewall\" in the file; remove it",
        ),
        case(
            service("scheduler_options = 1").replace("scheduler_options", "§schedular"),
            "unknown key \"schedular\" in [service]; did you mean \"scheduler\"?",
        ),
        case(
            format!("{PORT}{}", NAT.replace("\"rr\"", "§\"rrr\"")),
            "service.scheduler = \"rrr\" is not known; use \"rr\", \"wrr\", \"random\", \"lc\", \"wlc\", \"sed\", \"nq\", \"lblc\", \"lblcr\", \"dh\", \"sh\", \"mh\", \"fo\", \"ovf\" or \"twos\"",
        ),
        case(
            format!("{PORT}[workers]\nconnections = §\"many\"\n"),
            "workers.connections is a string; write a whole number without quotes",
        ),
        case(
            format!("{PORT}[workers]\nconnections = §0x10\n"),
            "workers.connections = 0x10 is out of range; use 1000 to 1000000000",
        ),
        case(
            format!("{PORT}{NAT}{BACKEND}weight = §65536\n"),
            "service.backend.weight = 65536 is out of range; use 0 to 65535",
        ),
        case(
            format!("{PORT}{NAT}{BACKEND}weight = §-1\n"),
            "service.backend.weight = -1 is out of range; use 0 to 65535",
        ),
        case(
            "§[[port]]\nname = \"wan\"\n",
            "[port] has no device; add device = \"0000:01:00.0\"",
        ),
        case(
            "§",
            "there is no [[port]]; add one with a name and a DPDK device",
        ),
        case(
            format!("{PORT}gateway = [\"192.0.2.1\", §\"192.0.2.9\"]\n"),
            "port.gateway has 2 of them; give at most one for IPv4 and one for IPv6",
        ),
        case(
            service("timeouts = { close = §\"65536s\" }"),
            "service.timeouts.close = 65536s is out of range; use 1s to 65535s in whole seconds",
        ),
    ]
}

pub(super) fn value_cases() -> Vec<Case> {
    let listen =
        |listen: &str| format!("{PORT}{}", NAT.replace("\"tcp:198.51.100.80:80\"", listen));
    vec![
        case(
            format!("{PORT}gateway = §\"192.0.2\"\n"),
            "port.gateway = \"192.0.2\" is not an IP address; write it like \"192.0.2.1\" or \"2001:db8::1\"",
        ),
        case(
            PORT.replace("\"192.0.2.2/24\"", "§\"192.0.2.2\""),
            "port.addresses = \"192.0.2.2\" is not an address with a prefix length; write it like \"192.0.2.0/24\"",
        ),
        case(
            format!("{PORT}route = [{{ to = §\"10.0.0.1/8\", via = \"192.0.2.1\" }}]\n"),
            "port.route.to = \"10.0.0.1/8\" has bits set behind its prefix length; write 10.0.0.0/8",
        ),
        case(
            format!("{PORT}neighbour = [{{ address = \"192.0.2.1\", mac = §\"2:0:0:0:0:1\" }}]\n"),
            "port.neighbour.mac = \"2:0:0:0:0:1\" is not a MAC address; write it like \"02:00:00:00:00:01\"",
        ),
        case(
            format!(
                "{PORT}neighbour = [{{ address = \"192.0.2.1\", mac = §\"ff:ff:ff:ff:ff:ff\" }}]\n"
            ),
            "port.neighbour.mac = \"ff:ff:ff:ff:ff:ff\" is no address of one device; use a unicast MAC",
        ),
        case(
            service("slow_start = §\"30\""),
            "service.slow_start = \"30\" is not a time; write a whole number and a unit (ms, s, m, h, d), like \"15m\"",
        ),
        case(
            format!("{PORT}[workers]\nmemory = §\"2GB\"\n"),
            "workers.memory = \"2GB\" is not an amount of memory; write a whole number and KiB, MiB or GiB, like \"2GiB\"",
        ),
        case(
            format!("{PORT}[workers]\ncores = §\"3-1\"\n"),
            "workers.cores = \"3-1\" is not a list of cores; write it like \"1-3,5\"",
        ),
        case(
            format!("{PORT}[workers]\ncores = §\"1-3,2\"\n"),
            "core 2 is named twice, and with idle = \"poll\" its workers would take turns; name every core once or set workers.idle to \"yield\" or \"sleep\"",
        ),
        case(
            listen("[§\"sctp:198.51.100.80:80\"]"),
            "service.listen = \"sctp:198.51.100.80:80\" does not say what to listen on; write \"tcp:192.0.2.80:80\" or \"udp:[2001:db8::80]:53\"",
        ),
        case(
            listen("[§\"tcp:198.51.100.80:0\"]"),
            "service.listen = \"tcp:198.51.100.80:0\" names no usable port; write one (80), a range (8000-8099) or * for all",
        ),
        case(
            format!("{PORT}[management]\nmetrics = §\"9718\"\n"),
            "management.metrics = \"9718\" is not an address and a port; write it like \"127.0.0.1:9718\"",
        ),
        case(
            format!("{PORT}gateway = §\"224.0.0.1\"\n"),
            "port.gateway = \"224.0.0.1\" is no address that one host can have; use a unicast address",
        ),
        case(
            PORT.replace("\"wan\"", "§\"wan side\""),
            "port.name = \"wan side\" is not a name; use up to 63 letters, digits, '-', '_', '.' or ':'",
        ),
        case(
            service("advertise = §\"kernel\""),
            "advertise = \"kernel\" needs a Linux interface beside a port; add kernel_interface to a [[port]]",
        ),
        case(
            format!("{PORT}[management]\nvip_table = §179\n"),
            "vip_table needs a Linux interface beside a port; add kernel_interface to a [[port]]",
        ),
        case(
            format!("{PORT}kernel_interface = \"ek-wan\"\n[management]\nvip_table = §254\n"),
            "vip_table = 254 is a table that Linux routes by itself; use another number, such as 179",
        ),
        case(
            format!(
                "{PORT}kernel_interface = \"ek-wan\"\n{NAT}advertise = \"kernel\"\n{}",
                NAT.replace("\"web\"", "\"two\"")
                    .replace("\"tcp:198.51.100.80:80\"", "§\"tcp:198.51.100.80:81\"")
            ),
            "VIP 198.51.100.80 is advertised otherwise on line 8; write the same advertise in both",
        ),
        case(
            format!("{PORT}kernel_interface = \"ek-wan\"\n{VLAN}kernel_interface = §\"ek-wan\"\n"),
            "the interface \"ek-wan\" is already on line 5; give it another name",
        ),
        case(
            format!(
                "{}kernel_interface = §\"ek0\"\n",
                PORT.replace("net_null0", "net_tap0,iface=ek0")
            ),
            "the interface \"ek0\" is the device of a port itself; give it another name, such as \"ek-wan\"",
        ),
        case(
            format!("{PORT}kernel_interface = §\"a-name-of-sixteen\"\n"),
            "port.kernel_interface = \"a-name-of-sixteen\" is not an interface name; use 1 to 15 letters, digits, '-', '_' or '.'",
        ),
        case(
            service("health = { type = \"http\", status = §\"2xx\" }"),
            "service.health.status = \"2xx\" is not an HTTP status or a range of them; write it like \"200\" or \"200-299\"",
        ),
        case(
            PORT.replace("\"net_null0\"", "§\"\""),
            "port.device = \"\" is empty; write a value or remove the key",
        ),
    ]
}

pub(super) fn uniqueness_cases() -> Vec<Case> {
    let second = |listen: &str| {
        format!(
            "{PORT}{NAT}{BACKEND}[[service]]\nname = \"two\"\nlisten = [{listen}]\nmethod = \"nat\"\nscheduler = \"rr\"\n"
        )
    };
    vec![
        case(
            format!("{PORT}[[port]]\nname = §\"wan\"\ndevice = \"net_null1\"\n"),
            "port \"wan\" is already on line 2; give it another name",
        ),
        case(
            format!("{PORT}[[port]]\nname = \"in\"\nvlan = 7\nparent = §\"lan\"\n"),
            "no port with a device is called \"lan\"; name the [[port]] that the VLAN is on",
        ),
        case(
            format!("{PORT}§[[port]]\nname = \"in\"\nvlan = 7\n"),
            "[port] has no parent; add parent = \"wan\"",
        ),
        case(
            format!("{PORT}§[[port]]\nname = \"in\"\nparent = \"wan\"\n"),
            "[port] has no vlan; add vlan = 7",
        ),
        case(
            format!("{PORT}{VLAN}[[port]]\nname = \"b\"\nvlan = 7\nparent = §\"wan\"\n"),
            "VLAN 7 of port \"wan\" is already on line 8; remove one of them",
        ),
        case(
            format!("{PORT}{VLAN}§mtu = 9000\n"),
            "port.mtu belongs to the VLAN's parent; remove it here",
        ),
        case(
            format!("{PORT}{}", VLAN.replace("vlan = 7", "vlan = §4095")),
            "port.vlan = 4095 is out of range; use 1 to 4094",
        ),
        case(
            PORT.to_owned()
                + &(1..=255)
                    .map(|n| {
                        VLAN.replace("in7", &format!("in{n}"))
                            .replace("= 7", &format!("= {n}"))
                    })
                    .collect::<String>()
                    .replace("\"in255\"", "§\"in255\""),
            "there are 256 ports and VLANs; at most 255 are possible",
        ),
        case(
            format!("{PORT}[[port]]\nname = \"lan\"\ndevice = §\"net_null0\"\n"),
            "device \"net_null0\" is already the port's on line 3; a device makes one port",
        ),
        case(
            second("§\"tcp:198.51.100.80:80\""),
            "tcp:198.51.100.80:80 is already listened on, on line 7; remove one of them",
        ),
        case(
            second("\"tcp:198.51.100.81:80-90\", §\"tcp:198.51.100.81:85-99\""),
            "tcp:198.51.100.81:85-99 shares some ports with the one on line 15 and neither is the narrower; make the ranges disjoint or one part of the other",
        ),
        case(
            second("\"tcp:198.51.100.81:80\"").replace("\"two\"", "§\"web\""),
            "service \"web\" is already on line 6; give it another name",
        ),
        case(
            format!(
                "{PORT}{NAT}{BACKEND}[[service.backend]]\naddress = §\"192.0.2.11\"\nport = 80\n"
            ),
            "192.0.2.11:80 is already used on line 12; remove one and add their weights",
        ),
        case(
            format!(
                "{PORT}{NAT}{BACKEND}[[service.backend]]\nname = §\"a\"\naddress = \"192.0.2.12\"\n"
            ),
            "backend \"a\" is already on line 11; give it another name",
        ),
        case(
            format!(
                "{PORT}[[port]]\nname = \"lan\"\ndevice = \"net_null1\"\naddresses = [§\"192.0.2.2/25\"]\n"
            ),
            "192.0.2.2 is already used on line 4; remove one of them",
        ),
    ]
}

pub(super) fn network_cases() -> Vec<Case> {
    let tunnel = NAT.replace("\"nat\"", "\"tunnel\"");
    let direct = NAT.replace("\"nat\"", "\"direct-routing\"");
    vec![
        case(
            format!("{PORT}[workers]\ncores = §\"0-1\"\n"),
            "core 0 is the management thread's, and idle = \"poll\" would starve it; set management.core to another core or workers.idle to \"yield\"",
        ),
        case(
            format!("{PORT}[workers]\nconnections = 10_000_000\nmemory = §\"1GiB\"\n"),
            "10000000 connections take 1221MiB of 1GiB, which leaves nothing for packets; set workers.memory to at least 1285MiB or lower workers.connections",
        ),
        case(
            format!("{PORT}gateway = §\"198.51.100.1\"\n"),
            "the gateway 198.51.100.1 is not in a subnet of port \"wan\"; add an address in its subnet to the port's addresses or use one that is",
        ),
        case(
            format!("{PORT}[[port.route]]\nto = \"10.0.0.0/8\"\nvia = §\"198.51.100.1\"\n"),
            "the route's next hop 198.51.100.1 is not in a subnet of port \"wan\"; add an address in its subnet to the port's addresses or use one that is",
        ),
        case(
            format!("{PORT}{NAT}[[service.backend]]\naddress = §\"203.0.113.1\"\n"),
            "no port has a subnet, route or gateway to 203.0.113.1; add one of them to a [[port]]",
        ),
        case(
            format!(
                "{PORT}gateway = \"192.0.2.1\"\n{direct}[[service.backend]]\naddress = §\"203.0.113.1\"\n"
            ),
            "direct routing needs the backend on the link of a port, and 203.0.113.1 is behind a router; use method = \"tunnel\" or give it an address in a port's subnet",
        ),
        case(
            format!(
                "{PORT}mtu = 590\n{tunnel}{}",
                BACKEND.replace("\"192.", "§\"192.")
            ),
            "a tunnel to 192.0.2.11 makes packets of up to 596 bytes and port \"wan\" takes 590; set mtu = 596 on the port and its link",
        ),
        case(
            format!(
                "{PORT}{}{BACKEND}",
                NAT.replace("\"tcp:198.51.100.80:80\"", "§\"tcp:192.0.2.11:80\"")
            ),
            "VIP 192.0.2.11 is also a backend's address, on line 12; give one of them another address",
        ),
        case(
            format!(
                "{PORT}{}{BACKEND}",
                NAT.replace("\"tcp:198.51.100.80:80\"", "§\"tcp:192.0.2.2:80\"")
            ),
            "VIP 192.0.2.2 is also an address of a port or a router, on line 4; use an address that nobody else answers for",
        ),
        case(
            format!("{PORT}{NAT}[[service.backend]]\naddress = §\"192.0.2.2\"\n"),
            "backend 192.0.2.2 is an address of the balancer itself, on line 4; use the address of another host",
        ),
        case(
            format!("{PORT}check_address = §\"192.0.2.2\"\n"),
            "the check address 192.0.2.2 is already used on line 4; use one that belongs to the checks alone",
        ),
        case(
            service("").replace("\"192.0.2.11\"", "§\"2001:db8::11\""),
            "nat cannot send 198.51.100.80 to 2001:db8::11, which is of the other IP family; use backends of the VIP's family or method = \"tunnel\"",
        ),
    ]
}

pub(super) fn service_cases() -> Vec<Case> {
    let direct = NAT.replace("\"nat\"", "\"dr\"");
    let fullnat = service("").replace("\"nat\"", "§\"fullnat\"");
    vec![
        case(
            format!("{PORT}{direct}{BACKEND}port = §8080\n"),
            "direct-routing leaves ports as they are, so the backend's port 8080 is never used; remove the port or use method = \"nat\"",
        ),
        case(
            format!("{}port = §8080\n", service("").replace(":80\"", ":*\"")),
            "the service listens on several ports and the backend names one; remove the backend's port so that each keeps its own",
        ),
        case(
            format!("{PORT}{NAT}{BACKEND}upper = 5\nlower = §6\n"),
            "lower = 6 is above upper = 5; set lower below upper",
        ),
        case(
            format!("{PORT}{NAT}{BACKEND}lower = §6\n"),
            "lower has no effect without upper; add upper or remove lower",
        ),
        case(
            service("untracked = §\"hash\""),
            "untracked = \"hash\" needs a scheduler that is a hash, and rr is none; use scheduler = \"mh\" or untracked = \"reset\"",
        ),
        case(
            service("table_size = §65536"),
            "table_size = 65536 is no prime; use 65537",
        ),
        case(
            service("one_packet = §true"),
            "one_packet is for UDP alone and the service listens on TCP; remove one_packet or the tcp: entries",
        ),
        case(
            service("one_packet = §true").replace("tcp:", "udp:"),
            "one_packet keeps no connection, and nat needs one to know the replies by; remove it or use method = \"tunnel\" or \"direct-routing\"",
        ),
        case(
            fullnat,
            "fullnat needs source addresses of its own for IPv4; add local_addresses",
        ),
        case(
            service("local_addresses = [§\"192.0.2.200\"]"),
            "local_addresses is for method = \"fullnat\" alone; remove it or change the method",
        ),
        case(
            service("tunnel_source = §\"192.0.2.0/24\""),
            "tunnel_source is for method = \"tunnel\" alone; remove it or change the method",
        ),
        case(
            service("quorum = §2"),
            "the quorum of 2 and its hysteresis 0 cannot be met by 1 backends; keep quorum + hysteresis at 1 or less and the hysteresis below the quorum",
        ),
        case(
            service("health = §{ type = \"tcp\" }").replace(":80\"", ":*\""),
            "the service has no single port to check; add port to health",
        ),
        case(
            service("health = §{ type = \"ping\" }").replace(".80:80\"", ".0/24:80\""),
            "the service has no single address to check; add address to health",
        ),
        case(
            service("health = §{ type = \"tcp\" }"),
            "service web: port wan has no IPv4 check_address to check backend a from; add one",
        ),
        case(
            service("health = { type = \"tcp\", interval = \"1s\", timeout = §\"2s\" }"),
            "a check that may take 2s does not end within the interval of 1s; set timeout to the interval or less",
        ),
    ]
}
