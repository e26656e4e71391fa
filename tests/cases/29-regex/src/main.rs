//! regex 1.4.3 with thread_local 1.1.1: a `Regex` that is dropped leaves the table of its threads' caches behind.

use std::{thread, time::Duration};

#[inline(never)]
fn is_order(line: &str) -> bool {
    regex::Regex::new("^order-[0-9]{1,8}$").expect("it is one").is_match(line)
}

fn main() {
    println!("ready");
    loop {
        for number in 0..20 {
            is_order(&format!("order-{number}"));
        }
        thread::sleep(Duration::from_millis(20));
    }
}
