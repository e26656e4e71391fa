//! When to record: `usage > 80% for 5m`.
//!
//! ```text
//! condition = measure ">" value [ "for" time ]
//! measure   = "usage" | "working_set" | "anon" | "rss" | "growth" | "pressure"
//! value     = size | number "%" | size "/" ( "s" | "min" | "h" )
//! ```
//! A share is one of the limit, of pressure one of the time. Growth is always a rate, and its time is the window that it is measured over.

use std::{fmt, str::FromStr, time::Duration};

use crate::model::Bytes;

/// What must hold, and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// What is compared with what.
    pub test: Test,
    /// How long it must hold without a break; of growth, the window that it is measured over.
    pub time: Duration,
    text: String,
}

/// What is compared with what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Test {
    /// More bytes than this.
    Above(Measure, Bytes),
    /// More than this part of the limit, from 0 to 1.
    ShareAbove(Measure, f64),
    /// Anonymous memory grows by more bytes a second.
    GrowthAbove(f64),
    /// More than this part of the time somebody waited for memory, from 0 to 1.
    PressureAbove(f64),
}

/// A size that the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// All that counts against the limit, page cache included.
    Usage,
    /// The same without files that were not used for long.
    WorkingSet,
    /// Anonymous memory.
    Anonymous,
    /// Resident memory of the processes.
    Resident,
}

/// The window of growth where none is given.
const GROWTH_WINDOW: Duration = Duration::from_secs(5 * 60);

/// What is wrong with a condition, and where. In three lines: the last has a caret below the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionError {
    text: String,
    /// In letters.
    at: usize,
    expected: String,
}

impl fmt::Display for ConditionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, at, expected } = self;
        write!(f, "expected {expected}\n  {text}\n  {:>width$}", "^", width = at + 1)
    }
}

impl std::error::Error for ConditionError {}

/// In how many looks growth is measured at least: three in either half of its window, whenever that begins.
pub const MIN_GROWTH_LOOKS: u32 = 6;

impl Condition {
    /// Whether a look each `interval` is often enough for it.
    #[must_use]
    pub fn can_hold_at(&self, interval: Duration) -> bool {
        !matches!(self.test, Test::GrowthAbove(_)) || self.time >= interval * MIN_GROWTH_LOOKS
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Condition {
    type Err = ConditionError;

    fn from_str(text: &str) -> Result<Self, ConditionError> {
        let mut words = Words { text, at: 0 };
        let measure = words.next();
        let measured = Measured::named(measure.text)
            .ok_or_else(|| measure.error(text, "usage, working_set, anon, rss, growth or pressure"))?;
        let comparison = words.next();
        if comparison.text != ">" {
            return Err(comparison.error(text, "`>`"));
        }
        let value = words.next();
        let test = measured.above(value.text).map_err(|expected| value.error(text, expected))?;
        let time = words.time()?;
        let default = if matches!(test, Test::GrowthAbove(_)) { GROWTH_WINDOW } else { Duration::ZERO };
        Ok(Self { test, time: time.unwrap_or(default), text: text.trim().to_owned() })
    }
}

/// What a condition begins with.
#[derive(Clone, Copy)]
enum Measured {
    Size(Measure),
    Growth,
    Pressure,
}

impl Measured {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "usage" => Self::Size(Measure::Usage),
            "working_set" => Self::Size(Measure::WorkingSet),
            "anon" => Self::Size(Measure::Anonymous),
            "rss" => Self::Size(Measure::Resident),
            "growth" => Self::Growth,
            "pressure" => Self::Pressure,
            _ => return None,
        })
    }

    /// The test against a value, or what should stand in its place.
    fn above(self, value: &str) -> Result<Test, &'static str> {
        match self {
            Self::Size(measure) => share(value)
                .map(|share| Test::ShareAbove(measure, share))
                .or_else(|| size(value).map(|size| Test::Above(measure, size)))
                .ok_or("a part of the limit such as `80%`, or a size such as `2GiB`"),
            Self::Growth => rate(value).map(Test::GrowthAbove).ok_or("a size and a time such as `10MiB/min`"),
            Self::Pressure => share(value).map(Test::PressureAbove).ok_or("a part of the time such as `10%`"),
        }
    }
}

fn share(text: &str) -> Option<f64> {
    let percent: f64 = text.strip_suffix('%')?.parse().ok()?;
    (percent.is_finite() && (0.0..=100.0).contains(&percent)).then_some(percent / 100.0)
}

/// A bare number could be meant as any unit, so it needs one.
fn size(text: &str) -> Option<Bytes> {
    if !text.ends_with(|letter: char| letter.is_alphabetic()) {
        return None;
    }
    text.parse().ok().map(|bytesize::ByteSize(bytes)| Bytes(bytes))
}

