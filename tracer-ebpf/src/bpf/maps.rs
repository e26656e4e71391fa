//! Every map, and the settings that user space fixes when it loads the programs.

use aya_ebpf::{
    Global,
    macros::map,
    maps::{Array, HashMap, ProgramArray, RingBuf},
};
use tracer_ebpf::{
    atomic::Word,
    counter::{STRIPES, Stripe},
    live::{Block, LiveBucket},
    process::{MAX_PROCESSES, ProcessState},
    runtime::hotspot::{MAX_LAYOUTS, SharedLayout},
    sampling::Sampling,
    slots::{SlotSet, WAYS},
    stack::{Capture, StackTotals},
    thread::{CAPTURE_SETS, InFlight, RECORD_SETS},
    unwind::{CACHE_BITS, Chunk, MAX_CODE_MAPPINGS, MAX_RULES, MAX_TABLES},
    usdt::{Arguments, MAX_ARGUMENTS},
};

/// `BPF_F_MMAPABLE`: user space maps the array and reads it as memory.
const MMAPABLE: u32 = 1 << 10;
/// `BPF_F_NO_PREALLOC`: memory is taken as entries come.
const NO_PREALLOC: u32 = 1;

/// State of the traced processes, by their index.
#[map]
pub static PROCESSES: Array<ProcessState> = Array::with_max_entries(MAX_PROCESSES, MMAPABLE);

/// How many indexes of [`PROCESSES`] are taken.
#[map]
pub static PROCESS_COUNT: Array<Word> = Array::with_max_entries(1, MMAPABLE);

/// Index of the process with a given tgid, for what is not filtered by the kernel. Children that share their parent's memory until
/// they execute a program (`vfork`) have their parent's index, so there is room for more.
#[map]
pub static PROCESS_INDEX: HashMap<u32, u32> = HashMap::with_max_entries(2 * MAX_PROCESSES, 0);

/// Who has which record of [`RECORDS`], by thread.
#[map]
pub static RECORD_OWNERS: Array<SlotSet> = Array::with_max_entries(RECORD_SETS, MMAPABLE);

/// Allocator calls that have not returned.
#[map]
pub static RECORDS: Array<InFlight> = Array::with_max_entries(RECORD_SETS * WAYS as u32, MMAPABLE);

/// Who has which capture of [`CAPTURES`].
#[map]
pub static CAPTURE_OWNERS: Array<SlotSet> = Array::with_max_entries(CAPTURE_SETS, 0);

/// Stacks that are being walked.
#[map]
pub static CAPTURES: Array<Capture> = Array::with_max_entries(CAPTURE_SETS * WAYS as u32, 0);

/// The live table. User space sets the number of buckets, a power of two.
#[map]
pub static LIVE: Array<LiveBucket> = Array::with_max_entries(1, MMAPABLE);

/// Blocks that have no place in [`LIVE`].
#[map]
pub static SPILL: HashMap<u64, Block> = HashMap::with_max_entries(1, NO_PREALLOC);

/// Hashes of the known stacks. User space sets the number of sets, a power of two.
#[map]
pub static STACKS: Array<SlotSet> = Array::with_max_entries(1, MMAPABLE);

/// Totals by stack number; eight for each set of [`STACKS`].
#[map]
pub static TOTALS: Array<StackTotals> = Array::with_max_entries(1, MMAPABLE);

/// Where the arguments of USDT probes are.
#[map]
pub static USDT_ARGUMENTS: Array<Arguments> = Array::with_max_entries(MAX_ARGUMENTS, MMAPABLE);

/// Counters of everything else.
#[map]
pub static COUNTERS: Array<Stripe> = Array::with_max_entries(STRIPES, MMAPABLE);

/// Threads whose event is handled, until their understudy has seen that; user space makes room where there are understudies.
#[map]
pub static DONE: HashMap<u64, u8> = HashMap::with_max_entries(1, 0);

/// Executable mappings of the traced processes: a [`Mapping`](tracer_ebpf::unwind::Mapping) each, as words.
#[map]
pub static UNWIND_MAPPINGS: Array<[Word; 4]> = Array::with_max_entries(MAX_CODE_MAPPINGS, MMAPABLE);

/// Headers of the unwind tables: a [`TableHeader`](tracer_ebpf::unwind::TableHeader) each, as words.
#[map]
pub static UNWIND_TABLES: Array<[Word; 3]> = Array::with_max_entries(MAX_TABLES, MMAPABLE);

/// The page indexes of all unwind tables. User space sets the number of chunks.
#[map]
pub static UNWIND_PAGES: Array<Chunk> = Array::with_max_entries(1, MMAPABLE);

/// The rows of all unwind tables. User space sets the number of chunks.
#[map]
pub static UNWIND_ROWS: Array<Chunk> = Array::with_max_entries(1, MMAPABLE);

/// The rules of all unwind tables.
#[map]
pub static UNWIND_RULES: Array<Word> = Array::with_max_entries(MAX_RULES, MMAPABLE);

/// Rules of code that was looked up before.
#[map]
pub static UNWIND_CACHE: Array<Word> = Array::with_max_entries(1 << CACHE_BITS, MMAPABLE);

