//! Whole stacks of real processes: our walk against gdb's, from the same registers and the same memory.
//!
//! gdb stops a program at a function, finds the callers in its own way, and records registers, stack bytes and mappings
//! (`unwind_gdb/record.py`). The walk is then run over the recording.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use tracer::unwind::{CodeMap, CodeSegments, MAX_FRAMES, Table, Walk};
use tracer_ebpf::stop::Stop;
use tracer_ebpf::unwind::{Mapping, Memory, Registers};

/// What `record.py` writes.
#[derive(Deserialize)]
struct Recorded {
    ip: u64,
    sp: u64,
    bp: u64,
    frames: Vec<u64>,
    names: Vec<Option<String>>,
    stacks: Vec<(u64, String)>,
    maps: String,
}

impl Recorded {
    fn registers(&self) -> Registers {
        Registers { ip: self.ip, sp: self.sp, bp: self.bp }
    }

    fn stacks(&self) -> Stacks {
        let bytes = |hex: &str| {
            hex.as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("hex"), 16).expect("hex"))
                .collect()
        };
        Stacks(self.stacks.iter().map(|(start, hex)| (*start, bytes(hex))).collect())
    }

    fn name(&self, frame: usize) -> &str {
        self.names.get(frame).and_then(Option::as_deref).unwrap_or("??")
    }
}

/// The recorded parts of the stacks, by address.
struct Stacks(Vec<(u64, Vec<u8>)>);

impl Memory for Stacks {
    fn read(&self, address: u64) -> Option<u64> {
        self.0.iter().find_map(|(start, bytes)| {
            let offset = usize::try_from(address.checked_sub(*start)?).ok()?;
            Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
        })
    }
}

/// Tables by file, made once.
#[derive(Default)]
struct Tables {
    made: HashMap<PathBuf, Option<(Vec<u8>, Table)>>,
    maps: String,
    code: CodeMap,
}

impl Tables {
    fn of(&mut self, path: &Path) -> Option<&(Vec<u8>, Table)> {
        let made = self.made.entry(path.to_owned()).or_insert_with(|| {
            let bytes = if path == Path::new("[vdso]") { vdso() } else { std::fs::read(path).ok()? };
            let table = Table::from_elf(&bytes).ok()?;
            Some((bytes, table))
        });
        made.as_ref()
    }

    /// The code of a process with these mappings.
    fn code(&mut self, maps: &str) -> &CodeMap {
        if self.maps != maps {
            self.maps = maps.to_owned();
            let (mut mappings, mut tables) = (Vec::new(), Vec::new());
            for line in maps.lines() {
                let (range, mut fields) = {
                    let mut fields = line.split_whitespace();
                    (fields.next().expect("a range"), fields)
                };
                let hex = |text| u64::from_str_radix(text, 16).expect("a number");
                let (start, end) =
                    range.split_once('-').map(|(start, end)| (hex(start), hex(end))).expect("a range");
                let protection = fields.next().expect("protection");
                let offset = hex(fields.next().expect("an offset"));
                let path = fields.nth(2).unwrap_or_default();
                if !protection.contains('x') || path == "[vsyscall]" {
                    continue;
                }
                let table = self.of(Path::new(path)).and_then(|(bytes, table)| {
                    Some((CodeSegments::of(bytes).load_bias(start, offset)?, table.clone()))
                });
                let (bias, table) = match table {
                    Some((bias, table)) => {
                        tables.push(table);
                        (bias, tables.len() as u32 - 1)
                    }
                    None => (0, Mapping::NO_TABLE),
                };
                mappings.push(Mapping { start, end, bias, table, file: 0 });
            }
            self.code = CodeMap::new(mappings, tables).expect("a real process");
        }
        &self.code
    }
}

/// The vdso of every process on this kernel is that of ours.
fn vdso() -> Vec<u8> {
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
    image
}

fn is_installed(program: &str) -> bool {
    let found =
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("not installed, not compared: {program}");
    }
    found
}

/// Where and how often gdb stops.
struct Stops {
    at: &'static str,
    /// Hits before the first stop.
    skip: u32,
    /// One stop in so many hits.
    every: u32,
    most: u32,
}

