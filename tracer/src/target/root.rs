//! The root directory of a process: where its paths lead.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, readlinkat};
use rustix::io::Errno;

/// Finds a file without opening it yet.
pub(crate) const LOCATE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Which directory a root is, as long as somebody holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RootId {
    device: u64,
    inode: u64,
}

/// A root directory, which stays reachable when its process has exited.
#[derive(Debug)]
pub(super) struct Root {
    directory: OwnedFd,
    /// Where that is for the tracer: `maps` shows paths of its own mount namespace as the tracer sees them, and those of
    /// another one as seen from that one's root.
    path: PathBuf,
}

impl Root {
    /// That of the process with this directory in `/proc`.
    pub(super) fn of(proc: &OwnedFd) -> Result<Self, Errno> {
        let directory = openat(proc, "root", LOCATE | OFlags::DIRECTORY, Mode::empty())?;
        let path = OsString::from_vec(readlinkat(proc, "root", Vec::new())?.into_bytes());
        Ok(Self { directory, path: path.into() })
    }

    /// Which directory it is.
    pub(super) fn id(&self) -> Option<RootId> {
        fstat(&self.directory).ok().map(|stat| RootId { device: stat.st_dev, inode: stat.st_ino })
    }

    /// How the process itself names a file that `maps` shows under this path.
    pub(super) fn own_path(&self, shown: &Path) -> PathBuf {
        shown.strip_prefix(&self.path).map_or_else(|_| shown.to_owned(), |path| Path::new("/").join(path))
    }

    /// Finds what the process would find at `path`: symbolic links cannot lead out of the root.
    pub(super) fn locate(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        openat2(&self.directory, path, LOCATE | flags, Mode::empty(), ResolveFlags::IN_ROOT)
    }
}

/// Opens for reading what has been located, if it is a regular file: opening a device can have effects, and a FIFO makes
/// us wait.
///
/// # Errors
/// When it is none, or may not be read.
pub(crate) fn open_regular(located: &OwnedFd) -> io::Result<File> {
    if !is_regular(&fstat(located)?) {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(reopen(located)?)
}

pub(super) fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

pub(super) fn reopen(located: &OwnedFd) -> Result<File, Errno> {
    let path = format!("/proc/self/fd/{}", located.as_raw_fd());
    Ok(openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    use super::*;

    fn read(root: &Root, path: &str) -> Result<String, Errno> {
        let located = root.locate(Path::new(path), OFlags::empty())?;
        let mut text = String::new();
        open_regular(&located).expect("it is a file").read_to_string(&mut text).expect("it can be read");
        Ok(text)
    }

    #[test]
    fn links_do_not_lead_out_of_the_root() {
        let directory = tempfile::tempdir().expect("a directory");
        let inside = directory.path().join("root");
        fs::create_dir(&inside).expect("it can be made");
        fs::write(inside.join("file"), "inside").expect("it can be written");
        fs::write(directory.path().join("file"), "outside").expect("it can be written");
        fs::write(directory.path().join("other"), "outside").expect("it can be written");
        for (link, to) in [("absolute", "/file"), ("up", "../file"), ("out", "../other")] {
            symlink(to, inside.join(link)).expect("it can be made");
        }
        let opened = openat(CWD, &inside, LOCATE | OFlags::DIRECTORY, Mode::empty());
        let root = Root { directory: opened.expect("it can be opened"), path: inside.clone() };
        assert_eq!(root.own_path(&inside.join("file")), Path::new("/file"));
        assert_eq!(root.own_path(Path::new("/file")), Path::new("/file"));
        for path in ["/file", "/absolute", "/up", "/../file"] {
            assert_eq!(read(&root, path).as_deref(), Ok("inside"), "{path}");
        }
        assert_eq!(read(&root, "/out"), Err(Errno::NOENT));
    }

    #[test]
    fn devices_and_directories_are_not_opened() {
        for path in ["/dev/null", "/"] {
            let located = openat(CWD, path, LOCATE, Mode::empty()).expect("it is there");
            assert!(open_regular(&located).is_err(), "{path}");
        }
    }
}
