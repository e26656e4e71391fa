//! Where things are in CPython's objects, by what its file says of itself.
//!
//! Since 3.13 the interpreter describes itself: `_PyRuntime` begins with a table of offsets, for debuggers. Which word of that table is
//! which is in [`DESCRIBED`]. Before, the offsets are those of CPython's headers of the version, [`VERSIONS`]. They do not change within a
//! minor version.

use object::{Object as _, ObjectSymbol as _};
use tracer_ebpf::runtime::python::{Layout, LoopCode, Runs};

use super::{interpreter_loop, lines::LineTable};
use crate::runtime::ProcessMemory;
use crate::runtime::elf::data;

/// An interpreter, as its file has it; addresses are as the file states them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// Major, minor, and patch where it is known.
    pub version: Version,
    /// Where its loop is.
    pub interpreter_loop: LoopCode,
    /// The type of code objects.
    pub code_type: u64,
    /// What the walk needs, but for the place of the thread's state.
    pub walked: Layout,
    /// Of the objects that say what a function is.
    pub objects: Objects,
    /// How places in bytecode are lines.
    pub lines: LineTable,
    /// Where the threads are.
    pub(super) threads: Threads,
}

/// A version of CPython.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 3.
    pub major: u8,
    /// The one that says where things are.
    pub minor: u8,
    /// Not known before 3.11.
    pub patch: Option<u8>,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        self.patch.map_or(Ok(()), |patch| write!(f, ".{patch}"))
    }
}

/// Offsets in objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Objects {
    /// An object's type.
    pub kind: u64,
    /// How often it is referred to.
    pub references: u64,
    /// In a code object: its first line, 32 bits.
    pub first_line: u64,
    /// Its file.
    pub file: u64,
    /// Its name, with that of its class and of what is around it since 3.11.
    pub name: u64,
    /// Its table of lines.
    pub lines: u64,
    /// In strings.
    pub text: Text,
    /// How long a byte string is.
    pub bytes_length: u64,
    /// What is in it.
    pub bytes_data: u64,
}

/// Offsets in strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// How many characters.
    pub length: u64,
    /// How they are kept.
    pub state: u64,
    /// ASCII characters.
    pub ascii: u64,
    /// Others.
    pub other: u64,
}

impl Objects {
    /// The longest table of lines that is read.
    const LONGEST: u64 = 1 << 20;

    pub(super) fn bytes(&self, address: u64, memory: &dyn ProcessMemory) -> Option<Vec<u8>> {
        let length = memory.read(address.wrapping_add(self.bytes_length))?;
        let mut bytes = vec![0; usize::try_from(length).ok().filter(|_| length <= Self::LONGEST)?];
        memory.read_bytes(address.wrapping_add(self.bytes_data), &mut bytes).then_some(bytes)
    }
}

/// Where the states of threads are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Threads {
    /// The address of `_PyRuntime`.
    pub(super) runtime: u64,
    /// Offset of the first interpreter in there.
    pub(super) interpreters: u64,
    /// Offsets of the next interpreter, and of the first thread, in an interpreter.
    pub(super) next_interpreter: u64,
    pub(super) first_thread: u64,
    /// Offset of the next thread in a thread's state.
    pub(super) next_thread: u64,
    /// Offset of what the C library knows the thread by: its own memory.
    pub(super) thread_id: u64,
}

/// Why an interpreter is not supported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// Another version.
    #[error("Python {0} is none of those that are known here (3.9 to 3.14)")]
    Version(Version),
    /// It is older than 3.9.
    #[error("this Python is older than those that are known here (3.9 to 3.14)")]
    Old,
    /// It says of itself what cannot be.
    #[error("Python {0} was built in a way that is not known here ({1})")]
    Build(Version, &'static str),
}

