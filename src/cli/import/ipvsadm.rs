//! Reads `ipvsadm -Sn`: one `-A` line per service and one `-a` line per real server.

use std::net::IpAddr;
use std::time::Duration;

use super::{
    Import, ImportError, Imported, Place, Reason, Word, address, mask_length, number, service_name,
};
use crate::mgmt::config::{
    Backend, Listen, Method, Persistence, Ports, Prefix, Protocol, Scheduler, Service,
};

/// Which service a line is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Listen(Listen),
    /// A firewall mark.
    Mark(String),
}

/// A line's options, in order, each with its value; one that takes none is its own.
type Options = Vec<(Word, Word)>;

pub fn import(name: &str, text: &str) -> Result<Import, ImportError> {
    let mut import = Import::default();
    let mut targets: Vec<Target> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let mut words = words(line, name, i + 1);
        let Some(command) = words.next().filter(|word| !word.text.starts_with('#')) else {
            continue;
        };
        let place = command.place;
        match command.text.as_str() {
            "-A" | "--add-service" => {
                let options = options(words)?;
                let target = target(&options, &place)?;
                if targets.contains(&target) {
                    return Err(Reason::Twice(target_name(&target)).at(&place));
                }
                add_service(&mut import, &target, &options, &place)?;
                targets.push(target);
            }
            "-a" | "--add-server" => {
                let options = options(words)?;
                let target = target(&options, &place)?;
                if !targets.contains(&target) {
                    return Err(Reason::NoService(target_name(&target)).at(&place));
                }
                add_server(&mut import, &target, &options, &place)?;
            }
            _ => return Err(Reason::NotARule(line.trim().to_owned()).at(&place)),
        }
    }
    Ok(import)
}

/// The words of a line, whose number is from 1.
fn words(line: &str, file: &str, number: usize) -> impl Iterator<Item = Word> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let begin = rest.trim_start();
        let end = begin.find(char::is_whitespace).unwrap_or(begin.len());
        let (text, behind) = begin.split_at(end);
        rest = behind;
        let before = &line[..line.len() - begin.len()];
        (!text.is_empty()).then(|| Word {
            text: text.to_owned(),
            place: Place {
                file: file.to_owned(),
                line: number,
                column: before.chars().count() + 1,
            },
        })
    })
}

/// Options that stand alone.
const FLAGS: &[&str] = &[
    "-g",
    "--gatewaying",
    "-i",
    "--ipip",
    "-m",
    "--masquerading",
    "-o",
    "--ops",
    "-6",
    "--ipv6",
    "ops",
    "--tun-nocsum",
    "--tun-csum",
    "--tun-remcsum",
];

fn options(mut words: impl Iterator<Item = Word>) -> Result<Options, ImportError> {
    let mut options = Vec::new();
    while let Some(word) = words.next() {
        if FLAGS.contains(&word.text.as_str()) {
            options.push((word.clone(), word));
            continue;
        }
        // Some versions save the persistence engine without dashes.
        if !word.text.starts_with('-') && word.text != "pe" {
            return Err(Reason::NotARule(word.text).at(&word.place));
        }
        if let Some((option, value)) = long_with_value(&word) {
            options.push((option, value));
            continue;
        }
        match words.next() {
            Some(value) => options.push((word, value)),
            None => return Err(Reason::NoValue(word.text).at(&word.place)),
        }
    }
    Ok(options)
}

/// `--option=value` in its two parts.
fn long_with_value(word: &Word) -> Option<(Word, Word)> {
    let (option, value) = word.text.split_once('=')?;
    let part = |text: &str, before: usize| Word {
        text: text.to_owned(),
        place: Place {
            column: word.place.column + before,
            ..word.place.clone()
        },
    };
    let before = option.chars().count() + 1;
    option
        .starts_with("--")
        .then(|| (part(option, 0), part(value, before)))
}

