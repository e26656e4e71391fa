//! One object file of the target: where its code is, and what is there.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer};
use object::{Object as _, ObjectSection, ObjectSegment, ReadCache, SectionFlags, SegmentFlags, elf};

use super::debug_file::{self, DebugLinks, to_hex};
use super::demangle::{Name, demangle};
use super::exports::Exports;
use crate::target::Target;
use crate::unwind::function_ranges;

/// Mappings begin and end on pages, segments of a file need not.
const PAGE: u64 = 4096;

/// An ELF file that stays open: what was mapped from it can be named after it was deleted and the target has exited.
pub(super) struct ObjectFile {
    /// Below the target's root.
    path: PathBuf,
    headers: Headers,
    file: File,
    names: OnceCell<NameSources>,
    /// Where its functions are by its frame information; read when one has no name.
    functions: OnceCell<Vec<Range<u64>>>,
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
        Ok(Self { path, headers, file, names: OnceCell::new(), functions: OnceCell::new() })
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

    /// Whether the code at `file_offset` is what the kernel lets a signal handler return to: it does nothing but call
    /// `rt_sigreturn`. C libraries give it no symbol.
    pub(super) fn returns_from_signal(&self, file_offset: u64) -> bool {
        /// `mov $15, %rax; syscall`
        const RESTORER: [u8; 9] = [0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];
        let mut code = [0; RESTORER.len()];
        self.file.read_exact_at(&mut code, file_offset).is_ok() && code == RESTORER
    }

    /// The functions at `svma`, the innermost inlined one first; none when nothing is known of that address.
    pub(super) fn functions(&self, svma: u64, target: Option<&Target>) -> Vec<Function> {
        let names = self.names.get_or_init(|| self.open_names(target));
        let table = names.sources.iter().find_map(|source| source.table_symbol(svma, &self.headers.code));
        let described = names.sources.iter().find_map(|source| source.debug_symbol(svma, &self.headers.code));
        let start =
            [&described, &table].into_iter().flatten().map(|symbol| symbol.addr).find(|&addr| addr != 0);
        let exported = start.and_then(|start| names.exports.get(start, &self.file));
        let Some(symbol) = described.as_ref().or(table.as_ref()) else { return Vec::new() };
        functions(
            symbol,
            best_name(&symbol.name, table.as_ref().map(|table| &*table.name), exported.as_deref()),
        )
    }

    /// Where the function at `svma` begins, as the frame information says, which outlives `strip`: exceptions need it.
    pub(super) fn function_begin(&self, svma: u64) -> Option<u64> {
        let functions = self.functions.get_or_init(|| {
            read_whole(&self.file).map(|elf| function_ranges(&elf)).unwrap_or_else(|error| {
                log::debug!("cannot read the functions of {}: {error}", self.path.display());
                Vec::new()
            })
        });
        let at = functions.partition_point(|function| function.end <= svma);
        functions.get(at).map(|function| function.start).filter(|&start| start <= svma)
    }

    fn open_names(&self, target: Option<&Target>) -> NameSources {
        let has_debug_info = self.headers.has_debug_info;
        let debug_file =
            if has_debug_info { None } else { debug_file::find(&self.path, &self.headers.links, target) };
        let debug_file = debug_file.and_then(|file| Symbols::open(&file, true));
        let own = Symbols::open(&self.file, has_debug_info);
        NameSources {
            sources: [debug_file, own].into_iter().flatten().collect(),
            exports: Exports::read(&self.file).unwrap_or_else(|error| {
                log::debug!("cannot read the exports of {}: {error}", self.path.display());
                Exports::default()
            }),
        }
    }
}

fn read_whole(mut file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Where an object's names come from.
struct NameSources {
    /// Best first.
    sources: Vec<Symbols>,
    exports: Exports,
}

/// The name of a function, of those that it has. A mangled one says the most (GCC describes local C++ functions by
/// their bare name); the exported one is what callers write (`puts`, where the C library's debug information has
/// `__GI__IO_puts`).
fn best_name<'a>(described: &'a str, table: Option<&'a str>, exported: Option<&'a str>) -> &'a str {
    let mangled = |name: &&str| demangle(name).language.is_some();
    [Some(described), table].into_iter().flatten().find(mangled).or(exported).unwrap_or(described)
}

/// What the headers of an ELF file say.
struct Headers {
    segments: Vec<ExecutableSegment>,
    /// The addresses of its sections of code.
    code: Vec<Range<u64>>,
    links: DebugLinks,
    has_debug_info: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ExecutableSegment {
    /// Where it is in the file.
    file: Range<u64>,
    /// Address of its first byte.
    svma: u64,
}

impl ExecutableSegment {
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
            ExecutableSegment { file: start..start.saturating_add(size), svma: segment.address() }
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
                    .map(|(name, crc)| (PathBuf::from(OsStr::from_bytes(name)), crc)),
            },
            has_debug_info: elf.section_by_name(".debug_info").is_some(),
        })
    }
}