/// What is the same in all builds of a version that does not describe itself.
struct Offsets {
    minor: u8,
    /// `_PyRuntimeState.interpreters.head`; `PyInterpreterState.next`, `.threads.head`; `PyThreadState.next`, `.thread_id`.
    threads: [u64; 5],
    walked: Layout,
    /// `PyCodeObject`: `co_firstlineno`, `co_filename`, `co_qualname` or `co_name`, `co_linetable` or `co_lnotab`.
    code: [u64; 4],
    text: Text,
}

/// `PyASCIIObject` up to 3.11, and without `wstr` since.
const WIDE_TEXT: Text = Text { length: 16, state: 32, ascii: 48, other: 72 };
const TEXT: Text = Text { length: 16, state: 32, ascii: 40, other: 56 };

/// From CPython's headers: `Include/internal/pycore_runtime.h`, `pycore_interp.h`, `pycore_frame.h`, `Include/cpython/pystate.h`,
/// `frameobject.h`, `code.h`, `unicodeobject.h`; each seen in processes.
const VERSIONS: [Offsets; 4] = [
    Offsets {
        minor: 9,
        threads: [32, 0, 8, 8, 176],
        walked: Layout { instruction: 104, ..SINGLE },
        code: [40, 104, 112, 120],
        text: WIDE_TEXT,
    },
    Offsets {
        minor: 10,
        threads: [32, 0, 8, 8, 176],
        walked: Layout { instruction: 96, ..SINGLE },
        code: [40, 104, 112, 120],
        text: WIDE_TEXT,
    },
    Offsets {
        minor: 11,
        threads: [40, 0, 16, 8, 152],
        walked: Layout {
            thread_state: 0,
            first_frame: 56,
            behind: 8 + 1,
            code: 32,
            previous: 48,
            instruction: 56,
            end: 68,
            bytecode: 184,
            id: 72,
            names: [112, 120],
            runs: Runs::UntilMarked,
        },
        code: [72, 112, 128, 136],
        text: WIDE_TEXT,
    },
    Offsets {
        minor: 12,
        threads: [40, 0, 72, 8, 136],
        walked: Layout {
            thread_state: 0,
            first_frame: 56,
            behind: 1,
            code: 0,
            previous: 8,
            instruction: 56,
            end: 70,
            bytecode: 192,
            id: 92,
            names: [0, 0],
            runs: Runs::UntilInterpreter,
        },
        code: [68, 112, 128, 136],
        text: TEXT,
    },
];

/// Frames that are objects of their own.
const SINGLE: Layout = Layout {
    thread_state: 0,
    first_frame: 24,
    behind: 0,
    code: 32,
    previous: 24,
    instruction: 0,
    end: 24,
    bytecode: 0,
    id: 40,
    names: [104, 112],
    runs: Runs::Single,
};

/// Where in the interpreter's description of itself (`struct _Py_DebugOffsets`) what stands, as offsets of words.
struct Described {
    minor: u8,
    /// As of [`Offsets::threads`].
    threads: [usize; 5],
    /// `PyThreadState.current_frame`.
    first_frame: usize,
    /// `_PyInterpreterFrame`: `previous`, `f_executable`, `instr_ptr`, `owner`.
    frame: [usize; 4],
    /// `PyCodeObject`: `co_filename`, `co_name`, `co_qualname`, `co_linetable`, `co_firstlineno`.
    code: [usize; 5],
    bytecode: usize,
    /// `PyObject.ob_type`.
    kind: usize,
    /// `PyBytesObject`: `ob_size`, `ob_sval`.
    bytes: [usize; 2],
    /// `PyASCIIObject`: `state`, `length`, and its size.
    text: [usize; 3],
}

/// From `Include/internal/pycore_runtime.h` of 3.13, `pycore_debug_offsets.h` of 3.14.
const DESCRIBED: [Described; 2] = [
    Described {
        minor: 13,
        threads: [40, 64, 72, 168, 192],
        first_frame: 184,
        frame: [232, 240, 248, 264],
        code: [280, 288, 296, 304, 312],
        bytecode: 344,
        kind: 360,
        bytes: [520, 528],
        text: [544, 552, 560],
    },
    Described {
        minor: 14,
        threads: [40, 64, 72, 192, 216],
        first_frame: 208,
        frame: [256, 264, 272, 288],
        code: [320, 328, 336, 344, 352],
        bytecode: 384,
        kind: 408,
        bytes: [600, 608],
        text: [624, 632, 640],
    },
];

