//! Runs the kernel tests on other kernels, in virtual machines: `cargo xtask vm`.
//!
//! A machine is a kernel of Debian's, which is unpacked and not installed, and one initramfs for all of them: busybox, the
//! tracer, the tests and the programs that they trace, each at the path that it has here. The tests judge by themselves, to the
//! byte; what the kernel complained of meanwhile is judged here.

mod boot;
mod image;
mod kernels;
mod machines;

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Result, ensure};
use clap::Args;

use self::{
    boot::Outcome,
    machines::{MACHINES, Machine},
};
use crate::{apt, run};

/// Which machines are started.
#[derive(Args)]
pub struct Options {
    /// Also the kernels and machines that CI leaves out, with all tests that can run there; writes docs/kernels.md.
    #[arg(long)]
    full: bool,
    /// Only machines whose name contains this.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Use the processor's virtualization; without it each instruction is translated, some ten times slower.
    #[arg(long)]
    kvm: bool,
}

/// What Debian calls the programs that this needs.
const PROGRAMS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("setpriv", "util-linux"),
];

/// Starts the machines one after the other.
///
/// # Errors
/// When a kernel cannot be had, a test fails, or a kernel complains.
pub fn vm(workspace: &Path, options: &Options) -> Result<()> {
    apt::programs(PROGRAMS, "virtual machines")?;
    run::build(workspace)?;
    let is_chosen = |machine: &&Machine| {
        (options.full || machine.in_ci)
            && options.only.as_ref().is_none_or(|only| machine.name.contains(only.as_str()))
    };
    let chosen: Vec<_> = MACHINES.iter().filter(is_chosen).collect();
    ensure!(!chosen.is_empty(), "there is no such machine: {}", names());
    let image = image::make(workspace)?;
    let mut outcomes = Vec::new();
    for machine in chosen {
        let kernel = kernels::get(workspace, machine.kernel)?;
        let outcome = boot::run(workspace, machine, &kernel, &image, options.kvm)?;
        eprintln!("xtask: {outcome}");
        outcomes.push(outcome);
    }
    if options.full && options.only.is_none() {
        write_table(workspace, &outcomes)?;
    }
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
    for outcome in &failed {
        eprintln!("{}", outcome.complaints());
    }
    ensure!(failed.is_empty(), "{} of {} virtual machines failed", failed.len(), outcomes.len());
    println!("{} passed, 0 failed", outcomes.iter().map(|outcome| outcome.passed).sum::<usize>());
    Ok(())
}

fn names() -> String {
    MACHINES.iter().map(|machine| machine.name).collect::<Vec<_>>().join(", ")
}

/// Between these lines stands the table of docs/kernels.md.
const BEGIN: &str = "<!-- written by `cargo xtask vm --full` -->\n";
const END: &str = "<!-- end -->";

fn write_table(workspace: &Path, outcomes: &[Outcome]) -> Result<()> {
    let path = workspace.join("docs/kernels.md");
    let text = fs::read_to_string(&path)?;
    let (before, rest) = text.split_once(BEGIN).unwrap_or((&text, END));
    let after = rest.split_once(END).map_or("", |(_, after)| after);
    let mut table = "| machine | kernel | tests | result |\n|---|---|--:|---|\n".to_owned();
    for outcome in outcomes {
        let _ = writeln!(table, "{}", outcome.row());
    }
    fs::write(path, format!("{before}{BEGIN}{table}{END}{after}"))?;
    Ok(())
}
