//! The probes with which a file tells of what it allocates: OpenTelemetry's contract, `otel_memory:alloc(ptr, size, weight)` and
//! `otel_memory:free(ptr)`, fired for the blocks that the process samples.
//!
//! USDT probes are notes in the section `.note.stapsdt` of an ELF file: the address of a `nop`, the address of a *semaphore* that a
//! listener counts up, provider, name, and where the arguments are (`8@%rdi -4@-20(%rbp) 8@$16`).
//! <https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation>

use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use object::{
    LittleEndian, elf,
    read::elf::{ProgramHeader, SectionHeader, Sym},
};
use tracer_ebpf::usdt::{Argument, Arguments, INSIDE, Location, NO_API, Register};

use super::{
    Omission, Skipped,
    api::ApiId,
    object::{ElfObject, Symbols, name_at},
};

/// The provider of the contract.
const PROVIDER: &str = "otel_memory";

/// The name of the sampler's setting, which tracer writes: mean bytes between samples.
const MEAN: &[u8] = b"tracer_sampler_mean";

/// What a file tells of its blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsdtProbes {
    /// Its probes, by ascending address.
    pub probes: Vec<UsdtProbe>,
    /// The address of the word that says how many bytes are between samples, as the file states it; none where the process chooses that.
    pub mean_svma: Option<u64>,
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsdtProbe {
    /// What it tells.
    pub event: UsdtEvent,
    /// The address of the instruction under it, as the file states it.
    pub svma: u64,
    /// Its offset in the file.
    pub file_offset: u64,
    /// Offset in the file of the semaphore that the kernel is to count up.
    pub semaphore: Option<u64>,
    /// Its arguments.
    pub arguments: Vec<Argument>,
    /// The same, as the note says it.
    pub format: String,
    /// The allocator function that it is in.
    pub function: Option<ApiId>,
    /// The instruction under it.
    pub instruction: String,
}

/// What a probe tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsdtEvent {
    /// A block was allocated.
    Alloc,
    /// A block is released.
    Free,
}

impl UsdtEvent {
    /// The probe's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alloc => "otel_memory:alloc",
            Self::Free => "otel_memory:free",
        }
    }

    /// Whether this is the name of one.
    #[must_use]
    pub fn is_one(name: &str) -> bool {
        [Self::Alloc, Self::Free].iter().any(|told| told.name() == name)
    }

    /// How many arguments it has to have.
    const fn arguments(self) -> usize {
        match self {
            Self::Alloc => Arguments::MOST,
            Self::Free => 1,
        }
    }
}

impl UsdtProbes {
    /// Whether the file tells of its blocks: of those that it allocates and of those that it releases.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let has = |event| self.probes.iter().any(|probe| probe.event == event);
        has(UsdtEvent::Alloc) && has(UsdtEvent::Free)
    }
}

impl UsdtProbes {
    /// Whether the file is tracer's own sampler, which has no allocator itself.
    pub(super) fn is_sampler(&self) -> bool {
        self.is_complete() && self.mean_svma.is_some()
    }
}

impl UsdtProbe {
    /// The number of the function that was called, for the probe's cookie.
    #[must_use]
    pub fn api(&self) -> u16 {
        self.function.map_or(NO_API, |id| id.0 | INSIDE)
    }
}

/// A note, as the file has it.
struct Note<'data> {
    location: u64,
    base: u64,
    semaphore: u64,
    provider: &'data str,
    name: &'data str,
    arguments: &'data str,
}

impl<'data> Note<'data> {
    /// Three addresses and three strings.
    fn parse(description: &'data [u8]) -> Option<Self> {
        let mut rest = description;
        let mut address = || {
            let (bytes, behind) = rest.split_first_chunk::<8>()?;
            rest = behind;
            Some(u64::from_le_bytes(*bytes))
        };
        let (location, base, semaphore) = (address()?, address()?, address()?);
        let mut strings = rest.split(|&byte| byte == 0).map(str::from_utf8);
        let mut string = || strings.next()?.ok();
        Some(Self {
            location,
            base,
            semaphore,
            provider: string()?,
            name: string()?,
            arguments: string().unwrap_or_default(),
        })
    }
}

