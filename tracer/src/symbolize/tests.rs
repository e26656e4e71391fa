//! Real programs, compiled and started by the tests, that say where their code is.
//!
//! A program writes lines `name 0xaddress` and then `ready`, and lives until its standard input is closed. What it
//! prints for a function is an address one past the function's first byte, as a return address would be; or it is a
//! real return address.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use object::{Object as _, ObjectSection, ObjectSymbol};
use tempfile::TempDir;
use tracer_ebpf::process::ProcessIndex;

use super::*;
use crate::drain::WalkedFrame;

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

    /// What it has mapped now, as the kernel is given it.
    fn view(&self, generation: u16) -> CodeView {
        let target = Target::open(self.pid).unwrap();
        let mut code = target.mappings().unwrap();
        code.retain(|mapping| mapping.permissions.execute);
        let objects = target.objects().unwrap().opened.into_iter().map(Arc::new).collect();
        CodeView {
            process: ProcessIndex::default(),
            generation,
            changes: Some(generation.into()),
            code,
            objects,
            runtimes: Default::default(),
        }
    }

    /// One that knows what it has mapped now.
    fn symbolizer(&self) -> Symbolizer {
        let mut symbolizer = Symbolizer::new(self.pid, &SharedModules::default(), false);
        symbolizer.add_code(&self.view(0));
        symbolizer
    }

    fn frames(&self, symbolizer: &mut Symbolizer, name: &str) -> Vec<Arc<Frame>> {
        symbolizer.symbolize(&seen(&[self.said[name]]), walked_by(0))
    }

    /// The label of the only frame of what it called `name`.
    fn label(&self, symbolizer: &mut Symbolizer, name: &str) -> String {
        let frames = self.frames(symbolizer, name);
        assert_eq!(frames.len(), 1, "{frames:?}");
        frames[0].label()
    }
}

/// A walk by the list of this generation, which knew all code.
fn walked_by(generation: u16) -> WalkedCode {
    WalkedCode { changes: generation.into(), generation, last_is_unknown: false }
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

fn assert_inlines(frames: &[Arc<Frame>], source: &str) {
    let [inner, outer] = frames else { panic!("{frames:?}") };
    let what = |frame: &Frame| (frame.function.clone().unwrap(), frame.line, frame.inlined);
    assert_eq!(what(inner), ("inner".to_owned(), line_of(source, "inner"), true));
    assert_eq!(what(outer), ("outer".to_owned(), line_of(source, "outer"), false));
    assert!(inner.file.as_ref().is_some_and(|file| file.ends_with("prog.source")), "{inner:?}");
    assert_eq!((inner.ip, &inner.module, &inner.offset), (outer.ip, &outer.module, &outer.offset));
}

/// The capabilities that `map_files` asks for are taken from this very test.
#[test]
fn without_map_files_the_path_is_good_enough() {
    if !privileged() {
        return;
    }
    let caps = "--bounding-set=-sys_admin,-checkpoint_restore";
    let test = std::env::current_exe().unwrap();
    for (name, succeeds) in [
        ("inlined_functions_come_first_with_their_lines", true),
        ("a_program_in_a_root_of_its_own_is_named", true),
        ("a_deleted_and_replaced_program_is_read_by_what_is_mapped", false),
    ] {
        let name = format!("symbolize::tests::{name}");
        let output = Command::new("setpriv").arg(caps).arg(&test).args(["--exact", &name]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("running 1 test"), "{text}");
        assert_eq!(output.status.success(), succeeds, "{text}");
    }
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

const EXPORTS: &str = r#"
__attribute__((visibility("default"), noinline)) void *visible(void) { return here(); }
static NOINLINE void *hidden(void) { void *at = here(); __asm__ volatile(""); return at; }
int main(void) { SAY("visible", (char *)visible + 1); SAY("hidden", hidden()); rest(); }
"#;

#[test]
fn what_a_stripped_object_does_not_name_is_module_and_offset() {
    for (options, named) in [("-pie -fPIE", false), ("-no-pie", false), ("-pie -fPIE -rdynamic", true)] {
        let shop = Workshop::new();
        let path = shop.compile("prog", EXPORTS, &format!("-O2 -fvisibility=hidden {options}"));
        let hidden = symbol(&path, "hidden");
        run(&format!("strip {}", path.display()));
        let program = Program::start(&mut Command::new(&path));
        let mut symbolizer = program.symbolizer();
        let visible = program.label(&mut symbolizer, "visible");
        assert_eq!(visible == "visible", named, "{options}: {visible}");
        let frames = program.frames(&mut symbolizer, "hidden");
        let offset =
            frames[0].offset.as_ref().and_then(|hex| u64::from_str_radix(&hex[2..], 16).ok()).unwrap();
        assert!(hidden.contains(&offset), "{options}: {offset:#x} in {hidden:x?}");
        assert_eq!(frames[0].label(), format!("prog+{:#x}", hidden.start), "{options}");
    }
}

#[test]
fn without_frame_information_the_place_of_a_call_is_its_own() {
    let shop = Workshop::new();
    let options = "-O2 -fvisibility=hidden -fno-asynchronous-unwind-tables";
    let path = shop.compile("prog", EXPORTS, options);
    let hidden = symbol(&path, "hidden");
    run(&format!("strip --remove-section=.eh_frame --remove-section=.eh_frame_hdr {}", path.display()));
    let program = Program::start(&mut Command::new(&path));
    let frame = &program.frames(&mut program.symbolizer(), "hidden")[0];
    assert_eq!(frame.function_offset, None);
    let offset = frame.label().strip_prefix("prog+0x").map(|hex| u64::from_str_radix(hex, 16).unwrap());
    assert!(offset.is_some_and(|offset| offset > hidden.start && hidden.contains(&offset)), "{frame:?}");
}

/// Frames of no runtime.
fn seen(addresses: &[Address]) -> Vec<SeenFrame> {
    addresses.iter().map(|&address| WalkedFrame::from(address).into()).collect()
}

/// The addresses that symbol `name` of the file at `path` covers.
fn symbol(path: &Path, name: &str) -> Range<u64> {
    let bytes = fs::read(path).unwrap();
    let file = ::object::File::parse(&*bytes).unwrap();
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name)).unwrap();
    symbol.address()..symbol.address() + symbol.size()
}

