//! Runs the kernel tests on other kernels, in virtual machines: `cargo xtask vm`.
//!
//! A machine is a kernel of Debian's, which is unpacked and not installed, and one initramfs for all of them: busybox, the
//! tracer, the tests and the programs that they trace, each at the path that it has here. The tests judge by themselves, to the
//! byte; what the kernel complained of meanwhile is judged here.

mod boot;
mod image;
mod kernels;
mod machines;

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use self::{
    boot::Outcome,
    machines::{MACHINES, Machine},
};
use crate::{apt, run};

/// Which machines are started.
#[derive(Args)]
pub struct Options {
    /// Also the machines that CI leaves out; writes what came of each into docs/kernels.md.
    #[arg(long)]
    full: bool,
    /// Only machines with this name, or whose names contain it when none has it; can be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
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
    ("apparmor_parser", "apparmor"),
];

/// Starts the machines one after the other.
///
/// # Errors
/// When a kernel cannot be had, a test fails, or a kernel complains.
pub fn vm(workspace: &Path, options: &Options) -> Result<()> {
    apt::programs(PROGRAMS, "virtual machines")?;
    run::build(workspace)?;
    let chosen = chosen(options);
    ensure!(!chosen.is_empty(), "there is no such machine: {}", names());
    let image = image::make(workspace, &chosen)?;
    let mut outcomes = Vec::new();
    for machine in chosen {
        let kernel = kernels::get(workspace, machine.kernel)?;
        let outcome = boot::run(workspace, machine, &kernel, &image, options.kvm)?;
        eprintln!("xtask: {outcome}");
        if options.full {
            write_row(workspace, &outcome)?;
        }
        outcomes.push(outcome);
    }
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
    for outcome in &failed {
        eprintln!("{}", outcome.complaints());
    }
    ensure!(failed.is_empty(), "{} of {} virtual machines failed", failed.len(), outcomes.len());
    println!("{} passed, 0 failed", outcomes.iter().map(|outcome| outcome.passed).sum::<usize>());
    Ok(())
}

fn chosen(options: &Options) -> Vec<&'static Machine> {
    let is_chosen = |machine: &&Machine| options.full || machine.in_ci;
    let is_named = |machine: &&Machine| options.only.iter().any(|name| is_meant(machine, name));
    if options.only.is_empty() {
        MACHINES.iter().filter(is_chosen).collect()
    } else {
        MACHINES.iter().filter(is_named).collect()
    }
}

fn is_meant(machine: &Machine, name: &str) -> bool {
    let is_whole = MACHINES.iter().any(|machine| machine.name == name);
    if is_whole { machine.name == name } else { machine.name.contains(name) }
}

fn names() -> String {
    MACHINES.iter().map(|machine| machine.name).collect::<Vec<_>>().join("; ")
}

/// Between these lines stands the table of docs/kernels.md.
const BEGIN: &str = "<!-- written by `cargo xtask vm --full` -->\n";
const END: &str = "<!-- end -->";
const HEAD: &str = "| machine | kernel | tests | result |\n|---|---|--:|---|\n";

fn write_row(workspace: &Path, outcome: &Outcome) -> Result<()> {
    let path = workspace.join("docs/kernels.md");
    let text = fs::read_to_string(&path)?;
    Ok(fs::write(path, with_row(&text, outcome.name, &outcome.row())?)?)
}

/// The document with the row of one machine, and the rows that it has of others, in the order of the machines.
fn with_row(text: &str, name: &str, row: &str) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).context("no line says where the table begins")?;
    let (table, after) = rest.split_once(END).context("no line says where the table ends")?;
    let row_of = |machine: &Machine| {
        let begin = format!("| {} | ", machine.name);
        if machine.name == name { Some(row) } else { table.lines().find(|line| line.starts_with(&begin)) }
    };
    let rows: String = MACHINES.iter().filter_map(row_of).map(|row| format!("{row}\n")).collect();
    Ok(format!("{before}{BEGIN}{HEAD}{rows}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_named_whole_or_in_part() {
        let names = |only: &str| {
            let options = Options { full: false, only: vec![only.to_owned()], kvm: false };
            chosen(&options).iter().map(|machine| machine.name).collect::<Vec<_>>()
        };
        assert_eq!(names("6.1"), ["6.1"]);
        assert_eq!(names("RT"), ["6.1 RT", "6.12 RT", "newest RT"]);
        assert_eq!(names("2.6"), [""; 0]);
    }

    #[test]
    fn a_row_takes_the_place_of_the_machines_last_one() {
        let [first, second, ..] = MACHINES else { panic!("there are machines") };
        let row = |machine: &Machine, kernel| format!("| {} | {kernel} | 2 | all exact |", machine.name);
        let with = |text: &str, machine: &Machine, kernel| {
            with_row(text, machine.name, &row(machine, kernel)).expect("there is a table")
        };
        let text = format!("a\n{BEGIN}{END}\nb\n");
        let text = with(&with(&with(&text, second, "7"), first, "6"), second, "8");
        let rows = format!("{}\n{}\n", row(first, "6"), row(second, "8"));
        assert_eq!(text, format!("a\n{BEGIN}{HEAD}{rows}{END}\nb\n"));
    }
}
