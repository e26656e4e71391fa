//! Measures, on this machine, what tracing costs (the traced program's time, and the tracer's own CPU, memory and waits) and what reports
//! take.

pub mod document;
mod footprint;
mod median;
mod overhead;
mod reports;
mod runtimes;
mod soak;
mod stacks;
mod tool;
mod unwind;
mod watch;
mod workload;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Subcommand, ValueEnum as _};

use crate::{command, demo, privilege, run};

/// What is measured.
#[derive(Clone, Debug, Subcommand)]
pub enum Bench {
    /// What traced programs lose, next to empty probes, bpftrace and heaptrack.
    Overhead {
        /// How often each tool is measured; the median counts [default: 5].
        #[arg(long)]
        rounds: Option<usize>,
        /// How long one measurement takes, in milliseconds [default: 1000].
        #[arg(long)]
        milliseconds: Option<u32>,
        /// Three rounds of 0.2 s, and the document is left alone.
        #[arg(long)]
        quick: bool,
        /// Only these workloads.
        #[arg(long = "workload", value_enum)]
        workloads: Vec<workload::Kind>,
        /// Only these tools, beside what they are compared with; the document is left alone.
        #[arg(long = "tool", value_enum)]
        tools: Vec<tool::Tool>,
    },
    /// What the tracer itself takes: CPU, memory, and time to attach and to let go.
    Footprint,
    /// What it takes to draw a large recording in each format. Needs no root; writes docs/reports.md.
    Reports,
    /// How right functions of JavaScript, Python and Java are, by version, and under load; writes docs/runtimes.md.
    Runtimes {
        /// How many stacks of code that moves, and is dropped, each runtime gives.
        #[arg(long, default_value_t = 10_000)]
        stacks: u32,
        /// Only these languages.
        #[arg(long, value_enum)]
        only: Vec<runtimes::Language>,
    },
    /// Whether the tracer's memory and CPU time stay the same however long it records.
    Soak {
        /// How long it records, in minutes.
        #[arg(long, default_value_t = 30)]
        minutes: u32,
    },
    /// How many stacks of real programs under load are complete; writes docs/unwinding.md.
    Stacks {
        /// How long each is recorded.
        #[arg(long, default_value_t = 8)]
        seconds: u64,
        /// Only programs whose title has this in it; the document is left alone.
        #[arg(long)]
        only: Vec<String>,
    },
    /// What walking stacks costs, by unwind tables and by frame pointers, and what making the tables takes.
    Unwind {
        /// How often each depth is measured; the median counts.
        #[arg(long, default_value_t = 7)]
        rounds: usize,
        /// How long one measurement takes, in milliseconds.
        #[arg(long, default_value_t = 300)]
        milliseconds: u32,
    },
    /// What `tracer watch` takes on a host of 500 control groups while all is well; writes docs/watch.md.
    Watch {
        /// How long it is measured.
        #[arg(long, default_value_t = 180)]
        seconds: u64,
        /// Watch for so many minutes instead, record and be scraped all the time, and see whether memory stays the same.
        #[arg(long, value_name = "MINUTES")]
        soak: Option<u32>,
    },
}

/// What the measurements need and where it is.
pub struct Bed {
    /// The tracer that is measured.
    tracer: PathBuf,
    /// The library that samples within a process.
    sampler: PathBuf,
    /// Puts empty probes in.
    empty_probes: PathBuf,
    /// Makes unwind tables, and says how long that took.
    unwind_tables: PathBuf,
    /// Sources of the workloads.
    sources: PathBuf,
    /// Headers of Node.js, for addons.
    node_headers: PathBuf,
    /// Where they are compiled to, and where sockets and reports go.
    scratch: PathBuf,
}

