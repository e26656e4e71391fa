//! Allocator functions: what a call does, and where its arguments are.

use std::borrow::Cow;

use tracer_ebpf::probe::{Arg, ResultPlace, Signature};

/// Index of a function in a [`Catalog`](super::Catalog); travels in the probe's cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApiId(pub u16);

/// One allocator function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// Its symbol, as the ELF file has it.
    pub name: Cow<'static, str>,
    /// What a call does.
    pub role: Role,
    /// Whether a failing call leaves by a C++ exception instead of returning. While a return probe is pending, the
    /// return address on the stack is the kernel's trampoline, which no unwinder can pass: the exception ends the
    /// target instead of reaching its handler (seen with tcmalloc's and jemalloc's `operator new` on Linux 6.18: a
    /// caught `bad_alloc` becomes `std::terminate`). The `nothrow` forms catch within the function and are safe.
    pub throws: bool,
}

impl Api {
    /// Whether this is a global C++ `operator new` or `operator delete`. Those of a C++ runtime only pass the call on
    /// to `malloc` and `free`; those that an allocator brings with it do the work themselves.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        matches!(self.name.get(..4), Some("_Znw" | "_Zna" | "_Zdl" | "_Zda"))
    }

    /// What people call it: `operator new[]` for `_Znam`, otherwise the name itself.
    #[must_use]
    pub fn display_name(&self) -> &str {
        match self.name.get(..4) {
            Some("_Znw") => "operator new",
            Some("_Zna") => "operator new[]",
            Some("_Zdl") => "operator delete",
            Some("_Zda") => "operator delete[]",
            _ => &self.name,
        }
    }
}

/// What a call of an allocator function does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Returns a new block, or a block moved to a new size: needs a probe at its entry and one at its return.
    Allocate(Signature),
    /// Only releases the block in the signature's `old`: a probe at its entry is enough.
    Release(Signature),
}

impl Role {
    /// Where the arguments are.
    #[must_use]
    pub const fn signature(self) -> Signature {
        match self {
            Self::Allocate(signature) | Self::Release(signature) => signature,
        }
    }

    /// The same function with other arguments in front of its own; none when one of them leaves the registers, or when
    /// the place of the result is one of them.
    pub(super) fn shifted(self, by: u8) -> Option<Self> {
        let shift = |arg: Option<Arg>| match arg.map(|arg| arg.number().checked_add(by)) {
            None => Some(None),
            Some(Some(number)) if number < Arg::COUNT => Some(Some(Arg::new(number))),
            Some(_) => None,
        };
        let Signature { size, count, old, result } = self.signature();
        if by > 0 && result == ResultPlace::PointedAtByArg0 {
            return None;
        }
        let signature = Signature { size: shift(size)?, count: shift(count)?, old: shift(old)?, result };
        Some(match self {
            Self::Allocate(_) => Self::Allocate(signature),
            Self::Release(_) => Self::Release(signature),
        })
    }
}

const fn arg(number: u8) -> Option<Arg> {
    Some(Arg::new(number))
}

/// `f(.., size, ..)` returning the block.
pub(super) const fn sized(size: u8) -> Role {
    Role::Allocate(Signature { size: arg(size), count: None, old: None, result: ResultPlace::Register })
}

/// `f(.., count, size, ..)` returning a block of `count * size` bytes.
pub(super) const fn counted(count: u8, size: u8) -> Role {
    Role::Allocate(Signature { size: arg(size), count: arg(count), old: None, result: ResultPlace::Register })
}

/// `f(.., old, size, ..)` returning the block at its new place.
pub(super) const fn resize(old: u8, size: u8) -> Role {
    Role::Allocate(Signature { size: arg(size), count: None, old: arg(old), result: ResultPlace::Register })
}

/// `f(.., old, count, size, ..)` returning the block at its new place.
pub(super) const fn resize_counted(old: u8, count: u8, size: u8) -> Role {
    let result = ResultPlace::Register;
    Role::Allocate(Signature { size: arg(size), count: arg(count), old: arg(old), result })
}

/// `int f(void **block, size_t alignment, size_t size)`.
pub(super) const BY_POINTER: Role =
    Role::Allocate(Signature { size: arg(2), count: None, old: None, result: ResultPlace::PointedAtByArg0 });

/// `f(.., old, ..)` giving the block back.
pub(super) const fn release(old: u8) -> Role {
    Role::Release(Signature { size: None, count: None, old: arg(old), result: ResultPlace::Register })
}
