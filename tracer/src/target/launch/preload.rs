//! The sampler that is loaded into a command, so that it samples its allocations itself: which file, and by which variables.

use std::{
    env,
    ffi::OsString,
    fs, io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use super::caller_of_sudo;
use crate::model::Bytes;

/// The library's file.
const FILE: &str = "libtracer_sampler.so";
/// Where a package puts it.
const INSTALLED: &str = "/usr/lib/tracer";
/// What the dynamic linker looks at.
const VARIABLE: &str = "LD_PRELOAD";
/// What the library looks at: mean bytes between samples.
const MEAN: &str = "TRACER_SAMPLE";

/// A library to load first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preload {
    library: PathBuf,
    mean: Bytes,
}

/// Why it cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum PreloadError {
    /// It is nowhere.
    #[error("there is no {FILE} beside tracer or in {INSTALLED} (--sampler says where it is)")]
    NotFound,
    /// It cannot be opened.
    #[error("cannot load {}: {source}", library.display())]
    Unreadable {
        /// The library.
        library: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The dynamic linker takes the path for several.
    #[error("the dynamic linker cannot load {}: its path has a space or a colon", .0.display())]
    Separated(PathBuf),
    /// The user of the command may not read it.
    #[error("{} is not to be read by everybody, and the command runs as another user", .0.display())]
    Forbidden(PathBuf),
}

impl Preload {
    /// The library that was chosen, or that came with tracer; it samples one in `mean` bytes.
    ///
    /// # Errors
    /// When it cannot be loaded; the command can be started without.
    pub fn find(chosen: Option<&Path>, mean: Bytes) -> Result<Self, PreloadError> {
        let beside = || Some(env::current_exe().ok()?.with_file_name(FILE));
        let installed = Path::new(INSTALLED).join(FILE);
        let usual = || beside().into_iter().chain([installed]).find(|library| library.exists());
        let library = chosen.map(Path::to_owned).or_else(usual).ok_or(PreloadError::NotFound)?;
        let library =
            library.canonicalize().map_err(|source| PreloadError::Unreadable { library, source })?;
        if library.as_os_str().as_bytes().iter().any(|byte| b" :".contains(byte)) {
            return Err(PreloadError::Separated(library));
        }
        if caller_of_sudo().is_some() && !can_be_read_by_all(&library) {
            return Err(PreloadError::Forbidden(library));
        }
        Ok(Self { library, mean })
    }

    /// The variables that have it loaded, before what is to be loaded anyway.
    pub(super) fn variables(&self) -> [(&'static str, OsString); 2] {
        [(VARIABLE, self.before(env::var_os(VARIABLE))), (MEAN, self.mean.0.to_string().into())]
    }

    fn before(&self, others: Option<OsString>) -> OsString {
        let mut libraries = self.library.clone().into_os_string();
        let Some(others) = others.filter(|others| !others.is_empty()) else { return libraries };
        let names = others.as_bytes().split(|byte| b" :".contains(byte));
        if names
            .map(|name| name.rsplit(|&byte| byte == b'/').next())
            .any(|name| name == Some(FILE.as_bytes()))
        {
            return others;
        }
        libraries.push(":");
        libraries.push(others);
        libraries
    }
}

/// Whether anybody may read a file and go through the directories that it is in.
fn can_be_read_by_all(file: &Path) -> bool {
    let has = |path: &Path, bits: u32| {
        fs::metadata(path).is_ok_and(|data| data.permissions().mode() & bits == bits && data.nlink() > 0)
    };
    has(file, 0o004) && file.ancestors().skip(1).all(|directory| has(directory, 0o001))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn it_is_loaded_before_others_and_once() {
        let preload = Preload { library: "/usr/lib/tracer/libtracer_sampler.so".into(), mean: Bytes(4096) };
        let before = |others: &str| preload.before(Some(others.into())).into_string().unwrap();
        assert_eq!(preload.before(None), "/usr/lib/tracer/libtracer_sampler.so");
        assert_eq!(before(""), "/usr/lib/tracer/libtracer_sampler.so");
        assert_eq!(before("a.so b.so"), "/usr/lib/tracer/libtracer_sampler.so:a.so b.so");
        assert_eq!(before("a.so:/opt/libtracer_sampler.so"), "a.so:/opt/libtracer_sampler.so");
        assert_eq!(preload.variables()[1], ("TRACER_SAMPLE", OsString::from("4096")));
    }

    #[test]
    fn what_cannot_be_loaded_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let find = |name: &str| {
            let library = directory.path().join(name);
            Preload::find(Some(&library), Bytes(1)).unwrap_err().to_string()
        };
        assert!(find("missing.so").contains("missing.so: No such file"), "{}", find("missing.so"));
        fs::write(directory.path().join("a b.so"), "").unwrap();
        assert!(find("a b.so").contains("has a space or a colon"));
    }

    #[test]
    fn everybody_can_read_it_only_where_directories_let_them() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
        assert!(!can_be_read_by_all(&file));
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        assert!(can_be_read_by_all(&file));
    }
}
