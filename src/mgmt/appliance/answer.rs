//! Answers to requests that come from the interface, and reloads.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::Appliance;
use super::news::tracked;
use crate::lb::listing;
use crate::lb::trace::Question;
use crate::mgmt::api::{self, ConnectionFilter, Connections, Request, Trace, TraceRequest};
use crate::mgmt::config::{self, Backend, Change, Config, Service};
use crate::mgmt::events::{EventKind, Happening};
use crate::mgmt::faults;
use crate::mgmt::impact::flows_moved;
use crate::mgmt::metrics;
use crate::mgmt::trace::Tracing;
use crate::worker::Message;

/// A question for connections that is being answered, bucket by bucket, worker by worker.
pub(super) struct Listing {
    question: u64,
    worker: usize,
    filter: ConnectionFilter,
    found: Connections,
    reply: tokio::sync::oneshot::Sender<Connections>,
}

impl Appliance {
    /// Whoever asked may have gone; then the answer is for nobody.
    pub(super) fn answer(&mut self, request: Request) {
        match request {
            Request::Status(reply) => drop(reply.send(self.source().status())),
            Request::Metrics(reply) => drop(reply.send(metrics::collect(&self.source()))),
            Request::Config(reply) => {
                drop(reply.send(Arc::new(self.desired.config.clone())));
            }
            Request::Replace(replace) => {
                let decided = self.replace(
                    *replace.config,
                    replace.if_match.as_deref(),
                    replace.dry_run,
                );
                drop(replace.reply.send(decided));
            }
            Request::Events { after, reply } => drop(reply.send(self.events.follow(after))),
            Request::Vips(reply) => drop(reply.send(self.vips())),
            Request::Ready { service, reply } => {
                drop(reply.send(self.ready(service.as_deref())));
            }
            Request::Drain { drain, reply } => drop(reply.send(self.drain(drain))),
            Request::Fault { fault, reply } => {
                // Not before the answer has gone out.
                self.fault = Some((Instant::now() + faults::DELAY, fault));
                let _ = reply.send(());
            }
            Request::Capture { request, reply } => drop(reply.send(self.capture(&request))),
            Request::Trace { request, reply } => self.trace(&request, reply),
            Request::Connections { filter, reply } => {
                self.questions += 1;
                self.listings.push_back(Listing {
                    question: self.questions,
                    worker: 0,
                    filter,
                    found: Connections::default(),
                    reply,
                });
                if self.listings.len() == 1 {
                    self.ask_for_connections(0);
                }
            }
        }
    }

    /// Takes another configuration, if it may take the place of the one in use, and says so.
    pub(super) fn replace(
        &mut self,
        config: Config,
        if_match: Option<&str>,
        dry_run: bool,
    ) -> Result<api::Applied, api::Problem> {
        let mut applied = api::decide(&self.desired.config, &config, if_match, dry_run)?;
        if dry_run {
            let flows = |service: &Service, backend: &Backend| {
                let id = self.desired.find_backend(service, backend);
                id.map_or(0, |id| tracked(&self.workers, id))
            };
            applied.impact = flows_moved(&self.desired.config, &config, flows);
        }
        if !dry_run && !applied.diff.is_empty() {
            self.tell(changed(&applied.diff.changes));
            for warning in &applied.warnings {
                tracing::warn!("configuration: {warning}");
            }
            let before = self.before.take();
            let before = before.unwrap_or_else(|| Box::new(self.desired.config.clone()));
            self.before = Some(before);
            self.apply(config, Instant::now());
        }
        Ok(applied)
    }

    /// Reads the configuration's file again. A faulty one changes nothing.
    pub(super) fn reload(&mut self, path: &Path) {
        let refused = match config::load(path) {
            Err(error) => error.to_string().lines().collect::<Vec<_>>().join(" / "),
            Ok(config) => match self.replace(config, None, false) {
                Ok(applied) if applied.diff.is_empty() => {
                    let message = format!("reload of {}: nothing changes", path.display());
                    return self.tell(Happening::new(EventKind::Reload, message));
                }
                Ok(_) => return,
                Err(problem) => problem.detail,
            },
        };
        let message = format!("reload of {}: refused: {refused}", path.display());
        self.tell(Happening::new(EventKind::ReloadRefused, message));
    }

    /// Asks the owner of a packet's flow what it knows.
    fn trace(
        &mut self,
        request: &TraceRequest,
        reply: tokio::sync::oneshot::Sender<Result<Trace, api::Problem>>,
    ) {
        self.questions += 1;
        let begun = Tracing::begin(self.questions, request, &self.current, reply);
        if let Some((tracing, question)) = begun {
            self.tracings.push(tracing);
            self.traced(question);
        }
    }

    /// A worker has said what it knows: on to the next, or the answer.
    pub(super) fn traced(&mut self, question: Box<Question>) {
        let asks = |tracing: &Tracing| tracing.number == question.number;
        let Some(at) = self.tracings.iter().position(asks) else {
            return;
        };
        let next = question.next().map(usize::from);
        match next.and_then(|worker| self.workers.get_mut(worker)) {
            Some(worker) => worker.send(Message::Trace(question)),
            None => {
                let tracing = self.tracings.swap_remove(at);
                tracing.answer(&question, &self.source());
            }
        }
    }

    /// Asks the worker whose turn it is for its connections from a bucket on.
    pub(super) fn ask_for_connections(&mut self, from: usize) {
        if let Some(listing) = self.listings.front() {
            let request = Box::new(listing::Request::new(listing.question, from));
            self.workers[listing.worker].send(Message::List(request));
        }
    }

    /// A worker's connections came back: on to its next buckets, the next worker, or the answer.
    pub(super) fn list(&mut self, request: &listing::Request) {
        let front = self.listings.front();
        if front.is_none_or(|listing| listing.question != request.question) {
            return;
        }
        let Some(mut listing) = self.listings.pop_front() else {
            return;
        };
        let source = self.source();
        for listed in &request.connections {
            let worker = listing.worker as u16;
            let shown = source.connection(listed, worker, &listing.filter);
            if listing.found.connections.len() < listing.filter.limit {
                listing.found.connections.extend(shown);
            } else {
                listing.found.more |= shown.is_some();
            }
        }
        let next = match request.next {
            _ if listing.found.more => None,
            Some(bucket) => Some(bucket),
            None => {
                listing.worker += 1;
                (listing.worker < self.workers.len()).then_some(0)
            }
        };
        match next {
            Some(bucket) => {
                self.listings.push_front(listing);
                self.ask_for_connections(bucket);
            }
            None => {
                drop(listing.reply.send(listing.found));
                self.ask_for_connections(0);
            }
        }
    }
}

/// All changes in a line: the first few in words.
fn changed(changes: &[Change]) -> Happening {
    const NAMED: usize = 8;
    let mut words: Vec<String> = changes.iter().take(NAMED).map(Change::to_string).collect();
    if changes.len() > NAMED {
        words.push(format!("{} more", changes.len() - NAMED));
    }
    let message = format!("configuration changed: {}", words.join("; "));
    Happening::new(EventKind::Reload, message)
}
