//! From call frame information (`.eh_frame`, `.debug_frame`) to rules.

use std::ops::Range;

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, CommonInformationEntry, DebugFrame, EhFrame, EndianSlice,
    FrameDescriptionEntry, LittleEndian, Operation, Register, RegisterRule, UnwindContext, UnwindExpression,
    UnwindOffset, UnwindSection, UnwindTableRow, X86_64,
};
use tracer_ebpf::unwind::{Cfa, Rule, SavedBp};

use super::elf::{Flavour, Section};

type Bytes<'data> = EndianSlice<'data, LittleEndian>;
type Cie<'data> = CommonInformationEntry<Bytes<'data>>;
type Fde<'data> = FrameDescriptionEntry<Bytes<'data>>;

/// The longest CIE that is read. It is parsed and its instructions are run again for each of its functions, so a file
/// could make us work for the square of its size. Compilers write 20 to 40 bytes.
const MAX_CIE: u32 = 1024;

/// What takes the rows of a file, function by function.
pub(super) trait Sink {
    /// A function begins, with everything that it covers. Its rows follow; returning `false` skips them.
    fn function(&mut self, code: Range<u64>) -> bool;
    /// From `start` on, `rule` holds.
    fn row(&mut self, start: u64, rule: Rule);
    /// All that the file states of the row that was told last.
    fn stated(&mut self, _row: &UnwindTableRow<usize>) {}
    /// Some entry could not be read.
    fn broken(&mut self);
}

/// Reads a section to its end or to the first entry that makes the rest unreadable.
pub(super) fn read(section: &Section<'_>, sink: &mut impl Sink) {
    match section.flavour {
        Flavour::EhFrame => {
            let mut frames = EhFrame::new(&section.data, LittleEndian);
            frames.set_address_size(8);
            read_entries(&frames, section, sink);
        }
        Flavour::DebugFrame => {
            let mut frames = DebugFrame::new(&section.data, LittleEndian);
            frames.set_address_size(8);
            read_entries(&frames, section, sink);
        }
    }
}

/// Whether an exception may pass a function: `.eh_frame` covers it, or cannot be read for certain.
#[must_use]
pub fn unwinds_through(elf: &[u8], svma: u64) -> bool {
    struct Cover {
        svma: u64,
        found: bool,
    }
    impl Sink for Cover {
        fn function(&mut self, code: Range<u64>) -> bool {
            self.found |= code.contains(&self.svma);
            false
        }
        fn row(&mut self, _start: u64, _rule: Rule) {}
        fn broken(&mut self) {
            self.found = true;
        }
    }
    let Ok(elf) = super::elf::read(elf) else { return true };
    let mut cover = Cover { svma, found: false };
    let for_exceptions = |section: &&Section| matches!(section.flavour, Flavour::EhFrame);
    for section in elf.sections.iter().filter(for_exceptions) {
        read(section, &mut cover);
    }
    cover.found
}

/// Where the functions of an ELF file begin and end, as its call frame information says: sorted by address, and apart. None of a
/// file that cannot be read.
#[must_use]
pub fn function_ranges(elf: &[u8]) -> Vec<Range<u64>> {
    struct Ranges(Vec<Range<u64>>);
    impl Sink for Ranges {
        fn function(&mut self, code: Range<u64>) -> bool {
            self.0.push(code);
            false
        }
        fn row(&mut self, _start: u64, _rule: Rule) {}
        fn broken(&mut self) {}
    }
    let mut ranges = Ranges(Vec::new());
    if let Ok(elf) = super::elf::read(elf)
        && let Some(section) = elf.sections.first()
    {
        read(section, &mut ranges);
    }
    let Ranges(mut ranges) = ranges;
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    // Of those that overlap nothing is known for certain.
    let overlaps: Vec<bool> = (0..ranges.len())
        .map(|at| {
            let before = at.checked_sub(1).and_then(|at| ranges.get(at));
            let after = ranges.get(at + 1);
            before.is_some_and(|before| before.end > ranges[at].start)
                || after.is_some_and(|after| after.start < ranges[at].end)
        })
        .collect();
    let mut overlaps = overlaps.into_iter();
    ranges.retain(|_| !overlaps.next().unwrap_or(false));
    ranges
}