/// Bytes a second.
fn rate(text: &str) -> Option<f64> {
    let (size_text, unit) = text.split_once('/')?;
    let seconds = match unit {
        "s" => 1.0,
        "min" | "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Some(size(size_text)?.0 as f64 / seconds)
}

/// The words of a condition, one after the other; `>` is one wherever it stands.
struct Words<'a> {
    text: &'a str,
    /// In bytes.
    at: usize,
}

struct Word<'a> {
    text: &'a str,
    at: usize,
}

impl Word<'_> {
    fn error(&self, text: &str, expected: &str) -> ConditionError {
        // The caret stands below the text as it is shown.
        let shown = text.replace(char::is_control, " ");
        let at = text.get(..self.at).map_or(0, |before| before.chars().count());
        ConditionError { text: shown, at, expected: expected.to_owned() }
    }
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Word<'a> {
        let rest = &self.text[self.at..];
        let start = self.at + (rest.len() - rest.trim_start().len());
        let rest = &self.text[start..];
        let length = match rest.strip_prefix('>') {
            Some(_) => 1,
            None => rest.find(|letter: char| letter.is_whitespace() || letter == '>').unwrap_or(rest.len()),
        };
        self.at = start + length;
        Word { text: &rest[..length], at: start }
    }

    /// `for` and a time, or nothing more.
    fn time(&mut self) -> Result<Option<Duration>, ConditionError> {
        let word = self.next();
        match word.text {
            "" => return Ok(None),
            "for" => {}
            _ => return Err(word.error(self.text, "`for` and a time, or nothing more")),
        }
        let rest = &self.text[self.at..];
        let at = self.at + (rest.len() - rest.trim_start().len());
        let time = humantime::parse_duration(rest.trim()).ok().filter(|time| !time.is_zero());
        let wrong = || Word { text: rest, at }.error(self.text, "a time such as `5m` or `90s`");
        time.map(Some).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Test, u64) {
        let condition: Condition = text.parse().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(condition.to_string(), text.trim());
        (condition.test, condition.time.as_secs())
    }

    #[test]
    fn conditions_are_read() {
        assert_eq!(parse("usage > 80% for 5m"), (Test::ShareAbove(Measure::Usage, 0.8), 300));
        assert_eq!(parse(" usage>2GiB"), (Test::Above(Measure::Usage, Bytes(2 << 30)), 0));
        assert_eq!(parse("growth > 10MiB/min for 10m"), (Test::GrowthAbove((10 << 20) as f64 / 60.0), 600));
        assert_eq!(parse("growth > 1KiB/s"), (Test::GrowthAbove(1024.0), 300));
        assert_eq!(parse("pressure > 10% for 1m 30s"), (Test::PressureAbove(0.1), 90));
        assert_eq!(parse("working_set > 0.5%"), (Test::ShareAbove(Measure::WorkingSet, 0.005), 0));
        assert_eq!(parse("rss > 1.5GB").0, Test::Above(Measure::Resident, Bytes(1_500_000_000)));
        assert_eq!(parse("anon > 1KiB").0, Test::Above(Measure::Anonymous, Bytes(1024)));
    }

    #[test]
    fn an_error_points_at_the_place() {
        let cases = [
            ("", "usage, working_set", 0),
            ("uasge > 80%", "usage, working_set", 0),
            ("usage 80%", "`>`", 6),
            ("usage > 80% fro 5m", "`for` and a time", 12),
            ("usage > 80% for", "a time such as", 15),
            ("usage > 80% for  5x", "a time such as", 17),
            ("usage > 80% for 0s", "a time such as", 16),
            ("usage > 180%", "a part of the limit", 8),
            ("usage > 2", "a size such as", 8),
            ("usage > NaN%", "a part of the limit", 8),
            ("growth > 10%", "a size and a time", 9),
            ("growth > 10MiB", "a size and a time", 9),
            ("pressure > 1GiB", "a part of the time", 11),
            ("größe > 1GiB", "usage", 0),
            ("usage > größe für 5m", "a part of the limit", 8),
            ("usage > 1GiB für 5m", "`for`", 13),
            ("usage >", "a part of the limit", 7),
            ("usage > > 1", "a part of the limit", 8),
        ];
        for (text, expected, at) in cases {
            let error = text.parse::<Condition>().expect_err(text).to_string();
            let lines: Vec<&str> = error.lines().collect();
            let [says, shown, caret] = lines[..] else { panic!("{error}") };
            assert!(says.contains(expected), "{error}");
            assert_eq!(shown, format!("  {text}"));
            assert_eq!(caret.chars().count(), 2 + at + 1, "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_written_is_a_condition_or_an_error(text in "\\PC*") {
            let _ = text.parse::<Condition>();
        }

        #[test]
        fn words_of_the_grammar_in_any_order_too(
            text in "(usage|growth|pressure|>| |for|5m|80%|1GiB|/min|10MiB/min|ü){0,12}",
        ) {
            let _ = text.parse::<Condition>();
        }
    }
}
