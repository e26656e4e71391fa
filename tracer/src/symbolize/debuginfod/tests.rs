use std::{
    collections::HashMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    process::Command,
    sync::Arc,
    thread,
};

use tempfile::TempDir;

use super::*;
use crate::{model::Address, model::Frame};

/// A program with a function of its own and one that was inlined into it.
const SOURCE: &str = "
#include <stdlib.h>
static inline __attribute__((always_inline)) void *inner(unsigned long size) { return malloc(size); }
__attribute__((noinline)) void *outer(unsigned long size) { void *block = inner(size); __asm__ volatile(\"\" ::: \"memory\"); return block; }
int main(void) { return outer(1) == 0; }
";

/// A program, its debug file, where `outer` begins in it, and where the call in that returns to.
struct Built {
    _directory: TempDir,
    build_id: String,
    debug: Vec<u8>,
    outer: u64,
    returns_to: u64,
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn build() -> Built {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("program.c"), SOURCE).unwrap();
    run("gcc", &["-O2", "-g", "-Wl,--build-id", "-o", &path("program"), &path("program.c")]);
    run("objcopy", &["--only-keep-debug", &path("program"), &path("debug")]);
    let listing = run("objdump", &["--disassemble=outer", "--no-show-raw-insn", &path("program")]);
    let address =
        |line: &str| u64::from_str_radix(line.trim().split([':', ' ']).next().unwrap(), 16).unwrap();
    let mut lines = listing.lines().skip_while(|line| !line.ends_with(" <outer>:"));
    let outer = address(lines.next().unwrap());
    let returns_to = address(lines.skip_while(|line| !line.contains("call")).nth(1).unwrap());
    let notes = run("readelf", &["--notes", &path("program")]);
    let build_id = notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: ")).unwrap().to_owned();
    let debug = fs::read(path("debug")).unwrap();
    Built { build_id, debug, outer, returns_to, _directory: directory }
}

/// What a server says to a request.
#[derive(Clone)]
enum Says {
    File(Vec<u8>),
    NotFound,
    /// Takes the request and says nothing.
    Nothing,
    /// Ends in the middle.
    Half(Vec<u8>),
}

/// Serves until the test ends; every connection gets the same.
fn serve(says: Says) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut silent = Vec::new();
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut request = [0; 4096];
            let length = connection.read(&mut request).unwrap();
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            assert!(
                request.starts_with("GET /buildid/") && request.contains("/debuginfo HTTP/1.1"),
                "{request}"
            );
            let head =
                |length: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
            let answer = match &says {
                Says::File(bytes) => [head(bytes.len()), bytes.clone()].concat(),
                Says::Half(bytes) => [head(bytes.len()), bytes[..bytes.len() / 2].to_vec()].concat(),
                Says::NotFound => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
                Says::Nothing => {
                    silent.push(connection);
                    continue;
                }
            };
            // Who asks may have gone.
            let _ = connection.write_all(&answer);
        }
    });
    address
}

/// Somebody who waits, and is tired from the start or never.
#[derive(Default)]
struct Somebody {
    begun: usize,
    bytes: u64,
    tired: bool,
}

impl Watcher for Somebody {
    fn begin(&mut self, _servers: &[String], files: usize) {
        self.begun += files;
    }

    fn progress(&mut self, progress: Progress<'_>) {
        self.bytes = self.bytes.max(progress.bytes);
    }

    fn is_tired(&self) -> bool {
        self.tired
    }
}

fn debuginfod(servers: &[SocketAddr], cache: &Path) -> Debuginfod {
    Debuginfod {
        servers: servers.iter().map(|address| format!("http://{address}")).collect(),
        cache: Cache::new(cache.to_owned()),
        silence: Duration::from_secs(2),
        limit: Duration::from_secs(60),
        renamed: Mutex::default(),
    }
}

/// Two stacks that go through one call in `outer`, which has no name.
fn stacks(built: &Built) -> Vec<Vec<Arc<Frame>>> {
    let call = Frame {
        ip: Address(built.returns_to + 0x1000),
        module: Some("program".to_owned()),
        build_id: Some(built.build_id.clone()),
        offset: Some(format!("{:#x}", built.returns_to)),
        function_offset: Some(format!("{:#x}", built.outer)),
        ..Frame::default()
    };
    vec![vec![Arc::new(call)]; 2]
}

