//! The directory of the reports: their names, the index, and what is removed when there is too much.
//!
//! The index is written before a recording begins and after it has ended, each time whole, so that whatever killed the service the next
//! start knows which files are whose. Reports themselves are written whole or not at all, by who records.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use crate::{model::End, report::Format};

/// What is written of each recording.
pub const FORMATS: [Format; 3] = [Format::Html, Format::JsonGz, Format::Pprof];

/// How the names of files begin that are being written, or nobody's any more: at the start they are removed.
pub const UNFINISHED: &str = ".tracer-";

/// The name of the index.
pub const INDEX: &str = "index.json";
const LOCK: &str = ".lock";

/// How much is kept. The last recording of a subject always is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Recordings.
    pub count: usize,
    /// Their age.
    pub age: Duration,
    /// Bytes of their files together.
    pub bytes: u64,
}

/// One recording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What its files' names begin with.
    pub name: String,
    /// Who was recorded.
    pub subject: String,
    /// Which condition asked for it.
    pub trigger: String,
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// How far it is.
    pub state: State,
    /// The processes, as `node (4242)`.
    pub processes: Vec<String>,
    /// Its files.
    #[serde(default)]
    pub files: Vec<String>,
    /// Their size.
    #[serde(default)]
    pub bytes: u64,
    /// How many processes of the subject the kernel killed meanwhile.
    #[serde(default)]
    pub oom_kills: u64,
    /// CPU time that it took: its own, and what its probes took of who was recorded.
    #[serde(default)]
    pub cpu_seconds: f64,
    /// What a reader should know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Why there is no report, or not all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What the report says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

impl Entry {
    /// A recording that has begun, and of which nothing else is known yet.
    fn begun(name: &str, subject: &str, trigger: &str, started: u64) -> Self {
        Self {
            name: name.to_owned(),
            subject: subject.to_owned(),
            trigger: trigger.to_owned(),
            started,
            state: State::Recording,
            processes: Vec::new(),
            files: Vec::new(),
            bytes: 0,
            oom_kills: 0,
            cpu_seconds: 0.0,
            note: None,
            error: None,
            digest: None,
        }
    }
}

/// How a recording ended, beside what its reports say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// Why it did not end well.
    pub error: Option<String>,
    /// What a reader should know.
    pub note: Option<String>,
    /// How many processes of the subject the kernel killed meanwhile.
    pub oom_kills: u64,
    /// CPU time, as in [`Entry::cpu_seconds`].
    pub took: Duration,
}

/// How far a recording is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It goes on.
    Recording,
    /// Its reports are there.
    Done,
    /// Nothing came of it.
    Failed,
    /// Whoever recorded was killed; the reports are the last ones from before that.
    Interrupted,
}

#[derive(Deserialize)]
struct Index {
    schema: String,
    recordings: Vec<Entry>,
}

const SCHEMA: &str = "tracer.watch/1";

/// The directory.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    retention: Retention,
    entries: Vec<Entry>,
    /// Nobody else may write there.
    _lock: File,
}

