//! Real commands, held and let go.

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

use super::*;

fn spawn(program: impl AsRef<OsStr>, arguments: &[&str]) -> Launched {
    Launched::spawn(program.as_ref(), arguments, true, None, None).expect("the program starts")
}

/// Runs to the entry point; the names of the files in the order in which they were reported.
fn run_to_entry(launched: &mut Launched) -> (Vec<String>, Startup) {
    let target = Target::open(launched.pid()).expect("it can be traced");
    let mut names = Vec::new();
    let startup = launched
        .run_to_entry::<LaunchError>(&target, |object| {
            names.push(object.name());
            Ok(())
        })
        .expect("it can be held");
    (names, startup)
}

fn compile(output: &Path, source: &str, flags: &[&str]) {
    let file = output.with_extension("c");
    std::fs::write(&file, source).expect("it can be written");
    let status = Command::new("cc").arg(&file).arg("-o").arg(output).args(flags).status();
    assert!(status.expect("there is a C compiler").success());
}

#[test]
fn nothing_runs_before_the_release() {
    let directory = tempfile::tempdir().expect("a directory");
    let proof = directory.path().join("proof");
    let mut launched = spawn("touch", &[proof.to_str().expect("a plain path")]);
    let (names, startup) = run_to_entry(&mut launched);
    assert_eq!(startup, Startup::AtEntry);
    assert_eq!(
        names[..2],
        ["touch".to_owned(), interpreter()],
        "the program and its dynamic linker come first"
    );
    assert!(names[2..].contains(&"libc.so.6".to_owned()), "{names:?}");
    assert!(!proof.exists());
    assert!(launched.wait().expect("it ends").success());
    assert!(proof.exists());
}

fn interpreter() -> String {
    let linker = std::fs::canonicalize("/lib64/ld-linux-x86-64.so.2").expect("there is a dynamic linker");
    linker.file_name().expect("a name").to_string_lossy().into_owned()
}

#[test]
fn libraries_are_reported_before_their_constructors_run() {
    let directory = tempfile::tempdir().expect("a directory");
    let marker = directory.path().join("marker");
    let constructor = "#include <fcntl.h>\n#include <unistd.h>\n\
        __attribute__((constructor)) static void early(void) { close(creat(MARKER, 0600)); }\n\
        void library(void) {}\n";
    let library = directory.path().join("libearly.so");
    let define = format!("-DMARKER=\"{}\"", marker.display());
    compile(&library, constructor, &["-shared", "-fPIC", &define]);
    let program = directory.path().join("program");
    let library_path = library.to_str().expect("a plain path");
    compile(&program, "void library(void); int main(void) { library(); return 7; }", &[library_path]);

    let mut launched = spawn(&program, &[]);
    let target = Target::open(launched.pid()).expect("it can be traced");
    let mut reported = false;
    let startup = launched.run_to_entry::<LaunchError>(&target, |object| {
        if object.path == library {
            reported = true;
            assert!(!marker.exists(), "nothing of the library has run");
        }
        Ok(())
    });
    assert_eq!(startup.expect("it can be held"), Startup::AtEntry);
    assert!(reported && marker.exists(), "constructors run before the entry point");
    assert_eq!(launched.wait().expect("it ends").code(), Some(7));
}

#[test]
fn static_programs_and_scripts_are_held_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("static");
    for flags in [&["-static"][..], &["-static-pie"][..]] {
        compile(&program, "int main(void) { return 5; }", flags);
        let mut launched = spawn(&program, &[]);
        assert_eq!(run_to_entry(&mut launched), (vec!["static".to_owned()], Startup::AtEntry), "{flags:?}");
        assert_eq!(launched.wait().expect("it ends").code(), Some(5));
    }

    let (made, script) = (directory.path().join("made"), directory.path().join("script"));
    std::fs::write(&made, "#!/bin/sh\nexit 6\n").expect("it can be written");
    std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o755))
        .expect("it can be made executable");
    crate::target::tests::copy(&made, &script);
    let mut launched = spawn(&script, &[]);
    let (names, startup) = run_to_entry(&mut launched);
    assert_eq!(startup, Startup::AtEntry);
    assert!(names.contains(&"libc.so.6".to_owned()), "{names:?}");
    assert_eq!(launched.wait().expect("it ends").code(), Some(6));
}

