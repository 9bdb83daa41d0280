//! Captures: one at a time, from the request to the workers' taps and back.

use std::time::Instant;

use axum::http::StatusCode;

use super::Appliance;
use crate::lb::capture::{End, Filter};
use crate::lb::flow::protocol;
use crate::lb::route::Prefix;
use crate::mgmt::api::{CaptureRequest, Clients, Problem};
use crate::mgmt::capture::{Capture, Pieces};
use crate::worker::{Message, interface_of_id};

impl Appliance {
    /// Begins a capture, if none is under way.
    pub(super) fn capture(&mut self, request: &CaptureRequest) -> Result<Pieces, Problem> {
        if self.capture.is_some() {
            return Err(Problem::new(
                StatusCode::CONFLICT,
                "capture-runs",
                "A capture runs",
                "another capture is under way, and there is one at a time; end it or wait",
            ));
        }
        let filter = self.filter(request)?;
        let names = self.desired.ports().iter().map(|facts| facts.name.clone());
        let names: Vec<String> = names.collect();
        let made = Capture::new(request, &filter, self.workers.len(), &names, self.clock);
        let (capture, taps, pieces) = made.map_err(|error| {
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no-memory",
                "No memory",
                error.to_string(),
            )
        })?;
        for (worker, tap) in self.workers.iter_mut().zip(taps) {
            worker.send(Message::Capture(Some(Box::new(tap))));
        }
        tracing::info!("a capture begins: {request:?}");
        self.capture = Some(capture);
        Ok(pieces)
    }

    fn filter(&self, request: &CaptureRequest) -> Result<Filter, Problem> {
        let service = match &request.service {
            None => None,
            Some(name) => {
                let services = &self.desired.config.services;
                let found = services.iter().find(|service| service.name == *name);
                let id = found.and_then(|service| self.desired.find_service(service));
                Some(id.ok_or_else(|| Problem::no_service(name))?)
            }
        };
        let end = |addresses: Option<Clients>, port: Option<u16>| {
            let (addresses, port) = (addresses.map(Clients::prefix), port.unwrap_or(0));
            addresses.map(|prefix| End {
                addresses: Prefix::new(prefix.address, prefix.length),
                port,
            })
        };
        let ends = [
            end(request.client, request.client_port),
            end(request.server, request.server_port),
        ];
        Ok(Filter {
            protocol: request.protocol.as_ref().map(|name| match name.as_str() {
                "udp" => protocol::UDP,
                _ => protocol::TCP,
            }),
            ends: ends.into_iter().flatten().collect(),
            service,
            dropped: request.dropped,
        })
    }

    /// Takes what was captured, and ends the capture when it is over.
    pub(super) fn look_at_capture(&mut self, now: Instant) {
        let Some(capture) = &mut self.capture else {
            return;
        };
        let ports = &self.ports;
        let index_of = |arrival: u16| match interface_of_id(arrival) {
            Some(interface) => u32::from(interface),
            None => ports.index_of(arrival).unwrap_or(0) as u32,
        };
        if !capture.look(now, &self.current, index_of) {
            self.end_capture();
        }
    }

    pub(super) fn end_capture(&mut self) {
        let Some(capture) = self.capture.take() else {
            return;
        };
        for worker in &mut self.workers {
            worker.send(Message::Capture(None));
        }
        let sums = capture.finish();
        tracing::info!("the capture has ended: {sums:?}");
    }
}
