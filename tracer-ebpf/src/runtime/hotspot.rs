//! HotSpot's frames (Java): where their callers are, and which method a frame is of.
//!
//! Compiled code keeps no frame pointer, and has no unwind tables. But each piece of code that HotSpot makes lies in a *blob*, whose
//! header says how large its frames are; and its interpreter has frames of one shape:
//!
//! ```text
//! compiled      sp' = sp + 8 * frame size        ip' = *(sp' - 8)        bp' = *(sp' - 16)
//! interpreted   sp' = *(bp - 8)                  ip' = *(bp + 8)         bp' = *bp
//!               method = *(bp - 24)              next bytecode = *(bp - 64)
//! others        by frame pointer: stubs by which native code calls Java, which have no frame size
//! ```
//!
//! Where blobs begin is said by a byte for each segment (128 bytes) of the code: 0 where one begins, else how many segments to go back, 255
//! where there is none.
//!
//! A method is a thing of the metaspace, which no collector moves. Its memory is used again when its class is unloaded, also by a class that
//! has the same layout and a name at the same address. So what identifies an interpreted method is its address and what the name of its
//! class is: where it is, the random number that it got there, and how it ends. Compiled code has a running number.

use super::{MOST_READ, Object};
use crate::{
    atomic::Word,
    stop::Stop,
    unwind::{Frame, Memory, Registers, Via, step_frame_pointer},
};

/// How many layouts there is room for: processes that were forked from each other share one.
pub const MAX_LAYOUTS: u32 = 1024;

/// Room for the words of a blob that are read: all but the last. A power of two.
pub const BLOB_WORDS: usize = 64;
const _: () = assert!(BLOB_WORDS.is_power_of_two());
/// A blob is found within so many steps: one byte leads back by 254 segments at most, 31 KiB.
pub const MOST_HOPS: u32 = 12;

/// How many stretches the code cache can have.
pub const HEAPS: usize = 3;

/// Where things are in the HotSpot of a process. Made by user space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Where its code is: from where to where.
    pub code: [u64; 2],
    /// Where the code of its interpreter is: from where to where.
    pub interpreter: [u64; 2],
    /// Where the stretches of its code begin, ascending; `u64::MAX` for those that there are not.
    pub heaps: [u64; HEAPS],
    /// The bytes by which the blobs of each stretch are found.
    pub segment_maps: [u64; HEAPS],
    /// Of a blob.
    pub blob: Blob,
    /// Of a method.
    pub method: Method,
}

/// Offsets in a blob of compiled code, in bytes. Those of others are the same as far as they have the field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blob {
    /// Of the blob in its block of memory.
    pub header: u8,
    /// Two to the power of it is the size of a segment.
    pub segment_bits: u8,
    /// How large its frames are: 32 bits, in words.
    pub frame_size: u16,
    /// The running number of a compilation, 32 bits.
    pub compile_id: u16,
    /// Where a frame keeps the address it was at, once its code was given up: an offset from the stack pointer, 32 bits.
    pub original_pc: u16,
    /// Where frames of code that was given up return to: two addresses, or two offsets of 32 bits from the blob. 0 for none.
    pub deoptimization: [u16; 2],
    /// Whether these are offsets.
    pub deoptimization_is_relative: bool,
    /// How many bytes to read of it.
    pub length: u16,
}

/// Offsets from a method to the name of its class, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Method {
    /// Of the ConstMethod in a Method.
    pub const_method: u8,
    /// Of the ConstantPool in a ConstMethod.
    pub constants: u8,
    /// Of the class in a ConstantPool.
    pub holder: u8,
    /// Of the name in a class.
    pub name: u8,
    /// The size of a ConstMethod: bytecodes are behind it.
    pub const_method_size: u8,
    /// How many bits of a name's first word are before its random number of 16 bits.
    pub name_number_bits: u8,
    /// How many are before its length, 16 bits.
    pub name_length_bits: u8,
    /// Where its text begins.
    pub name_text: u8,
}

