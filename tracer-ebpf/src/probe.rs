//! What one probe tells the BPF program it fires: whose process, which allocator function, and where its arguments
//! are. It travels as the 64-bit cookie of the probe, so the programs know no function by name.

use crate::process::ProcessIndex;

/// The number of an argument register in the C calling convention, 0 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Arg(u8);

impl Arg {
    /// How many arguments travel in registers on x86_64.
    pub const COUNT: u8 = 6;

    /// The argument with the given number.
    ///
    /// # Panics
    /// When `number` is not below [`Arg::COUNT`]; in a constant, at compile time.
    #[must_use]
    pub const fn new(number: u8) -> Self {
        assert!(number < Self::COUNT);
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// Where an allocator function keeps what the account needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signature {
    /// The requested size, in bytes; with `count` the size of one element.
    pub size: Option<Arg>,
    /// The number of elements (`calloc`, `reallocarray`).
    pub count: Option<Arg>,
    /// The block that the call releases: what `realloc` resizes, what `free` frees.
    pub old: Option<Arg>,
    /// Where the new block's address is found.
    pub result: ResultPlace,
}

/// Where a call leaves the new block's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResultPlace {
    /// In the return register; 0 is failure.
    Register,
    /// In the word that argument 0 points at; a return value other than 0 is failure (`posix_memalign`).
    PointedAtByArg0,
}

/// How the end of an allocating call is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ReturnProbe {
    /// By a return probe: while the call runs, the kernel's trampoline stands in place of its return address.
    #[default]
    Trampoline,
    /// By probes on every instruction that returns. The stack stays as it is, so that an exception can pass.
    Exits,
    /// As [`ReturnProbe::Exits`], but it may return elsewhere, too.
    SomeExits,
}

impl ReturnProbe {
    const fn to_bits(self) -> u64 {
        match self {
            Self::Trampoline => 0,
            Self::Exits => 1,
            Self::SomeExits => 2,
        }
    }

    const fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::Trampoline,
            1 => Self::Exits,
            _ => Self::SomeExits,
        }
    }
}

/// The cookie of a probe: 16 bits process, 16 bits api, 16 bits signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cookie {
    /// Index of the traced process.
    pub process: ProcessIndex,
    /// Index of the function in user space's table of allocator functions.
    pub api: u16,
    /// Its arguments.
    pub signature: Signature,
    /// How its end is seen.
    pub return_probe: ReturnProbe,
}

const NO_ARG: u64 = 7;

const fn pack(arg: Option<Arg>) -> u64 {
    match arg {
        Some(arg) => arg.0 as u64,
        None => NO_ARG,
    }
}

const fn unpack(bits: u64) -> Option<Arg> {
    let number = (bits & 7) as u8;
    if number < Arg::COUNT { Some(Arg(number)) } else { None }
}

impl Cookie {
    /// The cookie as the kernel carries it.
    #[must_use]
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        let Signature { size, count, old, result } = self.signature;
        let result = matches!(result, ResultPlace::PointedAtByArg0) as u64;
        let signature =
            pack(size) | pack(count) << 3 | pack(old) << 6 | result << 9 | self.return_probe.to_bits() << 10;
        self.process.number() as u64 | (self.api as u64) << 16 | signature << 32
    }

    /// Decodes what [`Cookie::to_bits`] made. Any 64 bits decode to some cookie.
    #[must_use]
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        let signature = bits >> 32;
        Self {
            process: ProcessIndex::new(bits as u16),
            api: (bits >> 16) as u16,
            signature: Signature {
                size: unpack(signature),
                count: unpack(signature >> 3),
                old: unpack(signature >> 6),
                result: if signature >> 9 & 1 == 1 {
                    ResultPlace::PointedAtByArg0
                } else {
                    ResultPlace::Register
                },
            },
            return_probe: ReturnProbe::from_bits(signature >> 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_round_trip() {
        let args = [None, Some(Arg::new(0)), Some(Arg::new(5))];
        for size in args {
            for count in args {
                for old in args {
                    for result in [ResultPlace::Register, ResultPlace::PointedAtByArg0] {
                        for return_probe in
                            [ReturnProbe::Trampoline, ReturnProbe::Exits, ReturnProbe::SomeExits]
                        {
                            let signature = Signature { size, count, old, result };
                            let cookie = Cookie {
                                process: ProcessIndex::new(0xabcd),
                                api: 0x1234,
                                signature,
                                return_probe,
                            };
                            assert_eq!(Cookie::from_bits(cookie.to_bits()), cookie);
                        }
                    }
                }
            }
        }
    }
}
