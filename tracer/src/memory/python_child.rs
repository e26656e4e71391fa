//! For tests: a python3 process that maps and touches memory as it is told.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::model::Pid;

/// A child that carries out Python statements; `mmap(bytes, flags, touched_pages)` answers with an address.
pub(crate) struct Target {
    pub(crate) child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

const PROGRAM: &str = "
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
def mmap(size, prot=3, at=None, flags=0x22):
    return libc.mmap(at, size, prot, flags | (0x10 if at else 0), -1, 0)
def write(at, pages, step=1):
    for page in range(0, pages * step, step):
        ctypes.memset(at + page * 4096, 1, 1)
def read(at, pages):
    for page in range(pages):
        ctypes.string_at(at + page * 4096, 1)
def madvise(at, size, advice):
    if libc.madvise(at, size, advice):
        raise OSError(ctypes.get_errno())
libc.syscall.restype = ctypes.c_long
def syscall(number, *args):
    result = libc.syscall(number, *map(ctypes.c_ulong, args))
    return -ctypes.get_errno() if result == -1 else result
while line := sys.stdin.readline():
    names = globals()
    exec(line, names)
    print(names.pop('answer', 0), flush=True)
";

impl Target {
    pub(crate) fn start() -> Self {
        let mut child = Command::new("python3")
            .args(["-c", PROGRAM])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 can be started");
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, input, output }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    /// Runs a statement and returns `answer`.
    pub(crate) fn run(&mut self, statement: &str) -> i64 {
        writeln!(self.input, "{statement}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().parse().unwrap_or_else(|_| panic!("{statement}: {line}"))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
