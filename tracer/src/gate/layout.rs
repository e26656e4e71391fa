//! What a gate puts into a process, and where: pure.
//!
//! From low to high addresses, one behind the other:
//!
//! | part | is |
//! |---|---|
//! | parked | the original pages, mapped a second time, so that they can be mapped again when the gate is closed |
//! | image | the sampler ([`Image`]) |
//! | ways | for each function, the code that leads to the sampler's, and the copy of its beginning by which the sampler calls it |
//! | copy | the copy of the original pages with the jumps, from where it is mapped over them |
//! | header | what this is, for whoever comes later |

use std::iter;

use anyhow::{Context as _, Result, bail, ensure};

use super::image::Image;
use crate::{
    model::{Address, AddressRange},
    plan::gate::GatePlan,
    target::Mapping,
};

/// A page.
pub const PAGE: u64 = 4096;
/// A jump reaches 2 GiB; what is led aside may lie at the other end of its own pages.
const REACH: u64 = 0x7000_0000;
/// Free addresses that are left on each side: what grows, grows there.
const MARGIN: u64 = 64 << 10;
/// The same below anonymous memory: it may be a stack that grows, of which the kernel wants 1 MiB free (`stack_guard_gap`).
const GUARD: u64 = 2 << 20;
/// So far below the main stack nothing is mapped, whatever its limit: the kernel keeps that free, too.
const STACK: u64 = 128 << 20;
/// A process has none beyond, unless it asks for them.
const END_OF_ADDRESSES: u64 = 0x7fff_ffff_f000;
/// More pages than this are not replaced.
const MOST_BYTES: u64 = 4 << 20;

const MARK: &[u8; 16] = b"tracer gate v1\0\0";

/// Where a gate is, as its header says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The first address of the pages that are replaced.
    pub place: Address,
    /// How many bytes of them.
    pub length: u64,
    /// Where the original pages are parked.
    pub parked: Address,
    /// Where the file of the gate begins: the image.
    pub image: Address,
    /// Where in the file the copy begins.
    pub copy_offset: u64,
    /// How long the file is.
    pub file_bytes: u64,
}

impl Layout {
    /// Where the copy is mapped when it is not in its place.
    #[must_use]
    pub const fn copy(&self) -> Address {
        Address(self.image.0 + self.copy_offset)
    }

    /// The pages that are replaced.
    #[must_use]
    pub const fn place_range(&self) -> AddressRange {
        self.range_at(self.place)
    }

    /// The original pages, parked.
    #[must_use]
    pub const fn parked_range(&self) -> AddressRange {
        self.range_at(self.parked)
    }

    /// The copy, when it is not in its place.
    #[must_use]
    pub const fn copy_range(&self) -> AddressRange {
        self.range_at(self.copy())
    }

    const fn range_at(&self, start: Address) -> AddressRange {
        AddressRange { start, end: Address(start.0 + self.length) }
    }

    /// The offset of the header in the file.
    #[must_use]
    pub const fn header_offset(file_bytes: u64) -> u64 {
        file_bytes - PAGE
    }

    fn header(&self) -> Vec<u8> {
        let words =
            [self.place.0, self.length, self.parked.0, self.image.0, self.copy_offset, self.file_bytes];
        let mut header = MARK.to_vec();
        words.iter().for_each(|word| header.extend(word.to_le_bytes()));
        header.resize(PAGE as usize, 0);
        header
    }

    /// Reads a header; none of what is none.
    #[must_use]
    pub fn parse(header: &[u8]) -> Option<Self> {
        let words = header.strip_prefix(MARK)?;
        let word = |at: usize| Some(u64::from_le_bytes(*words.get(8 * at..)?.first_chunk()?));
        Some(Self {
            place: Address(word(0)?),
            length: word(1)?,
            parked: Address(word(2)?),
            image: Address(word(3)?),
            copy_offset: word(4)?,
            file_bytes: word(5)?,
        })
    }
}

/// The code that is led aside: where it is, and what its pages have in the file.
#[derive(Debug)]
pub struct Code<'a> {
    /// What is replaced in it.
    pub plan: &'a GatePlan,
    /// Address in the process less address in the file.
    pub bias: u64,
    /// Where the replaced pages begin in the process.
    pub place: Address,
    /// What they have in the file.
    pub pages: &'a [u8],
}

impl Code<'_> {
    /// The pages that are to be replaced.
    #[must_use]
    pub const fn place_range(&self) -> AddressRange {
        AddressRange { start: self.place, end: Address(self.place.0 + self.pages.len() as u64) }
    }
}

/// The pages of a file that a plan touches: offset in the file, and how many bytes.
///
/// # Errors
/// When they are too far apart.
pub fn span(plan: &GatePlan) -> Result<(u64, u64)> {
    let ends = plan.functions.iter().map(|function| function.file_offset + u64::from(function.site.length));
    let start =
        plan.functions.iter().map(|function| function.file_offset).min().context("it has no function")?;
    let (start, end) = (start / PAGE * PAGE, ends.max().unwrap_or(start).next_multiple_of(PAGE));
    ensure!(end - start <= MOST_BYTES, "its allocator functions lie {} bytes apart", end - start);
    Ok((start, end - start))
}