/// Reads the notes of a file. What cannot be used is among the second.
pub(super) fn usdt_probes(object: &ElfObject<'_>, symbols: &Symbols) -> (UsdtProbes, Vec<Skipped>) {
    let (mut probes, mut skipped) = (Vec::new(), Vec::new());
    let moved = |note: &Note<'_>| stapsdt_base(object).map_or(0, |base| base.wrapping_sub(note.base));
    for note in notes(object).filter(|note| note.provider == PROVIDER) {
        let event = match note.name {
            "alloc" => UsdtEvent::Alloc,
            "free" => UsdtEvent::Free,
            _ => continue,
        };
        match probe(object, symbols, event, &note, moved(&note)) {
            Ok(probe) => probes.push(probe),
            Err(why) => {
                skipped.push(Skipped { name: event.name().to_owned(), why, omission: Omission::Unsupported })
            }
        }
    }
    probes.sort_by_key(|probe| probe.svma);
    (UsdtProbes { probes, mean_svma: mean_svma(object) }, skipped)
}

fn probe(
    object: &ElfObject<'_>,
    symbols: &Symbols,
    event: UsdtEvent,
    note: &Note<'_>,
    moved: u64,
) -> Result<UsdtProbe, String> {
    let svma = note.location.wrapping_add(moved);
    let place = object.code_at(svma).zip(object.file_offset(svma));
    let (code, file_offset) = place.ok_or("the place of its probe is not in the file")?;
    let instruction = Decoder::with_ip(64, code, svma, DecoderOptions::NONE).decode();
    if instruction.mnemonic() == Mnemonic::Nop && instruction.len() == 5 {
        return Err("it is on a nop of five bytes: probing one can kill forked children".to_owned());
    }
    let semaphore = match note.semaphore {
        0 => None,
        address => {
            let offset = object.offset_of_data(address.wrapping_add(moved));
            Some(offset.ok_or("its semaphore is not in the file")?)
        }
    };
    let arguments: Result<Vec<_>, _> = split(note.arguments).map(parse_argument).collect();
    let mut arguments = arguments?;
    if arguments.len() < event.arguments() {
        return Err(format!("it has the arguments `{}`, fewer than the contract says", note.arguments));
    }
    arguments.truncate(event.arguments());
    let function = symbols.function_with(svma);
    Ok(UsdtProbe {
        event,
        svma,
        file_offset,
        semaphore,
        arguments,
        format: note.arguments.to_owned(),
        function,
        instruction: if instruction.len() == 1 { "nop".to_owned() } else { format!("{instruction}") },
    })
}

fn notes<'data>(object: &ElfObject<'data>) -> impl Iterator<Item = Note<'data>> {
    const STAPSDT: u32 = 3;
    let sections = object.elf().elf_section_table().iter();
    let all = sections.filter_map(|section| section.notes(LittleEndian, object.data()).ok()?);
    let notes = all.flat_map(|mut notes| std::iter::from_fn(move || notes.next().ok().flatten()));
    notes
        .filter(|note| note.name() == b"stapsdt" && note.n_type(LittleEndian).0 == STAPSDT)
        .filter_map(|note| Note::parse(note.desc()))
}

/// Where the section `.stapsdt.base` is. Notes are not moved with the code by those who change a file afterwards (prelink); they say
/// where the section was when they were made.
fn stapsdt_base(object: &ElfObject<'_>) -> Option<u64> {
    let table = object.elf().elf_section_table();
    let (_, section) = table.section_by_name(LittleEndian, b".stapsdt.base")?;
    Some(section.sh_addr(LittleEndian))
}

fn mean_svma(object: &ElfObject<'_>) -> Option<u64> {
    let table = object.elf().elf_dynamic_symbol_table();
    let names = object.names_of(table)?;
    let is_mean = |symbol: &&elf::Sym64<LittleEndian>| {
        symbol.st_type() == elf::STT_OBJECT
            && symbol.st_size(LittleEndian) == 8
            && name_at(names, symbol.st_name(LittleEndian), MEAN.len()) == Some(MEAN)
    };
    table.iter().find(is_mean).map(|symbol| symbol.st_value(LittleEndian))
}

