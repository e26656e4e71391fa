//! Every row of real files: what our tables make of it against gimli's own evaluation of the file.
//!
//! Both sides get the same made-up registers and memory and must find the same caller. Nothing is shared between them
//! but the ELF file: gimli evaluates the row's registers and expressions, the table goes through merging, packing,
//! paging, search and [`step`].

use std::ops::Range;
use std::path::{Path, PathBuf};

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, Encoding, EndianSlice, Evaluation, EvaluationResult,
    Expression, FrameDescriptionEntry, LittleEndian, Location, Register, RegisterRule, UnwindContext,
    UnwindSection, UnwindTableRow, Value, X86_64,
};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};
use tracer::unwind::{CodeBytes, Table, describe};
use tracer_ebpf::stop::Stop;
use tracer_ebpf::unwind::{Cfa, Frame, Memory, Registers, Rule, Via, step};

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// Memory whose every word is a different, plausible stack address.
struct MadeUp;

impl Memory for MadeUp {
    fn read(&self, address: u64) -> Option<u64> {
        let mut mixed = address.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(0x7fff_0000_0000 | (mixed ^ mixed >> 31) & 0xffff_fff8)
    }
}

const SP: u64 = 0x7ffd_1234_5670;
const BP: u64 = 0x7ffe_8765_4320;

/// gimli's view of one section, evaluated with made-up registers.
struct Reference<'a> {
    frames: EhFrame<Bytes<'a>>,
    encoding: Encoding,
    registers: Registers,
    /// `rbx`, where it is known.
    bx: Option<u64>,
}

impl<'a> Reference<'a> {
    fn register(&self, register: Register) -> Option<u64> {
        match register {
            X86_64::RSP => Some(self.registers.sp),
            X86_64::RBP => Some(self.registers.bp),
            X86_64::RA => Some(self.registers.ip),
            X86_64::RBX => self.bx,
            _ => None,
        }
    }

    /// `None` when it needs a register that a walk does not have.
    fn expression(&self, expression: Expression<Bytes<'a>>, initial: Option<u64>) -> Option<u64> {
        let mut evaluation: Evaluation<Bytes<'a>> = expression.evaluation(self.encoding);
        if let Some(initial) = initial {
            evaluation.set_initial_value(initial);
        }
        let mut state = evaluation.evaluate().expect("a well-formed expression");
        loop {
            state = match state {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresRegister { register, .. } => {
                    evaluation.resume_with_register(Value::Generic(self.register(register)?))
                }
                EvaluationResult::RequiresMemory { address, .. } => {
                    evaluation.resume_with_memory(Value::Generic(MadeUp.read(address)?))
                }
                other => panic!("unexpected: {other:?}"),
            }
            .expect("a well-formed expression");
        }
        match evaluation.result()[..] {
            [gimli::Piece { location: Location::Address { address }, .. }] => Some(address),
            ref other => panic!("unexpected: {other:?}"),
        }
    }

    fn rule(&self, rule: Option<RegisterRule<usize>>, cfa: u64, unchanged: Option<u64>) -> Option<u64> {
        match rule {
            None | Some(RegisterRule::SameValue) => unchanged,
            Some(RegisterRule::Offset(offset)) => MadeUp.read(cfa.wrapping_add_signed(offset)),
            Some(RegisterRule::Expression(expression)) => {
                MadeUp.read(self.expression(expression.get(&self.frames).ok()?, Some(cfa))?)
            }
            Some(RegisterRule::Register(register)) => self.register(register),
            Some(_) => None,
        }
    }