impl Store {
    /// Opens the directory, makes it where it is missing, and settles what an earlier service left behind.
    ///
    /// # Errors
    /// When it cannot be made or written, or another service uses it.
    pub fn open(directory: &Path, retention: Retention) -> Result<Self> {
        let place = || format!("cannot use {} (--dir)", directory.display());
        // Reports have command lines in them.
        fs::DirBuilder::new().recursive(true).mode(0o750).create(directory).with_context(place)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join(LOCK))
            .with_context(place)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another tracer watch writes to {}: choose another --dir", directory.display());
        }
        let mut store = Self { directory: directory.to_owned(), retention, entries: Vec::new(), _lock: lock };
        store.entries = store.read_index();
        store.settle_all();
        store.prune(SystemTime::now());
        store.write_index().with_context(place)?;
        Ok(store)
    }

    /// Every recording, oldest first.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How much is kept from now on.
    pub const fn set_retention(&mut self, retention: Retention) {
        self.retention = retention;
    }

    /// Enters a recording that is about to begin, and returns the names of its files.
    pub fn begin(&mut self, subject: &str, trigger: &str, processes: Vec<String>, now: SystemTime) -> String {
        let started = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let name = self.free_name(subject, now);
        self.entries.push(Entry { processes, ..Entry::begun(&name, subject, trigger, started) });
        self.save();
        name
    }

    /// The files of a recording, by format.
    pub fn outputs(&self, name: &str) -> impl Iterator<Item = PathBuf> {
        FORMATS.map(|format| self.directory.join(format!("{name}{}", format.ending()))).into_iter()
    }

    /// Where the files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Notes that reports were written while the recording goes on.
    pub fn wrote(&mut self, name: &str) {
        self.settle(name);
        self.save();
    }

    /// CPU time of the recordings that began so long ago at most.
    #[must_use]
    pub fn cpu_time_since(&self, now: SystemTime, time: Duration) -> Duration {
        let since = now.checked_sub(time).and_then(|since| since.duration_since(UNIX_EPOCH).ok());
        let since = since.unwrap_or_default().as_secs();
        let recent = self.entries.iter().filter(|entry| entry.started >= since);
        // The file may say anything.
        let seconds: f64 = recent.map(|entry| entry.cpu_seconds).filter(|seconds| *seconds > 0.0).sum();
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }

    /// Notes how a recording ended.
    pub fn end(&mut self, name: &str, ending: Ending) -> Option<&Entry> {
        let Ending { error, note, oom_kills, took } = ending;
        let files = self.settle(name);
        let digest = self.digest(&files);
        let entry = self.entries.iter_mut().find(|entry| entry.name == name)?;
        entry.state = match (&digest, &error) {
            (None, _) => State::Failed,
            (Some(digest), Some(_)) if digest.end.is_none() => State::Interrupted,
            _ => State::Done,
        };
        // Who is recorded may be known to have been killed when nobody else says so.
        let is_killed = digest.as_ref().is_some_and(|digest| digest.end == Some(End::OomKilled));
        entry.oom_kills = oom_kills.max(is_killed.into());
        (entry.digest, entry.error, entry.note) = (digest, error, note);
        entry.cpu_seconds = (took.as_secs_f64() * 1000.0).round() / 1000.0;
        self.prune(SystemTime::now());
        self.save();
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// Writes the index, or says why that failed: recordings go on without it.
    fn save(&self) {
        if let Err(error) = self.write_index() {
            log::error!("cannot write {}: {error:#}", self.directory.join(INDEX).display());
        }
    }

    fn write_index(&self) -> Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .permissions(fs::Permissions::from_mode(0o640))
            .tempfile_in(&self.directory)?;
        file.write_all(&index_of(&self.entries)?)?;
        file.as_file().sync_all()?;
        file.persist(self.directory.join(INDEX))?;
        Ok(())
    }

    /// What the index says, or the files where it is not there or damaged.
    fn read_index(&self) -> Vec<Entry> {
        let path = self.directory.join(INDEX);
        let read = match fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Index>(&text).map_err(io::Error::from),
            Err(error) => Err(error),
        };
        match read {
            Ok(index) if index.schema == SCHEMA => index.recordings,
            Ok(_) => self.found(),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    log::warn!("cannot read {}, so it is made anew: {error}", path.display());
                }
                self.found()
            }
        }
    }

    /// Entries made from the reports that are there.
    fn found(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self
            .file_names()
            .iter()
            .filter_map(|file| {
                let name = file.strip_suffix(Format::JsonGz.ending())?;
                let (subject, _) = name.rsplit_once("-2")?;
                let modified =
                    fs::metadata(self.directory.join(file)).and_then(|file| file.modified()).ok()?;
                let started = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                Some(Entry::begun(name, subject, "unknown", started))
            })
            .collect();
        entries.sort_by(|a, b| (a.started, &a.name).cmp(&(b.started, &b.name)));
        entries
    }

    /// Nobody records at the start: what goes on by the index was interrupted, and what lacks its files has gone.
    fn settle_all(&mut self) {
        for leftover in self.file_names().iter().filter(|name| name.starts_with(UNFINISHED)) {
            self.remove(leftover);
        }
        let names: Vec<String> = self.entries.iter().map(|entry| entry.name.clone()).collect();
        for name in names {
            let files = self.settle(&name);
            let Some(index) = self.entries.iter().position(|entry| entry.name == name) else { continue };
            if self.entries[index].state != State::Recording {
                continue;
            }
            let digest = self.digest(&files);
            let entry = &mut self.entries[index];
            entry.state = match &digest {
                Some(digest) if digest.end.is_some() => State::Done,
                _ => State::Interrupted,
            };
            entry.error = (entry.state == State::Interrupted)
                .then(|| "tracer watch was killed while it recorded; this is what was written before".into());
            entry.digest = digest;
        }
        let is_empty = |entry: &Entry| entry.files.is_empty() && entry.state != State::Failed;
        self.entries.retain(|entry| !is_empty(entry));
    }

    /// Finds the files of a recording: the last that were written. Those before them are removed.
    fn settle(&mut self, name: &str) -> Vec<String> {
        let mut by_number: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for file in self.file_names() {
            if let Some(number) = number_of(&file, name) {
                by_number.entry(number).or_default().push(file);
            }
        }
        // While the next ones are being written, the last that are complete count.
        let whole = by_number.iter().rev().find(|(_, files)| files.len() == FORMATS.len());
        let last = whole.or_else(|| by_number.iter().next_back()).map(|(&number, _)| number);
        let files = last.and_then(|last| by_number.get(&last)).cloned().unwrap_or_default();
        let before = by_number.range(..last.unwrap_or(0)).flat_map(|(_, files)| files);
        before.for_each(|file| self.remove(file));
        let size = |file: &String| fs::metadata(self.directory.join(file)).map_or(0, |file| file.len());
        let bytes = files.iter().map(size).sum();
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.name == name) {
            (entry.files, entry.bytes) = (files.clone(), bytes);
        }
        files
    }

    fn digest(&self, files: &[String]) -> Option<Digest> {
        let file = files.iter().find(|file| file.ends_with(Format::JsonGz.ending()))?;
        Digest::of_file(&self.directory.join(file)).inspect_err(|error| log::warn!("{error:#}")).ok()
    }

    fn file_names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    }

    fn remove(&self, file: &str) {
        let path = self.directory.join(file);
        if let Err(error) = fs::remove_file(&path) {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    }

    /// Removes what is too much.
    pub fn prune(&mut self, now: SystemTime) {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let expired = expired(&self.entries, self.retention, now);
        for &index in &expired {
            self.entries[index].files.iter().for_each(|file| self.remove(file));
        }
        let mut index = 0;
        self.entries.retain(|_| {
            index += 1;
            !expired.contains(&(index - 1))
        });
    }

    fn free_name(&self, subject: &str, now: SystemTime) -> String {
        let time: String = humantime::format_rfc3339_seconds(now).to_string().replace(['-', ':'], "");
        let name = format!("{}-{time}", plain(subject));
        let is_taken = |name: &str| self.entries.iter().any(|entry| entry.name == name);
        let numbered = (2..).map(|number| format!("{name}-{number}"));
        std::iter::once(name.clone()).chain(numbered).find(|name| !is_taken(name)).unwrap_or(name)
    }
}

