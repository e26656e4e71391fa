//! The parts of an ELF file that the plan reads: its executable segments, and the functions that its symbol tables name.
//!
//! The file is the target's and is not trusted: every offset in it is checked, and what is read is bounded by the size
//! of the file and of the catalog.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use object::LittleEndian;
use object::elf;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, Rela, SectionHeader, Sym, SymbolTable};

use super::PlanError;
use super::api::{Api, ApiId};
use super::catalog::{Catalog, UNSUPPORTED};

pub(super) type File<'data> = ElfFile64<'data, LittleEndian>;

/// No allocator has a tenth as many functions.
const MAX_FUNCTIONS: usize = 1024;

/// An executable segment.
struct CodeSegment<'data> {
    svma: u64,
    file_offset: u64,
    bytes: &'data [u8],
}

/// An x86_64 ELF file.
pub(super) struct ElfObject<'data> {
    file: File<'data>,
    data: &'data [u8],
    segments: Vec<CodeSegment<'data>>,
}

/// The names that one address has in the catalog.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// Most canonical first.
    pub(super) apis: BTreeSet<ApiId>,
    /// The largest size that a symbol states; 0 when none does.
    pub(super) size: u64,
}

/// What the symbol tables say about allocator functions.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    /// By the address of the function, as the file states it.
    pub(super) functions: BTreeMap<u64, Named>,
    /// Names that stand for something else than a function to probe, and why.
    pub(super) unusable: BTreeMap<String, &'static str>,
}

impl<'data> ElfObject<'data> {
    pub(super) fn parse(data: &'data [u8]) -> Result<Self, PlanError> {
        match data {
            [0x7f, b'E', b'L', b'F', class, encoding, ..] => {
                if (*class, *encoding) != (elf::ELFCLASS64.0, elf::ELFDATA2LSB.0) {
                    return Err(PlanError::Architecture);
                }
            }
            _ => return Err(PlanError::NotElf),
        }
        let file = File::parse(data)?;
        if file.elf_header().e_machine(LittleEndian) != elf::EM_X86_64 {
            return Err(PlanError::Architecture);
        }
        let segments = executable_segments(&file, data)?;
        Ok(Self { file, data, segments })
    }

