//! V8's frames (Node.js): which function a frame is of, and where it is.
//!
//! All code that V8 makes or has built in keeps a frame pointer, so the frames are found without it. A frame's words, from the frame
//! pointer down, say what it is:
//!
//! ```text
//! fp -  8   a context (a pointer to an object): a JavaScript function's frame; or a small number: V8's own, of that type
//! fp - 16   the JSFunction
//! fp - 32   its bytecode, while it is interpreted
//! fp - 40   how far it is in there, while it is interpreted: a small number
//! ```
//!
//! Pointers to objects have lowest bits 01, small numbers ("Smis") stand in the upper half of a word whose lower half is 0.
//!
//! A JSFunction is no identity: there is one for each closure, and they move. What they share is the SharedFunctionInfo, of
//! which there is one for each function in the source. It may move, too, and its address then be another one's, but it has a number: since
//! V8 11.8 one of its own, before that the number of its script and its own number in there. User space believes an address
//! only when it finds the same number there.

use super::{MOST_READ, Object};
use crate::unwind::Memory;

/// Where things are in V8's objects, and which file its code is in. Made by user space for the version that the process runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Offset of the SharedFunctionInfo in a JSFunction; 0 when the process has no V8 that is known.
    pub shared: u8,
    /// Offset of a number, 32 bits, in a SharedFunctionInfo.
    pub id: u8,
    /// Offset of the script in a SharedFunctionInfo, if the number is unique within one script alone; 0 otherwise.
    pub script: u8,
    /// The number of the file that V8 is in, as in [`Mapping::file`](crate::unwind::Mapping::file).
    pub file: u32,
}

/// Offset of what is compiled of it in a SharedFunctionInfo. It is a small number for functions that V8 has built in.
const FUNCTION_DATA: u8 = 8;
/// Offset of a script's number, a Smi, in a Script.
const SCRIPT_ID: i64 = 64;
/// The numbers of types of frames that there can be: V8 has some forty.
const FRAME_TYPES: u64 = 64;

impl Layout {
    /// The layout in one word; 0 for none.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.shared as u64 | (self.id as u64) << 8 | (self.script as u64) << 16 | (self.file as u64) << 32
    }

    /// What [`Layout::to_bits`] made.
    #[must_use]
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            shared: bits as u8,
            id: (bits >> 8) as u8,
            script: (bits >> 16) as u8,
            file: (bits >> 32) as u32,
        }
    }

    /// Whether code that no unwind table covers may be V8's, by the number of the file that it is in: compiled code is in none.
    #[must_use]
    #[inline(always)]
    pub const fn may_have_code_in(self, file: u32) -> bool {
        self.shared != 0 && (file == 0 || file == self.file)
    }

    /// Whether what is read of a SharedFunctionInfo is no more than can be.
    #[must_use]
    pub const fn is_readable(self) -> bool {
        self.id >= FUNCTION_DATA && self.script <= self.id && self.function_length() as usize <= MOST_READ
    }

    /// How many bytes are read of a SharedFunctionInfo: from what is compiled of it to its number.
    #[inline(always)]
    const fn function_length(self) -> u8 {
        (self.id & !7).wrapping_sub(FUNCTION_DATA).wrapping_add(8)
    }

    /// The number of the SharedFunctionInfo at this tagged address, unique in its isolate for as long as that lives. Leaves the object
    /// loaded from `FUNCTION_DATA` on.
    #[inline(always)]
    pub fn function_id(self, shared: u64, object: &mut impl Object, memory: &impl Memory) -> Option<Id> {
        let from = shared.wrapping_add_signed(i64::from(FUNCTION_DATA) - 1);
        if !object.load(from, self.function_length()) {
            return None;
        }
        let word = object.word((self.id & !7).wrapping_sub(FUNCTION_DATA));
        let number = if self.id & 4 == 0 { word as u32 } else { (word >> 32) as u32 };
        let script = match self.script {
            0 => 0,
            offset => {
                let script = pointer(object.word(offset.wrapping_sub(FUNCTION_DATA)))?;
                (field(script, SCRIPT_ID, memory)? >> 32) as u32
            }
        };
        Some(Id { script, number })
    }
}

/// What tells the functions of an isolate apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Id {
    /// Of the script; 0 where the other is enough.
    pub script: u32,
    /// Of the function.
    pub number: u32,
}

impl Id {
    /// Both in one word, to compare with: an object that has taken the place of another hardly has the same.
    #[must_use]
    #[inline(always)]
    pub const fn folded(self) -> u32 {
        self.number ^ self.script.rotate_left(16)
    }
}

/// What a frame of V8 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum V8Frame {
    /// V8's own, of a type with this number.
    Internal(u32),
    /// A JavaScript function's.
    Function(Function),
}

/// The function of a frame, and where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Function {
    /// The tagged address of its SharedFunctionInfo; 0 when it could not be read.
    pub shared: u64,
    /// Its number.
    pub id: Id,
    /// While it is interpreted: how far it is in its bytecode array, counted from the tagged address. 0 otherwise: compiled code
    /// says it by its address, and what is built in has no lines.
    pub position: u32,
}

impl Function {
    /// The words that follow the frame.
    #[must_use]
    #[inline(always)]
    pub const fn to_words(self) -> [u64; 2] {
        [self.shared, self.id.folded() as u64 | (self.position as u64) << 32]
    }
}