/// The text of an index.
///
/// # Errors
/// Never, in fact: nothing in an entry has no JSON.
pub fn index_of(entries: &[Entry]) -> serde_json::Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Borrowed<'a> {
        schema: &'a str,
        recordings: &'a [Entry],
    }
    serde_json::to_vec_pretty(&Borrowed { schema: SCHEMA, recordings: entries })
}

/// Finds out whether the directory can be used, and changes nothing.
///
/// # Errors
/// One line that says what to do.
pub fn check(directory: &Path) -> Result<()> {
    let place = || format!("cannot write to {} (--dir)", directory.display());
    if directory.exists() {
        return tempfile::tempfile_in(directory).map(drop).with_context(place);
    }
    let above = directory.ancestors().find(|above| above.is_dir()).unwrap_or(Path::new("/"));
    tempfile::tempfile_in(above).map(drop).with_context(place)
}

/// A subject is called as others like; it must not choose the directory, hide its files, or have names that are too long.
fn plain(subject: &str) -> String {
    const LONGEST: usize = 120;
    let letter =
        |letter: char| if letter.is_ascii_alphanumeric() || "-_.+".contains(letter) { letter } else { '_' };
    let plain: String = subject.chars().map(letter).take(LONGEST).collect();
    plain.strip_prefix('.').map_or(plain.clone(), |rest| format!("_{rest}"))
}

/// Which of the reports of a recording a file is: 1 and so on while it went on, the last number at its end.
fn number_of(file: &str, name: &str) -> Option<u32> {
    let rest = file.strip_prefix(name)?;
    let rest = FORMATS.iter().find_map(|format| rest.strip_suffix(format.ending()))?;
    if rest.is_empty() { Some(u32::MAX) } else { rest.strip_prefix('.')?.parse().ok() }
}

