//! How many stacks of real programs under load are complete.

use std::{collections::BTreeMap, fmt, fs, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    Bed,
    overhead::machine,
    tool::{Attached, Ending, tracer},
    workload::Dialogue,
};
use crate::command;

/// A program at work: what the table calls it, and its command line, of which `bench/` is where the sources are.
struct Work {
    title: &'static str,
    words: &'static [&'static str],
    /// Options of the tracer.
    options: &'static [&'static str],
}

const fn work(title: &'static str, words: &'static [&'static str]) -> Work {
    Work { title, words, options: &[] }
}

const WORKS: [Work; 9] = [
    work("node: HTTP, gzip, pbkdf2, sha256, JSON, files", &["node", "bench/work.js"]),
    work(
        "node `--interpreted-frames-native-stack --perf-basic-prof`",
        &["node", "--interpreted-frames-native-stack", "--perf-basic-prof", "bench/work.js"],
    ),
    work("python3 (Debian): json, re, sqlite3, zlib, bz2, 4 threads", &["/usr/bin/python3", "bench/work.py"]),
    work("python3 (in `PATH`), the same", &["python3", "bench/work.py"]),
    work("redis-server: all of redis-benchmark", &["bench/server.sh", "redis"]),
    work("nginx: files with gzip, rewrites, a proxy", &["bench/server.sh", "nginx"]),
    Work { options: &["--follow"], ..work("postgres, pgbench", &["bench/server.sh", "postgres"]) },
    work(
        "java `-XX:+PreserveFramePointer`: Deflater, direct buffers, files",
        &["java", "-XX:+PreserveFramePointer", "bench/Work.java"],
    ),
    work("java, without it", &["java", "bench/Work.java"]),
];

/// Records each of them for some seconds, and returns a table.
///
/// # Errors
/// When a program is not installed, or the tracer fails.
pub fn measure(bed: &Bed, seconds: u64, only: &[String]) -> Result<String> {
    let mut text = "| program | distinct stacks | complete | allocations | complete | deepest | why not |\n\
                    |---|--:|--:|--:|--:|--:|---|\n"
        .to_owned();
    let is_wanted =
        |work: &&Work| only.is_empty() || only.iter().any(|name| work.title.contains(name.as_str()));
    for work in WORKS.iter().filter(is_wanted) {
        command::step(&format!("recording {}", work.title));
        let report = record(bed, work, seconds).with_context(|| work.title.to_owned())?;
        let row = format!("| {} {}\n", work.title, Stacks::of(&report)?);
        print!("{row}");
        text += &row;
    }
    Ok(format!("{text}\nOne run each, {seconds} seconds. {}", machine()?))
}

fn record(bed: &Bed, work: &Work, seconds: u64) -> Result<Value> {
    let sources = bed.sources.join("stacks");
    let words = work.words.iter().map(|word| match word.strip_prefix("bench/") {
        Some(source) => sources.join(source).to_string_lossy().into_owned(),
        None => (*word).to_owned(),
    });
    let words: Vec<_> = words.collect();
    let [program, arguments @ ..] = &words[..] else { bail!("it has no command") };
    let mut target = Dialogue::start(Command::new(program).args(arguments).current_dir(&bed.scratch))?;
    let ready = target.line_with("ready ")?;
    // It is warm: what only its start calls is not what one looks at.
    thread::sleep(Duration::from_secs(2));
    let mut tracer = tracer(bed, Some(ready.trim_start_matches("ready ")));
    let attached = Attached::start(tracer.args(work.options), "recording ", Ending::Interrupt)?;
    thread::sleep(Duration::from_secs(seconds));
    attached.detach()?;
    let report = fs::read_to_string(bed.scratch.join("report.json"))?;
    Ok(serde_json::from_str(&report)?)
}

/// What a report says of its stacks.
#[derive(Debug, Default, PartialEq)]
struct Stacks {
    distinct: u64,
    complete: u64,
    allocations: u64,
    of_complete: u64,
    deepest: usize,
    /// Allocations by why their stack is not complete.
    stops: BTreeMap<String, u64>,
}

impl Stacks {
    fn of(report: &Value) -> Result<Self> {
        let mut sums = Self::default();
        let table = report["frames"].as_array().context("the report has no frames")?;
        for stack in report["stacks"].as_array().context("the report has no stacks")? {
            let allocations = stack["allocated_objects"].as_u64().context("a stack without allocations")?;
            let frames = stack["frames"].as_array().context("a stack without frames")?;
            let indexes = frames.iter().filter_map(Value::as_u64);
            let found = indexes.filter_map(|index| table.get(usize::try_from(index).ok()?));
            sums.deepest = sums.deepest.max(found.filter(|frame| frame["inlined"] != true).count());
            sums.distinct += 1;
            sums.allocations += allocations;
            if stack["complete"] == true {
                sums.complete += 1;
                sums.of_complete += allocations;
            } else {
                *sums.stops.entry(stack["stop"].as_str().unwrap_or("?").to_owned()).or_default() +=
                    allocations;
            }
        }
        Ok(sums)
    }
}

/// The cells of a row behind the first.
impl fmt::Display for Stacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |part: u64, whole: u64| match 100.0 * part as f64 / whole.max(1) as f64 {
            // What is nearly all is not all.
            share if part < whole => format!("{:.2} %", share.min(99.99)),
            _ => "100 %".to_owned(),
        };
        let stops: Vec<_> =
            self.stops.iter().map(|(stop, allocations)| format!("{stop} {allocations}")).collect();
        write!(
            f,
            "| {} | {} | {} | {} | {} | {} |",
            self.distinct,
            share(self.complete, self.distinct),
            self.allocations,
            share(self.of_complete, self.allocations),
            self.deepest,
            stops.join(", "),
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn stacks_are_counted_by_themselves_and_by_allocations() {
        let report = json!({"frames": [{"ip": "0x1"}, {"ip": "0x1", "inlined": true}], "stacks": [
            {"allocated_objects": 99_999, "complete": true, "frames": [0, 1, 0, 0]},
            {"allocated_objects": 1, "complete": false, "stop": "not_code", "frames": [1]},
        ]});
        let stacks = Stacks::of(&report).expect("a report");
        assert_eq!(stacks.to_string(), "| 2 | 50.00 % | 100000 | 99.99 % | 3 | not_code 1 |");
        assert_eq!(
            Stacks { distinct: 1, complete: 1, ..stacks }.to_string().split(" | ").nth(1),
            Some("100 %")
        );
    }
}
