//! Downloads that run while a test does something to the appliance: real curl, and nginx that sends
//! slowly, so that every one of them is in the middle of its answer for as long as the test needs.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::Lab;
use super::balancer::Service;
use super::process::{PATIENCE, Running};
use super::web::SLOW;

/// What curl takes at most.
const MOST: usize = 300;

pub struct Downloads {
    curls: Vec<(Running, PathBuf)>,
    count: usize,
    bytes: usize,
    seconds: u64,
    original: PathBuf,
}

impl Downloads {
    /// Begins `count` downloads from each of the services, which take `seconds` each.
    pub fn begin(lab: &Lab, services: &[Service], count: usize, seconds: u64) -> Downloads {
        assert!(count <= MOST);
        let bytes = SLOW * seconds as usize;
        let begin = |service: &Service| {
            let folder = lab.folder().join(format!("slow-{}", service.name()));
            fs::create_dir_all(&folder).expect("a folder for the copies");
            let url = format!("http://{}/slow?[1-{count}]", service.address());
            let pattern = format!("{}/#1", folder.display());
            let (range, most) = (format!("0-{}", bytes - 1), MOST.to_string());
            let patience = PATIENCE.as_secs().to_string();
            let words = [
                &["-sS", "--fail", "--parallel", "--parallel-immediate"][..],
                &["--parallel-max", &most, "--range", &range],
                &["--connect-timeout", &patience, "--speed-limit", "1"],
                &["--speed-time", &patience, "--output", &pattern, &url],
            ];
            let log = folder.join("log");
            (lab.client.start("curl", &words.concat(), log), folder)
        };
        Downloads {
            curls: services.iter().map(begin).collect(),
            count,
            bytes,
            seconds,
            original: lab.folder().join("large"),
        }
    }

    /// None has failed, and none has ended.
    pub fn assert_running(&mut self) {
        for (curl, _) in &mut self.curls {
            curl.assert_running();
        }
    }

    /// Waits for their end and compares every copy with the original.
    pub fn assert_whole(self) {
        let original = fs::read(&self.original).expect("the large file");
        let deadline = Instant::now() + Duration::from_secs(self.seconds) + 2 * PATIENCE;
        for (mut curl, folder) in self.curls {
            let status = loop {
                if let Some(status) = curl.exited() {
                    break status;
                }
                assert!(Instant::now() < deadline, "{}", curl.log());
                thread::sleep(Duration::from_millis(50));
            };
            assert!(status.success(), "{status}: {}", curl.log());
            for number in 1..=self.count {
                let copy = fs::read(folder.join(number.to_string())).expect("a copy");
                let is_whole = copy == original[..self.bytes];
                assert!(is_whole, "copy {number}: {} bytes", copy.len());
            }
        }
    }
}
