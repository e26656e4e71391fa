//! Starts a command and holds it until its allocators are probed.
//!
//! The allocator is rarely in the program itself: the dynamic linker maps libc and the other libraries after the
//! program has started, and runs their constructors, which allocate, before the program's own first instruction. So the
//! command is held three times over, by ptrace(2):
//!
//! 1. at its `exec`: the program file and the dynamic linker are mapped, nothing has run;
//! 2. after each system call of the dynamic linker that maps code: the new file is mapped and nothing of it has run;
//! 3. at the program's entry point, where the dynamic linker is done; there ptrace ends.
//!
//! At each a callback gets the files that are new, and puts the probes in; then the command goes on. A static program
//! is at 3 at once, and a script is held at the `exec` of its interpreter. Libraries that the program loads later by
//! itself (`dlopen`) are the business of whoever watches its mappings. While it is held the command ends with the
//! tracer, whatever ends that; once let go, it owes the tracer nothing.
//!
//! Standard streams, working directory, process group and environment are the tracer's own, so Ctrl-C on a terminal reaches
//! both: the command does with it what it does, and the tracer writes its reports. Under `sudo` the command runs as the
//! user who called it, with their groups, `HOME`, `USER` and `LOGNAME`.

mod preload;
mod ptrace;
mod user;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Signal, kill_process};

use super::{FileId, MappedObject, Target};
use crate::descriptors;
use crate::model::{Address, Pid};
pub use preload::Preload;
use ptrace::{Tracee, TraceeStop};
use user::InvokingUser;
pub use user::caller_of_sudo;

/// A command that the tracer started.
///
/// Dropped while it is still held, the command is killed: it was never let run. It stays on the thread that started it,
/// the only one from which the kernel takes what holds a program.
#[derive(Debug)]
pub struct Launched {
    child: Child,
    is_preloaded: bool,
    state: LaunchState,
    /// Only the thread that started a program may hold it.
    not_send: PhantomData<*const ()>,
}

#[derive(Debug)]
enum LaunchState {
    Held(Tracee),
    Running,
    Ended(ExitStatus),
}

/// What became of a command that was let run to its entry point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Startup {
    /// It stands at its entry point.
    AtEntry,
    /// It ended before (a library is missing, a signal killed it).
    Ended(ExitStatus),
}

/// Why a command could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// There is no such program.
    #[error("cannot start {}: there is no such program (searched in PATH unless the name has a slash)", program.display())]
    NotFound {
        /// As it was named.
        program: OsString,
    },
    /// The program exists and cannot be executed.
    #[error("cannot start {}: {source}", program.display())]
    NotExecutable {
        /// As it was named.
        program: OsString,
        /// What the system said.
        source: io::Error,
    },
    /// Holding the program failed.
    #[error(
        "cannot hold the command at its start: {0} (is ptrace forbidden by kernel.yama.ptrace_scope or a container?)"
    )]
    Hold(#[from] io::Error),
}

impl LaunchError {
    /// The exit status for it, which is that of a shell: 127 when there is no such program, 126 when it cannot be
    /// executed; 1 for anything else.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } => 126,
            Self::Hold(_) => 1,
        }
    }
}

impl Launched {
    /// Starts a command and holds it before its first instruction. Under sudo it runs as the user who called sudo, unless
    /// `as_root`. With an `output` it has no terminal: its output goes to that file, and it has no input. With a `preload`,
    /// the dynamic linker loads that library first.
    ///
    /// # Errors
    /// When there is no such program, it cannot be executed, or may not be held.
    pub fn spawn(
        program: &OsStr,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        as_root: bool,
        output: Option<File>,
        preload: Option<&Preload>,
    ) -> Result<Self, LaunchError> {
        let user = if as_root { None } else { InvokingUser::of_sudo() };
        Self::spawn_as(user, program, arguments, output, preload)
    }

    fn spawn_as(
        user: Option<InvokingUser>,
        program: &OsStr,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        output: Option<File>,
        preload: Option<&Preload>,
    ) -> Result<Self, LaunchError> {
        let mut command = Command::new(program);
        command.args(arguments);
        if let Some(preload) = preload {
            command.envs(preload.variables());
        }
        if let Some(output) = output {
            let errors = output.try_clone()?;
            command.stdin(Stdio::null()).stdout(output).stderr(errors);
        }
        if let Some(account) = user.as_ref().and_then(|user| user.account.as_ref()) {
            command.env("HOME", &account.home).env("USER", &account.name).env("LOGNAME", &account.name);
        }
        let before_exec = move || {
            descriptors::restore_limit()?;
            user.as_ref().map_or(Ok(()), InvokingUser::become_user)?;
            ptrace::trace_me()
        };
        // SAFETY: the closure makes system calls only; it neither allocates nor takes a lock that another thread could
        // have held at the fork.
        unsafe { command.pre_exec(before_exec) };
        let child = command.spawn().map_err(|source| start_error(program, source))?;

        let tracee = Tracee::new(rustix::process::Pid::from_child(&child));
        let is_preloaded = preload.is_some();
        let mut launched =
            Self { child, is_preloaded, state: LaunchState::Held(tracee), not_send: PhantomData };
        // `spawn` returned, so `exec` has succeeded, and the kernel has stopped the program with a SIGTRAP.
        match tracee.wait()? {
            TraceeStop::Ended(status) => launched.state = LaunchState::Ended(status),
            TraceeStop::Signal(_) | TraceeStop::Exec | TraceeStop::SystemCall => tracee.set_up()?,
        }
        Ok(launched)
    }

