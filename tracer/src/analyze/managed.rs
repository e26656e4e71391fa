//! Recognises the heaps that language runtimes manage themselves.
//!
//! Two kinds of evidence exist. A mapping made in the window has the *stack* that made it: [`of_call`]. One from before
//! it has only what the kernel still knows, its *name and place*: [`Runtimes::of_mapping`]. What counts as evidence is
//! stated once, in the tables below, each rule with the source that it rests on.
//!
//! Memory that a runtime gets from `malloc` is native and never looked at here: node's Buffers, HotSpot's C heap, large
//! Python objects.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use tracer_ebpf::stack::StackId;

use super::mappings::{Holder, Totals};
use crate::model::{Frame, Kind, Part};
use crate::plan::{AllocatorFamily, Catalog, family};
use crate::target::{Backing, Mapping};

/// A language runtime with a heap of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Runtime {
    /// JavaScript in Node.js, Deno, Electron and Chromium.
    V8,
    /// The OpenJDK virtual machine.
    HotSpot,
    /// The Python interpreter.
    CPython,
    Go,
    /// Ruby (MRI).
    Ruby,
    /// .NET (CoreCLR).
    DotNet,
    Mono,
    Php,
    /// Erlang and Elixir.
    Beam,
}

impl Runtime {
    /// Whether native memory that its objects own waits for a collector of garbage.
    #[must_use]
    pub const fn collects_garbage(self) -> bool {
        matches!(self, Self::V8 | Self::HotSpot | Self::Ruby | Self::Mono | Self::DotNet)
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V8 => "V8",
            Self::HotSpot => "HotSpot",
            Self::CPython => "CPython",
            Self::Go => "Go",
            Self::Ruby => "Ruby",
            Self::DotNet => ".NET",
            Self::Mono => "Mono",
            Self::Php => "PHP",
            Self::Beam => "BEAM",
        })
    }
}

/// A stack that maps a runtime's heap.
struct CallRule {
    runtime: Runtime,
    /// How the code's module may begin; empty for any.
    modules: &'static [&'static str],
    /// How the function may begin; empty for any.
    functions: &'static [&'static str],
    /// How far from the call such a frame may be. Code further out only happens to be running.
    reach: usize,
    /// Lengths that such a mapping has; empty for any.
    lengths: &'static [u64],
}

const ANY: &[&str] = &[];