impl ElfObject<'_> {
    /// The place in the file of an address in any of its segments.
    fn offset_of_data(&self, svma: u64) -> Option<u64> {
        self.elf().elf_program_headers().iter().find_map(|header| {
            let distance = svma.checked_sub(header.p_vaddr(LittleEndian))?;
            let is_in =
                header.p_type(LittleEndian) == elf::PT_LOAD && distance < header.p_filesz(LittleEndian);
            is_in.then(|| header.p_offset(LittleEndian).checked_add(distance))?
        })
    }
}

/// The arguments of a note. There may be spaces within one, behind a comma (`(%rax, %rcx, 8)`).
fn split(arguments: &str) -> impl Iterator<Item = &str> {
    let mut rest = arguments.trim();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut depth = 0;
        let ends = |(_, character): &(usize, char)| {
            depth += i32::from(*character == '(') - i32::from(*character == ')');
            *character == ' ' && depth <= 0
        };
        let end = rest.char_indices().find(ends).map_or(rest.len(), |(at, _)| at);
        let (argument, behind) = rest.split_at(end);
        rest = behind.trim_start();
        Some(argument)
    })
}

/// `N@OPERAND`: N bytes, less than 0 where they have a sign.
fn parse_argument(text: &str) -> Result<Argument, String> {
    let unusable = || format!("its argument `{text}` is of a form that is not known");
    let (size, operand) = text.split_once('@').ok_or_else(unusable)?;
    let size: i8 = size.parse().map_err(|_| unusable())?;
    let bytes = size.unsigned_abs();
    if !matches!(bytes, 1 | 2 | 4 | 8) {
        return Err(unusable());
    }
    let location = parse_operand(operand).ok_or_else(unusable)?;
    Ok(Argument { location, bytes, signed: size < 0 })
}

fn parse_operand(operand: &str) -> Option<Location> {
    if let Some(constant) = operand.strip_prefix('$') {
        return parse_number(constant).map(Location::Constant);
    }
    if operand.starts_with('%') {
        return parse_register(operand).map(Location::Register);
    }
    let (displacement, registers) = operand.strip_suffix(')')?.split_once('(')?;
    let displacement = match displacement {
        "" => 0,
        number => parse_number(number)?.try_into().ok()?,
    };
    let mut parts = registers.split(',').map(str::trim);
    let base = parse_register(parts.next()?)?;
    let index = parts.next().map(parse_register);
    let scale = match parts.next() {
        None | Some("1") => 0,
        Some("2") => 1,
        Some("4") => 2,
        Some("8") => 3,
        Some(_) => return None,
    };
    let index = match index {
        None => None,
        Some(index) => Some(index?),
    };
    Some(Location::Memory { base, index, scale, displacement })
}

fn parse_number(text: &str) -> Option<i64> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let number = match digits.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16).ok()?.cast_signed(),
        None => digits.parse::<i64>().or_else(|_| digits.parse::<u64>().map(u64::cast_signed)).ok()?,
    };
    Some(if negative { number.wrapping_neg() } else { number })
}