    /// The caller's registers; `Err(Base)` when there is none, `Err(UnsupportedRule)` when a walk cannot know them.
    fn caller(&self, row: &UnwindTableRow<usize>) -> Result<Registers, Stop> {
        let return_address = row.register(X86_64::RA);
        if return_address == Some(RegisterRule::Undefined) {
            return Err(Stop::Base);
        }
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                self.register(*register).map(|value| value.wrapping_add_signed(*offset))
            }
            CfaRule::Expression(expression) => {
                self.expression(expression.get(&self.frames).expect("in the section"), None)
            }
        };
        (|| {
            let cfa = cfa?;
            Some(Registers {
                ip: self.rule(return_address, cfa, None)?,
                sp: self.rule(row.register(X86_64::RSP), cfa, Some(cfa))?,
                bp: self.rule(row.register(X86_64::RBP), cfa, Some(self.registers.bp))?,
            })
        })()
        .ok_or(Stop::UnsupportedRule)
    }
}

/// What the comparison saw, so that a comparison of nothing fails.
#[derive(Debug, Default)]
struct Seen {
    rows: u64,
    gaps: u64,
    /// Rows that we cannot follow and gimli's evaluation cannot either, without registers that a walk does not have.
    unknowable: u64,
    /// Rows that we cannot follow and could.
    given_up: u64,
    overlapping: u64,
    /// Calls from frames whose CFA is in `rbx`, which the function that is called has saved.
    held: u64,
}

fn compare(name: &str, bytes: &[u8]) -> Seen {
    let file = object::File::parse(bytes).expect("an ELF file");
    let section = file.section_by_name(".eh_frame").expect("unwind information");
    let address_of = |name| file.section_by_name(name).map_or(0, |section| section.address());
    let bases = BaseAddresses::default()
        .set_eh_frame(section.address())
        .set_text(address_of(".text"))
        .set_got(address_of(".got"));
    let mut frames = EhFrame::new(section.data().expect("section bytes"), LittleEndian);
    frames.set_address_size(8);
    let mut functions = Vec::new();
    let mut entries = frames.entries(&bases);
    while let Some(entry) = entries.next().expect("a well-formed section") {
        if let CieOrFde::Fde(partial) = entry {
            let function = partial.parse(EhFrame::cie_from_offset).expect("a well-formed entry");
            if function.len() > 0 {
                functions.push(function);
            }
        }
    }
    functions.sort_by_key(|function| function.initial_address());

    let table = Table::from_elf(bytes).expect("a table");
    let entry = file.entry();
    let mut context = UnwindContext::new();
    let mut seen = Seen::default();
    let held = held_calls(&file, &functions, &frames, &bases, &table);
    held.iter().for_each(|held| held.check(name, &frames, &bases, &table));
    seen.held = held.len() as u64;
    for (index, function) in functions.iter().enumerate() {
        let next = functions.get(index + 1).map_or(u64::MAX, |next| next.initial_address());
        let previous_end = index.checked_sub(1).map_or(0, |index| functions[index].end_address());
        if next < function.end_address() || function.initial_address() < previous_end {
            seen.overlapping += 1;
            continue;
        }
        let mut rows = function.rows(&frames, &bases, &mut context).expect("readable rows");
        while let Some(row) = rows.next_row().expect("a readable row") {
            if row.start_address() == row.end_address() {
                continue;
            }
            seen.rows += 1;
            let middle = row.start_address() + (row.end_address() - row.start_address()) / 2;
            for ip in [row.start_address(), middle, row.end_address() - 1] {
                let registers = Registers { ip, sp: SP, bp: BP };
                let reference =
                    Reference { frames, encoding: function.cie().encoding(), registers, bx: None };
                if held.iter().any(|held| held.says(ip)) {
                    continue;
                }
                check(name, ip, table.lookup(ip), reference.caller(row), registers, &mut seen);
            }
        }
        if function.end_address() < next {
            seen.gaps += 1;
            // Nobody calls what stands at the entry point.
            let has_entry = (function.end_address()..next).contains(&entry);
            // What the file says nothing of is described by its instructions, in files that need no others.
            let by_instructions = table.stats().synthesized > 0;
            let says_nothing =
                |rule| rule == Rule::NO_TABLE || has_entry && rule == Rule::BASE || by_instructions;
            // What coroutines return to.
            let takes_its_stack_from_rbx = code_at(&file, next).starts_with(&[0x48, 0x89, 0xdc]);
            let end = function.end_address();
            assert!(says_nothing(table.lookup(end)), "{name}: after {end:#x}");
            let before = if next == u64::MAX { Rule::NO_TABLE } else { table.lookup(next - 1) };
            assert!(
                says_nothing(before) || takes_its_stack_from_rbx && before == Rule::BASE,
                "{name}: before {next:#x}"
            );
        }
    }
    seen
}

