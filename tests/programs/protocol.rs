// The same protocol as protocol.h, for Rust programs: `include!("protocol.rs")`.

use std::io::{Read, Write};

/// One leak that the program announces: function, api, objects, bytes.
pub type Expectation = (&'static str, &'static str, u64, u64);

/// States what will happen and waits for "go".
pub fn ready(leaks: &[Expectation], freed: (u64, u64)) {
    let leaks: Vec<_> = leaks
        .iter()
        .map(|(function, api, objects, bytes)| {
            format!(
                r#"{{"function":"{function}","api":"{api}","kind":"native","objects":{objects},"bytes":{bytes},"through":true}}"#
            )
        })
        .collect();
    let (objects, bytes) = freed;
    let hello = format!(
        "{{\"pid\":{},\"expect\":{{\"leaks\":[{}],\"freed\":{{\"objects\":{objects},\"bytes\":{bytes}}}}}}}\n",
        std::process::id(),
        leaks.join(",")
    );
    std::io::stdout().write_all(hello.as_bytes()).unwrap();
    drop(hello);
    drop(leaks);
    let mut byte = [0];
    let mut stdin = input();
    while byte != *b"\n" {
        if stdin.read(&mut byte).unwrap() == 0 {
            std::process::exit(0);
        }
    }
}

/// Says that the work is done and stays until the end of its input. Standard output keeps the buffer that `ready` made.
pub fn done() -> ! {
    std::io::stdout().write_all(b"done\n").unwrap();
    let mut byte = [0];
    while input().read(&mut byte).unwrap() == 1 {}
    std::process::exit(0);
}

/// Standard input without a buffer: that would be allocated.
fn input() -> std::mem::ManuallyDrop<std::fs::File> {
    use std::os::fd::FromRawFd;
    // SAFETY: descriptor 0 is open, and never closed here.
    std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(0) })
}
