//! CPython: the names, files and lines of Python functions in a process that was started without any flag.

mod build;
mod interpreter_loop;
mod lines;
mod threads;

use std::sync::Arc;

use tracer_ebpf::runtime::python as walked;

pub use self::build::Build;
use self::build::Text;
#[cfg(any(test, feature = "fuzzing"))]
pub use self::lines::LineTable;
pub use self::threads::thread_state;
use super::{Function, Loaded, ProcessMemory, Runtime, Unread};

/// A frame of a Python function, as the walk wrote it down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WalkedFunction {
    /// The address of its code object; 0 when the walk could not read it.
    pub code: u64,
    /// What tells it apart from what was and will be at that address.
    pub id: u32,
    /// How far it was in its bytecode, as the version counts.
    pub position: u32,
}

/// An interpreter in a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// What is in its file.
    pub build: Arc<Build>,
    /// What is to be added to the addresses that the file states.
    pub bias: u64,
}

impl Located {
    /// What the walk must know, with the place of a thread's state if that is known.
    #[must_use]
    pub fn interpreter(&self, thread_state: Option<i16>) -> walked::Interpreter {
        let code = self.build.interpreter_loop;
        walked::Interpreter {
            code: walked::LoopCode {
                start: code.start.wrapping_add(self.bias),
                cold: code.cold.wrapping_add(self.bias),
                lengths: code.lengths,
            },
            layout: walked::Layout { thread_state: thread_state.unwrap_or(0), ..self.build.walked },
        }
    }
}

/// What the interpreter of one process says.
#[derive(Debug)]
pub struct Python {
    located: Arc<Located>,
}

/// The language of its functions, in reports.
const PYTHON: &str = "python";

/// Name and file of the code that checks what `__init__` returned. Since 3.12 it is the caller of each `__init__` that is called often, and
/// the interpreter leaves it out of its own tracebacks.
const CHECKS_INIT: &str = "__init__";

impl Runtime for Python {
    type Layout = Located;
    type Walked = WalkedFunction;

    fn new(located: &Arc<Located>) -> Self {
        Self { located: Arc::clone(located) }
    }

    fn functions(
        &mut self,
        walked: WalkedFunction,
        _: u64,
        memory: &dyn ProcessMemory,
    ) -> Result<Vec<Function>, Unread> {
        if walked.code == 0 {
            return Err(Unread::NotCaptured);
        }
        self.check(walked, memory)?;
        let function = self.function(walked, memory);
        // What was read in between is of this function if it still is the one.
        self.check(walked, memory)?;
        Ok(vec![function.ok_or(Unread::Unknown)?])
    }

    fn version(&self) -> (String, &'static str) {
        (format!("Python {}", self.located.build.version), "Python")
    }
}

impl Python {
    fn function(&self, walked: WalkedFunction, memory: &dyn ProcessMemory) -> Option<Function> {
        let build = &*self.located.build;
        let objects = &build.objects;
        let word = |offset: u64| memory.read(walked.code.wrapping_add(offset));
        let first_line = (word(objects.first_line & !7)? >> (8 * (objects.first_line & 7))) as u32;
        let line = |table: Vec<u8>| {
            build.lines.line_at(&table, first_line.cast_signed(), walked.position.cast_signed())
        };
        let name = objects.text.read(word(objects.name)?, memory)?;
        let file = objects.text.read(word(objects.file)?, memory);
        Some(Function {
            is_internal: name == CHECKS_INIT && file.as_deref() == Some(CHECKS_INIT),
            name,
            file,
            line: objects.bytes(word(objects.lines)?, memory).and_then(line),
            language: PYTHON,
            ..Function::default()
        })
    }

    /// Whether the code object that was walked is still where it was, and alive. What is freed keeps its contents for a while, but those of
    /// what it points to may be others' by then.
    fn check(&self, walked: WalkedFunction, memory: &dyn ProcessMemory) -> Result<(), Unread> {
        let Located { build, bias } = &*self.located;
        let kind = memory.read(walked.code.wrapping_add(build.objects.kind)).ok_or(Unread::Gone)?;
        let id = build.walked.code_id(walked.code, &mut Loaded::new(memory));
        let references =
            memory.read(walked.code.wrapping_add(build.objects.references)).ok_or(Unread::Gone)?;
        // What is free has the address of another free one there. The upper bits are flags since 3.14.
        let is_alive = (references as u32 != 0) && (references >> 32) as u16 == 0;
        if is_alive && kind == build.code_type.wrapping_add(*bias) && id == Some(walked.id) {
            Ok(())
        } else {
            Err(Unread::Moved)
        }
    }
}

impl Text {
    /// The longest name that is believed, in characters.
    const LONGEST: u64 = 4096;

    /// In the state, the first bit of how wide a character is.
    const KIND_BIT: u32 = 2;