/// Every address of a real library's code, at a stride, against a naive search of its symbol tables.
#[test]
fn no_name_reaches_beyond_its_symbol() {
    let shop = Workshop::new();
    let library = shop.path("copy.so");
    fs::copy(run("g++ -print-file-name=libstdc++.so.6").trim_end(), &library).unwrap();
    // The machine may have its debug information.
    run(&format!(
        "objcopy --remove-section .note.gnu.build-id --remove-section .gnu_debuglink {}",
        library.display()
    ));
    let source = r#"
#include <dlfcn.h>
int main(int count, char **paths) { if (!dlopen(paths[1], RTLD_NOW)) abort(); rest(); }"#;
    let program = Program::start(Command::new(shop.compile("prog", source, "-O1")).arg(&library));
    let mut symbolizer = program.symbolizer();
    let code = program.view(0).code;
    let mapped = code.iter().find(|mapping| mapping.path() == Some(&library)).unwrap();
    let bytes = fs::read(&library).unwrap();
    let file = ::object::File::parse(&*bytes).unwrap();
    let symbols: Vec<(Range<u64>, String)> = (file.symbols().chain(file.dynamic_symbols()))
        .filter(|symbol| symbol.is_definition() && symbol.size() > 0)
        .map(|symbol| (symbol.address()..symbol.address() + symbol.size(), symbol.name().unwrap().to_owned()))
        .collect();
    // In a shared library of one executable segment, as ld lays it out, svma and file offset of code are the same.
    let text = file.section_by_name(".text").unwrap();
    assert_eq!(text.file_range().unwrap().0, text.address());
    let bias = mapped.start.0.wrapping_sub(mapped.file_offset);
    let (mut named, mut unnamed) = (0, 0);
    for svma in (text.address()..text.address() + text.size()).step_by(4099) {
        let frame = symbolizer.symbolize(&seen(&[Address(bias + svma + 1)]), walked_by(0)).pop().unwrap();
        assert_eq!(frame.offset, Some(format!("{:#x}", svma + 1)));
        let mut candidates = symbols.iter().filter(|(range, _)| range.contains(&svma)).map(|(_, name)| name);
        match &frame.function {
            Some(function) => {
                assert!(candidates.any(|name| demangle::demangle(name).text == *function), "{frame:?}")
            }
            None => assert_eq!(candidates.next(), None, "{frame:?}"),
        }
        *(if frame.function.is_some() { &mut named } else { &mut unnamed }) += 1;
    }
    assert!(named > 10 && unnamed > 10, "{named} named, {unnamed} not: this tested nothing");
}