    /// The bytes from an address to the end of its executable segment; none when no such segment has the address.
    pub(super) fn code_at(&self, svma: u64) -> Option<&'data [u8]> {
        let (segment, offset) = self.locate(svma)?;
        segment.bytes.get(offset..)
    }

    /// The place in the file of an address in an executable segment.
    pub(super) fn file_offset(&self, svma: u64) -> Option<u64> {
        let (segment, offset) = self.locate(svma)?;
        segment.file_offset.checked_add(offset as u64)
    }

    /// Every executable segment: its address and its bytes.
    pub(super) fn executable(&self) -> impl Iterator<Item = (u64, &'data [u8])> {
        self.segments.iter().map(|segment| (segment.svma, segment.bytes))
    }

    fn locate(&self, svma: u64) -> Option<(&CodeSegment<'data>, usize)> {
        self.segments.iter().find_map(|segment| {
            let offset = usize::try_from(svma.checked_sub(segment.svma)?).ok()?;
            (offset < segment.bytes.len()).then_some((segment, offset))
        })
    }

    /// Finds the catalog's functions in both symbol tables. The dynamic one is all that a stripped library has; the
    /// full one also knows what a linker script or hidden visibility keeps private.
    pub(super) fn allocator_symbols(&self, catalog: &Catalog) -> Result<Symbols, PlanError> {
        let mut symbols = Symbols::default();
        for table in [self.file.elf_dynamic_symbol_table(), self.file.elf_symbol_table()] {
            let Some(names) = self.names_of(table) else { continue };
            for symbol in table.iter() {
                symbols.visit(symbol, names, catalog);
            }
            if symbols.functions.len() > MAX_FUNCTIONS {
                return Err(PlanError::TooManyFunctions);
            }
        }
        Ok(symbols)
    }

    /// The address of every defined function symbol for which `wanted` holds.
    pub(super) fn symbol_addresses(&self, wanted: impl Fn(u64) -> bool) -> Vec<u64> {
        [self.file.elf_dynamic_symbol_table(), self.file.elf_symbol_table()]
            .iter()
            .flat_map(|table| table.iter())
            .filter(|symbol| is_defined_code(symbol))
            .map(|symbol| symbol.st_value(LittleEndian))
            .filter(|&svma| wanted(svma))
            .collect()
    }

    /// The catalog's functions that this file calls in other files, or in itself through the linkage table: by the
    /// address of the word into which the loader writes the function's address.
    pub(super) fn imports(&self, catalog: &Catalog) -> HashMap<u64, ApiId> {
        let table = self.file.elf_dynamic_symbol_table();
        let Some(names) = self.names_of(table) else { return HashMap::new() };
        let relocations = self.file.elf_section_table().iter().filter_map(|section| {
            let (relocations, _) = section.rela(LittleEndian, self.data).ok()??;
            Some(relocations)
        });
        let import = |relocation: &elf::Rela64<LittleEndian>| {
            let kind = relocation.r_type(LittleEndian, false);
            if kind != elf::R_X86_64_JUMP_SLOT && kind != elf::R_X86_64_GLOB_DAT {
                return None;
            }
            let symbol = table.symbol(relocation.symbol(LittleEndian, false)?).ok()?;
            let name = name_at(names, symbol.st_name(LittleEndian), catalog.longest_name())?;
            Some((relocation.r_offset(LittleEndian), catalog.find(name)?))
        };
        relocations.flatten().filter_map(import).collect()
    }

    /// The whole file.
    pub(super) fn data(&self) -> &'data [u8] {
        self.data
    }

    /// What the loader writes into a word of the linkage table: a function's address. None when no relocation says so.
    pub(super) fn slot_target(&self, slot: u64) -> Option<SlotTarget> {
        let table = self.file.elf_dynamic_symbol_table();
        let relocations = self.file.elf_section_table().iter().filter_map(|section| {
            let (relocations, _) = section.rela(LittleEndian, self.data).ok()??;
            Some(relocations)
        });
        let relocation =
            relocations.flatten().find(|relocation| relocation.r_offset(LittleEndian) == slot)?;
        let kind = relocation.r_type(LittleEndian, false);
        if kind != elf::R_X86_64_JUMP_SLOT && kind != elf::R_X86_64_GLOB_DAT {
            return None;
        }
        let symbol = table.symbol(relocation.symbol(LittleEndian, false)?).ok()?;
        Some(match symbol.st_shndx(LittleEndian) {
            elf::SHN_UNDEF => SlotTarget::Elsewhere,
            _ => SlotTarget::Here(symbol.st_value(LittleEndian)),
        })
    }

    /// Those of these functions that the file defines: address and size.
    pub(super) fn functions_named<'name>(&self, wanted: &[&'name str]) -> HashMap<&'name str, (u64, u64)> {
        let longest = wanted.iter().map(|name| name.len()).max().unwrap_or(0);
        let mut found = HashMap::new();
        for table in [self.file.elf_dynamic_symbol_table(), self.file.elf_symbol_table()] {
            let names = self.names_of(table).unwrap_or_default();
            for symbol in table.iter().filter(|symbol| is_defined_code(symbol)) {
                let name = name_at(names, symbol.st_name(LittleEndian), longest);
                if let Some(name) =
                    name.and_then(|name| wanted.iter().find(|wanted| wanted.as_bytes() == name))
                {
                    found.insert(*name, (symbol.st_value(LittleEndian), symbol.st_size(LittleEndian)));
                }
            }
        }
        found
    }

    /// What a word of the file has in memory when the loader is done: an address of this file.
    pub(super) fn word_at_start(&self, svma: u64) -> Option<u64> {
        let relocations = self.file.elf_section_table().iter().filter_map(|section| {
            let (relocations, _) = section.rela(LittleEndian, self.data).ok()??;
            Some(relocations)
        });
        let relocation = relocations.flatten().find(|relocation| relocation.r_offset(LittleEndian) == svma);
        let Some(relocation) = relocation else { return self.word_in_file(svma) };
        let addend = relocation.r_addend(LittleEndian) as u64;
        match relocation.r_type(LittleEndian, false) {
            elf::R_X86_64_RELATIVE => Some(addend),
            elf::R_X86_64_GLOB_DAT | elf::R_X86_64_64 | elf::R_X86_64_JUMP_SLOT => {
                let table = self.file.elf_dynamic_symbol_table();
                let symbol = table.symbol(relocation.symbol(LittleEndian, false)?).ok()?;
                let is_here = symbol.st_shndx(LittleEndian) != elf::SHN_UNDEF;
                is_here.then(|| symbol.st_value(LittleEndian).wrapping_add(addend))
            }
            _ => None,
        }
    }

    fn word_in_file(&self, svma: u64) -> Option<u64> {
        self.file.elf_program_headers().iter().find_map(|header| {
            if header.p_type(LittleEndian) != elf::PT_LOAD {
                return None;
            }
            let offset = usize::try_from(svma.checked_sub(header.p_vaddr(LittleEndian))?).ok()?;
            let bytes = header.data(LittleEndian, self.data).ok()?;
            Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
        })
    }

    /// The names of all functions that the file defines.
    pub(super) fn function_names(&self) -> impl Iterator<Item = &'data str> {
        /// As long as a symbol that can be declared.
        const LONGEST: usize = 200;
        let tables = [self.file.elf_dynamic_symbol_table(), self.file.elf_symbol_table()];
        tables.into_iter().flat_map(|table| {
            let names = self.names_of(table).unwrap_or_default();
            let functions = table.iter().filter(|symbol| {
                symbol.st_type() == elf::STT_FUNC && symbol.st_shndx(LittleEndian) != elf::SHN_UNDEF
            });
            functions.filter_map(|symbol| {
                str::from_utf8(name_at(names, symbol.st_name(LittleEndian), LONGEST)?).ok()
            })
        })
    }

    /// The file as it was parsed.
    pub(super) fn elf(&self) -> &File<'data> {
        &self.file
    }

    pub(super) fn names_of(
        &self,
        table: &SymbolTable<'data, elf::FileHeader64<LittleEndian>>,
    ) -> Option<&'data [u8]> {
        let section = self.file.elf_section_table().section(table.string_section()).ok()?;
        section.data(LittleEndian, self.data).ok()
    }
}

