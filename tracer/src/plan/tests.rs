//! Whole files: small ones made here for each rule, the allocators of this machine, and broken ones.

use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// Address of the first byte of a made file's code.
const BASE: u64 = 0x40_1000;
/// Offset of the code in the file.
const CODE_AT: u64 = 0x1000;

/// A symbol of a made file: name, offset in the code, size, type.
type Symbol<'a> = (&'a str, u64, u64, u8);

const FUNC: u8 = 2;
const OBJECT: u8 = 1;
const IFUNC: u8 = 10;

/// An ELF file with one executable segment and one symbol table.
fn elf_file(code: &[u8], symbols: &[Symbol<'_>]) -> Vec<u8> {
    let mut names = vec![0];
    let mut table = vec![0; 24];
    for (name, offset, size, kind) in symbols {
        table.extend((names.len() as u32).to_le_bytes());
        table.extend([0x10 | kind, 0, 1, 0]); // global, of section 1
        table.extend((BASE + offset).to_le_bytes());
        table.extend(size.to_le_bytes());
        names.extend(name.bytes().chain([0]));
    }
    let table_at = CODE_AT + code.len() as u64;
    let names_at = table_at + table.len() as u64;
    let sections_at = names_at + names.len() as u64;

    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    let long = |file: &mut Vec<u8>, value: u64| file.extend(value.to_le_bytes());
    half(&mut file, 3); // ET_DYN
    half(&mut file, 62); // EM_X86_64
    word(&mut file, 1);
    long(&mut file, BASE);
    long(&mut file, 64); // program headers
    long(&mut file, sections_at);
    word(&mut file, 0);
    for value in [64, 56, 1, 64, 4, 3] {
        half(&mut file, value);
    }
    word(&mut file, 1); // PT_LOAD
    word(&mut file, 5); // read, execute
    for value in [CODE_AT, BASE, BASE, code.len() as u64, code.len() as u64, 0x1000] {
        long(&mut file, value);
    }
    file.resize(CODE_AT as usize, 0);
    file.extend_from_slice(code);
    file.extend_from_slice(&table);
    file.extend_from_slice(&names);
    // kind, flags, address, offset, size, link, entry size
    let sections: [(u32, u64, u64, u64, u64, u32, u64); 4] = [
        (0, 0, 0, 0, 0, 0, 0),
        (1, 6, BASE, CODE_AT, code.len() as u64, 0, 0),
        (2, 0, 0, table_at, table.len() as u64, 3, 24),
        (3, 0, 0, names_at, names.len() as u64, 0, 0),
    ];
    for (kind, flags, address, offset, size, link, entry) in sections {
        word(&mut file, 0);
        word(&mut file, kind);
        for value in [flags, address, offset, size] {
            long(&mut file, value);
        }
        word(&mut file, link);
        word(&mut file, 1);
        long(&mut file, 8);
        long(&mut file, entry);
    }
    file
}

/// `test %rdi,%rdi; je .+2; push %rbp; ret`, and room for more.
fn code() -> Vec<u8> {
    let mut code = vec![0xcc; 64];
    code[..7].copy_from_slice(&[0x48, 0x85, 0xff, 0x74, 0x00, 0x55, 0xc3]);
    code
}

fn one(file: &[u8]) -> PlannedProbe {
    let plan = plan_object(file).unwrap();
    assert_eq!(plan.probes.len(), 1, "{plan:?}");
    plan.probes.into_iter().next().unwrap()
}

#[test]
fn a_probe_is_found_by_address_and_names_collapse() {
    let file = elf_file(&code(), &[("memalign", 0, 7, FUNC), ("aligned_alloc@@V2", 0, 7, FUNC)]);
    let probe = one(&file);
    assert_eq!(Catalog::default().get(probe.api).unwrap().name, "aligned_alloc");
    assert_eq!(probe.aliases, ["memalign"]);
    let site = probe.place.site();
    assert_eq!((site.function_svma, site.svma(), site.file_offset), (BASE, BASE + 3, CODE_AT + 3));
    assert_eq!((site.cost, &site.reason), (Cost::Emulated, &Reason::Moved));
    assert!(matches!(probe.place, ProbePlacement::EntryAndReturn(_)));
}

#[test]
fn a_symbol_within_the_gap_keeps_the_probe_at_the_entry() {
    for (inner, stays) in [(1, true), (3, true), (5, false)] {
        let file = elf_file(&code(), &[("free", 0, 7, FUNC), ("fast_free", inner, 2, FUNC)]);
        let reason = one(&file).place.site().reason.clone();
        let expected = Reason::Stayed(Obstacle::EnteredAt { offset: inner as u32 });
        assert_eq!(reason == expected, stays, "{inner}: {reason}");
    }
    // Two allocator functions, one inside the other's gap.
    let file = elf_file(&code(), &[("free", 0, 7, FUNC), ("dallocx", 3, 4, FUNC)]);
    let plan = plan_object(&file).unwrap();
    let offsets: Vec<_> = plan.probes.iter().map(|probe| probe.place.site().offset_in_function).collect();
    assert_eq!(offsets, [0, 0]);
}

#[test]
fn a_branch_from_another_function_into_the_gap_keeps_the_probe_at_the_entry() {
    let mut code = code();
    code.resize(8192, 0x90);
    // 0x1000: jmp 3, far out of reach of the function's own short branches
    code[0x1000..0x1005].copy_from_slice(&[0xe9, 0xfe, 0xef, 0xff, 0xff]);
    let file = elf_file(&code, &[("free", 0, 7, FUNC)]);
    let site = one(&file).place.site().clone();
    assert_eq!(site.reason, Reason::Stayed(Obstacle::EnteredAt { offset: 3 }));
    assert_eq!((site.offset_in_function, site.file_offset), (0, CODE_AT));
    assert_eq!(site.cost, Cost::SingleStepped);
}

#[test]
fn a_release_site_says_how_far_the_stack_pointer_has_moved() {
    let mut code = code();
    code[..9].copy_from_slice(&[0x48, 0x83, 0xec, 0x18, 0xe8, 0x00, 0x00, 0x00, 0x00]); // sub $24,%rsp; call
    let place = one(&elf_file(&code, &[("free", 0, 9, FUNC)])).place;
    assert!(
        matches!(&place, ProbePlacement::Entry { stack_displacement: 24, site } if site.offset_in_function == 4)
    );
    // The same code as malloc: a return probe behind the `sub` would make the target compute wrong results.
    let place = one(&elf_file(&code, &[("malloc", 0, 9, FUNC)])).place;
    assert_eq!(place.site().offset_in_function, 0);
}

#[test]
fn a_spot_with_a_moved_stack_pointer_makes_no_return_site() {
    let site = one(&elf_file(&code(), &[("free", 0, 7, FUNC)])).place.site().clone();
    let spot = |stack_displacement| Spot { site: site.clone(), stack_displacement };
    assert!(spot(0).into_return_site().is_some());
    assert_eq!(spot(8).into_return_site(), None);
}

#[test]
fn what_is_not_a_function_of_this_file_is_not_probed() {
    let file = elf_file(
        &code(),
        &[
            ("malloc", 0, 7, IFUNC),
            ("calloc", 0, 7, OBJECT),
            ("free", 1 << 20, 7, FUNC),
            ("xallocx", 0, 7, FUNC),
        ],
    );
    let plan = plan_object(&file).unwrap();
    assert_eq!(plan.probes, []);
    let skipped: Vec<_> =
        plan.skipped.iter().map(|skipped| (skipped.name.as_str(), skipped.omission)).collect();
    let expected =
        [("malloc", Omission::Unsupported), ("xallocx", Omission::Unsupported), ("free", Omission::Unsafe)];
    assert_eq!(skipped, expected);
}

#[test]
fn operators_are_probed_only_beside_an_allocator() {
    let operators = [("_Znwm", 0, 7, FUNC), ("_ZnwmRKSt9nothrow_t", 16, 7, FUNC)];
    let mut code = code();
    code.copy_within(..7, 16);
    code.copy_within(..7, 32);
    assert_eq!(plan_object(&elf_file(&code, &operators)).unwrap().probes, []);

    let file = elf_file(&code, &[operators[0], operators[1], ("malloc", 32, 7, FUNC)]);
    // There is nothing to unwind by in the file, so that no exception can pass.
    let plan = plan_object(&file).unwrap();
    let svmas: Vec<_> = plan.probes.iter().map(|probe| probe.place.site().function_svma - BASE).collect();
    assert_eq!(svmas, [0, 16, 32]);
}

#[test]
fn a_function_that_passes_the_block_on_is_left_to_the_other_unless_both_do() {
    let mut code = code();
    code[16..21].copy_from_slice(&[0xe9, 0xeb, 0xff, 0xff, 0xff]); // jmp 0
    let symbols = [("free", 0, 7, FUNC), ("_ZdlPv", 16, 5, FUNC), ("malloc", 0x30, 1, FUNC)];
    let plan = plan_object(&elf_file(&code, &symbols)).unwrap();
    assert_eq!(plan.probes.len(), 2);
    assert_eq!((&*plan.skipped[0].name, plan.skipped[0].omission), ("_ZdlPv", Omission::SeenElsewhere));

    code[..5].copy_from_slice(&[0xe9, 0x0b, 0x00, 0x00, 0x00]); // jmp 16: a ring
    let plan = plan_object(&elf_file(&code, &symbols)).unwrap();
    assert_eq!(plan.probes.len(), 3);
}

#[test]
fn other_files_are_refused_with_the_reason() {
    assert!(matches!(plan_object(b""), Err(PlanError::NotElf)));
    assert!(matches!(plan_object(b"#!/bin/sh\n"), Err(PlanError::NotElf)));
    assert!(matches!(plan_object(b"\x7fELF\x02\x01"), Err(PlanError::Malformed(_))));
    let good = elf_file(&code(), &[("free", 0, 7, FUNC)]);
    let with = |at: usize, value: u8| {
        let mut file = good.clone();
        file[at] = value;
        plan_object(&file)
    };
    assert!(matches!(with(4, 1), Err(PlanError::Architecture)), "32 bits");
    assert!(matches!(with(18, 183), Err(PlanError::Architecture)), "aarch64");
    assert!(matches!(with(64 + 32 + 3, 0x10), Err(PlanError::Segment)), "a segment larger than the file");
}

#[test]
fn a_plan_reads_as_a_table() {
    let mut code = code();
    code.copy_within(..7, 16);
    code[32..38].copy_from_slice(&[0x48, 0x83, 0xec, 0x18, 0x90, 0xc3]); // sub $24,%rsp; nop; ret
    let symbols = [
        ("free", 0, 7, FUNC),
        ("cfree", 0, 7, FUNC),
        ("_ZnwmRKSt9nothrow_t", 16, 7, FUNC),
        ("malloc", 32, 7, FUNC),
        ("xallocx", 48, 7, FUNC),
    ];
    let plan = plan_object(&elf_file(&code, &symbols)).unwrap();
    let table = PlanTable { plan: &plan, catalog: &Catalog::default() }.to_string();
    insta::assert_snapshot!(table, @r"
    FUNCTION      ADDRESS   AT    PROBES        COST            INSTRUCTION     WHY
    free          0x401000  +0x3  entry         emulated        je 0x401005     first cheap instruction; every call passes it, arguments intact (also cfree)
    operator new  0x401010  +0x3  entry+return  emulated        je 0x401015     first cheap instruction; every call passes it, arguments intact
    malloc        0x401020  +0x0  entry+return  single-stepped  sub $0x18,%rsp  at the entry: `sub $0x18,%rsp` moves the stack before a cheap instruction
    not probed: xallocx: resizes a block in place and returns a size, not a block
    ");
    let empty = PlanTable { plan: &ObjectPlan::default(), catalog: &Catalog::default() };
    assert_eq!(empty.to_string(), "");
}

/// The allocators that this machine has.
fn allocators() -> Vec<(PathBuf, Vec<u8>)> {
    let names =
        ["libc.so.6", "libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libtcmalloc.so.4", "libmimalloc.so.2"];
    let paths = ["/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"]
        .iter()
        .flat_map(|folder| names.iter().map(move |name| Path::new(folder).join(name)))
        .chain(["/lib/ld-musl-x86_64.so.1".into(), "/lib64/ld-linux-x86-64.so.2".into()]);
    paths.filter_map(|path| Some((path.clone(), std::fs::read(path).ok()?))).collect()
}

/// The addresses and instructions that `objdump` sees from one address on.
fn objdump(path: &Path, svma: u64, bytes: u64) -> Vec<(u64, String)> {
    let output = Command::new("objdump")
        .args(["-d", "--no-show-raw-insn"])
        .arg(format!("--start-address={svma:#x}"))
        .arg(format!("--stop-address={:#x}", svma + bytes))
        .arg(path)
        .output()
        .expect("objdump (package binutils) checks the plan");
    let text = String::from_utf8(output.stdout).unwrap();
    let instruction = |line: &str| {
        let (address, instruction) = line.split_once(":\t")?;
        let address = u64::from_str_radix(address.trim(), 16).ok()?;
        Some((address, instruction.split('#').next()?.trim().to_owned()))
    };
    text.lines().filter_map(instruction).collect()
}

fn mnemonic(instruction: &str) -> &str {
    instruction.split_whitespace().next().unwrap_or_default()
}

#[test]
fn every_allocator_of_this_machine_is_planned_as_objdump_reads_it() {
    let catalog = Catalog::default();
    let files = allocators();
    assert!(files.iter().any(|(path, _)| path.ends_with("libc.so.6")), "no libc was found: {files:?}");
    for (path, elf) in files {
        for probe in plan_object(&elf).unwrap().probes {
            let site = probe.place.site();
            let name = format!("{} in {}", catalog.get(probe.api).unwrap().name, path.display());
            let code = objdump(&path, site.function_svma, u64::from(site.offset_in_function) + 16);
            let at = code.iter().position(|(svma, _)| *svma == site.svma());
            let at = at.unwrap_or_else(|| panic!("{name}: {site:?} is inside an instruction"));
            let found = mnemonic(&code[at].1);
            assert_eq!(found, mnemonic(&site.instruction), "{name}");
            let cheap = found.starts_with('j') || ["push", "nop", "xchg", "call"].contains(&found);
            assert_eq!(cheap, site.cost == Cost::Emulated, "{name}: {found}");
            for (_, before) in &code[..at] {
                let leaves = ["j", "push", "pop", "call", "ret", "leave", "int", "sys", "(bad)"];
                let straight = !leaves.iter().any(|leaver| before.starts_with(leaver));
                assert!(straight && !before.ends_with(",%rsp"), "{name}: `{before}` comes before the probe");
            }
        }
    }
}

#[test]
fn the_c_interface_of_libc_is_complete() {
    let catalog = Catalog::default();
    for (path, elf) in allocators() {
        if !path.ends_with("libc.so.6") {
            continue;
        }
        let plan = plan_object(&elf).unwrap();
        assert_eq!(plan.skipped, []);
        let find = |name: &str| {
            let is = |probe: &&PlannedProbe| {
                catalog.get(probe.api).unwrap().name == name
                    || probe.aliases.iter().any(|alias| alias == name)
            };
            plan.probes.iter().find(is).unwrap_or_else(|| panic!("no probe for {name}"))
        };
        for name in [
            "malloc",
            "calloc",
            "realloc",
            "reallocarray",
            "posix_memalign",
            "aligned_alloc",
            "memalign",
            "valloc",
        ] {
            assert!(matches!(find(name).place, ProbePlacement::EntryAndReturn(_)), "{name}");
        }
        assert!(matches!(find("free").place, ProbePlacement::Entry { .. }));
        // The build whose code the design looked at; others have their own offsets.
        if elf.windows(13).any(|text| text == b"GLIBC 2.36-9+") {
            for (name, offset, instruction) in [
                ("malloc", 0, "push %r12"),
                ("calloc", 0, "push %r13"),
                ("realloc", 0, "push %r15"),
                ("free", 3, "je"),
                ("posix_memalign", 7, "push %r12"),
                ("aligned_alloc", 7, "je"),
            ] {
                let site = find(name).place.site();
                assert_eq!(site.offset_in_function, offset, "{name}");
                assert!(site.instruction.starts_with(instruction), "{name}: {}", site.instruction);
            }
            assert_eq!(find("memalign").api, find("aligned_alloc").api);
        }
    }
}

/// The smallest real allocator at hand, since it is read a few hundred times.
fn small_allocator() -> Vec<u8> {
    let files = allocators().into_iter().map(|(_, elf)| elf);
    let with_probes = files.filter(|elf| !plan_object(elf).unwrap().probes.is_empty());
    with_probes.min_by_key(Vec::len).expect("this machine has a libc")
}

/// Where a mutation hurts most: the headers, or anywhere.
fn mutation() -> impl Strategy<Value = (prop::sample::Index, bool, u8)> {
    (any::<prop::sample::Index>(), any::<bool>(), any::<u8>())
}

#[test]
fn broken_files_are_survived() {
    let original = small_allocator();
    let sections_at = u64::from_le_bytes(original[40..48].try_into().unwrap()) as usize;
    let mutations = prop::collection::vec(mutation(), 1..24);
    let cut = prop::option::weighted(0.2, any::<prop::sample::Index>());
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let outcome = runner.run(&(mutations, cut), |(mutations, cut)| {
        let mut file = original.clone();
        for (index, in_headers, value) in mutations {
            let sections = original.len() - sections_at;
            let at = match index.index(file.len()) {
                any if !in_headers => any,
                any if any % 2 == 0 => any % 1024,
                any => sections_at + any % sections,
            };
            file[at] = value;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(original.len()));
        }
        if let Ok(plan) = plan_object(&file) {
            for probe in plan.probes {
                prop_assert!(probe.place.site().file_offset < file.len() as u64);
            }
        }
        Ok(())
    });
    outcome.unwrap();
}