/// Where things are in the HotSpots of the traced processes.
#[map]
pub static HOTSPOT_LAYOUTS: Array<SharedLayout> = Array::with_max_entries(MAX_LAYOUTS, MMAPABLE);

/// Events for user space: room for 7,000 stacks of 128 native frames.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// Always empty; see [`private_stack`](crate::bpf::private_stack).
#[map]
pub static NO_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// As [`NO_PROGRAMS`], for a program of another kind: the kernel lets programs of one kind only have an array.
#[map]
pub static NO_SESSION_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Number of buckets of [`LIVE`].
#[unsafe(no_mangle)]
static LIVE_BUCKETS: Global<u32> = Global::new(1);
/// Number of sets of [`STACKS`].
#[unsafe(no_mangle)]
static STACK_SETS: Global<u32> = Global::new(1);
/// Random start of every stack's hash.
#[unsafe(no_mangle)]
static HASH_SEED: Global<u64> = Global::new(0);
/// The smallest request that is tracked.
#[unsafe(no_mangle)]
static MIN_SIZE: Global<u64> = Global::new(0);
/// The largest request that is tracked.
#[unsafe(no_mangle)]
static MAX_SIZE: Global<u64> = Global::new(u64::MAX);

/// See [`Sampling::rate`].
#[unsafe(no_mangle)]
static SAMPLE_RATE: Global<u64> = Global::new(0);
/// See [`Sampling::certain_size`].
#[unsafe(no_mangle)]
static SAMPLE_CERTAIN_SIZE: Global<u64> = Global::new(0);
/// Not 0 when children are followed.
#[unsafe(no_mangle)]
static FOLLOWS: Global<u32> = Global::new(0);
/// Not 0 when probes are everybody's, and the current process tells whose call it is.
#[unsafe(no_mangle)]
static SHARES_PROBES: Global<u32> = Global::new(0);
/// Not 0 when programs on tracepoints have understudies.
#[unsafe(no_mangle)]
static HAS_UNDERSTUDIES: Global<u32> = Global::new(0);
/// Offset of `pid` in the kernel's `struct task_struct`.
#[unsafe(no_mangle)]
static TASK_PID: Global<u32> = Global::new(0);
/// Offset of `signal` there.
#[unsafe(no_mangle)]
static TASK_SIGNAL: Global<u32> = Global::new(0);
/// Offset of `thread.fsbase` there; 0 when it is not known.
#[unsafe(no_mangle)]
static TASK_THREAD_BASE: Global<u32> = Global::new(0);
/// Offset of `live` in `struct signal_struct`.
#[unsafe(no_mangle)]
static SIGNAL_LIVE: Global<u32> = Global::new(0);

/// Whether children are followed.
#[inline(always)]
pub fn follows() -> bool {
    FOLLOWS.load() != 0
}

/// Whether probes are everybody's.
#[inline(always)]
pub fn shares_probes() -> bool {
    SHARES_PROBES.load() != 0
}

/// Whether programs on tracepoints have understudies.
#[inline(always)]
pub fn has_understudies() -> bool {
    HAS_UNDERSTUDIES.load() != 0
}

/// Offset of `pid` in the kernel's `struct task_struct`.
#[inline(always)]
pub fn task_pid() -> u64 {
    TASK_PID.load().into()
}

/// Offset of `thread.fsbase` in the kernel's `struct task_struct`; 0 when it is not known.
#[inline(always)]
pub fn task_thread_base() -> u64 {
    TASK_THREAD_BASE.load().into()
}

/// Offsets of `signal` in `struct task_struct`, and of `live` in `struct signal_struct`.
#[inline(always)]
pub fn live_threads() -> [u64; 2] {
    [TASK_SIGNAL.load().into(), SIGNAL_LIVE.load().into()]
}

/// Device and inode of the pid namespace in which processes are known; 0 for that of the machine.
#[unsafe(no_mangle)]
static PID_NAMESPACE_DEVICE: Global<u64> = Global::new(0);
/// See [`PID_NAMESPACE_DEVICE`].
#[unsafe(no_mangle)]
static PID_NAMESPACE_INODE: Global<u64> = Global::new(0);

/// Device and inode of the pid namespace in which processes are known, unless it is that of the machine.
#[inline(always)]
pub fn pid_namespace() -> Option<(u64, u64)> {
    match PID_NAMESPACE_INODE.load() {
        0 => None,
        inode => Some((PID_NAMESPACE_DEVICE.load(), inode)),
    }
}

/// Number of buckets of [`LIVE`].
#[inline(always)]
pub fn live_buckets() -> u32 {
    LIVE_BUCKETS.load()
}

/// Number of sets of [`STACKS`].
#[inline(always)]
pub fn stack_sets() -> u32 {
    STACK_SETS.load()
}

/// Random start of every stack's hash.
#[inline(always)]
pub fn hash_seed() -> u64 {
    HASH_SEED.load()
}

/// Whether a request of this size is tracked.
#[inline(always)]
pub fn size_is_tracked(size: u64) -> bool {
    size >= MIN_SIZE.load() && size <= MAX_SIZE.load()
}

/// Which allocations are kept.
#[inline(always)]
pub fn sampling() -> Sampling {
    Sampling { rate: SAMPLE_RATE.load(), certain_size: SAMPLE_CERTAIN_SIZE.load() }
}
