//! Real processes: this test itself starts them, and looks at what the kernel says about them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::model::Address;

/// Copies a program by another process: what a test that forks just now inherits from this one, open for writing, cannot be
/// executed.
pub(super) fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-p").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success());
}

/// A process that waits until it is dropped.
struct Sleeper(Child);

impl Sleeper {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the program starts"))
    }

    /// `cat`, which waits for its input.
    fn cat() -> Self {
        Self::start(&mut Command::new("cat"))
    }

    fn pid(&self) -> Pid {
        Pid(self.0.id())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "still not so: {what}");
        std::thread::yield_now();
    }
}

fn error(pid: u32) -> String {
    Target::open(Pid(pid)).expect_err("it cannot be traced").to_string()
}

/// Waits until the child has become the program it was started for, has loaded its libraries, and reads its input.
fn open_running(sleeper: &Sleeper, comm: &str) -> Target {
    until("the program waits for its input", || running(sleeper.pid(), comm).is_some());
    running(sleeper.pid(), comm).expect("it runs")
}

fn running(pid: Pid, comm: &str) -> Option<Target> {
    const READS_INPUT: &[u8] = b"0 0x0 ";
    let target = Target::open(pid).ok()?;
    (target.comm() == comm && target.read("syscall").ok()?.starts_with(READS_INPUT)).then_some(target)
}

#[test]
fn a_running_process_is_described() {
    let sleeper = Sleeper::cat();
    let target = open_running(&sleeper, "cat");
    let process = target.describe();
    assert_eq!(process.command, ["cat"]);
    assert!(process.exe.is_some_and(|exe| exe.ends_with("/cat")));
    assert_eq!(target.inner_pid(), target.pid());
    assert!(target.start_time() > 0);
    assert!(!target.has_exited());
}

#[test]
fn exit_is_seen_and_ends_every_read() {
    let mut sleeper = Sleeper::cat();
    let target = open_running(&sleeper, "cat");
    sleeper.0.kill().expect("it can be killed");
    until("the exit is seen", || target.has_exited());
    assert!(error(target.pid().0).contains("zombie"));
    sleeper.0.wait().expect("it can be waited for");
    let error = target.mappings().expect_err("nothing to read");
    assert_eq!(Errno::from_io_error(&error), Some(Errno::SRCH));
}

#[test]
fn stopped_processes_are_told() {
    let sleeper = Sleeper::cat();
    let target = open_running(&sleeper, "cat");
    let signal =
        |signal| rustix::process::kill_process(pid_of(&sleeper), signal).expect("it can be signalled");
    assert!(!target.is_stopped().expect("it runs"));
    signal(rustix::process::Signal::STOP);
    until("it is stopped", || target.is_stopped().expect("it exists"));
    signal(rustix::process::Signal::CONT);
    until("it goes on", || !target.is_stopped().expect("it exists"));
}

fn pid_of(sleeper: &Sleeper) -> rustix::process::Pid {
    rustix::process::Pid::from_child(&sleeper.0)
}

#[test]
fn what_cannot_be_traced_is_refused_with_a_reason() {
    assert!(error(0).contains("no process has pid 0"));
    assert!(error(u32::MAX).contains("no process has pid"));
    // Above the largest pid_max the kernel allows.
    assert!(error(4_194_305).contains("no process has pid 4194305"));
    assert!(error(2).contains("kernel thread"));
    assert!(error(std::process::id()).contains("tracer's own"));
}

#[test]
fn threads_name_their_process() {
    let own_thread =
        std::thread::spawn(|| error(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()));
    assert!(own_thread.join().expect("no panic").contains("tracer's own"));
    let program = "import threading, sys\nthreading.Thread(target=sys.stdin.read).start()";
    let sleeper = Sleeper::start(Command::new("python3").args(["-c", program]));
    let tasks = format!("/proc/{}/task", sleeper.pid());
    let thread = || {
        let tasks = std::fs::read_dir(&tasks).ok()?.flatten();
        tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).find(|&tid| tid != sleeper.pid().0)
    };
    until("the thread runs", || thread().is_some());
    let message = error(thread().expect("it runs"));
    assert!(message.contains(&format!("use --pid {}", sleeper.pid())), "{message}");
}

/// The smallest 32-bit program: it waits for a signal.
fn program_32_bit() -> Vec<u8> {
    let mut elf = vec![0; 93];
    let parts: [(usize, &[u8]); 9] = [
        (0, b"\x7fELF\x01\x01\x01"),
        (16, &[2, 0, 3, 0, 1]),               // executable, i386, version 1
        (24, &[0x54, 0x80, 0x04, 0x08, 52]),  // entry 0x8048054; program headers at 52
        (40, &[52, 0, 32, 0, 1, 0]),          // sizes of the headers, one program header
        (52, &[1]),                           // PT_LOAD from offset 0
        (60, &[0, 0x80, 0x04, 0x08]),         // to 0x8048000
        (68, &[93, 0, 0, 0, 93, 0, 0, 0, 5]), // 93 bytes, readable and executable
        (81, &[0x10]),                        // aligned to 0x1000
        (84, &[0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7]), // again: mov $29 (pause), %eax; int $0x80; jmp again
    ];
    for (at, bytes) in parts {
        elf[at..at + bytes.len()].copy_from_slice(bytes);
    }
    elf
}

