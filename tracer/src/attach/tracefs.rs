//! tracefs, which knows the numbers of the tracepoints, also where nobody mounted it.
//!
//! Minimal machines and containers have no tracefs mounted. It is not mounted for them then: a *detached* mount belongs
//! to a file descriptor and to no place in the tree of directories, is seen by no other process, and is gone with the
//! descriptor.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::sys;

/// The root directory of a tracefs.
#[derive(Debug)]
pub struct Tracefs {
    root: OwnedFd,
}

/// Why tracefs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TracefsError {
    /// It is mounted nowhere, and this user may not mount it.
    #[error(
        "tracefs is not mounted and may not be mounted: run as root, or `mount -t tracefs none /sys/kernel/tracing`"
    )]
    NotPermitted,
    /// This kernel has no tracefs.
    #[error("this kernel has no tracefs (CONFIG_TRACING)")]
    Absent,
    /// Nobody mounted it, and it is not safe to.
    #[error("tracefs is not mounted, and perf events may not observe the kernel")]
    Hidden(#[source] io::Error),
    /// Another failure to mount it.
    #[error("cannot mount tracefs")]
    Mount(#[source] io::Error),
    /// The kernel knows no tracepoint of this name, or its number may not be read.
    #[error("cannot read the number of tracepoint {category}:{name}")]
    Tracepoint {
        /// The tracepoint's category (`syscalls`).
        category: String,
        /// Its name (`sys_enter_mmap`).
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

impl From<Errno> for TracefsError {
    /// Of a mount that failed.
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PERM | Errno::ACCESS => Self::NotPermitted,
            Errno::NODEV => Self::Absent,
            errno => Self::Mount(errno.into()),
        }
    }
}

impl Tracefs {
    /// Opens the tracefs that is mounted, else one of our own that only this value sees.
    ///
    /// # Errors
    /// When there is none that this user may read.
    pub fn open() -> Result<Self, TracefsError> {
        // Mounts are looked up and not tried by path: touching /sys/kernel/debug/tracing would mount it.
        let mountinfo = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        match mount_points(&mountinfo).iter().find_map(|path| Self::at(path)) {
            Some(mounted) => Ok(mounted),
            None => Self::detached(),
        }
    }

    /// The tracefs mounted at `path`, if its events can be read.
    fn at(path: &Path) -> Option<Self> {
        let root =
            openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        openat(&root, "events", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        Some(Self { root })
    }

    /// A mount of our own, which must not be of a kernel that is locked down for confidentiality: there tracefs is empty, and at
    /// the end of the last mount of an empty one Linux takes the root directory for an inode of tracefs' own, which it is not, and
    /// frees what never was (6.12, `tracefs_destroy_inode`: the process dies in the kernel, with locks held).
    fn detached() -> Result<Self, TracefsError> {
        let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        sys::may_see_kernel_registers().map_err(TracefsError::Hidden)?;
        fsconfig_create(&context)?;
        let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        Ok(Self { root })
    }

    /// The number of a tracepoint, the `config` of its perf event.
    ///
    /// # Errors
    /// When the kernel knows no such tracepoint, or its number may not be read.
    pub fn tracepoint_id(&self, category: &str, name: &str) -> Result<u64, TracefsError> {
        self.read_id(category, name).map_err(|source| TracefsError::Tracepoint {
            category: category.to_owned(),
            name: name.to_owned(),
            source,
        })
    }

    fn read_id(&self, category: &str, name: &str) -> io::Result<u64> {
        let path = format!("events/{category}/{name}/id");
        let mut text = String::new();
        let file = openat(&self.root, &*path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        File::from(file).read_to_string(&mut text)?;
        text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not a number"))
    }
}

/// Where tracefs is mounted, from the text of `/proc/self/mountinfo`.
fn mount_points(mountinfo: &[u8]) -> Vec<PathBuf> {
    let lines = mountinfo.split(|&byte| byte == b'\n');
    lines.filter_map(tracefs_mount_point).collect()
}

/// `41 23 0:12 / /sys/kernel/tracing rw,nosuid shared:7 - tracefs tracefs rw`: optional fields end with a dash.
fn tracefs_mount_point(line: &[u8]) -> Option<PathBuf> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mount_point = fields.nth(4)?;
    fields.find(|&field| field == b"-")?;
    (fields.next()? == b"tracefs").then(|| PathBuf::from(OsString::from_vec(unescape(mount_point))))
}

/// Undoes the kernel's octal escapes of blanks and backslashes (`\040`).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without the identifiers of mounts, which other processes may be making meanwhile.
    fn tracefs_mounts() -> Vec<PathBuf> {
        mount_points(&std::fs::read("/proc/self/mountinfo").expect("it can be read"))
    }

    #[test]
    fn mounts_of_tracefs_are_found() {
        let text = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
            41 23 0:12 / /sys/kernel/tracing rw,nosuid shared:7 master:1 - tracefs tracefs rw\n\
            42 23 0:12 / /a\\040b\\134 rw - tracefs none rw\n\
            43 23 0:12 / /tracefs rw - tmpfs tracefs rw\nshort - tracefs\n";
        assert_eq!(mount_points(text), [Path::new("/sys/kernel/tracing"), Path::new("/a b\\")]);
    }

    #[test]
    fn tracepoints_are_numbered_and_no_mount_is_left() {
        let before = tracefs_mounts();
        let tracefs = Tracefs::open().expect("root may open it");
        let id = |name| tracefs.tracepoint_id("syscalls", name);
        let (mmap, munmap) =
            (id("sys_enter_mmap").expect("it exists"), id("sys_enter_munmap").expect("it exists"));
        assert!(mmap > 0 && munmap > 0 && mmap != munmap);
        let error = id("sys_enter_nonsense").expect_err("it does not exist").to_string();
        assert!(error.contains("syscalls:sys_enter_nonsense"), "{error}");
        assert_eq!(tracefs_mounts(), before, "the mounts of the machine are as they were");
    }

    #[test]
    fn a_detached_one_is_in_no_mount_table() {
        let before = tracefs_mounts();
        let tracefs = Tracefs::detached().expect("root may mount it");
        assert!(tracefs.tracepoint_id("syscalls", "sys_exit_brk").is_ok());
        assert_eq!(tracefs_mounts(), before);
    }

    #[test]
    fn without_rights_it_says_so() {
        let thread = std::thread::spawn(|| {
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("root may become another user");
            Tracefs::detached().expect_err("nobody may not mount").to_string()
        });
        let message = thread.join().expect("no panic");
        assert!(message.contains("run as root"), "{message}");
    }
}
