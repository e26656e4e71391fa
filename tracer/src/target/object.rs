//! The ELF files that a process runs code from, opened so that it is certainly the file that is mapped: also one that
//! was deleted or replaced since, and one of another mount namespace.
//!
//! The kernel's own link to the mapped file, `/proc/PID/map_files/START-END`, is exactly that, and needs
//! `CAP_CHECKPOINT_RESTORE` or `CAP_SYS_ADMIN`. Without them the path is opened under `/proc/PID/root` and compared
//! with what `maps` says.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, major, minor, openat, statat};
use rustix::io::Errno;

use super::{Device, FileId, Mapping};
use crate::model::Address;

/// An ELF file that a process has mapped.
#[derive(Debug)]
pub struct Object {
    /// Which file.
    pub id: FileId,
    /// Its path, as the process names it.
    pub path: PathBuf,
    /// Whether it has been unlinked or replaced since: its path leads nowhere or to another file.
    pub deleted: bool,
    /// The file that is mapped, open for reading.
    pub file: File,
    /// Where it is mapped, by ascending address; parts that are not executable included.
    pub segments: Vec<Segment>,
}

impl Object {
    /// A path to the file that the kernel can follow for this process while [`Object::file`] is open, for the
    /// `uprobe_path` of `perf_event_open`.
    ///
    /// Verified on 6.18: `kern_path` follows the link to the open file's own inode, whether the file is on another
    /// mount namespace's tmpfs, in an overlay (where the kernel takes the inode underneath), deleted or replaced.
    #[must_use]
    pub fn uprobe_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// The whole file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        // From the start, whoever has read from the same descriptor before.
        let mut file = &self.file;
        file.rewind()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// What people call it: the last part of the path.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        name.to_string_lossy().into_owned()
    }

    /// Where in the process the byte at this offset of the file is executable; the first place when there are several
    /// (`dlmopen`).
    #[must_use]
    pub fn address_of(&self, file_offset: u64) -> Option<Address> {
        self.segments.iter().find_map(|segment| segment.address_of(file_offset))
    }
}

/// One mapping of a part of an [`Object`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First address.
    pub start: Address,
    /// First address behind it.
    pub end: Address,
    /// Where in the file it begins.
    pub file_offset: u64,
    /// Whether it can be executed.
    pub executable: bool,
}

impl Segment {
    fn address_of(&self, file_offset: u64) -> Option<Address> {
        let distance = file_offset.checked_sub(self.file_offset)?;
        (self.executable && distance < self.end.0 - self.start.0).then(|| Address(self.start.0 + distance))
    }
}

impl From<&Mapping> for Segment {
    fn from(mapping: &Mapping) -> Self {
        Self {
            start: mapping.start,
            end: mapping.end,
            file_offset: mapping.file_offset,
            executable: mapping.permissions.execute,
        }
    }
}

/// What [`super::Target::objects`] found.
#[derive(Debug, Default)]
pub struct Objects {
    /// ELF files with executable mappings, in order of their first mapping.
    pub opened: Vec<Object>,
    /// Files with executable mappings that could not be opened.
    pub unopened: Vec<Unopened>,
}

/// A mapped file that could not be opened.
#[derive(Debug)]
pub struct Unopened {
    /// Which file.
    pub id: FileId,
    /// Its path, as the process names it.
    pub path: PathBuf,
    /// Why not.
    pub reason: io::Error,
}

/// Opens each file that has an executable mapping and for which `wanted` is true.
pub(super) fn open_all(
    proc: &OwnedFd,
    mappings: &[Mapping],
    mut wanted: impl FnMut(FileId) -> bool,
) -> Objects {
    let mut objects = Objects::default();
    for (id, segments) in executable_files(mappings) {
        let (Some(first), true) = (segments.first(), wanted(id)) else { continue };
        let path = PathBuf::from(&first.name);
        match open_mapped(proc, first, &path) {
            Ok(Some((file, deleted))) => objects.opened.push(Object {
                id,
                path,
                deleted,
                file,
                segments: segments.into_iter().map(Segment::from).collect(),
            }),
            Ok(None) => {}
            Err(errno) => objects.unopened.push(Unopened { id, path, reason: errno.into() }),
        }
    }
    objects
}

/// Files with an executable mapping and all their mappings, both in order of address.
fn executable_files(mappings: &[Mapping]) -> Vec<(FileId, Vec<&Mapping>)> {
    let mut files: Vec<(FileId, Vec<&Mapping>)> = Vec::new();
    let mut index = HashMap::new();
    for mapping in mappings {
        let Some(id) = mapping.file_id() else { continue };
        let at = *index.entry(id).or_insert_with(|| {
            files.push((id, Vec::new()));
            files.len() - 1
        });
        files[at].1.push(mapping);
    }
    files.retain(|(_, mappings)| mappings.iter().any(|mapping| mapping.permissions.execute));
    files
}

/// The mapped file and whether it is deleted; `None` when it is no ELF file.
fn open_mapped(proc: &OwnedFd, mapping: &Mapping, path: &Path) -> Result<Option<(File, bool)>, Errno> {
    let link = format!("map_files/{:x}-{:x}", mapping.start.0, mapping.end.0);
    let opened = match open_regular(proc, Path::new(&link)) {
        // No right to use the link, or the mapping has changed since.
        Err(Errno::PERM | Errno::ACCESS | Errno::NOENT) => open_by_path(proc, mapping, path)?,
        // Another file has been mapped at the same addresses.
        Ok(Some((_, stat))) if stat.st_ino != mapping.inode => open_by_path(proc, mapping, path)?,
        opened => opened?,
    };
    Ok(opened.filter(|(file, _)| is_elf(file)).map(|(file, stat)| (file, stat.st_nlink == 0)))
}

/// Opens the path that the process names, in its own root directory, if it still is the mapped file.
pub(super) fn open_by_path(
    proc: &OwnedFd,
    mapping: &Mapping,
    path: &Path,
) -> Result<Option<(File, Stat)>, Errno> {
    // `maps` names files by their full path, so what follows `root` holds no link that could lead out of it.
    let mut in_root = OsString::from("root");
    in_root.push(path);
    let opened = open_regular(proc, Path::new(&in_root))?;
    if opened.as_ref().is_some_and(|(_, stat)| !is_mapped_by(stat, mapping)) {
        return Err(Errno::STALE);
    }
    Ok(opened)
}

fn is_mapped_by(stat: &Stat, mapping: &Mapping) -> bool {
    // btrfs, and overlayfs before 6.8, show one device in `maps` and another, of major number 0, to `stat`; the inode
    // number is the same in both, and a file that replaced the mapped one has another.
    let device = Device { major: major(stat.st_dev), minor: minor(stat.st_dev) };
    stat.st_ino == mapping.inode && (device == mapping.device || device.major == 0)
}

/// Opens a regular file; `None` when it is something else: a device can be mapped too, and opening one can have effects.
fn open_regular(proc: &OwnedFd, path: &Path) -> Result<Option<(File, Stat)>, Errno> {
    let stat = statat(proc, path, AtFlags::empty())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let file = openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    let stat = fstat(&file)?;
    Ok(Some((file.into(), stat)))
}

fn is_elf(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"\x7fELF"
}
