//! A program in a control group that leaks until the kernel kills it.

use std::{
    io::{Read as _, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
};

use crate::{cgroup::MemoryGroup, program::compile};

/// A program in a group that leaks until the kernel kills it.
#[derive(Debug)]
pub struct Leaking {
    /// The program.
    pub child: Child,
    stdin: ChildStdin,
}

impl Leaking {
    /// Starts it, and waits until it has leaked so many blocks of 64 KiB.
    #[track_caller]
    #[must_use]
    pub fn start(group: &MemoryGroup, blocks: u32, pause_us: u32) -> Self {
        let program = compile("leak_until_killed.c", &["-g".into(), "-O1".into()]);
        let [shell, words @ ..] = group.wrapper();
        let mut command = Command::new(shell);
        command.args(words).arg(program).args([blocks.to_string(), pause_us.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it can be started");
        let mut ready = [0; 5];
        let mut stdout = child.stdout.take().expect("it is piped");
        stdout.read_exact(&mut ready).expect("it says that it is ready");
        let stdin = child.stdin.take().expect("it is piped");
        Self { child, stdin }
    }

    /// Has it leak on: a block after each pause.
    #[track_caller]
    pub fn go(&mut self) {
        writeln!(self.stdin).expect("it listens");
    }
}

impl Drop for Leaking {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
