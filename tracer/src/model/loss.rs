//! Events that could not be accounted for: what each cause is called, and what it means.

use tracer_ebpf::counter::Counter;

/// Runs of BPF programs that the kernel left out.
pub const MISSED_BY_KERNEL: &str = "missed_by_kernel";
/// Events of the BPF programs that make no sense.
pub const MALFORMED_EVENT: &str = "malformed_event";
/// Mappings for which the account of mappings had no room.
pub const MAPPING_TABLE_FULL: &str = "mapping_table_full";

/// What user space counts; the rest are counters of the BPF programs.
const OF_USER_SPACE: [(&str, &str); 3] = [
    (MISSED_BY_KERNEL, "the kernel left BPF programs out: trace without other BPF tools"),
    (MALFORMED_EVENT, "an event could not be read: please report it"),
    (MAPPING_TABLE_FULL, "a process has more mappings than there is room for: please report it"),
];

/// Every cause of loss, with what happened and what to do about it.
pub fn causes() -> impl Iterator<Item = (&'static str, &'static str)> {
    let counted = Counter::ALL.iter().filter_map(|counter| Some((counter.name(), counter.loss()?)));
    counted.chain(OF_USER_SPACE)
}

/// What a cause of loss means and what to do about it; none of a cause that is not known.
#[must_use]
pub fn meaning(cause: &str) -> Option<&'static str> {
    causes().find(|&(name, _)| name == cause).map(|(_, meaning)| meaning)
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::{process::MAX_PROCESSES, stop::Stop};

    use super::*;

    #[test]
    fn the_documents_explain_every_loss_and_every_end_of_a_walk() {
        let text = include_str!("../../../docs/accounting.md");
        let stops = Stop::ALL.iter().filter(|stop| !stop.is_complete()).map(|stop| stop.name());
        let names = causes().map(|(name, _)| name).chain(stops);
        let missing: Vec<_> = names.filter(|name| !text.contains(&format!("| `{name}` |"))).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn the_number_of_processes_is_said_as_it_is() {
        let limit = MAX_PROCESSES.to_string();
        let said = meaning(Counter::ProcessNotFollowed.name()).expect("it is a loss");
        assert!(said.replace(',', "").contains(&limit), "{said}");
        assert_eq!(meaning("no such cause"), None);
    }
}
