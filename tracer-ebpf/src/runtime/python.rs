//! CPython's frames: which Python functions the interpreter is in, and where.
//!
//! The interpreter's loop is a function of C. Python frames are not on the stack but in a list of the thread, innermost first, and each
//! call of the loop works through one run of them:
//!
//! ```text
//! up to 3.10   each call of the loop has one frame
//! 3.11         a run ends with a frame that is marked as the first of its call
//! from 3.12    a run ends before a frame that is none of Python: it belongs to the call of the loop
//! ```
//!
//! So the walk goes up the native stack as ever, and where it comes to the loop the next run belongs.
//!
//! Code objects do not move, but their memory is used again once they are freed. So an address is no identity: since 3.12 they have a
//! running number; before, the first line and the addresses of two names stand for it. User space believes an address only when it
//! finds the same number there.

use super::{MOST_READ, Object};
use crate::unwind::Memory;

/// Where things are in the objects of a version of CPython, in bytes. Made by user space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The thread's state, from where the thread's own memory is (`fs`); 0 when that is not known yet.
    pub thread_state: i16,
    /// The frame, or what has it, in the thread's state.
    pub first_frame: u8,
    /// What has the frame has it there, plus 1; 0 when the thread's state has it itself.
    pub behind: u8,
    /// The code object in a frame.
    pub code: u8,
    /// The caller's frame in a frame.
    pub previous: u8,
    /// Where a frame is: a pointer or, before 3.11, a number.
    pub instruction: u8,
    /// Of a frame, the byte that says where a run ends.
    pub end: u8,
    /// The first instruction in a code object; 0 where frames have numbers.
    pub bytecode: u8,
    /// The number in a code object, 32 bits.
    pub id: u8,
    /// What besides tells code objects apart: pointers to names. Both 0 where the number is enough.
    pub names: [u8; 2],
    /// How runs end.
    pub runs: Runs,
}

/// Where a run of Python frames ends, which belongs to one call of the interpreter's loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Runs {
    /// Behind each frame.
    #[default]
    Single = 0,
    /// Behind one that is marked.
    UntilMarked = 1,
    /// Before one that belongs to the interpreter.
    UntilInterpreter = 2,
}

/// From this number on the owner of a frame is the interpreter.
const OWNED_BY_INTERPRETER: u8 = 3;

/// Where the code of the interpreter's loop is: what the compiler takes for rarely used is apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopCode {
    /// The address of the function.
    pub start: u64,
    /// The address of the part that is apart.
    pub cold: u64,
    /// The lengths of both.
    pub lengths: [u32; 2],
}

impl LoopCode {
    /// The first three words of [`Interpreter::to_words`].
    #[must_use]
    #[inline(always)]
    pub const fn from_words([start, cold, lengths]: [u64; 3]) -> Self {
        Self { start, cold, lengths: [lengths as u32, (lengths >> 32) as u32] }
    }

    /// Whether an address is in the loop.
    #[must_use]
    #[inline(always)]
    pub const fn contains(self, address: u64) -> bool {
        address.wrapping_sub(self.start) < self.lengths[0] as u64
            || address.wrapping_sub(self.cold) < self.lengths[1] as u64
    }
}

/// What the walk must know of the interpreter of a process; none has no code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interpreter {
    /// Where its loop is.
    pub code: LoopCode,
    /// Where things are in its objects.
    pub layout: Layout,
}

impl Interpreter {
    /// How many words it takes.
    pub const WORDS: usize = 5;

    /// In words.
    #[must_use]
    pub const fn to_words(self) -> [u64; Self::WORDS] {
        let Self { code, layout } = self;
        let [low, high] = layout.thread_state.to_le_bytes();
        [
            code.start,
            code.cold,
            code.lengths[0] as u64 | (code.lengths[1] as u64) << 32,
            u64::from_le_bytes([
                low,
                high,
                layout.first_frame,
                layout.behind,
                layout.code,
                layout.previous,
                layout.instruction,
                layout.end,
            ]),
            u64::from_le_bytes([
                layout.bytecode,
                layout.id,
                layout.names[0],
                layout.names[1],
                layout.runs as u8,
                0,
                0,
                0,
            ]),
        ]
    }

