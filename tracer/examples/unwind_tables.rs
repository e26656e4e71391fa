//! Makes the unwind tables of files and prints, as a table for docs/unwinding.md, what they hold and what they cost:
//! `cargo run --release --example unwind_tables -- [--rounds N] /usr/bin/node /lib/x86_64-linux-gnu/libc.so.6`

use std::{path::Path, time::Instant};

use anyhow::{Context as _, Result};
use tracer::unwind::{Cache, CacheLimits, Origin, Rules, Table};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    let mut rounds = 1;
    if arguments.next_if(|argument| argument == "--rounds").is_some() {
        rounds = arguments.next().context("--rounds takes a number")?.parse()?;
    }
    let directory = std::env::temp_dir().join(format!("unwind-tables-{}", std::process::id()));
    let mut all = Rules::new();
    println!(
        "| file | functions | file rows | merged | rules | unsupported | broken | KiB | bytes a row | probes, most | mean | cold | cached |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for path in arguments {
        match describe(Path::new(&path), rounds, &directory, &mut all) {
            Ok(line) => println!("{line}"),
            Err(error) => eprintln!("{path}: {error:#}"),
        }
    }
    println!("\nDistinct rules of all files together: {}.", all.as_slice().len());
    Ok(())
}

fn describe(path: &Path, rounds: usize, directory: &Path, all: &mut Rules) -> Result<String> {
    let bytes = std::fs::read(path)?;
    let (mut cold, mut cached) = (Vec::new(), Vec::new());
    let mut table = Table::from_elf(&bytes)?;
    for _ in 0..rounds.max(1) {
        let begun = Instant::now();
        table = Table::from_elf(&bytes)?;
        cold.push(begun.elapsed());
        let cache = Cache::open(directory, CacheLimits::default())?;
        cache.table(&bytes)?;
        let begun = Instant::now();
        let (_, origin) = cache.table(&bytes)?;
        cached.push(begun.elapsed());
        anyhow::ensure!(origin == Origin::Cached, "it was not kept");
        std::fs::remove_dir_all(directory)?;
    }
    // The middle one.
    let [cold, cached] = [cold, cached].map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e3
    });
    assert_eq!(table.renumbered(all).len(), table.rows().len());
    let (most, mean) = table.probes();
    let (stats, rows) = (table.stats(), table.rows().len());
    Ok(format!(
        "| {} | {} | {} | {rows} | {} | {} | {} | {} | {:.1} | {most} | {mean:.1} | {cold:.1} ms | {cached:.1} ms |",
        path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default(),
        stats.functions,
        stats.file_rows,
        table.rules().len(),
        stats.unsupported_rows,
        stats.broken,
        table.kernel_bytes() / 1024,
        table.kernel_bytes() as f64 / rows.max(1) as f64,
    ))
}