/// The first rule that matches decides.
const CALL_RULES: &[CallRule] = &[
    // src/heap/memory-allocator.cc, code-range.cc and src/init/isolate-allocator.cc of V8, under base::OS::Allocate;
    // cppgc is its heap for C++ objects. `BackingStore`, which maps WebAssembly memory, is not in the list.
    CallRule {
        runtime: Runtime::V8,
        modules: ANY,
        functions: &[
            "v8::internal::MemoryAllocator::",
            "v8::internal::CodeRange::",
            "v8::internal::IsolateAllocator::",
            "v8::internal::IsolateGroup::",
            "v8::internal::ReadOnlySpace::",
            "v8::internal::PagePool::",
            "cppgc::internal::",
        ],
        reach: 8,
        lengths: &[],
    },
    // os::pd_reserve_memory and os::pd_commit_memory in os_linux.cpp map everything: Java heap, metaspace, code cache.
    CallRule { runtime: Runtime::HotSpot, modules: &["libjvm.so"], functions: ANY, reach: 1, lengths: &[] },
    // Objects/obmalloc.c: _PyObject_ArenaMmap (to 3.11), _PyMem_ArenaAlloc; mimalloc in free-threaded builds.
    CallRule {
        runtime: Runtime::CPython,
        modules: &["python", "libpython"],
        functions: &["_PyObject_Arena", "_PyMem_Arena", "new_arena", "_mi_os_", "_mi_prim_"],
        reach: 4,
        lengths: &[],
    },
    // Without symbols: ARENA_SIZE is 256 KiB up to Python 3.9 and 1 MiB from 3.10.
    CallRule {
        runtime: Runtime::CPython,
        modules: &["python", "libpython"],
        functions: ANY,
        reach: 1,
        lengths: &[256 << 10, 1 << 20],
    },
    // runtime/mem_linux.go; with cgo the call goes through C (runtime/cgo/gcc_mmap.c).
    CallRule {
        runtime: Runtime::Go,
        modules: ANY,
        functions: &[
            "runtime.mmap",
            "runtime.sysMmap",
            "runtime.sys",
            "runtime/internal/syscall.",
            "x_cgo_mmap",
        ],
        reach: 1,
        lengths: &[],
    },
    // gc.c and gc/default/default.c.
    CallRule {
        runtime: Runtime::Ruby,
        modules: &["ruby", "libruby"],
        functions: &["heap_page_body_allocate", "gc_aligned_malloc", "rb_gc_impl_", "rb_yjit_", "rb_zjit_"],
        reach: 3,
        lengths: &[],
    },
    // Without symbols: HEAP_PAGE_SIZE is 16 KiB in 3.1 and 64 KiB from 3.2 on, and twice that is mapped, of which the page is left.
    CallRule {
        runtime: Runtime::Ruby,
        modules: &["ruby", "libruby"],
        functions: ANY,
        reach: 1,
        lengths: &[32 << 10, 128 << 10],
    },
    // Zend/zend_alloc.c maps chunks of 2 MiB, and blocks that are larger. (A fiber's stack is mapped by the program, too.)
    CallRule { runtime: Runtime::Php, modules: &["php", "libphp"], functions: ANY, reach: 1, lengths: &[] },
    // Carriers: erts/emulator/sys/common/erl_mmap.c, under erl_mseg.c and erl_alloc_util.c.
    CallRule {
        runtime: Runtime::Beam,
        modules: &["beam"],
        functions: &["erts_mmap"],
        reach: 2,
        lengths: &[],
    },
    // mono/utils/mono-mmap.c: the sections of sgen, and code.
    CallRule {
        runtime: Runtime::Mono,
        modules: &["mono", "libmono"],
        functions: &["mono_valloc"],
        reach: 2,
        lengths: &[],
    },
    // The GC and the code heaps; what else CoreCLR needs comes from malloc.
    CallRule {
        runtime: Runtime::DotNet,
        modules: &["libcoreclr.so", "libclrgc.so", "libclrgcexp.so"],
        functions: ANY,
        reach: 1,
        lengths: &[],
    },
];

/// Functions of the C library that map for their caller something that is no heap.
const NO_HEAP: &[&str] = &["pthread_create", "__pthread_create", "allocate_stack"];

/// Objects between the caller and the system call.
const SYSTEM_MODULES: &[&str] = &["libc.so", "libc-", "ld-linux", "ld-musl", "libpthread", "[vdso]"];

/// The runtime whose heap a call mapped: the stack is leaf first, and may begin in the C library's wrapper of the
/// system call. `length` is how much was mapped, in bytes.
#[must_use]
pub fn of_call<F: Borrow<Frame>>(frames: &[F], length: u64) -> Option<Runtime> {
    let is_system = |frame: &F| begins_with(frame.borrow().module.as_deref(), SYSTEM_MODULES);
    let first = frames.iter().position(|frame| !is_system(frame))?;
    let (system, callers) = frames.split_at(first);
    if system.iter().any(|frame| begins_with(frame.borrow().function.as_deref(), NO_HEAP)) {
        return None;
    }
    CALL_RULES
        .iter()
        .find(|rule| {
            (rule.lengths.is_empty() || rule.lengths.contains(&length))
                && callers.iter().take(rule.reach).map(Borrow::borrow).any(|frame| {
                    (rule.modules.is_empty() || begins_with(frame.module.as_deref(), rule.modules))
                        && (rule.functions.is_empty()
                            || begins_with(frame.function.as_deref(), rule.functions))
                })
        })
        .map(|rule| rule.runtime)
}