    /// What [`Interpreter::to_words`] made.
    #[must_use]
    #[inline(always)]
    pub const fn from_words(words: [u64; Self::WORDS]) -> Self {
        let [start, cold, lengths, first, second] = words;
        Self {
            code: LoopCode::from_words([start, cold, lengths]),
            layout: Layout::from_words([first, second]),
        }
    }
}

impl Layout {
    /// The last two of [`Interpreter::to_words`].
    #[must_use]
    #[inline(always)]
    pub const fn from_words([first, second]: [u64; 2]) -> Self {
        Self {
            thread_state: first as i16,
            first_frame: (first >> 16) as u8,
            behind: (first >> 24) as u8,
            code: (first >> 32) as u8,
            previous: (first >> 40) as u8,
            instruction: (first >> 48) as u8,
            end: (first >> 56) as u8,
            bytecode: second as u8,
            id: (second >> 8) as u8,
            names: [(second >> 16) as u8, (second >> 24) as u8],
            runs: match (second >> 32) as u8 {
                0 => Runs::Single,
                1 => Runs::UntilMarked,
                _ => Runs::UntilInterpreter,
            },
        }
    }

    /// The innermost frame of the thread whose own memory is there, if it has one.
    #[inline(always)]
    pub fn innermost(self, thread: u64, memory: &impl Memory) -> Option<u64> {
        if self.thread_state == 0 {
            return None;
        }
        let state = memory.read(thread.wrapping_add_signed(self.thread_state.into()))?;
        if state == 0 {
            return None;
        }
        let frame = memory.read(state.wrapping_add(self.first_frame.into()))?;
        match self.behind {
            0 => Some(frame),
            behind => memory.read(frame.wrapping_add(u64::from(behind) - 1)),
        }
    }

    /// Whether what is read of a frame and of a code object is no more than can be.
    #[must_use]
    pub const fn is_readable(self) -> bool {
        let (frame, code) = (self.frame_length(self.lowest()), self.code_length());
        let (most, least) = (MOST_READ as u8, 8);
        frame <= most && code <= most && frame >= least && code >= least
    }

    /// Where what is read of a frame begins.
    #[inline(always)]
    const fn lowest(self) -> u8 {
        if self.code < self.previous { self.code } else { self.previous }
    }

    /// How many bytes of a code object are read, from the word on that has its number.
    #[inline(always)]
    const fn code_length(self) -> u8 {
        if self.names[0] == 0 { 8 } else { self.names[1].wrapping_sub(self.id & !7).wrapping_add(8) }
    }

    /// What tells the code object at this address apart from others that there were or will be.
    #[inline(always)]
    pub fn code_id(self, code: u64, object: &mut impl Object) -> Option<u32> {
        let first = self.id & !7;
        if !object.load(code.wrapping_add(first.into()), self.code_length()) {
            return None;
        }
        let word = object.word(0);
        let number = if self.id & 4 == 0 { word as u32 } else { (word >> 32) as u32 };
        if self.names[0] == 0 {
            return Some(number);
        }
        let file = object.word(self.names[0].wrapping_sub(first));
        let name = object.word(self.names[1].wrapping_sub(first));
        let names = file.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ name.wrapping_mul(0xd6e8_feb8_6659_fd93);
        Some(number ^ (names >> 32) as u32)
    }

    /// How many bytes of a frame are read, from the lowest on that says something.
    #[inline(always)]
    const fn frame_length(self, lowest: u8) -> u8 {
        let last = if self.instruction > self.end { self.instruction } else { self.end & !7 };
        last.wrapping_sub(lowest).wrapping_add(8)
    }

    /// Whether a caller's frame is mostly just below that of the function it calls, as since 3.11; else each is an object of its own.
    #[must_use]
    #[inline(always)]
    pub const fn has_frames_in_a_row(self) -> bool {
        !matches!(self.runs, Runs::Single)
    }