/// How a description begins, and how long the longest is, as far as it is read.
const COOKIE: &[u8; 8] = b"xdebugpy";
const DESCRIPTION: u64 = 648;
/// `co_version` is so far behind `co_firstlineno` since 3.12: `Include/cpython/code.h`.
const VERSION_BEHIND_FIRST_LINE: u64 = 24;

impl Build {
    /// Reads what an ELF file says of the interpreter in it. `None` when there is none.
    ///
    /// # Errors
    /// When it is not supported.
    pub fn of_elf(bytes: &[u8]) -> Result<Option<Self>, Unsupported> {
        let Ok(elf) = object::File::parse(bytes) else { return Ok(None) };
        let Some(symbols) = Symbols::read(&elf) else { return Ok(None) };
        Self::of(&symbols, &elf, bytes).map(Some)
    }

    /// Whether the loop is made of functions that call each other in the last place: it is short then.
    #[must_use]
    pub fn has_tail_calls(&self) -> bool {
        /// Other loops have 30 to 80 KiB.
        const SHORT: u32 = 16 << 10;
        self.version.minor >= 14 && self.interpreter_loop.lengths.iter().sum::<u32>() < SHORT
    }

    fn of(symbols: &Symbols, elf: &object::File<'_>, bytes: &[u8]) -> Result<Self, Unsupported> {
        let version = symbols.version(elf)?;
        let start = symbols.evaluate;
        let cold = symbols.cold.or_else(|| interpreter_loop::cold_part(bytes, start)).unwrap_or((0, 0));
        let interpreter_loop = LoopCode { start: start.0, cold: cold.0, lengths: [start.1, cold.1] };
        let code_type = symbols.code_type.ok_or(Unsupported::Build(version, "no type of code"))?;
        let lines = match version.minor {
            ..=9 => LineTable::Increments,
            10 => LineTable::Ranges,
            _ => LineTable::Locations,
        };
        let known = VERSIONS.iter().find(|known| known.minor == version.minor);
        let (threads, walked, objects) = match known {
            Some(known) => known.places(symbols.runtime),
            None => {
                let described = DESCRIBED.iter().find(|known| known.minor == version.minor);
                let described = described.ok_or(Unsupported::Version(version))?;
                let description = data(elf, symbols.runtime, DESCRIPTION).unwrap_or_default();
                if is_free_threaded(&description) {
                    return Err(Unsupported::Build(version, "threads without a lock"));
                }
                described
                    .places(symbols.runtime, &description)
                    .ok_or(Unsupported::Build(version, "its description of itself"))?
            }
        };
        Ok(Self { version, interpreter_loop, code_type, walked, objects, lines, threads })
    }
}

impl Offsets {
    fn places(&self, runtime: u64) -> (Threads, Layout, Objects) {
        let [interpreters, next_interpreter, first_thread, next_thread, thread_id] = self.threads;
        let threads =
            Threads { runtime, interpreters, next_interpreter, first_thread, next_thread, thread_id };
        let [first_line, file, name, lines] = self.code;
        let objects = Objects {
            kind: 8,
            references: 0,
            first_line,
            file,
            name,
            lines,
            text: self.text,
            bytes_length: 16,
            bytes_data: 32,
        };
        (threads, self.walked, objects)
    }
}

