//! Methods: class, name, file and line, from the metaspace.

use tracer_ebpf::runtime::hotspot as walked;

use super::super::{ProcessMemory, Unread, Words};
use super::{
    compressed_numbers::line_of,
    layout::{Layout, SourceFile},
};

/// The longest name that is believed; the format of class files has 16 bits for it.
const LONGEST_SYMBOL: usize = u16::MAX as usize;
/// The largest ConstMethod that is believed. Bytecode has 64 KiB at most.
const LARGEST_METHOD: u64 = 1 << 20;
/// A class refers to its own name twice: itself, and by its ConstantPool. When it is unloaded, its memory and its names keep their contents
/// until they are used again, each name at another time, and something else may still refer to one (1 of 3 references was left, by what was
/// seen). So a class whose name has fewer is no more.
const REFERENCES_OF_CLASS: u64 = 2;
/// Lowest bits of an entry of a ConstantPool, that are not part of the pointer.
const ENTRY_FLAGS: u64 = 3;

/// What a method says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodText {
    /// Its class, `java.lang.String`.
    pub class: String,
    /// Its name.
    pub name: String,
    /// The file that it is written in, without its directory.
    pub file: Option<String>,
    /// The line of the bytecode that was asked for.
    pub line: Option<u32>,
}

/// A method in the memory of a process.
pub struct MethodReader<'a> {
    pub layout: &'a Layout,
    pub memory: &'a dyn ProcessMemory,
}

impl MethodReader<'_> {
    /// What the method at an address says of itself, and of one of its bytecodes; none for native methods. `class` is what told its
    /// class from others when it was walked, if that is known: another one is not believed.
    ///
    /// # Errors
    /// When there is no method, or another one.
    pub fn read(&self, method: u64, class: Option<u64>, bytecode: Option<u32>) -> Result<MethodText, Unread> {
        let text = self.try_read(method, class, bytecode);
        text.ok_or(Unread::Moved)
    }

    fn try_read(&self, method: u64, class: Option<u64>, bytecode: Option<u32>) -> Option<MethodText> {
        let (walked, of) = (&self.layout.walked.method, &self.layout.method);
        let const_method = self.pointer(method, walked.const_method.into())?;
        let constants = self.pointer(const_method, walked.constants.into())?;
        let holder = self.pointer(constants, walked.holder.into())?;
        let name_of_class = self.pointer(holder, walked.name.into())?;
        let identity = || walked.class_identity(name_of_class, &Words(self.memory));
        if class.is_some() && class != identity() {
            return None;
        }
        let class = self.symbol(name_of_class, REFERENCES_OF_CLASS)?;
        let name = self.entry(constants, self.u16(const_method, of.name_index)?)?;
        let file = match of.source_file {
            SourceFile::ConstantPool(offset) => self.u16(constants, offset)?,
            SourceFile::Class(offset) => self.u16(holder, offset)?,
        };
        let file = (file != 0).then(|| self.entry(constants, file)).flatten();
        let line = bytecode.and_then(|bytecode| self.line(const_method, bytecode));
        Some(MethodText { class: class_name_of(&class), name, file, line })
    }

    fn line(&self, const_method: u64, bytecode: u32) -> Option<u32> {
        let of = &self.layout.method;
        let code_size = self.u16(const_method, of.code_size)?;
        if bytecode >= code_size.into() || self.u16(const_method, of.flags)? & of.has_lines == 0 {
            return None;
        }
        let size = 8 * u64::from(self.u32(const_method, of.size)?);
        let table = u64::from(self.layout.walked.method.const_method_size) + u64::from(code_size);
        let length = size.checked_sub(table).filter(|_| size <= LARGEST_METHOD)?;
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        self.memory.read_bytes(const_method.wrapping_add(table), &mut bytes).then_some(())?;
        line_of(&bytes, bytecode, self.layout.number_base)
    }

    /// An entry of a ConstantPool that is a Symbol.
    fn entry(&self, constants: u64, index: u16) -> Option<String> {
        let of = &self.layout.method;
        if u32::from(index) >= self.u32(constants, of.constant_pool_length)? {
            return None;
        }
        let entry = constants.wrapping_add(of.constant_pool_size + 8 * u64::from(index));
        self.symbol(self.memory.read(entry)? & !ENTRY_FLAGS, 1)
    }

    /// The text of a Symbol, which is UTF-8 but for characters that take two units of UTF-16; none of one with fewer references.
    fn symbol(&self, symbol: u64, references: u64) -> Option<String> {
        let of = &self.layout.walked.method;
        let head = self.memory.read(symbol)?;
        if head >> references_bits(of) & 0xffff < references {
            return None;
        }
        let length = usize::from((head >> (of.name_length_bits & 63)) as u16);
        let mut bytes = vec![0; length];
        let is_read = length > 0 && length < LONGEST_SYMBOL;
        (is_read && self.memory.read_bytes(symbol.wrapping_add(of.name_text.into()), &mut bytes))
            .then_some(())?;
        // Of anything else than a Symbol it would be unlikely to be text.
        let text = String::from_utf8_lossy(&bytes).into_owned();
        text.chars().all(|character| !character.is_control()).then_some(text)
    }

    /// A pointer to an object of the metaspace.
    fn pointer(&self, object: u64, offset: u64) -> Option<u64> {
        self.memory.read(object.wrapping_add(offset)).filter(|&pointer| pointer != 0 && pointer % 8 == 0)
    }

    fn u16(&self, object: u64, offset: u64) -> Option<u16> {
        let mut bytes = [0; 2];
        self.memory.read_bytes(object.wrapping_add(offset), &mut bytes).then(|| u16::from_le_bytes(bytes))
    }

    fn u32(&self, object: u64, offset: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.memory.read_bytes(object.wrapping_add(offset), &mut bytes).then(|| u32::from_le_bytes(bytes))
    }
}

/// How many bits of a Symbol's first word are before the number of those that refer to it, 16 bits: it is beside the two that are described.
fn references_bits(of: &walked::Method) -> u8 {
    let others = [of.name_number_bits, of.name_length_bits];
    [0, 16, 32].into_iter().find(|bits| !others.contains(bits)).unwrap_or(0)
}

/// `java/lang/String` as people write it. Classes that are made at run time have a number behind their name, another one in each run.
fn class_name_of(symbol: &str) -> String {
    let name = symbol.find("+0x").or_else(|| symbol.find("/0x")).map_or(symbol, |end| &symbol[..end]);
    name.replace('/', ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_refers_to_a_symbol_stands_beside_its_number_and_its_length() {
        let of = |name_number_bits, name_length_bits| walked::Method {
            name_number_bits,
            name_length_bits,
            ..walked::Method::default()
        };
        assert_eq!(references_bits(&of(32, 0)), 16, "Java 11");
        assert_eq!(references_bits(&of(16, 32)), 0, "since 15");
    }

    #[test]
    fn classes_are_named_as_people_write_them() {
        for (symbol, name) in [
            ("java/lang/String", "java.lang.String"),
            ("App$$Lambda+0x000077cd5c000a00", "App$$Lambda"),
            ("App$$Lambda$14+0x0000000800c03000", "App$$Lambda$14"),
            ("a/b/LambdaForm$MH/0x0000000800067040", "a.b.LambdaForm$MH"),
        ] {
            assert_eq!(class_name_of(symbol), name);
        }
    }
}
