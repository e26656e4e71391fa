//! The line that is shown on standard error while recording.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::human::{Change, Count, printable, shorten};
use crate::model::{Bytes, Process};

/// What the recording looks like right now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Status<'a> {
    /// The traced process; the first one when there are several.
    pub target: &'a Process,
    /// The figures that change several times a second.
    pub vitals: Vitals,
}

/// The figures that change several times a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Vitals {
    /// Since the window began.
    pub elapsed: Duration,
    /// Allocator calls and mapping changes a second, lately.
    pub events_per_second: f64,
    /// Weight of what is outstanding.
    pub outstanding: Bytes,
    /// Blocks and mappings of it.
    pub objects: u64,
    /// Resident set when the window began and now; absent when it cannot be read.
    pub rss: Option<(Bytes, Bytes)>,
    /// Events lost so far.
    pub lost: u64,
    /// What tracing takes of the targets' CPU time, in per cent; absent when that is not known, or little.
    pub tracing_percent: Option<f64>,
}

impl Status<'_> {
    /// The status in at most `width` columns. What matters least goes first when there is no room.
    #[must_use]
    pub fn line(&self, width: usize) -> String {
        let target = format!("{} ({})", printable(&self.target.comm), self.target.pid);
        let lost = (self.vitals.lost > 0).then(|| format!("lost {}", Count(self.vitals.lost)));
        let rss =
            self.vitals.rss.map(|(before, now)| (format!("RSS {now}"), Change::between(before.0, now.0)));
        // Parts in the order of the line; the number says how early a part is given up.
        let mut parts = vec![
            (1, target),
            (5, clock(self.vitals.elapsed)),
            (2, format!("{} events/s", rate(self.vitals.events_per_second))),
            (7, format!("outstanding {}", Bytes(self.vitals.outstanding.0))),
            (3, format!("({} blocks)", Count(self.vitals.objects))),
        ];
        if let Some((rss, change)) = rss {
            parts.extend([(4, rss), (0, format!("({change})"))]);
        }
        parts.extend(self.vitals.tracing_percent.map(|percent| (3, format!("tracing takes {percent:.0} %"))));
        parts.extend(lost.map(|lost| (6, lost)));
        loop {
            let line = join(&parts);
            if line.chars().count() <= width || parts.len() == 1 {
                return shorten(&line, width).into_owned();
            }
            let least = parts.iter().enumerate().min_by_key(|(_, (rank, _))| *rank).map_or(0, |(i, _)| i);
            parts.remove(least);
        }
    }
}

/// Two spaces between parts; one before what is in brackets.
fn join(parts: &[(u8, String)]) -> String {
    let mut line = String::new();
    for (_, part) in parts {
        if !line.is_empty() {
            line += if part.starts_with('(') { " " } else { "  " };
        }
        line += part;
    }
    line
}

/// `00:42`, `1:02:42`
pub(crate) fn clock(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes:02}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// `950`, `12.3k`, `1.2M`
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        0.0..999.5 => format!("{per_second:.0}"),
        999.5..999_950.0 => format!("{:.1}k", per_second / 1e3),
        999_950.0.. => format!("{:.1}M", per_second / 1e6),
        _ => "?".into(),
    }
}

/// Columns of the terminal on standard error, one less than there are: a full line makes some terminals wrap.
fn columns() -> usize {
    rustix::termios::tcgetwinsize(std::io::stderr()).map_or(80, |size| usize::from(size.ws_col)).max(21) - 1
}

/// The line on the terminal. It is gone when the last copy of this is dropped.
#[derive(Clone, Debug)]
pub struct StatusLine(ProgressBar);

impl StatusLine {
    /// A line on standard error; one that is never seen when that is no terminal, or `visible` is false.
    #[must_use]
    pub fn new(visible: bool) -> Self {
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(ProgressStyle::with_template("{msg}").expect("a constant template"));
        Self(bar)
    }

    /// Whether anybody sees it; if not, a caller need not gather the figures.
    #[must_use]
    pub fn is_visible(&self) -> bool {
        !self.0.is_hidden()
    }

    /// Shows the status of now.
    pub fn update(&self, status: &Status<'_>) {
        self.0.set_message(status.line(columns()));
        self.0.tick();
    }

    /// Shows these words.
    pub fn say(&self, words: &str) {
        self.0.set_message(shorten(&printable(words), columns()).into_owned());
        self.0.tick();
    }

    /// Takes the line away, for good.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }

    /// Runs what writes to the terminal, with the line out of its way.
    pub fn suspend<R>(&self, write: impl FnOnce() -> R) -> R {
        self.0.suspend(write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Pid;

    #[test]
    fn a_narrow_terminal_loses_what_matters_least() {
        let target = Process {
            pid: Pid(1234),
            comm: "node".into(),
            exe: None,
            command: vec![],
            from: None,
            end: None,
        };
        let vitals = Vitals {
            elapsed: Duration::from_secs(42),
            events_per_second: 12_345.0,
            outstanding: Bytes(4_404_019),
            objects: 1_024,
            rss: Some((Bytes(89_023_000), Bytes(92_379_545))),
            lost: 0,
            tracing_percent: None,
        };
        let status = Status { target: &target, vitals };
        let full =
            "node (1234)  00:42  12.3k events/s  outstanding 4.2 MiB (1,024 blocks)  RSS 88.1 MiB (+3.2 MiB)";
        assert_eq!(status.line(100), full);
        for width in 0..110 {
            assert!(status.line(width).chars().count() <= width.max(1), "{width}");
        }
        let much = Status { vitals: Vitals { tracing_percent: Some(43.4), ..vitals }, ..status };
        assert_eq!(much.line(130), format!("{full}  tracing takes 43 %"));
        let lossy = Status { vitals: Vitals { lost: 7, rss: None, ..vitals }, ..status };
        let lines = [80, 60, 40, 30, 10].map(|width| lossy.line(width));
        insta::assert_snapshot!(lines.join("\n"), @r"
        node (1234)  00:42  12.3k events/s  outstanding 4.2 MiB (1,024 blocks)  lost 7
        00:42  outstanding 4.2 MiB (1,024 blocks)  lost 7
        00:42  outstanding 4.2 MiB  lost 7
        outstanding 4.2 MiB  lost 7
        outst… MiB
        ");
    }

    #[test]
    fn clocks_and_rates() {
        let clocks = [0, 59, 3599, 3600, 360_000].map(|seconds| clock(Duration::from_secs(seconds)));
        assert_eq!(clocks, ["00:00", "00:59", "59:59", "1:00:00", "100:00:00"]);
        let rates = [0.0, 949.6, 999.9, 12_345.0, 999_999.0, 2.5e6, f64::NAN, -1.0].map(rate);
        assert_eq!(rates, ["0", "950", "1.0k", "12.3k", "1.0M", "2.5M", "?", "?"]);
    }
}
