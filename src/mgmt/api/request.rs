//! What the interface asks of the management loop. The loop owns all state, takes one request after
//! another and answers each; an answer nobody waits for any more is dropped.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::change::{Applied, Edit, Replace, etag};
use super::problem::Problem;
use super::view::{Connections, ServiceStatus, Status};
use crate::mgmt::config::Config;
use crate::mgmt::events::Feed;
use crate::mgmt::faults::Fault;
use crate::mgmt::metrics::Families;

/// One question with the way back for its answer.
#[derive(Debug)]
pub enum Request {
    Status(oneshot::Sender<Status>),
    /// All metrics, as they are now.
    Metrics(oneshot::Sender<Families>),
    Connections {
        filter: ConnectionFilter,
        reply: oneshot::Sender<Connections>,
    },
    /// The events after the one of this number, if it is given, and all that come.
    Events {
        after: Option<u64>,
        reply: oneshot::Sender<Feed>,
    },
    /// The configuration in use.
    Config(oneshot::Sender<Arc<Config>>),
    /// Another configuration; see [`super::decide`].
    Replace(Replace),
    /// Where faults may be asked for.
    Fault {
        fault: Fault,
        reply: oneshot::Sender<()>,
    },
}

/// Which connections are wanted; what is `None` does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConnectionFilter {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub client: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// At most so many.
    #[serde(default = "default_limit")]
    pub limit: usize,
}

fn default_limit() -> usize {
    1000
}

impl Default for ConnectionFilter {
    fn default() -> Self {
        ConnectionFilter {
            service: None,
            backend: None,
            client: None,
            state: None,
            limit: default_limit(),
        }
    }
}

/// Asks the management loop.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
}

/// How long a request waits for the loop, which answers within a moment unless it is stuck.
const PATIENCE: Duration = Duration::from_secs(5);

impl Handle {
    /// A handle and the end that the management loop reads.
    pub fn new() -> (Handle, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(16);
        (Handle { requests }, receiver)
    }

    pub async fn status(&self) -> Result<Status, Problem> {
        self.ask(Request::Status).await
    }

    pub async fn metrics(&self) -> Result<Families, Problem> {
        self.ask(Request::Metrics).await
    }

    pub async fn service(&self, name: &str) -> Result<ServiceStatus, Problem> {
        let status = self.status().await?;
        let found = status
            .services
            .into_iter()
            .find(|service| service.name == name);
        found.ok_or_else(|| Problem::no_service(name))
    }

    pub async fn connections(&self, filter: ConnectionFilter) -> Result<Connections, Problem> {
        self.ask(|reply| Request::Connections { filter, reply })
            .await
    }

    pub async fn events(&self, after: Option<u64>) -> Result<Feed, Problem> {
        self.ask(|reply| Request::Events { after, reply }).await
    }

    pub async fn config(&self) -> Result<Arc<Config>, Problem> {
        self.ask(Request::Config).await
    }

    /// Puts another configuration in the place of the one in use.
    pub async fn replace(
        &self,
        config: Config,
        if_match: Option<String>,
        dry_run: bool,
    ) -> Result<Applied, Problem> {
        let config = Box::new(config);
        self.ask(|reply| {
            Request::Replace(Replace {
                config,
                if_match,
                dry_run,
                reply,
            })
        })
        .await?
    }

    /// Changes a part of the configuration. Without `if_match` a change that another one overtook
    /// is made again on top of that one.
    pub async fn edit(
        &self,
        edit: &Edit,
        if_match: Option<String>,
        dry_run: bool,
    ) -> Result<Applied, Problem> {
        loop {
            let current = self.config().await?;
            let edited = edit.apply(&current)?;
            let wanted = if_match.clone().unwrap_or_else(|| etag(&current));
            match self.replace(edited, Some(wanted), dry_run).await {
                Err(problem) if problem.is_overtaken() && if_match.is_none() => {}
                result => return result,
            }
        }
    }

    pub async fn fail(&self, fault: Fault) -> Result<(), Problem> {
        self.ask(|reply| Request::Fault { fault, reply }).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Problem> {
        let (sender, answer) = oneshot::channel();
        let exchange = async {
            let sent = self.requests.send(request(sender)).await;
            sent.map_err(|_| Problem::ending())?;
            answer.await.map_err(|_| Problem::fault())
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(answered) => answered,
            Err(_) => Err(Problem::busy(PATIENCE)),
        }
    }
}
