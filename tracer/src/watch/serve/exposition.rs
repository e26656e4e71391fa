//! Metrics as text: Prometheus' format 0.0.4, and OpenMetrics 1.0 for those who ask for it.
//!
//! The two differ in little: OpenMetrics calls a counter without its `_total`, and says where the end is. No library has both.

use std::fmt::Write as _;

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/>
    Prometheus,
    /// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
    OpenMetrics,
}

impl Syntax {
    /// What an `Accept` header asks for.
    pub(super) fn asked_for(accept: &str) -> Self {
        let name = |range: &str| range.split(';').next().is_some_and(|name| name.trim() == OPEN_METRICS);
        if accept.split(',').any(name) { Self::OpenMetrics } else { Self::Prometheus }
    }

    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

const OPEN_METRICS: &str = "application/openmetrics-text";

/// What the values of a family are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only grows, and begins at 0 when the service starts. Its name lacks the `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// All values of one name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    pub samples: Vec<Sample>,
}

/// A value, and the labels that tell it from the others of its family.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub labels: Vec<(&'static str, String)>,
    pub value: f64,
}

impl Family {
    /// Without values so far.
    pub(super) const fn new(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { name, kind, help, samples: Vec::new() }
    }

    /// With one more.
    pub(super) fn with(mut self, labels: &[(&'static str, &str)], value: f64) -> Self {
        self.add(labels, value);
        self
    }

    /// Adds one.
    pub(super) fn add(&mut self, labels: &[(&'static str, &str)], value: f64) {
        let labels = labels.iter().map(|&(name, text)| (name, text.to_owned())).collect();
        self.samples.push(Sample { labels, value });
    }

    /// The name that its values have.
    pub(super) fn sample_name(&self) -> String {
        let ending = if self.kind == Kind::Counter { "_total" } else { "" };
        format!("{}{ending}", self.name)
    }

    fn write(&self, syntax: Syntax, text: &mut String) {
        if self.samples.is_empty() {
            return;
        }
        let sample_name = self.sample_name();
        let name = if syntax == Syntax::OpenMetrics { self.name } else { &sample_name };
        let kind = if self.kind == Kind::Counter { "counter" } else { "gauge" };
        // Nothing can go wrong with a string.
        _ = write!(text, "# HELP {name} {}\n# TYPE {name} {kind}\n", self.help);
        for sample in &self.samples {
            sample.write(&sample_name, text);
        }
    }
}

impl Sample {
    fn write(&self, name: &str, text: &mut String) {
        text.push_str(name);
        for (index, (label, value)) in self.labels.iter().enumerate() {
            let begin = if index == 0 { '{' } else { ',' };
            _ = write!(text, "{begin}{label}=\"");
            escape(value, text);
            text.push('"');
        }
        if !self.labels.is_empty() {
            text.push('}');
        }
        _ = writeln!(text, " {}", number(self.value));
    }
}

fn escape(value: &str, text: &mut String) {
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            letter => text.push(letter),
        }
    }
}

fn number(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".into(),
        f64::NEG_INFINITY => "-Inf".into(),
        value => value.to_string(),
    }
}

/// The whole text.
pub(super) fn text(families: &[Family], syntax: Syntax) -> String {
    let mut text = String::new();
    for family in families {
        family.write(syntax, &mut text);
    }
    if syntax == Syntax::OpenMetrics {
        text.push_str("# EOF\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_syntaxes_are_written() {
        let families = [
            Family::new("a_bytes", Kind::Gauge, "Of a.").with(&[("b", "c\"\\\nd"), ("e", "ü")], 1.5),
            Family::new("empty", Kind::Gauge, "Nothing."),
            Family::new("f", Kind::Counter, "Of f.").with(&[], 3e21),
        ];
        let gauge = "# HELP a_bytes Of a.\n# TYPE a_bytes gauge\na_bytes{b=\"c\\\"\\\\\\nd\",e=\"ü\"} 1.5\n";
        let counter = "f_total 3000000000000000000000\n";
        assert_eq!(
            text(&families, Syntax::Prometheus),
            format!("{gauge}# HELP f_total Of f.\n# TYPE f_total counter\n{counter}")
        );
        assert_eq!(
            text(&families, Syntax::OpenMetrics),
            format!("{gauge}# HELP f Of f.\n# TYPE f counter\n{counter}# EOF\n")
        );
        assert_eq!([f64::INFINITY, f64::NEG_INFINITY, f64::NAN].map(number), ["+Inf", "-Inf", "NaN"]);
    }

    #[test]
    fn who_asks_for_open_metrics_gets_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Syntax::asked_for(prometheus), Syntax::OpenMetrics);
        for other in ["", "*/*", "text/plain;version=0.0.4", "text/html, application/xml;q=0.9"] {
            assert_eq!(Syntax::asked_for(other), Syntax::Prometheus);
        }
    }
}