/// Builds, measures, prints tables and writes them into the document that they belong to.
///
/// # Errors
/// When something that is needed is not there, or a step fails.
pub fn bench(workspace: &Path, what: &Bench) -> Result<()> {
    let overhead = workspace.join("docs/overhead.md");
    match what {
        Bench::Overhead { rounds, milliseconds, quick, workloads, tools } => {
            let bed = Bed::make(workspace)?;
            let plan = overhead::Plan {
                rounds: rounds.unwrap_or(if *quick { 3 } else { 5 }),
                milliseconds: milliseconds.unwrap_or(if *quick { 200 } else { 1000 }),
                tools: tools.clone(),
            };
            let kinds = if workloads.is_empty() { workload::Kind::value_variants() } else { workloads };
            for &kind in kinds {
                let table = overhead::measure(&bed, &plan, kind)?;
                if *quick || !tools.is_empty() {
                    println!("{table}");
                } else {
                    write_down(&overhead, kind.name(), &table)?;
                }
            }
            Ok(())
        }
        Bench::Footprint => write_down(&overhead, "footprint", &footprint::measure(&Bed::make(workspace)?)?),
        Bench::Reports => {
            write_down(&workspace.join("docs/reports.md"), "reports", &reports::measure(workspace)?)
        }
        Bench::Runtimes { stacks, only } => {
            runtimes::prepare(workspace)?;
            let languages = if only.is_empty() { runtimes::Language::value_variants() } else { only };
            languages.iter().try_for_each(|&language| {
                let tables = runtimes::measure(workspace, language, *stacks)?;
                write_down(&workspace.join("docs/runtimes.md"), language.name(), &tables)
            })
        }
        Bench::Soak { minutes } => {
            write_down(&overhead, "soak", &soak::measure(&Bed::make(workspace)?, *minutes)?)
        }
        Bench::Stacks { seconds, only } => {
            let table = stacks::measure(&Bed::make(workspace)?, *seconds, only)?;
            if only.is_empty() {
                let mut gdb = run::cargo(workspace);
                gdb.args(["test", "--release", "--package", "tracer", "--test", "unwind_gdb"]);
                gdb.args(["--", "--ignored", "--nocapture"]);
                command::run("comparing stacks with those of gdb", &mut gdb)?;
                write_down(&workspace.join("docs/unwinding.md"), "complete", &table)
            } else {
                Ok(())
            }
        }
        Bench::Unwind { rounds, milliseconds } => {
            let tables = unwind::measure(&Bed::make(workspace)?, *rounds, *milliseconds)?;
            write_down(&workspace.join("docs/unwinding.md"), "cost", &tables)
        }
        Bench::Watch { soak: Some(minutes), .. } => {
            write_down(&workspace.join("docs/watch.md"), "soak", &watch::soak(workspace, *minutes)?)
        }
        Bench::Watch { seconds, soak: None } => {
            write_down(&workspace.join("docs/watch.md"), "cost", &watch::measure(workspace, *seconds)?)
        }
    }
}

fn write_down(document: &Path, section: &str, table: &str) -> Result<()> {
    println!("{table}");
    document::replace(document, section, table)
}

impl Bed {
    fn make(workspace: &Path) -> Result<Self> {
        ensure!(
            privilege::is_root(),
            "measuring attaches to processes and reads what they take: run it as root"
        );
        privilege::check_kernel()?;
        run::build(workspace)?;
        let mut example = run::cargo(workspace);
        example.args(["build", "--release", "--package", "tracer", "--examples"]);
        command::run("building the programs to compare with", &mut example)?;
        command::run("building the library that is preloaded", run::cargo(workspace).arg("sampler"))?;
        let scratch = workspace.join("target/bench");
        fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
        let bed = Self {
            tracer: run::binary(workspace),
            sampler: workspace.join("target/sampler/libtracer_sampler.so"),
            empty_probes: workspace.join("target/release/examples/empty_probes"),
            unwind_tables: workspace.join("target/release/examples/unwind_tables"),
            sources: workspace.join("tests/programs/bench"),
            node_headers: demo::node_headers(workspace)?,
            scratch,
        };
        for program in ["pairs", "blocks", "soak"] {
            bed.compile(program)?;
        }
        Ok(bed)
    }

    fn compile(&self, program: &str) -> Result<()> {
        self.compile_as(program, program, &["-fno-omit-frame-pointer"])
    }

    /// Compiles a source under a name of its own.
    fn compile_as(&self, name: &str, source: &str, flags: &[&str]) -> Result<()> {
        let mut compiler = Command::new("gcc");
        compiler
            .args(["-O2", "-g", "-pthread", "-Wall", "-Wextra"])
            .args(flags)
            .arg("-o")
            .arg(self.program(name))
            .arg(self.sources.join(source).with_extension("c"));
        command::run_quietly(&format!("compiling {name}"), &mut compiler)
    }

    /// A compiled workload.
    fn program(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }
}
