//! Made-up programs, and who is to blame.

use std::sync::Arc;

use tracer_ebpf::stack::StackId;

use super::*;
use crate::analyze::{
    growth::{Births, Turnover},
    history::Source,
    housekeeping::is_housekeeping,
    outcome::tests::bare,
};
use crate::model::{Bytes, Frame, Pid};

const SECOND: u64 = 1_000_000_000;
const SECONDS: u64 = 20;

fn frame(name: &str) -> Arc<Frame> {
    let (module, function) = name.split_once('!').unwrap_or(("app", name));
    let function = (!function.starts_with('+')).then(|| function.to_owned());
    let offset = function.is_none().then(|| name.split_once("!+").unwrap().1.to_owned());
    Arc::new(Frame { module: Some(module.to_owned()), function, offset, ..Frame::default() })
}

/// Stacks as programs make them.
#[derive(Default)]
struct Program {
    stacks: Vec<Judged>,
    sizes: Vec<(Source, Vec<u64>)>,
    processes: Vec<Process>,
}

impl Program {
    fn add(&mut self, frames: &str, born: impl Fn(u64) -> u64, size: u64, freed: u64) -> &mut StackReport {
        let source = Source::Native(StackId::new(u32::try_from(self.stacks.len()).unwrap()));
        let mut births = Births::new(0, SECONDS * SECOND);
        let (mut objects, mut sizes) = (0, vec![0]);
        for second in 0..SECONDS {
            for _ in 0..born(second) {
                births.add(second * SECOND + 1, Bytes(size));
                objects += 1;
            }
            sizes.push(objects * size);
        }
        let points: Vec<_> = sizes
            .iter()
            .zip(0..)
            .map(|(&bytes, second)| growth::Point { t_ns: second * SECOND, bytes: Bytes(bytes) })
            .collect();
        let frames: Vec<_> = frames.split(" < ").map(frame).collect();
        let turnover = Turnover {
            allocated_objects: objects + freed,
            freed_objects: freed,
            births,
            standard_error: Bytes(0),
            times: objects,
            is_one_in_use: false,
            is_housekeeping: is_housekeeping(&frames),
        };
        let judgement = growth::judge(&points, &turnover);
        let stack = StackReport {
            weight_bytes: objects * size,
            outstanding_bytes: objects * size,
            outstanding_objects: objects,
            allocated_objects: objects + freed,
            freed_objects: freed,
            verdict: Some(judgement.verdict),
            reason: Some(judgement.reason.to_owned()),
            frames,
            ..bare()
        };
        self.sizes.push((source, sizes));
        self.stacks.push(Judged { stack, source, births, variance: 0.0 });
        &mut self.stacks.last_mut().unwrap().stack
    }

    /// So many blocks a second stay.
    fn leak(&mut self, frames: &str, a_second: u64) -> &mut Self {
        self.add(frames, |_| a_second, 100, 0);
        self
    }

    /// Everything is freed.
    fn clean(&mut self, frames: &str) -> &mut Self {
        self.add(frames, |_| 0, 100, 1000);
        self
    }

    fn causes(&self) -> Vec<Cause> {
        let mut history = History::new(SECOND);
        for second in 0..=SECONDS {
            let sizes = self.sizes.iter().map(|(source, sizes)| (*source, Bytes(sizes[second as usize])));
            history.push(second * SECOND, sizes);
        }
        find(&self.stacks, &history, &self.processes)
    }

    /// Place and number of stacks of what leaks.
    fn leaks(&self) -> Vec<(String, u64)> {
        let causes = self.causes().into_iter();
        causes
            .filter(|cause| cause.verdict == Verdict::Leaking)
            .map(|cause| (cause.place, cause.stacks))
            .collect()
    }

    fn first(&self) -> Cause {
        self.causes().remove(0)
    }
}

fn place(name: &str, stacks: u64) -> (String, u64) {
    (name.to_owned(), stacks)
}

#[test]
fn parts_of_one_object_are_one_cause() {
    let mut program = Program::default();
    for part in 0..30 {
        program.leak(&format!("part_{part} < make < serve < main"), 5);
    }
    program.clean("log < serve < main");
    assert_eq!(program.leaks(), [place("app: make", 30)]);
}