impl Described {
    /// The places that an interpreter says of itself. `None` when it is no description of this version.
    fn places(&self, runtime: u64, description: &[u8]) -> Option<(Threads, Layout, Objects)> {
        let word = |at: usize| Some(u64::from_le_bytes(*description.get(at..)?.first_chunk()?));
        let offset = |at: usize| word(at).filter(|&offset| offset < 1 << 20);
        let small = |at: usize| word(at).and_then(|offset| u8::try_from(offset).ok());
        if description.first_chunk() != Some(COOKIE) || word(8)? >> 16 != 0x0300 | u64::from(self.minor) {
            return None;
        }
        let [interpreters, next_interpreter, first_thread, next_thread, thread_id] = self.threads;
        let threads = Threads {
            runtime,
            interpreters: offset(interpreters)?,
            next_interpreter: offset(next_interpreter)?,
            first_thread: offset(first_thread)?,
            next_thread: offset(next_thread)?,
            thread_id: offset(thread_id)?,
        };
        let [previous, code, instruction, owner] = self.frame;
        let [file, _, name, lines, first_line] = self.code;
        let first_line = offset(first_line)?;
        let walked = Layout {
            thread_state: 0,
            first_frame: small(self.first_frame)?,
            behind: 0,
            code: small(code)?,
            previous: small(previous)?,
            instruction: small(instruction)?,
            end: small(owner)?,
            bytecode: small(self.bytecode)?,
            id: u8::try_from(first_line + VERSION_BEHIND_FIRST_LINE).ok()?,
            names: [0, 0],
            runs: Runs::UntilInterpreter,
        };
        if !walked.is_readable() {
            return None;
        }
        let [state, length, size] = self.text;
        let size = offset(size)?;
        let text = Text { length: offset(length)?, state: offset(state)?, ascii: size, other: size + 16 };
        let objects = Objects {
            kind: offset(self.kind)?,
            references: 0,
            first_line,
            file: offset(file)?,
            name: offset(name)?,
            lines: offset(lines)?,
            text,
            bytes_length: offset(self.bytes[0])?,
            bytes_data: offset(self.bytes[1])?,
        };
        Some((threads, walked, objects))
    }
}

/// Whether the interpreter was built without the lock that its threads share. What is living code can't be told there: its references are
/// counted in two places, and threads may have bytecode of their own.
fn is_free_threaded(description: &[u8]) -> bool {
    description.starts_with(COOKIE) && description.get(16..24).is_some_and(|word| word != [0; 8])
}

/// What of an interpreter's file has a name. Address and length of functions.
#[derive(Default)]
struct Symbols {
    runtime: u64,
    evaluate: (u64, u32),
    cold: Option<(u64, u32)>,
    code_type: Option<u64>,
    version: Option<u64>,
    /// Functions that are there since 3.9 and since 3.10.
    since: [bool; 2],
}

impl Symbols {
    fn read(elf: &object::File<'_>) -> Option<Self> {
        let mut symbols = Self::default();
        // What is exported is in the other table, too, unless the file was stripped of it.
        for symbol in elf.dynamic_symbols().chain(elf.symbols()).filter(|symbol| symbol.is_definition()) {
            let Ok(name) = symbol.name_bytes() else { continue };
            let function = (symbol.address(), u32::try_from(symbol.size()).unwrap_or(0));
            match name {
                b"_PyRuntime" => symbols.runtime = symbol.address(),
                b"_PyEval_EvalFrameDefault" => symbols.evaluate = function,
                b"_PyEval_EvalFrameDefault.cold" => symbols.cold = Some(function),
                b"PyCode_Type" => symbols.code_type = Some(symbol.address()),
                b"Py_Version" => symbols.version = Some(symbol.address()),
                b"PyModule_AddType" => symbols.since[0] = true,
                b"PyIter_Send" => symbols.since[1] = true,
                _ => {}
            }
        }
        (symbols.runtime != 0 && symbols.evaluate.1 != 0).then_some(symbols)
    }

