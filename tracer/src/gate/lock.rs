//! Who may open and close the gate of a process: one tracer at a time.

use std::{
    fs::File,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
};

use crate::{report::human::printable, target::Target};

/// The right to open and close the gate of one process. The kernel takes it back from whoever dies.
#[derive(Debug)]
pub(super) struct Lock {
    /// A name that nobody else in this network namespace can have meanwhile.
    _name: UnixListener,
    /// The gate's memory, in which a byte is locked: tracers of other containers see that.
    memory: Option<File>,
}

impl Lock {
    /// # Errors
    /// When another tracer has it.
    pub(super) fn of(target: &Target) -> Result<Self> {
        let name = format!("tracer-gate-{}-{}", target.pid(), target.start_time());
        match UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?) {
            Ok(name) => Ok(Self { _name: name, memory: None }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(has_another(target)),
            Err(error) => Err(error).context("the gate cannot be locked"),
        }
    }

    /// Locks the memory of the gate that is there, too. Children share it, so each process has a byte of its own, by the pid that it sees
    /// itself: every tracer sees that one alike.
    ///
    /// # Errors
    /// When another tracer has it.
    pub(super) fn memory(&mut self, target: &Target, memory: File) -> Result<()> {
        let byte = libc::flock {
            l_type: libc::F_WRLCK as _,
            l_whence: libc::SEEK_SET as _,
            l_start: target.inner_pid().0.into(),
            l_len: 1,
            l_pid: 0,
        };
        match fcntl(&memory, FcntlArg::F_OFD_SETLK(&byte)) {
            Ok(_) => {
                self.memory = Some(memory);
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::EACCES) => Err(has_another(target)),
            Err(error) => Err(error).context("the gate cannot be locked"),
        }
    }
}

fn has_another(target: &Target) -> anyhow::Error {
    anyhow!("another tracer has a gate in {} ({})", printable(target.comm()), target.pid())
}
