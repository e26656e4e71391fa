//! How one frame is unwound: an equation in 64 bits.

use core::fmt;

/// How the canonical frame address (the value of `sp` before the call instruction pushed the return address, plus 8)
/// follows from the registers of a frame. Offsets are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cfa {
    /// `cfa = sp + offset`
    Sp(i64),
    /// `cfa = bp + offset`
    Bp(i64),
    /// `cfa = *(sp + at) + plus`: hand-written code that saved the stack pointer on the stack.
    AtSp {
        /// Where the value is.
        at: i64,
        /// Added to it.
        plus: i64,
    },
    /// `cfa = *(bp + at) + plus`: functions that realign their stack.
    AtBp {
        /// Where the value is.
        at: i64,
        /// Added to it.
        plus: i64,
    },
    /// `cfa = sp + 8 + ((ip & 15) >= pushed ? 8 : 0)`: an entry of the procedure linkage table, which pushes a word on
    /// its way; `pushed` is the offset in the entry after that push.
    Plt {
        /// 11 in what linkers write; 10 has been seen.
        pushed: i64,
    },
}

/// Where the caller's `rbp` is. Offsets are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SavedBp {
    /// Still in the register.
    Same,
    /// `*(cfa + offset)`
    AtCfa(i64),
    /// `*(bp + offset)`: functions that realign their stack.
    AtBp(i64),
}

/// How to get from a frame to its caller, as one of these equations:
///
/// ```text
/// no table       walk by frame pointer: (ip, sp, bp) = (*(bp + 8), bp + 16, *bp)
/// unsupported    the file says how, in a way this walk cannot follow
/// base           there is no caller: the thread began here
/// signal         (ip, sp, bp) = (*(sp + x + 8), *(sp + x), *(sp + x - 40))
/// switched       (ip, sp, bp) = (*(bp + 8), bp + 16, *bp), on another stack, wherever it is
/// any other      (ip, sp, bp) = (*(cfa - 8), cfa, saved bp)      with Cfa and SavedBp
/// ```
///
/// Of the 44 million rows of 3,109 files (a full Debian, other Pythons, JVMs, Rust, LLVM) 99.93 % fit; docs/unwinding.md
/// says what the rest is.
///
/// Encoding, from bit 0: the CFA's offset, 32 bits signed; the offset of the saved bp, 16 bits signed; `plus`, 8 bits
/// signed; the kind of CFA, 4 bits; the kind of saved bp, 4 bits. Seen in those files: offsets 0 to 1,048,720; saved bp
/// -80 to 120; plus 8, 56 and 64. Any 64 bits decode to some rule.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Rule(u64);

const OFFSET_BITS: u32 = 32;
const SAVED_BITS: u32 = 16;
const PLUS_BITS: u32 = 8;
const KIND_BITS: u32 = 4;

const SAVED_SHIFT: u32 = OFFSET_BITS;
const PLUS_SHIFT: u32 = SAVED_SHIFT + SAVED_BITS;
const CFA_SHIFT: u32 = PLUS_SHIFT + PLUS_BITS;
const BP_SHIFT: u32 = CFA_SHIFT + KIND_BITS;
const _: () = assert!(BP_SHIFT + KIND_BITS == u64::BITS);
// The largest frames that were seen fit with room to spare.
const _: () = assert!(i32::MAX as i64 > 1_048_720 && i16::MIN as i64 <= -80 && i8::MAX as i64 >= 64);

/// The 4 bits that say which equation a rule is.
pub(super) mod kind {
    pub const NO_TABLE: u64 = 0;
    pub const UNSUPPORTED: u64 = 1;
    pub const BASE: u64 = 2;
    pub const SIGNAL: u64 = 3;
    pub const SP: u64 = 4;
    pub const BP: u64 = 5;
    pub const AT_SP: u64 = 6;
    pub const AT_BP: u64 = 7;
    pub const PLT: u64 = 8;
    pub const SWITCHED: u64 = 9;
}

/// The 4 bits that say where the caller's `rbp` is.
pub(super) mod saved {
    pub const SAME: u64 = 0;
    pub const AT_CFA: u64 = 1;
    pub const AT_BP: u64 = 2;
}

impl Rule {
    /// Nothing is known about the code: a gap between functions, or code that no file describes.
    pub const NO_TABLE: Self = Self::plain(kind::NO_TABLE);
    /// What the file says cannot be evaluated here.
    pub const UNSUPPORTED: Self = Self::plain(kind::UNSUPPORTED);
    /// The first function of a thread: its return address is undefined.
    pub const BASE: Self = Self::plain(kind::BASE);