    /// Reads a frame, and what tells its code object apart.
    #[inline(always)]
    pub fn read_frame(
        self,
        frame: u64,
        frames: &mut impl Object,
        object: &mut impl Object,
    ) -> Option<PythonFrame> {
        let lowest = self.lowest();
        if !frames.load(frame.wrapping_add(lowest.into()), self.frame_length(lowest)) {
            return None;
        }
        // The lowest bits say who counts the reference.
        let code = frames.word(self.code.wrapping_sub(lowest)) & !7;
        let caller = frames.word(self.previous.wrapping_sub(lowest));
        let instruction = frames.word(self.instruction.wrapping_sub(lowest));
        let end = frames.word((self.end & !7).wrapping_sub(lowest)) >> (8 * (self.end as u32 & 7));
        let end = end as u8;
        if matches!(self.runs, Runs::UntilInterpreter) && end >= OWNED_BY_INTERPRETER {
            return Some(PythonFrame { function: None, caller, ends_run: true });
        }
        let ends_run = match self.runs {
            Runs::Single => true,
            Runs::UntilMarked => end != 0,
            Runs::UntilInterpreter => false,
        };
        let position = match self.bytecode {
            0 => instruction as u32,
            bytecode => instruction.wrapping_sub(code).wrapping_sub(bytecode.into()) as u32,
        };
        let function = match self.code_id(code, object) {
            Some(id) => Function { code, id, position },
            None => Function::default(),
        };
        Some(PythonFrame { function: Some(function), caller, ends_run })
    }
}

/// What is in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PythonFrame {
    /// The function that it is of; none when it is the interpreter's.
    pub function: Option<Function>,
    /// The address of its caller's frame; 0 for none.
    pub caller: u64,
    /// Whether it is the last one of its call of the loop.
    pub ends_run: bool,
}

/// The function of a frame, and where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Function {
    /// The address of its code object; 0 when it could not be read.
    pub code: u64,
    /// What tells it apart: [`Layout::code_id`].
    pub id: u32,
    /// How far it is: bytes from the first instruction or, before 3.11, what the frame has.
    pub position: u32,
}

impl Function {
    /// The word that follows the frame.
    #[must_use]
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.id as u64 | (self.position as u64) << 32
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{collections::BTreeMap, vec::Vec};

    use super::*;

    #[derive(Clone)]
    struct Words(BTreeMap<u64, u64>);

    /// As the programs read objects.
    struct Loaded {
        memory: Words,
        words: [u64; MOST_READ / 8],
    }

    impl Object for Loaded {
        fn load(&mut self, address: u64, length: u8) -> bool {
            (0..length.div_ceil(8)).all(|word| {
                let read = self.memory.read(address + 8 * u64::from(word));
                read.map(|read| self.words[usize::from(word)] = read).is_some()
            })
        }

        fn word(&self, offset: u8) -> u64 {
            self.words[usize::from(offset / 8)]
        }
    }

    impl Memory for Words {
        fn read(&self, address: u64) -> Option<u64> {
            self.0.get(&address).copied()
        }
    }

    const FRAME: u64 = 0x7f00_0000_1000;
    const CODE: u64 = 0x7f00_0000_8000;

    /// As in 3.12 and 3.13.
    const NEW: Layout = Layout {
        thread_state: 0x328,
        first_frame: 72,
        behind: 0,
        code: 0,
        previous: 8,
        instruction: 56,
        end: 70,
        bytecode: 200,
        id: 92,
        names: [0, 0],
        runs: Runs::UntilInterpreter,
    };
    /// As in 3.11.
    const MARKED: Layout = Layout {
        first_frame: 56,
        behind: 9,
        code: 32,
        previous: 48,
        end: 68,
        bytecode: 184,
        id: 72,
        names: [112, 120],
        runs: Runs::UntilMarked,
        ..NEW
    };
    /// As in 3.10.
    const SINGLE: Layout = Layout {
        first_frame: 24,
        code: 32,
        previous: 24,
        instruction: 96,
        end: 24,
        bytecode: 0,
        id: 40,
        names: [104, 112],
        runs: Runs::Single,
        ..NEW
    };

    /// Of what lies between, anything is there.
    fn loaded(words: &[(u64, u64)]) -> Loaded {
        let mut memory = BTreeMap::new();
        for &(address, _) in words {
            let from = address & !0xff;
            memory.extend((from..from + 0x100).step_by(8).map(|address| (address, 0xeeee_eeee_eeee_eeee)));
        }
        memory.extend(words.iter().copied());
        Loaded { memory: Words(memory), words: [0; MOST_READ / 8] }
    }

