//! Linux beside the fast path: what an operator does with a machine works over evenkeel's port.

use std::fs;
use std::process::Command;
use std::time::Instant;

use serde_json::json;

use crate::lab::appliance::{Appliance, assert_done};
use crate::lab::balancer::{Service, web};
use crate::lab::downloads::Downloads;
use crate::lab::namespace::Namespace;
use crate::lab::process::{self, Running, wait_for};
use crate::lab::web::curl;
use crate::lab::{Arms, FAMILIES, Lab, METHODS, NAMES};

/// A lab with everything but a balancer in the usual place, and one on a machine of its own.
fn start(services: &[Service]) -> Option<(Lab, Appliance)> {
    let mut lab = Lab::new(Arms::One)?;
    lab.start_web();
    lab.start_unwrapping();
    let appliance = Appliance::start(&lab, 1, services, &json!({}));
    Some((lab, appliance))
}

/// Real sshd on the appliance, and the options that let the client in as root.
fn start_sshd(lab: &Lab, appliance: &Appliance) -> (Running, Vec<String>) {
    let file = |name: &str| lab.folder().join(name).display().to_string();
    for key in ["host-key", "client-key"] {
        let words = ["-q", "-t", "ed25519", "-N", "", "-f", &file(key)];
        process::check(Command::new("ssh-keygen").args(words));
    }
    let config = format!(
        "HostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM yes\nStrictModes no\n\
         PermitRootLogin prohibit-password\nListenAddress 0.0.0.0\nListenAddress ::\n",
        file("host-key"),
        file("client-key.pub"),
    );
    fs::write(file("sshd.conf"), config).expect("sshd's configuration");
    // Its packages make it at boot.
    fs::create_dir_all("/run/sshd").expect("sshd's folder");
    let words = ["-D", "-e", "-f", &file("sshd.conf")];
    let mut sshd = appliance
        .net
        .start("/usr/sbin/sshd", &words, file("sshd.log"));
    wait_for("sshd to listen", || {
        sshd.assert_running();
        sshd.log()
            .contains("Server listening on :: port 22")
            .then_some(())
    });
    let options = format!(
        "-i {} -F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
        file("client-key")
    );
    (sshd, options.split(' ').map(str::to_owned).collect())
}

fn kernel(appliance: &Appliance, key: &str) -> u64 {
    let count = &appliance.status()["kernel"][0][key];
    count.as_u64().expect("a count")
}

#[test]
fn ssh_and_ping_reach_the_appliance_while_it_forwards() {
    let services = METHODS.map(|method| web(method, "rr"));
    let Some((lab, appliance)) = start(&services) else {
        return;
    };
    let (_sshd, options) = start_sshd(&lab, &appliance);
    let downloads = Downloads::begin(&lab, &services, 10, 3);

    for family in FAMILIES {
        let own = Arms::One.evenkeel(family);
        let ping = ["-c20", "-i0.01", "-W5", "-n", &own];
        let pinged = lab.client.run("ping", &ping);
        assert_done(&pinged, &format!("ping {own}"));
        let printed = String::from_utf8_lossy(&pinged.stdout);
        assert!(printed.contains(" 0% packet loss"), "{printed}");

        // Two megabytes each way, whole.
        let login = format!("root@{own}");
        let mut words: Vec<&str> = options.iter().map(String::as_str).collect();
        words.extend([&*login, "cat"]);
        let line = format!(
            "head -c 2000000 {} | ssh {} | sha256sum",
            lab.folder().join("large").display(),
            words.join(" ")
        );
        let through = process::check(lab.client.command("sh").args(["-c", &line]));
        let whole = format!(
            "head -c 2000000 {}/large | sha256sum",
            lab.folder().display()
        );
        let whole = process::check(Command::new("sh").args(["-c", &whole]));
        assert_eq!(through, whole, "{own}");
    }
    // The other way: Linux on the appliance reaches a backend.
    let backend = &Arms::One.backends(FAMILIES[0])[0];
    let fetched = appliance
        .net
        .run("curl", &["-sSf", &format!("http://{backend}/")]);
    assert_done(&fetched, "a fetch by Linux on the appliance");
    downloads.assert_whole();

    let passed = (
        kernel(&appliance, "to_linux"),
        kernel(&appliance, "from_linux"),
    );
    assert!(passed.0 > 1000 && passed.1 > 1000, "{passed:?}");
    assert_eq!(kernel(&appliance, "from_linux_dropped"), 0);
    // What is sent to a VIP and is not balanced is nobody's, and Linux must not route it anywhere.
    let vip = services[0].address().replace(":80", ":81");
    let asked = ["-sS", "-m1", &format!("http://{vip}/")];
    assert!(!lab.client.run("curl", &asked).status.success());
    assert!(kernel(&appliance, "withheld") > 0);
}

