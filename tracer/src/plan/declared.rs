//! Allocators that no table can know, as their user declares them: `--allocator libpool.so:malloc=pool_get,free=pool_put`
//! and `--symbol-prefix my_`.

use std::{fmt, path::Path, str::FromStr};

use super::api::{Api, ApiId};
use super::catalog::{ApiSyntaxError, SymbolPrefix};

/// What the user says about the target's allocators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declarations {
    /// Prefixes under which some file has the C interface.
    pub prefixes: Vec<SymbolPrefix>,
    /// Functions of single files.
    pub allocators: Vec<Allocator>,
    /// Whether the objects of Python are followed, too.
    pub python_objects: bool,
}

impl Declarations {
    /// Whether nothing is said.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.prefixes.is_empty() && self.allocators.is_empty() && !self.python_objects
    }
}

/// Functions of one file that give and take blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocator {
    /// The file: its name, or its path as the target sees it.
    pub file: String,
    /// Its functions, at least one.
    pub functions: Vec<Api>,
}

/// Why a text declares no allocator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocatorSyntaxError {
    /// There is no `FILE:` in front.
    #[error("{0:?} is not of the form `libpool.so:malloc=pool_get,free=pool_put`")]
    Form(String),
    /// One of its functions is none.
    #[error(transparent)]
    Function(#[from] ApiSyntaxError),
}

impl Allocator {
    /// Whether this is about the file that the target has mapped from this path.
    #[must_use]
    pub fn is_in(&self, path: &Path) -> bool {
        let file = Path::new(&self.file);
        if self.file.contains('/') { path == file } else { path.file_name() == Some(file.as_os_str()) }
    }
}

impl fmt::Display for Allocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)
    }
}

impl FromStr for Allocator {
    type Err = AllocatorSyntaxError;

    /// Reads `FILE:LIKE=FUNCTION,LIKE=FUNCTION...`, each function as [`Api`] reads it.
    fn from_str(text: &str) -> Result<Self, AllocatorSyntaxError> {
        // No symbol has a colon; a path may.
        let (file, functions) = match text.rsplit_once(':') {
            Some((file, functions)) if !file.is_empty() => (file.to_owned(), functions),
            _ => return Err(AllocatorSyntaxError::Form(text.to_owned())),
        };
        let functions = functions.split(',').map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { file, functions })
    }
}

/// A declared allocator whose functions have numbers in a catalog.
#[derive(Clone, Debug)]
pub(crate) struct Numbered {
    pub(super) allocator: Allocator,
    pub(super) functions: Vec<ApiId>,
}

/// Those of `names` that look most like `wanted`, for a message: at most three.
#[must_use]
pub fn near<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    /// Below it, names have no more than some letters in common.
    const ALIKE: f64 = 0.85;
    let likeness = |name: &str| {
        let part = name.contains(wanted) || (name.len() >= 4 && wanted.contains(name));
        strsim::jaro_winkler(wanted, name).max(if part { 0.9 } else { 0.0 })
    };
    let mut alike: Vec<(f64, &str)> =
        names.map(|name| (likeness(name), name)).filter(|(likeness, _)| *likeness >= ALIKE).collect();
    alike.sort_by(|(a, a_name), (b, b_name)| b.total_cmp(a).then(a_name.cmp(b_name)));
    alike.dedup_by(|a, b| a.1 == b.1);
    alike.into_iter().take(3).map(|(_, name)| name).collect()
}

/// `; did you mean a, b?`, or nothing.
#[must_use]
pub fn suggestion(near: &[&str]) -> String {
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_its_functions_are_read() {
        let pool: Allocator = "/opt/a:b/libpool.so:malloc=pool_get,free+1=pool_put".parse().unwrap();
        assert_eq!(pool.file, "/opt/a:b/libpool.so");
        assert_eq!(pool.functions, ["malloc=pool_get", "free+1=pool_put"].map(|text| text.parse().unwrap()));
    }

    #[test]
    fn what_declares_nothing_is_refused() {
        let refused = |text: &str| text.parse::<Allocator>().unwrap_err().to_string();
        assert!(refused("malloc=pool_get").contains("libpool.so:malloc="));
        assert!(refused(":malloc=pool_get").contains("libpool.so:malloc="));
        assert!(refused("libpool.so:").contains("malloc=my_alloc"));
        assert!(refused("libpool.so:alloc=pool_get").contains("alloc"));
        assert!(refused("libpool.so:malloc=pool_get,").contains("malloc=my_alloc"));
    }

    #[test]
    fn a_name_is_of_any_directory_and_a_path_of_one() {
        let is_in = |file: &str, path: &str| {
            Allocator { file: file.to_owned(), functions: Vec::new() }.is_in(Path::new(path))
        };
        assert!(is_in("libpool.so", "/opt/app/libpool.so"));
        assert!(is_in("/opt/app/libpool.so", "/opt/app/libpool.so"));
        assert!(!is_in("/opt/libpool.so", "/opt/app/libpool.so"));
        assert!(!is_in("libpool.so", "/opt/app/libpool.so.1"));
    }

    #[test]
    fn near_names_come_nearest_first() {
        let names = ["pool_gets", "pool_put", "unrelated", "get", "xpool_get"];
        assert_eq!(near("pool_get", names.into_iter()).first(), Some(&"pool_gets"));
        assert!(!near("pool_get", names.into_iter()).contains(&"unrelated"));
        assert!(near("pool_get", std::iter::empty()).is_empty());
    }
}