/// A file that holds the symbols and the debug information of another.
pub(super) struct DebugFile {
    code: Vec<Range<u64>>,
    symbols: Symbols,
}

impl DebugFile {
    /// Opens it; none when it cannot be read.
    pub(super) fn open(file: &File) -> Option<Self> {
        Some(Self { code: Headers::read(file).ok()?.code, symbols: Symbols::open(file, true)? })
    }

    /// The functions at `svma`, the innermost inlined one first.
    pub(super) fn functions(&self, svma: u64) -> Vec<Function> {
        let table = self.symbols.table_symbol(svma, &self.code);
        let described = self.symbols.debug_symbol(svma, &self.code);
        let Some(symbol) = described.as_ref().or(table.as_ref()) else { return Vec::new() };
        functions(symbol, best_name(&symbol.name, table.as_ref().map(|table| &*table.name), None))
    }
}

/// One ELF file with symbols, as blazesym reads it.
struct Symbols {
    symbolizer: Symbolizer,
    tables: Source<'static>,
    debug_info: Option<Source<'static>>,
}

impl Symbols {
    /// Opens the symbol tables of `file`, and with `debug_info` its DWARF too.
    fn open(file: &File, debug_info: bool) -> Option<Self> {
        let elf = Elf::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let tables = Elf { debug_syms: false, ..elf.clone() };
        let symbolizer = Symbolizer::builder()
            // The descriptor's number can be reused once blazesym has mapped the file.
            .enable_auto_reload(false)
            // We need to know how a name was mangled, and bound what comes of it.
            .enable_demangling(false)
            .build();
        // The first look-up maps the file and finds out whether it can be read at all.
        let opens = |source: &Source<'_>| look_up(&symbolizer, source, 0).is_some();
        let (tables, debug_info) = (Source::from(tables), debug_info.then(|| Source::from(elf)));
        let debug_info = debug_info.filter(&opens);
        (opens(&tables) || debug_info.is_some()).then_some(Self { symbolizer, tables, debug_info })
    }

    /// What the symbol tables say of the code at `svma`.
    fn table_symbol(&self, svma: u64, code: &[Range<u64>]) -> Option<Sym<'_>> {
        self.symbol(&self.tables, svma, code)
    }

    /// What the debug information says of the code at `svma`.
    fn debug_symbol(&self, svma: u64, code: &[Range<u64>]) -> Option<Sym<'_>> {
        self.symbol(self.debug_info.as_ref()?, svma, code)
    }

    fn symbol(&self, source: &Source<'_>, svma: u64, code: &[Range<u64>]) -> Option<Sym<'_>> {
        let symbol = look_up(&self.symbolizer, source, svma)?.into_sym();
        symbol.filter(|symbol| covers(symbol, svma, code))
    }
}

/// Asks blazesym; none when it cannot read the file. It can panic on a corrupt one (0.2.7: a line table's index of a
/// file), and the target decides what its files hold.
fn look_up<'a>(symbolizer: &'a Symbolizer, source: &Source<'_>, svma: u64) -> Option<Symbolized<'a>> {
    let ask = || symbolizer.symbolize_single(source, Input::VirtOffset(svma));
    match panic::catch_unwind(AssertUnwindSafe(ask)) {
        Ok(Ok(answer)) => return Some(answer),
        Ok(Err(error)) => log::debug!("cannot look up {svma:#x} in {source:?}: {error:#}"),
        Err(_) => log::debug!("cannot look up {svma:#x} in {source:?}: it is corrupt"),
    }
    None
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

/// The functions at a symbol whose own name is `name`. blazesym has the function first, then what was inlined into
/// it, from the outside in.
fn functions(symbol: &Sym<'_>, name: &str) -> Vec<Function> {
    // One without a name (it is in a supplementary file that is missing) would tell nothing.
    let inlined = symbol.inlined.iter().rev().filter(|function| !function.name.is_empty());
    let inlined = inlined.map(|function| Function::new(&function.name, function.code_info.as_ref(), true));
    inlined.chain([Function::new(name, symbol.code_info.as_deref(), false)]).collect()
}

impl Function {
    /// What calls a signal handler, as debuggers call it.
    pub(super) fn signal_handler_called() -> Self {
        let name = demangle("<signal handler called>");
        Self { name, file: None, line: None, inlined: false }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_says_most_is_taken() {
        assert_eq!(best_name("__GI__IO_puts", Some("__GI__IO_puts"), Some("puts")), "puts");
        assert_eq!(best_name("push", Some("_ZN1S4pushEv"), None), "_ZN1S4pushEv");
        assert_eq!(best_name("_ZN1S4pushEv", Some("alias"), Some("c_alias")), "_ZN1S4pushEv");
        assert_eq!(best_name("local", Some("local.cold"), None), "local");
    }

    #[test]
    fn a_segment_is_mapped_in_whole_pages() {
        let segment = ExecutableSegment { file: 0x1234..0x2001, svma: 0x40_1234 };
        assert_eq!(segment.pages(), 0x1000..0x3000);
    }
}
