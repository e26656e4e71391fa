//! One object file of the target: where its code is, and what is there.

use std::cell::OnceCell;
use std::fmt::Write;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized};
use object::{Object as _, ObjectSection, ObjectSegment, ReadCache, SectionFlags, SegmentFlags, elf};

use super::debug_file::{self, DebugLinks};
use super::demangle::{Name, demangle};
use super::process::Process;

/// Mappings begin and end on pages, segments of a file need not.
const PAGE: u64 = 4096;

/// An ELF file that stays open: what was mapped from it can be named after it was deleted and the target has exited.
pub(super) struct ObjectFile {
    /// In the target's mount namespace.
    path: PathBuf,
    headers: Headers,
    file: File,
    symbols: OnceCell<Vec<Symbols>>,
}

/// A function, or one that was inlined into the function of the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) name: Name,
    pub(super) file: Option<String>,
    pub(super) line: Option<u32>,
    pub(super) inlined: bool,
}

impl ObjectFile {
    /// Reads the headers of `file`, found at `path`; fails when it is not ELF.
    pub(super) fn open(file: File, path: PathBuf) -> io::Result<Self> {
        let headers = Headers::read(&file)?;
        Ok(Self { path, headers, file, symbols: OnceCell::new() })
    }

    /// The build id in hex.
    pub(super) fn build_id(&self) -> Option<String> {
        self.headers.links.build_id.as_deref().map(to_hex)
    }

    /// The address, as the file states addresses, of the byte at `file_offset`; none outside executable segments.
    pub(super) fn svma(&self, file_offset: u64) -> Option<u64> {
        let segment = self.headers.segments.iter().find(|segment| segment.pages().contains(&file_offset))?;
        Some(file_offset.wrapping_sub(segment.file.start).wrapping_add(segment.svma))
    }

    /// The functions at `svma`, the innermost inlined one first; none when nothing is known of that address.
    pub(super) fn functions(&self, svma: u64, process: &Process) -> Vec<Function> {
        let sources = self.symbols.get_or_init(|| self.open_symbols(process));
        sources.iter().find_map(|source| source.functions(svma, &self.headers.code)).unwrap_or_default()
    }

    /// The sources of names, best first.
    fn open_symbols(&self, process: &Process) -> Vec<Symbols> {
        let debug_file = (!self.headers.has_debug_info)
            .then(|| debug_file::find(&self.path, &self.headers.links, process));
        let separate = debug_file.flatten().and_then(|file| Symbols::open(&file, true));
        let embedded = self.headers.has_debug_info.then(|| Symbols::open(&self.file, true)).flatten();
        let tables = Symbols::open(&self.file, false);
        [separate, embedded, tables].into_iter().flatten().collect()
    }
}

/// What the headers of an ELF file say.
struct Headers {
    segments: Vec<Segment>,
    /// The addresses of its sections of code.
    code: Vec<Range<u64>>,
    links: DebugLinks,
    has_debug_info: bool,
}

/// An executable segment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    /// Where it is in the file.
    file: Range<u64>,
    /// Address of its first byte.
    svma: u64,
}

impl Segment {
    /// The part of the file that the loader maps for it.
    fn pages(&self) -> Range<u64> {
        self.file.start / PAGE * PAGE..self.file.end.div_ceil(PAGE).saturating_mul(PAGE)
    }
}