fn begins_with(text: Option<&str>, beginnings: &[&str]) -> bool {
    text.is_some_and(|text| beginnings.iter().any(|beginning| text.starts_with(beginning)))
}

/// How the file name of a library begins that is nothing but an allocator.
const ALLOCATOR_MODULES: &[&str] = &["libjemalloc", "libtcmalloc", "libmimalloc"];

/// Whether a mapping was made within an allocator's function. Where those that allocate are probed, the system call's event says
/// so itself; it does not of those that release (glibc gives a thread its arena when the first thing that it does is to free), nor
/// in growth mode.
fn is_within_allocator<F: Borrow<Frame>>(frames: &[F]) -> bool {
    frames.iter().map(Borrow::borrow).any(|frame| {
        frame.function.as_deref().is_some_and(is_allocator_function)
            || begins_with(frame.module.as_deref(), ALLOCATOR_MODULES)
    })
}

fn is_allocator_function(function: &str) -> bool {
    static KNOWN: LazyLock<Catalog> = LazyLock::new(Catalog::default);
    let name = function.strip_prefix("__GI_").unwrap_or(function);
    KNOWN.find(name.as_bytes()).is_some()
        || family::is_of_jemalloc(function)
        || begins_with(Some(function), &["operator new", "operator delete"])
}

/// The file of the function that made the system call, behind the C library's wrapper of it.
fn file_that_maps<F: Borrow<Frame>>(frames: &[F]) -> Option<&str> {
    let mut callers = frames.iter().map(Borrow::borrow).filter(|frame| !is_system_call_wrapper(frame));
    callers.next()?.module.as_deref()
}

/// Whether a frame is the C library's way into a system call that maps.
pub(super) fn is_system_call_wrapper(frame: &Frame) -> bool {
    const WRAPPERS: [&str; 8] = ["mmap", "mmap64", "munmap", "mremap", "brk", "sbrk", "syscall", "brk_call"];
    frame.function.as_deref().is_some_and(|function| {
        let name = function.trim_start_matches('_');
        let name = name.strip_prefix("GI_").unwrap_or(name).trim_start_matches('_');
        WRAPPERS.contains(&name)
    })
}

fn makes_thread_stack<F: Borrow<Frame>>(frames: &[F]) -> bool {
    let system =
        frames.iter().map(Borrow::borrow).take_while(|f| begins_with(f.module.as_deref(), SYSTEM_MODULES));
    system.into_iter().any(|frame| begins_with(frame.function.as_deref(), NO_HEAP))
}

/// Which mappings of the window are not the program's own, by who holds them: a runtime's heap, or an allocator's.
/// Each holder is judged once, as soon as its stack has names.
#[derive(Clone, Debug, Default)]
pub struct ManagedHolders {
    owners: HashMap<Holder, Owner>,
    /// The files of the allocators among them, and which one of a file's it is.
    files: HashMap<Holder, (Arc<str>, Option<AllocatorFamily>)>,
}

/// Whose a mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Runtime(Runtime),
    Allocator,
    ThreadStack,
    Program,
}

impl Owner {
    fn of<F: Borrow<Frame>>(frames: &[F], length: u64) -> Self {
        if is_within_allocator(frames) {
            return Self::Allocator;
        }
        if makes_thread_stack(frames) {
            return Self::ThreadStack;
        }
        of_call(frames, length).map_or(Self::Program, Self::Runtime)
    }

    /// Of what was mapped while a probed function ran: Python's object allocator may be one, which maps arenas itself.
    fn of_flagged<F: Borrow<Frame>>(frames: &[F], length: u64) -> Self {
        let mut system = frames
            .iter()
            .map(Borrow::borrow)
            .take_while(|f| begins_with(f.module.as_deref(), SYSTEM_MODULES));
        let runtime = of_call(frames, length).filter(|_| system.all(is_system_call_wrapper));
        runtime.filter(|runtime| *runtime == Runtime::CPython).map_or(Self::Allocator, Self::Runtime)
    }
}