/// HotSpot compiles in threads of its own, and keeps more than what leaks until the program is warm.
#[test]
fn a_runtime_that_warms_up_stands_behind_what_leaks() {
    let compiles = "libjvm.so!os::malloc < libjvm.so!Chunk::operator new < libjvm.so!C2Compiler::compile_method < \
        libjvm.so!CompileBroker::compiler_thread_loop < libjvm.so!Thread::call_run";
    let mut program = Program::default();
    program.leak(compiles, 50).leak("libz.so.1!inflateInit2_ < app!open < app!serve < main", 5);
    assert_eq!(program.leaks().len(), 1);
    assert!(program.first().place.contains("open") || program.first().place.contains("inflateInit2_"));
    let verdicts: Vec<_> = program.causes().iter().map(|cause| cause.verdict).collect();
    assert_eq!(verdicts, [Verdict::Leaking, Verdict::Growing]);
    // Nor do a few blocks that another thread has from the same function make a leak of it.
    program.add(
        "libjvm.so!os::malloc < libjvm.so!Chunk::operator new < libjvm.so!link < app!Run.link",
        |second| u64::from(second < 2),
        100,
        0,
    );
    assert_eq!(program.leaks().len(), 1);
}

#[test]
fn two_hundred_stacks_of_which_none_says_enough_are_one_cause() {
    let mut program = Program::default();
    for way in 0..200_u64 {
        // Three blocks each, at some time.
        let born = move |second| if way % 7 == second % 7 && second >= way % 7 { 1 } else { 0 };
        program.add(&format!("parse_{way} < parse_{} < load < serve < main", way / 2), born, 64, 0);
    }
    assert_eq!(program.leaks(), [place("app: load", 200)]);
}

#[test]
fn leaks_that_only_have_their_caller_in_common_are_several() {
    let mut program = Program::default();
    program.leak("open < serve < main", 7).leak("render < serve < main", 5);
    assert_eq!(program.leaks(), [place("app: open", 1), place("app: render", 1)]);
    let shares: u64 = program.causes().iter().map(|cause| cause.weight_bytes).sum();
    assert_eq!(shares, 12 * SECONDS * 100);
}

#[test]
fn what_is_called_from_everywhere_is_blamed_itself() {
    let mut program = Program::default();
    for caller in 0..3 {
        program.leak(&format!("Session::Open(int) < handle_{caller} < main"), 3 + caller);
    }
    assert_eq!(program.leaks(), [place("app: Session::Open", 3)]);
}

#[test]
fn a_wrapper_that_no_table_knows_is_passed_over() {
    let mut program = Program::default();
    program.leak("obtain < keep < serve < main", 5);
    for caller in 0..6 {
        program.clean(&format!("obtain < use_{caller} < serve < main"));
    }
    assert_eq!(program.leaks(), [place("app: keep", 1)]);
    assert_eq!(program.first().by, ["obtain"]);
}

#[test]
fn a_caller_that_does_not_free_is_blamed_where_another_does() {
    let mut program = Program::default();
    program.leak("open < forget < main", 5).clean("open < close < main").clean("other < main");
    assert_eq!(program.leaks(), [place("app: forget", 1)]);
}

#[test]
fn known_wrappers_and_their_parts_without_a_name_are_passed_over() {
    let mut program = Program::default();
    program.leak("libx.so!+0x1a4b00 < libx.so!fz_malloc < libx.so!fz_new_pixmap < main", 5);
    let cause = program.first();
    assert_eq!((&*cause.place, &*cause.by), ("libx.so: fz_new_pixmap", &["fz_malloc".to_owned()][..]));
}

#[test]
fn a_library_is_passed_over_when_somebody_else_called_it() {
    let mut program = Program::default();
    program.leak(
        "libcrypto.so.3!CRYPTO_zalloc < libcrypto.so.3!+0x10 < libssl.so.3!d2i_SSL_SESSION < _ssl.so!_ssl_session_dup < \
         _ssl.so!PySSL_get_session < libpython3.11.so!PyObject_GetAttr < libpython3.11.so!_PyEval_EvalFrameDefault < main",
        5,
    );
    let cause = program.first();
    assert_eq!(cause.place, "_ssl.so: _ssl_session_dup");
    assert_eq!(cause.by, ["d2i_SSL_SESSION", "CRYPTO_zalloc"]);
    assert_eq!(cause.below.as_deref(), Some("PySSL_get_session"));
}

