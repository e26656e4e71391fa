//! Memory of a process that lies: whatever is followed leads back into it, or nowhere, and every number may be huge.

use std::cell::Cell;

use proptest::prelude::*;
use tracer_ebpf::unwind::Memory;

use super::ProcessMemory;

/// The same few words again and again, at every address that user space has.
#[derive(Clone, Debug)]
pub(super) struct LyingMemory {
    words: Vec<u64>,
    /// Bytes that were asked for.
    pub(super) read: Cell<u64>,
}

/// How much is read at most to name a frame: what the largest tables that are believed take, each once or twice.
pub(super) const MOST_READ: u64 = 256 << 20;

impl LyingMemory {
    /// Addresses from here on cannot be read.
    const END: u64 = 1 << 47;

    pub(super) fn new(words: Vec<u64>) -> Self {
        Self { words, read: Cell::new(0) }
    }

    /// Any, of so many words.
    pub(super) fn any() -> impl Strategy<Value = Self> {
        prop::collection::vec(any_word(), 16..96).prop_map(Self::new)
    }

    /// Puts a word where this address is.
    pub(super) fn put(&mut self, address: u64, word: u64) {
        let at = (address / 8) as usize % self.words.len();
        self.words[at] = word;
    }
}

/// A word that leads on: an address, tagged as V8's are or not, of an object that may be of any type of V8's; a number, small or huge; anything.
pub(super) fn any_word() -> impl Strategy<Value = u64> {
    // The bits from 32 on are those in which a Map has the type.
    let address = (0_u64..256, 0_u64..1024).prop_map(|(kind, word)| (kind << 32) + word * 8);
    prop_oneof![
        4 => address.clone(),
        4 => address.prop_map(|address| address | 1),
        2 => 0_u64..64,
        2 => (0_u64..4096).prop_map(|number| number << 32),
        1 => Just(u64::MAX - 7),
        1 => Just(u64::MAX << 32),
        1 => Just(0x7fff_ffff << 32),
        2 => any::<u64>(),
    ]
}

impl Memory for LyingMemory {
    fn read(&self, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.read_bytes(address, &mut word).then(|| u64::from_ne_bytes(word))
    }
}

impl ProcessMemory for LyingMemory {
    fn read_bytes(&self, address: u64, bytes: &mut [u8]) -> bool {
        self.read.set(self.read.get() + bytes.len() as u64);
        let is_there = address.checked_add(bytes.len() as u64).is_some_and(|end| end <= Self::END);
        if is_there {
            let mut skipped = address as usize % 8;
            let from = (address / 8) as usize % self.words.len();
            let mut rest = bytes;
            for word in self.words.iter().cycle().skip(from) {
                let word = &word.to_ne_bytes()[skipped..];
                let length = word.len().min(rest.len());
                rest[..length].copy_from_slice(&word[..length]);
                rest = &mut rest[length..];
                skipped = 0;
                if rest.is_empty() {
                    break;
                }
            }
        }
        is_there
    }
}
