//! Stage 5b: what language runtimes know of their code, read out of the memory of a process that runs as it is.
//!
//! The walk in the kernel recognises the frames of a runtime and writes down a few words of each ([`tracer_ebpf::runtime`]). Here is the
//! other half: where things are in the version that a process runs, told from its files, and what such words mean, told from its
//! memory. docs/runtimes.md explains both.
//!
//! Nothing here is believed because it is there: the process goes on while it is read, so each object is checked to be of the type
//! and to have the number that the walk saw, and what does not fit is a reason ([`Unread`]), never a guess.

mod elf;
pub mod hotspot;
#[cfg(test)]
mod lying_memory;
pub mod python;
pub mod v8;

use std::{fs::File, os::unix::fs::FileExt as _, sync::Arc};

use tracer_ebpf::{
    runtime::{MOST_READ, Object},
    unwind::Memory,
};

/// The memory of a process.
pub trait ProcessMemory: Memory {
    /// Fills the bytes from an address on; whether all of them could be read.
    fn read_bytes(&self, address: u64, bytes: &mut [u8]) -> bool;
}

/// The open `/proc/PID/mem`.
#[derive(Debug)]
pub struct MemoryFile(pub File);

impl Memory for MemoryFile {
    fn read(&self, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.read_bytes(address, &mut word).then(|| u64::from_ne_bytes(word))
    }
}

impl ProcessMemory for MemoryFile {
    fn read_bytes(&self, address: u64, bytes: &mut [u8]) -> bool {
        self.0.read_exact_at(bytes, address).is_ok()
    }
}

/// Words of a process' memory, for the rules that both sides have.
struct Words<'a>(&'a dyn ProcessMemory);

impl Memory for Words<'_> {
    fn read(&self, address: u64) -> Option<u64> {
        self.0.read(address)
    }
}

/// Part of an object, for the rules that both sides have.
struct Loaded<'a> {
    memory: &'a dyn ProcessMemory,
    bytes: [u8; MOST_READ],
}

impl<'a> Loaded<'a> {
    fn new(memory: &'a dyn ProcessMemory) -> Self {
        Self { memory, bytes: [0; MOST_READ] }
    }
}

impl Object for Loaded<'_> {
    fn load(&mut self, address: u64, length: u8) -> bool {
        let bytes = self.bytes.get_mut(..length.into());
        bytes.is_some_and(|bytes| self.memory.read_bytes(address, bytes))
    }

    fn word(&self, offset: u8) -> u64 {
        let word = self.bytes.get(offset.into()..).and_then(<[u8]>::first_chunk);
        word.map_or(0, |word| u64::from_ne_bytes(*word))
    }
}

/// Where things are in the runtimes of a process, as far as it has any that are known.
#[derive(Clone, Debug, Default)]
pub struct Layouts {
    /// In its V8.
    pub v8: Option<Arc<v8::Layout>>,
    /// In its HotSpot.
    pub hotspot: Option<Arc<hotspot::Layout>>,
    /// In its Python.
    pub python: Option<Arc<python::Located>>,
}

/// A runtime of one process, and what it has told so far.
pub trait Runtime {
    /// Where things are in it.
    type Layout;
    /// A frame of it, as the walk wrote it down.
    type Walked: Copy;

    /// Nothing is known but where things are.
    fn new(layout: &Arc<Self::Layout>) -> Self;

    /// The functions of a frame: those inlined there, innermost first, then the function itself. `address` is where the frame returns to.
    ///
    /// # Errors
    /// Why they cannot be told.
    fn functions(
        &mut self,
        walked: Self::Walked,
        address: u64,
        memory: &dyn ProcessMemory,
    ) -> Result<Vec<Function>, Unread>;

    /// The same, read until two readings in a row agree: the runtime goes on writing meanwhile, so that one may have half of what was, and
    /// half of what is.
    ///
    /// # Errors
    /// Why they cannot be told.
    fn settled_functions(
        &mut self,
        walked: Self::Walked,
        address: u64,
        memory: &dyn ProcessMemory,
    ) -> Result<Vec<Function>, Unread> {
        const MORE_READINGS: usize = 4;
        let mut last = self.functions(walked, address, memory)?;
        for _ in 0..MORE_READINGS {
            let again = self.functions(walked, address, memory)?;
            if again == last {
                return Ok(last);
            }
            last = again;
        }
        Err(Unread::Moved)
    }

    /// Its name with its version, `V8 12.4`, and the language of its functions.
    fn version(&self) -> (String, &'static str);
}

/// A function of a runtime, as a frame shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The file that it is written in.
    pub file: Option<String>,
    /// Where in there the call is, that the frame is in.
    pub line: Option<u32>,
    /// Whether it was inlined into the next one.
    pub inlined: bool,
    /// The language that it is written in, as reports call it.
    pub language: &'static str,
    /// Whether it only says how the runtime works.
    pub is_internal: bool,
}

impl Function {
    /// A function of a language of which nothing else could be told.
    #[must_use]
    pub fn unread(language: &'static str) -> Self {
        Self { name: format!("[{language}]"), language, ..Self::default() }
    }
}

/// Why a frame of a runtime has no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Unread {
    /// The process is gone, or its memory must not be read.
    #[error("the process could not be read any more")]
    Gone,
    /// The walk found that it is a function, and could not read which.
    #[error("the function could not be read at the allocation")]
    NotCaptured,
    /// Something else is at its place by now.
    #[error("the function was moved or dropped before it was read")]
    Moved,
    /// The objects are not as they are in the versions that are known.
    #[error("the runtime's objects are not as they are in the versions that are known")]
    Unknown,
}

impl Unread {
    /// The name that reports use, in snake case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gone => "process_gone",
            Self::NotCaptured => "not_captured",
            Self::Moved => "moved",
            Self::Unknown => "unknown_version",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it reads is another name each time, from a list.
    struct Changing(std::vec::IntoIter<Result<&'static str, Unread>>);

    impl Runtime for Changing {
        type Layout = ();
        type Walked = ();

        fn new(_: &Arc<()>) -> Self {
            Self(Vec::new().into_iter())
        }

        fn functions(&mut self, (): (), _: u64, _: &dyn ProcessMemory) -> Result<Vec<Function>, Unread> {
            let name = self.0.next().expect("it is not read more often")?.to_owned();
            Ok(vec![Function { name, ..Function::default() }])
        }

        fn version(&self) -> (String, &'static str) {
            (String::new(), "")
        }
    }

    fn settled<const N: usize>(readings: [Result<&'static str, Unread>; N]) -> Result<String, Unread> {
        let memory = lying_memory::LyingMemory::new(vec![0]);
        let mut runtime = Changing(Vec::from(readings).into_iter());
        let functions = runtime.settled_functions((), 0, &memory);
        assert_eq!(runtime.0.next(), None, "all are asked for");
        functions.map(|functions| functions[0].name.clone())
    }

    #[test]
    fn what_was_torn_is_read_anew_until_two_readings_agree() {
        assert_eq!(settled([Ok("a.js"), Ok("a.js")]), Ok("a.js".to_owned()));
        assert_eq!(settled([Ok("a"), Ok("a.js"), Ok("a.js")]), Ok("a.js".to_owned()));
        assert_eq!(settled([Ok("a"), Err(Unread::Moved)]), Err(Unread::Moved), "gone meanwhile");
        let changing = ["a", "b", "a", "b", "a"].map(Ok);
        assert_eq!(settled(changing), Err(Unread::Moved), "never the same");
    }
}