const UNSIZED: &str = r#"
__asm__(".text\n.globl unsized\nunsized:\n .fill 64,1,0x90\n"
        ".section elsewhere,\"ax\",@progbits\n .fill 64,1,0x90\nelsewhere_end: .text\n");
extern char unsized[], __start_elsewhere[];
int main(void) { SAY("unsized", unsized + 33); SAY("elsewhere", __start_elsewhere + 33); rest(); }
"#;

#[test]
fn a_symbol_without_size_ends_with_its_section() {
    let shop = Workshop::new();
    let path = shop.compile("prog", UNSIZED, "-O1");
    run(&format!("strip --keep-symbol=unsized {}", path.display()));
    let program = Program::start(&mut Command::new(&path));
    let mut symbolizer = program.symbolizer();
    assert_eq!(program.label(&mut symbolizer, "unsized"), "unsized");
    let elsewhere = program.label(&mut symbolizer, "elsewhere");
    assert!(elsewhere.starts_with("prog+0x"), "{elsewhere}");
}

/// Splits the debug information off the program at `path`, into the file `debug`.
fn split(path: &Path, debug: &Path) {
    fs::create_dir_all(debug.parent().unwrap()).unwrap();
    run(&format!("objcopy --only-keep-debug {} {}", path.display(), debug.display()));
    run(&format!("strip {}", path.display()));
}

fn link(path: &Path, debug: &Path) {
    run(&format!("objcopy --add-gnu-debuglink={} {}", debug.display(), path.display()));
}

#[test]
fn a_debug_link_is_followed() {
    for (options, place) in
        [("-Wl,--build-id", "prog.debug"), ("-Wl,--build-id=none", "prog.debug"), ("", ".debug/prog.debug")]
    {
        let shop = Workshop::new();
        let path = shop.compile("prog", INLINES, &format!("-O2 -g {options}"));
        let debug = shop.path(place);
        split(&path, &debug);
        link(&path, &debug);
        let program = Program::start(&mut Command::new(&path));
        assert_inlines(&program.frames(&mut program.symbolizer(), "outer"), INLINES);
    }
}

#[test]
fn a_debug_file_of_another_build_is_not_believed() {
    for build_id in ["-Wl,--build-id", "-Wl,--build-id=none"] {
        let shop = Workshop::new();
        let options = format!("-O2 -g -rdynamic -fvisibility=hidden {build_id}");
        let path = shop.compile("prog", EXPORTS, &options);
        let debug = shop.path("prog.debug");
        split(&path, &debug);
        link(&path, &debug);
        // The same functions at the same place, built differently.
        let other = shop.compile("other", EXPORTS, &format!("{options} -DOTHER -gdwarf-4"));
        split(&other, &debug);
        let program = Program::start(&mut Command::new(&path));
        let mut symbolizer = program.symbolizer();
        assert_eq!(program.label(&mut symbolizer, "visible"), "visible", "{build_id}");
        assert!(program.label(&mut symbolizer, "hidden").starts_with("prog+0x"), "{build_id}");
    }
}

#[test]
fn compressed_symbols_in_the_object_are_read() {
    let shop = Workshop::new();
    let path = shop.compile("prog", EXPORTS, "-O2 -fvisibility=hidden");
    let symbols = shop.path("symbols");
    fs::copy(&path, &symbols).unwrap();
    run(&format!("strip {}", path.display()));
    run(&format!("xz {}", symbols.display()));
    run(&format!("objcopy --add-section .gnu_debugdata={}.xz {}", symbols.display(), path.display()));
    let program = Program::start(&mut Command::new(&path));
    assert_eq!(program.label(&mut program.symbolizer(), "hidden"), "hidden");
}

