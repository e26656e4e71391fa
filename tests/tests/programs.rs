//! The programs themselves, untraced: each builds, keeps the protocol and ends well.

use std::{fs, os::unix::fs::FileExt};

use tracer_tests::{Program, compile, modified_text};

#[test]
fn every_program_says_what_it_will_do_and_does_it() {
    let library = |source, flag: &str| {
        compile(source, &["-shared".into(), "-fPIC".into(), flag.into()]).display().to_string()
    };
    let programs = [
        Program::new("malloc_family.c"),
        Program::new("malloc_family.c").flag("-static"),
        Program::new("cross_thread.c"),
        Program::new("churn.c"),
        Program::new("short_threads.c"),
        Program::new("nested.c").flag(library("own_allocator.c", "-fno-builtin")),
        Program::new("cxx_new.cpp"),
        Program::new("fork.c"),
        Program::new("leave.c").argument("wait"),
        Program::new("live_blocks.c").argument("100").argument("10"),
        Program::new("busy.c"),
        Program::new("mappings.c"),
        Program::new("rust_leak.rs"),
        Program::new("jit.c"),
        Program::new("plugin_host.c").argument(library("plugin.c", "-g")),
    ];
    for program in programs {
        let mut running = program.start();
        running.work();
        let modified = modified_text(running.pid());
        assert!(
            modified.is_empty(),
            "nobody traces {program:?}, yet its code differs from its file: {modified:x?}"
        );
        running.assert_unharmed();
    }
}

#[test]
fn a_breakpoint_that_was_left_is_noticed() {
    let running = Program::new("leave.c").start();
    let maps = fs::read_to_string(format!("/proc/{}/maps", running.pid())).expect("it is running");
    let text = maps.lines().find(|line| line.contains("r-xp")).expect("it has code");
    let start =
        u64::from_str_radix(text.split('-').next().expect("a range"), 16).expect("addresses are hexadecimal");
    // The kernel lets root write to code through this file, as a debugger does.
    let memory =
        fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", running.pid())).expect("we are root");
    memory.write_all_at(&[0xcc], start + 1).expect("the address is mapped");
    assert_eq!(modified_text(running.pid()), vec![start + 1]);
}
