//! What is said on standard error while the terminal is drawn on: it would be drawn over, so it is held back until the
//! terminal is free again. The display shows the latest.

use std::{
    io::{self, Write},
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::termios::isatty;

#[derive(Default)]
struct PendingMessages {
    /// Whether the terminal is drawn on.
    holds: bool,
    lines: Vec<String>,
    latest: Option<String>,
}

static HELD: Mutex<PendingMessages> =
    Mutex::new(PendingMessages { holds: false, lines: Vec::new(), latest: None });

/// No more lines are kept: a log in full belongs into a file (`2> FILE`).
const MOST_LINES: usize = 10_000;

fn held() -> MutexGuard<'static, PendingMessages> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on nothing is written to the terminal.
pub fn hold_back() {
    held().holds = isatty(io::stderr());
}

/// Writes what was held back.
pub fn let_go() {
    let PendingMessages { lines, .. } = mem::take(&mut *held());
    for line in lines {
        // A terminal that is gone has nobody before it.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// Keeps a line that the display has been told, for when it is gone.
pub fn keep(line: &str) {
    let mut held = held();
    if !held.holds {
        drop(held);
        let _ = writeln!(io::stderr(), "{line}");
    } else if held.lines.len() < MOST_LINES {
        held.lines.push(line.to_owned());
    }
}

/// The last line that the log had, if it is new.
pub fn take_latest() -> Option<String> {
    held().latest.take()
}

/// Standard error, for the log.
pub fn log_sink() -> Box<dyn Write + Send> {
    Box::new(Sink)
}

struct Sink;

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        for line in text.lines() {
            keep(line);
            let mut held = held();
            if held.holds {
                held.latest = Some(line.to_owned());
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
