//! A made-up sysfs with cards in it, `ip` and `modprobe` of its own, and the thread that stands in
//! for the kernel.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The card whose functions the kernel makes.
pub const PF: &str = "0000:03:00.0";

/// A machine: sysfs, `ip` and `modprobe` of its own, and the kernel behind them.
pub struct Machine {
    pub root: PathBuf,
    stop: Arc<AtomicBool>,
    kernel: Option<JoinHandle<()>>,
}

impl Machine {
    pub fn new() -> Self {
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
    pub fn card(&self, address: &str, driver: &str, interface: &str, group: Option<u32>) {
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

    pub fn sriov(&self, address: &str, most: u32) {
        let device = format!("sys/bus/pci/devices/{address}");
        self.write(&format!("{device}/sriov_totalvfs"), &format!("{most}\n"));
        self.write(&format!("{device}/sriov_numvfs"), "0\n");
    }

    /// Starts the kernel.
    pub fn boot(mut self) -> Self {
        let (root, stop) = (self.root.clone(), self.stop.clone());
        self.kernel = Some(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                Kernel(&root).look();
                thread::sleep(Duration::from_millis(2));
            }
        }));
        self
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_default()
    }

    pub fn link(&self, path: &str, to: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(self.root.join(to), path).unwrap();
    }

    pub fn program(&self, name: &str, body: &str) {
        self.write(&format!("bin/{name}"), &format!("#!/bin/sh\n{body}\n"));
        let path = self.root.join("bin").join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn driver(&self, address: &str) -> String {
        Kernel(&self.root).driver(address).unwrap_or_default()
    }

    pub fn nic(&self, words: &[&str]) -> Output {
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

    pub fn done(&self, words: &[&str]) -> String {
        let output = self.nic(words);
        assert!(output.status.success(), "nic {words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it says on refusing.
    pub fn refused(&self, words: &[&str]) -> String {
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
