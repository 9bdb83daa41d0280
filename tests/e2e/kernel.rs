//! Linux beside the fast path: what an operator does with a machine works over evenkeel's port.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::lab::appliance::{Appliance, assert_done};
use crate::lab::balancer::{Service, web};
use crate::lab::downloads::Downloads;
use crate::lab::process::{self, Running, wait_for};
use crate::lab::{Arms, FAMILIES, Lab, METHODS};

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
    let mut downloads = Downloads::begin(&lab, &services, 10, 3);

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
    downloads.assert_running();
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
    crate::lab::web::curl(&lab.client, &[&url]);
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