#[test]
fn an_interpreter_that_nobody_called_is_itself() {
    let mut program = Program::default();
    program.leak(
        "libpython3.11.so!_PyObject_Malloc < libpython3.11.so!list_resize < libpython3.11.so!_PyEval_EvalFrameDefault < \
         app!run_script < main",
        5,
    );
    assert_eq!(program.first().place, "libpython3.11.so: list_resize");
    let mut program = Program::default();
    program.leak("python3.11!PyUnicode_New < ujson.so!objToJSON < python3.11!cfunction_call < main", 5);
    let cause = program.first();
    assert_eq!((&*cause.place, &*cause.by), ("ujson.so: objToJSON", &["PyUnicode_New".to_owned()][..]));
}

#[test]
fn openssl_within_node_is_openssl() {
    let mut program = Program::default();
    program.leak("node!CRYPTO_malloc < node!ASN1_STRING_to_UTF8 < node!ncrypto::Name::get() < node!Builtins_Call < main", 5);
    assert_eq!(program.first().place, "node: ncrypto::Name::get");
}

#[test]
fn a_function_without_a_name_has_its_caller_beside_it() {
    let mut program = Program::default();
    program.leak("wheel.so!+0x1a4b00 < wheel.so!+0x2000 < wheel.so!decode < main", 5);
    let cause = program.first();
    assert_eq!((&*cause.place, cause.below.as_deref()), ("wheel.so+0x1a4b00", Some("decode")));
}

#[test]
fn processes_of_one_program_are_one_cause_and_those_of_another_another() {
    let mut program = Program::default();
    let process = |pid, name: &str| Process {
        pid: Pid(pid),
        comm: name.to_owned(),
        exe: Some(format!("/usr/bin/{name}")),
        command: Vec::new(),
        from: None,
        end: None,
    };
    program.processes = vec![process(1, "worker"), process(2, "worker"), process(3, "helper")];
    for number in 0..3 {
        program.add("work < main", |_| 5, 100, 0).process = Some(number);
    }
    assert_eq!(program.leaks(), [place("app: work", 2), place("app: work", 1)]);
    assert_eq!(program.first().processes, 2);
}

/// A process that came during the window, of one that was there.
fn worker(from: Option<u32>) -> Process {
    Process { pid: Pid(1), comm: "worker".to_owned(), exe: None, command: Vec::new(), from, end: None }
}

#[test]
fn what_new_workers_begin_with_is_no_leak() {
    let mut program = Program { processes: vec![worker(None)], ..Program::default() };
    for number in 1..=10 {
        program.processes.push(worker(Some(0)));
        let begins = u64::from(number - 1) * 2;
        program.add("import < main", |second| u64::from(second == begins) * 50, 100, 0).process =
            Some(number);
    }
    assert_eq!(program.leaks(), []);
    let verdict = program.first().verdict;
    assert!(matches!(verdict, Verdict::Unknown | Verdict::OneOff), "{verdict:?}");
    // What one of them leaks besides is.
    program.add("handle < main", |_| 20, 100, 0).process = Some(3);
    assert_eq!(program.leaks(), [place("app: handle", 1)]);
    assert_eq!(program.first().objects_of_new_processes, 20 * SECONDS);
}

#[test]
fn a_part_without_a_name_of_a_runtimes_wrapper_is_nobody_to_blame() {
    let mut program = Program::default();
    program.leak(
        "libruby-3.1.so.3.1.2!+0xd8460 < libruby-3.1.so.3.1.2!ruby_strdup < libruby-3.1.so.3.1.2!+0x9ca10 < \
         libruby-3.1.so.3.1.2!+0x249410 < libruby-3.1.so.3.1.2!rb_vm_exec < ruby3.1!main",
        5,
    );
    let first = program.first();
    assert_eq!(
        (&*first.place, &first.by[..]),
        ("libruby-3.1.so.3.1.2+0x9ca10", &["ruby_strdup".to_owned()][..])
    );
}