fn target(options: &Options, place: &Place) -> Result<Target, ImportError> {
    for (option, value) in options {
        let protocol = match option.text.as_str() {
            "-t" | "--tcp-service" => Protocol::Tcp,
            "-u" | "--udp-service" => Protocol::Udp,
            "--sctp-service" | "-f" | "--fwmark-service" => {
                return Ok(Target::Mark(value.text.clone()));
            }
            _ => continue,
        };
        let (vip, port) = endpoint(value)?;
        let ports = match port {
            0 => Ports::ALL,
            port => Ports {
                first: port,
                last: port,
            },
        };
        return Ok(Target::Listen(Listen {
            protocol,
            addresses: Prefix::host(vip),
            ports,
        }));
    }
    Err(Reason::Missing("a service (-t, -u or -f)").at(place))
}

fn target_name(target: &Target) -> String {
    match target {
        Target::Listen(listen) => listen.to_string(),
        Target::Mark(mark) => mark.clone(),
    }
}

/// `192.0.2.1:80` or `[2001:db8::1]:80`; without a port it is 0, which means all.
fn endpoint(word: &Word) -> Result<(IpAddr, u16), ImportError> {
    let (text, place) = (word.text.as_str(), &word.place);
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').unwrap_or((rest, ""));
            (host, port.strip_prefix(':'))
        }
        None => match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') => (host, Some(port)),
            _ => (text, None),
        },
    };
    let port = port.map_or(Ok(0), |port| number::<u16>(port, place))?;
    Ok((address(host, place)?, port))
}

fn add_service(
    import: &mut Import,
    target: &Target,
    options: &Options,
    place: &Place,
) -> Result<(), ImportError> {
    let Target::Listen(listen) = target else {
        import.note(place, "a service by firewall mark or of SCTP has no equivalent; write a service that listens on the addresses and ports themselves");
        return Ok(());
    };
    let name = service_name(
        listen.protocol.name(),
        &listen.addresses,
        &listen.ports.to_string(),
    );
    let mut service = Service::new(name, vec![*listen], Method::Nat, Scheduler::Wlc);
    let mut persistence: Option<Persistence> = None;
    for (option, value) in options {
        match option.text.as_str() {
            "-s" | "--scheduler" => match Scheduler::NAMES.iter().find(|(name, _)| *name == value.text) {
                Some((_, scheduler)) => service.scheduler = *scheduler,
                None => import.note(place, format!("the scheduler \"{}\" has no equivalent; wlc stands in its place", value.text)),
            },
            "-p" | "--persistent" => {
                let seconds: u64 = value.number()?;
                persistence.get_or_insert_with(default_persistence).timeout = Duration::from_secs(seconds);
            }
            "-M" | "--netmask" => {
                let length = mask_length(value)?;
                let persistence = persistence.get_or_insert_with(default_persistence);
                if listen.addresses.address.is_ipv4() {
                    persistence.prefix_v4 = length.min(32);
                } else {
                    persistence.prefix_v6 = length;
                }
            }
            "-b" | "--sched-flags" => scheduler_flags(import, &mut service, &value.text, place),
            "-o" | "--ops" | "ops" => service.one_packet = true,
            "--pe" | "pe" => import.note(place, format!("the persistence engine \"{}\" has no equivalent; clients are told apart by address", value.text)),
            "-t" | "--tcp-service" | "-u" | "--udp-service" | "-6" | "--ipv6" => {}
            other => import.note(place, format!("the option {other} has no equivalent; it is left out")),
        }
    }
    service.persistence = persistence;
    service.untracked = crate::mgmt::config::Untracked::default_for(service.scheduler);
    import.services.push(Imported {
        place: place.clone(),
        service,
    });
    Ok(())
}

/// ipvsadm's own defaults.
pub(super) fn default_persistence() -> Persistence {
    Persistence {
        timeout: Duration::from_secs(300),
        prefix_v4: 32,
        prefix_v6: 128,
        group: None,
    }
}

fn scheduler_flags(import: &mut Import, service: &mut Service, flags: &str, place: &Place) {
    for flag in flags.split(',') {
        match flag {
            "sh-port" | "mh-port" | "flag-2" => service.hash_port = true,
            "sh-fallback" | "mh-fallback" | "flag-1" => service.hash_fallback = true,
            _ => import.note(
                place,
                format!("the scheduler flag {flag} has no equivalent; it is left out"),
            ),
        }
    }
}