    /// Whether the dynamic linker was to load a library first.
    #[must_use]
    pub const fn is_preloaded(&self) -> bool {
        self.is_preloaded
    }

    /// Its pid, as the tracer sees it.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    /// Lets the command run to its program's entry point, and calls `on_object` with each ELF file that it has mapped
    /// with executable parts, before any code of that file runs: the first time with the program itself. Each file
    /// comes once. `target` must be this command.
    ///
    /// # Errors
    /// Those of `on_object`, and when the command cannot be held any more. The command is still held then, and dropping
    /// it ends it.
    pub fn run_to_entry<E: From<LaunchError>>(
        &mut self,
        target: &Target,
        mut on_object: impl FnMut(MappedObject) -> Result<(), E>,
    ) -> Result<Startup, E> {
        let tracee = match self.state {
            LaunchState::Held(tracee) => tracee,
            LaunchState::Running => return Ok(Startup::AtEntry),
            LaunchState::Ended(status) => return Ok(Startup::Ended(status)),
        };
        let failed = |error: io::Error| E::from(LaunchError::Hold(error));
        let mut known = HashSet::<FileId>::new();
        let mut stop = TraceeStop::Exec;
        let mut maps_code = false;
        loop {
            let mut signal = 0;
            match stop {
                TraceeStop::Exec => {
                    report_new(target, &mut known, &mut on_object, failed)?;
                    tracee.set_breakpoint(entry_point(target).map_err(failed)?).map_err(failed)?;
                }
                TraceeStop::SystemCall => {
                    let entered = tracee.position().map_err(failed)?.entered;
                    if entered.is_none() && maps_code {
                        report_new(target, &mut known, &mut on_object, failed)?;
                    }
                    maps_code = entered.is_some_and(|call| call.may_map_code());
                }
                TraceeStop::Signal(libc::SIGTRAP)
                    if tracee.position().map_err(failed)?.instruction
                        == entry_point(target).map_err(failed)? =>
                {
                    tracee.clear_breakpoint().map_err(failed)?;
                    return Ok(Startup::AtEntry);
                }
                TraceeStop::Signal(number) => signal = number,
                TraceeStop::Ended(status) => {
                    self.state = LaunchState::Ended(status);
                    return Ok(Startup::Ended(status));
                }
            }
            tracee.resume(signal).map_err(failed)?;
            stop = tracee.wait().map_err(failed)?;
        }
    }

    /// Lets the command run, and go: nothing of the tracer's holds it any more.
    ///
    /// # Errors
    /// When the kernel refuses; a command that was killed meanwhile is no error.
    pub fn release(&mut self) -> Result<(), LaunchError> {
        let LaunchState::Held(tracee) = self.state else { return Ok(()) };
        self.state = LaunchState::Running;
        match tracee.detach() {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Sends the command a signal, for those that reached the tracer only (a supervisor's SIGTERM). A command that has
    /// ended gets none.
    pub fn signal(&self, signal: Signal) {
        if !matches!(self.state, LaunchState::Ended(_)) {
            // It has been neither waited for nor reused: the pid is ours. A command that ended just now needs no signal.
            let _ = kill_process(rustix::process::Pid::from_child(&self.child), signal);
        }
    }

    /// Waits until the command ends, and returns how it did. Lets it go first if it is still held.
    ///
    /// # Errors
    /// As [`Launched::release`].
    pub fn wait(&mut self) -> Result<ExitStatus, LaunchError> {
        self.release()?;
        if let LaunchState::Ended(status) = self.state {
            return Ok(status);
        }
        let status = self.child.wait()?;
        self.state = LaunchState::Ended(status);
        Ok(status)
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if matches!(self.state, LaunchState::Held(_)) {
            // Nothing can be done about a failure, and EXITKILL stands behind it.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The exit status with which to pass on how a command ended: its own, or 128 and the number of the signal that killed
/// it, as shells have it.
#[must_use]
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn start_error(program: &OsStr, source: io::Error) -> LaunchError {
    let program = program.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => LaunchError::NotFound { program },
        _ => LaunchError::NotExecutable { program, source },
    }
}

/// Calls `on_object` with the files that are not known yet.
fn report_new<E>(
    target: &Target,
    known: &mut HashSet<FileId>,
    on_object: &mut impl FnMut(MappedObject) -> Result<(), E>,
    failed: impl Fn(io::Error) -> E,
) -> Result<(), E> {
    let objects = target.objects_where(|id| known.insert(id)).map_err(failed)?;
    for refused in &objects.unopened {
        log::warn!("cannot open {}: {}", refused.path.display(), refused.reason);
    }
    objects.opened.into_iter().try_for_each(on_object)
}

/// Where the program itself, not its dynamic linker, begins: the kernel tells it the dynamic linker in the auxiliary
/// vector.
fn entry_point(target: &Target) -> io::Result<Address> {
    const WORD: usize = size_of::<u64>();
    let vector = target.read("auxv")?;
    let (words, _) = vector.as_chunks::<WORD>();
    let (pairs, _) = words.as_chunks::<2>();
    let entry = pairs.iter().find(|[key, _]| u64::from_ne_bytes(*key) == libc::AT_ENTRY);
    let [_, value] = entry.ok_or_else(|| io::Error::other("its entry point is not known"))?;
    Ok(Address(u64::from_ne_bytes(*value)))
}

#[cfg(test)]
mod tests;