impl Method {
    /// What tells a class from others that have been where it is, by where its name is; 48 bits, never 0.
    #[inline(always)]
    pub fn class_identity(self, name: u64, memory: &impl Memory) -> Option<u64> {
        let head = memory.read(name)?;
        let number = head >> (self.name_number_bits & 63) & 0xffff;
        let length = head >> (self.name_length_bits & 63) & 0xffff;
        // Names that were made at run time differ at their ends.
        let end = match length.checked_sub(8) {
            Some(end) => memory.read(name.wrapping_add(self.name_text.into()).wrapping_add(end))?,
            None => length,
        };
        // Multiplied and folded, as the hash of a stack is.
        let mix = |word: u64, factor: u64| {
            let mixed = word.wrapping_mul(factor);
            mixed ^ mixed >> 32
        };
        let hash = mix(mix(name ^ number << 48, 0x9e37_79b9_7f4a_7c15) ^ end, 0xd6e8_feb8_6659_fd93);
        Some(hash >> 16 | 1)
    }
}

const WORDS: usize = 7 + HEAPS * 2;

/// A [`Layout`] where the walk finds it.
#[derive(Debug)]
#[repr(C)]
pub struct SharedLayout([Word; WORDS]);

const _: () = assert!(size_of::<SharedLayout>() == WORDS * 8);

impl SharedLayout {
    /// Writes a layout that nobody uses yet.
    pub fn store(&self, layout: &Layout) {
        let Layout { code, interpreter, heaps, segment_maps, blob, method } = layout;
        let [deoptimization, more_deoptimization] = blob.deoptimization.map(u64::from);
        let words = [
            code[0],
            code[1],
            interpreter[0],
            interpreter[1],
            u64::from(blob.frame_size)
                | u64::from(blob.compile_id) << 16
                | u64::from(blob.original_pc) << 32
                | u64::from(blob.header) << 48
                | u64::from(blob.segment_bits) << 56,
            deoptimization
                | more_deoptimization << 16
                | u64::from(blob.length) << 32
                | u64::from(blob.deoptimization_is_relative) << 48,
            u64::from(method.const_method)
                | u64::from(method.constants) << 8
                | u64::from(method.holder) << 16
                | u64::from(method.name) << 24
                | u64::from(method.const_method_size) << 32
                | u64::from(method.name_number_bits) << 40
                | u64::from(method.name_length_bits) << 48
                | u64::from(method.name_text) << 56,
        ];
        let all = words.iter().chain(heaps).chain(segment_maps);
        self.0.iter().zip(all).for_each(|(word, &value)| word.store(value));
    }

    /// Whether an address is in its code.
    #[inline(always)]
    pub fn holds(&self, address: u64) -> bool {
        self.0[0].load() <= address && address < self.0[1].load()
    }

    /// Where its code is: from where to where.
    #[inline(always)]
    pub fn code(&self) -> [u64; 2] {
        [self.0[0].load(), self.0[1].load()]
    }

    #[inline(always)]
    fn is_interpreter(&self, address: u64) -> bool {
        self.0[2].load() <= address && address < self.0[3].load()
    }

    /// Offsets in a blob.
    #[inline(always)]
    fn blob(&self) -> Blob {
        let [first, second] = [self.0[4].load(), self.0[5].load()];
        Blob {
            header: (first >> 48) as u8,
            segment_bits: (first >> 56) as u8,
            frame_size: first as u16,
            compile_id: (first >> 16) as u16,
            original_pc: (first >> 32) as u16,
            deoptimization: [second as u16, (second >> 16) as u16],
            deoptimization_is_relative: second >> 48 & 1 == 1,
            length: (second >> 32) as u16,
        }
    }

    #[inline(always)]
    fn method(&self) -> Method {
        let word = self.0[6].load();
        Method {
            const_method: word as u8,
            constants: (word >> 8) as u8,
            holder: (word >> 16) as u8,
            name: (word >> 24) as u8,
            const_method_size: (word >> 32) as u8,
            name_number_bits: (word >> 40) as u8,
            name_length_bits: (word >> 48) as u8,
            name_text: (word >> 56) as u8,
        }
    }

    /// Where the stretch that holds an address begins, and where its bytes are.
    #[inline(always)]
    fn heap(&self, address: u64) -> [u64; 2] {
        let heaps = &self.0[7..7 + HEAPS];
        let maps = &self.0[7 + HEAPS..];
        let mut found = [heaps[0].load(), maps[0].load()];
        for heap in 1..HEAPS {
            let begin = heaps[heap].load();
            if begin <= address {
                found = [begin, maps[heap].load()];
            }
        }
        found
    }
}

