//! `evenkeel connections`: what is tracked, with filters.

use clap::Args;

use super::query::query;
use super::table::{Table, duration};
use super::{CliError, Shared, client, print, print_json};
use crate::lb::conn::State;
use crate::mgmt::api::{Clients, ConnectionFilter, Connections};
use crate::mgmt::status::state_name;

#[derive(Debug, Args)]
pub struct ConnectionsArgs {
    /// Only of this service
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Only of backends of this name
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
    /// Only of this client, or of these: 198.51.100.7 or 198.51.100.0/24
    #[arg(long, value_name = "CLIENTS")]
    pub client: Option<Clients>,
    /// Only in this state: established, syn_recv, fin_wait, udp, ...
    #[arg(long, value_parser = state)]
    pub state: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 1000)]
    pub limit: usize,
}

fn state(text: &str) -> Result<String, String> {
    let known = State::ALL.map(state_name);
    match known.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(format!("use one of {}", known[1..].join(", "))),
    }
}

pub fn run(args: &ConnectionsArgs, shared: &Shared) -> Result<(), CliError> {
    let filter = ConnectionFilter {
        service: args.service.clone(),
        backend: args.backend.clone(),
        client: args.client,
        state: args.state.clone(),
        limit: args.limit,
    };
    let path = path(&filter);
    let found: Connections = client::block_on(client::get(&shared.socket, &path))?;
    if shared.json {
        print_json(&found)
    } else {
        print(&render(&found))
    }
}

/// The request's path and query.
pub(super) fn path(filter: &ConnectionFilter) -> String {
    let pairs = [
        ("service", filter.service.clone()),
        ("backend", filter.backend.clone()),
        ("client", filter.client.map(|client| client.to_string())),
        ("state", filter.state.clone()),
        ("limit", Some(filter.limit.to_string())),
    ];
    query("/v1/connections", pairs)
}

pub(super) fn render(found: &Connections) -> String {
    let mut table = Table::new(&[
        "Prot", " Expires", "State", "Client", "Virtual", "Backend", "Name",
    ]);
    for connection in &found.connections {
        table.row(vec![
            connection.protocol.to_uppercase(),
            duration(connection.expires.into()),
            connection.state.clone(),
            connection.client.clone(),
            connection.virtual_address.clone(),
            connection.backend_address.clone(),
            connection.backend.clone(),
        ]);
    }
    let mut text = table.render();
    if found.more {
        text += &format!(
            "... and more; raise --limit above {}\n",
            found.connections.len()
        );
    }
    text
}
