//! Real programs, compiled and started by the tests, that say where their code is.
//!
//! A program writes lines `name 0xaddress` and then `ready`, and lives until its standard input is closed. What it
//! prints for a function is an address one past the function's first byte, as a return address would be; or it is a
//! real return address.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use object::{Object as _, ObjectSection, ObjectSymbol};
use tempfile::TempDir;

use super::*;

/// What every C and C++ program begins with.
const PRELUDE: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define NOINLINE __attribute__((noinline))
#define SAY(name, address) printf("%s %#lx\n", name, (unsigned long)(address))
static void rest(void) { puts("ready"); fflush(stdout); if (getchar() == EOF) exit(0); }
NOINLINE void *here(void) { return __builtin_return_address(0); }
"#;

const INLINES: &str = r#"
static inline __attribute__((always_inline)) void *inner(void) { void *at = here(); __asm__ volatile(""); return at; } // inner
NOINLINE static void *outer(void) { void *at = inner(); __asm__ volatile(""); return at; } // outer
int main(void) { SAY("outer", outer()); rest(); }
"#;

/// A directory of programs, removed at the end.
struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Compiles `source`, after the prelude, to `name` with `gcc` or `g++`.
    fn compile(&self, name: &str, source: &str, options: &str) -> PathBuf {
        let cpp = options.contains("-x c++");
        let source = self.write(&format!("{name}.source"), &format!("{PRELUDE}{source}"));
        let output = self.path(name);
        let language = if cpp { "" } else { "-x c" };
        run(&format!(
            "{} -w {language} {options} -o {} {}",
            if cpp { "g++" } else { "gcc" },
            output.display(),
            source.display()
        ));
        output
    }
}

/// Runs a command of words without spaces.
fn run(command: &str) -> String {
    let mut words = command.split_ascii_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The line of a source that ends with `// name`, the prelude included.
fn line_of(source: &str, name: &str) -> Option<u32> {
    let text = format!("{PRELUDE}{source}");
    let at = text.lines().position(|line| line.ends_with(&format!("// {name}"))).unwrap();
    Some(at as u32 + 1)
}

/// A running program; killed when dropped.
struct Program {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    pid: Pid,
    said: HashMap<String, Address>,
}

impl Program {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let pid = Pid(child.id());
        let mut program = Self { child, input, output, pid, said: HashMap::new() };
        program.listen();
        program
    }

    /// Takes in what it says until it is ready.
    fn listen(&mut self) {
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the program ended early");
            let Some((name, address)) = line.trim_end().split_once(" 0x") else { break };
            self.said.insert(name.to_owned(), Address(u64::from_str_radix(address, 16).unwrap()));
        }
    }

    /// Lets it go on to the next time it is ready.
    fn go_on(&mut self) {
        self.input.as_mut().unwrap().write_all(b"\n").unwrap();
        self.listen();
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn symbolizer(&self) -> Symbolizer {
        Symbolizer::new(self.pid)
    }

    fn frames(&self, symbolizer: &mut Symbolizer, name: &str) -> Vec<Frame> {
        symbolizer.symbolize(&[self.said[name]])
    }

    /// The label of the only frame of what it called `name`.
    fn label(&self, symbolizer: &mut Symbolizer, name: &str) -> String {
        let frames = self.frames(symbolizer, name);
        assert_eq!(frames.len(), 1, "{frames:?}");
        frames[0].label()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `map_files` and `chroot` are root's. Without it such tests cannot run, which in CI is a failure.
fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "this test needs root");
    root
}

fn assert_inlines(frames: &[Frame], source: &str) {
    let [inner, outer] = frames else { panic!("{frames:?}") };
    let what = |frame: &Frame| (frame.function.clone().unwrap(), frame.line, frame.inlined);
    assert_eq!(what(inner), ("inner".to_owned(), line_of(source, "inner"), true));
    assert_eq!(what(outer), ("outer".to_owned(), line_of(source, "outer"), false));
    assert!(inner.file.as_ref().is_some_and(|file| file.ends_with("prog.source")), "{inner:?}");
    assert_eq!((inner.ip, &inner.module, &inner.offset), (outer.ip, &outer.module, &outer.offset));
}

#[test]
fn inlined_functions_come_first_with_their_lines() {
    for link in ["-pie -fPIE", "-no-pie", "-static", "-static-pie -fPIE"] {
        let shop = Workshop::new();
        let path = shop.compile("prog", INLINES, &format!("-O2 -g -Wl,--build-id {link}"));
        let program = Program::start(&mut Command::new(&path));
        let frames = program.frames(&mut program.symbolizer(), "outer");
        assert_inlines(&frames, INLINES);
        assert_eq!(frames[0].module.as_deref(), Some("prog"), "{link}");
        let notes = run(&format!("readelf -n {}", path.display()));
        assert!(notes.contains(frames[0].build_id.as_ref().unwrap()), "{link}: {notes}");
    }
}