const CPP: &str = r#"
namespace outer { namespace {
template <typename T> struct Stack { NOINLINE void *push(T) { void *at = here(); __asm__ volatile(""); return at; } };
} NOINLINE void *plain(int, char const *) { void *at = here(); __asm__ volatile(""); return at; } }
template <typename T> NOINLINE void *make(T) { void *at = here(); __asm__ volatile(""); return at; }
static NOINLINE void *local(long) { void *at = here(); __asm__ volatile(""); return at; }
int main() {
  outer::Stack<int> stack;
  SAY("push", stack.push(1)); SAY("plain", outer::plain(1, "")); SAY("make", make(1.0)); SAY("local", local(1));
  auto lambda = [](int) NOINLINE { void *at = here(); __asm__ volatile(""); return at; };
  SAY("lambda", lambda(1));
  rest();
}
"#;

#[test]
fn cpp_names_are_the_same_with_and_without_debug_information() {
    for options in ["-O1 -x c++", "-O1 -g -x c++"] {
        let shop = Workshop::new();
        let program = Program::start(&mut Command::new(shop.compile("prog", CPP, options)));
        let mut symbolizer = program.symbolizer();
        for (said, name) in [
            ("push", "outer::(anonymous namespace)::Stack<int>::push(int)"),
            ("plain", "outer::plain(int, char const*)"),
            ("make", "make<double>(double)"),
            ("local", "local(long)"),
            ("lambda", "main::{lambda(int)#1}::operator()(int) const"),
        ] {
            let frames = program.frames(&mut symbolizer, said);
            assert_eq!(frames[0].label(), name, "{options}");
            assert_eq!(frames[0].language.as_deref(), Some("c++"));
        }
    }
}

const RUST: &str = r#"
mod shapes {
    #[inline(never)]
    pub fn generic<T: std::fmt::Debug>(value: T) -> u64 {
        std::hint::black_box(&value);
        generic::<T> as fn(T) -> u64 as usize as u64
    }
}
fn main() {
    println!("generic {:#x}", shapes::generic(1u8) + 1);
    println!("ready");
    let _ = std::io::stdin().read_line(&mut String::new());
}
"#;

#[test]
fn rust_names_have_no_hash() {
    for options in ["", "-g", "-Csymbol-mangling-version=v0", "-g -Csymbol-mangling-version=v0"] {
        let shop = Workshop::new();
        let (source, path) = (shop.write("prog.rs", RUST), shop.path("prog"));
        run(&format!("rustc {options} --edition 2021 -o {} {}", path.display(), source.display()));
        let program = Program::start(&mut Command::new(&path));
        let frames = program.frames(&mut program.symbolizer(), "generic");
        let frame = frames.last().unwrap();
        // Which mangling is the default depends on the compiler; the older one does not tell the type.
        let label = frame.label();
        let untyped = label.strip_suffix("::<u8>").unwrap_or(&label);
        assert_eq!(
            (untyped, frame.language.as_deref()),
            ("prog::shapes::generic", Some("rust")),
            "{options}"
        );
        assert!(label != untyped || !options.contains("v0"), "{options}: {label}");
        assert_eq!(frame.line.is_some(), options.contains("-g"));
    }
}

#[test]
fn a_deleted_and_replaced_program_is_read_by_what_is_mapped() {
    if !privileged() {
        return;
    }
    let shop = Workshop::new();
    let path = shop.compile("prog", INLINES, "-O2 -g");
    let program = Program::start(&mut Command::new(&path));
    fs::remove_file(&path).unwrap();
    assert_inlines(&program.frames(&mut program.symbolizer(), "outer"), INLINES);
    let other = shop.compile("other", EXPORTS, "-O2 -g");
    fs::rename(other, &path).unwrap();
    assert_inlines(&program.frames(&mut program.symbolizer(), "outer"), INLINES);
}

#[test]
fn a_function_of_the_c_library_has_the_name_that_callers_know() {
    let shop = Workshop::new();
    let source =
        r#"int main(void) { SAY("puts", (char *)puts + 1); SAY("malloc", (char *)malloc + 1); rest(); }"#;
    for link in ["-pie -fPIE", "-static"] {
        let program = Program::start(&mut Command::new(shop.compile("prog", source, &format!("-O1 {link}"))));
        let mut symbolizer = program.symbolizer();
        for name in ["puts", "malloc"] {
            let frames = program.frames(&mut symbolizer, name);
            assert_eq!(frames.last().unwrap().function.as_deref(), Some(name), "{link}");
        }
    }
}

