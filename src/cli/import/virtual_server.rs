//! One keepalived virtual_server with its real servers becomes one service.

use std::time::Duration;

use super::checkers::{self, Defaults};
use super::ipvsadm::{Server, default_persistence};
use super::keepalived::Endpoints;
use super::tree::Statement;
use super::{Import, ImportError, Imported, Reason, Word, mask_length, service_name};
use crate::mgmt::config::{
    Health, Listen, Method, Persistence, Protocol, Quorum, Scheduler, Service, SorryServer,
    Untracked,
};

/// keepalived's, when a virtual server does not say: 6 minutes.
const PERSISTENCE: Duration = Duration::from_secs(360);

/// A virtual server while it is read.
struct Draft {
    service: Service,
    protocol: Protocol,
    persistence: Option<Persistence>,
    quorum: Quorum,
    has_quorum: bool,
    defaults: Defaults,
    servers: Vec<(Server, Statement)>,
    health: Option<Health>,
    /// Why nothing can come of it.
    skipped: bool,
}

pub fn import(
    statement: &Statement,
    endpoints: Endpoints,
    import: &mut Import,
) -> Result<(), ImportError> {
    let mut draft = Draft {
        service: Service::new(String::new(), Vec::new(), Method::Nat, Scheduler::Wlc),
        protocol: Protocol::Tcp,
        persistence: None,
        quorum: Quorum {
            backends: 1,
            hysteresis: 0,
        },
        has_quorum: false,
        defaults: Defaults::default(),
        servers: Vec::new(),
        health: None,
        skipped: false,
    };
    for line in &statement.block {
        option(&mut draft, line, import)?;
    }
    if draft.skipped {
        return Ok(());
    }
    let protocol = draft.protocol;
    let listens = endpoints.iter().map(|(addresses, ports)| Listen {
        protocol,
        addresses: *addresses,
        ports: *ports,
    });
    draft.service.listen = listens.collect();
    if let Some((addresses, ports)) = endpoints.first() {
        draft.service.name = service_name(protocol.name(), addresses, &ports.to_string());
    }
    finish(draft, statement, import)
}

fn finish(mut draft: Draft, statement: &Statement, import: &mut Import) -> Result<(), ImportError> {
    let method = draft.service.method;
    for (server, line) in std::mem::take(&mut draft.servers) {
        let mut notes = Vec::new();
        server.join(&mut draft.service, &mut notes, line.place())?;
        for note in notes {
            import.note(line.place(), note);
        }
        let check = checkers::of_real_server(&line, &draft.defaults, &draft.service, import)?;
        match (&draft.health, check) {
            (_, None) => {}
            (None, check) => draft.health = check,
            (Some(first), Some(check)) if *first == check => {}
            (Some(_), Some(_)) => import.note(
                line.place(),
                "this real server is checked in another way than the first of its service, which has one check for all; the first one's is used",
            ),
        }
    }
    if draft.service.backends.is_empty() {
        draft.service.method = method;
    }
    let Draft {
        mut service,
        persistence,
        quorum,
        has_quorum,
        health,
        ..
    } = draft;
    service.persistence = persistence;
    service.quorum = has_quorum.then_some(quorum);
    service.untracked = Untracked::default_for(service.scheduler);
    service.health = health;
    if import
        .services
        .iter()
        .any(|other| other.service.name == service.name)
    {
        let name = service
            .listen
            .first()
            .map(Listen::to_string)
            .unwrap_or_default();
        return Err(Reason::Twice(format!("virtual_server {name}")).at(statement.place()));
    }
    import.services.push(Imported {
        place: statement.place().clone(),
        service,
    });
    Ok(())
}

