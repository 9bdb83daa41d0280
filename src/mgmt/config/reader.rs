//! Takes keys out of a parsed TOML table, one typed getter each, and remembers every fault instead
//! of stopping at the first. What nobody took is an unknown key. Pure.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::error::{ConfigError, Problem};
use super::span::{At, Span, position};
use super::values::{ValueError, format_time, parse_time};

/// Collects the faults of one text.
pub(super) struct Sink<'t> {
    text: &'t str,
    problems: RefCell<Vec<Problem>>,
}

impl<'t> Sink<'t> {
    pub fn new(text: &'t str) -> Self {
        Sink {
            text,
            problems: RefCell::default(),
        }
    }

    pub fn push(&self, span: Span, error: ConfigError) {
        self.problems.borrow_mut().push(Problem { span, error });
    }

    pub fn is_empty(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    pub fn line(&self, span: Span) -> usize {
        position(self.text, span.start).0
    }

    pub fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }
}

/// One table while it is read.
pub(super) struct Reader<'a> {
    pub sink: &'a Sink<'a>,
    pub span: Span,
    path: String,
    table: &'a DeTable<'a>,
    known: Vec<&'static str>,
}

impl<'a> Reader<'a> {
    pub fn new(sink: &'a Sink<'a>, path: &str, span: Span, table: &'a DeTable<'a>) -> Self {
        Reader {
            sink,
            span,
            path: path.to_owned(),
            table,
            known: Vec::new(),
        }
    }

    /// The full name of a key, as faults spell it.
    pub fn name(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn value(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.push(key);
        self.table.get(key)
    }

    fn wrong_type(&self, key: &str, found: &Spanned<DeValue<'_>>, expected: &'static str) {
        let found_type = type_name(found.get_ref());
        let error = ConfigError::WrongType {
            key: self.name(key),
            found: found_type,
            expected,
        };
        self.sink.push(found.span().into(), error);
    }

    fn bad(&self, key: &str, value: &str, span: Span, error: ValueError) {
        let error = ConfigError::BadValue {
            key: self.name(key),
            value: value.to_owned(),
            error,
        };
        self.sink.push(span, error);
    }

    pub fn string(&mut self, key: &'static str) -> Option<At<&'a str>> {
        let value = self.value(key)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key, value, "a string in quotes");
            return None;
        };
        let span = value.span().into();
        if text.is_empty() {
            self.bad(key, text, span, ValueError::Empty);
            return None;
        }
        Some(At { value: text, span })
    }