    fn version(&self, elf: &object::File<'_>) -> Result<Version, Unsupported> {
        let stated = self.version.and_then(|address| data(elf, address, 4)?.try_into().ok());
        match (stated.map(u32::from_le_bytes), self.since) {
            (Some(version), _) => {
                let [_, patch, minor, major] = version.to_le_bytes();
                Ok(Version { major, minor, patch: Some(patch) })
            }
            (None, [_, true]) => Ok(Version { major: 3, minor: 10, patch: None }),
            (None, [true, _]) => Ok(Version { major: 3, minor: 9, patch: None }),
            (None, _) => Err(Unsupported::Old),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Build {
        pub(in crate::runtime::python) const MADE_UP_TYPE: u64 = 0x9000;
        pub(in crate::runtime::python) const MADE_UP_RUNTIME: u64 = 0xa000;

        /// One of a version that does not describe itself.
        pub(in crate::runtime::python) fn made_up(minor: u8) -> Self {
            let known = VERSIONS.iter().find(|known| known.minor == minor).expect("it is known");
            let (threads, walked, objects) = known.places(Self::MADE_UP_RUNTIME);
            Self {
                version: Version { major: 3, minor, patch: None },
                interpreter_loop: LoopCode::default(),
                code_type: Self::MADE_UP_TYPE,
                walked,
                objects,
                lines: LineTable::Locations,
                threads,
            }
        }
    }

    /// As 3.13.0 describes itself, as far as that is read.
    fn description() -> Vec<u8> {
        let mut words = vec![0_u64; 81];
        words[0] = u64::from_le_bytes(*COOKIE);
        words[1] = 0x030d_00f0;
        let places = [
            (40, 632),
            (64, 7264),
            (72, 7344),
            (168, 8),
            (184, 72),
            (192, 152),
            (232, 8),
            (240, 0),
            (248, 56),
            (264, 70),
            (280, 112),
            (288, 120),
            (296, 128),
            (304, 136),
            (312, 68),
            (344, 200),
            (360, 8),
            (520, 16),
            (528, 32),
            (544, 32),
            (552, 16),
            (560, 40),
        ];
        places.into_iter().for_each(|(at, offset)| words[at / 8] = offset);
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    #[test]
    fn an_interpreter_that_describes_itself_is_believed() {
        let described = &DESCRIBED[0];
        let (threads, walked, objects) = described.places(0xa000, &description()).expect("it is one");
        assert_eq!((threads.first_thread, threads.thread_id), (7344, 152));
        let before = &VERSIONS[3].walked;
        let expected = Layout { first_frame: 72, behind: 0, bytecode: 200, ..*before };
        assert_eq!(walked, expected, "3.13 differs from 3.12 by this");
        assert_eq!(objects, VERSIONS[3].places(0).2);
    }

    #[test]
    fn what_describes_itself_otherwise_is_not_believed() {
        let is_refused = |change: fn(&mut Vec<u8>)| {
            let mut description = description();
            change(&mut description);
            DESCRIBED[0].places(0xa000, &description).is_none()
        };
        assert!(!is_refused(|_| {}));
        assert!(is_refused(|bytes| bytes[0] = b'y'));
        assert!(is_refused(|bytes| bytes[10] = 14), "another version");
        assert!(is_refused(|bytes| bytes[249] = 7), "a frame is not that large");
        assert!(is_refused(|bytes| bytes[248] = 200), "nor is what is read of it");
        assert!(is_refused(|bytes| bytes.truncate(300)));
    }

    #[test]
    fn an_interpreter_says_that_its_threads_share_no_lock() {
        let mut description = description();
        assert!(!is_free_threaded(&description) && !is_free_threaded(&description[..16]));
        description[16] = 1;
        assert!(is_free_threaded(&description));
    }

    #[test]
    fn the_versions_that_are_known_are_each_known_once() {
        let minors =
            VERSIONS.iter().map(|known| known.minor).chain(DESCRIBED.iter().map(|known| known.minor));
        assert!(minors.eq(9..=14));
        assert!(VERSIONS.iter().all(|known| known.walked.is_readable()));
        let longest = DESCRIBED.iter().flat_map(|known| known.text).max();
        assert_eq!(longest, Some(DESCRIPTION as usize - 8));
    }
}
