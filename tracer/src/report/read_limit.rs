//! How much memory a file may make its reader take: a few bytes of it can stand for a lot.

use std::io::{self, Read};

/// What a profile may take in memory.
pub(super) const MOST: usize = 1 << 30;

/// A file would take too much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it would take more than {} of memory: it is too large, or crafted to be", crate::model::Bytes(MOST as u64))]
pub struct TooLarge;

/// JSON that is read until what it stands for may take too much memory; then reading fails with [`TooLarge`].
pub(super) struct ReadLimit<R> {
    json: R,
    left: usize,
    /// The longest text without a quote in it: one that is read is held thrice for a moment.
    longest: usize,
    /// Bytes since the last quote.
    unquoted: usize,
}

impl<R> ReadLimit<R> {
    pub const fn new(json: R, most: usize) -> Self {
        Self { json, left: most, longest: most / 64, unquoted: 0 }
    }
}

impl<R: Read> Read for ReadLimit<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.json.read(buffer)?;
        for &byte in &buffer[..length] {
            self.unquoted = if byte == b'"' { 0 } else { self.unquoted + 1 };
            match self.left.checked_sub(cost(byte)) {
                Some(left) if self.unquoted <= self.longest => self.left = left,
                _ => return Err(io::Error::other(TooLarge)),
            }
        }
        Ok(length)
    }
}

/// The most memory that a byte of JSON adds to a profile, wherever it is. The tightest cases, counting lists that double as they
/// grow: numbers of a list (`0,`: 8 bytes, twice), its texts (`"",`: 24 bytes, twice), and frames (`{"ip":"0x0"},`: 170 bytes,
/// two counters, what the allocator adds, and a pointer, twice).
const fn cost(byte: u8) -> usize {
    match byte {
        b'{' => 128,
        b'"' => 20,
        b',' => 16,
        _ => 1,
    }
}
