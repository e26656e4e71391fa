//! `tracer gate`, and the process that does it for `tracer --gate`: it outlives the recording, and closes the gate when that has ended,
//! however it ended.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::fd::AsFd as _,
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, poll};

use crate::{
    cli::{Exit, GateConfig, GateWish},
    doctor,
    gate::{self, KeptOpen},
    model::Pid,
    readable,
    report::human::printable,
    target::Target,
};

/// What the keeper of a gate says when it is open.
const OPEN: &str = "open";

/// Opens a gate and keeps it open, or closes one that was left.
pub(super) fn keep(config: GateConfig) -> Result<Exit> {
    doctor::check_rights()?;
    if config.wish == GateWish::UntilInputEnds {
        // Ctrl-C is not for it: it ends when the recording has.
        rustix::process::setsid().context("cannot leave the session")?;
    }
    let target = Target::open(config.pid)?;
    let name = || format!("{} ({})", printable(target.comm()), target.pid());
    if config.wish == GateWish::Remove {
        match gate::remove(&target)? {
            Some(held) => println!("closed the gate of {}; {}", name(), stood_still(held)),
            None => println!("{} has no open gate", name()),
        }
        return Ok(Exit::Done);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Signals wait until the gate is open, and closed.
    let signals = {
        let _entered = runtime.enter();
        use tokio::signal::unix::{SignalKind, signal};
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    let open = gate::open(&target)?;
    if config.wish == GateWish::UntilInputEnds {
        // It is for a program, which may be gone by now.
        _ = writeln!(io::stdout(), "{OPEN}");
        wait_for_input(&target);
    } else {
        println!("the gate of {} is open; Ctrl-C closes it; {}", name(), stood_still(open.held));
        let (mut interrupted, mut terminated, mut hung_up) = signals;
        runtime.block_on(async {
            let process = target.as_fd().try_clone_to_owned()?;
            let process = readable::watch(process)?;
            tokio::select! {
                _ = interrupted.recv() => {}
                _ = terminated.recv() => {}
                _ = hung_up.recv() => {}
                _ = process.readable() => {}
            }
            io::Result::Ok(())
        })?;
    }
    let closed = open.close()?;
    if config.wish == GateWish::UntilInterrupted
        && let Some(held) = closed
    {
        println!("closed the gate of {}; {}", name(), stood_still(held));
    }
    Ok(Exit::Done)
}

/// What opening or closing took of the process.
fn stood_still(held: Duration) -> String {
    format!("one of its threads stood still for {:.2} ms", held.as_secs_f64() * 1000.0)
}

/// Until nobody writes to standard input any more, or the process has ended.
fn wait_for_input(target: &Target) {
    let mut input = io::stdin();
    loop {
        let mut either = [PollFd::new(&input, PollFlags::IN), PollFd::new(target, PollFlags::IN)];
        if poll(&mut either, None).is_err() {
            continue;
        }
        let [input_ready, ended] = either.map(|polled| !polled.revents().is_empty());
        if ended {
            return;
        }
        if input_ready && matches!(input.read(&mut [0; 16]), Ok(0) | Err(_)) {
            return;
        }
    }
}

/// A gate that another process keeps open as long as this lives.
pub(super) struct KeptGate {
    pid: Pid,
    keeper: Child,
    /// Ends when this process does.
    input: Option<ChildStdin>,
}

impl KeptGate {
    /// Has a gate opened.
    ///
    /// # Errors
    /// Why not, as its keeper says it.
    pub(super) fn open(pid: Pid) -> Result<Self> {
        let program = std::env::current_exe().context("tracer does not find itself")?;
        let mut command = Command::new(program);
        command.args(["gate", "--until-input-ends", "--pid", &pid.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut keeper = command.spawn().context("cannot begin the process that keeps the gate")?;
        let input = keeper.stdin.take();
        let mut said = String::new();
        if let Some(output) = keeper.stdout.take() {
            BufReader::new(output)
                .read_line(&mut said)
                .context("cannot hear the process that keeps the gate")?;
        }
        if said.trim_end() == OPEN {
            return Ok(Self { pid, keeper, input });
        }
        drop(input);
        let error = failure(&mut keeper);
        if keeper.wait().is_ok_and(|status| status.code().is_none()) {
            // Somebody has killed it on its way.
            remove(pid)?;
        }
        Err(error)
    }

    /// Has it begin to close the gate.
    pub(super) fn let_close(&mut self) {
        self.input = None;
    }

    /// Has it closed.
    ///
    /// # Errors
    /// When it could not be, as its keeper says it.
    pub(super) fn close(mut self) -> Result<()> {
        self.let_close();
        let status = self.keeper.wait().context("the process that keeps the gate cannot be waited for")?;
        match status.code() {
            Some(0) => Ok(()),
            Some(_) => Err(failure(&mut self.keeper)),
            // Somebody has killed it.
            None => remove(self.pid),
        }
    }
}

/// Closes what a keeper has left that was killed.
fn remove(pid: Pid) -> Result<()> {
    match Target::open(pid) {
        Ok(target) => gate::remove(&target).map(drop),
        // It has ended.
        Err(_) => Ok(()),
    }
}

fn failure(keeper: &mut Child) -> anyhow::Error {
    let mut said = String::new();
    if let Some(mut errors) = keeper.stderr.take() {
        _ = errors.read_to_string(&mut said);
    }
    _ = keeper.wait();
    match said.trim_end().strip_prefix("tracer: ") {
        Some(why) => anyhow!("{why}"),
        None => anyhow!("the process that keeps the gate ended: {}", said.trim_end()),
    }
}

/// Keeps a gate open that is open in a process, since its probes are what a sample is made of.
pub(super) fn keep_open(pid: Pid) -> Result<Option<KeptOpen>> {
    // Who cannot be opened is told so later.
    Target::open(pid).map_or(Ok(None), |target| gate::keep_open(&target))
}

/// Refuses a process in which a gate is open: its functions are not where probes would be.
pub(super) fn check_closed(pid: Pid) -> Result<()> {
    if keep_open(pid)?.is_some() {
        bail!(
            "a gate is open in process {pid}, left by a tracer that was killed or by its parent's: record it with --sample or --gate, or \
             close it with `tracer gate --remove --pid {pid}`"
        );
    }
    Ok(())
}
