//! What HotSpot says of itself: tables of its types, fields and constants, made for debuggers (`vmStructs.hpp` of OpenJDK).
//!
//! The tables are found by exported symbols, `gHotSpotVM…`. They are made of pointers, so they are read from the process, not from the file.

use std::collections::HashMap;

use object::{Object as _, ObjectSymbol as _};

use super::super::ProcessMemory;

/// Entries that are read of a table at most; versions have some 2,000.
const MOST_ENTRIES: u64 = 10_000;
/// The longest name that is read.
const LONGEST_NAME: usize = 256;

const STRUCTS: [&str; 6] = [
    "gHotSpotVMStructs",
    "gHotSpotVMStructEntryArrayStride",
    "gHotSpotVMStructEntryTypeNameOffset",
    "gHotSpotVMStructEntryFieldNameOffset",
    "gHotSpotVMStructEntryOffsetOffset",
    "gHotSpotVMStructEntryAddressOffset",
];
const TYPES: [&str; 4] = [
    "gHotSpotVMTypes",
    "gHotSpotVMTypeEntryArrayStride",
    "gHotSpotVMTypeEntryTypeNameOffset",
    "gHotSpotVMTypeEntrySizeOffset",
];
const CONSTANTS: [&str; 4] = [
    "gHotSpotVMIntConstants",
    "gHotSpotVMIntConstantEntryArrayStride",
    "gHotSpotVMIntConstantEntryNameOffset",
    "gHotSpotVMIntConstantEntryValueOffset",
];

/// Where the words are, in the file, that lead to the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbols {
    structs: [u64; 6],
    types: [u64; 4],
    constants: [u64; 4],
}

impl Symbols {
    /// Those of an ELF file; `None` when it has no HotSpot.
    #[must_use]
    pub fn of_elf(bytes: &[u8]) -> Option<Self> {
        let elf = object::File::parse(bytes).ok()?;
        let prefix = b"gHotSpotVM";
        let exported = elf.dynamic_symbols().filter(object::ObjectSymbol::is_definition);
        let named = exported.filter_map(|symbol| Some((symbol.name_bytes().ok()?, symbol.address())));
        let found: HashMap<&[u8], u64> = named.filter(|(name, _)| name.starts_with(prefix)).collect();
        Some(Self {
            structs: addresses(&found, STRUCTS)?,
            types: addresses(&found, TYPES)?,
            constants: addresses(&found, CONSTANTS)?,
        })
    }
}

fn addresses<const N: usize>(found: &HashMap<&[u8], u64>, names: [&str; N]) -> Option<[u64; N]> {
    let mut addresses = [0; N];
    for (address, name) in addresses.iter_mut().zip(names) {
        *address = *found.get(name.as_bytes())?;
    }
    Some(addresses)
}

/// The tables, as a process has them.
#[derive(Clone, Debug, Default)]
pub struct VmStructs {
    /// By type and name: the offset of a field, and the address of a static one.
    fields: HashMap<(String, String), (u64, u64)>,
    /// By type: its size.
    sizes: HashMap<String, u64>,
    constants: HashMap<String, i32>,
}

impl VmStructs {
    /// Reads them; `None` when they cannot be read. `bias` is what the loader added to the file's addresses.
    pub fn read(symbols: &Symbols, bias: u64, memory: &dyn ProcessMemory) -> Option<Self> {
        let word = |svma: u64| memory.read(svma.wrapping_add(bias));
        let mut strings = Strings { memory, pages: HashMap::new() };
        let mut read = Self::default();
        let [table, stride, type_name, field_name, offset, address] = words(symbols.structs, word)?;
        for entry in entries(table, stride, type_name, memory) {
            let (Some(owner), Some(name)) =
                (strings.at(entry.wrapping_add(type_name)), strings.at(entry.wrapping_add(field_name)))
            else {
                continue;
            };
            let at = |offset| memory.read(entry.wrapping_add(offset));
            read.fields.insert((owner, name), (at(offset)?, at(address)?));
        }
        let [table, stride, type_name, size] = words(symbols.types, word)?;
        for entry in entries(table, stride, type_name, memory) {
            if let Some(name) = strings.at(entry.wrapping_add(type_name)) {
                read.sizes.insert(name, memory.read(entry.wrapping_add(size))?);
            }
        }
        let [table, stride, name, value] = words(symbols.constants, word)?;
        for entry in entries(table, stride, name, memory) {
            if let Some(name) = strings.at(entry.wrapping_add(name)) {
                read.constants.insert(name, memory.read(entry.wrapping_add(value))? as u32 as i32);
            }
        }
        Some(read)
    }

    /// The offset of a field of an object.
    #[must_use]
    pub fn offset(&self, owner: &str, field: &str) -> Option<u64> {
        self.field(owner, field).map(|&(offset, _)| offset)
    }

    /// The address of a static field.
    #[must_use]
    pub fn address(&self, owner: &str, field: &str) -> Option<u64> {
        self.field(owner, field).map(|&(_, address)| address).filter(|&address| address != 0)
    }

    fn field(&self, owner: &str, field: &str) -> Option<&(u64, u64)> {
        self.fields.get(&(owner.to_owned(), field.to_owned()))
    }

    /// The size of a type in bytes.
    #[must_use]
    pub fn size(&self, of: &str) -> Option<u64> {
        self.sizes.get(of).copied()
    }

    /// A constant.
    #[must_use]
    pub fn constant(&self, name: &str) -> Option<i32> {
        self.constants.get(name).copied()
    }
}

fn words<const N: usize>(addresses: [u64; N], word: impl Fn(u64) -> Option<u64>) -> Option<[u64; N]> {
    let mut words = [0; N];
    for (read, address) in words.iter_mut().zip(addresses) {
        *read = word(address)?;
    }
    // The first is the table, the second the distance of its entries.
    (words[0] != 0 && (8..4096).contains(&words[1])).then_some(words)
}

/// The entries of a table, which ends with one that has no name.
fn entries(table: u64, stride: u64, name: u64, memory: &dyn ProcessMemory) -> impl Iterator<Item = u64> + '_ {
    let all = (0..MOST_ENTRIES).map(move |index| table.wrapping_add(stride.wrapping_mul(index)));
    all.take_while(move |entry| memory.read(entry.wrapping_add(name)).is_some_and(|name| name != 0))
}

/// Strings of a process: many are on few pages.
struct Strings<'a> {
    memory: &'a dyn ProcessMemory,
    pages: HashMap<u64, Option<Vec<u8>>>,
}

const PAGE: u64 = 4096;

impl Strings<'_> {
    /// The string that the word at an address points to.
    fn at(&mut self, pointer: u64) -> Option<String> {
        let start = self.memory.read(pointer).filter(|&start| start != 0)?;
        let mut bytes = Vec::new();
        while bytes.len() < LONGEST_NAME {
            let address = start + bytes.len() as u64;
            let offset = usize::try_from(address % PAGE).ok()?;
            let rest = &self.page(address - address % PAGE)?[offset..];
            let end = rest.iter().position(|&byte| byte == 0);
            bytes.extend(&rest[..end.unwrap_or(rest.len())]);
            if end.is_some() {
                return String::from_utf8(bytes).ok();
            }
        }
        None
    }

    fn page(&mut self, address: u64) -> Option<&[u8]> {
        let read = || {
            let mut page = vec![0; PAGE as usize];
            self.memory.read_bytes(address, &mut page).then_some(page)
        };
        self.pages.entry(address).or_insert_with(read).as_deref()
    }
}