#[test]
fn a_program_is_called_as_it_was_called() {
    let process = Process {
        pid: Pid(1),
        comm: "redis-server".to_owned(),
        exe: Some("/usr/bin/redis-check-rdb".to_owned()),
        command: vec!["/usr/bin/redis-server 127.0.0.1:6379".to_owned()],
        from: None,
        end: None,
    };
    let mut program = Program { processes: vec![process], ..Program::default() };
    program.leak("redis-check-rdb!zmalloc < redis-check-rdb!createObject < redis-check-rdb!main", 5);
    assert_eq!(program.first().place, "redis-server: createObject");
    program.leak("redis-check-rdb!+0x64da0 < redis-check-rdb!+0x7000 < redis-check-rdb!main", 50);
    assert_eq!(program.first().place, "redis-server+0x64da0");
}

#[test]
fn code_that_is_compiled_anew_is_one_function() {
    let mut program = Program::default();
    for (tier, begins) in [("~", 0), ("^", 7), ("*", 13)] {
        let born = move |second| u64::from(second >= begins && second < begins + 7) * 5;
        program.add("node!inner_a < [anon]!X", born, 100, 0).frames =
            vec![compiled(&format!("JS:{tier}keep file:///srv/a.js:3:9"))];
    }
    assert_eq!(program.leaks(), [place("keep file:///srv/a.js:3:9", 3)]);
}

fn compiled(function: &str) -> Arc<Frame> {
    Arc::new(Frame {
        function: Some(function.to_owned()),
        language: Some("jit".to_owned()),
        ..Frame::default()
    })
}

#[test]
fn java_is_named_beyond_its_own_library() {
    let mut program = Program::default();
    let stack = program.add("x", |_| 5, 100, 0);
    stack.frames = ["libjvm.so!os::malloc(unsigned long, MEMFLAGS)", "libjvm.so!Unsafe_AllocateMemory0"]
        .map(frame)
        .into_iter()
        .chain(
            [
                "long jdk.internal.misc.Unsafe.allocateMemory0(long)",
                "void java.nio.DirectByteBuffer.<init>(int)",
                "io.netty.buffer.PoolChunk io.netty.buffer.PoolArena$DirectArena.newChunk(int, int)",
                "void Run.handle()",
            ]
            .map(compiled),
        )
        .collect();
    let cause = program.first();
    assert_eq!(cause.place, "io.netty.buffer.PoolArena$DirectArena.newChunk");
    assert_eq!(cause.by, ["java.nio.DirectByteBuffer.<init>", "Unsafe_AllocateMemory0"]);
}

#[test]
fn javascript_is_no_cause_and_is_said_beside_it() {
    let mut program = Program::default();
    let script = |function, file| script("javascript", function, file);
    for caller in ["legacy", "modern"] {
        let frames = &mut program
            .add("node!CRYPTO_malloc < node!node::crypto::Name < node!main", |_| 5, 100, 0)
            .frames;
        frames.insert(2, script(caller, "node:internal/crypto"));
        frames.insert(3, script("whoIsIt", "/srv/run.js"));
    }
    let cause = program.first();
    assert_eq!((cause.place.as_str(), cause.stacks), ("node: node::crypto::Name", 2));
    assert_eq!(cause.called_from.as_deref(), Some("whoIsIt (run.js:4)"));
}

/// A function that a runtime tells, in line 4.
fn script(language: &str, function: &str, file: &str) -> Arc<Frame> {
    let [function, file, language] = [function, file, language].map(|text| Some(text.to_owned()));
    Arc::new(Frame { function, file, line: Some(4), language, ..Frame::default() })
}

#[test]
fn the_programs_own_python_is_said_before_that_of_packages() {
    let caller = |files: &[&str]| {
        let mut program = Program::default();
        let frames = &mut program.add("native.so!leaked < python3.11!main", |_| 5, 100, 0).frames;
        let scripts = files.iter().map(|file| script("python", "f", file));
        frames.splice(1..1, scripts);
        let cause = program.first();
        assert_eq!(cause.place, "native.so: leaked");
        cause.called_from
    };
    let library = "/usr/lib/python3.11/json/decoder.py";
    let frozen = "<frozen importlib._bootstrap>";
    let package = "/usr/lib/python3/dist-packages/numpy/core.py";
    let own = Some("f (leak.py:4)".to_owned());
    assert_eq!(caller(&[library, frozen, package, "/srv/leak.py", "/srv/main.py"]), own);
    assert_eq!(caller(&[library, package, frozen]), Some("f (core.py:4)".to_owned()));
    assert_eq!(
        caller(&["/root/.pyenv/versions/3.11.7/lib/python3.11/site-packages/numpy/core.py"]),
        Some("f (core.py:4)".to_owned())
    );
    assert_eq!(caller(&[library, frozen]), None);
    assert_eq!(caller(&["<string>", frozen]), Some("f (<string>:4)".to_owned()));
}