fn read_entries<'data, S>(frames: &S, section: &'data Section<'_>, sink: &mut impl Sink)
where
    S: UnwindSection<Bytes<'data>>,
{
    let bases = &section.bases;
    let mut entries = frames.entries(bases);
    let mut context = UnwindContext::new();
    let mut last_cie: Option<(S::Offset, Cie<'data>)> = None;
    loop {
        let partial = match entries.next() {
            Ok(Some(CieOrFde::Fde(partial))) => partial,
            Ok(Some(CieOrFde::Cie(_))) => continue,
            Ok(None) => return,
            Err(_) => return sink.broken(),
        };
        // Neighbours share their CIE.
        let parsed = partial.parse(|frames, bases, offset| match &last_cie {
            Some((at, cie)) if *at == offset => Ok(cie.clone()),
            _ => {
                check_length(&section.data, UnwindOffset::into(offset))?;
                let cie = frames.cie_from_offset(bases, offset)?;
                last_cie = Some((offset, cie.clone()));
                Ok(cie)
            }
        });
        match parsed {
            Ok(fde) => read_function(frames, bases, &fde, &mut context, sink),
            Err(_) => sink.broken(),
        }
    }
}

/// Refuses a CIE that is longer than [`MAX_CIE`], before anything of it is read.
fn check_length(data: &[u8], offset: usize) -> gimli::Result<()> {
    let length =
        data.get(offset..).and_then(|entry| entry.first_chunk()).map(|length| u32::from_le_bytes(*length));
    match length {
        Some(..=MAX_CIE) => Ok(()),
        _ => Err(gimli::Error::UnexpectedEof(gimli::ReaderOffsetId(offset as u64))),
    }
}

fn read_function<'data, S>(
    section: &S,
    bases: &BaseAddresses,
    fde: &Fde<'data>,
    context: &mut UnwindContext<usize>,
    sink: &mut impl Sink,
) where
    S: UnwindSection<Bytes<'data>>,
{
    let code = fde.initial_address()..fde.end_address();
    if code.is_empty() || !sink.function(code.clone()) {
        return;
    }
    if fde.cie().return_address_register() != X86_64::RA {
        return sink.row(code.start, Rule::UNSUPPORTED);
    }
    let Ok(mut rows) = fde.rows(section, bases, context) else {
        sink.broken();
        return sink.row(code.start, Rule::UNSUPPORTED);
    };
    let mut unread = code.start;
    loop {
        match rows.next_row() {
            Ok(Some(row)) => {
                sink.row(row.start_address(), rule(row, section, fde));
                sink.stated(row);
                unread = row.end_address();
            }
            Ok(None) => return,
            Err(_) => {
                sink.broken();
                return sink.row(unread, Rule::UNSUPPORTED);
            }
        }
    }
}

/// What a row says, as one of the equations that the walk knows.
fn rule<'data, S>(row: &UnwindTableRow<usize>, section: &S, fde: &Fde<'data>) -> Rule
where
    S: UnwindSection<Bytes<'data>>,
{
    let supported = match row.register(X86_64::RA) {
        Some(RegisterRule::Undefined) => Some(Rule::BASE),
        Some(RegisterRule::Offset(-8)) => ordinary(row, section, fde),
        Some(RegisterRule::Expression(_)) => signal(row, section, fde),
        _ => None,
    };
    supported.unwrap_or(Rule::UNSUPPORTED)
}

fn ordinary<'data, S>(row: &UnwindTableRow<usize>, section: &S, fde: &Fde<'data>) -> Option<Rule>
where
    S: UnwindSection<Bytes<'data>>,
{
    // The walk takes a caller's stack pointer to be the CFA; a file that says otherwise switches stacks.
    if row.register(X86_64::RSP).is_some() {
        return None;
    }
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register: X86_64::RSP, offset } => Cfa::Sp(*offset),
        CfaRule::RegisterAndOffset { register: X86_64::RBP, offset } => Cfa::Bp(*offset),
        CfaRule::RegisterAndOffset { .. } => return None,
        CfaRule::Expression(expression) => cfa_expression(&operations(expression, section, fde)?)?,
    };
    let saved_bp = match row.register(X86_64::RBP) {
        None | Some(RegisterRule::SameValue) => SavedBp::Same,
        Some(RegisterRule::Offset(offset)) => SavedBp::AtCfa(offset),
        Some(RegisterRule::Expression(expression)) => match address(&expression, section, fde)? {
            (X86_64::RBP, offset) => SavedBp::AtBp(offset),
            _ => return None,
        },
        Some(_) => return None,
    };
    Rule::new(cfa, saved_bp)
}