/// The memory of the process, apart from the stack.
pub trait CodeMemory: Memory {
    /// The byte at an address.
    fn byte(&self, address: u64) -> Option<u8>;
    /// Reads so many bytes from an address on, of which the words can be asked for then; whether that could be done.
    fn load_blob(&self, address: u64, length: u16) -> bool;
    /// A word of what was read last.
    fn blob_word(&self, index: usize) -> u64;
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HotSpotFrame {
    /// A method that is interpreted.
    Interpreted(InterpretedMethod),
    /// Code in a blob.
    Compiled(CompiledCode),
    /// In none that could be found.
    Unknown,
}

/// A method that is interpreted, and where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct InterpretedMethod {
    /// The address of the Method.
    pub method: u64,
    /// What tells its class from others, see [`Method::class_identity`]; 0 when it could not be read.
    pub class: u64,
    /// The index of its bytecode; [`InterpretedMethod::NATIVE`] for a native method.
    pub bytecode: u16,
}

impl InterpretedMethod {
    /// In place of the index of a bytecode: it has none.
    pub const NATIVE: u16 = u16::MAX;

    /// The words that follow the frame.
    #[must_use]
    #[inline(always)]
    pub const fn to_words(self) -> [u64; 2] {
        [self.method, self.class << 16 | self.bytecode as u64]
    }

    /// What [`InterpretedMethod::to_words`] made.
    #[must_use]
    pub const fn from_words([method, place]: [u64; 2]) -> Self {
        Self { method, class: place >> 16, bytecode: place as u16 }
    }
}

/// Code that HotSpot has made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CompiledCode {
    /// The address of its blob; 0 when it could not be found.
    pub blob: u64,
    /// The running number of its compilation. Code that is not compiled from a method has anything there, but always the same.
    pub compile_id: u32,
}

impl CompiledCode {
    /// The words that follow the frame.
    #[must_use]
    #[inline(always)]
    pub const fn to_words(self) -> [u64; 2] {
        [self.blob, self.compile_id as u64]
    }

    /// What [`CompiledCode::to_words`] made.
    #[must_use]
    pub const fn from_words([blob, compile_id]: [u64; 2]) -> Self {
        Self { blob, compile_id: compile_id as u32 }
    }
}

/// What the frame is, and its address: where it will go on, or would if its code had not been given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What it is.
    pub frame: HotSpotFrame,
    /// Its address.
    pub ip: u64,
}

/// Whether the frame's code is that of the interpreter. It is in HotSpot's code.
#[inline(always)]
pub fn is_interpreted(layout: &SharedLayout, frame: &Frame) -> bool {
    layout.is_interpreter(frame.lookup_address())
}

/// How many bytes of a segment map are read at once: most blobs begin within so many segments, so one read says where.
const SEGMENTS_READ: u8 = 64;
const _: () = assert!(SEGMENTS_READ as usize <= MOST_READ);

/// The byte at this place of what was loaded.
#[inline(always)]
fn loaded_byte(object: &impl Object, place: u8) -> u8 {
    (object.word(place & !7) >> (8 * u32::from(place & 7))) as u8
}

/// How many segments lie between this one and that where its blob begins, if they are few; the one read says so or nothing.
#[inline(always)]
fn segments_back(segments: u64, segment: u64, object: &mut impl Object) -> Option<u64> {
    // The map begins with a page, so there is as much of it.
    let from = segment.saturating_sub(u64::from(SEGMENTS_READ) - 1);
    if !object.load(segments.wrapping_add(from), SEGMENTS_READ) {
        return None;
    }
    let place = (segment - from) as u8;
    let back = loaded_byte(object, place);
    if back <= place && loaded_byte(object, place - back) == 0 { Some(back.into()) } else { None }
}