#[test]
fn without_its_interface_it_goes_on_and_with_the_name_taken_it_does_not_start() {
    let service = web("nat", "rr");
    let Some((lab, mut appliance)) = start(std::slice::from_ref(&service)) else {
        return;
    };
    let url = format!("http://{}/", service.address());
    appliance.net.ip("link set ek-lan down");
    curl(&lab.client, &[&url]);
    let ping = |address: &str| {
        let output = lab.client.run("ping", &["-c1", "-W1", "-n", address]);
        output.status.success()
    };
    assert!(!ping(&appliance.address), "Linux's interface is down");
    assert!(ping(&Arms::One.address(FAMILIES[0], 81)), "the VIP is ours");
    assert!(kernel(&appliance, "to_linux_dropped") > 0);

    let (status, _) = appliance.process.terminate();
    assert!(status.success(), "{status}");
    assert_eq!(appliance.net.try_ip("link show ek-lan"), None);
    appliance.net.ip("link add ek-lan type bridge");
    let output = appliance.run_to_the_end();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("cannot make the interface ek-lan: "),
        "{said}"
    );
    appliance.net.ip("link delete ek-lan");
    appliance.start_again(&lab);
    crate::lab::web::curl(&lab.client, &[&url]);
}

/// Packets that the host has forwarded.
fn forwarded(host: &Namespace) -> u64 {
    let text = host.run("cat", &["/proc/net/snmp"]);
    let text = String::from_utf8(text.stdout).expect("text");
    let lines: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("Ip: "))
        .map(|line| line.split(' ').collect())
        .collect();
    let place = lines[0].iter().position(|name| *name == "ForwDatagrams");
    lines[1][place.expect("the name")].parse().expect("a count")
}

/// What the first two backends forward, as routers, while clients fetch from all three.
fn carried(lab: &Lab, url: &str) -> [bool; 2] {
    let count = || [0, 1].map(|router| forwarded(&lab.backends[router]));
    let before = count();
    curl(&lab.client, &["-H", "Connection: close", url]);
    let after = count();
    [0, 1].map(|router| after[router] > before[router])
}

#[test]
fn routes_and_neighbours_of_linux_steer_a_tunnel() {
    let service = web("tunnel", "rr");
    let Some((lab, appliance)) = start(std::slice::from_ref(&service)) else {
        return;
    };
    for router in &lab.backends[..2] {
        router.sysctl("net/ipv4/ip_forward", "1");
        router.sysctl("net/ipv4/conf/all/send_redirects", "0");
        router.sysctl("net/ipv4/conf/eth0/send_redirects", "0");
    }
    let url = format!("http://{}/?[1-6]", service.address());
    let [first, second, third] = Arms::One.backends(FAMILIES[0]);
    let mac = process::check(
        lab.backends[0]
            .command("cat")
            .arg("/sys/class/net/eth0/address"),
    );
    let mac = mac.trim();
    assert_eq!(carried(&lab, &url), [false, false]);
    let steps = [
        (
            format!("route add {third} via {first} dev ek-lan"),
            [true, false],
        ),
        (
            format!("route replace {third} via {second} dev ek-lan"),
            [false, true],
        ),
        (format!("route del {third}"), [false, false]),
        (
            format!("neigh replace {third} lladdr {mac} nud permanent dev ek-lan"),
            [true, false],
        ),
        (format!("neigh del {third} dev ek-lan"), [false, false]),
    ];
    for (words, by) in steps {
        appliance.net.ip(&words);
        wait_for(&format!("the way after ip {words}"), || {
            (carried(&lab, &url) == by).then_some(())
        });
    }
}

