//! The image that is mapped into a process that runs already, so that it samples its allocations: the sampler without a loader's help
//! (`tracer-sampler`, feature `gate`). The tracer carries it; here it is read, and made ready for the place where it is to be.
//!
//! Each byte of the file is at the same place in memory, so the file is mapped in one piece, and only what it writes to is made
//! writable afterwards.

use std::ops::Range;

use anyhow::{Context as _, Result, bail, ensure};
use object::{
    Object as _, ObjectSymbol as _, RelocationFlags,
    elf::{self, PT_LOAD, PT_TLS},
    read::elf::{ElfFile64, ProgramHeader as _},
};

/// What the image calls the next definition of a function, in front of the function's name.
const NEXT: &str = "tracer_gate_next_";
/// Random bytes, which the image draws by.
const SEED: &str = "tracer_gate_seed";
/// Bytes of a page.
const PAGE: u64 = 4096;
/// Bytes of a pointer.
const WORD: usize = size_of::<u64>();

/// An image, as the linker made it.
#[derive(Debug)]
pub struct Image<'a> {
    content: &'a [u8],
    writable: Vec<Range<u64>>,
    /// The words that hold addresses in the image: where they are, and the offset of what they point to.
    addresses: Vec<(u64, u64)>,
    functions: Vec<(&'a str, u64)>,
    words: Vec<(&'a str, u64)>,
}

impl Image<'static> {
    /// The image that this tracer carries.
    ///
    /// # Errors
    /// When there is none for this architecture.
    pub fn embedded() -> Result<Self> {
        let content: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tracer-gate.so"));
        ensure!(!content.is_empty(), "a running process can be made to sample on x86-64 only");
        Self::parse(content)
    }
}

impl<'a> Image<'a> {
    /// Reads an image.
    ///
    /// # Errors
    /// When it cannot be mapped in one piece, or is not ready without a loader.
    pub fn parse(content: &'a [u8]) -> Result<Self> {
        let file =
            ElfFile64::<object::Endianness>::parse(content).context("the sampler's image is no ELF file")?;
        let endian = file.endian();
        let mut writable = Vec::new();
        for header in file.elf_program_headers() {
            ensure!(header.p_type(endian) != PT_TLS, "the sampler's image wants storage in each thread");
            if header.p_type(endian) != PT_LOAD {
                continue;
            }
            let (start, size) = (header.p_vaddr(endian), header.p_memsz(endian));
            ensure!(
                header.p_offset(endian) == start
                    && header.p_filesz(endian) == size
                    && start.is_multiple_of(PAGE),
                "a segment of the sampler's image is not in memory as it is in the file"
            );
            if header.p_flags(endian).0 & elf::PF_W.0 != 0 {
                writable.push(start..(start + size).next_multiple_of(PAGE));
            }
        }
        let mut addresses = Vec::new();
        for (place, relocation) in file.dynamic_relocations().into_iter().flatten() {
            let RelocationFlags::Elf { r_type: elf::R_X86_64_RELATIVE } = relocation.flags() else {
                bail!("the sampler's image wants a loader: {relocation:?}");
            };
            ensure!(
                writable.iter().any(|range| range.contains(&place)),
                "a word of the sampler's image that is relocated cannot be written to"
            );
            addresses.push((place, relocation.addend() as u64));
        }
        let (mut functions, mut words) = (Vec::new(), Vec::new());
        for symbol in file.symbols().filter(|symbol| symbol.is_global()) {
            let name = symbol.name().context("a symbol of the sampler's image has no name")?;
            ensure!(!symbol.is_undefined(), "the sampler's image lacks {name}");
            let of_its_kind =
                if symbol.kind() == object::SymbolKind::Text { &mut functions } else { &mut words };
            of_its_kind.push((name, symbol.address()));
        }
        Ok(Self { content, writable, addresses, functions, words })
    }

    /// How much of the address space it takes: bytes, whole pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        (self.content.len() as u64).next_multiple_of(PAGE)
    }

    /// What it writes to, from its beginning: whole pages.
    #[must_use]
    pub fn writable(&self) -> &[Range<u64>] {
        &self.writable
    }

    /// The offset of its function of this name.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<u64> {
        offset(&self.functions, name)
    }

    /// The offset of the pointer by which its function of this name goes on.
    #[must_use]
    pub fn next(&self, name: &str) -> Option<u64> {
        self.words.iter().find_map(|&(word, offset)| (word.strip_prefix(NEXT)? == name).then_some(offset))
    }

    /// The offset of a word by its name.
    #[must_use]
    pub fn word(&self, name: &str) -> Option<u64> {
        offset(&self.words, name)
    }

    /// What is to be mapped at this base, where its functions go on at these addresses. Functions that are not named must not be called.
    ///
    /// # Errors
    /// When it has no such function.
    pub fn at(&self, base: u64, next: &[(&str, u64)], seed: u64) -> Result<Vec<u8>> {
        ensure!(base.is_multiple_of(PAGE), "the sampler's image must begin at a page, not at {base:#x}");
        let mut content = self.content.to_vec();
        for &(place, offset) in &self.addresses {
            write(&mut content, place, base.wrapping_add(offset))?;
        }
        for &(name, address) in next {
            let place = self.next(name).with_context(|| format!("the sampler's image has no {name}"))?;
            write(&mut content, place, address)?;
        }
        let place = self.word(SEED).context("the sampler's image takes no seed")?;
        write(&mut content, place, seed)?;
        Ok(content)
    }
}

