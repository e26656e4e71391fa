//! Where an ELF file keeps its call frame information.

use std::borrow::Cow;
use std::ops::Range;

use gimli::{BaseAddresses, EhFrameHdr, LittleEndian, Pointer};
use object::elf::{
    CompressionHeader64, DT_NEEDED, ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD, EM_X86_64, FileHeader64, PF_X,
    PT_GNU_EH_FRAME, PT_INTERP, PT_LOAD, ProgramHeader64,
};
use object::read::elf::ElfFile64;
use object::read::elf::{
    CompressionHeader, Dyn as _, FileHeader, ProgramHeader, SectionHeader, SectionTable,
};
use object::{
    CompressedData, CompressionFormat, Endianness, Object as _, ObjectSymbol as _, ReadRef, RelocationTarget,
    SymbolKind,
};

use super::TableError;
use super::instructions::{CodeBytes, MAX_CODE, addresses_taken};

/// The largest section that is decompressed; a hostile file could otherwise ask for any amount of memory.
const MAX_DECOMPRESSED: u64 = 256 << 20;

/// Which section the frames are described in; they differ in detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Flavour {
    EhFrame,
    DebugFrame,
}

/// A section of call frame information.
pub(super) struct Section<'data> {
    pub flavour: Flavour,
    pub data: Cow<'data, [u8]>,
    pub bases: BaseAddresses,
}

/// What the table is made from.
pub(super) struct Elf<'data> {
    /// Bytes of the file.
    pub length: u64,
    /// The svmas of executable code, ascending; nothing outside of them is code.
    pub code: Vec<Range<u64>>,
    /// Where a thread begins to run in it: the entry point of a program or of the dynamic linker.
    pub entry: Option<u64>,
    /// What the first function of a coroutine returns to (glibc's `__start_context`): it has no caller.
    pub coroutine_end: Option<u64>,
    /// Code that calls C on another stack than its own: the function of Go's runtime for it.
    pub switches: Option<Range<u64>>,
    /// By preference: of functions that begin together, the first holds.
    pub sections: Vec<Section<'data>>,
    /// What there is to read besides in a file that needs no others.
    pub standalone: Option<Standalone<'data>>,
}

/// The code of a file that needs no others (the dynamic linker, a static program), some of which is described by its instructions.
pub(super) struct Standalone<'data> {
    pub code: Vec<CodeBytes<'data>>,
    /// Where functions begin, as far as symbols and relocations tell.
    pub entries: Vec<u64>,
}

type Header = FileHeader64<Endianness>;
type Sections<'data> = SectionTable<'data, Header>;

/// Reads the headers. A file without section headers is served by its program headers, as at run time.
pub(super) fn read(bytes: &[u8]) -> Result<Elf<'_>, TableError> {
    let not_elf = |error: object::Error| TableError::NotElf(error.to_string());
    let header = Header::parse(bytes).map_err(not_elf)?;
    let endian = header.endian().map_err(not_elf)?;
    if header.e_machine(endian) != EM_X86_64 || endian != Endianness::Little {
        return Err(TableError::OtherMachine);
    }
    let segments = header.program_headers(endian, bytes).map_err(not_elf)?;
    let table = header.sections(endian, bytes).unwrap_or_default();
    let bases = section_bases(&table, endian);
    let mut sections = Vec::new();
    let eh_frame = eh_frame_section(&table, endian, bytes, &bases)
        .or_else(|| eh_frame_segment(segments, endian, bytes, &bases));
    // Go describes functions that switch stacks as if they did not.
    let is_go = is_go(&table, endian);
    let is_described = eh_frame.is_some() && is_go;
    sections.extend(eh_frame);
    // A program whose own code has no other may be linked with files that do.
    sections.extend(debug_frame(&table, endian, bytes, bases).filter(|_| !is_described));
    let length = bytes.len() as u64;
    let entry =
        starts_threads(segments, endian, bytes).then(|| header.e_entry(endian)).filter(|&entry| entry != 0);
    let standalone = entry.and_then(|entry| standalone(&table, segments, endian, bytes, entry));
    let coroutine_end = coroutine_end(segments, endian, bytes);
    let switches = is_go.then(|| calls_c(bytes)).flatten();
    let code = executable(segments, endian, length);
    Ok(Elf { length, code, entry, coroutine_end, switches, sections, standalone })
}