/// A general register under any of its names: the size of the argument says how much of it counts. `ah` and its like, which are no lower
/// part of a register, are unknown; and so is `rip`, since the value would be at a place that the file alone does not say.
fn parse_register(text: &str) -> Option<Register> {
    /// Names of 64, 32, 16 and 8 bits, and the place in `struct pt_regs`.
    const NAMED: [([&str; 4], u8); 8] = [
        (["rbp", "ebp", "bp", "bpl"], 4),
        (["rbx", "ebx", "bx", "bl"], 5),
        (["rax", "eax", "ax", "al"], 10),
        (["rcx", "ecx", "cx", "cl"], 11),
        (["rdx", "edx", "dx", "dl"], 12),
        (["rsi", "esi", "si", "sil"], 13),
        (["rdi", "edi", "di", "dil"], 14),
        (["rsp", "esp", "sp", "spl"], 19),
    ];
    /// r8 to r15.
    const NUMBERED: [u8; 8] = [9, 8, 7, 6, 3, 2, 1, 0];
    let name = text.strip_prefix('%')?;
    let place = match NAMED.iter().find(|(names, _)| names.contains(&name)) {
        Some(&(_, place)) => place,
        None => {
            let number = name.strip_prefix('r')?.trim_end_matches(['d', 'w', 'b', 'l']);
            *NUMBERED.get(number.parse::<usize>().ok()?.checked_sub(8)?)?
        }
    };
    Register::at(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> Register {
        parse_register(name).unwrap_or_else(|| panic!("{name}"))
    }

    #[test]
    fn registers_have_their_place_under_each_of_their_names() {
        // struct pt_regs: r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss
        let order = [
            ("%r15", 0),
            ("%r14d", 1),
            ("%r13w", 2),
            ("%r12b", 3),
            ("%rbp", 4),
            ("%ebx", 5),
            ("%r11", 6),
            ("%r10d", 7),
            ("%r9", 8),
            ("%r8", 9),
            ("%al", 10),
            ("%cx", 11),
            ("%rdx", 12),
            ("%sil", 13),
            ("%edi", 14),
            ("%rsp", 19),
        ];
        for (name, at) in order {
            assert_eq!(place(name).offset(), at * 8, "{name}");
        }
        for none in ["%rip", "%ah", "%xmm0", "%r16", "%r7", "rax", "%", "%r"] {
            assert_eq!(parse_register(none), None, "{none}");
        }
    }

    #[test]
    fn arguments_are_read_as_compilers_write_them() {
        let one = |text: &str| parse_argument(text).unwrap_or_else(|why| panic!("{why}"));
        let argument = |location, bytes, signed| Argument { location, bytes, signed };
        assert_eq!(one("8@%rdi"), argument(Location::Register(place("%rdi")), 8, false));
        assert_eq!(one("-4@%eax"), argument(Location::Register(place("%rax")), 4, true));
        assert_eq!(one("8@$512"), argument(Location::Constant(512), 8, false));
        assert_eq!(one("-8@$-0x10"), argument(Location::Constant(-16), 8, true));
        let memory = |base, index, scale, displacement| Location::Memory {
            base: place(base),
            index,
            scale,
            displacement,
        };
        assert_eq!(one("8@-24(%rbp)"), argument(memory("%rbp", None, 0, -24), 8, false));
        assert_eq!(one("8@(%rsp)"), argument(memory("%rsp", None, 0, 0), 8, false));
        let indexed = memory("%rax", Some(place("%rcx")), 3, 16);
        assert_eq!(one("8@16(%rax,%rcx,8)"), argument(indexed, 8, false));
        for wrong in ["%rdi", "8@", "3@%rdi", "8@size(%rip)", "8@(%rax,%rcx,3)", "8f@%xmm0", "8@%rdi)"] {
            assert!(parse_argument(wrong).is_err(), "{wrong}");
        }
        let parts: Vec<_> = split(" 8@%rdi  8@16(%rax, %rcx, 8) -4@$1 ").collect();
        assert_eq!(parts, ["8@%rdi", "8@16(%rax, %rcx, 8)", "-4@$1"]);
    }

    #[test]
    fn a_note_is_three_addresses_and_three_strings() {
        let mut bytes = Vec::new();
        for address in [0x1234_u64, 0x2000, 0] {
            bytes.extend(address.to_le_bytes());
        }
        bytes.extend(b"otel_memory\0free\0");
        assert_eq!(Note::parse(&bytes[..20]).map(|_| ()), None);
        let note = Note::parse(&bytes).expect("it is one");
        assert_eq!((note.location, note.base, note.semaphore), (0x1234, 0x2000, 0));
        assert_eq!((note.provider, note.name, note.arguments), ("otel_memory", "free", ""));
    }
}