/// Where a symbol is.
fn offset(symbols: &[(&str, u64)], name: &str) -> Option<u64> {
    symbols.iter().find_map(|&(symbol, offset)| (symbol == name).then_some(offset))
}

/// Writes a word.
fn write(content: &mut [u8], place: u64, value: u64) -> Result<()> {
    let at = usize::try_from(place)?;
    let word = content.get_mut(at..).and_then(|rest| rest.get_mut(..WORD));
    word.context("a word of the sampler's image is beyond its end")?.copy_from_slice(&value.to_le_bytes());
    Ok(())
}

#[cfg(all(test, target_arch = "x86_64"))]
mod in_process;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use object::ObjectSection as _;

    use super::*;

    pub(super) const FUNCTIONS: [&str; 9] = [
        "malloc",
        "calloc",
        "realloc",
        "free",
        "memalign",
        "aligned_alloc",
        "posix_memalign",
        "valloc",
        "pvalloc",
    ];

    fn image() -> Image<'static> {
        Image::embedded().unwrap()
    }

    #[test]
    fn the_file_is_mapped_in_one_piece() {
        let image = image();
        let file = ElfFile64::<object::Endianness>::parse(image.content).unwrap();
        let endian = file.endian();
        let loaded = file.elf_program_headers().iter().filter(|header| header.p_type(endian) == PT_LOAD);
        let pages: Vec<_> = loaded
            .map(|header| {
                header.p_offset(endian) / PAGE
                    ..(header.p_offset(endian) + header.p_filesz(endian)).div_ceil(PAGE)
            })
            .collect();
        assert_eq!(pages[0].start, 0);
        assert!(
            pages.is_sorted_by(|one, next| one.end <= next.start),
            "no page is in two segments: {pages:?}"
        );
        assert_eq!(image.writable().len(), 1);
        assert!(image.writable()[0].start > 0 && image.writable()[0].end <= image.pages());
        assert!(image.content.len() < 500 << 10, "{} bytes", image.content.len());
    }

    #[test]
    fn it_has_what_tracer_looks_for() {
        let image = image();
        for name in FUNCTIONS {
            assert!(image.function(name).is_some() && image.next(name).is_some(), "{name}");
        }
        assert_eq!(image.function("reallocarray"), None);
        for name in ["tracer_sampler_mean", "tracer_sampler_dropped", "otel_memory_alloc_semaphore"] {
            assert!(
                image.word(name).is_some()
                    || image.content.windows(name.len()).any(|text| text == name.as_bytes())
            );
        }
        let file = object::File::parse(image.content).unwrap();
        for section in
            [".note.gnu.build-id", ".eh_frame", ".eh_frame_hdr", ".note.stapsdt", ".symtab", ".probes"]
        {
            assert!(file.section_by_name(section).is_some_and(|section| section.size() > 0), "{section}");
        }
        for section in [".bss", ".tbss", ".init_array", ".relr.dyn", ".debug_info"] {
            assert!(file.section_by_name(section).is_none(), "{section}");
        }
        assert_eq!(file.imports().unwrap().count(), 0);
        let notes = file.section_by_name(".note.stapsdt").unwrap().data().unwrap().to_vec();
        let count = |name: &[u8]| notes.windows(name.len()).filter(|text| *text == name).count();
        assert_eq!((count(b"\0alloc\0"), count(b"\0free\0")), (8, 2));
    }

    #[test]
    fn it_is_made_ready_for_its_place() {
        let image = image();
        let base = 0x7f00_1234_5000;
        let content = image.at(base, &[("malloc", 0x1111), ("free", 0x2222)], 0x3333).unwrap();
        let word = |place: u64| u64::from_le_bytes(content[place as usize..][..8].try_into().unwrap());
        assert_eq!(word(image.next("malloc").unwrap()), 0x1111);
        assert_eq!(word(image.next("free").unwrap()), 0x2222);
        assert_eq!(word(image.next("calloc").unwrap()), 0);
        assert_eq!(word(image.word(SEED).unwrap()), 0x3333);
        for &(place, offset) in &image.addresses {
            assert_eq!(word(place), base + offset);
        }
        let code = ..image.writable()[0].start as usize;
        assert_eq!(content[code], image.content[code]);
        assert_eq!(
            format!("{:#}", image.at(base, &[("new", 1)], 0).unwrap_err()),
            "the sampler's image has no new"
        );
        assert!(image.at(base + 8, &[], 0).is_err());
    }
}
