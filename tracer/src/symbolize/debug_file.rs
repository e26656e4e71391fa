//! Finds the separate file that holds an object's debug information, where distributions and build systems put it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use object::{Object, ReadCache};

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::target::{Target, open_regular};

/// The directory of debug files, in the target's root and in the tracer's own.
const DEBUG_DIRECTORY: &str = "/usr/lib/debug";

/// How an object names its debug file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DebugLinks {
    /// The build id, which object and debug file share.
    pub(super) build_id: Option<Vec<u8>>,
    /// File name and CRC-32 of the debug file (`.gnu_debuglink`).
    pub(super) link: Option<(PathBuf, u32)>,
}

/// The debug file of the object at `path`, verified to belong to it. The target's own root is looked into first.
pub(super) fn find(path: &Path, links: &DebugLinks, target: Option<&Target>) -> Option<File> {
    candidates(path, links).into_iter().find_map(|candidate| {
        let below_target = target.and_then(|target| target.open_in_root(&candidate, OFlags::empty()).ok());
        [below_target, open_on_host(&candidate)].into_iter().flatten().find(|file| {
            let fits = belongs(file, links).unwrap_or_else(|error| {
                log::debug!("cannot read debug file {}: {error}", candidate.display());
                false
            });
            log::debug!("debug file {} {}", candidate.display(), if fits { "found" } else { "does not fit" });
            fits
        })
    })
}

fn open_on_host(path: &Path) -> Option<File> {
    let located = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    open_regular(&located).ok()
}

/// Where to look, as `gdb` does: by build id, then by the link's name beside the object, in `.debug` beside it, and
/// at the object's path below the debug directory.
fn candidates(path: &Path, links: &DebugLinks) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    if let Some((first, rest)) = links.build_id.as_ref().and_then(|id| id.split_first()) {
        paths.push(format!("{DEBUG_DIRECTORY}/.build-id/{first:02x}/{}.debug", to_hex(rest)).into());
    }
    if let (Some((name, _)), Some(directory)) = (&links.link, path.parent()) {
        let below_debug = Path::new(DEBUG_DIRECTORY).join(directory.strip_prefix("/").unwrap_or(directory));
        paths.extend([directory.join(name), directory.join(".debug").join(name), below_debug.join(name)]);
    }
    // An object can link to itself.
    paths.retain(|candidate| candidate != path);
    paths
}

/// Whether `file` is what the links ask for: the same build id where there is one, else the same CRC. It must also
/// hold more than the object does.
pub(super) fn belongs(file: &File, links: &DebugLinks) -> io::Result<bool> {
    let cache = ReadCache::new(file);
    let elf = object::File::parse(&cache).map_err(io::Error::other)?;
    if elf.section_by_name(".debug_info").is_none() && elf.section_by_name(".symtab").is_none() {
        return Ok(false);
    }
    match (&links.build_id, elf.build_id().map_err(io::Error::other)?, &links.link) {
        (Some(expected), Some(found), _) => Ok(expected == found),
        (_, _, Some((_, expected))) => Ok(crc32(file)? == *expected),
        _ => Ok(false),
    }
}

fn crc32(mut file: &File) -> io::Result<u32> {
    file.rewind()?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_those_of_gdb() {
        let links =
            DebugLinks { build_id: Some(vec![0xab, 0xcd, 0xef]), link: Some(("libx.debug".into(), 1)) };
        let paths = candidates(Path::new("/opt/lib/libx.so"), &links);
        let expected = [
            "/usr/lib/debug/.build-id/ab/cdef.debug",
            "/opt/lib/libx.debug",
            "/opt/lib/.debug/libx.debug",
            "/usr/lib/debug/opt/lib/libx.debug",
        ];
        assert_eq!(paths, expected.map(PathBuf::from));
        let own = DebugLinks { build_id: None, link: Some(("libx.so".into(), 1)) };
        assert!(!candidates(Path::new("/opt/lib/libx.so"), &own).contains(&"/opt/lib/libx.so".into()));
        assert!(candidates(Path::new("/opt/lib/libx.so"), &DebugLinks::default()).is_empty());
    }
}
