//! `evenkeel vips`, `drain`, `undrain` and `ready`: who answers for the VIPs, and whether this evenkeel
//! wants traffic.

use clap::Args;
use hyper::Method as Http;

use super::query::encode;
use super::table::Table;
use super::{CliError, Shared, client, print, print_json};
use crate::mgmt::api::{Drain, Ready, VipStatus};

#[derive(Debug, Args)]
pub struct ReadyArgs {
    /// A service that must have its quorum too
    pub service: Option<String>,
}

pub fn vips(shared: &Shared) -> Result<(), CliError> {
    let vips: Vec<VipStatus> = client::block_on(client::get(&shared.socket, "/v1/vips"))?;
    match shared.json {
        true => print_json(&vips),
        false => print(&render(&vips)),
    }
}

pub(super) fn render(vips: &[VipStatus]) -> String {
    let mut table = Table::new(&["VIP", "ARP", "InLinux", "Route", "Quorum", "Services"]);
    let word = |is: bool| if is { "yes" } else { "-" };
    for vip in vips {
        table.row(vec![
            vip.address.clone(),
            word(vip.answered).to_owned(),
            word(vip.held).to_owned(),
            word(vip.announced).to_owned(),
            if vip.quorum { "met" } else { "lost" }.to_owned(),
            vip.services.join(" "),
        ]);
    }
    table.render()
}

pub fn drain(drain: bool, shared: &Shared) -> Result<(), CliError> {
    let body = serde_json::to_string(&Drain { drain }).map_err(CliError::Json)?;
    let path = "/v1/drain";
    let drained: Drain = client::block_on(client::change(&shared.socket, Http::PUT, path, body))?;
    match (shared.json, drained.drain) {
        (true, _) => print_json(&drained),
        (_, true) => print("drained; VIPs are withdrawn\n"),
        (_, false) => print("not drained\n"),
    }
}

/// Exit status 1 says no, and a line says why.
pub fn ready(args: &ReadyArgs, shared: &Shared) -> Result<(), CliError> {
    let path = match &args.service {
        Some(service) => format!("/v1/ready?service={}", encode(service)),
        None => "/v1/ready".to_owned(),
    };
    let ready: Ready = client::block_on(client::get(&shared.socket, &path))?;
    match shared.json {
        true => print_json(&ready),
        false => print("ready\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vip_has_a_line_that_says_who_answers() {
        let by_arp = VipStatus {
            address: "192.0.2.80".into(),
            services: vec!["web".into(), "secure".into()],
            advertise: "kernel".into(),
            answered: true,
            held: true,
            quorum: true,
            announced: false,
        };
        let by_route = VipStatus {
            address: "198.51.100.0/24".into(),
            services: vec!["dns".into()],
            advertise: "kernel".into(),
            announced: true,
            ..VipStatus::default()
        };
        let expected = "\
VIP             ARP InLinux Route Quorum Services
192.0.2.80      yes yes     -     met    web secure
198.51.100.0/24 -   -       yes   lost   dns
";
        assert_eq!(render(&[by_arp, by_route]), expected);
    }
}