/// The blob that holds an address.
#[inline(always)]
pub fn find_blob(
    layout: &SharedLayout,
    address: u64,
    object: &mut impl Object,
    memory: &impl CodeMemory,
) -> Option<u64> {
    let Blob { segment_bits, header, .. } = layout.blob();
    let [begin, segments] = layout.heap(address);
    let segment_bits = u32::from(segment_bits & 31);
    let mut segment = address.checked_sub(begin)? >> segment_bits;
    let blob_at = |segment: u64| begin.wrapping_add(segment << segment_bits).wrapping_add(header.into());
    if let Some(back) = segments_back(segments, segment, object) {
        return Some(blob_at(segment.wrapping_sub(back)));
    }
    for _ in 0..MOST_HOPS {
        match memory.byte(segments.wrapping_add(segment))? {
            0 => return Some(blob_at(segment)),
            0xff => return None,
            back => segment = segment.checked_sub(back.into())?,
        }
    }
    None
}

/// An interpreted method, and its caller.
///
/// # Errors
/// Why there is no further frame.
#[inline(always)]
pub fn step_interpreted(
    layout: &SharedLayout,
    frame: &mut Frame,
    stack: &impl Memory,
    heap: &impl Memory,
) -> Result<InterpretedMethod, Stop> {
    let Registers { sp, bp, .. } = frame.registers;
    if bp < sp || bp & 7 != 0 {
        return Err(Stop::FramePointerLost);
    }
    let at = |offset: i64| stack.read(bp.wrapping_add_signed(offset)).ok_or(Stop::FramePointerLost);
    // The lowest first: so the words are read together.
    let (bytecode, method, sender) = (at(-64)?, at(-24)?, at(-8)?);
    let (caller_bp, ip) = (at(0)?, at(8)?);
    if sender <= sp {
        return Err(Stop::FramePointerLost);
    }
    let interpreted = identify_method(layout, method, bytecode, heap).unwrap_or_default();
    frame.registers = Registers { ip, sp: sender, bp: caller_bp };
    frame.via = Via::Table;
    Ok(interpreted)
}

#[inline(always)]
fn identify_method(
    layout: &SharedLayout,
    method: u64,
    bytecode: u64,
    heap: &impl Memory,
) -> Option<InterpretedMethod> {
    let offsets = layout.method();
    let follow = |object: u64, offset: u8| heap.read(object.wrapping_add(offset.into()));
    let const_method = follow(method, offsets.const_method)?;
    let constants = follow(const_method, offsets.constants)?;
    let holder = follow(constants, offsets.holder)?;
    let class = offsets.class_identity(follow(holder, offsets.name)?, heap)?;
    let index = bytecode.wrapping_sub(const_method).wrapping_sub(offsets.const_method_size.into());
    let bytecode =
        if index < InterpretedMethod::NATIVE.into() { index as u16 } else { InterpretedMethod::NATIVE };
    Some(InterpretedMethod { method, class, bytecode })
}

/// What a frame of code in a blob is, and its caller.
///
/// # Errors
/// Why there is no further frame.
#[inline(always)]
pub fn step_compiled(
    layout: &SharedLayout,
    blob: u64,
    frame: &mut Frame,
    stack: &impl Memory,
    memory: &impl CodeMemory,
) -> Result<Place, Stop> {
    let Registers { ip, sp, .. } = frame.registers;
    let offsets = layout.blob();
    let number = |offset: u16| half(memory.blob_word(usize::from(offset) / 8), offset);
    let code = if blob != 0 && memory.load_blob(blob, offsets.length) {
        CompiledCode { blob, compile_id: number(offsets.compile_id) }
    } else {
        CompiledCode::default()
    };
    let frame_size = if code.blob == 0 { 0 } else { number(offsets.frame_size) };
    if frame_size == 0 || frame_size > MOST_FRAME_WORDS {
        let place = if code.blob == 0 { HotSpotFrame::Unknown } else { HotSpotFrame::Compiled(code) };
        *frame = step_frame_pointer(*frame, stack)?;
        return Ok(Place { frame: place, ip });
    }
    let is_given_up = |offset: u16| {
        let handler = if offsets.deoptimization_is_relative {
            blob.wrapping_add_signed(i64::from(number(offset).cast_signed()))
        } else {
            memory.blob_word(usize::from(offset) / 8)
        };
        offset != 0 && handler == ip
    };
    let [first, second] = offsets.deoptimization;
    let is_given_up = is_given_up(first) || is_given_up(second);
    let cfa = sp.wrapping_add(8 * u64::from(frame_size));
    let ip = if is_given_up {
        let original = i64::from(number(offsets.original_pc).cast_signed());
        stack.read(sp.wrapping_add_signed(original)).ok_or(Stop::UnreadableMemory)?
    } else {
        ip
    };
    // The lower first: so both are read together.
    let bp = stack.read(cfa.wrapping_sub(16)).ok_or(Stop::UnreadableMemory)?;
    let caller = stack.read(cfa.wrapping_sub(8)).ok_or(Stop::UnreadableMemory)?;
    if caller == 0 || cfa <= sp {
        return Err(Stop::NoProgress);
    }
    frame.registers = Registers { ip: caller, sp: cfa, bp };
    frame.via = Via::Table;
    Ok(Place { frame: HotSpotFrame::Compiled(code), ip })
}

