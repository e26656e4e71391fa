//! Who may open and close the gate of a process: one tracer at a time.

use std::{
    fs::{self, File},
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::MetadataExt as _,
            net::{SocketAddr, UnixListener},
        },
    },
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
};

use crate::{report::human::printable, target::Target};

/// The right to open and close the gate of one process, or to rely on its staying as it is. The kernel takes it back from whoever dies.
#[derive(Debug, Default)]
pub(super) struct Lock {
    /// A name that nobody else in this network namespace can have meanwhile.
    _name: Option<UnixListener>,
    /// The gate's memory, in which a byte is locked: tracers of other containers see that.
    memory: Option<File>,
}

/// What for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Use {
    /// To open or close it, for one alone.
    Change,
    /// To read its probes, for any number.
    Read,
}

impl Lock {
    /// To open and close it.
    ///
    /// # Errors
    /// When another tracer does.
    pub(super) fn of(target: &Target) -> Result<Self> {
        let name = format!("tracer-gate-{}-{}", target.pid(), target.start_time());
        match UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?) {
            Ok(name) => Ok(Self { _name: Some(name), memory: None }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(has_another(target)),
            Err(error) => Err(error).context("the gate cannot be locked"),
        }
    }

    /// Locks the memory of the gate that is there, too.
    ///
    /// # Errors
    /// When another tracer has it.
    pub(super) fn memory(&mut self, target: &Target, memory: File, how: Use) -> Result<()> {
        let mut byte = libc::flock {
            l_type: match how {
                Use::Change => libc::F_WRLCK,
                Use::Read => libc::F_RDLCK,
            } as _,
            l_whence: libc::SEEK_SET as _,
            l_start: byte_of(target),
            l_len: 1,
            l_pid: 0,
        };
        match fcntl(&memory, FcntlArg::F_OFD_SETLK(&byte)) {
            Ok(_) => {
                self.memory = Some(memory);
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::EACCES) => {
                let asked = fcntl(&memory, FcntlArg::F_OFD_GETLK(&mut byte));
                let is_read = asked.is_ok() && i32::from(byte.l_type) == libc::F_RDLCK;
                Err(if is_read { is_read_by_another(target) } else { has_another(target) })
            }
            Err(error) => Err(error).context("the gate cannot be locked"),
        }
    }
}

/// Children share the memory, so each process has a byte of its own, by the pid that it sees itself in its namespace: every tracer sees
/// both alike.
fn byte_of(target: &Target) -> i64 {
    /// No pid has more.
    const PID_BITS: u32 = 22;
    let namespace = fs::metadata(format!("/proc/{}/ns/pid", target.pid())).map_or(0, |file| file.ino());
    (namespace << PID_BITS | u64::from(target.inner_pid().0)).cast_signed() & i64::MAX
}

fn has_another(target: &Target) -> anyhow::Error {
    anyhow!(
        "another tracer has a gate in {} ({}): wait until it has ended",
        printable(target.comm()),
        target.pid()
    )
}

fn is_read_by_another(target: &Target) -> anyhow::Error {
    anyhow!(
        "another tracer records {} ({}) by the gate that is open in it: wait until it has ended",
        printable(target.comm()),
        target.pid()
    )
}