impl ManagedHolders {
    /// Judges those that are new. `frames` gives the frames of a stack, if they have names by now.
    pub fn learn<F: Borrow<Frame>>(
        &mut self,
        holders: impl Iterator<Item = (Holder, Totals)>,
        frames: impl Fn(StackId) -> Option<Vec<F>>,
    ) {
        for (holder, totals) in holders.filter(|(holder, _)| holder.kind != Kind::File) {
            if !self.owners.contains_key(&holder)
                && let Some(frames) = frames(holder.stack)
            {
                // Arenas are all of one length.
                let length = totals.allocated_bytes / totals.allocated_objects.max(1);
                let owner = match holder.kind {
                    Kind::Allocator => Owner::of_flagged(&frames, length),
                    _ => Owner::of(&frames, length),
                };
                self.owners.insert(holder, owner);
                if let Some(file) = file_that_maps(&frames).filter(|_| owner == Owner::Allocator) {
                    let functions = frames.iter().filter_map(|frame| frame.borrow().function.as_deref());
                    let family = functions.into_iter().find_map(AllocatorFamily::of_function);
                    self.files.insert(holder, (file.into(), family));
                }
            }
        }
    }

    /// The file of the allocator whose a holder's mappings are.
    #[must_use]
    pub fn allocators_file(&self, holder: Holder) -> Option<(&str, Option<AllocatorFamily>)> {
        self.files.get(&holder).map(|(file, family)| (file.as_ref(), *family))
    }

    /// Forgets what was judged of holders.
    pub fn forget(&mut self, gone: impl Fn(&Holder) -> bool) {
        self.owners.retain(|holder, _| !gone(holder));
        self.files.retain(|holder, _| !gone(holder));
    }

    /// The holder with the kind that its mappings are, as far as it is known.
    #[must_use]
    pub fn judged(&self, holder: Holder) -> Holder {
        match self.owners.get(&holder) {
            Some(Owner::Runtime(_)) => Holder { kind: Kind::Managed, ..holder },
            Some(Owner::Allocator) => Holder { kind: Kind::Allocator, ..holder },
            Some(Owner::ThreadStack | Owner::Program) | None => holder,
        }
    }

    /// The part of resident memory that a holder's mappings are in, as far as it is known.
    #[must_use]
    pub fn part(&self, holder: Holder) -> Part {
        match (self.owners.get(&holder), self.judged(holder).kind) {
            (Some(Owner::ThreadStack), _) => Part::Stack,
            (_, Kind::Native) => Part::Native,
            (_, Kind::Mapping) => Part::Mapping,
            (_, Kind::Allocator) => Part::Allocator,
            (_, Kind::Managed) => Part::Managed,
            (_, Kind::File) => Part::File,
        }
    }

    /// The runtimes whose heaps were mapped.
    pub fn runtimes(&self) -> impl Iterator<Item = Runtime> + '_ {
        self.owners.values().filter_map(|owner| match owner {
            Owner::Runtime(runtime) => Some(*runtime),
            Owner::Allocator | Owner::ThreadStack | Owner::Program => None,
        })
    }
}

/// How the name of a mapping (`prctl(PR_SET_VMA)`) begins, and whose it is.
const NAME_RULES: &[(&str, Runtime)] = &[
    // `[anon:v8-sandbox]` holds WebAssembly memory and array buffers, too.
    ("[anon:v8]", Runtime::V8),
    // runtime/set_vma_name_linux.go, from Go 1.25.
    ("[anon: Go:", Runtime::Go),
    // gc/default/default.c and the JITs. Thread stacks and IO::Buffer have such names, too.
    ("[anon:Ruby:GC:", Runtime::Ruby),
    ("[anon:Ruby:rb_yjit", Runtime::Ruby),
    ("[anon:Ruby:rb_zjit", Runtime::Ruby),
    // pycore_mmap.h, in development mode.
    ("[anon:cpython:", Runtime::CPython),
    // CoreCLR's ExecutableAllocator maps code twice, writable and executable.
    ("/memfd:doublemapper", Runtime::DotNet),
    // erts/emulator/beam/jit: the same.
    ("/memfd:vmem", Runtime::Beam),
];

