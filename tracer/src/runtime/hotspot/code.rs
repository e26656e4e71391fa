//! Compiled code: what a blob is, and which methods it is made of.

use std::rc::Rc;

use super::super::{ProcessMemory, Unread};
use super::{
    compressed_numbers::Numbers,
    layout::{Layout, Place},
};

/// The largest blob, description of calls or of scopes that is believed.
const LARGEST: u64 = 8 << 20;
/// How deep methods are inlined into each other at most.
const MOST_INLINED: usize = 64;
/// What a bytecode's index is counted from in a scope: the entry of the method is -1.
const ENTRY_BYTECODE: i64 = -1;

/// What a blob is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blob {
    /// Compiled from a method.
    Method(Rc<CompiledMethod>),
    /// The call of a native method, that with this address.
    NativeMethod(u64),
    /// HotSpot's own, with this name.
    Stub(Rc<str>),
}

/// Code that was compiled from a method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledMethod {
    /// The method, by its address.
    pub method: u64,
    /// Where its code begins.
    code: u64,
    /// Its calls, ascending: how far it returns to from the code's begin, and where the description of the scope is.
    calls: Vec<(i32, i32)>,
    scopes: Vec<u8>,
    /// Methods that are part of it.
    metadata: Vec<u64>,
}

/// A method that is part of compiled code, and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The method.
    pub method: u64,
    /// The index of its bytecode.
    pub bytecode: u32,
}

/// Reads blobs.
pub struct BlobReader<'a> {
    pub layout: &'a Layout,
    pub memory: &'a dyn ProcessMemory,
}

impl BlobReader<'_> {
    /// The running number of a blob's compilation.
    pub fn compile_id(&self, blob: u64) -> Option<u32> {
        self.u32(blob.wrapping_add(self.layout.walked.blob.compile_id.into()))
    }

    /// Where the name of a blob is, which says what it is.
    pub fn name_pointer(&self, blob: u64) -> Option<u64> {
        self.memory.read(blob.wrapping_add(self.layout.blob.name))
    }

    /// The name of blobs that is at an address.
    pub fn name(&self, pointer: u64) -> Option<String> {
        const LONGEST: usize = 64;
        let mut name = Vec::new();
        while name.len() < LONGEST {
            let mut byte = [0];
            self.memory.read_bytes(pointer.wrapping_add(name.len() as u64), &mut byte).then_some(())?;
            match byte {
                [0] => return String::from_utf8(name).ok(),
                [byte] => name.push(byte),
            }
        }
        None
    }

    /// The method that a blob was compiled from.
    pub fn method(&self, blob: u64) -> Option<u64> {
        self.memory.read(blob.wrapping_add(self.layout.blob.method)).filter(|&method| method != 0)
    }

    /// Reads code that was compiled from a method.
    ///
    /// # Errors
    /// When it is none.
    pub fn compiled(&self, blob: u64) -> Result<CompiledMethod, Unread> {
        self.try_compiled(blob).ok_or(Unread::Moved)
    }

    fn try_compiled(&self, blob: u64) -> Option<CompiledMethod> {
        let of = &self.layout.blob;
        let [begin, end] = of.calls.map(|place| self.place(place, blob));
        let (begin, end) = (begin?, end?);
        let size = usize::try_from(of.call_size).ok().filter(|&size| size >= 8)?;
        let scope = usize::try_from(of.call_scope).ok().filter(|&scope| scope + 4 <= size)?;
        let number = |bytes: &[u8]| bytes.try_into().ok().map(i32::from_le_bytes);
        let calls = self.bytes(begin, end)?;
        let calls = calls
            .chunks_exact(size)
            .filter_map(|call| Some((number(call.get(..4)?)?, number(call.get(scope..scope + 4)?)?)));
        let calls: Vec<_> = calls.collect();
        let scopes = self.place(of.scopes, blob)?;
        // Descriptions of scopes are one after the other: the last call's says how far at least to read.
        let furthest = calls.iter().map(|&(_, scope)| scope).max().unwrap_or(0);
        let scopes = self.bytes_at_most(scopes, u64::try_from(furthest).ok()? + REST_OF_SCOPE)?;
        let begin = self.place(of.metadata, blob)?;
        let most = largest_method(&calls, &scopes, self.layout.number_base);
        let metadata = self.bytes(begin, begin.checked_add(8 * most)?)?;
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        Some(CompiledMethod {
            method: self.method(blob)?,
            code: self.place(of.code, blob)?,
            calls,
            scopes,
            metadata: metadata.chunks_exact(8).map(word).collect(),
        })
    }

    fn place(&self, place: Place, blob: u64) -> Option<u64> {
        let number =
            |offset| self.u32(blob.wrapping_add(offset)).map(|number| i64::from(number.cast_signed()));
        match place {
            Place::Pointer(offset) => self.memory.read(blob.wrapping_add(offset)),
            Place::FromBlob(offset) => Some(blob.wrapping_add_signed(number(offset)?)),
            Place::From { pointer, offset } => {
                Some(self.memory.read(blob.wrapping_add(pointer))?.wrapping_add_signed(number(offset)?))
            }
        }
    }

    fn bytes(&self, begin: u64, end: u64) -> Option<Vec<u8>> {
        let length = end.checked_sub(begin).filter(|&length| length <= LARGEST)?;
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        self.memory.read_bytes(begin, &mut bytes).then_some(bytes)
    }

    /// As many bytes as there are: what follows may not be mapped.
    fn bytes_at_most(&self, begin: u64, length: u64) -> Option<Vec<u8>> {
        let page = 4096 - begin % 4096;
        let lengths = [length, length.saturating_sub(REST_OF_SCOPE / 2), length.min(page)];
        lengths.into_iter().find_map(|length| self.bytes(begin, begin.checked_add(length)?))
    }

    fn u32(&self, address: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.memory.read_bytes(address, &mut bytes).then(|| u32::from_le_bytes(bytes))
    }
}