fn add_server(
    import: &mut Import,
    target: &Target,
    options: &Options,
    place: &Place,
) -> Result<(), ImportError> {
    let Target::Listen(listen) = target else {
        // The service has its note already.
        return Ok(());
    };
    let mut server: Option<(IpAddr, u16)> = None;
    let mut method = Method::DirectRouting;
    let (mut weight, mut upper, mut lower) = (1u64, 0u32, 0u32);
    for (option, value) in options {
        match option.text.as_str() {
            "-r" | "--real-server" => server = Some(endpoint(value)?),
            "-g" | "--gatewaying" => method = Method::DirectRouting,
            "-i" | "--ipip" => method = Method::Tunnel,
            "-m" | "--masquerading" => method = Method::Nat,
            "-w" | "--weight" => weight = value.number()?,
            "-x" | "--u-threshold" => upper = value.number()?,
            "-y" | "--l-threshold" => lower = value.number()?,
            "--tun-type" if value.text == "ipip" => {}
            "-t" | "--tcp-service" | "-u" | "--udp-service" | "-6" | "--ipv6" => {}
            other => import.note(
                place,
                format!("the option {other} has no equivalent; it is left out"),
            ),
        }
    }
    let (address, port) = server.ok_or_else(|| Reason::Missing("a real server (-r)").at(place))?;
    let server = Server {
        address,
        port,
        method,
        weight,
        upper,
        lower,
    };
    let Some(index) = import
        .services
        .iter()
        .position(|s| s.service.listen == [*listen])
    else {
        return Ok(());
    };
    let mut notes = Vec::new();
    let service = &mut import.services[index].service;
    server.join(service, &mut notes, place)?;
    for note in notes {
        import.note(place, note);
    }
    Ok(())
}

/// A real server as both tools describe it.
pub(super) struct Server {
    pub address: IpAddr,
    /// 0: the port the client addressed.
    pub port: u16,
    pub method: Method,
    pub weight: u64,
    /// 0: none.
    pub upper: u32,
    pub lower: u32,
}

impl Server {
    /// Adds the server to its service, whose method is that of its first server.
    pub fn join(
        self,
        service: &mut Service,
        notes: &mut Vec<String>,
        place: &Place,
    ) -> Result<(), ImportError> {
        let Server {
            address,
            port,
            method,
            weight,
            upper,
            lower,
        } = self;
        if service.backends.is_empty() {
            service.method = method;
        } else if service.method != method {
            let (is, other) = (method.name(), service.method.name());
            notes.push(format!("the real server {address} uses {is} and its service {other}, which a service has one of; it is left out, give it a service of its own"));
            return Ok(());
        }
        let translates = matches!(method, Method::Nat | Method::FullNat);
        let service_port = service
            .listen
            .first()
            .and_then(|listen| listen.ports.single());
        let port = Some(port).filter(|port| *port != 0 && Some(*port) != service_port);
        if port.is_some() && !translates {
            notes.push(format!(
                "{} cannot change the port of the real server {address}; it keeps the service's",
                method.name()
            ));
        }
        let port = port.filter(|_| translates && service_port.is_some());
        if service
            .backends
            .iter()
            .any(|b| b.address == address && b.port == port)
        {
            return Err(Reason::Twice(format!("the real server {address}")).at(place));
        }
        if weight > u64::from(u16::MAX) {
            notes.push(format!(
                "the weight {weight} is above the largest, 65535, which stands in its place"
            ));
        }
        if lower > 0 && (upper == 0 || lower > upper) {
            notes.push(format!(
                "the lower threshold {lower} has no upper one above it; it is left out"
            ));
        }
        let name = port.map_or_else(|| address.to_string(), |port| format!("{address}:{port}"));
        service.backends.push(Backend {
            name,
            address,
            port,
            weight: weight.min(u64::from(u16::MAX)) as u16,
            upper: Some(upper).filter(|upper| *upper > 0),
            lower: Some(lower).filter(|lower| *lower > 0 && *lower <= upper),
            drain: false,
        });
        Ok(())
    }
}