/// Where a word of the linkage table points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotTarget {
    /// To this address of the same file, unless another file defines the same symbol.
    Here(u64),
    /// Into another file.
    Elsewhere,
}

impl Named {
    /// The function that stands for all of them.
    pub(super) fn canonical<'catalog>(&self, catalog: &'catalog Catalog) -> Option<(ApiId, &'catalog Api)> {
        let &id = self.apis.first()?;
        Some((id, catalog.get(id)?))
    }
}

impl Symbols {
    /// The address of a function.
    pub(super) fn address_of(&self, api: ApiId) -> Option<u64> {
        self.functions.iter().find_map(|(&svma, named)| named.apis.contains(&api).then_some(svma))
    }

    /// A function was found by other means than its name.
    pub(super) fn add(&mut self, svma: u64, api: ApiId) {
        self.functions.entry(svma).or_default().apis.insert(api);
    }

    /// Functions are not to be probed.
    pub(super) fn forget(&mut self, apis: &[ApiId]) {
        for named in self.functions.values_mut() {
            named.apis.retain(|api| !apis.contains(api));
        }
        self.functions.retain(|_, named| !named.apis.is_empty());
    }

    /// The function that an address is in.
    pub(super) fn function_with(&self, svma: u64) -> Option<ApiId> {
        let (start, named) = self.functions.range(..=svma).next_back()?;
        named.apis.first().copied().filter(|_| svma - start < named.size)
    }

    /// Whether the file defines this function, usable or not.
    pub(super) fn has(&self, catalog: &Catalog, api: ApiId) -> bool {
        let named = || catalog.get(api).is_some_and(|api| self.unusable.contains_key(api.name.as_ref()));
        self.address_of(api).is_some() || named()
    }

    fn visit(&mut self, symbol: &elf::Sym64<LittleEndian>, names: &[u8], catalog: &Catalog) {
        let kind = symbol.st_type();
        let is_function = kind == elf::STT_FUNC || kind == elf::STT_GNU_IFUNC;
        if !is_function || symbol.st_shndx(LittleEndian) == elf::SHN_UNDEF {
            return;
        }
        let Some(name) = name_at(names, symbol.st_name(LittleEndian), catalog.longest_name()) else { return };
        let Some(api) = catalog.find(name) else {
            if let Some((name, why)) = UNSUPPORTED.iter().find(|(known, _)| known.as_bytes() == name) {
                self.unusable.insert((*name).to_owned(), why);
            }
            return;
        };
        if kind == elf::STT_GNU_IFUNC {
            let why = "its symbol is of a function that chooses the real one at load time";
            self.unusable.insert(String::from_utf8_lossy(name).into_owned(), why);
            return;
        }
        let named = self.functions.entry(symbol.st_value(LittleEndian)).or_default();
        named.apis.insert(api);
        named.size = named.size.max(symbol.st_size(LittleEndian));
    }
}

/// The name at an offset of a string table, without its symbol version; none when it is longer than `longest`. Reads no
/// further than that, however long the string that the file claims.
pub(super) fn name_at(names: &[u8], offset: u32, longest: usize) -> Option<&[u8]> {
    const END: [u8; 2] = [0, b'@'];
    let rest = names.get(usize::try_from(offset).ok()?..)?;
    let rest = &rest[..rest.len().min(longest + 1)];
    let end = rest.iter().position(|byte| END.contains(byte))?;
    Some(&rest[..end])
}

fn is_defined_code(symbol: &elf::Sym64<LittleEndian>) -> bool {
    let code = matches!(symbol.st_type(), elf::STT_FUNC | elf::STT_GNU_IFUNC | elf::STT_NOTYPE);
    code && symbol.st_shndx(LittleEndian) != elf::SHN_UNDEF
}

fn executable_segments<'data>(
    file: &File<'data>,
    data: &'data [u8],
) -> Result<Vec<CodeSegment<'data>>, PlanError> {
    let mut segments = Vec::new();
    let mut total = 0;
    for header in file.elf_program_headers() {
        let flags = header.p_flags(LittleEndian);
        if header.p_type(LittleEndian) != elf::PT_LOAD || flags.0 & elf::PF_X.0 == 0 {
            continue;
        }
        let bytes = header.data(LittleEndian, data).map_err(|()| PlanError::Segment)?;
        total += bytes.len();
        // Code is read once from end to end; a file that maps itself many times over could make that take hours.
        if total > data.len() {
            return Err(PlanError::Segment);
        }
        let (file_offset, svma) = (header.p_offset(LittleEndian), header.p_vaddr(LittleEndian));
        segments.push(CodeSegment { svma, file_offset, bytes });
    }
    Ok(segments)
}
