//! Whether a service has enough backends, with hysteresis, so that one backend that comes and goes
//! does not switch a service between its backends and its sorry server. Pure.
//!
//! As keepalived has it: lost below quorum - hysteresis, met again from quorum + hysteresis on.

use super::config::Quorum;

/// What a service without a `quorum` needs: one backend.
pub const LEAST: Quorum = Quorum {
    backends: 1,
    hysteresis: 0,
};

/// Whether the quorum is met with `up` backends, where it was (`None`: not known yet) before.
pub fn is_met(quorum: &Quorum, before: Option<bool>, up: u32) -> bool {
    match before {
        None => up >= quorum.backends,
        Some(true) => up >= quorum.backends.saturating_sub(quorum.hysteresis),
        Some(false) => up >= quorum.backends.saturating_add(quorum.hysteresis),
    }
}

/// A service's quorum was lost or met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuorumChange {
    pub service: String,
    pub met: bool,
    pub up: u32,
    pub needed: u32,
    pub backends: usize,
    pub has_sorry_server: bool,
}

impl std::fmt::Display for QuorumChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            service,
            up,
            needed,
            backends,
            ..
        } = self;
        let (word, who) = match (self.met, self.has_sorry_server) {
            (true, true) => ("met", "; the backends answer again"),
            (true, false) => ("met", ""),
            (false, true) => ("lost", "; the sorry server answers"),
            (false, false) => ("lost", ""),
        };
        write!(
            f,
            "service {service}: quorum {word}: {up} of {backends} backends are up, {needed} needed{who}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The states after each count of backends that are up.
    fn run(quorum: Quorum, ups: &[u32]) -> String {
        let mut met = None;
        let mut step = |&up: &u32| {
            met = Some(is_met(&quorum, met, up));
            if met == Some(true) { 'm' } else { 'l' }
        };
        ups.iter().map(&mut step).collect()
    }

    #[test]
    fn without_hysteresis_the_count_decides() {
        let three = Quorum {
            backends: 3,
            hysteresis: 0,
        };
        assert_eq!(run(three, &[5, 3, 2, 3, 0, 2, 5]), "mmlmllm");
        assert_eq!(run(LEAST, &[1, 0, 1]), "mlm");
    }

    #[test]
    fn hysteresis_keeps_the_state_in_between() {
        let three = Quorum {
            backends: 3,
            hysteresis: 1,
        };
        // Lost below 2, met again from 4 on.
        assert_eq!(run(three.clone(), &[5, 3, 2, 1, 2, 3, 4, 3]), "mmmlllmm");
        assert_eq!(
            run(three.clone(), &[2, 3, 4]),
            "llm",
            "at first the quorum itself"
        );
        assert_eq!(run(three, &[3, 2]), "mm");
    }

    #[test]
    fn a_change_reads_well() {
        let change = QuorumChange {
            service: "web".into(),
            met: false,
            up: 1,
            needed: 2,
            backends: 3,
            has_sorry_server: true,
        };
        assert_eq!(
            change.to_string(),
            "service web: quorum lost: 1 of 3 backends are up, 2 needed; the sorry server answers"
        );
    }
}