type Function<'a> = FrameDescriptionEntry<Bytes<'a>>;

/// A call from a frame whose CFA is in `rbx`, and the function that is called.
struct HeldCall<'f, 'a> {
    /// The first byte of the instruction, and the first after it.
    call: Range<u64>,
    caller: &'f Function<'a>,
    callee: &'f Function<'a>,
    /// Relative to the CFA of the callee.
    saved_at: i64,
    /// Where the callee has not saved `rbx`.
    not_saved: Vec<Range<u64>>,
}

/// The calls from frames whose CFA is in `rbx`, as far as our table knows where they saved it.
fn held_calls<'f, 'a>(
    file: &object::File<'_>,
    functions: &'f [Function<'a>],
    frames: &EhFrame<Bytes<'a>>,
    bases: &BaseAddresses,
    table: &Table,
) -> Vec<HeldCall<'f, 'a>> {
    let mut context = UnwindContext::new();
    let mut held = Vec::new();
    for caller in functions {
        let mut rows = caller.rows(frames, bases, &mut context).expect("readable rows");
        let mut ranges = Vec::new();
        while let Some(row) = rows.next_row().expect("a readable row") {
            if matches!(row.cfa(), CfaRule::RegisterAndOffset { register: X86_64::RBX, .. }) {
                ranges.push(row.start_address()..row.end_address());
            }
        }
        for range in ranges {
            let code = &code_at(file, range.start)[..(range.end - range.start) as usize];
            let calls = Decoder::with_ip(64, code, range.start, DecoderOptions::NONE).into_iter();
            for call in calls.filter(Instruction::is_call_near) {
                let is_called =
                    |function: &&Function<'_>| function.initial_address() == call.near_branch_target();
                let Some(callee) = functions.iter().find(is_called) else { continue };
                let (saved, not_saved) = saves_of_rbx(callee, frames, bases);
                // Nothing is said of a call whose callee may be left before it has saved the register.
                if let ([saved_at], true) = (&saved[..], table.lookup(call.ip() + 1).is_supported()) {
                    let call = call.ip()..call.next_ip();
                    held.push(HeldCall { call, caller, callee, saved_at: *saved_at, not_saved });
                }
            }
        }
    }
    held
}

/// The places relative to the CFA where a function saves `rbx`, and the code where it has not.
fn saves_of_rbx<'a>(
    function: &Function<'a>,
    frames: &EhFrame<Bytes<'a>>,
    bases: &BaseAddresses,
) -> (Vec<i64>, Vec<Range<u64>>) {
    let mut context = UnwindContext::new();
    let mut rows = function.rows(frames, bases, &mut context).expect("readable rows");
    let (mut saved, mut not_saved) = (Vec::new(), Vec::new());
    while let Some(row) = rows.next_row().expect("a readable row") {
        match row.register(X86_64::RBX) {
            Some(RegisterRule::Offset(at)) => saved.push(at),
            _ => not_saved.push(row.start_address()..row.end_address()),
        }
    }
    saved.dedup();
    (saved, not_saved)
}