/// The return from a signal handler: all registers are in one `ucontext`, `sp` at some offset from `sp`.
fn signal<'data, S>(row: &UnwindTableRow<usize>, section: &S, fde: &Fde<'data>) -> Option<Rule>
where
    S: UnwindSection<Bytes<'data>>,
{
    let saved_at = |register| match row.register(register) {
        Some(RegisterRule::Expression(expression)) => match address(&expression, section, fde)? {
            (X86_64::RSP, offset) => Some(offset),
            _ => None,
        },
        _ => None,
    };
    let CfaRule::Expression(expression) = row.cfa() else { return None };
    let Cfa::AtSp { at, plus: 0 } = cfa_expression(&operations(expression, section, fde)?)? else {
        return None;
    };
    let as_in_ucontext = saved_at(X86_64::RSP).is_none_or(|sp| sp == at)
        && saved_at(X86_64::RA)? == at.checked_add(8)?
        && saved_at(X86_64::RBP)? == at.checked_sub(40)?;
    if fde.is_signal_trampoline() && as_in_ucontext { Rule::signal(at) } else { None }
}

/// The expressions for a CFA that compilers, linkers and hand-written code use.
fn cfa_expression(operations: &[Operation<Bytes<'_>>]) -> Option<Cfa> {
    use Operation::{And, Deref, Ge, Plus, PlusConstant, RegisterOffset, Shl, UnsignedConstant};
    match *operations {
        [
            RegisterOffset { register: X86_64::RSP, offset: 8, .. },
            RegisterOffset { register: X86_64::RA, offset: 0, .. },
            UnsignedConstant { value: 15 },
            And,
            UnsignedConstant { value: pushed @ 0..=15 },
            Ge,
            UnsignedConstant { value: 3 },
            Shl,
            Plus,
        ] => Some(Cfa::Plt { pushed: pushed as i64 }),
        [RegisterOffset { register, offset, .. }, Deref { size: 8, space: false, .. }] => {
            deref(register, offset, 0)
        }
        [
            RegisterOffset { register, offset, .. },
            Deref { size: 8, space: false, .. },
            PlusConstant { value },
        ] => deref(register, offset, i64::try_from(value).ok()?),
        _ => None,
    }
}

fn deref(register: Register, at: i64, plus: i64) -> Option<Cfa> {
    match register {
        X86_64::RSP => Some(Cfa::AtSp { at, plus }),
        X86_64::RBP => Some(Cfa::AtBp { at, plus }),
        _ => None,
    }
}

/// The register and offset that an expression adds up, if that is all it does.
fn address<'data, S>(
    expression: &UnwindExpression<usize>,
    section: &S,
    fde: &Fde<'data>,
) -> Option<(Register, i64)>
where
    S: UnwindSection<Bytes<'data>>,
{
    match operations(expression, section, fde)?[..] {
        [Operation::RegisterOffset { register, offset, .. }] => Some((register, offset)),
        _ => None,
    }
}

/// The longest expression that is known has 9 operations.
const MAX_OPERATIONS: usize = 16;