#[test]
fn programs_of_32_bits_are_refused_also_when_deleted() {
    let directory = tempfile::tempdir().expect("a directory");
    let (made, program) = (directory.path().join("made"), directory.path().join("small"));
    std::fs::write(&made, program_32_bit()).expect("it can be written");
    std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o755))
        .expect("it can be made executable");
    copy(&made, &program);
    let sleeper = Sleeper::start(&mut Command::new(&program));
    std::fs::remove_file(&program).expect("it can be removed");
    let message = error(sleeper.pid().0);
    assert!(message.contains("(small) runs a 32-bit program"), "{message}");
}

/// Runs as a user without any right, in a thread of its own: the kernel keeps credentials per thread.
fn as_nobody<T: Send + 'static>(action: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        let nobody = rustix::process::Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("root may become another user");
        action()
    });
    thread.join().expect("no panic")
}

#[test]
fn without_rights_the_missing_one_is_named() {
    let sleeper = Sleeper::cat();
    open_running(&sleeper, "cat");
    let pid = sleeper.pid().0;
    let message = as_nobody(move || error(pid));
    assert!(message.contains("CAP_SYS_PTRACE"), "{message}");
}

#[test]
fn processes_in_namespaces_of_their_own_are_opened() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = format!(
        "mount -t tmpfs none {0} && cp /bin/cat {0}/inside && exec {0}/inside",
        directory.path().display()
    );
    let unshare = ["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &script];
    let sleeper = Sleeper::start(Command::new("unshare").args(unshare));
    let children = format!("/proc/{0}/task/{0}/children", sleeper.pid());
    let child = || std::fs::read_to_string(&children).ok()?.trim().parse().ok().map(Pid);
    let target = || child().and_then(|pid| running(pid, "inside"));
    until("it runs inside", || target().is_some());
    let target = target().expect("it runs");
    assert_eq!(target.inner_pid(), Pid(1));
    let program = directory.path().join("inside");
    assert!(!program.exists(), "outside, the file system is not mounted");
    let objects = target.objects().expect("they can be listed");
    let object = objects.opened.iter().find(|object| object.path == program).expect("it is mapped");
    let cat = std::fs::read("/bin/cat").expect("cat can be read");
    assert_eq!(std::fs::read(object.uprobe_path()).expect("the link leads to the file"), cat);
    let mapping = target.mappings().expect("they can be listed");
    let mapping = mapping.iter().find(|mapping| mapping.path() == Some(&*program)).expect("it is mapped");
    assert!(object::open_by_path(target.root.as_ref(), mapping).is_ok_and(|opened| opened.is_some()));
}

#[test]
fn objects_are_the_mapped_files() {
    let sleeper = Sleeper::cat();
    let objects = open_running(&sleeper, "cat").objects().expect("they can be listed");
    assert!(objects.unopened.is_empty(), "{:?}", objects.unopened);
    for object in &objects.opened {
        assert!(object.segments.iter().any(|segment| segment.executable), "{object:?}");
        assert!(object.segments.is_sorted_by_key(|segment| segment.start));
        assert!(!object.deleted);
        assert_eq!(std::fs::read(object.uprobe_path()).ok(), std::fs::read(&object.path).ok());
    }
    let libc =
        objects.opened.iter().find(|object| object.name().starts_with("libc.so")).expect("libc is mapped");
    let code = libc.segments.iter().find(|segment| segment.executable).expect("code is mapped");
    assert_eq!(libc.address_of(code.file_offset + 16), Some(Address(code.start.0 + 16)));
    assert_eq!(libc.address_of(u64::MAX), None);
}

/// A copy of `cat` that is deleted, and one that is replaced, while it runs.
#[test]
fn deleted_and_replaced_programs_are_still_opened() {
    let directory = tempfile::tempdir().expect("a directory");
    let cat = std::fs::read("/bin/cat").expect("cat can be read");
    for replaced in [false, true] {
        let program = directory.path().join("victim");
        copy(Path::new("/bin/cat"), &program);
        let sleeper = Sleeper::start(&mut Command::new(&program));
        open_running(&sleeper, "victim");
        std::fs::remove_file(&program).expect("it can be removed");
        if replaced {
            std::fs::write(&program, b"\x7fELF something else").expect("it can be replaced");
        }
        let target = Target::open(sleeper.pid()).expect("it runs");
        let objects = target.objects().expect("they can be listed");
        let object = objects.opened.iter().find(|object| object.path == program).expect("it is mapped");
        assert!(object.deleted);
        assert_eq!(std::fs::read(object.uprobe_path()).expect("the link leads to the file"), cat);

        // Without the right to follow the kernel's link, a wrong file must not be taken for the mapped one.
        let mapping = target.mappings().expect("they can be listed");
        let mapping = mapping.iter().find(|mapping| mapping.path() == Some(&*program)).expect("it is mapped");
        let expected = if replaced { Errno::STALE } else { Errno::NOENT };
        let opened = object::open_by_path(target.root.as_ref(), mapping);
        assert_eq!(opened.expect_err("it is not the mapped file"), expected);
    }
}

#[test]
fn command_lines_keep_empty_arguments() {
    assert_eq!(split_command_line(b"a\0\0b c\0"), ["a", "", "b c"]);
    assert_eq!(split_command_line(b""), Vec::<String>::new());
    assert_eq!(split_command_line(b"\xff"), ["\u{fffd}"]);
}