impl<'a> HeldCall<'_, 'a> {
    /// Whether our table says something of this address that a single row cannot.
    fn says(&self, ip: u64) -> bool {
        self.call.start < ip && ip < self.call.end || self.not_saved.iter().any(|range| range.contains(&ip))
    }

    /// The caller of the frame that calls, by our table, is the one by gimli's evaluation with `rbx` from where the callee saved it.
    fn check(&self, name: &str, frames: &EhFrame<Bytes<'a>>, bases: &BaseAddresses, table: &Table) {
        let registers = Registers { ip: self.call.end, sp: SP, bp: BP };
        let bx = MadeUp.read(SP.wrapping_add_signed(self.saved_at));
        let encoding = self.caller.cie().encoding();
        let reference = Reference { frames: *frames, encoding, registers, bx };
        let mut context = UnwindContext::new();
        let row = self.caller.unwind_info_for_address(frames, bases, &mut context, self.call.start);
        let expected = reference.caller(row.expect("a row"));
        let frame = Frame { registers, via: Via::Table };
        for ip in self.call.start + 1..self.call.end {
            let caller = step(table.lookup(ip), frame, &MadeUp).map(|frame| frame.registers);
            assert_eq!(caller, expected, "{name}: {ip:#x}");
        }
        // Who is interrupted there has not called yet, or no more; and the callee has not saved the register everywhere.
        for ip in
            [self.call.start, self.call.end].into_iter().chain(self.not_saved.iter().map(|range| range.start))
        {
            assert_eq!(table.lookup(ip), Rule::UNSUPPORTED, "{name}: {ip:#x}");
        }
        assert!(self.not_saved.iter().any(|range| range.start == self.callee.initial_address()), "{name}");
    }
}

/// The code from an svma to the end of its section.
fn code_at<'a>(file: &object::File<'a>, svma: u64) -> &'a [u8] {
    file.sections()
        .filter(|section| section.kind() == SectionKind::Text)
        .find_map(|section| {
            let offset = usize::try_from(svma.checked_sub(section.address())?).ok()?;
            section.data().ok()?.get(offset..)
        })
        .unwrap_or_default()
}

fn check(
    name: &str,
    ip: u64,
    rule: Rule,
    expected: Result<Registers, Stop>,
    registers: Registers,
    seen: &mut Seen,
) {
    let stepped = step(rule, Frame::first(registers), &MadeUp).map(|frame| frame.registers);
    match (stepped, expected) {
        (Err(Stop::UnsupportedRule), Err(Stop::UnsupportedRule)) => seen.unknowable += 1,
        (Err(Stop::UnsupportedRule), _) => seen.given_up += 1,
        // Nobody's caller has the same stack pointer; files say it of code that is never walked from.
        (Err(Stop::NoProgress), Ok(Registers { sp, .. })) => assert!(sp <= SP, "{name} {ip:#x}: {rule}"),
        (stepped, expected) => assert_eq!(stepped, expected, "{name} {ip:#x}: {rule}"),
    }
}

fn compare_file(path: &Path) -> Seen {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let seen = compare(&path.display().to_string(), &bytes);
    eprintln!("{}: {seen:?}", path.display());
    assert!(seen.rows > 0);
    assert_eq!(seen.given_up, 0, "{}", path.display());
    assert!(seen.unknowable * 50 <= seen.rows * 3, "more than 2 % of the rows cannot be followed");
    assert!(seen.overlapping * 1000 <= seen.rows, "too many overlaps to call it a comparison");
    seen
}

/// A library that this very process has mapped.
fn mapped(name: &str) -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("our mappings");
    let path =
        maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains(name));
    PathBuf::from(path.unwrap_or_else(|| panic!("{name} is not mapped")))
}

/// The first of `paths` that this machine has; says so when there is none.
fn installed(paths: &[&str]) -> Option<PathBuf> {
    let found = paths.iter().map(PathBuf::from).find(|path| path.exists());
    if found.is_none() {
        eprintln!("not installed, not compared: {paths:?}");
    }
    found
}

#[test]
fn every_row_of_libc() {
    assert!(compare_file(&mapped("libc.so.6")).gaps > 100);
}

#[test]
fn every_row_of_the_dynamic_linker() {
    // `_dl_runtime_resolve` in three forms for processors, and those of auditors.
    assert!(compare_file(&mapped("ld-linux-x86-64.so.2")).held >= 3);
}

