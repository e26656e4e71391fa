//! What allocators keep of what was freed: whose it is, and what its people do about it.

use crate::model::{AllocatorMemory, Bytes, Memory};

/// What of the growth of all that is kept one allocator has to have, in percent, to be named alone.
const MAIN: u64 = 50;

/// The allocator that keeps most of what is kept more than before.
#[must_use]
pub fn keeper(memory: Option<&Memory>, grown: u64) -> Option<&AllocatorMemory> {
    let largest = memory?.allocators.iter().max_by_key(|allocator| allocator.growth())?;
    (largest.growth() > 0 && largest.growth() >= grown / 100 * MAIN).then_some(largest)
}

/// What can be done about it, as the end of a sentence; `program` is the name of the target.
#[must_use]
pub fn advice(keeper: &AllocatorMemory, program: &str) -> String {
    let is_arrow = keeper.file.starts_with("libarrow");
    match keeper.name.as_deref() {
        Some("glibc") => of_glibc(keeper),
        Some("jemalloc") if program.starts_with("redis") || program.starts_with("valkey") => {
            "; CONFIG SET activedefrag yes gives it back".to_owned()
        }
        Some("jemalloc") if is_arrow => {
            "; try pyarrow.jemalloc_set_decay_ms(0) or ARROW_DEFAULT_MEMORY_POOL=system".to_owned()
        }
        Some("jemalloc") => "; try a smaller dirty_decay_ms".to_owned(),
        Some("mimalloc") if is_arrow => {
            "; the pool's release_unused() (mi_collect) gives it back, ARROW_DEFAULT_MEMORY_POOL=system keeps less".to_owned()
        }
        Some("mimalloc") => "; mi_collect(true) gives it back, a smaller MIMALLOC_PURGE_DELAY keeps less".to_owned(),
        Some("tcmalloc") => "; try a larger TCMALLOC_RELEASE_RATE".to_owned(),
        _ => String::new(),
    }
}

/// Less than a tenth of what is kept in whole pages is fragmentation, which nobody can give back.
fn of_glibc(keeper: &AllocatorMemory) -> String {
    let kept = Bytes(keeper.kept_after_bytes);
    match keeper.trimmable_bytes {
        None => "; try MALLOC_ARENA_MAX=2, malloc_trim or jemalloc".to_owned(),
        Some(trimmable) if trimmable < keeper.kept_after_bytes / 10 => format!(
            "; malloc_trim(0) would give back only {} of {kept}, the rest lies between blocks: try MALLOC_ARENA_MAX=2 or jemalloc",
            Bytes(trimmable)
        ),
        Some(trimmable) => format!(
            "; malloc_trim(0) would give back {} of {kept} now, MALLOC_ARENA_MAX=2 or jemalloc keep less",
            Bytes(trimmable)
        ),
    }
}

/// What is said where nothing grew, but much of what is resident was freed. Only measured figures say that: elsewhere what looks kept
/// may be blocks from before the window.
#[must_use]
pub fn level(memory: Option<&Memory>) -> Option<String> {
    const LEAST: u64 = 16 << 20;

    let memory = memory?;
    let resident = memory.rss_after_bytes?;
    let keeper = memory.allocators.iter().find(|allocator| allocator.trimmable_bytes.is_some())?;
    let kept = keeper.kept_after_bytes;
    (kept >= LEAST && kept >= resident / 4).then(|| {
        format!(
            "{} of {} resident were freed and are kept by {}{}",
            Bytes(kept),
            Bytes(resident),
            keeper.sentence(),
            of_glibc(keeper)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocator(name: Option<&str>, file: &str, kept: [u64; 2]) -> AllocatorMemory {
        AllocatorMemory {
            name: name.map(str::to_owned),
            file: file.to_owned(),
            resident_bytes: kept[1],
            kept_before_bytes: kept[0],
            kept_after_bytes: kept[1],
            trimmable_bytes: None,
            is_whole_file: file.starts_with("libc."),
        }
    }

    #[test]
    fn the_one_that_keeps_most_of_the_growth_is_named() {
        let glibc = allocator(Some("glibc"), "libc.so.6", [500, 510]);
        let mimalloc = allocator(Some("mimalloc"), "libarrow.so.2100", [0, 90]);
        let memory = Memory { allocators: vec![glibc, mimalloc], ..Memory::default() };
        let sentence = |grown| keeper(Some(&memory), grown).map(AllocatorMemory::sentence);
        assert_eq!(sentence(100).as_deref(), Some("the mimalloc in libarrow.so.2100"));
        assert_eq!(sentence(1000), None, "nobody knows who has the rest");
        assert_eq!(keeper(None, 100), None);
    }

    #[test]
    fn the_advice_is_that_of_its_people() {
        let of = |name, file, program| advice(&allocator(name, file, [0, 100]), program);
        assert!(of(Some("mimalloc"), "libarrow.so.2100", "python").contains("ARROW_DEFAULT_MEMORY_POOL"));
        assert!(of(Some("mimalloc"), "server", "server").contains("mi_collect"));
        assert!(of(Some("jemalloc"), "libjemalloc.so.2", "redis-server").contains("activedefrag"));
        assert!(of(Some("jemalloc"), "libjemalloc.so.2", "server").contains("dirty_decay_ms"));
        assert_eq!(of(None, "server", "server"), "");
    }

    #[test]
    fn what_a_trim_would_give_back_is_told_where_it_is_known() {
        let glibc = |trimmable| AllocatorMemory {
            trimmable_bytes: trimmable,
            ..allocator(Some("glibc"), "libc.so.6", [0, 100 << 20])
        };
        assert!(advice(&glibc(None), "node").contains("malloc_trim or jemalloc"));
        assert!(advice(&glibc(Some(90 << 20)), "node").contains("give back 90.0 MiB of 100.0 MiB now"));
        assert!(advice(&glibc(Some(1 << 20)), "node").contains("only 1.0 MiB of 100.0 MiB"));
        let memory = |resident| Memory {
            rss_after_bytes: Some(resident),
            allocators: vec![glibc(Some(90 << 20))],
            ..Memory::default()
        };
        assert!(
            level(Some(&memory(200 << 20))).is_some_and(|text| text.starts_with("100.0 MiB of 200.0 MiB"))
        );
        assert_eq!(level(Some(&memory(500 << 20))), None);
    }
}