/// Runs a program under gdb and hands over what it recorded.
fn record(command: &[&str], stops: &Stops) -> Vec<Recorded> {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("stacks.jsonl");
    let output = Command::new("gdb")
        .args(["-nx", "-batch", "-x"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/unwind_gdb/record.py"))
        .arg("--args")
        .args(command)
        .env("RECORD_TO", &file)
        .env("BREAK_AT", stops.at)
        .env("SKIP", stops.skip.to_string())
        .env("EVERY", stops.every.to_string())
        .env("STACKS", stops.most.to_string())
        .env("PASS_SIGNALS", "SIGUSR1 SIGUSR2 SIGSEGV SIGPIPE SIGALRM SIGCHLD")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .expect("gdb runs");
    let lines =
        std::fs::File::open(&file).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let recorded: Vec<_> = BufReader::new(lines)
        .lines()
        .map(|line| serde_json::from_str(&line.expect("text")).expect("what record.py writes"))
        .collect();
    assert!(!recorded.is_empty(), "nothing recorded: {}", String::from_utf8_lossy(&output.stderr));
    recorded
}

fn walk(recorded: &Recorded, tables: &mut Tables) -> Walk {
    tables.code(&recorded.maps).walk(recorded.registers(), &recorded.stacks())
}

fn addresses(walk: &Walk) -> Vec<u64> {
    walk.frames.iter().map(|frame| frame.registers.ip).collect()
}

/// The functions of a stack, as far as gdb knows their names, leaf first.
fn functions(recorded: &Recorded) -> Vec<&str> {
    recorded.names.iter().flatten().map(String::as_str).collect()
}

/// The cases of `stacks.c`, in order: functions that must appear, in this order, and how the stack ends.
const CASES: [(&[&str], Stop); 11] = [
    (&["here", "compare", "sorted", "main", "_start"], Stop::Base),
    (&["here", "recursive", "recursive", "recursive", "recursive", "main", "_start"], Stop::Base),
    (&["here", "recursive", "recursive"], Stop::TooDeep),
    (&["here", "dynamic", "main", "_start"], Stop::Base),
    (&["here", "realigned", "main", "_start"], Stop::Base),
    (&["here", "many_arguments", "main", "_start"], Stop::Base),
    (&["here", "handler", "<signal handler called>", "raised", "main", "_start"], Stop::Base),
    (&["here", "repair", "<signal handler called>", "faulted", "main", "_start"], Stop::Base),
    // Who resumed a coroutine is on another stack.
    (&["here", "coroutine"], Stop::Base),
    (&["here", "threaded"], Stop::Base),
    (&["here", "leaves", "last_call", "main", "_start"], Stop::Base),
];

fn appear_in_order(expected: &[&str], names: &[&str]) -> bool {
    let mut names = names.iter();
    expected.iter().all(|wanted| names.any(|name| name == wanted || *wanted == "<signal handler called>"))
}

/// Builds `stacks.c` with the given options and compares every case.
fn compare_program(options: &[&str]) {
    if !is_installed("gdb") || !is_installed("gcc") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("stacks");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/unwind_gdb/stacks.c");
    let built =
        Command::new("gcc").args(options).arg("-pthread").arg("-o").arg(&program).arg(source).status();
    assert!(built.expect("gcc runs").success(), "{options:?}");
    let stops = Stops { at: "*here", skip: 0, every: 1, most: 100 };
    let recorded = record(&[program.to_str().expect("a plain path")], &stops);
    assert!(recorded.len() >= CASES.len(), "{options:?}: {} stops", recorded.len());
    let mut tables = Tables::default();
    for (recorded, (expected, stop)) in recorded.iter().zip(CASES) {
        let walk = walk(recorded, &mut tables);
        // gdb takes words above a coroutine's base for return addresses.
        let code = tables.code(&recorded.maps);
        let frames = recorded.frames.iter().take_while(|&&frame| code.mapping(frame).is_some());
        let frames: Vec<_> = frames.copied().take(MAX_FRAMES).collect();
        let told = format!("{options:?} {expected:?}: {:x?}", functions(recorded));
        assert_eq!(addresses(&walk), frames, "{told}");
        assert_eq!(walk.stop, stop, "{told}");
        assert!(appear_in_order(expected, &functions(recorded)), "{told}");
    }
}

#[test]
fn stacks_at_o2_without_frame_pointers() {
    compare_program(&["-g", "-O2", "-fomit-frame-pointer"]);
}

#[test]
fn stacks_at_o0() {
    compare_program(&["-g", "-O0"]);
}

#[test]
fn stacks_at_o3_for_cet() {
    compare_program(&["-g", "-O3", "-fomit-frame-pointer", "-fcf-protection"]);
}

#[test]
fn stacks_at_os_fixed_in_place() {
    compare_program(&["-g", "-Os", "-fomit-frame-pointer", "-no-pie"]);
}

#[test]
fn stacks_of_a_static_program() {
    compare_program(&["-g", "-O2", "-fomit-frame-pointer", "-static"]);
}

/// How often two walks of the same stacks agreed.
#[derive(Debug, Default)]
struct Agreement {
    stacks: u32,
    same: u32,
    /// The same up to where gdb guesses.
    gdb_guesses: u32,
    different: u32,
    /// Stacks that ended at the thread's base.
    complete: u32,
}

impl Agreement {
    fn add(&mut self, recorded: &Recorded, tables: &mut Tables) {
        let walk = walk(recorded, tables);
        self.stacks += 1;
        self.complete += u32::from(walk.stop.is_complete());
        let (ours, gdbs) = (addresses(&walk), &recorded.frames[..recorded.frames.len().min(MAX_FRAMES)]);
        let at = ours.iter().zip(gdbs).take_while(|(ours, gdbs)| ours == gdbs).count();
        if ours == gdbs {
            self.same += 1;
        } else if gdb_guesses(at, &ours, gdbs, tables.code(&recorded.maps)) {
            self.gdb_guesses += 1;
        } else {
            self.different += 1;
            eprintln!(
                "differs at frame {at} of {} (gdb {}), after {}: {:x?}, gdb {:x?} {}; ends with {:?}",
                ours.len(),
                gdbs.len(),
                recorded.name(at.saturating_sub(1)),
                ours.get(at),
                gdbs.get(at),
                recorded.name(at),
                walk.stop,
            );
        }
    }
}

/// Whether gdb cannot know the frame with this index, from which on it has others: the one before is in code of no file, or what it
/// takes for a return address is none.
fn gdb_guesses(at: usize, ours: &[u64], gdbs: &[u64], code: &CodeMap) -> bool {
    let is_of_no_file =
        |ip: &u64| code.mapping(*ip).is_some_and(|mapping| mapping.table == Mapping::NO_TABLE);
    let is_code = |ip: &u64| code.mapping(*ip).is_some();
    at.checked_sub(1).and_then(|last| ours.get(last)).is_some_and(is_of_no_file)
        || gdbs.get(at).is_some_and(|ip| !is_code(ip))
}

/// Compares the stacks of a program at `malloc`: at least 99 % must be complete, and no more than 1 % other than gdb's.
fn compare_at_malloc(command: &[&str], stops: &Stops) {
    if !is_installed("gdb") || !is_installed(command[0]) {
        return;
    }
    let recorded = record(command, stops);
    let mut tables = Tables::default();
    let mut agreement = Agreement::default();
    recorded.iter().for_each(|recorded| agreement.add(recorded, &mut tables));
    let distinct = recorded.iter().map(|recorded| &recorded.frames).collect::<HashSet<_>>().len();
    let deepest = recorded.iter().map(|recorded| recorded.frames.len()).max().unwrap_or(0);
    eprintln!("{}: {agreement:?}, {distinct} distinct stacks, up to {deepest} frames", command[0]);
    let Agreement { stacks, different, complete, .. } = agreement;
    assert!(stacks >= stops.most / 2 && distinct >= 10, "{distinct} distinct stacks of {stacks}");
    assert!(different * 100 <= stacks && complete * 100 >= stacks * 99);
}

#[test]
#[ignore = "takes a minute: `cargo xtask bench stacks` runs it"]
fn stacks_of_python_at_malloc() {
    let work = "import json, re, sqlite3; db = sqlite3.connect(':memory:'); \
        work = lambda: (json.loads(json.dumps([{'a': [i, str(i)]} for i in range(50)])), \
        sorted(map(str, range(100)), key=lambda s: re.sub('1', '2', s)), \
        db.execute('select max(value) from json_each(?) group by value % 7 order by 1', ['[1,2,3]']).fetchall()); \
        all(work() for _ in iter(int, 1))";
    compare_at_malloc(
        &["/usr/bin/python3", "-c", work],
        &Stops { at: "malloc", skip: 5000, every: 17, most: 200 },
    );
}

#[test]
#[ignore = "takes a minute: `cargo xtask bench stacks` runs it"]
fn stacks_of_node_at_malloc() {
    let work = "const zlib = require('zlib'), crypto = require('crypto');\
        function go(i) { Buffer.from(JSON.stringify({i, a: 'x'.repeat(i % 999)})); \
        crypto.createHash('sha256').update('' + i).digest(); zlib.deflateSync('' + i); setImmediate(go, i + 1) } go(0)";
    compare_at_malloc(&["node", "-e", work], &Stops { at: "malloc", skip: 20_000, every: 47, most: 200 });
}

/// Ended when dropped.
struct Load(std::process::Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "takes a minute: `cargo xtask bench stacks` runs it"]
fn stacks_of_redis_at_malloc() {
    if !is_installed("redis-benchmark") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("redis.sock");
    let socket = socket.to_str().expect("a plain path");
    // Until the server listens, and again until it is gone.
    let again = format!("while :; do redis-benchmark -s {socket} -q -n 100000 -d 100 || sleep 0.1; done");
    let client = Command::new("sh").args(["-c", &again]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let _load = Load(client.expect("sh runs"));
    let server = ["redis-server", "--port", "0", "--save", "", "--unixsocket", socket];
    compare_at_malloc(&server, &Stops { at: "malloc", skip: 5000, every: 17, most: 200 });
}

/// gdb is a reference for native frames alone: it takes nearly all interpreted and compiled ones for something else.
#[test]
#[ignore = "takes a minute: `cargo xtask bench stacks` runs it"]
fn stacks_of_java_at_malloc() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("Work.java");
    std::fs::write(
        &program,
        "import java.util.zip.*; public class Work { public static void main(String[] a) throws Exception { \
         byte[] out = new byte[9999]; for (int i = 0; ; i++) { Deflater d = new Deflater(); \
         d.setInput((\"x\" + i).repeat(i % 99).getBytes()); d.finish(); d.deflate(out); d.end(); } } }",
    )
    .expect("written");
    compare_at_malloc(
        &["java", program.to_str().expect("a plain path")],
        &Stops { at: "malloc", skip: 50_000, every: 197, most: 200 },
    );
}