    fn read(self, address: u64, memory: &dyn ProcessMemory) -> Option<String> {
        let length = memory.read(address.wrapping_add(self.length))?;
        let state = memory.read(address.wrapping_add(self.state))? as u32 >> Self::KIND_BIT;
        let (width, is_compact, is_ascii) = (state & 7, state >> 3 & 1 == 1, state >> 4 & 1 == 1);
        if length > Self::LONGEST || !is_compact || !matches!(width, 1 | 2 | 4) {
            return None;
        }
        let data = address.wrapping_add(if is_ascii { self.ascii } else { self.other });
        let mut bytes = vec![0; length as usize * width as usize];
        if !memory.read_bytes(data, &mut bytes) {
            return None;
        }
        let unit = |unit: &[u8]| unit.iter().rev().fold(0_u32, |number, &byte| number << 8 | u32::from(byte));
        Some(
            bytes
                .chunks_exact(width as usize)
                .map(|character| char::from_u32(unit(character)).unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use tracer_ebpf::unwind::Memory;

    use super::super::lying_memory::{LyingMemory, MOST_READ, any_word};
    use super::{threads::Misfit, *};

    /// Words by address; the others cannot be read.
    #[derive(Clone, Default)]
    struct MadeUp(BTreeMap<u64, u64>);

    impl MadeUp {
        fn put(&mut self, address: u64, words: &[u64]) {
            self.0.extend((address..).step_by(8).zip(words.iter().copied()));
        }

        fn put_bytes(&mut self, address: u64, bytes: &[u8]) {
            for (at, part) in (address..).step_by(8).zip(bytes.chunks(8)) {
                let mut word = [0; 8];
                word[..part.len()].copy_from_slice(part);
                self.put(at, &[u64::from_ne_bytes(word)]);
            }
        }
    }

    impl Memory for MadeUp {
        fn read(&self, address: u64) -> Option<u64> {
            let mut word = [0; 8];
            self.read_bytes(address, &mut word).then(|| u64::from_ne_bytes(word))
        }
    }

    impl ProcessMemory for MadeUp {
        fn read_bytes(&self, address: u64, bytes: &mut [u8]) -> bool {
            (address..).zip(bytes).all(|(address, byte)| {
                let word = self.0.get(&(address & !7));
                word.map(|word| *byte = word.to_ne_bytes()[(address & 7) as usize]).is_some()
            })
        }
    }

    const BIAS: u64 = 0x5000_0000_0000;
    const CODE: u64 = 0x7f00_0000_1000;
    const NAME: u64 = 0x7f00_0000_2000;
    const FILE: u64 = 0x7f00_0000_3000;
    const TABLE: u64 = 0x7f00_0000_4000;
    const COMPACT: u64 = 8 << 2;
    const ASCII: u64 = 16 << 2;

    fn located(minor: u8) -> Located {
        Located { build: Arc::new(Build::made_up(minor)), bias: BIAS }
    }

    /// A function of 3.12 in the third of its lines.
    fn code() -> MadeUp {
        let mut memory = MadeUp::default();
        memory.put(CODE, &[0; 26]);
        memory.put(CODE, &[1, BIAS + Build::MADE_UP_TYPE]);
        memory.put(CODE + 64, &[10 << 32]);
        memory.put(CODE + 88, &[77 << 32]);
        memory.put(CODE + 112, &[FILE, 0, NAME, TABLE]);
        memory.put(NAME + 16, &[2, 0, COMPACT | 2 << 2, 0, 0]);
        memory.put_bytes(NAME + 56, &"関数".encode_utf16().flat_map(u16::to_ne_bytes).collect::<Vec<_>>());
        memory.put(FILE + 16, &[7, 0, COMPACT | ASCII | 1 << 2]);
        memory.put_bytes(FILE + 40, b"leak.py\0");
        memory.put(TABLE + 16, &[6, 0]);
        memory.put_bytes(TABLE + 32, &[0x80 | 13 << 3, 2, 0x80 | 11 << 3, 0, 0, 0, 0, 0]);
        memory
    }

    fn read(memory: &MadeUp, id: u32) -> Result<Function, Unread> {
        let mut python = Python::new(&Arc::new(located(12)));
        let walked = WalkedFunction { code: CODE, id, position: 2 };
        python.functions(walked, 0, memory).map(|mut functions| functions.remove(0))
    }

    #[test]
    fn a_function_has_its_name_file_and_line() {
        let function = read(&code(), 77).expect("it is there");
        assert_eq!(function.name, "関数");
        assert_eq!((function.file.as_deref(), function.line), (Some("leak.py"), Some(12)));
    }

    #[test]
    fn what_checks_init_is_internal_and_init_is_not() {
        let is_internal = |text: &[u8], of: &[u64]| {
            let mut memory = code();
            for &at in of {
                memory.put(at + 16, &[text.len() as u64, 0, COMPACT | ASCII | 1 << 2]);
                memory.put_bytes(at + 40, text);
            }
            read(&memory, 77).expect("it is there").is_internal
        };
        assert!(is_internal(b"__init__", &[NAME, FILE]));
        assert!(!is_internal(b"__init__", &[NAME]), "a program's own");
    }

    #[test]
    fn what_is_gone_or_something_else_has_no_name() {
        assert_eq!(read(&code(), 78), Err(Unread::Moved), "other code is there");
        let with = |address, word| {
            let mut memory = code();
            memory.put(address, &[word]);
            read(&memory, 77)
        };
        assert_eq!(with(CODE + 8, 0x1234), Err(Unread::Moved), "no code is there");
        assert_eq!(with(CODE, 0), Err(Unread::Moved), "it was freed");
        assert_eq!(
            with(CODE, 0x7f00_0000_9000),
            Err(Unread::Moved),
            "it was freed, and the next free one is there"
        );
        assert_eq!(
            with(CODE, u64::from(u32::MAX)).map(|function| function.line),
            Ok(Some(12)),
            "it is never freed"
        );
        assert_eq!(with(NAME + 16, 1 << 40), Err(Unread::Unknown), "no name is that long");
        assert_eq!(with(NAME + 32, 0), Err(Unread::Unknown), "no name is like that");
        assert_eq!(read(&MadeUp::default(), 77), Err(Unread::Gone));
        let mut python = Python::new(&Arc::new(located(12)));
        let walked = WalkedFunction { code: 0, id: 0, position: 0 };
        assert_eq!(python.functions(walked, 0, &code()), Err(Unread::NotCaptured));
    }

    #[test]
    fn threads_have_their_state_in_one_place() {
        const RUNTIME: u64 = BIAS + Build::MADE_UP_RUNTIME;
        const INTERPRETER: u64 = 0x7f00_0001_0000;
        const STATES: [u64; 2] = [0x7f00_0002_0000, 0x7f00_0003_0000];
        const OWN: [u64; 2] = [0x7f00_0004_0000, 0x7f00_0005_0000];
        let mut memory = MadeUp::default();
        memory.put(RUNTIME + 40, &[0]);
        assert_eq!(thread_state(&located(12), &memory), Ok(None), "it does not run yet");
        memory.put(RUNTIME + 40, &[INTERPRETER]);
        memory.put(INTERPRETER, &[0]);
        memory.put(INTERPRETER + 72, &[STATES[0]]);
        memory.put(STATES[0] + 8, &[STATES[1]]);
        memory.put(STATES[1] + 8, &[0]);
        memory.put(STATES[0] + 136, &[OWN[0]]);
        memory.put(STATES[1] + 136, &[0]);
        memory.put(OWN[0] - 0x200, &[0; 0x200]);
        memory.put(OWN[0], &[OWN[0]]);
        assert_eq!(thread_state(&located(12), &memory), Err(Misfit), "it has none");
        // While it holds the lock it has it in two places.
        memory.put(OWN[0] - 8, &[STATES[0]]);
        memory.put(OWN[0] + 0x328, &[STATES[0]]);
        assert_eq!(thread_state(&located(12), &memory), Ok(Some(0x328)));
        memory.put(STATES[1] + 136, &[OWN[1]]);
        memory.put(OWN[1] - 0x200, &[0; 0x100]);
        memory.put(OWN[1], &[OWN[1]]);
        memory.put(OWN[1] + 0x338, &[STATES[1]]);
        assert_eq!(thread_state(&located(12), &memory), Err(Misfit), "not the same");
        memory.put(OWN[1] + 0x328, &[STATES[1]]);
        assert_eq!(thread_state(&located(12), &memory), Ok(Some(0x328)));
        memory.put(OWN[1], &[0]);
        assert_eq!(thread_state(&located(12), &memory), Err(Misfit), "it is no thread");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn memory_that_lies_is_read_to_an_end(
            mut memory in LyingMemory::any(),
            (code, position) in (any_word(), any::<u32>()),
            minor in 9_u8..=12,
        ) {
            // As if there were living code: with the right type, and a number that is the same.
            let build = Build::made_up(minor);
            memory.put(code, 1);
            let kind = memory.read(code.wrapping_add(build.objects.kind)).unwrap_or(0);
            let located = Located { build: Arc::new(build), bias: kind.wrapping_sub(Build::MADE_UP_TYPE) };
            let id = located.build.walked.code_id(code, &mut Loaded::new(&memory)).unwrap_or(0);
            let walked = WalkedFunction { code, id, position };
            let _ = Python::new(&Arc::new(located.clone())).functions(walked, 0, &memory);
            let _ = thread_state(&located, &memory);
            prop_assert!(memory.read.get() < MOST_READ, "{} bytes", memory.read.get());
        }
    }
}