fn option(draft: &mut Draft, line: &Statement, import: &mut Import) -> Result<(), ImportError> {
    let place = line.place();
    let service = &mut draft.service;
    match line.keyword() {
        "lb_algo" | "lvs_sched" => {
            let name = line.text()?;
            match Scheduler::NAMES.iter().find(|(known, _)| *known == name) {
                Some((_, scheduler)) => service.scheduler = *scheduler,
                None => import.note(
                    place,
                    format!("the scheduler \"{name}\" has no equivalent; wlc stands in its place"),
                ),
            }
        }
        "lb_kind" | "lvs_method" => service.method = method(line)?,
        "protocol" => {
            match line.text()? {
                "TCP" => draft.protocol = Protocol::Tcp,
                "UDP" => draft.protocol = Protocol::Udp,
                other => {
                    import.note(place, format!("a virtual server of the protocol {other} has no equivalent; it is left out"));
                    draft.skipped = true;
                }
            }
        }
        "persistence_timeout" => {
            let seconds = line.parameter(0).map(Word::number).transpose()?;
            let timeout = seconds.map_or(PERSISTENCE, Duration::from_secs);
            draft
                .persistence
                .get_or_insert_with(default_persistence)
                .timeout = timeout;
        }
        "persistence_granularity" => {
            let length = mask_length(line.value()?)?;
            let persistence = draft.persistence.get_or_insert_with(default_persistence);
            if length <= 32 {
                persistence.prefix_v4 = length;
            }
            persistence.prefix_v6 = length;
        }
        "ops" => service.one_packet = true,
        "sh-port" | "mh-port" | "flag-2" => service.hash_port = true,
        "sh-fallback" | "mh-fallback" | "flag-1" => service.hash_fallback = true,
        "quorum" => (draft.quorum.backends, draft.has_quorum) = (line.value()?.number()?, true),
        "hysteresis" => draft.quorum.hysteresis = line.value()?.number()?,
        "inhibit_on_failure" => service.inhibit = true,
        "sorry_server" => service.sorry_server = Some(sorry_server(line)?),
        "sorry_server_lvs_method" => {
            let method = method(line)?;
            match &mut service.sorry_server {
                Some(sorry) => sorry.method = Some(method),
                None => import.note(place, "sorry_server_lvs_method stands above its sorry_server; the service's method is used"),
            }
        }
        "real_server" => {
            let server = real_server(line, service, import)?;
            draft.servers.push((server, line.clone()));
        }
        "ha_suspend" | "ip_family" => {}
        "alpha" => draft.defaults.start_down = true,
        "omega"
        | "hashed"
        | "sorry_server_inhibit"
        | "quorum_up"
        | "quorum_down"
        | "virtualhost"
        | "lvs_sched_flags" => {
            unusual(draft, line, import)?;
        }
        keyword if draft.defaults.takes(keyword) => draft.defaults.set(line)?,
        other => import.note(place, format!("{other} has no equivalent; it is left out")),
    }
    Ok(())
}

/// Keywords with half an equivalent.
fn unusual(draft: &mut Draft, line: &Statement, import: &mut Import) -> Result<(), ImportError> {
    let place = line.place();
    match line.keyword() {
        "quorum_up" | "quorum_down" => {
            let keyword = line.keyword();
            let script = line.text()?;
            import.note(place, format!("{keyword} \"{script}\": a service has one hook for every change; write on_change = [\"{script}\"] if the script can tell them apart"));
        }
        "virtualhost" => draft.defaults.host = Some(line.text()?.to_owned()),
        "sorry_server_inhibit" => import.note(place, "sorry_server_inhibit has no equivalent; the sorry server goes when the quorum is back"),
        "omega" => import.note(place, "omega has no equivalent; when evenkeel ends, its devices are closed and nothing is forwarded"),
        other => import.note(place, format!("{other} has no equivalent; it is left out")),
    }
    Ok(())
}

fn method(line: &Statement) -> Result<Method, ImportError> {
    let word = line.value()?;
    match word.text.as_str() {
        "NAT" => Ok(Method::Nat),
        "DR" => Ok(Method::DirectRouting),
        "TUN" => Ok(Method::Tunnel),
        _ => Err(word.not_a("NAT, DR or TUN")),
    }
}

fn sorry_server(line: &Statement) -> Result<SorryServer, ImportError> {
    let port: Option<u16> = line.parameter(1).map(Word::number).transpose()?;
    Ok(SorryServer {
        address: line.value()?.address()?,
        port: port.filter(|port| *port != 0),
        method: None,
    })
}

fn real_server(
    line: &Statement,
    service: &mut Service,
    import: &mut Import,
) -> Result<Server, ImportError> {
    let mut server = Server {
        address: line.value()?.address()?,
        port: line.parameter(1).map_or(Ok(0), Word::number)?,
        method: service.method,
        weight: 1,
        upper: 0,
        lower: 0,
    };
    for option in &line.block {
        let place = option.place();
        match option.keyword() {
            "weight" => server.weight = option.value()?.number()?,
            "lvs_method" => server.method = method(option)?,
            "uthreshold" => server.upper = option.value()?.number()?,
            "lthreshold" => server.lower = option.value()?.number()?,
            "inhibit_on_failure" => {
                if !service.inhibit {
                    import.note(place, "inhibit_on_failure is the whole service's here; it holds for its other real servers too");
                }
                service.inhibit = true;
            }
            "notify_up" | "notify_down" => {
                let (keyword, script) = (option.keyword(), option.text()?);
                import.note(place, format!("{keyword} \"{script}\": a service has one hook for every change; write on_change = [\"{script}\"] if the script can tell them apart"));
            }
            // The checks are read once all of the service's defaults are known.
            _ => {}
        }
    }
    Ok(server)
}

/// What a real server's block holds beside checks; used by the reader of checks.
pub(super) const SERVER_OPTIONS: &[&str] = &[
    "weight",
    "lvs_method",
    "uthreshold",
    "lthreshold",
    "inhibit_on_failure",
    "notify_up",
    "notify_down",
];