impl Headers {
    fn read(file: &File) -> io::Result<Self> {
        let cache = ReadCache::new(file);
        let elf = object::File::parse(&cache).map_err(io::Error::other)?;
        if elf.format() != object::BinaryFormat::Elf {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let executable =
            |flags| matches!(flags, SegmentFlags::Elf { p_flags, .. } if p_flags.contains(elf::PF_X));
        let segments = elf.segments().filter(|segment| executable(segment.flags())).map(|segment| {
            let (start, size) = segment.file_range();
            Segment { file: start..start.saturating_add(size), svma: segment.address() }
        });
        let holds_code = |flags| matches!(flags, SectionFlags::Elf { sh_flags, .. } if sh_flags.contains(elf::SHF_EXECINSTR));
        let code = elf.sections().filter(|section| holds_code(section.flags()));
        Ok(Self {
            segments: segments.collect(),
            code: code
                .map(|section| section.address()..section.address().saturating_add(section.size()))
                .collect(),
            links: DebugLinks {
                build_id: elf.build_id().ok().flatten().map(<[u8]>::to_vec),
                link: elf
                    .gnu_debuglink()
                    .ok()
                    .flatten()
                    .map(|(name, crc)| (PathBuf::from(String::from_utf8_lossy(name).into_owned()), crc)),
            },
            has_debug_info: elf.section_by_name(".debug_info").is_some(),
        })
    }
}

/// One ELF file with symbols, as blazesym reads it.
struct Symbols {
    symbolizer: blazesym::symbolize::Symbolizer,
    source: Source<'static>,
}

impl Symbols {
    /// Opens the symbol tables of `file`, and with `debug_info` its DWARF too.
    fn open(file: &File, debug_info: bool) -> Option<Self> {
        let mut elf = Elf::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
        elf.debug_syms = debug_info;
        let symbolizer = blazesym::symbolize::Symbolizer::builder()
            // The descriptor's number can be reused once blazesym has mapped the file.
            .enable_auto_reload(false)
            // We need to know how a name was mangled, and bound what comes of it.
            .enable_demangling(false)
            .build();
        let symbols = Self { symbolizer, source: elf.into() };
        // The first look-up maps the file and finds out whether it can be read at all.
        match symbols.symbolizer.symbolize_single(&symbols.source, Input::VirtOffset(0)) {
            Ok(_) => Some(symbols),
            Err(error) => {
                log::debug!("cannot use the symbols of {:?}: {error:#}", symbols.source);
                None
            }
        }
    }

    fn functions(&self, svma: u64, code: &[Range<u64>]) -> Option<Vec<Function>> {
        match self.symbolizer.symbolize_single(&self.source, Input::VirtOffset(svma)) {
            Ok(Symbolized::Sym(symbol)) if covers(&symbol, svma, code) => Some(functions(&symbol)),
            Ok(_) => None,
            Err(error) => {
                log::debug!("no symbol for {svma:#x} of {:?}: {error:#}", self.source);
                None
            }
        }
    }
}

/// Whether `symbol` really is about the code at `svma`. blazesym respects the sizes of symbols; one of `.symtab`
/// without a size (hand-written assembly) it extends to the next symbol, wherever that is: we let it end with its
/// section.
fn covers(symbol: &Sym<'_>, svma: u64, code: &[Range<u64>]) -> bool {
    // DWARF gives a function of several ranges neither size nor address.
    let bounded = symbol.size.is_some() || symbol.addr == 0;
    !symbol.name.is_empty()
        && (bounded || code.iter().any(|section| section.contains(&symbol.addr) && section.contains(&svma)))
}

/// blazesym names the function first, then what was inlined into it, from the outside in.
fn functions(symbol: &Sym<'_>) -> Vec<Function> {
    let inlined = symbol.inlined.iter().rev();
    let inlined = inlined.map(|function| Function::new(&function.name, function.code_info.as_ref(), true));
    inlined.chain([Function::new(&symbol.name, symbol.code_info.as_deref(), false)]).collect()
}

impl Function {
    fn new(symbol: &str, location: Option<&CodeInfo<'_>>, inlined: bool) -> Self {
        Self {
            name: demangle(symbol),
            file: location.map(|location| location.to_path().to_string_lossy().into_owned()),
            // DWARF's line 0 is code of no line.
            line: location.and_then(|location| location.line).filter(|&line| line != 0),
            inlined,
        }
    }
}

pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
