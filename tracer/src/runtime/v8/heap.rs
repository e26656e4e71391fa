//! V8's objects in the memory of a running process: tagged pointers, types, strings, arrays.

use super::super::ProcessMemory;

/// Strings that are longer are cut: names and paths are not.
const LONGEST_NAME: usize = 4096;
/// Strings are made of others; this deep at most.
const DEEPEST_STRING: u32 = 40;

/// The heap of an isolate. Any word is allowed anywhere: what it does not lead to is `None`.
pub(super) struct Heap<'a> {
    memory: &'a dyn ProcessMemory,
}

/// The tagged address of an object: that of its first byte, plus 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Tagged(pub u64);

impl Tagged {
    /// The object that a word points to, strongly or weakly.
    pub(super) const fn of(word: u64) -> Option<Self> {
        match word & 3 {
            1 => Some(Self(word)),
            3 => Some(Self(word & !2)),
            _ => None,
        }
    }
}

/// The number in a word, if it is one.
pub(super) const fn smi(word: u64) -> Option<i32> {
    if word as u32 == 0 { Some((word >> 32) as i32) } else { None }
}

impl<'a> Heap<'a> {
    pub(super) const fn new(memory: &'a dyn ProcessMemory) -> Self {
        Self { memory }
    }

    pub(super) fn word(&self, object: Tagged, offset: u64) -> Option<u64> {
        self.memory.read(object.0.wrapping_add(offset).wrapping_sub(1))
    }

    pub(super) fn number(&self, object: Tagged, offset: u64) -> Option<u32> {
        let word = self.word(object, offset & !7)?;
        Some(if offset & 4 == 0 { word as u32 } else { (word >> 32) as u32 })
    }

    pub(super) fn object(&self, object: Tagged, offset: u64) -> Option<Tagged> {
        self.word(object, offset).and_then(Tagged::of)
    }

    pub(super) fn smi(&self, object: Tagged, offset: u64) -> Option<i32> {
        self.word(object, offset).and_then(smi)
    }

    pub(super) fn raw(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.memory.read_bytes(address, &mut bytes).then_some(bytes)
    }

    /// The number of the type of an object, which its Map says.
    pub(super) fn type_of(&self, object: Tagged) -> Option<u16> {
        let map = self.object(object, 0)?;
        Some((self.number(map, 12)? & 0xffff) as u16)
    }

    /// An object, if it is of a type.
    pub(super) fn typed(&self, object: Tagged, kind: u16) -> Option<Tagged> {
        (self.type_of(object)? == kind).then_some(object)
    }

    /// How many elements an array has. Of a byte array, bytes.
    fn length(&self, array: Tagged) -> Option<usize> {
        /// The largest source that is read, in elements.
        const MOST: i32 = 1 << 26;
        self.smi(array, 8).filter(|length| (0..=MOST).contains(length)).map(|length| length as usize)
    }

    /// The bytes of a byte array.
    pub(super) fn byte_array(&self, array: Tagged) -> Option<Vec<u8>> {
        self.raw(array.0 + 15, self.length(array)?)
    }

    /// The words of a fixed array.
    pub(super) fn fixed_array(&self, array: Tagged) -> Option<Vec<u64>> {
        let bytes = self.raw(array.0 + 15, self.length(array)? * 8)?;
        Some(bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)).collect())
    }

    /// One element of a fixed array.
    pub(super) fn element(&self, array: Tagged, index: u64) -> Option<u64> {
        ((index as usize) < self.length(array)?).then(|| self.word(array, 16 + 8 * index))?
    }

    /// The text of a string, if it is one.
    pub(super) fn name(&self, string: Tagged) -> Option<String> {
        self.string(string, LONGEST_NAME).map(|units| String::from_utf16_lossy(&units))
    }

    /// The code units of a string, as far as this many. V8 may replace the parts of a string by the whole while they are read, so
    /// whether it came out as long as it says is part of it.
    pub(super) fn string(&self, string: Tagged, most: usize) -> Option<Vec<u16>> {
        let length = self.string_length(string)?;
        let mut units = Vec::new();
        self.append(string, 0, most, DEEPEST_STRING, &mut units)?;
        (units.len() == length.min(most)).then_some(units)
    }

    /// How long a string is, if it is one.
    pub(super) fn string_length(&self, string: Tagged) -> Option<usize> {
        (self.type_of(string)? < FIRST_OTHER_TYPE)
            .then(|| self.number(string, 12))?
            .map(|length| length as usize)
    }

    /// Appends a string from one of its units on, until there are so many in all.
    fn append(
        &self,
        string: Tagged,
        from: usize,
        most: usize,
        depth: u32,
        units: &mut Vec<u16>,
    ) -> Option<()> {
        let kind = self.type_of(string).filter(|&kind| kind < FIRST_OTHER_TYPE)?;
        let depth = depth.checked_sub(1)?;
        let length = self.number(string, 12)? as usize;
        let wanted = length.saturating_sub(from).min(most.saturating_sub(units.len()));
        if wanted == 0 {
            return Some(());
        }
        let is_one_byte = kind & ONE_BYTE != 0;
        match kind & REPRESENTATION {
            SEQUENTIAL => self.append_units(string.0 + 15, from, wanted, is_one_byte, units),
            EXTERNAL => {
                let data = match kind & UNCACHED {
                    0 => self.word(string, 24)?,
                    // The resource of the embedder has it.
                    _ => self.memory.read(self.word(string, 16)?.wrapping_add(8))?,
                };
                self.append_units(data, from, wanted, is_one_byte, units)
            }
            CONS => {
                let (first, second) = (self.object(string, 16)?, self.object(string, 24)?);
                let of_first = self.string_length(first)?;
                if from < of_first {
                    self.append(first, from, units.len() + wanted, depth, units)?;
                }
                let left = (from + wanted).saturating_sub(of_first);
                self.append(
                    second,
                    from.saturating_sub(of_first),
                    units.len() + left.min(wanted),
                    depth,
                    units,
                )
            }
            SLICED => {
                let offset = usize::try_from(self.smi(string, 24)?).ok()?;
                self.append(self.object(string, 16)?, offset + from, units.len() + wanted, depth, units)
            }
            THIN => self.append(self.object(string, 16)?, from, units.len() + wanted, depth, units),
            _ => None,
        }
    }

    fn append_units(
        &self,
        data: u64,
        from: usize,
        count: usize,
        is_one_byte: bool,
        units: &mut Vec<u16>,
    ) -> Option<()> {
        let width = if is_one_byte { 1 } else { 2 };
        let bytes = self.raw(data.wrapping_add((from * width) as u64), count * width)?;
        if is_one_byte {
            units.extend(bytes.iter().map(|&byte| u16::from(byte)));
        } else {
            units.extend(bytes.as_chunks().0.iter().map(|unit| u16::from_ne_bytes(*unit)));
        }
        Some(())
    }
}