    /// Code that runs on another stack than its caller, which it has left with a frame pointer: Go's, when it calls C.
    pub const SWITCHED: Self = Self::plain(kind::SWITCHED);

    /// The rule at the first instruction of any function, with or without a table: `cfa = sp + 8`, `bp` unchanged.
    pub const ENTRY: Self = Self(8 | kind::SP << CFA_SHIFT);

    const fn plain(kind: u64) -> Self {
        Self(kind << CFA_SHIFT)
    }

    /// The rule of an ordinary function, or `None` when an offset does not fit.
    #[must_use]
    pub const fn new(cfa: Cfa, saved_bp: SavedBp) -> Option<Self> {
        let (cfa_kind, offset, plus) = match cfa {
            Cfa::Sp(offset) => (kind::SP, offset, 0),
            Cfa::Bp(offset) => (kind::BP, offset, 0),
            Cfa::AtSp { at, plus } => (kind::AT_SP, at, plus),
            Cfa::AtBp { at, plus } => (kind::AT_BP, at, plus),
            Cfa::Plt { pushed } => (kind::PLT, pushed, 0),
        };
        let (bp_kind, saved) = match saved_bp {
            SavedBp::Same => (saved::SAME, 0),
            SavedBp::AtCfa(offset) => (saved::AT_CFA, offset),
            SavedBp::AtBp(offset) => (saved::AT_BP, offset),
        };
        if offset != offset as i32 as i64 || saved != saved as i16 as i64 || plus != plus as i8 as i64 {
            return None;
        }
        Some(Self(
            offset as u32 as u64
                | (saved as u16 as u64) << SAVED_SHIFT
                | (plus as u8 as u64) << PLUS_SHIFT
                | cfa_kind << CFA_SHIFT
                | bp_kind << BP_SHIFT,
        ))
    }

    /// The rule of the code that a signal handler returns to (`__restore_rt`): the interrupted registers are in a
    /// `ucontext` on the stack, `sp` at `sp + sp_at` (160), `ip` one word above it, `bp` five words below. `None` when
    /// the offset does not fit.
    #[must_use]
    pub const fn signal(sp_at: i64) -> Option<Self> {
        if sp_at != sp_at as i32 as i64 {
            return None;
        }
        Some(Self(sp_at as u32 as u64 | kind::SIGNAL << CFA_SHIFT))
    }

    /// The rule as it stands in maps and files.
    #[must_use]
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// Decodes what [`Rule::to_bits`] made. Any 64 bits are some rule; an unknown kind acts as
    /// [`Rule::UNSUPPORTED`].
    #[must_use]
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Whether the walk can follow it: all but the first two.
    #[must_use]
    pub const fn is_supported(self) -> bool {
        self.cfa_kind() >= kind::BASE && self.cfa_kind() <= kind::SWITCHED
    }

    /// Whether its caller is on another stack, wherever that is.
    #[must_use]
    pub const fn is_switched(self) -> bool {
        self.cfa_kind() == kind::SWITCHED
    }

    /// The two parts of an ordinary rule; `None` for the others.
    #[must_use]
    pub const fn parts(self) -> Option<(Cfa, SavedBp)> {
        let cfa = match self.cfa_kind() {
            kind::SP => Cfa::Sp(self.offset()),
            kind::BP => Cfa::Bp(self.offset()),
            kind::AT_SP => Cfa::AtSp { at: self.offset(), plus: self.plus() },
            kind::AT_BP => Cfa::AtBp { at: self.offset(), plus: self.plus() },
            kind::PLT => Cfa::Plt { pushed: self.offset() },
            _ => return None,
        };
        let saved_bp = match self.bp_kind() {
            saved::SAME => SavedBp::Same,
            saved::AT_CFA => SavedBp::AtCfa(self.saved()),
            saved::AT_BP => SavedBp::AtBp(self.saved()),
            _ => return None,
        };
        Some((cfa, saved_bp))
    }

    /// Where the interrupted `sp` is, relative to `sp`, if this is a signal frame.
    #[must_use]
    pub const fn signal_offset(self) -> Option<i64> {
        if self.cfa_kind() == kind::SIGNAL { Some(self.offset()) } else { None }
    }

    #[inline(always)]
    pub(super) const fn cfa_kind(self) -> u64 {
        self.0 >> CFA_SHIFT & ((1 << KIND_BITS) - 1)
    }

    #[inline(always)]
    pub(super) const fn bp_kind(self) -> u64 {
        self.0 >> BP_SHIFT
    }

