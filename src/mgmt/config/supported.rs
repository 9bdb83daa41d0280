//! What the configuration can say and the program cannot do yet. Whoever builds a feature removes
//! its lines from [`NOT_YET`]; nothing else in this module's neighbours changes. Pure.

use thiserror::Error;

/// Something that is understood, and refused because nothing stands behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// A key, by its path.
    Key(&'static str),
    /// One value of a key that names one of several things.
    #[allow(
        dead_code,
        reason = "every value is built today; the next one that is not goes here"
    )]
    Value(&'static str, &'static str),
    /// A combination.
    Rule(Rule),
}

/// A combination of keys that is refused. The text is `reason; fix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Rule {
    #[error("a service on several ports is not supported yet; listen on single ports")]
    PortRange,
    #[error("a service over an address prefix is not supported yet; listen on single addresses")]
    AddressPrefix,
}

use Missing::{Key, Rule as Combination};

/// Everything that is refused today.
pub const NOT_YET: &[Missing] = &[
    Key("management.metrics"),
    Key("management.advertise"),
    Key("port.check_address"),
    Key("port.vlan"),
    Key("port.kernel_interface"),
    Key("service.persistence"),
    Key("service.limits"),
    Key("service.tunnel_source"),
    Key("service.health"),
    Key("service.quorum"),
    Key("service.quorum_hysteresis"),
    Key("service.sorry_server"),
    Key("service.inhibit"),
    Key("service.on_change"),
    Key("service.feedback"),
    Key("service.slow_start"),
    Key("service.drain_timeout"),
    Combination(Rule::PortRange),
    Combination(Rule::AddressPrefix),
];

/// Answers from one list of missing things: [`NOT_YET`], or an empty one in tests that need the
/// whole shape.
#[derive(Debug, Clone, Copy)]
pub struct Supported(pub &'static [Missing]);

impl Supported {
    pub fn key(self, path: &str) -> bool {
        !self
            .0
            .iter()
            .any(|missing| matches!(missing, Key(key) if *key == path))
    }

    pub fn value(self, path: &str, name: &str) -> bool {
        let is = |missing: &Missing| matches!(missing, Missing::Value(key, value) if *key == path && *value == name);
        !self.0.iter().any(is)
    }

    pub fn rule(self, rule: Rule) -> bool {
        !self.0.contains(&Combination(rule))
    }
}