/// Three numbers of five bytes at most.
const REST_OF_SCOPE: u64 = 16;

/// The largest index of a method that the scopes have.
fn largest_method(calls: &[(i32, i32)], scopes: &[u8], base: u8) -> u64 {
    let chains = calls.iter().map(|&(_, scope)| ScopeChain { scopes, base, next: scope });
    chains.flatten().map(|(method, _)| u64::from(method)).max().unwrap_or(0)
}

/// Scopes from the innermost on: the index of the method, and of the bytecode.
struct ScopeChain<'a> {
    scopes: &'a [u8],
    base: u8,
    /// Where the next one is; 0 for none.
    next: i32,
}

impl Iterator for ScopeChain<'_> {
    type Item = (u32, i64);

    fn next(&mut self) -> Option<(u32, i64)> {
        let at = usize::try_from(self.next).ok().filter(|&at| at > 0)?;
        let mut numbers = Numbers::new(self.scopes.get(at..)?, self.base);
        let sender = i32::try_from(numbers.next_number()?).ok()?;
        let (method, bytecode) = (numbers.next_number()?, numbers.next_number()?);
        // They are written from the outermost on, so this ends.
        self.next = if sender < self.next { sender } else { 0 };
        Some((method, i64::from(bytecode) + ENTRY_BYTECODE))
    }
}

impl CompiledMethod {
    /// The methods that the call which returns to an address is in, innermost first; none when there is no such call.
    pub fn scopes(&self, address: u64, base: u8) -> Vec<Scope> {
        let offset = address.wrapping_sub(self.code);
        let call = self.calls.iter().find(|(returns_to, _)| i64::from(*returns_to) as u64 == offset);
        let Some(&(_, scope)) = call else { return Vec::new() };
        let chain = ScopeChain { scopes: &self.scopes, base, next: scope }.take(MOST_INLINED);
        let scope = |(method, bytecode): (u32, i64)| {
            let method = *self.metadata.get((method as usize).checked_sub(1)?)?;
            Some(Scope { method, bytecode: u32::try_from(bytecode).unwrap_or(0) })
        };
        chain.map(scope).collect::<Option<Vec<_>>>().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inlined_methods_are_told_from_the_innermost_on() {
        // At 1: method 2, bytecode 7, not inlined; at 4: method 1, bytecode -1, within the one at 1; at 7: one that lies.
        let scopes = vec![99, 0, 2, 8, 1, 1, 0, 9, 1, 1];
        let calls = vec![(-1, 0), (0x10, 1), (0x20, 4), (0x30, 7), (0x40, 0)];
        assert_eq!(largest_method(&calls, &scopes, 0), 2);
        let code = CompiledMethod { method: 0xb0, code: 0x1000, calls, scopes, metadata: vec![0xa0, 0xb0] };
        let at = |address| -> Vec<_> {
            code.scopes(address, 0).iter().map(|scope| (scope.method, scope.bytecode)).collect()
        };
        assert_eq!(at(0x1010), [(0xb0, 7)]);
        assert_eq!(at(0x1020), [(0xa0, 0), (0xb0, 7)]);
        assert_eq!(at(0x1030), [(0xa0, 0)], "a scope within one that comes later is in none");
        assert_eq!(at(0x1040), [], "a call without a scope");
        assert_eq!(at(0x1011), [], "no call returns to there");
    }
}
