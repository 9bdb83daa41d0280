//! scripts/nic on a made-up sysfs, behind which a thread stands in for the kernel: it makes virtual
//! functions, lets drivers go and finds new ones as the kernel does. tests/sriov has the real one.

mod machine;

use std::fs;
use std::path::Path;
use std::process::Command;

use machine::{Machine, PF};

const VF0: &str = "0000:03:10.0";

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