fn operations<'data, S>(
    expression: &UnwindExpression<usize>,
    section: &S,
    fde: &Fde<'data>,
) -> Option<Vec<Operation<Bytes<'data>>>>
where
    S: UnwindSection<Bytes<'data>>,
{
    let mut reader = expression.get(section).ok()?.operations(fde.cie().encoding());
    let mut operations = Vec::with_capacity(MAX_OPERATIONS);
    while let Some(operation) = reader.next().ok()? {
        if operations.len() == MAX_OPERATIONS {
            return None;
        }
        operations.push(operation);
    }
    Some(operations)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    /// What a section says, as it comes.
    #[derive(Default)]
    struct Said {
        functions: Vec<Range<u64>>,
        rows: Vec<(u64, Rule)>,
        broken: u32,
    }

    impl Sink for Said {
        fn function(&mut self, code: Range<u64>) -> bool {
            self.functions.push(code);
            true
        }

        fn row(&mut self, start: u64, rule: Rule) {
            self.rows.push((start, rule));
        }

        fn broken(&mut self) {
            self.broken += 1;
        }
    }

    /// One CIE (`cfa = sp + 8`, return address at `cfa - 8`, then these instructions) and one FDE for 0x1000..0x1010.
    fn read_frames(cie_instructions: &[u8], fde_instructions: &[u8]) -> Said {
        let mut cie =
            vec![0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0 /* absolute */, 0x0c, 7, 8, 0x90, 1];
        cie.extend(cie_instructions);
        let mut data = (cie.len() as u32).to_le_bytes().to_vec();
        data.extend(cie);
        let mut fde = (data.len() as u32 + 4).to_le_bytes().to_vec();
        fde.extend(0x1000_u64.to_le_bytes());
        fde.extend(0x10_u64.to_le_bytes());
        fde.push(0);
        fde.extend(fde_instructions);
        data.extend((fde.len() as u32).to_le_bytes());
        data.extend(fde);
        data.extend([0; 4]);
        let mut said = Said::default();
        let bases = BaseAddresses::default().set_eh_frame(0);
        read(&Section { flavour: Flavour::EhFrame, data: Cow::Owned(data), bases }, &mut said);
        said
    }

    fn sp(offset: i64) -> Rule {
        Rule::new(Cfa::Sp(offset), SavedBp::Same).expect("fits")
    }

    #[test]
    fn a_function_says_its_rows() {
        // advance 1; cfa offset 16; rbp at cfa - 16; advance 3; cfa = rbp + 16
        let said = read_frames(&[], &[0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0d, 6]);
        let rule = |cfa| Rule::new(cfa, SavedBp::AtCfa(-16)).expect("fits");
        assert_eq!(said.functions, vec![Range { start: 0x1000, end: 0x1010 }]);
        assert_eq!(said.rows, [(0x1000, sp(8)), (0x1001, rule(Cfa::Sp(16))), (0x1004, rule(Cfa::Bp(16)))]);
        assert_eq!(said.broken, 0);
    }

    #[test]
    fn what_cannot_be_read_is_unsupported_from_there_on() {
        let said = read_frames(&[], &[0x41, 0x0e, 16, 0x42, 0x3f]);
        assert_eq!(said.rows, [(0x1000, sp(8)), (0x1001, sp(16)), (0x1003, Rule::UNSUPPORTED)]);
        assert_eq!(said.broken, 1);
    }

    #[test]
    fn rules_that_a_walk_cannot_follow_are_unsupported() {
        for (what, instructions) in [
            ("cfa = r10", &[0x0c, 10, 0][..]),
            ("cfa = a constant", &[0x0f, 2, 0x08, 64]),
            ("the return address is in rdx", &[0x09, 16, 1]),
            ("the return address is at cfa - 16", &[0x90, 2]),
            ("rbp is in r9", &[0x09, 6, 9]),
            ("sp is not the cfa", &[0x09, 7, 8]),
            ("the frame is too large", &[0x0e, 0x80, 0x80, 0x80, 0x80, 0x10]),
        ] {
            assert_eq!(read_frames(&[], instructions).rows, [(0x1000, Rule::UNSUPPORTED)], "{what}");
        }
        assert_eq!(read_frames(&[], &[0x07, 16]).rows, [(0x1000, Rule::BASE)], "no return address");
    }

    #[test]
    fn a_long_common_part_is_refused_unread() {
        let fits = MAX_CIE as usize - 18;
        assert_eq!(read_frames(&vec![0; fits], &[]).rows, [(0x1000, sp(8))]);
        let refused = read_frames(&vec![0; fits + 1], &[]);
        assert_eq!((refused.functions.len(), refused.broken), (0, 1));
    }
}