/// What comes of asking, and the names of the first stack.
fn ask(debuginfod: &Debuginfod, built: &Built, somebody: &mut Somebody) -> (Outcome, Vec<String>) {
    let mut stacks = stacks(built);
    let outcome = debuginfod.refine(stacks.iter_mut(), somebody);
    assert_eq!(stacks[0], stacks[1]);
    assert!(Arc::ptr_eq(&stacks[0][0], &stacks[1][0]), "stacks share their frames");
    let names = stacks[0].iter().map(|frame| {
        let line = frame.line.map_or_else(String::new, |line| format!(":{line}"));
        format!("{}{line}{}", frame.label(), if frame.inlined { " inlined" } else { "" })
    });
    (outcome, names.collect())
}

#[test]
fn what_a_server_has_names_functions_and_is_kept() {
    let (built, caches) = (build(), tempfile::tempdir().unwrap());
    let servers = [serve(Says::NotFound), serve(Says::File(built.debug.clone()))];
    let mut somebody = Somebody::default();
    let (outcome, names) = ask(&debuginfod(&servers, caches.path()), &built, &mut somebody);
    let label = format!("program+{:#x}", built.outer);
    let named = [(label, ("program".to_owned(), "outer".to_owned()))].into();
    assert_eq!(outcome, Outcome { wanted: 1, had: 1, named, ..Outcome::default() });
    assert_eq!(names, ["inner:3 inlined", "outer:4"]);
    assert_eq!((somebody.begun, somebody.bytes), (1, built.debug.len() as u64));
    let kept = caches.path().join(&built.build_id).join("debuginfo");
    assert_eq!(fs::read(&kept).unwrap(), built.debug);
    assert_eq!(fs::read_dir(kept.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    // Nobody is asked again, nor is it said.
    let mut somebody = Somebody::default();
    let (outcome, again) = ask(&debuginfod(&[], caches.path()), &built, &mut somebody);
    assert_eq!((outcome.had, &again, somebody.begun), (1, &names, 0));
    // While a recording goes on it is named again and again; a file is opened for what is new.
    let by_cache = debuginfod(&[], caches.path());
    for _ in 0..2 {
        let mut stacks = stacks(&built);
        by_cache.refine_by_cache(stacks.iter_mut());
        assert_eq!(stacks[0].len(), 2);
        assert_eq!(stacks[0][1].function.as_deref(), Some("outer"));
        let _ = fs::remove_file(&kept);
    }
}

#[test]
fn what_no_server_has_is_not_asked_for_again_at_once() {
    let (built, caches) = (build(), tempfile::tempdir().unwrap());
    let unnamed = [format!("program+{:#x}", built.outer)];
    let (outcome, names) =
        ask(&debuginfod(&[serve(Says::NotFound)], caches.path()), &built, &mut Somebody::default());
    assert_eq!(outcome, Outcome { wanted: 1, ..Outcome::default() });
    assert_eq!(names, unnamed);
    let now_has_it = debuginfod(&[serve(Says::File(built.debug.clone()))], caches.path());
    let mut somebody = Somebody::default();
    assert_eq!(ask(&now_has_it, &built, &mut somebody).1, unnamed);
    assert_eq!(somebody.begun, 0);
    let kept = caches.path().join(&built.build_id).join("debuginfo");
    fs::File::open(kept)
        .unwrap()
        .set_modified(std::time::SystemTime::now() - Duration::from_secs(3600))
        .unwrap();
    assert_eq!(ask(&now_has_it, &built, &mut Somebody::default()).0.had, 1);
}

#[test]
fn a_server_that_is_no_use_costs_a_reason_and_no_name() {
    let built = build();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let useless: HashMap<&str, SocketAddr> = HashMap::from([
        ("Connection refused", gone),
        ("has said nothing for", serve(Says::Nothing)),
        ("sent something else than the debug file of program", serve(Says::File(b"<html>".to_vec()))),
        ("http://", serve(Says::Half(built.debug.clone()))),
    ]);
    for (why, server) in useless {
        let caches = tempfile::tempdir().unwrap();
        let (outcome, names) = ask(&debuginfod(&[server], caches.path()), &built, &mut Somebody::default());
        assert!(
            outcome.failure.as_deref().is_some_and(|failure| failure.contains(why)),
            "{why}: {outcome:?}"
        );
        assert_eq!(names, [format!("program+{:#x}", built.outer)], "{why}");
        // Another server may have it.
        let servers = [server, serve(Says::File(built.debug.clone()))];
        let (outcome, names) = ask(&debuginfod(&servers, caches.path()), &built, &mut Somebody::default());
        assert_eq!((outcome.had, names.len()), (1, 2), "{why}: {outcome:?}");
        let left = fs::read_dir(caches.path().join(&built.build_id)).unwrap().count();
        assert_eq!(left, 1, "{why}: nothing is left but the file");
    }
}

#[test]
fn who_is_tired_does_without() {
    let (built, caches) = (build(), tempfile::tempdir().unwrap());
    let mut somebody = Somebody { tired: true, ..Somebody::default() };
    let mut patient = debuginfod(&[serve(Says::Nothing)], caches.path());
    patient.silence = Duration::from_secs(600);
    let (outcome, _) = ask(&patient, &built, &mut somebody);
    assert!(outcome.ended_early && outcome.failure.is_none(), "{outcome:?}");
    patient.limit = Duration::ZERO;
    let (outcome, _) = ask(&patient, &built, &mut Somebody::default());
    assert!(outcome.ended_early, "the time is over: {outcome:?}");
}

#[test]
fn modules_with_debug_information_are_left_alone() {
    let (built, caches) = (build(), tempfile::tempdir().unwrap());
    let mut stacks = stacks(&built);
    let described = Frame { file: Some("program.c".to_owned()), ..Frame::clone(&stacks[0][0]) };
    stacks[1].push(Arc::new(described));
    let mut somebody = Somebody::default();
    let outcome = debuginfod(&[serve(Says::Nothing)], caches.path()).refine(stacks.iter_mut(), &mut somebody);
    assert_eq!((outcome, somebody.begun), (Outcome::default(), 0));
}

/// What is wanted, in an environment of these variables.
fn wanted(
    wish: &Wish,
    variables: &[(&str, &str)],
    configured: &Path,
) -> Result<Vec<String>, DebuginfodError> {
    let variable = |name: &str| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
    };
    let found = Debuginfod::from_environment(wish, &variable, configured)?;
    Ok(found.map(|found| found.servers).unwrap_or_default())
}

#[test]
fn nobody_is_asked_unless_somebody_said_so() {
    let machine = tempfile::tempdir().unwrap();
    let here = Wish::Servers(String::new());
    let none = Path::new("/nonexistent");
    let url = ("DEBUGINFOD_URLS", "ima:enforcing https://a.test/ http://b.test:8002");
    assert_eq!(wanted(&Wish::Unsaid, &[], machine.path()).unwrap(), [""; 0]);
    assert_eq!(wanted(&here, &[], none), Err(DebuginfodError::UnknownServers));
    fs::write(machine.path().join("debian.urls"), "https://debian.test\n").unwrap();
    fs::write(machine.path().join("notes.txt"), "https://not.test\n").unwrap();
    assert_eq!(wanted(&Wish::Unsaid, &[], machine.path()).unwrap(), [""; 0], "a surprise");
    assert_eq!(wanted(&here, &[], machine.path()).unwrap(), ["https://debian.test"]);
    for wish in [&Wish::Unsaid, &here] {
        assert_eq!(wanted(wish, &[url], machine.path()).unwrap(), ["https://a.test", "http://b.test:8002"]);
    }
    let named = Wish::Servers("http://c.test".to_owned());
    assert_eq!(wanted(&named, &[url], machine.path()).unwrap(), ["http://c.test"]);
    let wrong = Wish::Servers("c.test".to_owned());
    assert_eq!(wanted(&wrong, &[], none), Err(DebuginfodError::InvalidUrl("c.test".to_owned())));
}

#[test]
fn the_cache_is_where_elfutils_has_it_and_in_no_home_of_somebody_else() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().to_str().unwrap();
    let directory = |variables: &[(&str, &str)]| {
        Cache::default_directory(&|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        })
    };
    assert_eq!(directory(&[("HOME", path)]), Some(home.path().join(".cache/debuginfod_client")));
    assert_eq!(directory(&[("XDG_CACHE_HOME", path)]), Some(home.path().join("debuginfod_client")));
    let named = [("HOME", path), ("DEBUGINFOD_CACHE_PATH", "/var/tmp/debug")];
    assert_eq!(directory(&named), Some("/var/tmp/debug".into()));
    // As `sudo --preserve-env` leaves it.
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        std::os::unix::fs::chown(home.path(), Some(1000), Some(1000)).unwrap();
        assert_eq!(directory(&[("HOME", path)]), Some("/root/.cache/debuginfod_client".into()));
    } else {
        assert_eq!(directory(&[("HOME", "/")]), None);
    }
}
