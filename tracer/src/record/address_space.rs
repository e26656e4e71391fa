//! How large the address space of a process is here.

use std::{ptr, sync::LazyLock};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::model::Address;

/// The last page of a process' address space, where the kernel puts the trampoline of return probes if it can (`xol_add_vma` in
/// kernel/events/uprobes.c).
pub fn last_page() -> Address {
    /// Beyond 47 bits of address lies one page that is never mapped; beyond 56 bits, with page tables of five levels, likewise.
    const WITH_4_LEVELS: Address = Address(0x7fff_ffff_e000);
    const WITH_5_LEVELS: Address = Address(0xff_ffff_ffff_e000);
    static FIVE_LEVELS: LazyLock<bool> = LazyLock::new(has_5_levels);
    if *FIVE_LEVELS { WITH_5_LEVELS } else { WITH_4_LEVELS }
}

/// Whether page tables have five levels here: then memory is given above 47 bits to whoever asks for it there.
fn has_5_levels() -> bool {
    const HIGH: usize = 1 << 50;
    const LENGTH: usize = 4096;
    // SAFETY: the kernel takes the address for a wish, and maps nothing over what is there.
    let mapped = unsafe {
        mmap_anonymous(ptr::without_provenance_mut(HIGH), LENGTH, ProtFlags::empty(), MapFlags::PRIVATE)
    };
    let Ok(page) = mapped else { return false };
    // SAFETY: the page has just been mapped here, and nobody knows of it.
    let _ = unsafe { munmap(page, LENGTH) };
    page.addr() >> 47 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_page_is_as_far_up_as_the_processor_says() {
        let info = std::fs::read_to_string("/proc/cpuinfo").expect("it can be read");
        let flags = info.lines().find(|line| line.starts_with("flags")).expect("the processor has flags");
        // The kernel leaves the flag out when it does not use the fifth level.
        let five = flags.split_whitespace().any(|flag| flag == "la57");
        assert_eq!(last_page(), Address(if five { 0xff_ffff_ffff_e000 } else { 0x7fff_ffff_e000 }));
    }
}