#[test]
fn nothing_of_the_tracer_stays_behind() {
    let mut launched = spawn("sleep", &["1000"]);
    let target = Target::open(launched.pid()).expect("it can be traced");
    run_to_entry(&mut launched);
    let status =
        |target: &Target| String::from_utf8_lossy(&target.read("status").expect("it runs")).into_owned();
    assert!(status(&target).contains("SigBlk:\t0000000000000000"), "no signal stays blocked");
    assert!(!status(&target).contains("TracerPid:\t0\n"), "it is held");
    launched.release().expect("it can be let go");
    assert!(status(&target).contains("TracerPid:\t0\n"), "nobody holds it");
    launched.signal(Signal::KILL);
    let status = launched.wait().expect("it ends");
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    assert_eq!(launched.wait().expect("it has ended"), status, "asked again");
}

#[test]
fn a_held_command_is_killed_with_its_value() {
    let launched = spawn("sleep", &["1000"]);
    let target = Target::open(launched.pid()).expect("it can be traced");
    drop(launched);
    assert!(target.has_exited());
}

/// The thread that holds a command is the tracer to the kernel; it ends as if the tracer had been killed.
#[test]
fn a_held_command_ends_with_the_tracer() {
    let target = std::thread::spawn(|| {
        let launched = spawn("sleep", &["1000"]);
        let target = Target::open(launched.pid()).expect("it can be traced");
        std::mem::forget(launched);
        target
    });
    let target = target.join().expect("no panic");
    let mut fds = [rustix::event::PollFd::new(&target, rustix::event::PollFlags::IN)];
    let deadline = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&deadline)), Ok(1), "it has been killed");
}

#[test]
fn a_released_command_outlives_its_value() {
    let mut launched = spawn("sleep", &["1000"]);
    let target = Target::open(launched.pid()).expect("it can be traced");
    run_to_entry(&mut launched);
    launched.release().expect("it can be let go");
    let pid = rustix::process::Pid::from_child(&launched.child);
    drop(launched);
    assert!(!target.has_exited());
    kill_process(pid, Signal::TERM).expect("it runs");
    let (_, status) = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
        .expect("it ends")
        .expect("it has ended");
    assert_eq!(status.terminating_signal(), Some(libc::SIGTERM));
}

#[test]
fn signals_reach_a_held_command_once_it_runs() {
    let mut launched = spawn("sleep", &["1000"]);
    launched.signal(Signal::TERM);
    let (_, startup) = run_to_entry(&mut launched);
    let status = match startup {
        Startup::Ended(status) => status,
        Startup::AtEntry => launched.wait().expect("it ends"),
    };
    assert_eq!((status.signal(), exit_code(status)), (Some(libc::SIGTERM), 128 + 15));
}

#[test]
fn a_command_that_ends_in_the_dynamic_linker_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let (library, program) = (directory.path().join("libgone.so"), directory.path().join("program"));
    compile(&library, "void gone(void) {}", &["-shared", "-fPIC"]);
    let library_path = library.to_str().expect("a plain path");
    compile(&program, "void gone(void); int main(void) { gone(); return 0; }", &[library_path]);
    std::fs::remove_file(&library).expect("it can be removed");
    let mut launched = spawn(&program, &[]);
    let (_, startup) = run_to_entry(&mut launched);
    let Startup::Ended(status) = startup else { panic!("its library is missing") };
    assert_eq!(exit_code(status), 127, "the dynamic linker's own status");
    assert_eq!(launched.wait().expect("it has ended"), status);
}

#[test]
fn a_failing_callback_leaves_the_command_held() {
    let mut launched = spawn("true", &[]);
    let target = Target::open(launched.pid()).expect("it can be traced");
    let failure = || LaunchError::Hold(io::Error::other("no probe"));
    let error = launched.run_to_entry::<LaunchError>(&target, |_| Err(failure()));
    assert!(error.expect_err("the callback failed").to_string().contains("no probe"));
    assert!(!target.has_exited());
    drop(launched);
    assert!(target.has_exited());
}

#[test]
fn what_cannot_be_started_has_the_exit_code_of_a_shell() {
    let start = |program: &str| {
        let error =
            Launched::spawn(program.as_ref(), [""; 0], true, None, None).expect_err("it cannot start");
        (error.exit_code(), error.to_string())
    };
    let (code, message) = start("no-such-program-anywhere");
    assert_eq!(code, 127, "{message}");
    assert!(message.contains("no-such-program-anywhere: there is no such program"), "{message}");
    let (code, message) = start("/etc/passwd");
    assert_eq!(code, 126, "{message}");
    assert!(message.contains("Permission denied"), "{message}");
}

