//! Metric families as plain data, and their text in the two formats that Prometheus reads. Pure.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

/// Names and values of labels. Names are the same in all samples of a family.
pub type Labels = Vec<(&'static str, String)>;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    Count(u64),
    Number(f64),
}

/// One family. The name lacks the prefix `evenkeel_`, the unit, and a counter's `_total`: encoding
/// adds them.
#[derive(Debug)]
pub struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    samples: Vec<(Labels, Value)>,
}

impl Family {
    /// What only grows while the program runs.
    pub fn counter(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, MetricType::Counter)
    }

    /// What goes up and down.
    pub fn gauge(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, MetricType::Gauge)
    }

    fn new(name: &'static str, help: &'static str, kind: MetricType) -> Self {
        Self {
            name,
            help,
            unit: None,
            kind,
            samples: Vec::new(),
        }
    }

    pub fn unit(mut self, unit: Unit) -> Self {
        self.unit = Some(unit);
        self
    }

    pub fn samples(mut self, samples: impl IntoIterator<Item = (Labels, Value)>) -> Self {
        self.samples.extend(samples);
        self
    }

    fn encode_to(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let unit = self.unit.as_ref();
        let mut family = encoder.encode_descriptor(self.name, self.help, unit, self.kind)?;
        for (labels, value) in &self.samples {
            if labels.is_empty() {
                self.encode_value(&mut family, *value)?;
            } else {
                self.encode_value(&mut family.encode_family(labels)?, *value)?;
            }
        }
        Ok(())
    }

    fn encode_value(&self, encoder: &mut MetricEncoder<'_>, value: Value) -> fmt::Result {
        let no_exemplar = None::<&prometheus_client::metrics::exemplar::Exemplar<NoLabelSet, f64>>;
        match (self.kind, value) {
            (MetricType::Counter, Value::Count(value)) => {
                encoder.encode_counter(&value, no_exemplar)
            }
            (MetricType::Counter, Value::Number(value)) => {
                encoder.encode_counter(&value, no_exemplar)
            }
            (_, Value::Count(value)) => encoder.encode_gauge(&value),
            (_, Value::Number(value)) => encoder.encode_gauge(&value),
        }
    }
}

/// How the families are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus's older text format, 0.0.4.
    Prometheus,
}

impl Format {
    /// What an `Accept` header asks for: OpenMetrics, unless only plain text is wanted.
    pub fn for_accept(accept: &str) -> Self {
        let plain = accept.contains("text/plain") && !accept.contains("application/openmetrics");
        if plain {
            Format::Prometheus
        } else {
            Format::OpenMetrics
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// All families of one scrape.
#[derive(Debug, Default)]
pub struct Families(pub(super) Vec<Family>);

impl Families {
    pub fn encode(self, format: Format) -> String {
        let mut registry = Registry::with_prefix("evenkeel");
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        let encoded = match format {
            Format::OpenMetrics => text::encode(&mut out, &registry),
            Format::Prometheus => prometheus_text::encode(&mut out, &registry),
        };
        // Writing to a string cannot fail, and families have no other way to.
        debug_assert!(encoded.is_ok());
        out
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|family| family.encode_to(&mut encoder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families() -> Families {
        let labels = |name: &str| vec![("service", name.to_owned())];
        Families(vec![
            Family::counter("received", "What came")
                .unit(Unit::Bytes)
                .samples([
                    (labels("a\"b"), Value::Count(3)),
                    (labels("c"), Value::Number(0.5)),
                ]),
            Family::gauge("up", "Whether").samples([(Vec::new(), Value::Count(1))]),
        ])
    }

    #[test]
    fn openmetrics() {
        assert_eq!(
            families().encode(Format::OpenMetrics),
            "# HELP evenkeel_received_bytes What came\n\
             # TYPE evenkeel_received_bytes counter\n\
             # UNIT evenkeel_received_bytes bytes\n\
             evenkeel_received_bytes_total{service=\"a\\\"b\"} 3\n\
             evenkeel_received_bytes_total{service=\"c\"} 0.5\n\
             # HELP evenkeel_up Whether\n\
             # TYPE evenkeel_up gauge\n\
             evenkeel_up 1\n\
             # EOF\n"
        );
    }

    #[test]
    fn the_older_text_format() {
        assert_eq!(
            families().encode(Format::Prometheus),
            "# HELP evenkeel_received_bytes_total What came\n\
             # TYPE evenkeel_received_bytes_total counter\n\
             evenkeel_received_bytes_total{service=\"a\\\"b\"} 3\n\
             evenkeel_received_bytes_total{service=\"c\"} 0.5\n\
             # HELP evenkeel_up Whether\n\
             # TYPE evenkeel_up gauge\n\
             evenkeel_up 1\n"
        );
    }

    #[test]
    fn who_asks_gets_what_it_reads() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
        assert_eq!(Format::for_accept(prometheus), Format::OpenMetrics);
        assert_eq!(Format::for_accept("*/*"), Format::OpenMetrics);
        assert_eq!(Format::for_accept("text/plain"), Format::Prometheus);
    }
}
