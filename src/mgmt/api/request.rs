//! What the interface asks of the management loop. The loop owns all state, takes one request after
//! another and answers each; an answer nobody waits for any more is dropped.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::sync::{mpsc, oneshot};

use super::capture::CaptureRequest;
use super::change::{Applied, Edit, Replace, etag};
use super::problem::Problem;
use super::trace::{Trace, TraceRequest};
use super::view::{Connections, Drain, Ready, ServiceStatus, Status, VipStatus};
use crate::mgmt::capture::Pieces;
use crate::mgmt::config::{Config, Prefix};
use crate::mgmt::events::Feed;
use crate::mgmt::faults::Fault;
use crate::mgmt::impact::slots_moved;
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
    /// Packets from the data path, as pieces of a file.
    Capture {
        request: CaptureRequest,
        reply: oneshot::Sender<Result<Pieces, Problem>>,
    },
    /// What would become of a packet.
    Trace {
        request: TraceRequest,
        reply: oneshot::Sender<Result<Trace, Problem>>,
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
    /// Who answers for the VIPs.
    Vips(oneshot::Sender<Vec<VipStatus>>),
    /// Whether traffic is wanted, and for this service, if one is named.
    Ready {
        service: Option<String>,
        reply: oneshot::Sender<Result<Ready, Problem>>,
    },
    /// Withdraw the VIPs, or announce them again.
    Drain {
        drain: Drain,
        reply: oneshot::Sender<Drain>,
    },
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
    /// An address, or a prefix such as `198.51.100.0/24`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub client: Option<Clients>,
    /// As a listing shows it: `established`, `udp`, ...
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

/// A client's address, or a prefix of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clients(Prefix);

impl Clients {
    pub fn prefix(self) -> Prefix {
        self.0
    }

    pub fn contains(self, client: IpAddr) -> bool {
        self.0.contains(client)
    }
}

impl FromStr for Clients {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let alone = || text.parse().ok().map(Prefix::host);
        let prefix = text.parse().ok().or_else(alone);
        prefix.map(Clients).ok_or(
            "clients are an address such as 198.51.100.7 or a prefix such as 198.51.100.0/24",
        )
    }
}

impl fmt::Display for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_host() {
            true => self.0.address.fmt(f),
            false => self.0.fmt(f),
        }
    }
}

impl Serialize for Clients {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Clients {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
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

    pub async fn capture(&self, request: CaptureRequest) -> Result<Pieces, Problem> {
        self.ask(|reply| Request::Capture { request, reply })
            .await?
    }

    pub async fn trace(&self, request: TraceRequest) -> Result<Trace, Problem> {
        self.ask(|reply| Request::Trace { request, reply }).await?
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
        if dry_run {
            return self.foresee(config, if_match).await;
        }
        self.ask_to_replace(config, if_match, false).await
    }

    /// A dry run. Hash tables are built beside the management loop, which forwards no packet but
    /// checks and answers.
    async fn foresee(&self, new: Config, if_match: Option<String>) -> Result<Applied, Problem> {
        loop {
            let current = self.config().await?;
            let tag = etag(&current);
            let (old, other) = (Arc::clone(&current), new.clone());
            let slots = tokio::task::spawn_blocking(move || slots_moved(&old, &other));
            let slots = slots.await.map_err(|_| Problem::fault())?;
            let asked = self.ask_to_replace(new.clone(), if_match.clone(), true);
            let mut applied = asked.await?;
            if applied.etag != tag {
                // Overtaken by another change.
                continue;
            }
            for impact in &mut applied.impact {
                let share = slots.get(&impact.service);
                impact.slots_moved_percent = share.copied().unwrap_or(0.0);
            }
            return Ok(applied);
        }
    }

    async fn ask_to_replace(
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

    pub async fn vips(&self) -> Result<Vec<VipStatus>, Problem> {
        self.ask(Request::Vips).await
    }

    pub async fn ready(&self, service: Option<String>) -> Result<Ready, Problem> {
        self.ask(|reply| Request::Ready { service, reply }).await?
    }

    pub async fn drain(&self, drain: Drain) -> Result<Drain, Problem> {
        self.ask(|reply| Request::Drain { drain, reply }).await
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