/// How long the file of a gate is.
fn file_bytes(image: &Image<'_>, length: u64) -> u64 {
    image.pages() + PAGE + length + PAGE
}

/// Where a gate for this code can be.
///
/// # Errors
/// When there is no room near enough.
pub fn place(image: &Image<'_>, code: &Code<'_>, mappings: &[Mapping]) -> Result<Layout> {
    let length = code.pages.len() as u64;
    let file_bytes = file_bytes(image, length);
    let parked = free_range(length + file_bytes, code.place, mappings)
        .context("there is no free range of addresses within 2 GiB of its allocator")?;
    Ok(Layout {
        place: code.place,
        length,
        parked,
        image: Address(parked.0 + length),
        copy_offset: image.pages() + PAGE,
        file_bytes,
    })
}

/// A free range as near to the code as can be: below it, or, where the program has reserved all of that (a heap of 40 GiB), above it.
/// None in which the program's heap or its stack would grow.
fn free_range(bytes: u64, near: Address, mappings: &[Mapping]) -> Option<Address> {
    let (lowest, highest) =
        (near.0.saturating_sub(REACH).max(1 << 20), near.0.saturating_add(REACH).min(END_OF_ADDRESSES));
    let gap = |before: Option<&Mapping>, after: &Mapping| {
        let growth = match after {
            _ if after.is_named("[stack]") => STACK,
            _ if after.path().is_none() => GUARD,
            _ => MARGIN,
        };
        let start = before.map_or(0, |before| before.end.0).saturating_add(MARGIN).max(lowest);
        let end = after.start.0.saturating_sub(growth).min(highest);
        let is_of_heap = before.is_some_and(|before| before.is_named("[heap]"));
        (!is_of_heap).then_some(start.next_multiple_of(PAGE)..end / PAGE * PAGE)
    };
    let before = iter::once(None).chain(mappings.iter().map(Some));
    let gaps = before.zip(mappings).filter_map(|(before, after)| gap(before, after));
    let gaps: Vec<_> = gaps.filter(|gap| gap.end.saturating_sub(gap.start) >= bytes).collect();
    let below = gaps.iter().rev().find(|gap| gap.end <= near.0).map(|gap| gap.end - bytes);
    let above = || gaps.iter().find(|gap| gap.start >= near.0).map(|gap| gap.start);
    below.or_else(above).map(Address)
}

/// The file of a gate.
///
/// # Errors
/// When a jump does not reach, or an instruction cannot be moved.
pub fn content(image: &Image<'_>, code: &Code<'_>, layout: &Layout, seed: u64) -> Result<Vec<u8>> {
    let mut ways = Ways { at: layout.image.0 + image.pages(), bytes: Vec::new() };
    let mut copy = code.pages.to_vec();
    let mut next = Vec::new();
    for function in &code.plan.functions {
        let (name, site) = (function.name, &function.site);
        let sampler = image.function(name).with_context(|| format!("the sampler has no {name}"))?;
        let moved = |error| anyhow::anyhow!("the beginning of its {name} cannot be copied: {error}");
        let detour = ways.add(|at| site.detour(at, layout.image.0 + sampler)).map_err(moved)?;
        let entry = ways.add(|at| site.entry_copy(code.bias, at)).map_err(moved)?;
        next.push((name, entry));
        let jump = site.jump(code.bias, detour).map_err(moved)?;
        let start = code.bias.wrapping_add(site.address()).wrapping_sub(code.place.0) as usize;
        let replaced = copy.get_mut(start..start + jump.len()).context("a site lies outside of its pages")?;
        replaced.copy_from_slice(&jump);
    }
    if ways.bytes.len() as u64 > PAGE {
        bail!("the ways of a gate take {} bytes", ways.bytes.len());
    }
    let mut content = image.at(layout.image.0, &next, seed)?;
    content.resize(image.pages() as usize, 0);
    content.extend(ways.bytes);
    content.resize(layout.copy_offset as usize, 0);
    content.extend(copy);
    content.extend(layout.header());
    ensure!(content.len() as u64 == layout.file_bytes, "the parts of a gate do not fit");
    Ok(content)
}

/// Code, one piece behind the other.
struct Ways {
    at: u64,
    bytes: Vec<u8>,
}

