//! UDP: a datagram out, and what must come back.

use super::Failure;
use crate::mgmt::health::route::Route;
use crate::mgmt::health::stack::{Datagram, Protocol, Stack};
use std::time::{Duration, Instant};

/// One datagram and the answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UdpProbe {
    /// What is sent.
    pub payload: Vec<u8>,
    /// What an answer must begin with. Without it silence is good too, and only an ICMP error
    /// (nobody listens) is bad: then each check lasts its whole timeout.
    pub expect: Option<Vec<u8>>,
}

impl UdpProbe {
    pub(super) async fn ask(
        &self,
        stack: &Stack,
        route: Route,
        timeout: Duration,
    ) -> Result<(String, Option<Instant>), Failure> {
        let mut socket = Datagram::open(stack, Protocol::Udp, route)?;
        socket.send(&self.payload);
        let Some(expected) = &self.expect else {
            // Ends before the check's own timeout does, which would be a failure.
            let patience = timeout - timeout / 20;
            return match tokio::time::timeout(patience, socket.receive()).await {
                Ok(received) => {
                    let payload = received.payload.map_err(Failure::answer)?;
                    Ok((answered(&payload), Some(received.stamp)))
                }
                Err(_) => Ok(("no error".into(), None)),
            };
        };
        let received = socket.receive().await;
        let payload = received.payload.map_err(Failure::answer)?;
        if payload.starts_with(expected) {
            Ok((answered(&payload), Some(received.stamp)))
        } else {
            let text = answered(&payload);
            Err(Failure::Answer(format!(
                "{text}, but not the expected ones"
            )))
        }
    }
}

fn answered(payload: &[u8]) -> String {
    format!("{} bytes received", payload.len())
}
