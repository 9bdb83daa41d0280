//! Reads a keepalived.conf: its virtual servers and their groups. What else it holds is listed as
//! having no equivalent.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use super::tree::{self, Statement};
use super::virtual_server;
use super::{Import, ImportError, Reason, Word, address, number};
use crate::mgmt::config::{Ports, Prefix};

/// Addresses and ports of a virtual server; their protocol stands elsewhere.
pub(super) type Endpoints = Vec<(Prefix, Ports)>;

pub fn import(path: &Path) -> Result<Import, ImportError> {
    let statements = tree::read(path)?;
    let mut import = Import::default();
    let mut groups: HashMap<String, Endpoints> = HashMap::new();
    // A group may stand behind the server that uses it.
    for statement in statements
        .iter()
        .filter(|s| s.keyword() == "virtual_server_group")
    {
        let name = statement.text()?.to_owned();
        let endpoints = group(statement, &mut import)?;
        if groups.insert(name.clone(), endpoints).is_some() {
            return Err(Reason::Twice(format!("virtual_server_group {name}")).at(statement.place()));
        }
    }
    for statement in &statements {
        match statement.keyword() {
            "virtual_server_group" => {}
            "virtual_server" => {
                if let Some(endpoints) = endpoints(statement, &groups, &mut import)? {
                    virtual_server::import(statement, endpoints, &mut import)?;
                }
            }
            other => import.note(statement.place(), no_equivalent(other)),
        }
    }
    Ok(import)
}

fn no_equivalent(keyword: &str) -> String {
    match keyword {
        "vrrp_instance" | "vrrp_sync_group" | "vrrp_script" | "vrrp_track_process" => {
            format!(
                "{keyword}: VRRP has no equivalent; announce the VIPs by BGP, or keep keepalived for VRRP alone"
            )
        }
        "global_defs" => {
            "global_defs: these settings are keepalived's own; the log and hooks have keys here"
                .to_owned()
        }
        other => format!("{other} has no equivalent; it is left out"),
    }
}

/// `IP PORT`, `group NAME` or `fwmark N`; nothing where there is no equivalent.
fn endpoints(
    statement: &Statement,
    groups: &HashMap<String, Endpoints>,
    import: &mut Import,
) -> Result<Option<Endpoints>, ImportError> {
    let place = statement.place();
    let first = statement.value()?;
    match first.text.as_str() {
        "group" => {
            let missing = || Reason::Missing("the group's name").at(place);
            let name = statement.parameter(1).ok_or_else(missing)?;
            let found = groups
                .get(&name.text)
                .ok_or_else(|| Reason::NoGroup(name.text.clone()).at(&name.place))?;
            Ok(Some(found.clone()).filter(|endpoints| !endpoints.is_empty()))
        }
        "fwmark" => {
            import.note(place, "a virtual server by firewall mark has no equivalent; write a service that listens on the addresses and ports themselves");
            Ok(None)
        }
        _ => {
            let ports = ports(statement.parameter(1))?;
            Ok(Some(vec![(Prefix::host(first.address()?), ports)]))
        }
    }
}

/// A port or a range of them; none, or 0, is all.
fn ports(word: Option<&Word>) -> Result<Ports, ImportError> {
    let Some(word) = word else {
        return Ok(Ports::ALL);
    };
    let (text, place) = (word.text.as_str(), &word.place);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number::<u16>(first, place)?, number::<u16>(last, place)?);
    if first > last {
        return Err(word.not_a("a range of ports"));
    }
    Ok(if last == 0 {
        Ports::ALL
    } else {
        Ports {
            first: first.max(1),
            last,
        }
    })
}

/// The lines of a virtual_server_group: `IP PORT` or `IP-LAST PORT`.
fn group(statement: &Statement, import: &mut Import) -> Result<Endpoints, ImportError> {
    let mut endpoints = Vec::new();
    for line in &statement.block {
        if line.keyword() == "fwmark" {
            import.note(
                line.place(),
                "a firewall mark has no equivalent; write the addresses and ports themselves",
            );
            continue;
        }
        let ports = ports(line.parameter(0))?;
        for vip in addresses(&line.keyword)? {
            endpoints.push((Prefix::host(vip), ports));
        }
    }
    Ok(endpoints)
}

/// `192.0.2.10`, or `192.0.2.10-20`: a range in the last part of the address.
fn addresses(word: &Word) -> Result<Vec<IpAddr>, ImportError> {
    let Some((first, last)) = word.text.split_once('-') else {
        return Ok(vec![word.address()?]);
    };
    let not_a = || word.not_a("a range of addresses");
    match address(first, &word.place)? {
        IpAddr::V4(v4) => {
            let [a, b, c, low] = v4.octets();
            let high: u8 = last.parse().map_err(|_| not_a())?;
            if low > high {
                return Err(not_a());
            }
            Ok((low..=high).map(|d| IpAddr::from([a, b, c, d])).collect())
        }
        IpAddr::V6(v6) => {
            let high = u16::from_str_radix(last, 16).map_err(|_| not_a())?;
            let [head @ .., low] = v6.segments();
            // A group of more than a few hundred addresses is a prefix, or a slip.
            if low > high || high - low > 255 {
                return Err(not_a());
            }
            let [a, b, c, d, e, f, g] = head;
            Ok((low..=high)
                .map(|h| IpAddr::from([a, b, c, d, e, f, g, h]))
                .collect())
        }
    }
}
