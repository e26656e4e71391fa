//! Frames of language runtimes: what of them the walk writes down besides the address, so that user space can name them.
//!
//! A frame is one word of a stack: its address, and in the bits above, which no address of user space has, what kind of frame it is
//! ([`FrameKind`]). Some kinds are followed by words of their own. Each runtime has a module here that recognises its frames and
//! says which words these are; it runs in BPF and on the host.

pub mod hotspot;
pub mod python;
pub mod v8;

/// What a frame is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Machine code of which nothing but the address is known.
    #[default]
    Native = 0,
    /// A JavaScript function that is interpreted or built in: two words follow, see [`v8::Function::to_words`].
    JavaScript = 1,
    /// Code by which V8 comes from one function to the other. One word follows: V8's number of the frame's type.
    V8Internal = 2,
    /// A JavaScript function in code that was made at run time: two words follow, as of [`FrameKind::JavaScript`].
    CompiledJavaScript = 3,
    /// A Java method that is interpreted: two words follow, see [`hotspot::InterpretedMethod::to_words`].
    InterpretedJava = 4,
    /// Code that HotSpot has made: two words follow, see [`hotspot::CompiledCode::to_words`].
    CompiledJava = 5,
    /// The loop of Python's interpreter. The Python frames that it works through follow.
    PythonLoop = 6,
    /// A Python function. In place of the address of code there is that of its code object. One word follows, see
    /// [`python::Function::to_word`].
    Python = 7,
}

/// Bits of a frame's word that are its address. Those of user space have 47, or 56 with page tables of five levels.
const ADDRESS_BITS: u32 = 56;

impl FrameKind {
    /// Every kind, by its number.
    const ALL: [Self; 8] = [
        Self::Native,
        Self::JavaScript,
        Self::V8Internal,
        Self::CompiledJavaScript,
        Self::InterpretedJava,
        Self::CompiledJava,
        Self::PythonLoop,
        Self::Python,
    ];

    /// The most words that follow one frame.
    pub const MOST_WORDS: usize = 2;

    /// How many words follow a frame of this kind.
    #[must_use]
    pub const fn words(self) -> usize {
        match self {
            Self::Native | Self::PythonLoop => 0,
            Self::JavaScript | Self::CompiledJavaScript | Self::InterpretedJava | Self::CompiledJava => 2,
            Self::V8Internal | Self::Python => 1,
        }
    }

    /// The word of a frame of this kind.
    #[must_use]
    #[inline(always)]
    pub const fn word(self, address: u64) -> u64 {
        address & ((1 << ADDRESS_BITS) - 1) | (self as u64) << ADDRESS_BITS
    }

    /// The kind and the address of a frame's word; `None` for a kind that there is not.
    #[must_use]
    pub const fn of_word(word: u64) -> Option<(Self, u64)> {
        let address = word & ((1 << ADDRESS_BITS) - 1);
        let number = word >> ADDRESS_BITS;
        if number < Self::ALL.len() as u64 { Some((Self::ALL[number as usize], address)) } else { None }
    }
}

/// Bytes of an object that are read at once, at most.
pub const MOST_READ: usize = 96;

/// Part of an object in the memory of the process, apart from the stack. One call reads all that is wanted of it: most of what a read
/// costs is the call.
pub trait Object {
    /// Reads so many bytes, up to [`MOST_READ`], from an address on; whether that could be done.
    fn load(&mut self, address: u64, length: u8) -> bool;

    /// The word of what was loaded that begins at this byte, a multiple of 8; anything where there is none.
    fn word(&self, offset: u8) -> u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_what_kind_of_frame_they_are() {
        for (number, kind) in FrameKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
            assert_eq!(FrameKind::of_word(kind.word(0x7fff_1234_5678)), Some((kind, 0x7fff_1234_5678)));
            assert!(kind.words() <= FrameKind::MOST_WORDS);
        }
        assert_eq!(FrameKind::of_word(u64::MAX), None);
        assert_eq!(FrameKind::Native.word(0x1234), 0x1234, "a stack without runtimes is its addresses");
    }
}