/// What the frame with this frame pointer is; `None` when it is none of V8's. `is_compiled` says that its code is in no file.
#[inline(always)]
pub fn identify(
    layout: Layout,
    fp: u64,
    is_compiled: bool,
    stack: &impl Memory,
    object: &mut impl Object,
    heap: &impl Memory,
) -> Option<V8Frame> {
    // The lowest first: so the words are read together.
    let position = stack.read(fp.wrapping_sub(40))?;
    let bytecode = stack.read(fp.wrapping_sub(32))?;
    let function = stack.read(fp.wrapping_sub(16))?;
    let context = stack.read(fp.wrapping_sub(8))?;
    if context & 1 == 0 {
        return if context >> 1 < FRAME_TYPES {
            Some(V8Frame::Internal((context >> 1) as u32))
        } else {
            None
        };
    }
    let function = pointer(context).and_then(|_| pointer(function))?;
    let Some(shared) = field(function, layout.shared.into(), heap).and_then(pointer) else {
        return Some(V8Frame::Function(Function::default()));
    };
    let Some(id) = layout.function_id(shared, object, heap) else {
        return Some(V8Frame::Function(Function::default()));
    };
    // A function that is built in has anything there.
    let is_interpreted = !is_compiled
        && position as u32 == 0
        && pointer(bytecode).is_some()
        && pointer(object.word(0)).is_some();
    let position = if is_interpreted { (position >> 32) as u32 } else { 0 };
    Some(V8Frame::Function(Function { shared, id, position }))
}

/// A word, if it points to an object.
#[inline(always)]
const fn pointer(word: u64) -> Option<u64> {
    if word & 3 == 1 { Some(word) } else { None }
}

/// A field of an object, by its tagged address.
#[inline(always)]
fn field(object: u64, offset: i64, memory: &impl Memory) -> Option<u64> {
    memory.read(object.wrapping_add_signed(offset - 1))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeMap;

    use super::*;

    struct Words(BTreeMap<u64, u64>);

    impl Memory for Words {
        fn read(&self, address: u64) -> Option<u64> {
            self.0.get(&address).copied()
        }
    }

    /// As the programs read objects.
    struct Loaded<'a> {
        memory: &'a Words,
        address: u64,
    }

    impl Object for Loaded<'_> {
        fn load(&mut self, address: u64, length: u8) -> bool {
            self.address = address;
            // Of what lies between, anything is there.
            [address, address + u64::from(length) - 8].iter().all(|&end| self.memory.read(end).is_some())
        }

        fn word(&self, offset: u8) -> u64 {
            self.memory.read(self.address + u64::from(offset)).unwrap_or(0xeeee_eeee_eeee_eeee)
        }
    }

    const FP: u64 = 0x7ffe_0000_1000;
    const NEW: Layout = Layout { shared: 32, id: 64, script: 0, file: 3 };
    const OLD: Layout = Layout { shared: 24, id: 52, script: 32, file: 3 };

    const fn smi(number: u64) -> u64 {
        number << 32
    }

    /// An interpreted function's frame and objects, as both layouts have them.
    fn interpreted() -> BTreeMap<u64, u64> {
        let frame = [(40, smi(77)), (32, 0xb001), (16, 0xf001), (8, 0xc001)];
        let mut words: BTreeMap<u64, u64> = frame.map(|(below, word)| (FP - below, word)).into();
        words.extend([
            (0xf020, 0x5001),
            (0xf018, 0x5001),
            (0x5008, 0xb001),
            (0x5040, 0xffff_0000_0000_0009),
            (0x5030, 6 << 32 | 0xeeee),
            (0x5020, 0xa001),
            (0xa040, smi(41)),
        ]);
        words
    }

    fn identified(words: BTreeMap<u64, u64>, layout: Layout, is_compiled: bool) -> Option<V8Frame> {
        let memory = Words(words);
        identify(layout, FP, is_compiled, &memory, &mut Loaded { memory: &memory, address: 0 }, &memory)
    }

    #[test]
    fn a_function_has_its_number_and_its_position_while_it_is_interpreted() {
        let function = |script, number, position| {
            Some(V8Frame::Function(Function { shared: 0x5001, id: Id { script, number }, position }))
        };
        assert_eq!(identified(interpreted(), NEW, false), function(0, 9, 77));
        assert_eq!(identified(interpreted(), OLD, false), function(41, 6, 77));
        assert_eq!(identified(interpreted(), NEW, true), function(0, 9, 0));
        let mut built_in = interpreted();
        built_in.insert(0x5008, smi(500));
        assert_eq!(identified(built_in, NEW, false), function(0, 9, 0));
    }

    #[test]
    fn frames_of_v8_itself_have_a_type_and_others_are_none() {
        let mut words = interpreted();
        words.insert(FP - 8, 17 << 1);
        assert_eq!(identified(words.clone(), NEW, false), Some(V8Frame::Internal(17)));
        words.insert(FP - 8, 0x7f00_0000_0000);
        assert_eq!(identified(words.clone(), NEW, false), None);
        words.insert(FP - 8, 0x1003);
        assert_eq!(identified(words, NEW, false), None, "a weak pointer is no context");
        assert_eq!(identified(BTreeMap::new(), NEW, false), None);
    }

    #[test]
    fn a_function_that_cannot_be_read_is_still_one() {
        for missing in [0xf020, 0x5040] {
            let mut words = interpreted();
            words.remove(&missing);
            let unread = Some(V8Frame::Function(Function::default()));
            assert_eq!(identified(words, NEW, false), unread, "{missing:#x}");
        }
    }

    #[test]
    fn layouts_round_trip_and_know_their_file() {
        assert_eq!(Layout::from_bits(OLD.to_bits()), OLD);
        assert!(NEW.may_have_code_in(0) && NEW.may_have_code_in(3) && !NEW.may_have_code_in(4));
        assert!(!Layout::from_bits(0).may_have_code_in(0), "a process without V8");
    }
}