#[test]
fn a_few_large_blocks_are_not_in_step_with_whatever_comes_by_the_same_way() {
    let mut program = Program::default();
    for way in 0..5 {
        let frames = format!("pool!Pool::chunk < app!way_{way} < app!serve < app!main");
        let two = move |second: u64| u64::from(second == 4 * way || second == 4 * way + 2);
        program.add(&frames, two, 16 << 20, 0);
    }
    for other in ["log", "parse", "name"] {
        program.add(&format!("{other} < app!serve < app!main"), |second| u64::from(second == 3), 40, 0);
    }
    let cause = program.first();
    assert_eq!((cause.place.as_str(), cause.stacks), ("pool: Pool::chunk", 5));
}

#[test]
fn where_java_begins_is_no_cause() {
    let mut program = Program::default();
    for function in ["Unsafe_AllocateMemory0", "JVM_DefineClass"] {
        let stack =
            format!("libjvm.so!os::malloc < libjvm.so!{function} < [anon]!Interpreter < libjli.so!JavaMain");
        program.add(&stack, |_| 5, 100, 0);
    }
    assert!(
        program.leaks().iter().all(|(place, _)| place.starts_with("libjvm.so: ")),
        "{:?}",
        program.leaks()
    );
}

#[test]
fn allocators_of_bindings_and_libraries_are_passed_over() {
    for (stack, to_blame) in [
        (
            "_core.so!PyDataMem_UserNEW < _core.so!PyArray_NewFromDescr_int < _core.so!array_copy",
            "_core.so: array_copy",
        ),
        ("_message.so!upb_Arena_InitSlow < _message.so!PyUpb_Message_New", "_message.so: PyUpb_Message_New"),
        ("addon.node!Napi::Buffer<char>::Copy < addon.node!Encoder::Encode", "addon.node: Encoder::Encode"),
        ("libruby.so!ruby_strdup < parser.so!parser_open", "parser.so: parser_open"),
    ] {
        let mut program = Program::default();
        program.add(stack, |_| 5, 100, 0);
        assert_eq!(program.first().place, to_blame);
    }
}

#[test]
fn calls_in_one_function_without_a_name_are_one_place() {
    let mut program = Program::default();
    for call in ["0x1040", "0x1080"] {
        let frames = &mut program.add("x < lib.so!lib_open < app!main", |_| 5, 100, 0).frames;
        frames[0] = Arc::new(Frame {
            module: Some("lib.so".to_owned()),
            offset: Some(call.to_owned()),
            function_offset: Some("0x1000".to_owned()),
            ..Frame::default()
        });
    }
    let cause = program.first();
    assert_eq!((cause.place.as_str(), cause.stacks), ("lib.so+0x1000", 2));
    assert_eq!(cause.below.as_deref(), Some("lib_open"));
}

/// What Python code allocates is nobody's who called Python.
#[test]
fn python_functions_part_what_was_asked_for_as_the_interpreters_loop_does() {
    let mut program = Program::default();
    let stack = "libpython3.11.so!_PyObject_Malloc < libpython3.11.so!list_resize < extension.so!call < main";
    let frames = &mut program.add(stack, |_| 5, 100, 0).frames;
    frames.splice(2..2, ["inner", "outer"].map(|function| script("python", function, "/srv/leak.py")));
    let cause = program.first();
    assert_eq!(cause.place, "libpython3.11.so: list_resize");
    assert_eq!(cause.called_from.as_deref(), Some("inner (leak.py:4)"));
}

