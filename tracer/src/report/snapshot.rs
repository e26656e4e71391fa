//! Reports of a window that is still open: `leak.svg` becomes `leak.1.svg`, then `leak.2.svg`, and stays free for the end.

use std::path::Path;
use std::thread::{self, JoinHandle};

use super::Options;
use super::destination::{Destination, OutputPlace, write_all};
use crate::model::{Bytes, Profile};

/// One piece of work at a time, on a thread of its own; waited for when dropped.
#[derive(Debug, Default)]
pub struct Background(Option<JoinHandle<()>>);

impl Background {
    /// Whether there is work that is not done.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.0.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Does this, after what was given before.
    pub fn run(&mut self, work: impl FnOnce() + Send + 'static) {
        self.wait();
        match thread::Builder::new().name("reports".into()).spawn(work) {
            Ok(thread) => self.0 = Some(thread),
            Err(error) => log::error!("cannot start the thread that writes reports: {error}"),
        }
    }

    fn wait(&mut self) {
        if let Some(thread) = self.0.take() {
            // A panic has been told by the thread itself.
            let _ = thread.join();
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.wait();
    }
}

/// Writes the reports of a snapshot, and says in one line what was written, or what went wrong.
#[must_use]
pub fn write(number: u32, destinations: &[Destination], profile: &Profile, options: &Options) -> String {
    let numbered: Vec<_> =
        destinations.iter().filter_map(|destination| destination.numbered(number)).collect();
    if numbered.is_empty() {
        return format!("snapshot {number} is not written: no report goes to a file; name one with -o");
    }
    let (written, errors) = write_all(&numbered, profile, options);
    let places = written.iter().filter_map(|destination| match &destination.place {
        OutputPlace::Path(path) => Some(path.display().to_string()),
        OutputPlace::Stdout => None,
    });
    let outstanding = Bytes(profile.totals.weight_bytes);
    let mut line = format!("snapshot {number}, {outstanding} outstanding: ");
    line += &places.chain(errors.iter().map(ToString::to_string)).collect::<Vec<_>>().join(", ");
    line
}

impl Destination {
    /// Where the snapshot of this number goes; none for what is no file: standard output, a pipe, a device.
    #[must_use]
    pub fn numbered(&self, number: u32) -> Option<Self> {
        let OutputPlace::Path(path) = &self.place else { return None };
        if path.metadata().is_ok_and(|found| !found.is_file()) {
            return None;
        }
        let name = path.file_name()?.to_str()?;
        let ending = self.format.ending();
        let numbered = match name.strip_suffix(ending) {
            Some(stem) => format!("{stem}.{number}{ending}"),
            // `--format` said what the name does not.
            None => match Path::new(name).extension().and_then(|extension| extension.to_str()) {
                Some(extension) => {
                    format!("{}.{number}.{extension}", name.strip_suffix(extension)?.strip_suffix('.')?)
                }
                None => format!("{name}.{number}"),
            },
        };
        Some(Self { format: self.format, place: OutputPlace::Path(path.with_file_name(numbered)) })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::report::{Format, fixtures};

    fn numbered(path: &str, format: Option<Format>) -> Option<String> {
        let destination = Destination::parse(Path::new(path), format).unwrap().numbered(3)?;
        match destination.place {
            OutputPlace::Path(path) => Some(path.display().to_string()),
            OutputPlace::Stdout => None,
        }
    }

    #[test]
    fn the_number_goes_before_the_ending() {
        assert_eq!(numbered("leak.svg", None).unwrap(), "leak.3.svg");
        assert_eq!(numbered("out/a.b.pb.gz", None).unwrap(), "out/a.b.3.pb.gz");
        assert_eq!(numbered("leak.speedscope.json", None).unwrap(), "leak.3.speedscope.json");
        assert_eq!(numbered("leak.txt", Some(Format::Folded)).unwrap(), "leak.3.txt");
        assert_eq!(numbered("leak", Some(Format::Folded)).unwrap(), "leak.3");
    }

    #[test]
    fn what_is_no_file_gets_no_snapshot() {
        assert_eq!(numbered("-", Some(Format::Folded)), None);
        assert_eq!(numbered("/dev/null", Some(Format::Folded)), None);
    }

    #[test]
    fn a_snapshot_overwrites_neither_another_nor_the_report() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("leak.folded");
        let destination = Destination::parse(&path, None).unwrap();
        let profile = fixtures::node();
        for number in 1..=2 {
            let said = write(number, std::slice::from_ref(&destination), &profile, &Options::default());
            assert!(said.contains(&format!("leak.{number}.folded")) && said.contains("46.9 MiB"), "{said}");
        }
        let mut names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["leak.1.folded", "leak.2.folded"]);
    }

    #[test]
    fn it_is_said_that_there_is_no_file() {
        let stdout = Destination { format: Format::Folded, place: OutputPlace::Stdout };
        assert!(write(1, &[stdout], &fixtures::node(), &Options::default()).contains("-o"));
    }
}