/// Where a runtime puts its heap although the kernel would have put it elsewhere.
struct PlaceRule {
    runtime: Runtime,
    from: u64,
    to: u64,
    alignment: u64,
}

const PLACE_RULES: &[PlaceRule] = &[
    // base/platform/platform-posix.cc (GetRandomMmapAddr) masks its random hints to 46 bits, far below where Linux maps
    // by itself; heap pages and the pointer-compression cage are aligned to 256 KiB (kPageSizeBits).
    PlaceRule { runtime: Runtime::V8, from: 1 << 32, to: 1 << 46, alignment: 256 << 10 },
    // With compressed pointers the Java heap and the class space lie below 32 GiB, or where their encoding begins.
    PlaceRule { runtime: Runtime::HotSpot, from: 1 << 20, to: 36 << 30, alignment: 4096 },
    // runtime/malloc.go (mallocinit): arenas of 64 MiB from 0xc000000000.
    PlaceRule { runtime: Runtime::Go, from: 0xc0_0000_0000, to: 0x1c0_0000_0000, alignment: 4 << 20 },
];

/// How the file name of an object begins that contains a runtime.
const RUNTIME_MODULES: &[(&str, Runtime)] = &[
    ("node", Runtime::V8),
    ("libnode.so", Runtime::V8),
    ("libv8.so", Runtime::V8),
    ("deno", Runtime::V8),
    ("electron", Runtime::V8),
    ("chrome", Runtime::V8),
    ("libjvm.so", Runtime::HotSpot),
    ("python", Runtime::CPython),
    ("libpython", Runtime::CPython),
    ("ruby", Runtime::Ruby),
    ("libruby", Runtime::Ruby),
    ("libcoreclr.so", Runtime::DotNet),
    ("mono", Runtime::Mono),
    ("libmono", Runtime::Mono),
    ("php", Runtime::Php),
    ("libphp", Runtime::Php),
    ("beam", Runtime::Beam),
];

/// The runtimes that a process contains, as far as its mappings show. (A Go program is known by its heap's address.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtimes(Vec<Runtime>);

impl Runtimes {
    /// Finds them by the code that is mapped.
    #[must_use]
    pub fn of(mappings: &[Mapping]) -> Self {
        let code = mappings
            .iter()
            .filter(|mapping| mapping.permissions.execute && mapping.backing() == Backing::File);
        let files = code.filter_map(Mapping::file_name);
        let mut found: Vec<Runtime> = files
            .flat_map(|file| RUNTIME_MODULES.iter().filter(move |(name, _)| file.starts_with(name)))
            .map(|&(_, runtime)| runtime)
            .collect();
        let go =
            |mapping: &Mapping| mapping.backing() == Backing::Anonymous && mapping.start.0 == 0xc0_0000_0000;
        if found.is_empty() && mappings.iter().any(go) {
            found.push(Runtime::Go);
        }
        found.sort_unstable();
        found.dedup();
        Self(found)
    }

