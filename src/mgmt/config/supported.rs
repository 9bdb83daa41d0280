//! What the configuration can say and the program cannot do yet. Whoever builds a feature removes
//! its lines from [`NOT_YET`]; nothing else in this module's neighbours changes. Pure.

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
}

use Missing::Key;

/// Everything that is refused today.
pub const NOT_YET: &[Missing] = &[Key("management.advertise")];

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
}