/// The largest frames that are believed, 1 MiB.
const MOST_FRAME_WORDS: u32 = 1 << 17;

/// Of a word the 32 bits at an offset.
#[inline(always)]
const fn half(word: u64, offset: u16) -> u32 {
    if offset & 4 == 0 { word as u32 } else { (word >> 32) as u32 }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{cell::Cell, collections::BTreeMap, vec::Vec};

    use super::*;

    /// Memory, and the blob that was read last.
    struct Words {
        words: BTreeMap<u64, u64>,
        blob: Cell<u64>,
    }

    impl Memory for Words {
        fn read(&self, address: u64) -> Option<u64> {
            self.words.get(&address).copied()
        }
    }

    impl CodeMemory for Words {
        fn byte(&self, address: u64) -> Option<u8> {
            Some((self.read(address & !7)? >> (address % 8 * 8)) as u8)
        }

        fn load_blob(&self, address: u64, _: u16) -> bool {
            self.blob.set(address);
            self.words.contains_key(&address)
        }

        fn blob_word(&self, index: usize) -> u64 {
            self.read(self.blob.get() + 8 * index as u64).unwrap_or(0)
        }
    }

    /// As the programs read objects: where it was loaded from.
    struct Loaded<'a>(&'a Words, u64);

    impl Object for Loaded<'_> {
        fn load(&mut self, address: u64, length: u8) -> bool {
            self.1 = address;
            (0..length).all(|byte| self.0.byte(address + u64::from(byte)).is_some())
        }

        fn word(&self, offset: u8) -> u64 {
            let byte = |byte| self.0.byte(self.1 + u64::from(offset) + byte).unwrap_or(0xee);
            u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(byte))
        }
    }

    const CODE: u64 = 0x7f00_0000_0000;
    const STACK: u64 = 0x7ffe_0000_0000;
    const SEGMENTS: u64 = 0x6000;
    const BLOB: u64 = CODE + 2 * 128 + 16;

    const METHOD: Method = Method {
        const_method: 8,
        constants: 16,
        holder: 24,
        name: 32,
        const_method_size: 48,
        name_number_bits: 16,
        name_length_bits: 32,
        name_text: 6,
    };

    fn layout(is_relative: bool) -> SharedLayout {
        let blob = Blob {
            header: 16,
            segment_bits: 7,
            frame_size: 28,
            compile_id: 52,
            original_pc: 48,
            deoptimization: [32, 40],
            deoptimization_is_relative: is_relative,
            length: 56,
        };
        let method = METHOD;
        let shared = SharedLayout(Default::default());
        shared.store(&Layout {
            code: [CODE, CODE + 0x10_0000],
            interpreter: [CODE + 0x1000, CODE + 0x2000],
            heaps: [CODE, CODE + 0x8_0000, u64::MAX],
            segment_maps: [SEGMENTS, SEGMENTS + 0x1000, 0],
            blob,
            method,
        });
        shared
    }

    fn frame(ip: u64, sp: u64, bp: u64) -> Frame {
        Frame { registers: Registers { ip, sp, bp }, via: Via::Table }
    }

    fn memory(words: impl IntoIterator<Item = (u64, u64)>) -> Words {
        Words { words: words.into_iter().collect(), blob: Cell::new(0) }
    }

    /// A blob of 6 segments whose frames have 4 words, with number 77, of which the deoptimized frames return to its last segment.
    fn compiled() -> Words {
        let deoptimized = CODE + 7 * 128;
        memory([
            (SEGMENTS, 0x0302_0100_0000_ff00),
            (BLOB, 1),
            (BLOB + 24, 4 << 32),
            (BLOB + 32, deoptimized),
            (BLOB + 40, 0),
            (BLOB + 48, 77 << 32 | 8),
            (STACK + 8, CODE + 0x210),
            (STACK + 16, 0xbbbb),
            (STACK + 24, 0x4444),
        ])
    }

    #[test]
    fn a_blob_is_found_by_going_back() {
        // Blobs at segments 0, 2, 3, 4; none in 1; then one that goes on in 5, 6, 7.
        let layout = layout(false);
        let words = memory([(SEGMENTS, 0x0302_0100_0000_ff00), (SEGMENTS + 0x1000, 0)]);
        let find = |address, words: &Words| find_blob(&layout, address, &mut Loaded(words, 0), words);
        let at = |segment: u64| find(CODE + segment * 128 + 100, &words);
        assert_eq!([0, 1, 2].map(at), [Some(CODE + 16), None, Some(BLOB)]);
        assert_eq!(at(7), Some(CODE + 4 * 128 + 16));
        assert_eq!(find(CODE + 0x8_0010, &words), Some(CODE + 0x8_0010));
        assert_eq!(find(CODE + 0x4000, &words), None, "a map that cannot be read");
        let endless = memory((0..1 << 9).map(|word| (SEGMENTS + word * 8, 0x0101_0101_0101_0101)));
        assert_eq!(find(CODE + 1000 * 128, &endless), None);
        assert_eq!(find(CODE + 128, &endless), None, "before the first");
        // Of 300 segments, where it takes two bytes to get back, and the next one.
        let tags = (0..300).map(|segment: u64| segment.min(254) as u8).chain([0, 1, 0xff, 0xff]);
        let tags: Vec<_> = tags.collect();
        let long = memory(tags.chunks(8).zip(0..).map(|(tags, word)| {
            let tags = tags.first_chunk().expect("whole words");
            (SEGMENTS + word * 8, u64::from_le_bytes(*tags))
        }));
        let at = |segment: u64| find(CODE + segment * 128 + 100, &long);
        assert_eq!([0, 1, 62, 63, 64, 299].map(at), [Some(CODE + 16); 6]);
        assert_eq!([300, 301, 302].map(at), [Some(CODE + 300 * 128 + 16), Some(CODE + 300 * 128 + 16), None]);
    }

    #[test]
    fn a_compiled_frame_is_as_large_as_its_blob_says() {
        let words = compiled();
        let mut walked = frame(CODE + 0x180, STACK, 0x1234);
        let place = step_compiled(&layout(false), BLOB, &mut walked, &words, &words);
        let code = HotSpotFrame::Compiled(CompiledCode { blob: BLOB, compile_id: 77 });
        assert_eq!(place, Ok(Place { frame: code, ip: CODE + 0x180 }));
        assert_eq!(walked, frame(0x4444, STACK + 32, 0xbbbb));
    }

    #[test]
    fn a_frame_whose_code_was_given_up_is_where_it_was_before() {
        for is_relative in [false, true] {
            let mut words = compiled();
            if is_relative {
                words.words.insert(BLOB + 32, CODE + 7 * 128 - BLOB);
            }
            let mut walked = frame(CODE + 7 * 128, STACK, 0x1234);
            let place = step_compiled(&layout(is_relative), BLOB, &mut walked, &words, &words);
            assert_eq!(place.map(|place| place.ip), Ok(CODE + 0x210), "{is_relative}");
            assert_eq!(walked, frame(0x4444, STACK + 32, 0xbbbb));
        }
    }

    #[test]
    fn code_without_a_frame_size_is_left_by_the_frame_pointer() {
        let mut words = compiled();
        words.words.insert(BLOB + 24, 0);
        for (blob, expected) in [
            (BLOB, HotSpotFrame::Compiled(CompiledCode { blob: BLOB, compile_id: 77 })),
            (0, HotSpotFrame::Unknown),
        ] {
            let mut walked = frame(CODE + 0x180, STACK, STACK + 16);
            let place = step_compiled(&layout(false), blob, &mut walked, &words, &words);
            assert_eq!(place, Ok(Place { frame: expected, ip: CODE + 0x180 }));
            assert_eq!(walked.registers, Registers { ip: 0x4444, sp: STACK + 32, bp: 0xbbbb });
        }
    }

    #[test]
    fn frame_sizes_that_lie_end_the_walk() {
        for (size, stop) in [(4_000, Stop::UnreadableMemory), (u64::from(u32::MAX), Stop::FramePointerLost)] {
            let mut words = compiled();
            words.words.insert(BLOB + 24, size << 32);
            let mut walked = frame(CODE + 0x180, STACK, 0);
            assert_eq!(step_compiled(&layout(false), BLOB, &mut walked, &words, &words), Err(stop));
        }
    }

    /// An interpreted frame at `STACK + 0x100`, of a method at 0x5000.
    fn interpreted() -> Words {
        let bp = STACK + 0x100;
        memory([
            (bp - 64, 0x7000 + 48 + 5),
            (bp - 24, 0x5000),
            (bp - 8, bp + 32),
            (bp, 0xbbbb),
            (bp + 8, 0x4444),
            (0x5008, 0x7000),
            (0x7010, 0x8000),
            (0x8018, 0x9000),
            (0x9020, 0xa000),
            (0xa000, 9 << 32 | 0x7777_0001),
            (0xa007, 0x6e61_6d65),
        ])
    }

    #[test]
    fn an_interpreted_frame_says_where_it_is() {
        let layout = layout(false);
        let words = interpreted();
        let mut walked = frame(CODE + 0x1800, STACK, STACK + 0x100);
        assert!(is_interpreted(&layout, &walked) && layout.holds(CODE) && !layout.holds(CODE + 0x10_0000));
        let method = step_interpreted(&layout, &mut walked, &words, &words);
        let class = METHOD.class_identity(0xa000, &words).expect("a name");
        let expected = InterpretedMethod { method: 0x5000, class, bytecode: 5 };
        assert_eq!(method, Ok(expected));
        assert_eq!(InterpretedMethod::from_words(expected.to_words()), expected);
        assert_eq!(walked, frame(0x4444, STACK + 0x120, 0xbbbb));
    }

    #[test]
    fn a_class_is_told_by_where_its_name_is_its_number_and_its_end() {
        let identity = |name: u64, number: u64, length: u64, end: u64| {
            let head = length << 32 | number << 16;
            METHOD.class_identity(name, &memory([(name, head | 1), (name + 6 + length - 8, end)]))
        };
        let class = identity(0xa000, 7, 20, 0x3030);
        assert!(class.is_some_and(|class| class != 0 && class < 1 << 48));
        let used_by_others = memory([(0xa000, 20 << 32 | 7 << 16 | 0xff), (0xa012, 0x3030)]);
        assert_eq!(METHOD.class_identity(0xa000, &used_by_others), class, "who uses a name changes");
        for (name, number, length, end) in
            [(0xb000, 7, 20, 0x3030), (0xa000, 8, 20, 0x3030), (0xa000, 7, 21, 1), (0xa000, 7, 20, 0x3031)]
        {
            assert_ne!(identity(name, number, length, end), class);
        }
        assert!(METHOD.class_identity(0xa000, &memory([(0xa000, 3 << 32)])).is_some(), "short");
        assert_eq!(METHOD.class_identity(0xa000, &memory([])), None);
    }

    #[test]
    fn an_interpreted_frame_that_cannot_be_read_still_has_a_caller() {
        let layout = layout(false);
        let step = |words: Words, bp| {
            let mut walked = frame(CODE + 0x1800, STACK, bp);
            let method = step_interpreted(&layout, &mut walked, &words, &words);
            (method, walked.registers.ip)
        };
        let mut words = interpreted();
        words.words.remove(&0x8018);
        assert_eq!(step(words, STACK + 0x100), (Ok(InterpretedMethod::default()), 0x4444));
        let mut native = interpreted();
        native.words.insert(STACK + 0x100 - 64, 0);
        let (method, _) = step(native, STACK + 0x100);
        assert_eq!(method.map(|method| method.bytecode), Ok(InterpretedMethod::NATIVE));
        for (bp, sender) in [(STACK + 0x101, 0), (STACK - 8, 0), (STACK + 0x100, STACK)] {
            let mut lying = interpreted();
            lying.words.insert(STACK + 0x100 - 8, sender);
            assert_eq!(step(lying, bp).0, Err(Stop::FramePointerLost));
        }
    }
}
