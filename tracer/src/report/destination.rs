//! Where reports go: `-o FILE`, or `-o -` for standard output. A file is written whole or not at all, and one that fails
//! does not keep the others from being written.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Format, Options, UnknownEnding};
use crate::model::Profile;
use crate::target::launch;

/// One report to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// In which format.
    pub format: Format,
    /// To where.
    pub place: OutputPlace,
}

/// Where a report goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputPlace {
    /// Standard output.
    Stdout,
    /// A file, or something like one (a pipe, a device).
    Path(PathBuf),
}

/// Why an `-o` makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDestination {
    /// Nothing says the format.
    #[error(transparent)]
    Ending(#[from] UnknownEnding),
    /// It is a directory.
    #[error("{} is a directory; name a file in it, such as {}", .0.display(), .0.join("leak.svg").display())]
    Directory(PathBuf),
    /// Standard output has no ending.
    #[error(
        "the format for standard output is not known; say it with --format, for instance --format folded"
    )]
    NoFormat,
}

/// Why a report could not be written; one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The directory is not there.
    #[error("cannot write {}: there is no directory {}; create it or choose another place with -o", .path.display(), .directory.display())]
    NoDirectory {
        /// The report.
        path: PathBuf,
        /// What should hold it.
        directory: PathBuf,
    },
    /// The place is a directory.
    #[error("cannot write {}: it is a directory; name a file in it with -o", .0.display())]
    IsDirectory(PathBuf),
    /// The system refused.
    #[error("cannot write {}: {reason}; {advice}", .path.display(), reason = reason(.source), advice = advice(.source))]
    System {
        /// The report.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Standard output took no more.
    #[error("cannot write the report to standard output: {}", reason(.0))]
    Stdout(#[source] io::Error),
}

impl Destination {
    /// Reads an `-o` argument. `format` is that of `--format`; it is needed for `-`, and decides where an ending does not.
    pub fn parse(argument: &Path, format: Option<Format>) -> Result<Self, BadDestination> {
        if argument == Path::new("-") {
            let format = format.ok_or(BadDestination::NoFormat)?;
            return Ok(Self { format, place: OutputPlace::Stdout });
        }
        if argument.is_dir() {
            return Err(BadDestination::Directory(argument.to_owned()));
        }
        let format = Format::from_path(argument).or_else(|unknown| format.ok_or(unknown))?;
        Ok(Self { format, place: OutputPlace::Path(argument.to_owned()) })
    }

    /// Finds out whether the report can be written, before an hour is spent on recording it. Leaves nothing behind.
    pub fn check(&self) -> Result<(), WriteError> {
        match &self.place {
            OutputPlace::Stdout => Ok(()),
            OutputPlace::Path(path) => Sink::open(path).map(drop),
        }
    }

    /// Writes the report.
    pub fn write(&self, profile: &Profile, options: &Options) -> Result<(), WriteError> {
        self.write_with(|out| self.format.report().write(profile, options, out))
    }

    /// Writes what `report` writes.
    pub fn write_with(
        &self,
        report: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        match &self.place {
            OutputPlace::Stdout => {
                let mut out = BufWriter::new(io::stdout().lock());
                report(&mut out).and_then(|()| out.flush()).map_err(WriteError::Stdout)
            }
            OutputPlace::Path(path) => {
                let mut sink = Sink::open(path)?;
                let mut out = BufWriter::with_capacity(1 << 18, sink.file());
                let written = report(&mut out).and_then(|()| out.flush());
                drop(out);
                written.and_then(|()| sink.keep()).map_err(|source| system(path, source))
            }
        }
    }
}

/// Writes every report that can be written, and tells which were and why others were not.
pub fn write_all<'a>(
    destinations: &'a [Destination],
    profile: &Profile,
    options: &Options,
) -> (Vec<&'a Destination>, Vec<WriteError>) {
    let mut written = Vec::new();
    let mut errors = Vec::new();
    for destination in destinations {
        match destination.write(profile, options) {
            Ok(()) => written.push(destination),
            Err(error) => errors.push(error),
        }
    }
    (written, errors)
}

/// What takes the bytes of one report.
enum Sink {
    /// A file beside the final one, which takes its place when it is whole; dropped before that, it vanishes.
    Beside { file: tempfile::NamedTempFile, target: PathBuf },
    /// A pipe or a device, which cannot be replaced: `-o /dev/null` run by root must not make a file of it.
    Direct(File),
}

impl Sink {
    fn open(path: &Path) -> Result<Self, WriteError> {
        // A symbolic link stays one: what it points at is replaced.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match fs::metadata(&target) {
            Ok(found) if found.is_dir() => return Err(WriteError::IsDirectory(path.to_owned())),
            Ok(found) if !found.is_file() => {
                let file =
                    File::options().write(true).open(&target).map_err(|source| system(path, source))?;
                return Ok(Sink::Direct(file));
            }
            _ => {}
        }
        let directory = match target.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        if !directory.is_dir() {
            return Err(WriteError::NoDirectory { path: path.to_owned(), directory: directory.to_owned() });
        }
        // As any program's output: the umask decides who may read it.
        let file = tempfile::Builder::new()
            .prefix(".tracer-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory)
            .map_err(|source| system(path, source))?;
        Ok(Sink::Beside { file, target })
    }

