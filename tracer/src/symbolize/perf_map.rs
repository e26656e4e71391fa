//! Names of just-in-time compiled code, from the perf map that a runtime keeps (`node --perf-basic-prof`,
//! `python -X perf`, perf-map-agent): one line a function, `START SIZE NAME`, in hex, appended as code is compiled.
//!
//! See `tools/perf/Documentation/jit-interface.txt` in the kernel's sources.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;

use super::jit_code::JitCode;
use crate::target::Target;

/// Bytes of a perf map that are read; what a runtime appends after them is not seen. A long-running node service
/// writes some tens of megabytes.
const READ_LIMIT: u64 = 256 << 20;

/// `st_mtime` and the time a process started come from clocks that differ by less than this.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

/// The functions of a perf map, as far as it has been read.
#[derive(Default)]
pub(super) struct PerfMap {
    /// The file and how much of it has been read.
    source: Option<(File, u64)>,
    /// The beginning of a line that was not complete when it was read.
    partial: Vec<u8>,
    functions: JitCode<Box<str>>,
}

impl PerfMap {
    /// Reads what the runtime has written since the last time.
    pub(super) fn update(&mut self, target: &Target) {
        if let Err(error) = self.try_update(target) {
            log::debug!("cannot read the perf map: {error}");
        }
    }

    /// The function whose code holds `address`.
    pub(super) fn find(&self, address: u64) -> Option<&str> {
        self.functions.find(address).map(|(_, name)| &**name)
    }

    fn try_update(&mut self, target: &Target) -> io::Result<()> {
        if self.replaced()? {
            *self = Self::default();
        }
        let (file, done) = match &mut self.source {
            Some(source) => source,
            source => match open(target) {
                Ok(file) => source.insert((file, 0)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            },
        };
        let read = file.take(READ_LIMIT.saturating_sub(*done)).read_to_end(&mut self.partial);
        *done += *read.as_ref().unwrap_or(&0) as u64;
        // What was read before an error has been appended all the same, and the file's position is after it.
        self.take_lines();
        read.map(|_| ())
    }

    /// Takes what has been read, as far as its lines are complete.
    fn take_lines(&mut self) {
        let complete = self.partial.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        for line in self.partial[..complete].split(|&byte| byte == b'\n') {
            if let Some((start, end, name)) = parse(line) {
                self.functions.add(start, end, name);
            }
        }
        self.partial.drain(..complete);
    }

    /// The map that consists of this text.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn of_text(text: &[u8]) -> Self {
        let mut map = Self { partial: text.to_vec(), ..Self::default() };
        map.take_lines();
        map
    }

    /// Whether the file was removed or cut since it was opened: a runtime that starts anew.
    fn replaced(&self) -> io::Result<bool> {
        let Some((file, done)) = &self.source else { return Ok(false) };
        let metadata = file.metadata()?;
        Ok(metadata.nlink() == 0 || metadata.len() < *done)
    }
}

/// The perf map that the target's runtime writes, if it is this process's.
///
/// Directories like `/tmp` are open to all: the file must belong to the target's user or to root, as `perf`
/// demands, and must have been written since the target started (pids are small and reused in containers).
fn open(target: &Target) -> io::Result<File> {
    let path = format!("/tmp/perf-{}.map", target.inner_pid());
    let file = target.open_in_root(Path::new(&path), OFlags::NOFOLLOW)?;
    let metadata = file.metadata()?;
    if metadata.uid() != target.user() && metadata.uid() != 0 {
        return Err(io::Error::other(format!("{path} belongs to another user")));
    }
    let is_older = |started| metadata.modified().is_ok_and(|at| at + CLOCK_SLACK < started);
    if since_epoch(target.start_time()).is_some_and(is_older) {
        return Err(io::Error::other(format!("{path} is older than the process")));
    }
    Ok(file)
}

/// The time of so many clock ticks since boot.
fn since_epoch(ticks: u64) -> Option<SystemTime> {
    let since_boot = Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second().max(1));
    let boot = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(boot))?.checked_add(since_boot)
}

fn parse(line: &[u8]) -> Option<(u64, u64, Box<str>)> {
    let mut fields = line.splitn(3, |&byte| byte == b' ');
    let mut hex = || {
        let digits = std::str::from_utf8(fields.next()?).ok()?;
        u64::from_str_radix(digits.trim_start_matches("0x"), 16).ok()
    };
    let (start, size) = (hex()?, hex()?);
    let name = String::from_utf8_lossy(fields.next()?.trim_ascii());
    (size > 0 && !name.is_empty()).then_some((start, start.checked_add(size)?, name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_since_boot_are_a_time() {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let now = since_epoch((seconds * rustix::param::clock_ticks_per_second() as f64) as u64).unwrap();
        let distance = now.duration_since(SystemTime::now()).unwrap_or_else(|error| error.duration());
        assert!(distance < CLOCK_SLACK, "{distance:?}");
    }

    #[test]
    fn lines_that_make_no_sense_are_skipped() {
        let text = b"\nzz 10 x\n1000 0 empty\n1000 10\nffffffffffffffff 2 over\n0x20 10 ok\n40 8 \xff\n";
        let map = PerfMap::of_text(text);
        assert_eq!(map.find(0x2f), Some("ok"));
        assert_eq!(map.find(0x40), Some("\u{fffd}"));
        assert_eq!(map.functions.len(), 2);
    }
}
