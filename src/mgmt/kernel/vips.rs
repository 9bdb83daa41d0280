//! Who answers for the VIPs: by ARP and neighbour discovery evenkeel, or nobody here while Linux does
//! not have the address; by routes a routing daemon, which finds those VIPs in a table of the kernel
//! that have a service with backends enough.
//!
//! Pure, on the management thread.

use std::collections::{BTreeMap, BTreeSet};

use super::Learned;
use crate::lb::route::Prefix;
use crate::mgmt::api::VipStatus;
use crate::mgmt::config::{Config, Listen, Service};
use crate::mgmt::net::NetState;

/// What is to stand in the table: each VIP with the port beside which its interface is.
pub type Announced = BTreeSet<(Prefix, u16)>;

/// The VIPs that are to be announced. A VIP whose services have lost their quorum leads nowhere, so
/// one that has it is enough.
pub fn announced(config: &Config, has_quorum: impl Fn(&Service) -> bool) -> Announced {
    let mut all = Announced::new();
    for service in &config.services {
        if has_quorum(service) {
            let ways = service.listen.iter().filter_map(|listen| {
                let prefix = prefix(listen);
                Some((prefix, beside(config, prefix)?))
            });
            all.extend(ways);
        }
    }
    all
}

/// The port that has an interface and is the VIP's by its subnet, or the first that has an interface.
fn beside(config: &Config, vip: Prefix) -> Option<u16> {
    let with = || {
        let ports = (0..).zip(&config.ports);
        ports.filter(|(_, port)| port.kernel_interface.is_some())
    };
    let holds = |(_, port): &(u16, &crate::mgmt::config::Port)| {
        port.addresses.iter().any(|own| own.contains(vip.address))
    };
    let found = with().find(holds).or_else(|| with().next());
    found.map(|(index, _)| index)
}

fn prefix(listen: &Listen) -> Prefix {
    Prefix::new(listen.addresses.address, listen.addresses.length)
}

/// How each VIP stands.
pub fn statuses(
    config: &Config,
    learned: &Learned,
    net: &NetState,
    has_quorum: impl Fn(&Service) -> bool,
) -> Vec<VipStatus> {
    let mut all: BTreeMap<Prefix, VipStatus> = BTreeMap::new();
    for service in &config.services {
        for listen in &service.listen {
            let prefix = prefix(listen);
            let vip = all.entry(prefix).or_insert_with(|| VipStatus {
                address: match listen.addresses.is_host() {
                    true => prefix.address.to_string(),
                    false => listen.addresses.network().to_string(),
                },
                advertise: service.advertise.name().into(),
                answered: net.answers_for(prefix.address),
                held: learned.addresses.contains(&prefix.address),
                announced: learned.announced.contains(&prefix),
                ..VipStatus::default()
            });
            vip.quorum |= has_quorum(service);
            if !vip.services.contains(&service.name) {
                vip.services.push(service.name.clone());
            }
        }
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mgmt::config;

    fn config() -> Config {
        config::parse(
            r#"
[[port]]
name = "a"
device = "net_null0"
addresses = "10.0.0.2/24"
[[port]]
name = "b"
device = "net_null1"
addresses = "10.1.0.2/24"
kernel_interface = "ek-b"
[[port]]
name = "c"
device = "net_null2"
addresses = "192.0.2.2/24"
kernel_interface = "ek-c"
[[service]]
name = "web"
listen = ["tcp:192.0.2.80:80", "tcp:203.0.113.0/28:80"]
method = "nat"
scheduler = "rr"
[[service]]
name = "secure"
listen = ["tcp:192.0.2.80:443", "tcp:10.0.0.80:443"]
method = "nat"
scheduler = "rr"
"#,
        )
        .unwrap()
    }

    fn text(announced: &Announced) -> Vec<String> {
        let text = |(prefix, port): &(Prefix, u16)| {
            format!("{}/{} by {port}", prefix.address, prefix.length)
        };
        announced.iter().map(text).collect()
    }

    #[test]
    fn a_vip_stands_beside_its_port_while_one_of_its_services_has_its_quorum() {
        let config = config();
        let all = announced(&config, |_| true);
        assert_eq!(
            text(&all),
            [
                "10.0.0.80/32 by 1",
                "192.0.2.80/32 by 2",
                "203.0.113.0/28 by 1"
            ]
        );
        let web = announced(&config, |service| service.name == "web");
        assert_eq!(text(&web), ["192.0.2.80/32 by 2", "203.0.113.0/28 by 1"]);
        assert_eq!(text(&announced(&config, |_| false)), [""; 0]);
    }
}