    fn file(&mut self) -> &mut File {
        match self {
            Sink::Beside { file, .. } => file.as_file_mut(),
            Sink::Direct(file) => file,
        }
    }

    fn keep(self) -> io::Result<()> {
        match self {
            Sink::Beside { file, target } => {
                if let Some((user, group)) = owner(&target) {
                    // Where files have no owners of their own, the report is the tracer's.
                    let _ = std::os::unix::fs::fchown(file.as_file(), Some(user), Some(group));
                }
                // Some file systems say only now that they are full.
                file.as_file().sync_all()?;
                file.persist(target)?;
                Ok(())
            }
            Sink::Direct(_) => Ok(()),
        }
    }
}

/// Whose a report is to be when root writes it: that of the file it replaces, else that of who called sudo.
fn owner(target: &Path) -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let replaced = fs::metadata(target).map(|found| (found.uid(), found.gid())).ok();
    replaced.or_else(launch::caller_of_sudo)
}

fn system(path: &Path, source: io::Error) -> WriteError {
    WriteError::System { path: path.to_owned(), source }
}

/// What the system said, without Rust's `(os error 28)` and without the path of a temporary file.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only".into(),
        io::ErrorKind::StorageFull => "the disk is full".into(),
        io::ErrorKind::QuotaExceeded => "the disk quota is used up".into(),
        io::ErrorKind::BrokenPipe => "the reader closed the pipe".into(),
        _ => error.to_string(),
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room or choose another place with -o"
        }
        _ => "choose another place with -o",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixtures;

    fn to(path: &Path) -> Destination {
        Destination::parse(path, None).unwrap()
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn arguments_become_destinations() {
        let parse = |argument: &str, format| Destination::parse(Path::new(argument), format);
        assert_eq!(parse("a.json", Some(Format::Svg)).unwrap().format, Format::Json);
        assert_eq!(parse("a.txt", Some(Format::Svg)).unwrap().format, Format::Svg);
        let stdout = Destination { format: Format::Folded, place: OutputPlace::Stdout };
        assert_eq!(parse("-", Some(Format::Folded)), Ok(stdout));
        assert_eq!(parse("-", None), Err(BadDestination::NoFormat));
        assert!(matches!(parse("a.txt", None), Err(BadDestination::Ending(_))));
        assert!(matches!(parse("/", Some(Format::Svg)), Err(BadDestination::Directory(_))));
    }

    #[test]
    fn every_report_that_can_be_written_is_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("taken.svg")).unwrap();
        fs::write(at("old.folded"), "old").unwrap();
        let destinations = ["a.json", "missing/b.svg", "taken.svg", "old.folded"].map(|name| Destination {
            format: Format::from_path(Path::new(name)).unwrap(),
            place: OutputPlace::Path(at(name)),
        });

        let (written, errors) = write_all(&destinations, &fixtures::node(), &Options::default());

        assert_eq!(written, [&destinations[0], &destinations[3]]);
        assert!(
            matches!(errors[..], [WriteError::NoDirectory { .. }, WriteError::IsDirectory(_)]),
            "{errors:?}"
        );
        assert_eq!(names(directory.path()), ["a.json", "old.folded", "taken.svg"]);
        assert!(fs::read_to_string(at("old.folded")).unwrap().contains("malloc 46006272"));
    }

    #[test]
    fn a_check_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let error = to(&directory.path().join("no/such/a.svg")).check().unwrap_err().to_string();
        assert!(error.contains("no directory") && error.lines().count() == 1, "{error}");
        to(&directory.path().join("a.svg")).check().unwrap();
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn what_a_link_points_at_is_replaced_and_a_pipe_or_device_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("real.json"), "old").unwrap();
        std::os::unix::fs::symlink("real.json", at("link.json")).unwrap();
        std::os::unix::fs::symlink("/dev/null", at("null.json")).unwrap();

        to(&at("link.json")).write(&fixtures::empty(), &Options::default()).unwrap();
        to(&at("null.json")).write(&fixtures::empty(), &Options::default()).unwrap();

        assert!(at("link.json").is_symlink());
        assert!(fs::read_to_string(at("real.json")).unwrap().contains("tracer.report/2"));
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn a_full_disk_keeps_the_old_report() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("full.json");
        std::os::unix::fs::symlink("/dev/full", &link).unwrap();
        let error = to(&link).write(&fixtures::node(), &Options::default()).unwrap_err().to_string();
        assert!(error.ends_with("the disk is full; make room or choose another place with -o"), "{error}");
    }
}