#[test]
fn a_target_that_is_gone_is_still_named() {
    let shop = Workshop::new();
    let source = format!(
        "{}{}",
        INLINES.split("int main").next().unwrap(),
        r#"
int main(void) { SAY("outer", outer()); SAY("puts", (char *)puts + 1); SAY("main", (char *)main + 1); rest(); }"#
    );
    let path = shop.compile("prog", &source, "-O2 -g");
    let mut program = Program::start(&mut Command::new(&path));
    let (mut symbolizer, view) = (program.symbolizer(), program.view(0));
    assert_eq!(program.label(&mut symbolizer, "main"), "main");
    program.kill();
    fs::remove_file(&path).unwrap();
    let mut late = Symbolizer::new(program.pid, &SharedModules::default(), false);
    late.add_code(&view);
    for mut symbolizer in [symbolizer, late] {
        assert_inlines(&program.frames(&mut symbolizer, "outer"), &source);
        let puts = program.frames(&mut symbolizer, "puts");
        assert_eq!(puts.last().unwrap().function.as_deref(), Some("puts"));
    }
}

#[test]
fn a_stack_that_was_walked_by_no_known_list_is_not_named() {
    let shop = Workshop::new();
    let program = Program::start(&mut Command::new(shop.compile("prog", INLINES, "-O2 -g")));
    let bare = format!("[{}]", program.said["outer"]);
    assert_eq!(
        program.label(&mut Symbolizer::new(program.pid, &SharedModules::default(), false), "outer"),
        bare
    );
    let frames = program.symbolizer().symbolize(&seen(&[program.said["outer"]]), walked_by(1));
    assert_eq!((frames.len(), frames[0].label()), (1, bare));
}

#[test]
fn an_address_that_is_nowhere_is_itself() {
    let shop = Workshop::new();
    let program = Program::start(&mut Command::new(shop.compile("prog", INLINES, "-O2")));
    let addresses = [0, 1, 0x10, u64::MAX].map(Address);
    let frames = program.symbolizer().symbolize(&seen(&addresses), walked_by(0));
    assert_eq!(frames, addresses.map(|ip| Arc::new(Frame { ip, ..Frame::default() })));
}

const LIBRARIES: &str = r#"
#include <dlfcn.h>
int main(int count, char **paths) {
  void *first = dlopen(paths[1], RTLD_NOW);
  SAY("first", (char *)dlsym(first, "function") + 1); rest();
  dlclose(first); rest();
  SAY("second", (char *)dlsym(dlopen(paths[2], RTLD_NOW), "other_function") + 1); rest();
}
"#;

#[test]
fn libraries_that_had_one_place_are_told_apart_by_when_stacks_were_walked() {
    let shop = Workshop::new();
    let library = |name: &str, function: &str| {
        shop.compile(name, &format!("int {function}(void) {{ return 1; }}"), "-O1 -shared -fPIC")
    };
    let (first, second) = (library("first.so", "function"), library("second.so", "other_function"));
    let mut program =
        Program::start(Command::new(shop.compile("prog", LIBRARIES, "-O1")).args([first, second]));
    let mut symbolizer = program.symbolizer();
    program.go_on();
    symbolizer.add_code(&program.view(1));
    program.go_on();
    symbolizer.add_code(&program.view(2));
    assert_eq!(program.said["first"], program.said["second"], "this test needs both at one address");
    let mut label =
        |generation| symbolizer.symbolize(&seen(&[program.said["first"]]), walked_by(generation))[0].label();
    let none = format!("[{}]", program.said["first"]);
    assert_eq!([0, 1, 2].map(&mut label), ["function", &none, "other_function"]);
}