/// Strings have the types before it.
const FIRST_OTHER_TYPE: u16 = 128;
/// The bits of a string's type.
const REPRESENTATION: u16 = 7;
const ONE_BYTE: u16 = 8;
const UNCACHED: u16 = 16;
const SEQUENTIAL: u16 = 0;
const CONS: u16 = 1;
const EXTERNAL: u16 = 2;
const SLICED: u16 = 3;
const THIN: u16 = 5;

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use tracer_ebpf::unwind::Memory;

    use super::*;

    /// Memory that objects are put into by hand.
    #[derive(Default)]
    pub(in super::super) struct MadeUp(BTreeMap<u64, u8>);

    impl MadeUp {
        pub(in super::super) fn put(&mut self, address: u64, bytes: &[u8]) {
            self.0.extend((address..).zip(bytes.iter().copied()));
        }

        /// An object of a type, with these words behind its Map.
        pub(in super::super) fn object(&mut self, address: u64, kind: u16, words: &[u64]) -> Tagged {
            let map = 0x10_0000 + u64::from(kind) * 64;
            self.put(map, &[0; 16]);
            self.put(map + 12, &kind.to_ne_bytes());
            self.put(address, &(map + 1).to_ne_bytes());
            for (at, word) in (address + 8..).step_by(8).zip(words) {
                self.put(at, &word.to_ne_bytes());
            }
            Tagged(address + 1)
        }

        fn sequential(&mut self, address: u64, text: &str) -> Tagged {
            let string = self.object(address, ONE_BYTE, &[(text.len() as u64) << 32]);
            self.put(address + 16, text.as_bytes());
            string
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
            (address..).zip(bytes).all(|(at, byte)| self.0.get(&at).map(|&known| *byte = known).is_some())
        }
    }

    const fn length(units: u64) -> u64 {
        units << 32
    }

    #[test]
    fn strings_are_read_in_every_form() {
        let mut memory = MadeUp::default();
        let hello = memory.sequential(0x1000, "hello ");
        let world = memory.sequential(0x1100, "world");
        let both = memory.object(0x1200, CONS | ONE_BYTE, &[length(11), hello.0, world.0]);
        let slice = memory.object(0x1300, SLICED | ONE_BYTE, &[length(5), both.0, 4 << 32]);
        let thin = memory.object(0x1400, THIN, &[length(5), slice.0]);
        let units: Vec<u8> = "関数".encode_utf16().flat_map(u16::to_ne_bytes).collect();
        memory.put(0x2000, &units);
        let cached = memory.object(0x1500, EXTERNAL, &[length(2), 0x9000, 0x2000]);
        memory.put(0x9008, &0x2000_u64.to_ne_bytes());
        let uncached = memory.object(0x1600, EXTERNAL | UNCACHED, &[length(2), 0x9000]);
        let heap = Heap::new(&memory);
        let names = [both, slice, thin, cached, uncached].map(|string| heap.name(string).unwrap());
        assert_eq!(names, ["hello world", "o wor", "o wor", "関数", "関数"]);
        assert_eq!(heap.string(both, 8).map(|units| units.len()), Some(8));
    }

    #[test]
    fn what_is_no_string_or_made_of_itself_is_none() {
        let mut memory = MadeUp::default();
        let other = memory.object(0x1000, 200, &[length(4)]);
        let itself = memory.object(0x2000, CONS, &[length(4), 0x2001, 0x2001]);
        let broken = memory.object(0x3000, SLICED, &[length(4), 0x9001, 0]);
        let endless = memory.object(0x4000, ONE_BYTE, &[length(u64::from(u32::MAX))]);
        let (begin, empty) = (memory.sequential(0x5000, "/srv/leak"), memory.sequential(0x5100, ""));
        // The first part is from before V8 made one of them, the second from after.
        let torn = memory.object(0x5200, CONS | ONE_BYTE, &[length(12), begin.0, empty.0]);
        let heap = Heap::new(&memory);
        assert_eq!(
            [other, itself, broken, endless, torn].map(|string| heap.name(string)),
            [const { None }; 5]
        );
    }
}