#[test]
fn a_native_leak_of_java_ends_in_the_programs_method() {
    let java = |function: &str, file: &str| {
        Arc::new(Frame {
            function: Some(function.to_owned()),
            file: Some(file.to_owned()),
            line: Some(7),
            language: Some("java".to_owned()),
            ..Frame::default()
        })
    };
    let methods = [
        java("java.nio.DirectByteBuffer.<init>", "DirectByteBuffer.java"),
        java("com.shop.Cart.keep", "Cart.java"),
        java("com.shop.Main.main", "Main.java"),
    ];
    let mut program = Program::default();
    let native =
        ["libjvm.so!os::malloc(unsigned long, MEMFLAGS)", "libjvm.so!Unsafe_AllocateMemory0"].map(frame);
    program.add("x", |_| 5, 100, 0).frames = native.into_iter().chain(methods.clone()).collect();
    let cause = program.first();
    assert_eq!((cause.place.as_str(), cause.called_from), ("com.shop.Cart.keep", None));

    let mut program = Program::default();
    program.add("x", |_| 5, 100, 0).frames =
        [frame("libimage.so!decode")].into_iter().chain(methods).collect();
    let cause = program.first();
    assert_eq!(cause.place, "libimage.so: decode");
    assert_eq!(cause.called_from.as_deref(), Some("com.shop.Cart.keep (Cart.java:7)"));
}

#[test]
fn a_stack_without_frames_has_a_cause() {
    let mut program = Program::default();
    program.add("x", |_| 5, 100, 0).frames.clear();
    assert_eq!(program.leaks(), [place("an unknown place", 1)]);
}

#[test]
fn a_place_is_named_by_whom_memory_was_allocated_for() {
    let frames = ["ztrymalloc_usable_internal", "zmalloc", "createObject", "main"].map(frame);
    assert_eq!(place_name(&frames), "app: createObject");
    assert_eq!(place_name(&frames[..2]), "app: zmalloc");
}

#[test]
fn names_lose_their_parameters_and_results() {
    use super::roles::{bare_name, name_of};
    assert_eq!(bare_name("Session::Open(int, char const*) const"), "Session::Open");
    assert_eq!(bare_name("(anonymous namespace)::run(int)"), "(anonymous namespace)::run");
    assert_eq!(bare_name("f<void (*)(int)>::operator()(int)"), "f<void (*)(int)>::operator()");
    assert_eq!(bare_name("plain"), "plain");
    assert_eq!(bare_name("("), "(");
    assert_eq!(name_of("void std::vector<int>::push_back(int)"), "std::vector<int>::push_back");
    assert_eq!(
        name_of("long jdk.internal.misc.Unsafe.allocateMemory0(long)"),
        "jdk.internal.misc.Unsafe.allocateMemory0"
    );
    assert_eq!(name_of("JS:*handle /srv/a.js:3"), "JS:*handle /srv/a.js:3");
}

#[test]
fn a_little_that_a_collector_may_still_free_is_left_open() {
    let verdict = |a_second: u64, size: u64, freed: u64| {
        let mut program = Program::default();
        program.add("buffer < handle < main", |_| a_second, size, freed);
        let mut causes = program.causes();
        assert_eq!(causes[0].verdict, Verdict::Leaking);
        leave_open_what_may_be_garbage(&mut causes);
        causes[0].verdict
    };
    assert_eq!(verdict(2, 16 << 10, 0), Verdict::Unknown, "a buffer for each of 40 requests");
    assert_eq!(verdict(2, 16 << 20, 0), Verdict::Leaking, "more than any collector waits for");
    assert_eq!(verdict(20, 100, 0), Verdict::Leaking, "many");
    assert_eq!(verdict(2, 16 << 10, 10), Verdict::Leaking, "it has run, and left these");
}

#[test]
fn what_is_on_its_way_beside_a_leak_moves_the_blame_to_nobody() {
    let mut program = Program::default();
    program.leak("text < field < object < handle < main", 5);
    // As much again, of the last second: buffers that are freed when others come.
    program.add("grow < encode < object < handle < main", |second| 90 * (second / 19), 100, 2000);
    let causes = program.causes();
    assert_eq!((causes[0].verdict, causes[0].place.as_str()), (Verdict::Leaking, "app: text"), "{causes:#?}");
    assert!(causes[1..].iter().all(|cause| cause.verdict != Verdict::Leaking), "{causes:#?}");
}
