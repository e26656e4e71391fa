//! Whether the kernel has room for what a gate asks of it. `mremap` unmaps what it replaces *before* it maps what comes there: if it had
//! to stop between the two, the process would go on without its allocator. It stops there for lack of room alone, and only of these kinds.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::{
    model::{Address, AddressRange, Bytes},
    target::{
        Target,
        cgroup::{Hierarchy, Version},
    },
};

/// What must be free. A call takes some hundred bytes of the kernel's own memory, and no addresses more than it had.
const ENOUGH: u64 = 4 << 20;
/// What must be free of mappings: the gate takes seven, and splits two others.
const ENOUGH_MAPPINGS: u64 = 64;

/// Refuses a process that has hardly any room left.
pub(super) fn check(target: &Target) -> Result<()> {
    let limits = target.read("limits").context("its limits cannot be read")?;
    let status = target.read("status").context("its status cannot be read")?;
    let (limits, status) = (String::from_utf8_lossy(&limits), String::from_utf8_lossy(&status));
    if let Some(limit) = address_space(&limits) {
        let used = kibibytes(&status, "VmSize:").context("its size cannot be read")?;
        ensure!(
            used.saturating_add(ENOUGH) <= limit,
            "it has {} of the {} of addresses that it may have (RLIMIT_AS): too many for a gate",
            Bytes(used),
            Bytes(limit)
        );
    }
    let limit =
        fs::read_to_string("/proc/sys/vm/max_map_count").ok().and_then(|limit| limit.trim().parse().ok());
    if let Some(limit) = limit {
        let used = target.mappings_with_gate()?.len() as u64;
        ensure!(
            used + ENOUGH_MAPPINGS <= limit,
            "it has {used} of the {limit} mappings that it may have (vm.max_map_count): too many for a gate"
        );
    }
    let Some(hierarchy) = Hierarchy::of_memory() else { return Ok(()) };
    let Some(group) = hierarchy.of_process(target.pid()) else { return Ok(()) };
    for above in group.ancestors().take_while(|above| above.starts_with(hierarchy.root())) {
        let Some((used, limit)) = memory(above, hierarchy.version) else { continue };
        ensure!(
            used.saturating_add(ENOUGH) <= limit,
            "its control group uses {} of {}, which is too near to its limit for a gate",
            Bytes(used),
            Bytes(limit)
        );
    }
    Ok(())
}

/// Refuses code that is locked in memory: what is mapped again is not locked any more, and the kernel goes on counting it as such.
pub(super) fn check_unlocked(target: &Target, ranges: &[AddressRange]) -> Result<()> {
    let status = target.read("status").context("its status cannot be read")?;
    // The kernel looks at every page for `smaps`.
    if kibibytes(&String::from_utf8_lossy(&status), "VmLck:") == Some(0) {
        return Ok(());
    }
    let smaps = target.read("smaps").context("its mappings cannot be read")?;
    let is_locked = locked(&String::from_utf8_lossy(&smaps))
        .iter()
        .any(|locked| ranges.iter().any(|range| locked.intersection(*range).is_some()));
    ensure!(!is_locked, "its code is locked in memory (mlock, mlockall), and would not be any more");
    Ok(())
}

/// What is locked, as smaps say it.
fn locked(smaps: &str) -> Vec<AddressRange> {
    let mut at = None;
    let mut locked = Vec::new();
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            locked.extend(at.filter(|_| flags.split_whitespace().any(|flag| flag == "lo")));
        } else if let Some((start, end)) = line.split(' ').next().and_then(|range| range.split_once('-')) {
            let address = |digits| u64::from_str_radix(digits, 16).ok().map(Address);
            at = address(start).zip(address(end)).map(|(start, end)| AddressRange { start, end });
        }
    }
    locked
}

/// `Max address space         unlimited            unlimited            bytes`: the soft one counts.
fn address_space(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What a group uses, without files that can be dropped, and what it may use.
fn memory(group: &Path, version: Version) -> Option<(u64, u64)> {
    let (usage, limit, file) = match version {
        Version::V1 => ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_"),
        Version::V2 => ("memory.current", "memory.max", ""),
    };
    let number = |name| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let (usage, limit) = (number(usage)?, number(limit)?);
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let part = |name: String| {
        let value = |line: &str| line.strip_prefix(&name)?.trim().parse::<u64>().ok();
        stat.lines().find_map(value).unwrap_or(0)
    };
    let files = part(format!("{file}inactive_file ")) + part(format!("{file}active_file "));
    Some((usage.saturating_sub(files), limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_sizes_are_read() {
        let limits = "Limit      Soft Limit  Hard Limit  Units\nMax address space         104857600            unlimited            bytes\n";
        assert_eq!(address_space(limits), Some(104_857_600));
        assert_eq!(address_space(&limits.replace("104857600", "unlimited")), None);
        assert_eq!(kibibytes("VmPeak:\t 9 kB\nVmSize:\t  24 kB\n", "VmSize:"), Some(24 << 10));
    }

    #[test]
    fn what_is_locked_is_read() {
        let smaps = "1000-3000 r-xp 00000000 08:01 7  /lib/a-b.so\nRss: 8 kB\nVmFlags: rd ex mr mw me lo sd\n\
                     3000-4000 r-xp 00000000 00:00 0\nVmFlags: rd ex mr low\n";
        let range = AddressRange { start: Address(0x1000), end: Address(0x3000) };
        assert_eq!(locked(smaps), [range]);
    }

    #[test]
    fn files_that_can_be_dropped_do_not_count() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        write("memory.current", "1000\n");
        write("memory.stat", "anon 300\ninactive_file 400\nactive_file 200\n");
        write("memory.max", "max\n");
        assert_eq!(memory(group.path(), Version::V2), None);
        write("memory.max", "2000\n");
        assert_eq!(memory(group.path(), Version::V2), Some((400, 2000)));
    }
}
