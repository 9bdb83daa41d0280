//! How long a Maglev table takes to build, with the release profile: fails when 65537 slots for 1,000
//! backends take more than the 2 ms that are promised. The paper's machine took 1.8 ms, and 22.9 ms
//! for 655373 (Eisenbud et al., NSDI 2016, section 5.3).

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Instant;

use balancer::lb::maglev::{Maglev, Member};

const BACKENDS: u32 = 1000;
/// Slots, milliseconds promised, and builds: the best of many is the machine's own time, however
/// busy it is with other work.
const SIZES: [(u32, f64, usize); 2] = [(65_537, 2.0, 200), (655_373, f64::INFINITY, 20)];

fn main() -> ExitCode {
    let member = |n| Member {
        address: Ipv4Addr::from_bits(0x0a00_0001 + n).into(),
        port: 80,
        weight: 1,
    };
    let members: Vec<Member> = (0..BACKENDS).map(member).collect();
    let mut is_kept = true;
    for (size, promised, builds) in SIZES {
        let mut times: Vec<f64> = (0..builds).map(|_| build(&members, size)).collect();
        times.sort_by(f64::total_cmp);
        let (best, median) = (times[0], times[builds / 2]);
        println!(
            "{size} slots, {BACKENDS} backends: best {best:.2} ms, median {median:.2} ms of {builds}"
        );
        if best > promised {
            println!("that is more than the {promised} ms that are promised");
            is_kept = false;
        }
    }
    match is_kept {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Milliseconds.
fn build(members: &[Member], size: u32) -> f64 {
    let start = Instant::now();
    let table = black_box(Maglev::build(black_box(members), size));
    let took = start.elapsed().as_secs_f64() * 1e3;
    assert_eq!(table.size(), size as usize);
    took
}
