//! Where the stacks of a process's threads are: what tells a thread's stack from any other anonymous mapping.

use std::fs;
use std::path::Path;

use crate::model::{Address, Pid};

/// The stack pointers of the threads that are in a system call, most of them at any moment, in ascending order. A thread that
/// is running, or that ends meanwhile, is left out.
///
/// Read from `/proc/PID/task/TID/syscall`, for which we need the same permission as for tracing the process.
#[must_use]
pub fn stack_pointers(pid: Pid) -> Vec<Address> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut pointers: Vec<Address> =
        threads.flatten().filter_map(|thread| stack_pointer(&thread.path())).collect();
    pointers.sort_unstable();
    pointers
}

fn stack_pointer(thread: &Path) -> Option<Address> {
    parse(&fs::read_to_string(thread.join("syscall")).ok()?)
}

/// The last word but one: the text is `running`, `-1 SP PC` (stopped outside a system call), or the call's number and
/// its six arguments before SP and PC.
fn parse(text: &str) -> Option<Address> {
    let stack_pointer = text.split_ascii_whitespace().rev().nth(1)?;
    u64::from_str_radix(stack_pointer.strip_prefix("0x")?, 16).ok().map(Address)
}

#[cfg(test)]
mod tests {
    use super::super::python_child::Target;
    use super::super::residency;
    use super::*;

    #[test]
    fn the_stack_pointer_is_the_last_word_but_one() {
        let call = "0 0x3 0x7f22 0x1000 0x0 0x0 0x0 0x7ffd18a5e0f8 0x7f22f0d1\n";
        assert_eq!(parse(call), Some(Address(0x7ffd_18a5_e0f8)));
        assert_eq!(parse("-1 0x7ffd18a5e0f8 0x7f22f0d1\n"), Some(Address(0x7ffd_18a5_e0f8)));
        assert_eq!(parse("running\n"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn threads_that_wait_show_their_stacks() {
        let mut target = Target::start();
        target.run("import threading; e = threading.Event(); up = threading.Barrier(4)");
        target.run("work = lambda: (up.wait(), e.wait())");
        target.run("ts = [threading.Thread(target=work, daemon=True) for _ in range(3)]");
        target.run("[t.start() for t in ts]; up.wait()");
        // Each is in its system call or on its way there.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let pointers = loop {
            let pointers = stack_pointers(target.pid());
            if pointers.len() == 4 {
                break pointers;
            }
            assert!(std::time::Instant::now() < deadline, "{pointers:?}");
            std::thread::yield_now();
        };
        let mappings = residency::mappings(target.pid()).unwrap();
        let mut around: Vec<_> = pointers
            .iter()
            .map(|sp| mappings.iter().position(|mapping| mapping.start <= *sp && *sp < mapping.end).unwrap())
            .collect();
        around.sort_unstable();
        around.dedup();
        assert_eq!(around.len(), 4);
        assert!(around.iter().any(|&index| mappings[index].name == "[stack]"));
    }

    #[test]
    fn a_process_that_is_gone_has_no_threads() {
        let mut target = Target::start();
        let pid = target.pid();
        target.child.kill().unwrap();
        target.child.wait().unwrap();
        assert_eq!(stack_pointers(pid), []);
    }
}
