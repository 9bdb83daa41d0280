//! The engine and `NetState` joined to a TAP device, as the management thread joins them to rings.

use super::host::{CHECK, CHECK6, Host, OUTSIDE, PORT, PORT6};
use crate::lab::process::PATIENCE;
use evenkeel::mgmt::health::{HealthEngine, Outgoing, Transition};
use evenkeel::mgmt::net::{Mac, NetEvent, NetState, Output, PortConfig, prefix};
use std::sync::Arc;
use std::thread;
use std::time::Instant;
use tokio::sync::mpsc;
use tun_rs::SyncDevice;

const MAC: [u8; 6] = [0x02, 0x65, 0x6b, 0, 0, 1];
const ETHERNET_HEADER: usize = 14;

pub struct Wire {
    pub engine: HealthEngine,
    transitions: mpsc::UnboundedReceiver<Transition>,
    events: mpsc::UnboundedReceiver<NetEvent>,
}

impl Wire {
    /// Joins them on the current runtime until it ends.
    pub fn new(host: &Host) -> Self {
        let (out, outgoing) = mpsc::channel(4096);
        let (sender, transitions) = mpsc::unbounded_channel();
        let (engine, mut runner) = HealthEngine::new(1500, out, sender);
        let (frames, received) = mpsc::channel(4096);
        let tap = Arc::clone(&host.tap);
        // Ends when the device goes with its namespace, or nobody listens.
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok(len) = tap.recv(&mut buffer) {
                let stamped = (buffer[..len].to_vec(), Instant::now());
                if frames.blocking_send(stamped).is_err() {
                    break;
                }
            }
        });
        tokio::spawn(async move { runner.run().await });
        let (happened, events) = mpsc::unbounded_channel();
        let tap = Arc::clone(&host.tap);
        let joined = join(tap, engine.clone(), received, outgoing, happened);
        tokio::spawn(joined);
        Self {
            engine,
            transitions,
            events,
        }
    }

    /// The next event that `wanted` picks; without one in good time the test ends.
    pub async fn event(&mut self, wanted: impl Fn(&NetEvent) -> bool) -> NetEvent {
        let look = async {
            while let Some(event) = self.events.recv().await {
                if wanted(&event) {
                    return Some(event);
                }
            }
            None
        };
        let event = tokio::time::timeout(PATIENCE, look).await.ok().flatten();
        event.expect("an event")
    }

    /// The next transition; without one in good time the test ends.
    pub async fn next(&mut self) -> Transition {
        let next = tokio::time::timeout(PATIENCE, self.transitions.recv()).await;
        match next {
            Ok(Some(transition)) => transition,
            _ => panic!("no transition; {:#?}", self.engine.reports()),
        }
    }
}

fn port() -> PortConfig {
    let address = |text: &str, length| prefix(text.parse().unwrap(), length).unwrap();
    PortConfig {
        index: 0,
        name: "lab".into(),
        mac: Mac::from_bytes(&MAC),
        addresses: vec![address(PORT, 24), address(PORT6, 64)],
        check_addresses: [CHECK, CHECK6, OUTSIDE].map(|a| a.parse().unwrap()).into(),
        gateways: Vec::new(),
        routes: Vec::new(),
        learned: Vec::new(),
        neighbours: Vec::new(),
        mtu: 1500,
        kernel_interface: false,
    }
}

async fn join(
    tap: Arc<SyncDevice>,
    engine: HealthEngine,
    mut received: mpsc::Receiver<(Vec<u8>, Instant)>,
    mut outgoing: mpsc::Receiver<Outgoing>,
    happened: mpsc::UnboundedSender<NetEvent>,
) {
    let mut out = Output::default();
    let mut net = NetState::new(vec![port()], Instant::now(), &mut out);
    loop {
        let due = net.poll(Instant::now(), &mut out);
        for (_, frame) in out.frames.drain(..) {
            // The device is gone once the test has ended.
            let _ = tap.send(&frame);
        }
        for event in out.events.drain(..) {
            // A test that looks only at checks has let go of the other end.
            let _ = happened.send(event);
        }
        let sleep = async {
            match due {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some((frame, stamp)) = received.recv() => {
                net.receive(0, &frame, stamp, &mut out);
                if let Some(packet) = frame.get(ETHERNET_HEADER..) {
                    engine.receive(packet, stamp);
                }
            }
            Some(sent) = outgoing.recv() => {
                let towards = sent.towards;
                let frame = Some(sent.into_frame());
                net.resolve(towards, frame, Instant::now(), &mut out);
            }
            () = sleep => {}
        }
    }
}
