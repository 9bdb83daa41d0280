//! Makes the packets of scripts/bench and checks what became of them; measures what a connection
//! takes in memory.
//!
//! The checks share no code with the balancer: they read bytes at fixed places and sum checksums
//! in full. Only who owns a flow is asked of the balancer, to split packets among workers.

mod check;
mod distance;
mod frame;
mod make;
mod memory;
mod pcap;

use std::path::Path;
use std::process::exit;

const USAGE: &str = "usage:
  bench-packets make KIND FAMILY FLOWS FILE
  bench-packets split FAMILY FLOWS WORKERS SHARE STEM
  bench-packets check METHOD KIND FAMILY FLOWS SENT RECEIVED
  bench-packets memory METHOD FAMILY CONNECTIONS
  bench-packets distance

KIND: udp (every flow once), tcp (open, data and close of every flow). FAMILY: ipv4, ipv6.
METHOD: direct-routing, tunnel, nat, fullnat. split writes STEM0, STEM1, ...: the udp frames that
each worker receives, of which SHARE (0 to 1) belong to another. distance takes the nanoseconds until
a line that one CPU has written is seen by the other, of the two that it may use (taskset).";

pub type Failure = Box<dyn std::error::Error>;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Err(failure) = run(&arguments) {
        eprintln!("bench-packets: {failure}");
        exit(1);
    }
}

fn run(arguments: &[String]) -> Result<(), Failure> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["make", kind, family, flows, file] => {
            let clients = make::clients(flows.parse()?);
            let frames = make::frames(kind, family, &clients)?;
            pcap::write(Path::new(file), frames)
        }
        ["split", family, flows, workers, share, stem] => make::split(
            family,
            flows.parse()?,
            workers.parse()?,
            share.parse()?,
            stem,
        ),
        ["check", method, kind, family, flows, sent, received] => {
            let found = check::check(method, kind, family, Path::new(sent), Path::new(received))?;
            let flows: usize = flows.parse()?;
            if found.flows != flows {
                return Err(format!("{} of {flows} flows came out", found.flows).into());
            }
            let counts: Vec<String> = found.backends.iter().map(usize::to_string).collect();
            println!(
                "{{\"frames\": {}, \"backends\": [{}]}}",
                found.frames,
                counts.join(", ")
            );
            Ok(())
        }
        ["memory", method, family, connections] => {
            println!("{}", memory::memory(method, family, connections.parse()?)?);
            Ok(())
        }
        ["distance"] => {
            println!("{:.0}", distance::between_cpus());
            Ok(())
        }
        _ => Err(USAGE.into()),
    }
}
