//! What is observed of one backend in one interval, and which of it can be believed. Pure.

use std::time::Duration;

use super::agent::Advice;

/// Who observes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Source {
    /// The workers' counters.
    #[default]
    Workers,
    /// The health checks.
    Checks,
    /// An agent on the server that speaks HAProxy's agent-check text.
    Agent,
    /// A Prometheus node_exporter on the server.
    Exporter,
}

impl Source {
    pub fn name(self) -> &'static str {
        match self {
            Self::Workers => "worker counters",
            Self::Checks => "health check",
            Self::Agent => "agent",
            Self::Exporter => "exporter",
        }
    }
}

/// One observation; a source that has nothing to say leaves its fields empty.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Sample {
    pub source: Source,
    /// Live connections, as the workers count them.
    pub connections: Option<f64>,
    /// New connections a second, as the workers count them.
    pub rate: Option<f64>,
    /// Mean response time of the health checks.
    pub response: Option<Duration>,
    /// Shares in use, 0 to 1.
    pub cpu: Option<f64>,
    pub memory: Option<f64>,
    pub disk: Option<f64>,
    /// Processes that run or wait, for each processor; over 1 in a crowd.
    pub load: Option<f64>,
    pub advice: Option<Advice>,
}

/// More than any server can mean.
const MOST_RATE: f64 = 1e9;
const MOST_LOAD: f64 = 1e4;
const MOST_RESPONSE: Duration = Duration::from_secs(3600);

/// A source said something that cannot be.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("its {what} is {value}, which cannot be")]
pub struct Absurd {
    pub what: &'static str,
    pub value: f64,
}

impl Sample {
    /// Takes out what cannot be believed, and says what that was.
    pub fn believe(mut self) -> (Self, Option<Absurd>) {
        let mut absurd = None;
        let fields = [
            ("cpu", &mut self.cpu, 1.0),
            ("memory", &mut self.memory, 1.0),
            ("disk", &mut self.disk, 1.0),
            ("load", &mut self.load, MOST_LOAD),
            ("connections", &mut self.connections, MOST_RATE),
            ("connection rate", &mut self.rate, MOST_RATE),
        ];
        for (what, field, most) in fields {
            if let Some(value) = *field
                && !(0.0..=most).contains(&value)
            {
                *field = None;
                absurd = Some(Absurd { what, value });
            }
        }
        if let Some(response) = self.response.filter(|r| *r > MOST_RESPONSE) {
            self.response = None;
            absurd = Some(Absurd {
                what: "response time in seconds",
                value: response.as_secs_f64(),
            });
        }
        (self, absurd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_taken_out_and_named() {
        for bad in [f64::NAN, f64::INFINITY, -0.1, 1.5] {
            let sample = Sample {
                cpu: Some(bad),
                load: Some(3.0),
                ..Sample::default()
            };
            let (sample, absurd) = sample.believe();
            assert_eq!((sample.cpu, sample.load), (None, Some(3.0)));
            assert_eq!(absurd.map(|a| a.what), Some("cpu"));
        }
        let slow = Sample {
            response: Some(Duration::from_secs(7200)),
            ..Sample::default()
        };
        let (sample, absurd) = slow.believe();
        assert!(sample.response.is_none() && absurd.is_some());
    }
}