/// The places of what is too old or too much, oldest first. The entries are in the order of time.
fn expired(entries: &[Entry], retention: Retention, now: u64) -> BTreeSet<usize> {
    let last: BTreeMap<&str, usize> =
        entries.iter().enumerate().map(|(index, entry)| (entry.subject.as_str(), index)).collect();
    let may_go = |index: usize, entry: &Entry| {
        last[entry.subject.as_str()] != index && entry.state != State::Recording
    };
    let mut count = entries.len();
    let mut bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
    let mut expired = BTreeSet::new();
    for (index, entry) in entries.iter().enumerate().filter(|(index, entry)| may_go(*index, entry)) {
        let is_old = Duration::from_secs(now.saturating_sub(entry.started)) > retention.age;
        if is_old || count > retention.count || bytes > retention.bytes {
            expired.insert(index);
            count -= 1;
            bytes -= entry.bytes;
        }
    }
    expired
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::report::{Options, destination::Destination, fixtures};

    const KEEP_ALL: Retention = Retention { count: 1000, age: Duration::from_secs(1 << 30), bytes: u64::MAX };

    pub fn entry(subject: &str, started: u64, bytes: u64, state: State) -> Entry {
        Entry { bytes, state, ..Entry::begun("", subject, "", started) }
    }

    fn failure(why: &str) -> Ending {
        Ending { error: Some(why.into()), ..Ending::default() }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn write(store: &Store, name: &str, number: Option<u32>) {
        for path in store.outputs(name) {
            let destination = Destination::parse(&path, None).unwrap();
            let destination = number.map_or(Some(destination.clone()), |number| destination.numbered(number));
            let mut profile = fixtures::node();
            if number.is_some() {
                profile.window.end = None;
            }
            destination.unwrap().write(&profile, &Options::default()).unwrap();
        }
    }

    fn files(directory: &Path) -> Vec<String> {
        let names =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != LOCK && name != INDEX).collect();
        names.sort();
        names
    }

    #[test]
    fn a_recording_is_in_the_index_from_its_begin_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), KEEP_ALL).unwrap();
        let name = store.begin("shop/web-0/node", "usage > 80%", vec!["node (7)".into()], at(0));
        assert_eq!(name, "shop_web-0_node-20270115T080000Z");
        assert_eq!(store.begin("shop/web-0/node", "usage > 80%", vec![], at(0)), format!("{name}-2"));
        write(&store, &name, Some(1));
        store.wrote(&name);
        write(&store, &name, Some(2));
        store.wrote(&name);
        assert_eq!(
            files(directory.path()),
            [".html", ".json.gz", ".pb.gz"].map(|end| format!("{name}.2{end}"))
        );
        write(&store, &name, None);
        let entry = store
            .end(&name, Ending { oom_kills: 1, took: Duration::from_millis(1500), ..Ending::default() })
            .unwrap()
            .clone();
        assert_eq!((entry.state, entry.oom_kills, entry.files.len()), (State::Done, 1, 3));
        assert!(entry.digest.unwrap().verdict.is_some() && entry.bytes > 0);
        assert_eq!(
            files(directory.path()),
            [".html", ".json.gz", ".pb.gz"].map(|end| format!("{name}{end}"))
        );
        let failed = store.end(&format!("{name}-2"), failure("no such process")).unwrap();
        assert_eq!(failed.state, State::Failed);
        // The budget of CPU time is that of a service that was started anew, too.
        drop(store);
        let store = Store::open(directory.path(), KEEP_ALL).unwrap();
        let hour = Duration::from_secs(3600);
        assert_eq!(store.cpu_time_since(at(3600), hour), Duration::from_millis(1500));
        assert_eq!(store.cpu_time_since(at(3601), hour), Duration::ZERO);
        assert_eq!(store.cpu_time_since(UNIX_EPOCH, hour), Duration::from_millis(1500), "a clock that jumps");
    }

    #[test]
    fn what_was_being_recorded_when_the_service_was_killed_is_settled_at_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), KEEP_ALL).unwrap();
        let [nothing, partly, half, whole] =
            ["a", "b", "c", "d"].map(|subject| store.begin(subject, "x > 1", vec![], at(1)));
        write(&store, &partly, Some(1));
        write(&store, &half, Some(1));
        fs::write(directory.path().join(format!("{half}.2.html")), "only one of three").unwrap();
        write(&store, &whole, None);
        fs::write(directory.path().join(".tracer-abc"), "half a report").unwrap();
        drop(store);

        let store = Store::open(directory.path(), KEEP_ALL).unwrap();
        let states: Vec<_> =
            store.entries().iter().map(|entry| (&entry.name, entry.state, entry.files.len())).collect();
        let expected =
            [(&partly, State::Interrupted, 3), (&half, State::Interrupted, 3), (&whole, State::Done, 3)];
        assert_eq!(states, expected);
        assert!(!files(directory.path()).iter().any(|file| file.contains(&nothing) || file.starts_with('.')));
    }

    #[test]
    fn an_index_that_is_damaged_is_made_anew_from_the_reports() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), KEEP_ALL).unwrap();
        let name = store.begin("web", "usage > 80%", vec![], at(0));
        write(&store, &name, None);
        store.end(&name, Ending::default());
        drop(store);
        for damage in ["", "{", "{\"schema\":\"another\",\"recordings\":[]}"] {
            fs::write(directory.path().join(INDEX), damage).unwrap();
            let store = Store::open(directory.path(), KEEP_ALL).unwrap();
            let [entry] = store.entries() else { panic!("one recording") };
            assert_eq!((entry.subject.as_str(), entry.state), ("web", State::Done));
        }
    }

    #[test]
    fn two_services_do_not_share_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let _first = Store::open(directory.path(), KEEP_ALL).unwrap();
        let second = Store::open(directory.path(), KEEP_ALL).unwrap_err();
        assert!(second.to_string().contains("another tracer watch"), "{second}");
    }

    #[test]
    fn the_oldest_goes_first_and_never_the_last_of_a_subject() {
        let entries = [
            entry("quiet", 0, 10, State::Done),
            entry("web", 1, 10, State::Done),
            entry("web", 2, 10, State::Recording),
            entry("web", 3, 10, State::Failed),
            entry("web", 4, 10, State::Done),
            entry("web", 5, 10, State::Done),
        ];
        let expired = |retention: Retention| Vec::from_iter(expired(&entries, retention, 100));
        assert_eq!(expired(KEEP_ALL), [0; 0]);
        assert_eq!(expired(Retention { count: 4, ..KEEP_ALL }), [1, 3]);
        assert_eq!(expired(Retention { count: 0, ..KEEP_ALL }), [1, 3, 4]);
        assert_eq!(expired(Retention { bytes: 55, ..KEEP_ALL }), [1]);
        assert_eq!(expired(Retention { age: Duration::from_secs(96), ..KEEP_ALL }), [1, 3]);
    }

    #[test]
    fn a_clock_that_jumps_loses_no_report() {
        const HOUR: Retention = Retention { age: Duration::from_secs(3600), ..KEEP_ALL };
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), HOUR).unwrap();
        let record = |store: &mut Store, seconds| {
            let name = store.begin("web", "usage > 80%", vec![], at(seconds));
            write(store, &name, None);
            store.settle(&name);
            store.entries.iter_mut().for_each(|entry| entry.state = State::Done);
            store.prune(at(seconds));
            name
        };
        let first = record(&mut store, 100_000);
        // A day back, twice the same second, and forth again.
        let names = [record(&mut store, 10), record(&mut store, 10)];
        assert_eq!(names[1], format!("{}-2", names[0]));
        assert_eq!(store.entries().len(), 3, "what is from the future is not old");
        let last = record(&mut store, 100_010);
        let left: Vec<_> = store.entries().iter().map(|entry| entry.name.clone()).collect();
        assert_eq!(left, [first, last.clone()], "what is a day old goes");
        // Ten years forth: the last one of a subject stays.
        store.prune(at(10 * 365 * 86_400));
        assert_eq!(store.entries().iter().map(|entry| &entry.name).collect::<Vec<_>>(), [&last]);
        assert_eq!(files(directory.path()).len(), 3);
    }

    #[test]
    fn names_of_subjects_stay_in_the_directory() {
        assert_eq!(plain("../../etc/passwd"), "_._.._etc_passwd");
        assert_eq!(plain("größe\n/x"), "gr__e__x");
        assert_eq!(plain(&"x".repeat(1000)).len(), 120);
    }

    #[test]
    fn a_full_disk_is_survived() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), KEEP_ALL).unwrap();
        // No file can be made in a directory that has gone, not even by root.
        fs::remove_dir_all(directory.path()).unwrap();
        let name = store.begin("web", "usage > 80%", vec![], at(0));
        let entry = store.end(&name, failure("the disk is full")).unwrap();
        assert_eq!((entry.state, entry.error.as_deref()), (State::Failed, Some("the disk is full")));
    }
}
