//! Real kernels and what lies on the way to a backend: a link that takes shorter packets, and routers that
//! count hops.

use serde_json::json;

use crate::lab::balancer::{Evenkeel, Service, configuration, web};
use crate::lab::process::check;
use crate::lab::{Arms, FAMILIES, Family, Lab, METHODS, MTU, NAMES, tool};

const PORT: u16 = 53;
const FULLNAT_PORT: u16 = 54;

/// DPDK's TAP driver sends no frame over 1,522 bytes, so nobody's packets are longer than that here, and
/// what the client sends leaves room for a tunnel's header.
fn leave_room(lab: &Lab) {
    for family in FAMILIES {
        let router = family.clients_router();
        let route = format!("route replace default via {router} mtu 1460");
        lab.client.ip(&route);
    }
    for backend in &lab.backends {
        backend.ip("link set eth0 mtu 1500");
    }
}

fn narrow(configuration: &str) -> String {
    configuration.replace(&format!("mtu = {MTU}"), "mtu = 1500")
}

fn udp(family: Family, method: &'static str) -> Service {
    Service {
        family,
        protocol: "udp",
        port: PORT,
        ..web(method, "rr")
    }
}

/// UDP by every method and in both families, and its echoes.
fn start() -> Option<(Lab, Evenkeel, Vec<Service>)> {
    let mut lab = Lab::new(Arms::One)?;
    leave_room(&lab);
    lab.start_unwrapping();
    lab.start_udp_echo(PORT);
    let mut services: Vec<Service> = METHODS
        .iter()
        .flat_map(|method| FAMILIES.map(|family| udp(family, method)))
        .collect();
    // FullNAT has no VIP of its own in this lab, but a port.
    for family in FAMILIES {
        let local = Arms::One.address(family, 200);
        services.push(Service {
            port: FULLNAT_PORT,
            backend_port: Some(PORT),
            options: json!({ "method": "fullnat", "local_addresses": [local] }),
            ..udp(family, "nat")
        });
    }
    let text = narrow(&configuration(&lab, 1, &services));
    let evenkeel = Evenkeel::start_with(&lab, &text);
    Some((lab, evenkeel, services))
}

/// The router between evenkeel and the backends takes no more than 1,400 bytes on the way there. It says
/// so of the tunnel's packets, to evenkeel, which tells the client what fits inside.
#[test]
fn a_client_learns_the_path_mtu_of_a_tunnel() {
    let Some(mut lab) = Lab::new(Arms::Two) else {
        return;
    };
    leave_room(&lab);
    lab.start_web();
    lab.start_unwrapping();
    for family in FAMILIES {
        for backend in lab.arms.backends(family) {
            let length = family.host_length();
            lab.balancer.ip(&format!(
                "route add {backend}/{length} dev back mtu lock 1400"
            ));
        }
    }
    let services = FAMILIES.map(|family| Service {
        family,
        ..web("tunnel", "rr")
    });
    // No port of its own on the backends' switch: all goes by the router.
    let text = narrow(&configuration(&lab, 1, &services));
    let mut whole: toml::Table = text.parse().expect("TOML");
    let ports = whole["port"].as_array_mut().expect("ports");
    ports.truncate(1);
    let _evenkeel = Evenkeel::start_with(&lab, &toml::to_string(&whole).expect("TOML"));
    let file = lab.folder().join("upload");
    std::fs::write(&file, vec![b'x'; 900_000]).expect("a file");
    let file = format!("@{}", file.display());
    for (service, (fits, header)) in services.iter().zip([(1380, "IPv4"), (1360, "IPv6")]) {
        let url = format!("http://{}/", service.address());
        let mut curl = lab.client.command("curl");
        curl.args(["-sS", "-m", "20", "-X", "POST", "--data-binary", &file]);
        curl.args(["-o", "/dev/null", "-w", "%{http_code} %{size_upload}", &url]);
        let said = check(&mut curl);
        assert_eq!(said, "200 900000", "{header}");
        let (ip, vip) = (service.family.option(), service.family.vip("tunnel"));
        let route = lab.client.ip(&format!("{ip} route get {vip}"));
        assert!(route.contains(&format!("mtu {fits}")), "{header}: {route}");
    }
}

/// The client's router is one hop, evenkeel, which speaks for the VIP, another, and then comes the
/// backend.
#[test]
fn a_trace_shows_each_hop_in_every_method() {
    let Some((lab, _evenkeel, services)) = start() else {
        return;
    };
    for service in &services {
        let said = tool::run(&lab.client, &["trace", &service.address(), "3"]);
        let hops: Vec<&str> = said.lines().collect();
        let vip = service.family.vip(service.method);
        let expected = [service.family.clients_router(), &vip, "answer"];
        assert_eq!(hops, expected, "{}", service.name());
    }
}

/// Client and server take 4,000 bytes for one datagram; on the wire it is three or four fragments.
#[test]
fn a_datagram_in_fragments_arrives_whole_and_so_does_its_answer() {
    let Some((lab, _evenkeel, services)) = start() else {
        return;
    };
    for service in &services {
        let words = ["udp-ask", &service.address(), "6", "4000"];
        let said = tool::run(&lab.client, &words);
        let shares = NAMES.map(|name| said.lines().filter(|line| *line == name).count());
        assert_eq!(shares, [2; 3], "{}: {said}", service.name());
    }
}

/// Evenkeel answers pings to VIPs itself.
#[test]
fn a_ping_in_fragments_to_a_vip_is_answered() {
    let Some((lab, _evenkeel, services)) = start() else {
        return;
    };
    for service in &services {
        let vip = service.family.vip(service.method);
        let words = ["-s", "4000", "-c", "3", "-i", "0.2", "-W", "5", "-n", &vip];
        let said = check(lab.client.command("ping").args(words));
        assert!(said.contains(" 0% packet loss"), "{vip}: {said}");
        assert!(said.contains("4008 bytes from"), "{vip}: {said}");
    }
}