#[test]
fn the_command_runs_as_the_invoking_user() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777))
        .expect("it can be opened up");
    let output = directory.path().join("output");
    let script = format!("id -u >{0}; id -G >>{0}; echo $HOME $USER >>{0}", output.display());
    let user = InvokingUser::from_numbers("1".as_ref(), "1".as_ref()).expect("daemon");
    let mut launched =
        Launched::spawn_as(Some(user), "sh".as_ref(), ["-c", &script], None, None).expect("it starts");
    let (_, startup) = run_to_entry(&mut launched);
    assert_eq!(startup, Startup::AtEntry);
    assert!(launched.wait().expect("it ends").success());
    let output = std::fs::read_to_string(output).expect("it was written");
    assert_eq!(output, "1\n1\n/usr/sbin daemon\n");
}

#[test]
fn breakpoints_leave_no_trace_in_memory() {
    let mut launched = spawn("sleep", &["1000"]);
    let target = Target::open(launched.pid()).expect("it can be traced");
    run_to_entry(&mut launched);
    let entry = entry_point(&target).expect("it is known");
    let program = target.objects().expect("they can be listed").opened.remove(0);
    let code = program.segments.iter().find(|segment| segment.executable).expect("code is mapped");
    let (mut running, mut stored) = ([0; 16], [0; 16]);
    let offset = entry.0 - code.start.0 + code.file_offset;
    target
        .open_file("mem")
        .expect("it can be read")
        .read_exact_at(&mut running, entry.0)
        .expect("it is mapped");
    program.file.read_exact_at(&mut stored, offset).expect("it is in the file");
    assert_eq!(running, stored);
}

/// Counts how often the process executes the instruction at this offset of a file.
fn count_hits(file: &Path, offset: u64, pid: Pid) -> std::fs::File {
    const FD_CLOEXEC: libc::c_ulong = 1 << 3;
    let kind =
        std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type").expect("uprobes are there");
    let path = std::ffi::CString::new(file.as_os_str().as_encoded_bytes()).expect("a plain path");
    // struct perf_event_attr: type and size, then among zeros config1 (the path) and config2 (the offset).
    let mut attributes = [0_u64; 16];
    let size = size_of_val(&attributes) as u64;
    attributes[0] = kind.trim().parse::<u64>().expect("a number") | size << 32;
    attributes[7] = path.as_ptr() as u64;
    attributes[8] = offset;
    let pid = libc::pid_t::try_from(pid.0).expect("a pid");
    // SAFETY: the kernel reads the attributes, of the size that they state, and the path that they point at.
    let fd =
        unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), pid, -1, -1, FD_CLOEXEC) };
    let fd = i32::try_from(fd).expect("a descriptor");
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel has just given us this descriptor.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }
}

fn file_offset_of(function: &str, file: &Path) -> u64 {
    use ::object::{Object as _, ObjectSection as _, ObjectSymbol as _};
    let bytes = std::fs::read(file).expect("it can be read");
    let elf = ::object::File::parse(&*bytes).expect("it is an ELF file");
    let symbol = elf.dynamic_symbols().find(|symbol| symbol.name() == Ok(function)).expect("it is exported");
    let section = elf.section_by_index(symbol.section_index().expect("it is defined")).expect("it exists");
    symbol.address() - section.address() + section.file_range().expect("it is stored").0
}

/// The point of it all: a probe set when a library is reported sees the very first call in it, a constructor's.
#[test]
fn a_probe_sees_the_first_call() {
    let directory = tempfile::tempdir().expect("a directory");
    let library = directory.path().join("libcalled.so");
    let source = "void called(void) { __asm__ volatile(\"\"); }\n\
        __attribute__((constructor)) static void early(void) { called(); called(); }\n";
    compile(&library, source, &["-shared", "-fPIC"]);
    let program = directory.path().join("program");
    let library_path = library.to_str().expect("a plain path");
    compile(&program, "void called(void); int main(void) { called(); return 0; }", &[library_path]);
    let offset = file_offset_of("called", &library);

    let mut launched = spawn(&program, &[]);
    let target = Target::open(launched.pid()).expect("it can be traced");
    let mut counter = None;
    let startup = launched.run_to_entry::<LaunchError>(&target, |object| {
        if object.path == library {
            counter = Some(count_hits(&object.uprobe_path(), offset, target.pid()));
        }
        Ok(())
    });
    assert_eq!(startup.expect("it can be held"), Startup::AtEntry);
    assert!(launched.wait().expect("it ends").success());
    let mut hits = [0; 8];
    std::io::Read::read_exact(&mut counter.expect("it was reported"), &mut hits).expect("it can be read");
    assert_eq!(u64::from_ne_bytes(hits), 3, "two calls of the constructor and one of main");
}
