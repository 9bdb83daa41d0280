//! scripts/nic on a made-up sysfs, behind which a thread stands in for the kernel: it makes virtual
//! functions, lets drivers go and finds new ones as the kernel does. tests/sriov has the real one.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const PF: &str = "0000:03:00.0";
const VF0: &str = "0000:03:10.0";

/// A machine: sysfs, `ip` and `modprobe` of its own, and the kernel behind them.
struct Machine {
    root: PathBuf,
    stop: Arc<AtomicBool>,
    kernel: Option<JoinHandle<()>>,
}

impl Machine {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("evenkeel-nic-{}-{number}", std::process::id());
        let root = std::env::temp_dir().join(name);
        let machine = Machine {
            root: root.clone(),
            stop: Arc::default(),
            kernel: None,
        };
        for driver in ["ixgbe", "ixgbevf", "mlx5_core", "vfio-pci", "ahci"] {
            machine.write(&format!("sys/bus/pci/drivers/{driver}/unbind"), "");
        }
        machine.write("sys/bus/pci/drivers_probe", "");
        machine.write(
            "sys/module/vfio/parameters/enable_unsafe_noiommu_mode",
            "N\n",
        );
        machine.program("modprobe", "exit 0");
        machine.program("ip", &format!("echo \"$*\" >>{}/ip.log", root.display()));
        machine
    }

    /// A card with its interface; `group` is its IOMMU group.
    fn card(&self, address: &str, driver: &str, interface: &str, group: Option<u32>) {
        let device = format!("sys/bus/pci/devices/{address}");
        self.write(&format!("{device}/class"), "0x020000\n");
        self.write(&format!("{device}/numa_node"), "1\n");
        self.write(&format!("{device}/driver_override"), "(null)\n");
        self.link(
            &format!("{device}/driver"),
            &format!("sys/bus/pci/drivers/{driver}"),
        );
        self.write(&format!("{device}/net/{interface}/mtu"), "1500\n");
        self.write(&format!("sys/class/net/{interface}/operstate"), "up\n");
        self.write(&format!("sys/class/net/{interface}/speed"), "10000\n");
        self.link(&format!("sys/class/net/{interface}/device"), &device);
        if let Some(group) = group {
            let group = format!("sys/kernel/iommu_groups/{group}");
            self.link(&format!("{device}/iommu_group"), &group);
            self.link(&format!("{group}/devices/{address}"), &device);
        }
    }

    fn sriov(&self, address: &str, most: u32) {
        let device = format!("sys/bus/pci/devices/{address}");
        self.write(&format!("{device}/sriov_totalvfs"), &format!("{most}\n"));
        self.write(&format!("{device}/sriov_numvfs"), "0\n");
    }

    /// Starts the kernel.
    fn boot(mut self) -> Self {
        let (root, stop) = (self.root.clone(), self.stop.clone());
        self.kernel = Some(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                Kernel(&root).look();
                thread::sleep(Duration::from_millis(2));
            }
        }));
        self
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_default()
    }

    fn link(&self, path: &str, to: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(self.root.join(to), path).unwrap();
    }

    fn program(&self, name: &str, body: &str) {
        self.write(&format!("bin/{name}"), &format!("#!/bin/sh\n{body}\n"));
        let path = self.root.join("bin").join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn driver(&self, address: &str) -> String {
        Kernel(&self.root).driver(address).unwrap_or_default()
    }

    fn nic(&self, words: &[&str]) -> Output {
        let path = std::env::var("PATH").unwrap();
        Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/nic"))
            .args(words)
            .env("EVENKEEL_SYSFS", self.root.join("sys"))
            .env("EVENKEEL_NIC_STATE", self.root.join("run/nic"))
            .env(
                "PATH",
                format!("{}:{path}", self.root.join("bin").display()),
            )
            .output()
            .unwrap()
    }

    fn done(&self, words: &[&str]) -> String {
        let output = self.nic(words);
        assert!(output.status.success(), "nic {words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it says on refusing.
    fn refused(&self, words: &[&str]) -> String {
        let output = self.nic(words);
        assert_eq!(output.status.code(), Some(1), "nic {words:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(kernel) = self.kernel.take() {
            let _ = kernel.join();
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// What the kernel does on a write to sysfs.
struct Kernel<'a>(&'a Path);

impl Kernel<'_> {
    fn device(&self, address: &str) -> PathBuf {
        self.0.join("sys/bus/pci/devices").join(address)
    }

    fn driver(&self, address: &str) -> Option<String> {
        let driver = fs::read_link(self.device(address).join("driver")).ok()?;
        Some(driver.file_name()?.to_str()?.to_owned())
    }

    /// Takes what was written to a file.
    fn taken(&self, path: &Path) -> Option<String> {
        let text = fs::read_to_string(path).ok()?;
        // A line is complete with its end.
        let line = text.strip_suffix('\n')?.to_owned();
        fs::write(path, "").unwrap();
        Some(line)
    }

    fn look(&self) {
        let drivers = self.0.join("sys/bus/pci/drivers");
        for driver in fs::read_dir(&drivers).unwrap().flatten() {
            if let Some(address) = self.taken(&driver.path().join("unbind")) {
                assert_eq!(
                    self.driver(&address).as_deref(),
                    driver.file_name().to_str()
                );
                fs::remove_file(self.device(&address).join("driver")).unwrap();
            }
        }
        if let Some(address) = self.taken(&self.0.join("sys/bus/pci/drivers_probe")) {
            self.probe(&address);
        }
        let count = fs::read_to_string(self.device(PF).join("sriov_numvfs"));
        if let Some(count) = count.ok().and_then(|text| text.trim().parse().ok()) {
            self.functions(count);
        }
    }

    fn probe(&self, address: &str) {
        let device = self.device(address);
        let wish = fs::read_to_string(device.join("driver_override")).unwrap();
        let native = if address == PF { "ixgbe" } else { "ixgbevf" };
        let driver = match wish.trim() {
            "" | "(null)" => native,
            wish => wish,
        };
        // A device that the test calls broken is refused by vfio-pci.
        if driver == "vfio-pci" && device.join("broken").exists() {
            return;
        }
        let driver = self.0.join("sys/bus/pci/drivers").join(driver);
        symlink(driver, device.join("driver")).unwrap();
    }

    fn functions(&self, count: u32) {
        let pf = self.device(PF);
        for index in 0..8 {
            let address = format!("0000:03:10.{}", 2 * index);
            let (link, device) = (pf.join(format!("virtfn{index}")), self.device(&address));
            if index < count && !link.exists() {
                fs::create_dir_all(&device).unwrap();
                fs::write(device.join("class"), "0x020000\n").unwrap();
                fs::write(device.join("driver_override"), "(null)\n").unwrap();
                symlink(&pf, device.join("physfn")).unwrap();
                let group = self
                    .0
                    .join(format!("sys/kernel/iommu_groups/{}", 100 + index));
                fs::create_dir_all(group.join("devices")).unwrap();
                let _ = fs::remove_file(group.join("devices").join(&address));
                symlink(&device, group.join("devices").join(&address)).unwrap();
                symlink(&group, device.join("iommu_group")).unwrap();
                self.probe(&address);
                symlink(&device, &link).unwrap();
            } else if index >= count && link.exists() {
                fs::remove_dir_all(&device).unwrap();
                fs::remove_file(&link).unwrap();
            }
        }
    }
}

/// A card with SR-IOV behind an IOMMU.
fn usual() -> Machine {
    let machine = Machine::new();
    machine.card(PF, "ixgbe", "enp3s0", Some(7));
    machine.sriov(PF, 8);
    machine.boot()
}

#[test]
fn cards_are_listed_with_what_dpdk_can_do() {
    let machine = Machine::new();
    machine.card(PF, "ixgbe", "enp3s0", Some(7));
    machine.sriov(PF, 8);
    machine.card("0000:04:00.0", "mlx5_core", "enp4s0", Some(8));
    machine.card("0000:05:00.0", "ixgbe", "enp5s0", None);
    machine.write("sys/bus/pci/devices/0000:06:00.0/class", "0x010601\n");
    let list = machine.done(&["list"]);
    let lines: Vec<Vec<&str>> = list
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines.len(), 4, "a disk controller is no network card");
    assert_eq!(
        lines[1][..7],
        [PF, "enp3s0", "ixgbe", "1", "up", "10000", "Mb/s"]
    );
    assert_eq!(lines[1][7], "0/8");
    assert!(list.contains(&format!("nic bind {PF} (net_ixgbe)")));
    assert!(
        list.contains("ready beside the kernel (net_mlx5): device = \"0000:04:00.0\""),
        "{list}"
    );
    assert!(list.contains("no IOMMU (net_ixgbe)"));
}

#[test]
fn all_is_undone_in_reverse() {
    let machine = usual();
    let said = machine.done(&["create", "enp3s0", "2"]);
    assert!(said.contains(&format!("VF 0: {VF0}")), "{said}");
    assert_eq!(machine.driver(VF0), "ixgbevf");
    machine.done(&["bind", VF0]);
    assert_eq!(machine.driver(VF0), "vfio-pci");
    let list = machine.done(&["list"]);
    assert!(list.contains("of 03:00.0"), "{list}");
    assert!(
        list.contains(&format!("ready: device = \"{VF0}\"")),
        "{list}"
    );
    // Once more changes nothing, and is undone once.
    machine.done(&["bind", VF0]);
    machine.done(&["create", "enp3s0", "2"]);

    let said = machine.done(&["undo"]);
    let back = said.find("back with ixgbevf").expect("unbound");
    assert!(
        back < said.find("has 0 VFs").expect("removed"),
        "in reverse: {said}"
    );
    assert_eq!(
        machine.read(&format!("sys/bus/pci/devices/{PF}/sriov_numvfs")),
        "0\n"
    );
    assert!(!machine.root.join("run/nic").exists());
    assert_eq!(machine.done(&["undo"]), "nothing to undo\n");
}

#[test]
fn a_card_is_switched_on_and_off_again() {
    let machine = usual();
    let flags = "sys/class/net/enp3s0/flags";
    machine.write(flags, "0x1002\n");
    machine.done(&["up", PF]);
    assert_eq!(machine.read("ip.log"), "link set dev enp3s0 up\n");
    machine.done(&["undo"]);
    assert!(
        machine
            .read("ip.log")
            .ends_with("link set dev enp3s0 down\n")
    );

    machine.write(flags, "0x1003\n");
    machine.done(&["up", "enp3s0"]);
    assert_eq!(machine.read("ip.log").lines().count(), 2, "it is up");
    assert_eq!(machine.done(&["undo"]), "nothing to undo\n");
}

#[test]
fn a_file_of_commands_is_applied_as_far_as_it_is_right() {
    let machine = usual();
    let file = machine.root.join("nic.conf");
    let file = file.to_str().unwrap();
    machine.write(
        "nic.conf",
        &format!("# for web\n\ncreate enp3s0 2\nbind {VF0}\n"),
    );
    machine.done(&["apply", file]);
    assert_eq!(machine.driver(VF0), "vfio-pci");
    machine.done(&["undo"]);
    machine.write(
        "nic.conf",
        "create enp3s0 2\nbind enp9s9\n# and on\ncreate enp3s0 1\n",
    );
    let said = machine.refused(&["apply", file]);
    assert!(said.contains("nic.conf:2: 'bind enp9s9' failed"), "{said}");
    assert!(
        said.contains("there is no PCI network card 'enp9s9'"),
        "{said}"
    );
    let count = machine.read(&format!("sys/bus/pci/devices/{PF}/sriov_numvfs"));
    assert_eq!(count, "2\n", "what came after was not done");
}

#[test]
fn a_count_of_functions_is_changed_by_way_of_none_and_put_back() {
    let machine = usual();
    machine.done(&["create", PF, "1"]);
    fs::remove_file(machine.root.join("run/nic")).expect("a note");
    machine.done(&["create", PF, "3"]);
    assert!(
        machine
            .root
            .join(format!("sys/bus/pci/devices/{PF}/virtfn2"))
            .exists()
    );
    assert!(
        machine
            .refused(&["create", PF, "9"])
            .contains("can have 8 VFs, not 9")
    );
    assert!(
        machine
            .refused(&["create", VF0, "1"])
            .contains("is itself a VF")
    );
    machine.done(&["undo"]);
    assert_eq!(
        machine.read(&format!("sys/bus/pci/devices/{PF}/sriov_numvfs")),
        "1\n"
    );
}

#[test]
fn settings_of_a_function_are_made_and_restored() {
    let machine = usual();
    let log = machine.root.join("ip.log");
    let log = log.display();
    machine.program(
        "ip",
        &format!(
            "[ \"$2\" = set ] && {{ echo \"$*\" >>{log}; exit; }}\n\
             [ \"$2\" = show ] || exit 0\n\
             echo '5: enp3s0: <UP> mtu 1500'\n\
             echo '    vf 0     link/ether 02:00:00:00:00:05 brd ff:ff:ff:ff:ff:ff, vlan 7, spoof checking on, link-state auto, trust off'"
        ),
    );
    machine.done(&["create", PF, "1"]);
    machine.done(&["set", PF, "0", "vlan=10", "trust=on", "spoof-check=off"]);
    let made = "link set dev enp3s0 vf 0 vlan 10\n\
                link set dev enp3s0 vf 0 trust on\n\
                link set dev enp3s0 vf 0 spoofchk off\n";
    assert_eq!(machine.read("ip.log"), made);
    machine.write("ip.log", "");
    machine.done(&["undo"]);
    let restored = "link set dev enp3s0 vf 0 mac 02:00:00:00:00:05\n\
                    link set dev enp3s0 vf 0 vlan 7\n\
                    link set dev enp3s0 vf 0 trust off\n\
                    link set dev enp3s0 vf 0 spoofchk on\n";
    assert_eq!(machine.read("ip.log"), restored);
}

#[test]
fn wrong_settings_are_refused_before_any_is_made() {
    let machine = usual();
    machine.done(&["create", PF, "1"]);
    for wrong in ["vlan=ten", "trust=maybe", "mac=02:00", "colour=red"] {
        let said = machine.refused(&["set", PF, "0", "vlan=10", wrong]);
        assert!(
            said.contains(&format!("'{wrong}' is no setting of a VF")),
            "{said}"
        );
    }
    assert!(
        machine
            .refused(&["set", PF, "4", "vlan=10"])
            .contains("has no VF 4")
    );
    assert!(!machine.read("ip.log").contains("link set"));
}

#[test]
fn a_card_without_iommu_needs_a_word_and_gets_a_warning() {
    let machine = Machine::new();
    machine.card(PF, "ixgbe", "enp3s0", None);
    let machine = machine.boot();
    let switch = "sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
    assert!(
        machine
            .refused(&["bind", PF])
            .contains("is behind no IOMMU")
    );
    assert_eq!(machine.driver(PF), "ixgbe");
    assert_eq!(machine.read(switch), "N\n");

    let output = machine.nic(&["bind", PF, "--no-iommu"]);
    assert!(output.status.success(), "{output:?}");
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(
        warning.contains("can read and write all of the machine's memory"),
        "{warning}"
    );
    assert_eq!(machine.read(switch), "Y\n");
    assert_eq!(machine.driver(PF), "vfio-pci");
    machine.done(&["undo"]);
    assert_eq!(machine.read(switch), "N\n");
    assert_eq!(machine.driver(PF), "ixgbe");
}

#[test]
fn a_shared_iommu_group_is_refused() {
    let machine = usual();
    machine.card("0000:03:00.1", "ixgbe", "enp3s1", Some(7));
    let said = machine.refused(&["bind", PF]);
    assert!(
        said.contains("shares an IOMMU group with 0000:03:00.1 (ixgbe)"),
        "{said}"
    );
}

#[test]
fn a_card_in_use_is_refused_unless_forced() {
    let machine = usual();
    machine.program(
        "ip",
        "echo '2: enp3s0    inet 192.0.2.9/24 scope global enp3s0'",
    );
    let said = machine.refused(&["bind", "enp3s0"]);
    assert!(said.contains("is enp3s0, which has 192.0.2.9/24"), "{said}");
    assert_eq!(machine.driver(PF), "ixgbe");
    machine.done(&["bind", "enp3s0", "--force"]);
    assert_eq!(machine.driver(PF), "vfio-pci");
    machine.done(&["unbind", PF]);
    assert_eq!(machine.driver(PF), "ixgbe");
    assert_eq!(machine.done(&["undo"]), "nothing to undo\n");
}

#[test]
fn a_card_with_functions_is_not_bound() {
    let machine = usual();
    machine.done(&["create", PF, "1"]);
    assert!(machine.refused(&["bind", PF]).contains("has VFs"));
}

#[test]
fn a_card_whose_drivers_work_together_stays_with_the_kernel() {
    let machine = Machine::new();
    machine.card("0000:04:00.0", "mlx5_core", "enp4s0", None);
    let said = machine.done(&["bind", "enp4s0"]);
    assert!(said.contains("stays with mlx5_core"), "{said}");
    assert_eq!(machine.driver("0000:04:00.0"), "mlx5_core");
    assert!(!machine.root.join("run/nic").exists());
}

#[test]
fn a_device_that_vfio_refuses_goes_back() {
    let machine = usual();
    machine.write(&format!("sys/bus/pci/devices/{PF}/broken"), "");
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/nic"))
        .args(["bind", PF])
        .env("EVENKEEL_SYSFS", machine.root.join("sys"))
        .env("EVENKEEL_NIC_STATE", machine.root.join("run/nic"))
        .env("EVENKEEL_NIC_PATIENCE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("vfio-pci does not take it (dmesg says why); back to ixgbe"),
        "{said}"
    );
    assert_eq!(machine.driver(PF), "ixgbe");
    assert!(!machine.root.join("run/nic").exists());
}

#[test]
fn what_is_no_card_is_named() {
    let machine = usual();
    machine.write("sys/bus/pci/devices/0000:06:00.0/class", "0x010601\n");
    assert!(
        machine
            .refused(&["bind", "enp9s9"])
            .contains("there is no PCI network card 'enp9s9'")
    );
    assert!(
        machine
            .refused(&["bind", "0000:06:00.0"])
            .contains("is no network card")
    );
    assert_eq!(machine.nic(&["frobnicate"]).status.code(), Some(2));
    assert_eq!(machine.nic(&["create", PF]).status.code(), Some(2));
}
