//! When results of a check take a backend out of service, and bring it back.
//!
//! Pure: results in, changes out.

/// What a backend is taken for before its first results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    #[default]
    Up,
    Down,
    /// Down, but a first good result is enough (and a first bad one decides too).
    Unknown,
}

/// How many results in a row change the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Good results that bring a backend back; 0 is taken as 1.
    pub rise: u32,
    /// Bad results that take it out; 0 is taken as 1.
    pub fall: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unknown,
    Up,
    Down,
}

/// One backend's state under one check.
#[derive(Debug, Clone)]
pub struct Checker {
    thresholds: Thresholds,
    state: State,
    /// Results in a row that speak against `state`.
    against: u32,
}

impl Checker {
    #[must_use]
    pub fn new(start: Start, thresholds: Thresholds) -> Self {
        let state = match start {
            Start::Up => State::Up,
            Start::Down => State::Down,
            Start::Unknown => State::Unknown,
        };
        Self {
            thresholds,
            state,
            against: 0,
        }
    }

    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Other counts from now on; what has been counted so far stays.
    pub fn set_thresholds(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
    }

    /// Counts a result. Some(up) if it changes the state.
    pub fn record(&mut self, good: bool) -> Option<bool> {
        let needed = match self.state {
            State::Unknown => 1,
            State::Up if good => return self.confirm(),
            State::Down if !good => return self.confirm(),
            State::Up => self.thresholds.fall.max(1),
            State::Down => self.thresholds.rise.max(1),
        };
        self.against += 1;
        if self.against < needed {
            return None;
        }
        self.against = 0;
        self.state = if good { State::Up } else { State::Down };
        Some(good)
    }

    fn confirm(&mut self) -> Option<bool> {
        self.against = 0;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Thresholds = Thresholds { rise: 2, fall: 3 };

    fn changes(checker: &mut Checker, results: &str) -> String {
        let letter = |c| match checker.record(c == '+') {
            Some(true) => 'U',
            Some(false) => 'D',
            None => '.',
        };
        results.chars().map(letter).collect()
    }

    #[test]
    fn results_in_a_row_count_and_one_against_starts_over() {
        let mut checker = Checker::new(Start::Up, USUAL);
        assert_eq!(changes(&mut checker, "+--+---"), "......D");
        assert!(!checker.is_up());
        assert_eq!(changes(&mut checker, "-+-++"), "....U");
        assert_eq!(
            changes(&mut checker, "---"),
            "..D",
            "the count starts from nothing"
        );
    }

    #[test]
    fn the_first_result_decides_where_nothing_was_assumed() {
        assert_eq!(
            changes(&mut Checker::new(Start::Unknown, USUAL), "+---"),
            "U..D"
        );
        assert_eq!(
            changes(&mut Checker::new(Start::Unknown, USUAL), "-++"),
            "D.U"
        );
        assert_eq!(changes(&mut Checker::new(Start::Down, USUAL), "++"), ".U");
    }

    #[test]
    fn nought_is_one() {
        let once = Thresholds { rise: 0, fall: 0 };
        assert_eq!(changes(&mut Checker::new(Start::Up, once), "-+-"), "DUD");
    }
}
