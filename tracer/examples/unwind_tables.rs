//! Makes the unwind tables of files and prints what they hold and what they cost:
//! `cargo run --release --example unwind_tables -- /usr/bin/node /lib/x86_64-linux-gnu/libc.so.6`

use std::time::Instant;

use tracer::unwind::{Rules, Table};

fn main() {
    let mut all = Rules::new();
    println!(
        "{:>9} {:>9} {:>9} {:>6} {:>6} {:>6} {:>5} {:>5} {:>6} {:>6} {:>8}  file",
        "functions", "file rows", "rows", "rules", "unsup", "broken", "B/row", "most", "probes", "ms", "KiB"
    );
    for path in std::env::args().skip(1) {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                eprintln!("{path}: {error}");
                continue;
            }
        };
        let begun = Instant::now();
        let table = match Table::from_elf(&bytes) {
            Ok(table) => table,
            Err(error) => {
                eprintln!("{path}: {error}");
                continue;
            }
        };
        let took = begun.elapsed();
        assert_eq!(table.renumbered(&mut all).len(), table.rows().len());
        let (most, mean) = table.probes();
        let stats = table.stats();
        println!(
            "{:9} {:9} {:9} {:6} {:6} {:6} {:5.2} {most:5} {mean:6.2} {:6.1} {:8}  {path}",
            stats.functions,
            stats.file_rows,
            table.rows().len(),
            table.rules().len(),
            stats.unsupported_rows,
            stats.broken,
            table.kernel_bytes() as f64 / table.rows().len().max(1) as f64,
            took.as_secs_f64() * 1e3,
            table.kernel_bytes() / 1024,
        );
    }
    println!("distinct rules of all files together: {}", all.as_slice().len());
}
