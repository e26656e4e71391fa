//! The terminal interface, driven by keys in a real terminal against a real process.

use rustix::process::Signal;
use tracer_tests::{Program, Report, Running, Terminal, Tracer, send_signal, tracer_binary};

/// A terminal in which a program that has leaked is watched.
fn watch(program: &mut Running, options: &str) -> Terminal {
    // With room for every stack that the tests look for.
    let terminal = Terminal::open(80, 29);
    let binary = tracer_binary();
    terminal.run(&format!("{} --tui -o leak.json {options} --pid {}", binary.display(), program.pid()));
    terminal.wait_for("events/s");
    program.work();
    terminal
}

/// Ends the recording; the shell is back, with a terminal as it was.
fn end(terminal: &Terminal, program: &mut Running) -> Report {
    terminal.press("q");
    terminal.wait_for("JSON          leak.json");
    assert!(!terminal.is_drawn_on());
    assert_is_restored(terminal);
    program.assert_unharmed();
    Report::parse(&std::fs::read_to_string(terminal.path("leak.json")).expect("the report is written"))
}

fn assert_is_restored(terminal: &Terminal) {
    terminal.run("stty -a | tr ' ' '\\n' | grep -cx -e echo -e icanon -e isig");
    terminal.wait_until("3 modes of a usual terminal", |screen| screen.lines().any(|line| line == "3"));
}

#[test]
fn a_leak_is_seen_and_the_end_writes_the_reports() {
    let mut program = Program::new("malloc_family.c").start();
    let terminal = watch(&mut program, "");
    let first = &program.expect.leaks[0].function.clone();
    let screen = terminal.wait_for(first);
    assert!(terminal.is_drawn_on());
    assert!(screen.contains("ALLOCATED BY") && screen.contains("resident"), "{screen}");
    let expect = program.expect.clone();
    end(&terminal, &mut program).check(&expect);
}

#[test]
fn keys_do_what_they_say() {
    let mut program = Program::new("malloc_family.c").start();
    let terminal = watch(&mut program, "");
    let [first, .., last] = &program.expect.leaks[..] else { panic!("it leaks by several functions") };
    let (first, last) = (first.function.clone(), last.function.clone());
    terminal.wait_for(&first);

    terminal.press("?");
    terminal.wait_for("this help");
    terminal.press("Escape");
    terminal.wait_until("no help", |screen| !screen.contains("this help"));

    for (key, column) in
        [("b", "▼BLOCKS"), ("a", "▼OLDEST"), ("g", "▼GROWTH"), ("o", "▼OUTSTANDING"), ("Tab", "▼GROWTH")]
    {
        terminal.press(key);
        terminal.wait_for(column);
    }

    terminal.press("/");
    terminal.run(&last);
    terminal.wait_until("the one that was asked for", |screen| {
        screen.contains(&format!("with \"{last}\"")) && !screen.contains(&first)
    });
    terminal.press("Escape");
    terminal.wait_for(&first);

    terminal.press("p");
    terminal.wait_for("paused");
    terminal.press("p");
    terminal.wait_until("that it goes on", |screen| !screen.contains("paused"));

    terminal.resize(120, 40);
    terminal.wait_for("SHARE");
    terminal.resize(40, 8);
    terminal.wait_for("too small");
    terminal.resize(80, 24);
    terminal.wait_for("ALLOCATED BY");
    end(&terminal, &mut program);
}

#[test]
fn a_snapshot_and_a_mark() {
    let mut program = Program::new("malloc_family.c").start();
    let terminal = watch(&mut program, "");
    terminal.wait_for(&program.expect.leaks[0].function.clone());
    terminal.press("s");
    terminal.wait_for("leak.1.json");
    let snapshot = std::fs::read_to_string(terminal.path("leak.1.json")).expect("it was just written");
    Report::parse(&snapshot).check(&program.expect);
    terminal.press("m");
    terminal.wait_for("nothing that was allocated in this window is outstanding");
    let report = end(&terminal, &mut program);
    assert_eq!(report.totals.allocated_objects, 0);
    let history = terminal.history();
    assert!(history.contains("snapshot 1, "), "what was said meanwhile is there to be read:\n{history}");
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let mut program = Program::new("malloc_family.c").start();
    let terminal = watch(&mut program, "");
    send_signal(terminal.foreground(), Signal::TERM);
    terminal.wait_for("JSON          leak.json");
    assert!(!terminal.is_drawn_on());
    assert_is_restored(&terminal);
    program.assert_unharmed();
}

#[test]
fn a_terminal_that_is_closed_ends_the_recording() {
    let mut program = Program::new("malloc_family.c").start();
    let terminal = watch(&mut program, "");
    terminal.wait_for(&program.expect.leaks[0].function);
    terminal.close();
    let report = std::fs::read_to_string(terminal.path("leak.json")).expect("the report is written");
    Report::parse(&report).check(&program.expect);
    program.assert_unharmed();
}

#[test]
fn a_command_writes_to_a_file_meanwhile() {
    let terminal = Terminal::open(80, 24);
    terminal.run(&format!(
        "{} --tui -o leak.json -- sh -c 'echo heard; exec sleep 100'",
        tracer_binary().display()
    ));
    // The `exec` ends the recording, and the command goes on.
    terminal.wait_for("JSON          leak.json");
    assert!(!terminal.is_drawn_on());
    let output = std::fs::read_to_string(terminal.path("tracer-sh.out")).expect("its output is in a file");
    assert_eq!(output, "heard\n");
}

#[test]
fn without_a_terminal_one_line_says_so() {
    let finished = Tracer::command(["--tui", "--pid", "1"]).run();
    finished.assert_failed(1, &["--tui", "terminal"]);
}

#[test]
fn no_colour_where_none_is_wanted() {
    let mut program = Program::new("malloc_family.c").start();
    let is_colour = |code: &str| matches!(code.parse(), Ok(30..=38 | 40..=48 | 90..=97));
    let has_colour = |screen: &str| {
        let codes = screen.split("\u{1b}[").filter_map(|sequence| sequence.split_once('m'));
        codes.flat_map(|(codes, _)| codes.split(';')).any(is_colour)
    };
    let terminal = watch(&mut program, "--color never");
    terminal.wait_for("ALLOCATED BY");
    assert!(!has_colour(&terminal.colored_screen()), "{:?}", terminal.colored_screen());
    end(&terminal, &mut program);
    let mut program = Program::new("malloc_family.c").start();
    let terminal = watch(&mut program, "");
    terminal.wait_for("ALLOCATED BY");
    assert!(has_colour(&terminal.colored_screen()));
    end(&terminal, &mut program);
}