/// glibc's `makecontext` puts the address of `__start_context` under the first function of a coroutine. No symbol names that, and its
/// frame information says nothing of the byte before it, where callers are looked up; but it begins as no other function does: it
/// takes its stack from `rbx`.
fn coroutine_end(segments: &[ProgramHeader64<Endianness>], endian: Endianness, bytes: &[u8]) -> Option<u64> {
    /// `makecontext` has 250 bytes.
    const LENGTH: usize = 512;
    const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
    const MOV_RBX_RSP: &[u8] = &[0x48, 0x89, 0xdc];
    let code_at = |svma: u64| {
        segments.iter().filter(|segment| is_executable(segment, endian)).find_map(|segment| {
            let offset = usize::try_from(svma.checked_sub(segment.p_vaddr(endian))?).ok()?;
            segment.data(endian, bytes).ok()?.get(offset..)
        })
    };
    let is_end = |svma: &u64| {
        let code = code_at(*svma).unwrap_or_default();
        code.strip_prefix(ENDBR64).unwrap_or(code).starts_with(MOV_RBX_RSP)
    };
    let file = ElfFile64::<Endianness>::parse(bytes).ok()?;
    let makecontext = file.dynamic_symbols().chain(file.symbols()).find(|symbol| {
        symbol.is_definition() && matches!(symbol.name_bytes(), Ok(b"makecontext" | b"__makecontext"))
    })?;
    let svma = makecontext.address();
    let code = code_at(svma)?;
    addresses_taken(&code[..code.len().min(LENGTH)], svma).find(is_end)
}

/// The function of Go's runtime that switches to a stack for C and calls it. It is called with a frame pointer, and leaves that alone.
fn calls_c(bytes: &[u8]) -> Option<Range<u64>> {
    let file = ElfFile64::<Endianness>::parse(bytes).ok()?;
    let named =
        |name: &[u8]| file.symbols().find(|symbol| symbol.name_bytes() == Ok(name) && symbol.size() > 0);
    // Since Go 1.17 the plain name is that of a function that calls this one.
    let function = named(b"runtime.asmcgocall.abi0").or_else(|| named(b"runtime.asmcgocall"))?;
    Some(function.address()..function.address().checked_add(function.size())?)
}

/// A C library that says nothing of its frames (musl) is in files that need no others: itself, or a program that it is part of.
fn standalone<'data>(
    table: &Sections<'data>,
    segments: &'data [ProgramHeader64<Endianness>],
    endian: Endianness,
    bytes: &'data [u8],
    entry: u64,
) -> Option<Standalone<'data>> {
    let needs_others = segments.iter().any(|segment| segment.p_type(endian) == PT_INTERP);
    // Go's functions move between stacks, and keep frame pointers.
    if needs_others || is_go(table, endian) {
        return None;
    }
    let executable = segments.iter().filter(|segment| is_executable(segment, endian));
    let code = executable.filter_map(|segment| {
        Some(CodeBytes { svma: segment.p_vaddr(endian), bytes: segment.data(endian, bytes).ok()? })
    });
    let code: Vec<_> = code.collect();
    if code.iter().map(|code| code.bytes.len()).sum::<usize>() > MAX_CODE {
        return None;
    }
    let file = ElfFile64::<Endianness>::parse(bytes).ok()?;
    let functions = file.symbols().chain(file.dynamic_symbols());
    let functions = functions.filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition());
    let pointers = file.dynamic_relocations().into_iter().flatten();
    let pointers = pointers.filter(|(_, relocation)| relocation.target() == RelocationTarget::Absolute);
    let mut entries: Vec<u64> = functions
        .map(|symbol| symbol.address())
        .chain(pointers.map(|(_, relocation)| relocation.addend().cast_unsigned()))
        .chain([entry])
        .collect();
    entries.sort_unstable();
    entries.dedup();
    Some(Standalone { code, entries })
}

/// Whether Go made it: that is the table that its own runtime walks stacks by.
fn is_go(table: &Sections<'_>, endian: Endianness) -> bool {
    table.section_by_name(endian, b".gopclntab").is_some()
}

/// The executable segments of a file: from which part of it code is mapped, and at which svma.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodeSegments(Vec<(Range<u64>, u64)>);

impl CodeSegments {
    /// Those of an ELF file; none of what is no ELF file.
    #[must_use]
    pub fn of(elf: &[u8]) -> Self {
        Self::read(elf).unwrap_or_default()
    }

    fn read(elf: &[u8]) -> Option<Self> {
        let header = Header::parse(elf).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, elf).ok()?;
        let executable = segments.iter().filter(|segment| is_executable(segment, endian));
        let ranges = executable.filter_map(|segment| {
            let offset = segment.p_offset(endian);
            Some((offset..offset.checked_add(segment.p_filesz(endian))?, segment.p_vaddr(endian)))
        });
        Some(Self(ranges.collect()))
    }

    /// What the loader added to the file's addresses, for a mapping of it or of a part of it: `svma = avma - bias`. `start` is where
    /// the mapping begins, `file_offset` where it begins in the file, both as in `/proc/PID/maps`. `None` when the file has no
    /// executable segment there.
    #[must_use]
    pub fn load_bias(&self, start: u64, file_offset: u64) -> Option<u64> {
        self.0.iter().find_map(|(file, svma)| {
            // The kernel maps whole pages: the mapping may begin before the segment does.
            let covers = file.start & !(MIN_PAGE - 1) <= file_offset && file_offset < file.end;
            covers.then(|| start.wrapping_sub(svma.wrapping_add(file_offset.wrapping_sub(file.start))))
        })
    }
}

