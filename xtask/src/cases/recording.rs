//! One recording of a case.

use std::{
    env, fmt, fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{install::Place, known::Case};
use crate::{command, privilege, run};

/// So long a program works before it is looked at, as in life.
const BEFORE: Duration = Duration::from_secs(3);

/// The build that is tried in place of this workspace's.
pub fn other_binary() -> Option<PathBuf> {
    env::var_os("TRACER_BIN").map(PathBuf::from)
}

/// How a case is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub seconds: u32,
    pub is_sampled: bool,
}

impl Way {
    pub const ALL: [Self; 4] = [
        Self { seconds: 10, is_sampled: false },
        Self { seconds: 30, is_sampled: false },
        Self { seconds: 10, is_sampled: true },
        Self { seconds: 30, is_sampled: true },
    ];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s{}", self.seconds, if self.is_sampled { ", `--sample 64KiB`" } else { "" })
    }
}

/// What tracer said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// In one sentence.
    pub summary: String,
    /// Whether it is a leak; none if that is not known.
    pub leaking: Option<bool>,
    /// The first cause: where, by whom, below whom, called from where, in one line.
    pub cause: String,
    /// MiB a minute of that cause.
    pub per_minute: Option<f64>,
    /// The part of the resident memory that grew most.
    pub part: String,
}

/// Starts the program of a case, and has it recorded.
pub fn record(place: &Place, case: &Case, way: Way) -> Result<Said> {
    let mut program = Program::start((case.command)(place)?)?;
    thread::sleep(BEFORE);
    let report =
        place.file(&format!("{}-{}{}.json", case.number, way.seconds, if way.is_sampled { "s" } else { "" }));
    let binary = other_binary().unwrap_or_else(|| run::binary(place.workspace()));
    let mut tracer = privilege::as_root(binary, &[])?;
    tracer.args([
        "--no-progress",
        "--duration",
        &format!("{}s", way.seconds),
        "--pid",
        &program.pid.to_string(),
    ]);
    tracer.args(case.options);
    if way.is_sampled {
        tracer.args(["--sample", "64KiB"]);
    }
    command::output(tracer.arg("--output").arg(&report))
        .with_context(|| format!("case {} is not recorded", case.number))?;
    program.check()?;
    Said::read(&report)
}

/// A running program, with all that it has started.
struct Program {
    child: Child,
    pid: u32,
}

impl Program {
    /// Starts it, and waits until it says that it is ready, and which process is to be traced if that is another.
    fn start(mut program: Command) -> Result<Self> {
        let shown = command::line(&program);
        program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut child = program.spawn().with_context(|| format!("cannot run `{shown}`"))?;
        let output = child.stdout.take().context("its output is a pipe")?;
        let mut program = Self { pid: child.id(), child };
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        let mut ready = lines.skip_while(|line| !line.starts_with("ready"));
        let line = ready.next().with_context(|| format!("`{shown}` ended before it was ready"))?;
        if let Some((_, pid)) = line.split_once(' ') {
            program.pid = pid.trim().parse().context("it says which process is to be traced")?;
        }
        Ok(program)
    }

    fn check(&mut self) -> Result<()> {
        ensure!(self.child.try_wait()?.is_none(), "the program ended while it was recorded");
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A group of its own: what it has started ends with it.
        let _ = command::output(Command::new("kill").args(["-KILL", "--", &format!("-{}", self.child.id())]));
        let _ = self.child.wait();
    }
}

impl Said {
    fn read(report: &Path) -> Result<Self> {
        let text = fs::read_to_string(report).with_context(|| format!("cannot read {}", report.display()))?;
        Ok(Self::of(&serde_json::from_str(&text)?))
    }

    fn of(report: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let cause = &report["causes"][0];
        let by = cause["by"].as_array().into_iter().flatten();
        let words: Vec<String> = ["place", "below", "called_from"]
            .iter()
            .map(|field| text(&cause[field]))
            .chain(by.map(text))
            .filter(|word| !word.is_empty())
            .collect();
        let parts = report["memory"]["parts"].as_array().into_iter().flatten();
        let grew = |part: &&Value| {
            part["after_bytes"].as_i64().unwrap_or(0) - part["before_bytes"].as_i64().unwrap_or(0)
        };
        Self {
            summary: text(&report["verdict"]["summary"]),
            leaking: report["verdict"]["leaking"].as_bool(),
            cause: words.join(", "),
            per_minute: cause["growth_bytes_per_second"]
                .as_f64()
                .map(|rate| rate * 60.0 / f64::from(1 << 20)),
            part: parts.max_by_key(grew).map(|part| text(&part["part"])).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_compared_is_read_from_the_report() {
        let said = Said::of(&json!({
            "verdict": { "summary": "leaking", "leaking": true },
            "causes": [
                { "place": "a: f", "below": "g", "by": ["malloc_it"], "growth_bytes_per_second": 1048576.0 },
                { "place": "b" },
            ],
            "memory": { "parts": [
                { "part": "file", "before_bytes": 0, "after_bytes": 5 },
                { "part": "native", "before_bytes": 1, "after_bytes": 9 },
            ] },
        }));
        assert_eq!((said.leaking, said.cause.as_str()), (Some(true), "a: f, g, malloc_it"));
        assert_eq!((said.part.as_str(), said.per_minute), ("native", Some(60.0)));
        assert_eq!(Said::of(&json!({ "verdict": { "summary": "?" } })).leaking, None);
    }
}