#[test]
fn every_row_of_the_test_itself() {
    compare_file(&std::env::current_exe().expect("our path"));
}

#[test]
fn every_row_of_libstdcxx() {
    installed(&[
        "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
        "/usr/lib64/libstdc++.so.6",
        "/usr/lib/libstdc++.so.6",
    ])
    .map(|path| compare_file(&path));
}

#[test]
fn every_row_of_python() {
    installed(&["/usr/bin/python3"]).map(|path| compare_file(&path));
}

#[test]
fn every_row_of_node() {
    installed(&["/usr/bin/node", "/usr/local/bin/node"]).map(|path| compare_file(&path));
}

#[test]
fn every_row_of_libllvm() {
    installed(&[
        "/usr/lib/x86_64-linux-gnu/libLLVM.so.22.1",
        "/usr/lib/x86_64-linux-gnu/libLLVM-15.so.1",
        "/usr/lib/x86_64-linux-gnu/libLLVM-14.so.1",
    ])
    .map(|path| compare_file(&path));
}

#[test]
fn every_row_of_the_vdso() {
    use std::os::unix::fs::FileExt;

    let maps = std::fs::read_to_string("/proc/self/maps").expect("our mappings");
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).expect("a vdso");
    let (start, rest) = line.split_once('-').expect("a range");
    let end = rest.split(' ').next().expect("an end");
    let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).expect("an address"));
    let mut image = vec![0; (end - start) as usize];
    std::fs::File::open("/proc/self/mem")
        .and_then(|mem| mem.read_exact_at(&mut image, start))
        .expect("its bytes");
    let seen = compare("vdso", &image);
    assert!(seen.rows > 0 && seen.given_up == 0, "{seen:?}");
}

/// How rows that are found by following the instructions compare with those that the file states, by bytes of code.
#[derive(Debug, Default)]
struct Followed {
    same: u64,
    /// The same frame, but the caller's `rbp` somewhere else.
    other_bp: u64,
    different: u64,
}

/// Follows all code of a file as if it said nothing.
fn follow_instructions(path: &Path) -> Followed {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let sections = file.sections().filter(|section| section.kind() == SectionKind::Text);
    let code = sections
        .map(|section| CodeBytes { svma: section.address(), bytes: section.data().expect("its bytes") });
    let functions = file.symbols().chain(file.dynamic_symbols());
    let functions = functions.filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition());
    let entries: Vec<u64> = functions.map(|symbol| symbol.address()).collect();
    let table = Table::from_elf(&bytes).expect("a table");
    let mut followed = Followed::default();
    for (range, rows) in describe(&code.collect::<Vec<_>>(), &entries, &[]) {
        for (index, &(start, rule)) in rows.iter().enumerate() {
            let end = rows.get(index + 1).map_or(range.end, |next| next.0);
            for svma in start..end {
                let stated = table.lookup(svma);
                // Of the procedure linkage table files state one rule that holds for every entry.
                let (Some((stated_cfa, stated_bp)), Some((cfa, bp))) = (stated.parts(), rule.parts()) else {
                    continue;
                };
                match (stated_cfa == cfa, stated_bp == bp) {
                    _ if matches!(stated_cfa, Cfa::Plt { .. }) => {}
                    (true, true) => followed.same += 1,
                    (true, false) => followed.other_bp += 1,
                    (false, _) => followed.different += 1,
                }
            }
        }
    }
    eprintln!("{}: {followed:?}", path.display());
    followed
}

/// C without a symbol for each function, calls that never return, and computed jumps: libc is harder than musl is.
#[test]
fn rows_from_instructions_are_those_that_files_state() {
    let Followed { same, other_bp, different } = follow_instructions(&mapped("libc.so.6"));
    let all = same + other_bp + different;
    assert!(all > 500_000, "{all} bytes compared");
    assert!(
        different * 100 <= all && other_bp * 50 <= all,
        "{different} and {other_bp} of {all} bytes differ"
    );
}