    fn read(layout: Layout, words: &[(u64, u64)]) -> Option<PythonFrame> {
        layout.read_frame(FRAME, &mut loaded(words), &mut loaded(words))
    }

    #[test]
    fn a_frame_has_its_function_and_where_it_is_in_there() {
        let words = [
            (FRAME, CODE | 1),
            (FRAME + 8, 0x5000),
            (FRAME + 56, CODE + 200 + 34),
            (FRAME + 64, 1 << 48),
            (CODE + 88, 77 << 32 | 0xeeee),
        ];
        let function = Function { code: CODE, id: 77, position: 34 };
        let expected = PythonFrame { function: Some(function), caller: 0x5000, ends_run: false };
        assert_eq!(read(NEW, &words), Some(expected));
        let unread = PythonFrame { function: Some(Function::default()), ..expected };
        assert_eq!(read(NEW, &words[..4]), Some(unread), "its code cannot be read");
        assert_eq!(read(NEW, &words[4..]), None);
        let mut interpreters = words;
        interpreters[3].1 = 3 << 48;
        let expected = PythonFrame { function: None, caller: 0x5000, ends_run: true };
        assert_eq!(read(NEW, &interpreters), Some(expected));
    }

    #[test]
    fn runs_end_as_the_version_has_it() {
        let marked = |mark: u64| {
            let words = [
                (FRAME + 32, CODE),
                (FRAME + 48, 0x5000),
                (FRAME + 56, CODE + 184),
                (FRAME + 64, mark << 32),
                (CODE + 72, 9),
                (CODE + 112, 0x100),
                (CODE + 120, 0x200),
            ];
            read(MARKED, &words).expect("a frame")
        };
        assert!(!marked(0x0100).ends_run, "the byte beside it is another thing");
        assert!(marked(1).ends_run);
        let words = [
            (FRAME, 0),
            (FRAME + 24, 0),
            (FRAME + 32, CODE),
            (FRAME + 96, 0xffff_ffff_0000_0011),
            (CODE + 40, 9),
            (CODE + 104, 0x100),
            (CODE + 112, 0x200),
        ];
        let single = read(SINGLE, &words).expect("a frame");
        assert!(single.ends_run);
        assert_eq!(single.function.map(|function| (function.code, function.position)), Some((CODE, 17)));
    }

    #[test]
    fn code_that_takes_the_place_of_another_is_another() {
        let id = |words: [u64; 3]| {
            let places = [CODE + 72, CODE + 112, CODE + 120];
            MARKED.code_id(CODE, &mut loaded(&places.into_iter().zip(words).collect::<Vec<_>>()))
        };
        let first = id([1, 0x7f00_1000, 0x7f00_2000]);
        assert!(first.is_some());
        for other in
            [[2, 0x7f00_1000, 0x7f00_2000], [1, 0x7f00_1010, 0x7f00_2000], [1, 0x7f00_2000, 0x7f00_1000]]
        {
            assert_ne!(id(other), first);
        }
    }

    #[test]
    fn the_innermost_frame_is_found_through_the_thread() {
        let words = [(0x1328, 0x2000), (0x2048, FRAME), (0x2038, 0x3000), (0x3008, FRAME + 8)];
        let memory = Words(words.into());
        assert_eq!(NEW.innermost(0x1000, &memory), Some(FRAME));
        assert_eq!(MARKED.innermost(0x1000, &memory), Some(FRAME + 8));
        assert_eq!(Layout { thread_state: 0, ..NEW }.innermost(0x1000, &memory), None);
        assert_eq!(NEW.innermost(0x1000, &Words([(0x1328, 0)].into())), None, "no thread of Python");
    }

    #[test]
    fn interpreters_round_trip() {
        let code = LoopCode { start: 0x5000, cold: 0x1000, lengths: [0x100, 0x20] };
        for layout in [NEW, MARKED, SINGLE, Layout { thread_state: -8, ..NEW }] {
            let interpreter = Interpreter { code, layout };
            assert_eq!(Interpreter::from_words(interpreter.to_words()), interpreter);
        }
        let within = [0x4fff, 0x5000, 0x50ff, 0x5100, 0x1000, 0x1020].map(|address| code.contains(address));
        assert_eq!(within, [false, true, true, false, true, false]);
        assert!(!LoopCode::default().contains(0));
    }
}
