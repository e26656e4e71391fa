//! The ELF files that a process runs code from, opened so that it is certainly the file that is mapped: also one that
//! was deleted or replaced since, and one of another mount namespace.
//!
//! The kernel's own link to the mapped file, `/proc/PID/map_files/START-END`, is exactly that, and needs
//! `CAP_CHECKPOINT_RESTORE` or `CAP_SYS_ADMIN`. Without them the path is opened in the root directory of the process and
//! compared with what `maps` says.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, Stat, fstat, major, minor, openat};
use rustix::io::Errno;

use super::root::{LOCATE, Root, is_regular, reopen};
use super::{Device, FileId, GATE_FILE, Mapping};
use crate::model::Address;

/// An ELF file that a process has mapped.
#[derive(Debug)]
pub struct MappedObject {
    /// Which file.
    pub id: FileId,
    /// Its path, as the process names it.
    pub path: PathBuf,
    /// Whether it has been unlinked or replaced since: its path leads nowhere or to another file.
    pub deleted: bool,
    /// The file that is mapped, open for reading.
    pub file: File,
    /// Where it is mapped, by ascending address; parts that are not executable included.
    pub segments: Vec<MappedSegment>,
}

impl MappedObject {
    /// A path to the file that the kernel can follow for this process while [`MappedObject::file`] is open, for the
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

    /// Whether it is the file of a gate.
    #[must_use]
    pub fn is_gate(&self) -> bool {
        self.path.as_os_str().as_encoded_bytes().starts_with(GATE_FILE.as_bytes())
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

/// One mapping of a part of a [`MappedObject`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedSegment {
    /// First address.
    pub start: Address,
    /// First address behind it.
    pub end: Address,
    /// Where in the file it begins.
    pub file_offset: u64,
    /// Whether it can be executed.
    pub executable: bool,
}

impl MappedSegment {
    /// Where in the process the byte at this offset of the file is executable.
    #[must_use]
    pub fn address_of(&self, file_offset: u64) -> Option<Address> {
        let distance = file_offset.checked_sub(self.file_offset)?;
        (self.executable && distance < self.end.0 - self.start.0).then(|| Address(self.start.0 + distance))
    }
}

impl From<&Mapping> for MappedSegment {
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
    pub opened: Vec<MappedObject>,
    /// Files with executable mappings that could not be opened.
    pub unopened: Vec<Unopened>,
    /// Files with executable mappings that are no ELF files: code that was compiled into a `memfd`.
    pub others: Vec<FileId>,
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
    root: Option<&Root>,
    mappings: &[Mapping],
    mut wanted: impl FnMut(FileId) -> bool,
) -> Objects {
    let mut objects = Objects::default();
    for (id, segments) in executable_files(mappings) {
        let (Some(first), true) = (segments.first(), wanted(id)) else { continue };
        let path = PathBuf::from(&first.name);
        match open_elf(proc, root, first) {
            Ok(Some((file, stat))) => objects.opened.push(MappedObject {
                id,
                path,
                deleted: stat.st_nlink == 0,
                file,
                segments: segments.into_iter().map(MappedSegment::from).collect(),
            }),
            Ok(None) => objects.others.push(id),
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

/// The mapped file; `None` when it is no ELF file.
fn open_elf(proc: &OwnedFd, root: Option<&Root>, mapping: &Mapping) -> Result<Option<(File, Stat)>, Errno> {
    Ok(open_mapped(proc, root, mapping)?.filter(|(file, _)| is_elf(file)))
}

/// The mapped file; `None` when it is no regular one.
pub(super) fn open_mapped(
    proc: &OwnedFd,
    root: Option<&Root>,
    mapping: &Mapping,
) -> Result<Option<(File, Stat)>, Errno> {
    let link = format!("map_files/{:x}-{:x}", mapping.start.0, mapping.end.0);
    let linked = openat(proc, link, LOCATE, Mode::empty());
    match linked.and_then(|linked| open_if_mapped(&linked, mapping)) {
        // No right to use the link, or the mapping has changed since, maybe to one of another file.
        Err(Errno::PERM | Errno::ACCESS | Errno::NOENT | Errno::STALE | Errno::SRCH) => {
            open_by_path(root, mapping)
        }
        opened => opened,
    }
}

/// Opens the path that the process names, in its own root directory, if it still is the mapped file.
pub(super) fn open_by_path(root: Option<&Root>, mapping: &Mapping) -> Result<Option<(File, Stat)>, Errno> {
    let (root, path) = root.zip(mapping.path()).ok_or(Errno::NOENT)?;
    open_if_mapped(&root.locate(&root.own_path(path), OFlags::empty())?, mapping)
}

/// Opens what was located if it is the mapped file; `None` when that is not a regular one. A device can be mapped too.
fn open_if_mapped(located: &OwnedFd, mapping: &Mapping) -> Result<Option<(File, Stat)>, Errno> {
    let stat = fstat(located)?;
    if !is_mapped_by(&stat, mapping) {
        return Err(Errno::STALE);
    }
    if !is_regular(&stat) {
        return Ok(None);
    }
    Ok(Some((reopen(located)?, stat)))
}

fn is_mapped_by(stat: &Stat, mapping: &Mapping) -> bool {
    // btrfs, and overlayfs before 6.8, show one device in `maps` and another, of major number 0, to `stat`; the inode
    // number is the same in both, and a file that replaced the mapped one has another.
    let device = Device { major: major(stat.st_dev), minor: minor(stat.st_dev) };
    stat.st_ino == mapping.inode && (device == mapping.device || device.major == 0)
}

fn is_elf(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"\x7fELF"
}
