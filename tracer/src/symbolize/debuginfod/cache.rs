//! The directory of debug files, laid out as elfutils' client lays it out: `BUILDID/debuginfo`, and an empty file for what no server has.

use std::{
    ffi::OsString,
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tempfile::{NamedTempFile, TempPath};

/// How long it counts that no server had a file: elfutils' default of `cache_miss_s`.
const MISS: Duration = Duration::from_secs(600);

/// What is known of a debug file.
#[derive(Debug)]
pub(super) enum Kept {
    /// It is here.
    File(File),
    /// No server had it, a short time ago.
    Missed,
    /// Nobody has been asked.
    Unknown,
}

#[derive(Clone, Debug)]
pub(super) struct Cache(PathBuf);

/// A file on its way into the cache; gone when this is dropped before it is kept.
#[derive(Debug)]
pub(super) struct Incoming {
    pub file: File,
    path: TempPath,
}

impl Cache {
    /// Where the cache of this user is, by the variables that elfutils reads. Directories of somebody else do not count: `sudo` can
    /// leave the caller's in the environment, who could not use what root puts there.
    pub fn default_directory(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
        let set = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let own = |name| set(name).filter(|path| is_own(path));
        let home = || {
            let root = || rustix::process::geteuid().is_root().then(|| PathBuf::from("/root"));
            own("HOME").or_else(root).map(|home| home.join(".cache"))
        };
        set("DEBUGINFOD_CACHE_PATH")
            .or_else(|| own("XDG_CACHE_HOME").or_else(home).map(|caches| caches.join("debuginfod_client")))
    }

    pub const fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    pub fn directory(&self) -> &Path {
        &self.0
    }

    fn path(&self, build_id: &str) -> PathBuf {
        self.0.join(build_id).join("debuginfo")
    }

    pub fn find(&self, build_id: &str) -> Kept {
        let path = self.path(build_id);
        let Ok(metadata) = fs::metadata(&path) else { return Kept::Unknown };
        if metadata.len() > 0 {
            return File::open(&path).map_or(Kept::Unknown, Kept::File);
        }
        let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        if age.is_some_and(|age| age < MISS) { Kept::Missed } else { Kept::Unknown }
    }

    /// Makes a file for what is fetched, beside where it is to be.
    pub fn begin(&self, build_id: &str) -> io::Result<Incoming> {
        let directory = self.0.join(build_id);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let (file, path) = NamedTempFile::with_prefix_in("debuginfo.", directory)?.into_parts();
        Ok(Incoming { file, path })
    }

    /// Puts a file that was fetched in its place.
    pub fn keep(&self, build_id: &str, incoming: Incoming) -> io::Result<()> {
        incoming.file.set_permissions(Permissions::from_mode(0o400))?;
        incoming.path.persist(self.path(build_id)).map_err(|error| error.error)
    }

    /// Notes that no server has a file.
    pub fn miss(&self, build_id: &str) -> io::Result<()> {
        let incoming = self.begin(build_id)?;
        incoming.file.set_permissions(Permissions::from_mode(0o000))?;
        incoming.path.persist(self.path(build_id)).map_err(|error| error.error)
    }
}

fn is_own(directory: &Path) -> bool {
    fs::metadata(directory).is_ok_and(|found| found.uid() == rustix::process::geteuid().as_raw())
}
