//! The lines of a pipe, read as they come, but not waited for for ever.

use std::{
    io::{BufRead, BufReader, Read},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Instant,
};

use crate::process::PATIENCE;

/// Reads a pipe to its end in the background, so that its writer never blocks.
#[derive(Debug)]
pub struct Lines {
    incoming: Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    /// The lines of `pipe`; bytes that are not UTF-8 are replaced.
    pub fn of(pipe: impl Read + Send + 'static) -> Self {
        let (outgoing, incoming) = mpsc::channel();
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(pipe.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                if outgoing.send(text).is_err() {
                    break;
                }
                line.clear();
            }
        });
        Self { incoming, seen: Vec::new() }
    }

    /// Waits for a line of which `pick` makes something. `Err` says why there is none, with what came instead.
    pub fn find<T>(&mut self, pick: impl Fn(&str) -> Option<T>) -> Result<T, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.incoming.recv_timeout(left) {
                Ok(line) => {
                    let picked = pick(&line);
                    self.seen.push(line);
                    if let Some(picked) = picked {
                        return Ok(picked);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("nothing within {PATIENCE:?}, only: {:?}", self.seen));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(format!("it ended, after: {:?}", self.seen));
                }
            }
        }
    }

    /// Waits for the end of the pipe and returns every line that came through it.
    #[track_caller]
    #[must_use]
    pub fn until_end(mut self) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.incoming.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => return self.seen,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("still open after {PATIENCE:?}, and only this came: {:?}", self.seen)
                }
            }
        }
    }

    /// Every line so far.
    #[must_use]
    pub fn so_far(&mut self) -> &[String] {
        self.seen.extend(self.incoming.try_iter());
        &self.seen
    }
}