#[test]
fn code_that_no_list_had_yet_is_named_by_the_next_one() {
    let shop = Workshop::new();
    let library = shop.compile("first.so", "int function(void) { return 1; }", "-O1 -shared -fPIC");
    let source = r#"
#include <dlfcn.h>
int main(int count, char **paths) {
  SAY("main", (char *)main + 1); rest();
  SAY("function", (char *)dlsym(dlopen(paths[1], RTLD_NOW), "function") + 1); rest();
}"#;
    let mut program = Program::start(Command::new(shop.compile("prog", source, "-O1")).arg(library));
    let mut symbolizer = program.symbolizer();
    program.go_on();
    let stack = [program.said["main"], program.said["function"]];
    let behind = WalkedCode { changes: 1, generation: 0, last_is_unknown: true };
    let labels = |symbolizer: &mut Symbolizer| {
        symbolizer.symbolize(&seen(&stack), behind).iter().map(|frame| frame.label()).collect::<Vec<_>>()
    };
    assert_eq!(labels(&mut symbolizer), ["main".to_owned(), format!("[{}]", stack[1])]);
    symbolizer.add_code(&program.view(1));
    assert_eq!(labels(&mut symbolizer), ["main", "function"]);
}

#[test]
fn the_vdso_is_named() {
    let shop = Workshop::new();
    let source = r#"
#include <dlfcn.h>
int main(void) {
  void *vdso = dlopen("linux-vdso.so.1", RTLD_NOW | RTLD_NOLOAD);
  SAY("vdso", (char *)dlsym(vdso, "__vdso_gettimeofday") + 1); rest();
}"#;
    let program = Program::start(&mut Command::new(shop.compile("prog", source, "-O1")));
    let frames = program.frames(&mut program.symbolizer(), "vdso");
    assert!(frames[0].label().ends_with("gettimeofday"), "{frames:?}");
    assert_eq!(frames[0].module.as_deref(), Some("[vdso]"));
    assert!(frames[0].build_id.is_some() && frames[0].offset.is_some());
}

const JIT: &str = r#"
#include <sys/mman.h>
#include <unistd.h>
int main(void) {
  char *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char path[64];
  sprintf(path, "/tmp/perf-%d.map", (int)getpid());
  FILE *map = fopen(path, "w");
  fprintf(map, "%lx 10 LazyCompile:~first app.js:1\n", (unsigned long)code); fflush(map);
  SAY("first", code + 1); SAY("second", code + 0x18); SAY("none", code + 0x100); rest();
  fprintf(map, "%lx 10 LazyCompile:*sec", (unsigned long)code + 0x10); fflush(map); rest();
  fprintf(map, "ond app.js:2\n"); fflush(map); rest();
  fprintf(map, "%lx 20 moved over both\n", (unsigned long)code); fflush(map); rest();
  unlink(path); rest();
}
"#;

fn assert_jit(program: &mut Program) {
    let mut symbolizer = program.symbolizer();
    let first = program.frames(&mut symbolizer, "first");
    assert_eq!(first[0].label(), "LazyCompile:~first app.js:1");
    assert_eq!((first[0].language.as_deref(), &first[0].offset), (Some("jit"), &None));
    assert_eq!(program.label(&mut symbolizer, "second"), "[anon]");
    program.go_on();
    assert_eq!(program.label(&mut symbolizer, "second"), "[anon]", "a line that is not yet complete");
    program.go_on();
    assert_eq!(program.label(&mut symbolizer, "second"), "LazyCompile:*second app.js:2");
    program.go_on();
    assert_eq!(program.label(&mut symbolizer, "first"), "moved over both");
    assert_eq!(program.label(&mut symbolizer, "none"), "[anon]");
    program.go_on();
}

#[test]
fn compiled_code_is_named_by_a_growing_perf_map() {
    let shop = Workshop::new();
    assert_jit(&mut Program::start(&mut Command::new(shop.compile("prog", JIT, "-O1"))));
}

/// A root directory of its own with a static program in it, as in a container.
fn container(shop: &Workshop, source: &str) -> PathBuf {
    shop.compile("root/prog", source, "-O2 -g -static -Wl,--build-id");
    fs::create_dir(shop.path("root/tmp")).unwrap();
    shop.path("root")
}

/// Starts the program of a root directory with nothing but another root.
fn with_own_root(root: &Path) -> Program {
    Program::start(Command::new("chroot").arg(root).arg("/prog"))
}

