//! Compiled code: from an address in it to the functions that it was made of.
//!
//! A JSFunction says which code it would run next, not which one a frame is in: code that was entered in a loop, or was given up and is
//! still running, belongs to no function any more. So the code is found by the address: it stands in an InstructionStream, whose
//! header says which Code it is.

use super::{
    heap::{Heap, Tagged},
    layout::{INSTRUCTIONS_IN_CODE, Layout},
    positions::{self, SourcePosition},
};

/// Compiled code is no longer than this.
const LONGEST: u64 = 1 << 20;
/// How much is read at a time on the way back to its beginning.
const STRETCH: u64 = 4096;
/// Functions inlined into each other.
const DEEPEST_INLINING: usize = 64;

/// A Code, and where its instructions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CodeObject {
    object: Tagged,
    start: u64,
    kind: u32,
}

/// A function that a frame is in, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its SharedFunctionInfo.
    pub function: Tagged,
    /// Offset in its script.
    pub offset: Option<u32>,
}

impl CodeObject {
    /// The code that returns to `address`. `maps` are those that InstructionStreams were seen to have: one, in practice.
    pub(super) fn at(address: u64, heap: &Heap<'_>, layout: &Layout, map: &mut Option<u64>) -> Option<Self> {
        let mut end = address & !7;
        let limit = address.saturating_sub(LONGEST);
        while end > limit {
            let begin = (end - 1) / STRETCH * STRETCH;
            let bytes = heap.raw(begin, (end - begin) as usize)?;
            let words = bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word));
            for (index, word) in words.enumerate().rev() {
                let stream = Tagged(begin + 8 * index as u64 + 1);
                let is_map = |map: u64| word == map;
                if word & 3 != 1
                    || !map
                        .map_or_else(|| heap.type_of(stream) == Some(layout.types.instruction_stream), is_map)
                {
                    continue;
                }
                if let Some(code) = Self::of_stream(stream, address, heap, layout) {
                    *map = Some(word);
                    return Some(code);
                }
            }
            end = begin;
        }
        None
    }

    /// The Code of an InstructionStream, if it holds the address.
    fn of_stream(stream: Tagged, address: u64, heap: &Heap<'_>, layout: &Layout) -> Option<Self> {
        if layout.code.start.is_none() {
            return Self::of_code(stream, address, heap, layout);
        }
        let fields = [8, 16, 24].into_iter().filter_map(|offset| heap.object(stream, offset));
        fields
            .filter_map(|code| heap.typed(code, layout.types.code))
            .find_map(|code| Self::of_code(code, address, heap, layout))
    }

    fn of_code(object: Tagged, address: u64, heap: &Heap<'_>, layout: &Layout) -> Option<Self> {
        /// The lowest bits of the flags.
        const KIND: u32 = 15;
        let start = match layout.code.start {
            Some(start) => heap.word(object, start)?,
            None => object.0 - 1 + INSTRUCTIONS_IN_CODE,
        };
        let size = heap.number(object, layout.code.size)?;
        let kind = heap.number(object, layout.code.flags)? & KIND;
        (start < address && address - start <= size.into()).then_some(Self { object, start, kind })
    }

    /// The functions at an address in it, innermost first. Of baseline code, the function is that of the frame.
    pub(super) fn places(
        self,
        address: u64,
        of_frame: Tagged,
        heap: &Heap<'_>,
        layout: &Layout,
    ) -> Option<Vec<Place>> {
        let baseline = layout.code.baseline;
        if self.kind == baseline {
            let offset = self.baseline_offset(address, heap, layout);
            return Some(vec![Place { function: of_frame, offset }]);
        }
        if self.kind != baseline + 1 && self.kind != baseline + 2 {
            return None;
        }
        let data = heap.object(self.object, layout.code.data)?;
        let outer = self.function(data, heap, layout)?;
        let positions =
            heap.object(self.object, layout.code.positions).and_then(|table| heap.byte_array(table));
        let call = address - 1 - self.start;
        let position =
            positions.and_then(|table| positions::position_at(&table, call, layout.positions_have_flags));
        Some(inlined(position, outer, data, heap, layout))
    }

    /// The function that optimised code was made for.
    fn function(self, data: Tagged, heap: &Heap<'_>, layout: &Layout) -> Option<Tagged> {
        let function = heap.element(data, layout.deoptimization.function).and_then(Tagged::of)?;
        let shared = layout.types.shared_function_info;
        // Since V8 12.9 it is in a wrapper.
        heap.typed(function, shared).or_else(|| heap.typed(heap.object(function, 8)?, shared))
    }

    fn baseline_offset(self, address: u64, heap: &Heap<'_>, layout: &Layout) -> Option<u32> {
        let bytecode = super::bytecode_of(heap.object(self.object, layout.code.data)?, heap, layout)?;
        let table = heap.byte_array(heap.object(self.object, layout.code.positions)?)?;
        let instructions = super::instructions(bytecode, heap, layout)?;
        let offset =
            positions::bytecode_at(&table, address - self.start, &instructions, &layout.bytecode_sizes)?;
        super::source_offset(bytecode, offset, heap, layout)
    }
}

/// Follows a position out of the functions that were inlined, to the one that the code was made for.
fn inlined(
    position: Option<SourcePosition>,
    outer: Tagged,
    data: Tagged,
    heap: &Heap<'_>,
    layout: &Layout,
) -> Vec<Place> {
    let mut places = Vec::new();
    let mut next = position;
    while let Some(SourcePosition { offset, inlined: Some(number) }) = next {
        let Some((function, call)) = inlined_function(number, outer, data, heap, layout) else { break };
        places.push(Place { function, offset: Some(offset) });
        // Functions are numbered as they are inlined: what is inlined into another one has the larger number.
        next = call.filter(|call| call.inlined.is_none_or(|outer| outer < number));
        if places.len() == DEEPEST_INLINING {
            break;
        }
    }
    let offset = next.filter(|position| position.inlined.is_none()).map(|position| position.offset);
    places.push(Place { function: outer, offset });
    places
}

/// The inlined function with a number, and where it was called.
fn inlined_function(
    number: u16,
    outer: Tagged,
    data: Tagged,
    heap: &Heap<'_>,
    layout: &Layout,
) -> Option<(Tagged, Option<SourcePosition>)> {
    let indexes = &layout.deoptimization;
    let table = heap.element(data, indexes.inlining_positions).and_then(Tagged::of)?;
    let entries = heap.byte_array(table)?;
    let entry = entries.as_chunks::<16>().0.get(usize::from(number))?;
    let (position, function) = (entry.first_chunk()?, entry[8..].first_chunk()?);
    let call = SourcePosition::of_bits(u64::from_ne_bytes(*position));
    let function = match u64::try_from(i32::from_ne_bytes(*function)) {
        Ok(index) => {
            let literals = heap.element(data, indexes.literals).and_then(Tagged::of)?;
            let function = heap.element(literals, index).and_then(Tagged::of)?;
            let shared = layout.types.shared_function_info;
            heap.typed(function, shared).or_else(|| heap.typed(heap.object(function, 8)?, shared))?
        }
        Err(_) => outer,
    };
    Some((function, call))
}