impl Ways {
    fn add<E>(&mut self, code: impl FnOnce(u64) -> Result<Vec<u8>, E>) -> Result<u64, E> {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0xcc);
        let at = self.at + self.bytes.len() as u64;
        self.bytes.extend(code(at)?);
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::AddressRange, plan::gate::plan_gate};

    fn mapping(start: u64, end: u64, name: &str) -> Mapping {
        Mapping::made_up(AddressRange { start: Address(start), end: Address(end) }, "r-xp", name)
    }

    #[test]
    fn the_nearest_free_range_below_is_taken_with_a_margin() {
        let mappings = [
            mapping(0x40_0000, 0x50_0000, "/bin/x"),
            mapping(0x7000_0000, 0x7010_0000, "/lib/a"),
            // Too small a gap.
            mapping(0x7012_0000, 0x7020_0000, "/lib/b"),
            mapping(0x9000_0000, 0x9100_0000, "[stack]"),
        ];
        let near = Address(0x7015_0000);
        assert_eq!(free_range(0x1_0000, near, &mappings), Some(Address(0x7000_0000 - MARGIN - 0x1_0000)));
        assert_eq!(free_range(0x8000_0000, near, &mappings), None);
        // A program at the lowest addresses, as linkers put static ones.
        let at = free_range(0x6_0000, Address(0x40_1000), &mappings[..1]).unwrap();
        assert_eq!(at, Address(0x40_0000 - MARGIN - 0x6_0000));
    }

    /// Java with a heap of 40 GiB.
    #[test]
    fn a_range_above_is_taken_where_all_below_is_reserved() {
        let reserved = mapping(0x7f00_0000_0000, 0x7f0a_0000_0000, "");
        let libc = mapping(0x7f0a_0000_0000, 0x7f0a_0020_0000, "/lib/libc.so.6");
        let near = Address(0x7f0a_0002_8000);
        let free = |above: Mapping| free_range(0x6_0000, near, &[reserved.clone(), libc.clone(), above]);
        let next = Some(Address(0x7f0a_0020_0000 + MARGIN));
        assert_eq!(free(mapping(0x7f0a_1000_0000, 0x7f0a_1010_0000, "/lib/b")), next);
        // Too far away is only what does not begin near enough.
        assert_eq!(free(mapping(0x7ff0_0000_0000, 0x7ff1_0000_0000, "/lib/b")), next);
        assert_eq!(free(mapping(0x7f0a_0030_0000, 0x7f0b_0000_0000, "/lib/b")), next);
        assert_eq!(free(mapping(0x7f0a_0022_0000, 0x7f0b_0000_0000, "/lib/b")), None);
        // There its stack grows.
        assert_eq!(free(mapping(0x7f0a_0700_0000, 0x7f0a_0800_0000, "[stack]")), None);
        // And there its heap, of a program that is linked statically.
        let heap = mapping(0x7f0a_0020_0000, 0x7f0a_0021_0000, "[heap]");
        let stack = mapping(0x7ff0_0000_0000, 0x7ff1_0000_0000, "[stack]");
        assert_eq!(free_range(0x6_0000, near, &[reserved, libc, heap, stack]), None);
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let layout = Layout {
            place: Address(0x7000),
            length: 0x3000,
            parked: Address(0x1000),
            image: Address(0x4000),
            copy_offset: 0x2000,
            file_bytes: 0x9000,
        };
        assert_eq!(Layout::parse(&layout.header()), Some(layout));
        for cut in 0..64 {
            assert_eq!(Layout::parse(&layout.header()[..cut]), None);
        }
        assert_eq!(Layout::parse(&[0; 4096]), None);
    }

    /// The C library of this process.
    fn libc() -> Vec<u8> {
        let maps = std::fs::read("/proc/self/maps").unwrap();
        let mappings = crate::target::parse_maps(&maps);
        let libc =
            mappings.iter().find(|mapping| mapping.file_name().is_some_and(|name| name.starts_with("libc.")));
        std::fs::read(libc.and_then(Mapping::path).expect("it is linked dynamically")).unwrap()
    }

    #[test]
    fn the_copy_differs_from_the_original_by_whole_instructions() {
        let elf = libc();
        let plan = plan_gate(&elf).unwrap().expect("it has an allocator");
        let (offset, length) = span(&plan).unwrap();
        let pages = &elf[offset as usize..][..length as usize];
        let first = &plan.functions[0];
        let place = Address(0x7f00_0000_0000);
        let bias =
            place.0.wrapping_sub(offset).wrapping_add(first.file_offset).wrapping_sub(first.site.address());
        let code = Code { plan: &plan, bias, place, pages };
        let image = Image::embedded().unwrap();
        let layout =
            super::place(&image, &code, &[mapping(place.0, place.0 + length, "/lib/libc.so.6")]).unwrap();
        let content = content(&image, &code, &layout, 1).unwrap();
        assert_eq!(
            Layout::parse(&content[Layout::header_offset(layout.file_bytes) as usize..]),
            Some(layout)
        );
        let copy = &content[layout.copy_offset as usize..][..length as usize];
        let mut sites = vec![false; length as usize];
        for function in &plan.functions {
            let at = (function.file_offset - offset) as usize;
            let bytes = function.site.length as usize;
            sites[at..at + bytes].fill(true);
            assert_eq!(copy[at], 0xe9, "{}", function.name);
            let distance = i32::from_le_bytes(copy[at + 1..at + 5].try_into().unwrap());
            let to = (place.0 + at as u64 + 5).wrapping_add_signed(distance.into());
            let ways = layout.image.0 + image.pages()..layout.copy().0;
            assert!(ways.contains(&to), "{}", function.name);
        }
        let differs = |at: &usize| copy[*at] != pages[*at] && !sites[*at];
        assert_eq!((0..pages.len()).find(differs), None);
    }
}