    /// A string that `parse` understands.
    pub fn parsed<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, ValueError>,
    ) -> Option<At<T>> {
        let text = self.string(key)?;
        match parse(text.value) {
            Ok(value) => Some(At {
                value,
                span: text.span,
            }),
            Err(error) => {
                self.bad(key, text.value, text.span, error);
                None
            }
        }
    }

    /// A string or a list of strings, each of which `parse` understands.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, ValueError>,
    ) -> Vec<At<T>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let items = match value.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            _ => vec![value],
        };
        let mut parsed = Vec::new();
        for item in items {
            let span = item.span().into();
            let Some(text) = item.get_ref().as_str() else {
                self.wrong_type(key, item, "a string in quotes or a list of strings");
                continue;
            };
            match parse(text) {
                Ok(value) => parsed.push(At { value, span }),
                Err(error) => self.bad(key, text, span, error),
            }
        }
        parsed
    }

    pub fn boolean(&mut self, key: &'static str) -> Option<At<bool>> {
        let value = self.value(key)?;
        let Some(truth) = value.get_ref().as_bool() else {
            self.wrong_type(key, value, "true or false");
            return None;
        };
        Some(At {
            value: truth,
            span: value.span().into(),
        })
    }

    /// A whole number within `range`.
    pub fn integer<T>(&mut self, key: &'static str, range: RangeInclusive<T>) -> Option<At<T>>
    where
        T: TryFrom<i128> + PartialOrd + Display + Copy,
    {
        let value = self.value(key)?;
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong_type(key, value, "a whole number without quotes");
            return None;
        };
        let span = value.span().into();
        match to_i128(integer)
            .and_then(|n| T::try_from(n).ok())
            .filter(|n| range.contains(n))
        {
            Some(value) => Some(At { value, span }),
            None => {
                self.out_of_range(key, integer.to_string(), span, range.start(), range.end());
                None
            }
        }
    }

    /// A time within `range`, both ends included; `whole` is what it must be a multiple of.
    pub fn time(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        whole: Duration,
    ) -> Option<At<Duration>> {
        let time = self.parsed(key, parse_time)?;
        if range.contains(&time.value) && time.value.as_millis() % whole.as_millis() == 0 {
            return Some(time);
        }
        let (min, max) = (format_time(*range.start()), format_time(*range.end()));
        let value = format_time(time.value);
        let max = if whole.as_secs() == 1 {
            format!("{max} in whole seconds")
        } else {
            max
        };
        self.out_of_range(key, value, time.span, &min, &max);
        None
    }

    fn out_of_range(
        &self,
        key: &str,
        value: String,
        span: Span,
        min: &dyn Display,
        max: &dyn Display,
    ) {
        let (min, max) = (min.to_string(), max.to_string());
        let error = ConfigError::OutOfRange {
            key: self.name(key),
            value,
            min,
            max,
        };
        self.sink.push(span, error);
    }

    /// One of several names; aliases stand behind the name proper in `names`.
    pub fn choice<T: Copy + PartialEq>(
        &mut self,
        key: &'static str,
        names: &[(&'static str, T)],
    ) -> Option<At<T>> {
        let text = self.string(key)?;
        let is_proper = |name: &str, value: T| {
            names
                .iter()
                .find(|(_, named)| *named == value)
                .is_some_and(|(n, _)| *n == name)
        };
        let Some((_, chosen)) = names.iter().find(|(name, _)| *name == text.value) else {
            let proper = names.iter().filter(|(name, value)| is_proper(name, *value));
            let error = ConfigError::BadChoice {
                key: self.name(key),
                value: text.value.to_owned(),
                choices: proper.map(|(name, _)| *name).collect(),
            };
            self.sink.push(text.span, error);
            return None;
        };
        Some(At {
            value: *chosen,
            span: text.span,
        })
    }

    /// A table below this one.
    pub fn table(&mut self, key: &'static str) -> Option<Reader<'a>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(self.below(key, value, table)),
            _ => {
                self.wrong_type(key, value, "a table");
                None
            }
        }
    }

    /// A list of tables below this one, empty when there is none.
    pub fn tables(&mut self, key: &'static str) -> Vec<Reader<'a>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(
                key,
                value,
                "a list of tables, each under its own [[...]] line",
            );
            return Vec::new();
        };
        let mut readers = Vec::new();
        for item in items.iter() {
            match item.get_ref() {
                DeValue::Table(table) => readers.push(self.below(key, item, table)),
                _ => self.wrong_type(key, item, "a table"),
            }
        }
        readers
    }

    fn below(&self, key: &str, value: &Spanned<DeValue<'a>>, table: &'a DeTable<'a>) -> Reader<'a> {
        Reader::new(self.sink, &self.name(key), value.span().into(), table)
    }

    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Records that a key which is known otherwise has no place here.
    pub fn refuse(&mut self, key: &'static str, error: impl Fn(String) -> ConfigError) {
        self.known.push(key);
        if let Some((name, _)) = self.table.get_key_value(key) {
            self.sink.push(name.span().into(), error(self.name(key)));
        }
    }

    /// Whether the key is a string here, for keys that may be a string or a table.
    pub fn is_string(&self, key: &str) -> bool {
        self.table
            .get(key)
            .is_some_and(|value| value.get_ref().is_str())
    }

    /// Records that a required key is not there at all; a faulty one has its own message.
    pub fn require(&self, key: &'static str, example: &'static str) {
        if !self.table.contains_key(key) {
            let table = self.title();
            self.sink.push(
                self.span,
                ConfigError::MissingKey {
                    table,
                    key,
                    example,
                },
            );
        }
    }

    /// The table as faults call it.
    fn title(&self) -> String {
        if self.path.is_empty() {
            "the file".to_owned()
        } else {
            format!("[{}]", self.path)
        }
    }

    /// Reports every key that nobody asked for.
    pub fn finish(self) {
        for name in self.table.keys() {
            let key = name.get_ref().as_ref();
            if self.known.contains(&key) {
                continue;
            }
            let error = ConfigError::UnknownKey {
                table: self.title(),
                key: key.to_owned(),
                suggestion: nearest(key, &self.known),
            };
            self.sink.push(name.span().into(), error);
        }
    }
}

/// The known key that was most likely meant: at most two slips away, and fewer for short keys.
fn nearest(key: &str, known: &[&'static str]) -> Option<String> {
    let distance = |candidate: &&str| strsim::damerau_levenshtein(key, candidate);
    let best = known.iter().copied().min_by_key(distance)?;
    let plural = best.strip_suffix('s') == Some(key) || key.strip_suffix('s') == Some(best);
    (plural || distance(&best) <= 2.min(key.chars().count() / 2)).then(|| best.to_owned())
}

fn to_i128(integer: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