#[test]
fn five_thousand_routes_of_linux_stall_nothing() {
    const ROUTES: u64 = 5000;
    let service = web("nat", "rr");
    let Some((lab, appliance)) = start(std::slice::from_ref(&service)) else {
        return;
    };
    let url = format!("http://{}/", service.address());
    let gateway = &Arms::One.backends(FAMILIES[0])[0];
    let change = |word: &str| {
        let batch = lab.folder().join(word);
        let line = |n: u64| {
            let net = format!("10.{}.{}.0/24", 200 + n / 256, n % 256);
            format!("route {word} {net} via {gateway} dev ek-lan\n")
        };
        fs::write(&batch, (0..ROUTES).map(line).collect::<String>()).expect("a batch");
        let batch = batch.display();
        appliance.net.ip(&format!("-batch {batch}"));
    };
    for (word, all) in [("add", true), ("del", false)] {
        let begun = Instant::now();
        change(word);
        let changed = begun.elapsed();
        wait_for(&format!("the routes after ip route {word}"), || {
            curl(&lab.client, &[&url]);
            // A few are Linux's own, by addresses.
            let routes = kernel(&appliance, "routes");
            let far = if all { routes >= ROUTES } else { routes < 10 };
            far.then_some(())
        });
        let followed = begun.elapsed();
        println!(
            "{ROUTES} routes, {word}: Linux took {changed:.2?}, evenkeel had them after {followed:.2?}"
        );
    }
    let management = &appliance.status()["management"];
    assert_eq!(management["stalls"], 0, "{management}");
}

/// The VIPs in the table for routing daemons.
fn table(appliance: &Appliance) -> Vec<String> {
    let routes = appliance.net.try_ip("route show table 179");
    let routes = routes.unwrap_or_default();
    let vip = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let mut vips: Vec<String> = routes.lines().map(vip).collect();
    vips.sort();
    vips
}

#[test]
fn vips_stand_in_the_table_while_they_lead_somewhere_and_are_withdrawn_before_the_end() {
    let services = ["nat", "tunnel"].map(|method| web(method, "rr"));
    let Some(mut lab) = Lab::new(Arms::One) else {
        return;
    };
    lab.start_web();
    lab.start_unwrapping();
    let more = json!({ "management": { "vip_table": 179, "linger": "3s" } });
    let mut appliance = Appliance::start(&lab, 1, &services, &more);
    let vips = ["nat", "tunnel"].map(|method| FAMILIES[0].vip(method));
    let wait_for_table = |appliance: &Appliance, expected: &[String]| {
        wait_for(&format!("{expected:?} in the table"), || {
            (table(appliance) == expected).then_some(())
        });
    };
    wait_for_table(&appliance, &vips);
    let local = appliance.net.ip("address show");
    assert!(!local.contains(&vips[0]), "never an address: {local}");
    // Somebody's mistake is put right.
    appliance.net.ip("route flush table 179");
    wait_for_table(&appliance, &vips);

    // Without backends enough.
    let drain = |name: &str, more: &[&str]| {
        let service = services[0].name();
        appliance.asked(&[&["backend", "drain", &service, name], more].concat());
    };
    NAMES.iter().for_each(|name| drain(name, &[]));
    wait_for_table(&appliance, &vips[1..]);
    let ready = |words: &[&str]| appliance.evenkeel(words).status.success();
    assert!(ready(&["ready"]) && !ready(&["ready", &services[0].name()]));
    assert!(ready(&["ready", &services[1].name()]));
    drain(NAMES[0], &["--undo"]);
    wait_for_table(&appliance, &vips);

    // The whole drained: connections and pings are served all the same.
    appliance.asked(&["drain"]);
    wait_for_table(&appliance, &[]);
    assert!(!ready(&["ready"]));
    assert_eq!(appliance.status()["drained"], true);
    let urls = services
        .each_ref()
        .map(|s| format!("http://{}/", s.address()));
    urls.iter().for_each(|url| drop(curl(&lab.client, &[url])));
    assert_done(&lab.client.run("ping", &["-c1", "-W5", &vips[0]]), "ping");
    appliance.asked(&["undrain"]);
    wait_for_table(&appliance, &vips);
    let line = [&vips[0], "yes", "-", "yes", "met", &services[0].name()].map(str::to_owned);
    wait_for(&format!("{line:?} from evenkeel vips"), || {
        let shown = appliance.asked(&["vips"]);
        let first = shown.lines().nth(1)?.split_whitespace();
        (first.collect::<Vec<_>>() == line).then_some(())
    });

    // The table is empty, and packets are forwarded, before the end comes.
    appliance.process.signal("TERM");
    wait_for_table(&appliance, &[]);
    assert!(appliance.process.exited().is_none());
    urls.iter().for_each(|url| drop(curl(&lab.client, &[url])));
    assert!(appliance.process.exited().is_none(), "it lingers for 3 s");
    let status = wait_for("the end", || appliance.process.exited());
    assert!(status.success(), "{status}");
}
