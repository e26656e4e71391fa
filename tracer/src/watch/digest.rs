//! What a report says in short: read from its `.json.gz` without its stacks, however many those are.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use anyhow::{Context as _, Result};
use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use crate::model::{Cause, End, Events, Memory, Mode, Totals, Verdict, VerdictSummary, Window};

/// Causes that are kept of one recording.
const MOST_CAUSES: usize = 20;

/// The fields of a report that are read. The others are skipped and take no memory.
#[derive(Deserialize)]
struct Report {
    window: Window,
    settings: Settings,
    events: Events,
    totals: Totals,
    memory: Option<Memory>,
    verdict: Option<VerdictSummary>,
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Deserialize)]
struct Settings {
    #[serde(default)]
    mode: Mode,
}

/// What came of a recording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Digest {
    /// Why it ended; absent when the last that was written is from before its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// How long it was.
    pub seconds: f64,
    /// What was looked at.
    pub mode: Mode,
    /// The verdict: one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// Whether there is a leak; absent when that cannot be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaking: Option<bool>,
    /// What is outstanding.
    pub outstanding_bytes: u64,
    /// Growth of the resident memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss_growth_bytes: Option<i64>,
    /// Events that were lost.
    pub lost: u64,
    /// Who is to blame, most first.
    #[serde(default)]
    pub causes: Vec<Blamed>,
}

/// Who is to blame for a part of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blamed {
    /// The function, and by which others it got the memory.
    pub cause: String,
    /// What its history says.
    pub verdict: Verdict,
    /// What it holds.
    pub bytes: u64,
    /// How fast that grows, of what leaks.
    pub bytes_per_second: f64,
}

impl Digest {
    /// Reads a `.json.gz` report.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn of_file(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::read(file).with_context(|| format!("cannot read {}", path.display()))
    }

    fn read(file: impl Read) -> Result<Self> {
        let json = BufReader::with_capacity(1 << 16, MultiGzDecoder::new(BufReader::new(file)));
        let report: Report = serde_json::from_reader(json)?;
        let seconds = report.window.duration_ns as f64 / 1e9;
        let blamed = |cause: &Cause| Blamed {
            cause: cause.sentence(),
            verdict: cause.verdict,
            bytes: cause.weight_bytes,
            bytes_per_second: if cause.verdict == Verdict::Leaking { cause.rate(seconds) } else { 0.0 },
        };
        let growth = |memory: &Memory| {
            let size = |bytes: Option<u64>| bytes.and_then(|bytes| i64::try_from(bytes).ok());
            Some(size(memory.rss_after_bytes)? - size(memory.rss_before_bytes)?)
        };
        let (verdict, leaking) = report.verdict.map_or((None, None), |v| (Some(v.summary), v.leaking));
        Ok(Self {
            end: report.window.end,
            seconds,
            mode: report.settings.mode,
            verdict,
            leaking,
            outstanding_bytes: report.totals.weight_bytes,
            rss_growth_bytes: report.memory.as_ref().and_then(growth),
            lost: report.events.lost_total(),
            causes: report.causes.iter().take(MOST_CAUSES).map(blamed).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Options, Report as _, fixtures, json::JsonGz};

    #[test]
    fn a_report_in_short_says_what_the_report_says() {
        let profile = fixtures::node();
        let mut file = Vec::new();
        JsonGz.write(&profile, &Options::default(), &mut file).unwrap();
        let digest = Digest::read(&file[..]).unwrap();
        assert_eq!(digest.verdict, profile.verdict.map(|verdict| verdict.summary));
        assert_eq!((digest.end, digest.outstanding_bytes), (profile.window.end, profile.totals.weight_bytes));
        assert_eq!(digest.causes.len(), profile.causes.len());
        assert!(Digest::read(&file[..file.len() / 2]).is_err());
    }
}
