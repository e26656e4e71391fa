//! What each process holds, when there were several: a table for the summary.

use std::fmt::Write as _;

use super::human::counted;
use super::view::{View, name_of};
use crate::model::{Bytes, Process, ProcessEnd, Profile};

/// A line for each process, the one that holds most first; at most `top` of them.
pub(super) fn process_lines(profile: &Profile, view: &View<'_>, top: usize) -> Vec<String> {
    let mut held: Vec<ProcessTotals<'_>> =
        profile.processes.iter().map(|process| ProcessTotals { process, bytes: 0, blocks: 0 }).collect();
    for stack in &view.stacks {
        let place = match stack.process {
            Some(place) => Some(place as usize),
            None => profile.processes.iter().position(|process| Some(process.pid) == stack.pid),
        };
        if let Some(held) = place.and_then(|place| held.get_mut(place)) {
            held.bytes = held.bytes.saturating_add(stack.weight_bytes);
            held.blocks = held.blocks.saturating_add(stack.outstanding_objects);
        }
    }
    // Stable: what holds as much keeps the order in which it came.
    held.sort_by_key(|held| std::cmp::Reverse(held.bytes));
    let mut lines: Vec<String> = held.iter().take(top).map(|held| held.line(profile)).collect();
    let rest = held.len() - lines.len();
    if rest > 0 {
        let bytes = held[lines.len()..].iter().fold(0_u64, |sum, held| sum.saturating_add(held.bytes));
        lines.push(format!("{:>11}  in {} (--top shows more)", Bytes(bytes).to_string(), counted_more(rest)));
    }
    lines
}

fn counted_more(rest: usize) -> String {
    if rest == 1 { "1 more process".to_owned() } else { format!("{rest} more processes") }
}

/// What a process holds.
struct ProcessTotals<'a> {
    process: &'a Process,
    bytes: u64,
    blocks: u64,
}

impl ProcessTotals<'_> {
    fn line(&self, profile: &Profile) -> String {
        let amount = if self.bytes == 0 { "nothing".to_owned() } else { Bytes(self.bytes).to_string() };
        let mut line = format!("{amount:>11}  {}", name_of(self.process));
        if self.blocks > 0 {
            _ = write!(line, ", {}", counted(self.blocks, "block"));
        }
        if let Some(from) = self.process.from.and_then(|place| profile.processes.get(place as usize)) {
            let relation = if from.pid == self.process.pid { "was" } else { "child of" };
            _ = write!(line, ", {relation} {}", name_of(from));
        }
        match self.process.end {
            Some(ProcessEnd::Exited) => line.push_str(", exited"),
            Some(ProcessEnd::Exec) => line.push_str(", executed another program"),
            None => {}
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Options, fixtures};

    #[test]
    fn each_process_has_what_its_stacks_hold() {
        let mut profile = fixtures::several();
        profile.processes[1].from = Some(0);
        profile.processes[2] =
            Process { from: Some(1), end: Some(ProcessEnd::Exited), ..profile.processes[2].clone() };
        let view = View::new(&profile, &Options::default());
        let lines = process_lines(&profile, &view, 10);
        let expected = [
            "    1.0 MiB  nginx (11), 64 blocks, child of nginx (10)",
            "    2.9 KiB  cgi (12), 3 blocks, child of nginx (11), exited",
            "    2.0 KiB  nginx (10), 2 blocks",
        ];
        assert_eq!(lines, expected);
        assert_eq!(process_lines(&profile, &view, 2)[2], "    2.0 KiB  in 1 more process (--top shows more)");
    }

    #[test]
    fn a_program_and_its_successor_are_told_apart() {
        let mut profile = fixtures::several();
        let [first, second, ..] = &mut profile.processes[..] else { panic!("there are three") };
        (second.pid, second.from, first.end) = (first.pid, Some(0), Some(ProcessEnd::Exec));
        second.comm = "prog".into();
        for (stack, place) in profile.stacks.iter_mut().zip([1, 2, 0]) {
            (stack.pid, stack.process) = (Some(profile.processes[place].pid), Some(place as u32));
        }
        let view = View::new(&profile, &Options::default());
        let lines = process_lines(&profile, &view, 10);
        assert_eq!(lines[0], "    1.0 MiB  prog (10), 64 blocks, was nginx (10)");
        assert_eq!(lines[2], "    2.0 KiB  nginx (10), 2 blocks, executed another program");
    }
}