/// Whether the file is a program or the dynamic linker. A library may name an entry point, too, but it is just where its code
/// begins; what tells it apart is that it needs others and names no interpreter.
fn starts_threads(segments: &[ProgramHeader64<Endianness>], endian: Endianness, bytes: &[u8]) -> bool {
    let has_interpreter = segments.iter().any(|segment| segment.p_type(endian) == PT_INTERP);
    let dynamic = segments.iter().find_map(|segment| segment.dynamic(endian, bytes).ok()?);
    let needs_others =
        dynamic.is_some_and(|dynamic| dynamic.iter().any(|entry| entry.tag(endian) == DT_NEEDED));
    has_interpreter || !needs_others
}

/// The smallest unit of mapping on x86_64.
const MIN_PAGE: u64 = 4096;

fn is_executable(segment: &ProgramHeader64<Endianness>, endian: Endianness) -> bool {
    segment.p_type(endian) == PT_LOAD && segment.p_flags(endian).contains(PF_X)
}

/// The executable part of the file, clamped to bytes that it really has.
fn executable(segments: &[ProgramHeader64<Endianness>], endian: Endianness, length: u64) -> Vec<Range<u64>> {
    let mut ranges: Vec<_> = segments
        .iter()
        .filter(|segment| is_executable(segment, endian))
        .filter_map(|segment| {
            let start = segment.p_vaddr(endian);
            let end = start.checked_add(segment.p_filesz(endian).min(length))?;
            (start < end).then_some(start..end)
        })
        .collect();
    ranges.sort_unstable_by_key(|range| range.start);
    ranges
}

/// What pointers in `.eh_frame` can be relative to.
fn section_bases(table: &Sections<'_>, endian: Endianness) -> BaseAddresses {
    let address = |name: &[u8]| Some(table.section_by_name(endian, name)?.1.sh_addr(endian));
    let mut bases = BaseAddresses::default();
    if let Some(text) = address(b".text") {
        bases = bases.set_text(text);
    }
    if let Some(got) = address(b".got") {
        bases = bases.set_got(got);
    }
    bases
}

fn eh_frame_section<'data>(
    table: &Sections<'data>,
    endian: Endianness,
    bytes: &'data [u8],
    bases: &BaseAddresses,
) -> Option<Section<'data>> {
    let (_, section) = table.section_by_name(endian, b".eh_frame")?;
    let data = section.data(endian, bytes).ok().filter(|data| !data.is_empty())?;
    let bases = bases.clone().set_eh_frame(section.sh_addr(endian));
    Some(Section { flavour: Flavour::EhFrame, data: Cow::Borrowed(data), bases })
}

/// `.eh_frame` found as the C++ runtime finds it: its header has a segment of its own, and points at it.
fn eh_frame_segment<'data>(
    segments: &[ProgramHeader64<Endianness>],
    endian: Endianness,
    bytes: &'data [u8],
    bases: &BaseAddresses,
) -> Option<Section<'data>> {
    let header = segments.iter().find(|segment| segment.p_type(endian) == PT_GNU_EH_FRAME)?;
    let bases = bases.clone().set_eh_frame_hdr(header.p_vaddr(endian));
    let parsed = EhFrameHdr::new(header.data(endian, bytes).ok()?, LittleEndian).parse(&bases, 8).ok()?;
    let Pointer::Direct(start) = parsed.eh_frame_ptr() else { return None };
    let data = segments.iter().filter(|segment| segment.p_type(endian) == PT_LOAD).find_map(|segment| {
        let offset = start.checked_sub(segment.p_vaddr(endian))?;
        segment.data(endian, bytes).ok()?.get(usize::try_from(offset).ok()?..)
    })?;
    let bases = bases.set_eh_frame(start);
    Some(Section { flavour: Flavour::EhFrame, data: Cow::Borrowed(data), bases })
}

fn debug_frame<'data>(
    table: &Sections<'data>,
    endian: Endianness,
    bytes: &'data [u8],
    bases: BaseAddresses,
) -> Option<Section<'data>> {
    let (_, section) = table.section_by_name(endian, b".debug_frame")?;
    let data = match section.compression(endian, bytes).ok()? {
        None => Cow::Borrowed(section.data(endian, bytes).ok()?),
        Some((header, offset, size)) => decompress(header, endian, bytes.read_bytes_at(offset, size).ok()?)?,
    };
    Some(Section { flavour: Flavour::DebugFrame, data, bases })
}

fn decompress<'data>(
    header: &CompressionHeader64<Endianness>,
    endian: Endianness,
    data: &'data [u8],
) -> Option<Cow<'data, [u8]>> {
    let format = match header.ch_type(endian) {
        ELFCOMPRESS_ZLIB => CompressionFormat::Zlib,
        ELFCOMPRESS_ZSTD => CompressionFormat::Zstandard,
        _ => return None,
    };
    let uncompressed_size = header.ch_size(endian);
    if uncompressed_size > MAX_DECOMPRESSED {
        return None;
    }
    CompressedData { format, data, uncompressed_size }.decompress().ok()
}