/// Starts it as a container's first process: in a mount and pid namespace of its own.
fn with_own_namespaces(root: &Path) -> Program {
    let enter = "mount --bind $0 $0 && cd $0 && mkdir old && pivot_root . old && exec /prog";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", enter]).arg(root);
    let mut program = Program::start(&mut command);
    let children = format!("/proc/{0}/task/{0}/children", program.pid);
    program.pid = Pid(fs::read_to_string(children).unwrap().trim().parse().unwrap());
    program
}

#[test]
fn a_program_in_a_root_of_its_own_is_named() {
    if !privileged() {
        return;
    }
    let shop = Workshop::new();
    let program = with_own_root(&container(&shop, INLINES));
    assert_inlines(&program.frames(&mut program.symbolizer(), "outer"), INLINES);
}

#[test]
fn debug_files_are_found_in_the_targets_root() {
    if !privileged() {
        return;
    }
    for start in [with_own_root, with_own_namespaces] {
        for by_build_id in [true, false] {
            let shop = Workshop::new();
            let root = container(&shop, INLINES);
            let path = root.join("prog");
            let object = fs::File::open(&path).and_then(|file| ObjectFile::open(file, path.clone()));
            let id = object.unwrap().build_id().unwrap();
            let by_id = format!("usr/lib/debug/.build-id/{}/{}.debug", &id[..2], &id[2..]);
            let debug = root.join(if by_build_id { &by_id } else { "usr/lib/debug/prog.debug" });
            split(&path, &debug);
            if !by_build_id {
                link(&path, &debug);
            }
            let program = start(&root);
            assert_inlines(&program.frames(&mut program.symbolizer(), "outer"), INLINES);
        }
    }
}

#[test]
fn a_perf_map_is_found_in_the_targets_namespaces() {
    if !privileged() {
        return;
    }
    let shop = Workshop::new();
    let root = container(&shop, JIT);
    let mut program = with_own_namespaces(&root);
    assert!(root.join("tmp/perf-1.map").exists());
    assert_jit(&mut program);
}

#[test]
fn a_perf_map_of_an_earlier_process_or_another_user_is_not_believed() {
    if !privileged() {
        return;
    }
    for change in ["touch -d 2001-01-01", "chown 4242", "truncate -s 0"] {
        let shop = Workshop::new();
        let root = container(&shop, JIT);
        let program = with_own_namespaces(&root);
        run(&format!("{change} {}", root.join("tmp/perf-1.map").display()));
        assert_eq!(program.label(&mut program.symbolizer(), "first"), "[anon]", "{change}");
    }
}

/// Each byte of a line table in turn made into each of a few values: blazesym 0.2.7 panics on some of them.
#[test]
fn a_corrupt_object_costs_no_more_than_its_names() {
    let shop = Workshop::new();
    let path = shop.compile("prog", INLINES, "-O2 -g");
    let main = symbol(&path, "outer").start;
    let bytes = fs::read(&path).unwrap();
    let file = ::object::File::parse(&*bytes).unwrap();
    let (start, size) = file.section_by_name(".debug_line").unwrap().file_range().unwrap();
    let corrupt = shop.path("corrupt");
    for at in start..start + size {
        for value in [0, 4, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at as usize] = value;
            fs::write(&corrupt, bytes).unwrap();
            let object = ObjectFile::open(fs::File::open(&corrupt).unwrap(), corrupt.clone()).unwrap();
            let functions = object.functions(main, None);
            assert_eq!(functions.last().unwrap().name.text, "outer");
            fs::remove_file(&corrupt).unwrap();
        }
    }
}

#[test]
fn the_cache_is_bounded_and_keeps_what_is_in_use() {
    let mut cache = FrameCache::default();
    let frames: Rc<[Arc<Frame>]> = vec![Arc::default(); 3].into();
    let key = |address| (Address(address), 1, 0);
    let hot = key(0);
    cache.insert(hot, &frames);
    for address in 1..=CACHED_FRAMES as u64 {
        cache.insert(key(address), &frames);
        assert!(cache.get(hot).is_some(), "{address}");
        assert!((cache.new.len() + cache.old.len()) * frames.len() <= 2 * CACHED_FRAMES);
    }
    assert!(cache.get(key(1)).is_none());
}