    #[inline(always)]
    pub(super) const fn offset(self) -> i64 {
        self.0 as i32 as i64
    }

    #[inline(always)]
    pub(super) const fn saved(self) -> i64 {
        (self.0 >> SAVED_SHIFT) as i16 as i64
    }

    #[inline(always)]
    pub(super) const fn plus(self) -> i64 {
        (self.0 >> PLUS_SHIFT) as i8 as i64
    }
}

impl fmt::Display for Cfa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sp(offset) => write!(f, "sp{offset:+}"),
            Self::Bp(offset) => write!(f, "bp{offset:+}"),
            Self::AtSp { at, plus } => write!(f, "*(sp{at:+}){plus:+}"),
            Self::AtBp { at, plus } => write!(f, "*(bp{at:+}){plus:+}"),
            Self::Plt { pushed } => write!(f, "sp+8+((ip&15)>={pushed})*8"),
        }
    }
}

impl fmt::Display for SavedBp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same => write!(f, "bp"),
            Self::AtCfa(offset) => write!(f, "*(cfa{offset:+})"),
            Self::AtBp(offset) => write!(f, "*(bp{offset:+})"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.cfa_kind(), self.parts()) {
            (kind::NO_TABLE, _) => write!(f, "no table"),
            (kind::BASE, _) => write!(f, "base"),
            (kind::SWITCHED, _) => write!(f, "switched"),
            (kind::SIGNAL, _) => write!(f, "signal, sp=*(sp{:+})", self.offset()),
            (_, Some((cfa, bp))) => write!(f, "cfa={cfa} bp={bp}"),
            (_, None) => write!(f, "unsupported"),
        }
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rule({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFSETS: [i64; 7] = [0, 8, -8, 1_048_720, i32::MAX as i64, i32::MIN as i64, 3];
    const SAVED: [i64; 5] = [0, -16, 120, i16::MIN as i64, i16::MAX as i64];
    const PLUS: [i64; 4] = [0, 64, i8::MIN as i64, i8::MAX as i64];

    fn cfas() -> impl Iterator<Item = Cfa> {
        OFFSETS.into_iter().flat_map(|at| {
            let derefs =
                PLUS.into_iter().flat_map(move |plus| [Cfa::AtSp { at, plus }, Cfa::AtBp { at, plus }]);
            [Cfa::Sp(at), Cfa::Bp(at), Cfa::Plt { pushed: at }].into_iter().chain(derefs)
        })
    }

    fn saved_bps() -> impl Iterator<Item = SavedBp> {
        let stored = SAVED.into_iter().flat_map(|offset| [SavedBp::AtCfa(offset), SavedBp::AtBp(offset)]);
        [SavedBp::Same].into_iter().chain(stored)
    }

    #[test]
    fn every_ordinary_rule_that_fits_keeps_its_parts() {
        for cfa in cfas() {
            for bp in saved_bps() {
                let rule = Rule::new(cfa, bp).expect("within the limits");
                assert_eq!(Rule::from_bits(rule.to_bits()).parts(), Some((cfa, bp)));
                assert!(rule.is_supported());
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(Rule::new(Cfa::Sp(i32::MAX as i64 + 1), SavedBp::Same), None);
        assert_eq!(Rule::new(Cfa::Bp(i32::MIN as i64 - 1), SavedBp::Same), None);
        assert_eq!(Rule::new(Cfa::Sp(8), SavedBp::AtCfa(i16::MAX as i64 + 1)), None);
        assert_eq!(Rule::new(Cfa::AtSp { at: 0, plus: 128 }, SavedBp::Same), None);
        assert_eq!(Rule::signal(i64::MAX), None);
    }

    #[test]
    fn the_special_rules_differ_and_have_no_parts() {
        let signal = Rule::signal(160).expect("fits");
        assert_eq!(signal.signal_offset(), Some(160));
        for (rule, supported) in [
            (Rule::NO_TABLE, false),
            (Rule::UNSUPPORTED, false),
            (Rule::BASE, true),
            (Rule::SWITCHED, true),
            (signal, true),
            (Rule::from_bits(u64::MAX), false),
        ] {
            assert_eq!(rule.parts(), None, "{rule}");
            assert_eq!(rule.is_supported(), supported, "{rule}");
        }
        assert_eq!(Rule::ENTRY.parts(), Some((Cfa::Sp(8), SavedBp::Same)));
        assert_eq!(Rule::NO_TABLE.to_bits(), 0, "an empty map entry says that there is no table");
    }
}
