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
