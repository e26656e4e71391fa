//! USDT probes with which a process itself tells what it allocates: OpenTelemetry's contract, `otel_memory:alloc(ptr, size, weight)`
//! and `otel_memory:free(ptr)`, fired for the blocks that the process samples.
//!
//! A probe is a place in the code; a note in the file says where its arguments are there: in a register, in memory at a register plus a
//! number, or that they are constant. User space reads the note and puts [`Arguments`] into a table, and the probe's cookie names their
//! place.

use crate::{atomic::Word, process::ProcessIndex};

/// How many different [`Arguments`] one recording can have. A library has a few, however many probes.
pub const MAX_ARGUMENTS: u32 = 256;

/// In the number of an api: the probe is inside of the function that was called, so the walk begins in that function, which is no caller.
pub const INSIDE: u16 = 1 << 14;

/// In place of the number of an api: no function is known that was called.
pub const NO_API: u16 = INSIDE - 1;

/// The cookie of such a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsdtCookie {
    /// Index of the traced process.
    pub process: ProcessIndex,
    /// Index of the function in user space's table of allocator functions, with [`INSIDE`].
    pub api: u16,
    /// Place of its arguments in the table of arguments.
    pub arguments: u16,
}

impl UsdtCookie {
    /// The cookie as the kernel carries it.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.process.number() as u64 | (self.api as u64) << 16 | (self.arguments as u64) << 32
    }

    /// Decodes what [`UsdtCookie::to_bits`] made.
    #[must_use]
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            process: ProcessIndex::new(bits as u16),
            api: (bits >> 16) as u16,
            arguments: (bits >> 32) as u16,
        }
    }
}

/// A register, by its place in the kernel's `struct pt_regs` of x86_64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Register(u8);

impl Register {
    /// How many there are: up to `ss`.
    const COUNT: u8 = 21;

    /// The register at this place.
    #[must_use]
    pub const fn at(place: u8) -> Option<Self> {
        if place < Self::COUNT { Some(Self(place)) } else { None }
    }

    /// Its offset in the structure, in bytes.
    #[must_use]
    #[inline(always)]
    pub const fn offset(self) -> u64 {
        self.0 as u64 * 8
    }
}

/// Where the value of an argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Location {
    /// Nowhere: it is always this.
    Constant(i64),
    /// In a register.
    Register(Register),
    /// In memory, at `base + index * 2^scale + displacement`.
    Memory {
        /// Added as it is.
        base: Register,
        /// Added after scaling.
        index: Option<Register>,
        /// 0 to 3.
        scale: u8,
        /// Added to the registers.
        displacement: i32,
    },
}

/// An argument of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Argument {
    /// Where its value is.
    pub location: Location,
    /// Of how many bytes: 1, 2, 4 or 8.
    pub bytes: u8,
    /// Whether it has a sign.
    pub signed: bool,
}

/// The arguments of a probe, as the BPF programs find them: two words each. Of `free` only the first is used.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Arguments([[Word; 2]; Arguments::MOST]);

/// What a word of zeros is not: an argument.
const CONSTANT: u64 = 1;
const REGISTER: u64 = 2;
const MEMORY: u64 = 3;
const NO_REGISTER: u64 = 0xff;

impl Argument {
    /// The argument in two words: kind, bytes, sign, base, index and scale, a byte each; then the number.
    #[must_use]
    pub const fn to_words(self) -> [u64; 2] {
        let (kind, base, index, scale, number) = match self.location {
            Location::Constant(value) => (CONSTANT, NO_REGISTER, NO_REGISTER, 0, value as u64),
            Location::Register(register) => (REGISTER, register.0 as u64, NO_REGISTER, 0, 0),
            Location::Memory { base, index, scale, displacement } => {
                let index = match index {
                    Some(index) => index.0 as u64,
                    None => NO_REGISTER,
                };
                (MEMORY, base.0 as u64, index, scale as u64 & 3, displacement as i64 as u64)
            }
        };
        [
            kind | (self.bytes as u64) << 8
                | (self.signed as u64) << 16
                | base << 24
                | index << 32
                | scale << 40,
            number,
        ]
    }

    /// Decodes what [`Argument::to_words`] made; none of what is no argument.
    #[must_use]
    #[inline(always)]
    pub const fn from_words([word, number]: [u64; 2]) -> Option<Self> {
        let location = match word & 0xff {
            CONSTANT => Location::Constant(number as i64),
            REGISTER => match Register::at((word >> 24) as u8) {
                Some(register) => Location::Register(register),
                None => return None,
            },
            MEMORY => match Register::at((word >> 24) as u8) {
                Some(base) => Location::Memory {
                    base,
                    index: Register::at((word >> 32) as u8),
                    scale: (word >> 40) as u8 & 3,
                    displacement: number as i32,
                },
                None => return None,
            },
            _ => return None,
        };
        Some(Self { location, bytes: (word >> 8) as u8, signed: word >> 16 & 1 == 1 })
    }

    /// Its value, given what the eight bytes at its place are.
    #[must_use]
    #[inline(always)]
    pub const fn value(self, raw: u64) -> u64 {
        let unused = match self.bytes {
            1 => 56,
            2 => 48,
            4 => 32,
            _ => 0,
        };
        let raised = raw << unused;
        if self.signed { (raised as i64 >> unused) as u64 } else { raised >> unused }
    }
}

impl Arguments {
    /// `ptr`, `size` and `weight`.
    pub const MOST: usize = 3;

    /// Writes these; what there are fewer of is no argument.
    pub fn set(&self, arguments: &[Argument]) {
        for (at, words) in self.0.iter().enumerate() {
            let [first, second] = arguments.get(at).map_or([0; 2], |argument| argument.to_words());
            words[1].store(second);
            words[0].store(first);
        }
    }

    /// One of them.
    #[must_use]
    #[inline(always)]
    pub fn get(&self, number: usize) -> Option<Argument> {
        let [first, second] = &self.0[number];
        Argument::from_words([first.load(), second.load()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_and_cookies_round_trip() {
        let register = Register::at(14).unwrap();
        let memory = |index, displacement| Location::Memory { base: register, index, scale: 3, displacement };
        let locations = [
            Location::Constant(-5),
            Location::Register(register),
            memory(None, -8),
            memory(Register::at(20), i32::MAX),
        ];
        let arguments = Arguments::default();
        assert_eq!(arguments.get(0), None);
        for location in locations {
            for (bytes, signed) in [(1, true), (2, false), (4, true), (8, false)] {
                let argument = Argument { location, bytes, signed };
                assert_eq!(Argument::from_words(argument.to_words()), Some(argument));
                arguments.set(&[argument, argument]);
                assert_eq!((arguments.get(1), arguments.get(2)), (Some(argument), None));
            }
        }
        assert_eq!(Register::at(21), None);
        let cookie = UsdtCookie { process: ProcessIndex::new(0xffff), api: INSIDE | 7, arguments: 255 };
        assert_eq!(UsdtCookie::from_bits(cookie.to_bits()), cookie);
    }

    #[test]
    fn values_are_cut_and_extended_to_their_size() {
        let argument = |bytes, signed| Argument { location: Location::Constant(0), bytes, signed };
        let raw = 0xffff_ffff_ffff_ff80;
        assert_eq!(argument(1, false).value(raw), 0x80);
        assert_eq!(argument(1, true).value(raw), (-128_i64).cast_unsigned());
        assert_eq!(argument(4, false).value(raw), 0xffff_ff80);
        assert_eq!(argument(8, false).value(raw), raw);
    }
}
