//! What waits to be sent to one destination: a directory, which outlives the service. Of each report a `.pb.gz` file, and a `.json` file beside it
//! that says what it is, written last.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// How many reports may wait.
const MOST: usize = 64;

/// And how large they may be together.
const MOST_BYTES: u64 = 256 << 20;

/// What a report is sent with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushedProfile {
    /// The name of the recording, in the index.
    pub name: String,
    /// Whose profile it is.
    pub service: String,
    /// What else is known of it.
    pub labels: BTreeMap<String, String>,
    /// When it began, in seconds since 1970.
    pub from: u64,
    /// When it ended.
    pub until: u64,
}

/// A report that waits.
#[derive(Debug, PartialEq, Eq)]
pub struct QueuedProfile {
    /// What it is sent with.
    pub pushed: PushedProfile,
    /// The `.pb.gz` file.
    pub file: PathBuf,
    /// Its size.
    bytes: u64,
}

/// The directory.
#[derive(Clone, Debug)]
pub struct Spool(PathBuf);

impl Spool {
    /// Opens it, and removes what a kill has left half done.
    pub fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let spool = Self(directory.to_owned());
        let whole: Vec<PathBuf> = spool.all().into_iter().map(|waiting| waiting.file).collect();
        for entry in fs::read_dir(directory)?.flatten() {
            let file = entry.path();
            if !whole.contains(&file) && !whole.contains(&file_of(&file)) {
                fs::remove_file(file)?;
            }
        }
        Ok(spool)
    }

    /// Adds a report, and removes the oldest when there are too many; gives the names of those.
    pub fn put(&self, pushed: &PushedProfile, pprof: &Path) -> io::Result<Vec<String>> {
        let (json, file) =
            (self.0.join(format!("{}.json", pushed.name)), self.0.join(format!("{}.pb.gz", pushed.name)));
        // It stays whatever becomes of the recording. On another file system, or one without such links, it is copied.
        if fs::hard_link(pprof, &file).is_err() {
            fs::copy(pprof, &file)?;
        }
        let mut note = tempfile::NamedTempFile::new_in(&self.0)?;
        serde_json::to_writer(note.as_file_mut(), pushed)?;
        note.persist(json)?;
        let mut all = self.all();
        let mut dropped = Vec::new();
        // What has just come is tried, however large it is.
        while all.len() > 1
            && (all.len() > MOST || all.iter().map(|waiting| waiting.bytes).sum::<u64>() > MOST_BYTES)
        {
            let oldest = all.remove(0);
            self.remove(&oldest)?;
            dropped.push(oldest.pushed.name);
        }
        Ok(dropped)
    }

    /// The oldest.
    pub fn first(&self) -> Option<QueuedProfile> {
        self.all().into_iter().next()
    }

    /// It was sent, or will not be.
    ///
    /// # Errors
    /// When it stays: it would be sent again.
    pub fn remove(&self, waiting: &QueuedProfile) -> io::Result<()> {
        // The note first: a file alone is no report.
        for file in [&self.0.join(format!("{}.json", waiting.pushed.name)), &waiting.file] {
            match fs::remove_file(file) {
                // Too much may have waited while it was being sent.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Oldest first.
    fn all(&self) -> Vec<QueuedProfile> {
        let mut all: Vec<QueuedProfile> = fs::read_dir(&self.0)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let note = entry.path();
                if note.extension()? != "json" {
                    return None;
                }
                let pushed: PushedProfile = serde_json::from_slice(&fs::read(&note).ok()?).ok()?;
                let file = file_of(&note);
                let bytes = fs::metadata(&file).ok()?.len();
                // The name is what the file is called, so that it leads nowhere else.
                (note.file_stem()?.to_str()? == pushed.name).then_some(QueuedProfile { pushed, file, bytes })
            })
            .collect();
        all.sort_by(|a, b| (a.pushed.from, &a.pushed.name).cmp(&(b.pushed.from, &b.pushed.name)));
        all
    }
}

/// The report beside a note.
fn file_of(note: &Path) -> PathBuf {
    note.with_extension("pb.gz")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(number: u64) -> PushedProfile {
        PushedProfile { name: format!("web-{number}"), from: number, ..PushedProfile::default() }
    }

    #[test]
    fn what_waits_is_there_after_a_kill_and_what_is_half_done_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let report = directory.path().join("report.pb.gz");
        fs::write(&report, "pprof").unwrap();
        let place = directory.path().join("spool/otlp");
        let spool = Spool::open(&place).unwrap();
        for number in [2, 1] {
            assert_eq!(spool.put(&pushed(number), &report).unwrap(), [""; 0]);
        }
        fs::remove_file(report).unwrap();
        fs::write(place.join("web-3.pb.gz"), "alone").unwrap();
        fs::write(place.join("web-4.json"), "{").unwrap();
        fs::write(place.join("web-5.json"), r#"{"name":"../x","service":"","labels":{},"from":0,"until":0}"#)
            .unwrap();
        let spool = Spool::open(&place).unwrap();
        assert_eq!(fs::read_dir(&place).unwrap().count(), 4);
        let first = spool.first().unwrap();
        assert_eq!((&first.pushed, fs::read(&first.file).unwrap()), (&pushed(1), b"pprof".to_vec()));
        spool.remove(&first).unwrap();
        spool.remove(&spool.first().unwrap()).unwrap();
        spool.remove(&first).unwrap();
        assert_eq!((spool.first(), fs::read_dir(&place).unwrap().count()), (None, 0));
    }

    #[test]
    fn it_has_a_bound() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::open(&directory.path().join("spool")).unwrap();
        let report = directory.path().join("report.pb.gz");
        fs::write(&report, "pprof").unwrap();
        for number in 0..MOST as u64 {
            assert_eq!(spool.put(&pushed(number), &report).unwrap(), [""; 0]);
        }
        assert_eq!(spool.put(&pushed(1000), &report).unwrap(), ["web-0"]);
        let large = directory.path().join("large.pb.gz");
        fs::File::create(&large).unwrap().set_len(MOST_BYTES).unwrap();
        assert_eq!(spool.put(&pushed(1001), &large).unwrap().len(), MOST);
        assert_eq!(spool.first().unwrap().pushed, pushed(1001));
    }

    #[test]
    fn what_cannot_be_removed_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::open(&directory.path().join("spool")).unwrap();
        let pprof = directory.path().join("a.pb.gz");
        fs::write(&pprof, "profile").unwrap();
        spool.put(&PushedProfile { name: "a".into(), ..PushedProfile::default() }, &pprof).unwrap();
        let waiting = spool.first().unwrap();
        fs::remove_file(&waiting.file).unwrap();
        fs::create_dir(&waiting.file).unwrap();
        assert!(spool.remove(&waiting).is_err());
    }
}