    /// Each of them once.
    pub fn iter(&self) -> impl Iterator<Item = Runtime> + '_ {
        self.0.iter().copied()
    }

    /// The runtime whose heap (or compiled code) a mapping is, by its name and its place. What this cannot tell, such
    /// as CPython's arenas of release builds, lies among the other anonymous mappings.
    #[must_use]
    pub fn of_mapping(&self, mapping: &Mapping) -> Option<Runtime> {
        if let Some((_, runtime)) = NAME_RULES.iter().find(|(name, _)| mapping.is_named(name)) {
            return Some(*runtime);
        }
        if mapping.backing() == Backing::File || !mapping.name.is_empty() {
            return None;
        }
        if mapping.permissions.execute {
            // Only a runtime runs code from no file.
            return self.0.first().copied();
        }
        let start = mapping.start.0;
        let is_there = |rule: &&PlaceRule| {
            self.0.contains(&rule.runtime)
                && (rule.from..rule.to).contains(&start)
                && start.is_multiple_of(rule.alignment)
        };
        PLACE_RULES.iter().find(is_there).map(|rule| rule.runtime)
    }
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::process::ProcessIndex;

    use super::*;
    use crate::model::AddressRange;

    /// `module:function` or `module`, leaf first.
    fn stack(frames: &[&str]) -> Vec<Frame> {
        let frame = |text: &&str| {
            let (module, function) = text.split_once(':').unwrap_or((text, ""));
            let known = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            Frame { module: known(module), function: known(function), ..Frame::default() }
        };
        frames.iter().map(frame).collect()
    }

    fn holder(stack: u32, kind: Kind) -> Holder {
        Holder { process: ProcessIndex::default(), stack: StackId::new(stack), kind, api: "mmap" }
    }

    /// As they were seen with Debian 12's packages, whose files have no symbols but the exported ones.
    #[test]
    fn heaps_of_runtimes_without_symbols() {
        let beam = [
            "libc.so.6:mmap64",
            "beam.smp:erts_mmap",
            "beam.smp",
            "beam.smp:erts_mseg_alloc_opt",
            "beam.smp",
        ];
        assert_eq!(of_call(&stack(&beam), 1 << 22), Some(Runtime::Beam));
        let mono =
            ["libc.so.6:mmap64", "mono-sgen:mono_valloc", "mono-sgen:mono_valloc_aligned", "mono-sgen"];
        assert_eq!(of_call(&stack(&mono), 1 << 19), Some(Runtime::Mono));
        let php = ["libc.so.6:mmap64", "php8.2", "php8.2", "php8.2", "php8.2:zend_hash_next_index_insert"];
        assert_eq!(of_call(&stack(&php), 2 << 20), Some(Runtime::Php));
        let extension = ["libc.so.6:mmap64", "imagick.so:pixels", "php8.2:execute_ex"];
        assert_eq!(of_call(&stack(&extension), 2 << 20), None);
        let ruby = ["libc.so.6:mmap64", "libruby-3.1.so.3.1.2", "libruby-3.1.so.3.1.2"];
        assert_eq!(of_call(&stack(&ruby), 32 << 10), Some(Runtime::Ruby));
        assert_eq!(of_call(&stack(&ruby), 40 << 10), None);
    }

    #[test]
    fn holders_are_judged_once_their_stacks_have_names() {
        let totals = Totals { allocated_bytes: 3 << 18, allocated_objects: 3, ..Totals::default() };
        let all = [1, 2, 3].map(|number| (holder(number, Kind::Mapping), totals));
        let of_allocator = (holder(2, Kind::Allocator), totals);
        // Where the objects of Python are followed, its arenas are mapped by a function that is probed.
        let of_objects = (holder(1, Kind::Allocator), totals);
        let mut managed = ManagedHolders::default();
        let names = |id: StackId| match id.number() {
            1 => Some(stack(&["libc.so.6:mmap", "python3.9"])),
            2 => Some(stack(&["libc.so.6:mmap", "server:grow"])),
            _ => None,
        };
        managed.learn(all.into_iter().chain([of_allocator, of_objects]), names);
        assert_eq!(managed.judged(all[0].0), holder(1, Kind::Managed));
        assert_eq!(managed.judged(all[1].0).kind, Kind::Mapping);
        assert_eq!(managed.judged(all[2].0).kind, Kind::Mapping);
        assert_eq!(managed.judged(of_allocator.0).kind, Kind::Allocator);
        assert_eq!(managed.judged(of_objects.0).kind, Kind::Managed);
        managed.learn(all.into_iter(), |_| Some(stack(&["node:v8::internal::PagePool::f"])));
        assert_eq!(managed.judged(all[1].0).kind, Kind::Mapping, "once");
        assert_eq!(managed.judged(all[2].0).kind, Kind::Managed);
        let mut runtimes: Vec<_> = managed.runtimes().collect();
        runtimes.sort_unstable();
        runtimes.dedup();
        assert_eq!(runtimes, [Runtime::V8, Runtime::CPython]);
    }

    #[test]
    fn an_arena_that_is_mapped_within_free_is_the_allocators() {
        let arena = ["libc.so.6:alloc_new_heap", "libc.so.6:arena_get2", "libc.so.6:free", "node:Worker"];
        assert_eq!(Owner::of(&stack(&arena), 64 << 20), Owner::Allocator);
        assert_eq!(Owner::of(&stack(&["libc.so.6:mmap", "server:free_list_grow"]), 4096), Owner::Program);
    }

    fn of(frames: &[&str]) -> Option<Runtime> {
        of_call(&stack(frames), 1 << 20)
    }

    fn mapping(start: u64, name: &str, executable: bool) -> Mapping {
        let range = AddressRange::sized(start, 1 << 20).unwrap();
        Mapping::made_up(range, if executable { "r-xp" } else { "rw-p" }, name)
    }

    // Stacks as `strace -k` showed them: node 20, Temurin 25.
    #[test]
    fn heap_pages_of_v8_are_its_heap_and_its_buffers_are_not() {
        let page = [
            "libc.so.6:__mmap",
            "node:v8::base::OS::Allocate(void*, unsigned long, unsigned long, v8::base::OS::MemoryPermission)",
            "node:v8::internal::VirtualMemory::VirtualMemory(v8::PageAllocator*, unsigned long, void*)",
            "node:v8::internal::MemoryAllocator::AllocateAlignedMemory(unsigned long, unsigned long)",
            "node:v8::internal::MemoryAllocator::AllocatePage(v8::internal::Space*)",
        ];
        assert_eq!(of(&page), Some(Runtime::V8));
        let wasm = [
            "libc.so.6:__mmap",
            "node:v8::base::OS::Allocate(void*, unsigned long, unsigned long, v8::base::OS::MemoryPermission)",
            "node:v8::internal::AllocatePages(v8::PageAllocator*, void*, unsigned long)",
            "node:v8::internal::BackingStore::AllocateWasmMemory(v8::internal::Isolate*, unsigned long)",
        ];
        assert_eq!(of(&wasm), None);
        let thread = ["libc.so.6:__mmap", "libc.so.6:pthread_create", "node:uv_thread_create"];
        assert_eq!(of(&thread), None);
    }

    #[test]
    fn an_addon_called_from_javascript_is_no_heap() {
        let addon =
            ["libc.so.6:mmap", "addon.node:Session::Open()", "node:v8::internal::Builtin_HandleApiCall"];
        assert_eq!(of(&addon), None);
        let far: Vec<&str> =
            ["addon.node:f"; 8].into_iter().chain(["node:v8::internal::MemoryAllocator::Free"]).collect();
        assert_eq!(of(&far), None);
    }

    #[test]
    fn hotspot_maps_its_heap_itself() {
        let heap = [
            "libc.so.6:mmap",
            "libjvm.so:os::pd_commit_memory_or_exit(char*, unsigned long)",
            "libjvm.so:G1PageBasedVirtualSpace::commit(unsigned long, unsigned long)",
        ];
        assert_eq!(of(&heap), Some(Runtime::HotSpot));
        assert_eq!(of(&["libjvm.so"]), Some(Runtime::HotSpot));
        assert_eq!(of(&["libc.so.6:pthread_create", "libjvm.so:os::create_thread(Thread*)"]), None);
        assert_eq!(of(&["libnative.so:map_it", "libjvm.so:JVM_Call"]), None);
    }

    #[test]
    fn cpython_is_known_by_its_functions_or_the_size_of_an_arena() {
        let named = ["libc.so.6:mmap", "python3.12:_PyMem_ArenaAlloc", "python3.12:new_arena"];
        assert_eq!(of_call(&stack(&named), 12345), Some(Runtime::CPython));
        let stripped = stack(&["libc.so.6:mmap", "python3.11", "python3.11"]);
        assert_eq!(of_call(&stripped, 1 << 20), Some(Runtime::CPython));
        assert_eq!(of_call(&stripped, 3 << 20), None);
        assert_eq!(of(&["libc.so.6:mmap", "_extension.so:leak", "python3.11"]), None);
    }

    #[test]
    fn the_other_runtimes() {
        assert_eq!(of(&["server:runtime.mmap", "server:runtime.sysReserveOS"]), Some(Runtime::Go));
        assert_eq!(of(&["libc.so.6:mmap", "server:x_cgo_mmap"]), Some(Runtime::Go));
        assert_eq!(of(&["libfoo.so:leak", "server:runtime.asmcgocall.abi0"]), None);
        assert_eq!(of(&["libruby.so.3.3:heap_page_body_allocate"]), Some(Runtime::Ruby));
        assert_eq!(of(&["libc.so.6", "libclrgc.so"]), Some(Runtime::DotNet));
    }

    #[test]
    fn stacks_without_names_are_no_heap() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["", ""]), None);
        assert_eq!(of(&["libc.so.6:mmap"]), None);
    }

    #[test]
    fn mappings_are_known_by_name() {
        let none = Runtimes::default();
        assert_eq!(none.of_mapping(&mapping(0, "[anon:v8]", false)), Some(Runtime::V8));
        assert_eq!(none.of_mapping(&mapping(0, "[anon:v8-sandbox]", false)), None);
        assert_eq!(none.of_mapping(&mapping(0, "[anon: Go: heap]", false)), Some(Runtime::Go));
        assert_eq!(
            none.of_mapping(&mapping(0, "[anon:Ruby:GC:default:heap_page_body_allocate]", false)),
            Some(Runtime::Ruby)
        );
        assert_eq!(none.of_mapping(&mapping(0, "[anon:Ruby:io_buffer_map_memory]", false)), None);
        assert_eq!(
            none.of_mapping(&mapping(0, "/memfd:doublemapper (deleted)", true)),
            Some(Runtime::DotNet)
        );
        assert_eq!(none.of_mapping(&mapping(0, "[heap]", false)), None);
        assert_eq!(none.of_mapping(&mapping(1 << 33, "", false)), None);
        assert_eq!(none.of_mapping(&mapping(1 << 33, "", true)), None);
    }

    #[test]
    fn mappings_are_known_by_place_in_a_process_of_the_runtime() {
        let node = Runtimes::of(&[mapping(0x40_0000, "/usr/bin/node", true)]);
        assert_eq!(node, Runtimes(vec![Runtime::V8]));
        assert_eq!(node.of_mapping(&mapping(0x1059_3790_0000, "", false)), Some(Runtime::V8));
        assert_eq!(node.of_mapping(&mapping(0x1059_3790_1000, "", false)), None);
        assert_eq!(node.of_mapping(&mapping(0x7f10_bc00_0000, "", false)), None);
        assert_eq!(node.of_mapping(&mapping(0x7f10_bc00_0000, "", true)), Some(Runtime::V8));
        let java = Runtimes::of(&[mapping(0x7f10_0000_0000, "/usr/lib/jvm/lib/server/libjvm.so", true)]);
        assert_eq!(java.of_mapping(&mapping(0xf000_0000, "", false)), Some(Runtime::HotSpot));
        assert_eq!(java.of_mapping(&mapping(0xf000_0000, "[heap]", false)), None);
        let go = Runtimes::of(&[mapping(0xc0_0000_0000, "", false), mapping(0x40_0000, "/bin/server", true)]);
        assert_eq!(go.of_mapping(&mapping(0xc0_0400_0000, "", false)), Some(Runtime::Go));
    }
}
