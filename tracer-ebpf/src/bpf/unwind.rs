//! The walk up a stack: the moves of [`tracer_ebpf::unwind`], driven by `bpf_loop` over the tables in the maps.
//!
//! The parts of the walk are global functions: the verifier checks each once, by itself, where it would follow every path through all
//! of them for every frame, and give up after a million instructions. Their arguments and results are plain numbers, or a
//! pointer to memory of a known size, for that.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_loop},
    macros::map,
    maps::Array,
};
use tracer_ebpf::{
    process::{CodeList, ProcessIndex, ProcessState},
    runtime::{
        FrameKind, MOST_READ, Object,
        hotspot::{self, BLOB_WORDS, CodeMemory, HotSpotFrame, Place},
        python::{self, Interpreter, LoopCode, PythonFrame},
        v8::{self, V8Frame},
    },
    slots::WAYS,
    stack::{MAX_FRAMES, MAX_WORDS, StackHash, StackWindow},
    stop::Stop,
    thread::CAPTURE_SETS,
    unwind::{
        CACHE_BITS, Chunk, Frame, MAX_PAGE_PROBES, Mapping, Memory, Row, RowSearch, Rule, Search,
        TableHeader, Tables, cache::Key, step,
    },
};

use super::{
    arch,
    maps::{
        CAPTURES, HOTSPOT_LAYOUTS, PROCESSES, UNWIND_CACHE, UNWIND_MAPPINGS, UNWIND_PAGES, UNWIND_ROWS,
        UNWIND_RULES, UNWIND_TABLES, task_thread_base,
    },
};

/// The memory of the current thread, read through the window of the capture with this number.
struct UserMemory {
    capture: u32,
}

impl Memory for UserMemory {
    #[inline(always)]
    fn read(&self, address: u64) -> Option<u64> {
        let mut word = 0;
        if read_stack(self.capture, address, &raw mut word) == 0 { None } else { Some(word) }
    }
}

/// The same for native frames, most of whose words are in the window: these are read without a call. A call costs little by itself, but
/// its return is some 5 ns on processors that the kernel protects by returning safely.
struct NearbyMemory {
    capture: u32,
}

impl Memory for NearbyMemory {
    #[inline(always)]
    fn read(&self, address: u64) -> Option<u64> {
        let capture = CAPTURES.get_ptr(self.capture)?;
        // SAFETY: it points at an element that this run has claimed.
        let window = unsafe { &(*capture).window };
        match window.index(address) {
            Some(index) => Some(window.words[index]),
            None => UserMemory { capture: self.capture }.read(address),
        }
    }
}

/// Reads a word from the window of a capture, which moves there if need be; 0 when it cannot be read.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn read_stack(capture: u32, address: u64, word: *mut u64) -> u32 {
    let Some(capture) = CAPTURES.get_ptr_mut(capture) else { return 0 };
    if word.is_null() {
        return 0;
    }
    // SAFETY: it points at an element that this run has claimed.
    let window = unsafe { &mut (*capture).window };
    let index = match window.index(address) {
        Some(index) => index,
        None if move_window(window, address) => 0,
        None => return 0,
    };
    // SAFETY: the only caller passes a word; the verifier sees to it.
    unsafe { *word = window.words[index] };
    1
}

/// Makes a window begin at an address; `false` when nothing can be read there.
#[inline(always)]
fn move_window(window: &mut StackWindow, address: u64) -> bool {
    // A word that crosses into the next page is read alone.
    let length = match StackWindow::length_at(address) {
        ..8 => 8,
        length => length,
    };
    // SAFETY: a window has room for that many.
    let read = unsafe { arch::read_bytes(window.words.as_mut_ptr().cast(), length as u32, address) };
    window.start = address;
    window.length = if read { length } else { 0 };
    read
}

/// The arrays that user space fills.
struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn page(&self, index: u32) -> Option<u32> {
        UNWIND_PAGES.get(Chunk::number(index)).map(|chunk| chunk.get(index))
    }

    #[inline(always)]
    fn row(&self, index: u32) -> Option<Row> {
        UNWIND_ROWS.get(Chunk::number(index)).map(|chunk| Row::from_bits(chunk.get(index)))
    }

    #[inline(always)]
    fn rule(&self, number: u16) -> Option<Rule> {
        UNWIND_RULES.get(number.into()).map(|bits| Rule::from_bits(bits.load()))
    }
}

/// A walk up the stack.
#[repr(C)]
pub struct Walk {
    /// Hash of the frames so far.
    pub hash: StackHash,
    /// How many frames there are.
    pub depth: u32,
    /// How many words they take.
    pub words: u32,
    /// Why it ended: a [`Stop`].
    pub stop: u32,
    /// The stack pointer that was looked for, once the walk has come to it.
    pub passed: u64,
    frame: Frame,
    /// The mapping that the last frame was in: the next one is often in the same.
    mapping: Mapping,
    /// What stands in place of the call's return address, and that return address.
    awaited: u64,
    returns_to: u64,
    /// What was mapped when the walk began.
    pub code: WalkedCode,
    /// The stack pointer to look for.
    passing: u64,
    first_mapping: u32,
    mapping_count: u32,
    /// The number of the capture that takes the frames.
    capture: u32,
    /// See [`ProcessState::v8`].
    v8: u64,
    /// The thread that is walked.
    tid: u32,
    /// See [`ProcessState::hotspot`].
    hotspot: u32,
    /// What was read last of a blob of HotSpot's code.
    blob: [u64; BLOB_WORDS],
    /// See [`ProcessState::python`].
    python: [u64; Interpreter::WORDS],
    listing: PythonListing,
    /// The part of an object that was read last.
    object: [u64; OBJECT_WORDS],
    /// What was read last of the thread's Python frames.
    frames: FrameWindow,
}

/// A stretch of memory that has several Python frames, copied by one read.
#[repr(C)]
struct FrameWindow {
    start: u64,
    /// In bytes.
    length: u64,
    words: [u64; FrameWindow::WORDS],
}

impl FrameWindow {
    /// Three or four usual frames. A power of two, see [`MAX_WORDS`].
    const WORDS: usize = 64;
}

/// How far the walk is in the thread's Python frames.
#[repr(C)]
struct PythonListing {
    /// The next one; 0 for none.
    frame: u64,
    /// 1 once the first has been looked for.
    has_begun: u32,
    /// 1 while a run is listed, which belongs to the last frame.
    is_under_way: u32,
    /// What the step to the caller of the last frame came to.
    stepped: u32,
    /// What the walk goes on with after the run.
    ended: u32,
}

/// How many words of an object are kept: more than are read. A power of two, see [`MAX_WORDS`].
const OBJECT_WORDS: usize = (MOST_READ / 8).next_power_of_two();

/// The walks that fill the captures: each has the number of its capture. Nobody else's, so they are here.
#[map]
static WALKS: Array<Walk> = Array::with_max_entries(CAPTURE_SETS * WAYS as u32, 0);

/// By what a stack was walked.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct WalkedCode {
    /// See [`StackHeader::code_changes`](tracer_ebpf::stack::StackHeader::code_changes).
    pub changes: u32,
    /// Generation of the list.
    pub generation: u16,
    /// 1 when code may be mapped that is not in the list yet.
    pub may_lack_code: u8,
    /// 1 when the last frame is in no mapping of the list.
    pub last_is_unknown: u8,
}

/// The allocator call that a walk begins in, if any.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct EnclosingCall {
    /// Where it returns to; 0 when there is none.
    pub returns_to: u64,
    /// What stands on the stack in place of that: the kernel's trampoline, or the address itself.
    pub awaited: u64,
    /// The stack pointer of the frame that it returns to.
    pub sp: u64,
}

/// Walks from a frame to the thread's base, and writes return addresses to the capture with this number, which this run has
/// claimed; with it the walk itself, which is too large for the programs' stack. None never comes: the number is in the array.
#[inline(always)]
pub fn walk(
    frame: &Frame,
    process: &ProcessState,
    call: &EnclosingCall,
    hash: StackHash,
    capture: u32,
) -> Option<&'static Walk> {
    let taken = CAPTURES.get_ptr_mut(capture)?;
    // SAFETY: it points at an element that this run has claimed. What is in the window is another walk's.
    unsafe { (*taken).window.length = 0 };
    let walk = WALKS.get_ptr_mut(capture)?;
    // SAFETY: as above.
    let walk = unsafe { &mut *walk };
    // Before the list: one that is newer than this is only better.
    let changes = process.code_changes.load();
    let code = CodeList::from_bits(process.code.load());
    walk.hash = hash;
    walk.depth = 0;
    walk.words = 0;
    walk.stop = Stop::TooDeep as u32;
    walk.passed = 0;
    walk.frame = *frame;
    walk.mapping = Mapping::default();
    walk.awaited = call.awaited;
    walk.returns_to = call.returns_to;
    walk.passing = call.sp;
    walk.code.changes = changes as u32;
    walk.code.generation = code.generation;
    walk.code.may_lack_code = (changes != process.code_changes_seen.load()).into();
    walk.code.last_is_unknown = 0;
    walk.first_mapping = code.first;
    walk.mapping_count = code.count;
    walk.capture = capture;
    walk.v8 = process.v8.load();
    walk.tid = bpf_get_current_pid_tgid() as u32;
    walk.hotspot = process.hotspot.load() as u32;
    walk.listing.has_begun = 0;
    walk.listing.is_under_way = 0;
    walk.frames.length = 0;
    // Only whether the native stack comes by a place is asked where there is one.
    let python = if call.sp == 0 { process.python[2].load() } else { 0 };
    walk.python[2] = python;
    if python != 0 {
        walk.python[0] = process.python[0].load();
        walk.python[1] = process.python[1].load();
        walk.python[3] = process.python[3].load();
        walk.python[4] = process.python[4].load();
    }
    let mut context = capture;
    // SAFETY: the callback has the signature that the helper asks for, and `context` outlives the call.
    unsafe {
        bpf_loop(MAX_STEPS, walk_frame as *mut c_void, (&raw mut context).cast(), 0);
    }
    // User space wrote the other of its two lists, and then this one again, while this walk was reading it.
    if CodeList::from_bits(process.code.load()).was_overwritten_since(code) {
        walk.stop = Stop::TableNotReady as u32;
    }
    walk.hash = walk.hash.mix(u64::from(walk.stop));
    Some(walk)
}

/// A frame each, and one more for each run of Python frames.
const MAX_STEPS: u32 = 2 * MAX_FRAMES as u32;

/// Records one frame and moves to its caller; 1 ends the walk.
extern "C" fn walk_frame(_index: u32, capture: *mut u32) -> i64 {
    // SAFETY: `bpf_loop` passes the pointer it was given.
    let stop = go_to_caller(unsafe { *capture });
    if stop == STEPPED { 0 } else { 1 }
}

/// Records the frame and makes its caller the frame; a number of a [`Stop`] when the walk ends here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn go_to_caller(capture: u32) -> u32 {
    let Some(walk) = WALKS.get_ptr_mut(capture) else { return Stop::NoRoom as u32 };
    // SAFETY: it points at an element that this run has claimed.
    let walk = unsafe { &mut *walk };
    let stop = if walk.listing.is_under_way != 0 { list_python_frames(capture) } else { leave_frame(walk) };
    if stop != STEPPED {
        walk.stop = stop;
    }
    stop
}

#[inline(always)]
fn leave_frame(walk: &mut Walk) -> u32 {
    // The outermost allocator call's return address is not on the stack while it runs.
    if walk.frame.registers.ip == walk.awaited && walk.returns_to != 0 {
        walk.frame.registers.ip = walk.returns_to;
        if walk.frame.registers.sp == walk.passing {
            walk.passed = walk.passing;
        }
    }
    let address = walk.frame.lookup_address();
    if !walk.mapping.contains(address) {
        walk.mapping = match hotspot_code(walk.hotspot, address) {
            Some(code) => code,
            None => {
                mapping(find_mapping(walk.first_mapping, walk.mapping_count, address)).unwrap_or_default()
            }
        };
        if !walk.mapping.contains(address) {
            if walk.depth > 0 {
                let may_lack_code = walk.code.may_lack_code != 0;
                return if may_lack_code { Stop::TableNotReady } else { walk.frame.not_code() } as u32;
            }
            // The thread has just run there, so it is code.
            walk.mapping.table = Mapping::NOT_READY;
        }
    }
    let ip = walk.frame.address_after();
    let table = walk.mapping.table;
    let [start, cold, lengths, ..] = walk.python;
    let is_python = lengths != 0 && LoopCode::from_words([start, cold, lengths]).contains(address);
    let kind = if is_python { FrameKind::PythonLoop } else { FrameKind::Native };
    if !has_room(walk) || write_word(walk.capture, walk.words, kind.word(ip)) == 0 {
        return Stop::TooDeep as u32;
    }
    walk.words += 1;
    // The functions stand for the loop.
    walk.depth += u32::from(!is_python);
    // The same address is another frame once another file is mapped there.
    if table == Mapping::NOT_READY {
        walk.hash = walk.hash.mix(ip).mix(walk.code.changes.into());
        walk.code.last_is_unknown = 1;
        return Stop::TableNotReady as u32;
    }
    // The same instruction of Python is run by more than one place of the loop, once it is known what it mostly does.
    let place = if is_python { 0 } else { ip };
    // Above the 47 bits that addresses have, but for the few programs that ask for more.
    walk.hash = walk.hash.mix(place ^ u64::from(walk.mapping.file) << 48);
    if table == Mapping::HOTSPOT {
        return step_up_java(walk.capture);
    }
    let rule = find_rule(table, walk.mapping.svma(address));
    if rule == Rule::NO_TABLE && v8::Layout::from_bits(walk.v8).may_have_code_in(walk.mapping.file) {
        note_v8_frame(walk.capture);
    }
    let stepped = step_up(rule, &mut walk.frame, walk.capture);
    if is_python {
        walk.listing.is_under_way = 1;
        walk.listing.stepped = stepped;
        return STEPPED;
    }
    stepped
}

/// Whether another frame may come, with all words that it can have.
#[inline(always)]
fn has_room(walk: &Walk) -> bool {
    walk.depth < MAX_FRAMES as u32 && walk.words < (MAX_WORDS - 1 - FrameKind::MOST_WORDS) as u32
}

/// Writes down the run of Python frames that belongs to the last native one; what the step to its caller came to.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn list_python_frames(capture: u32) -> u32 {
    let Some(walk) = WALKS.get_ptr_mut(capture) else { return Stop::NoRoom as u32 };
    // SAFETY: it points at an element that this run has claimed.
    let walk = unsafe { &mut *walk };
    if walk.listing.has_begun == 0 {
        walk.listing.has_begun = 1;
        walk.listing.frame = first_python_frame(python::Layout::from_words([walk.python[3], walk.python[4]]));
    }
    walk.listing.is_under_way = 0;
    walk.listing.ended = Stop::TooDeep as u32;
    let mut context = capture;
    // SAFETY: the callback has the signature that the helper asks for, and `context` outlives the call.
    unsafe {
        bpf_loop(MAX_FRAMES as u32, list_python_frame as *mut c_void, (&raw mut context).cast(), 0);
    }
    walk.listing.ended
}

/// Writes down one frame of a run; 1 when it is the last. A loop of its own, since each call on the way to a frame costs as much as
/// half a native frame.
extern "C" fn list_python_frame(_index: u32, capture: *mut u32) -> i64 {
    // SAFETY: `bpf_loop` passes the pointer it was given.
    let capture = unsafe { *capture };
    let Some(walk) = WALKS.get_ptr_mut(capture) else { return 1 };
    // SAFETY: it points at an element that this run has claimed.
    let walk = unsafe { &mut *walk };
    let layout = python::Layout::from_words([walk.python[3], walk.python[4]]);
    let read = match walk.listing.frame {
        0 => None,
        frame => {
            let mut object = WalkedObject(&raw mut walk.object);
            let in_a_row = layout.has_frames_in_a_row();
            layout.read_frame(
                frame,
                &mut ListedFrame { window: &mut walk.frames, index: 0, in_a_row },
                &mut object,
            )
        }
    };
    let unread = PythonFrame { function: Some(python::Function::default()), caller: 0, ends_run: true };
    let frame = read.unwrap_or(unread);
    if let Some(function) = frame.function {
        if !has_room(walk) {
            return 1;
        }
        let kind = FrameKind::Python.word(function.code);
        write_words(capture, walk.words, [kind, function.to_word()]);
        walk.words += 2;
        walk.depth += 1;
        walk.hash = walk.hash.mix(function.code).mix(function.to_word());
    }
    walk.listing.frame = frame.caller;
    if frame.ends_run || frame.caller == 0 {
        walk.listing.ended = walk.listing.stepped;
        return 1;
    }
    0
}

/// The innermost Python frame of the current thread; 0 for none.
#[inline(always)]
fn first_python_frame(layout: python::Layout) -> u64 {
    let thread = arch::thread_base(task_thread_base());
    layout.innermost(thread, &HeapMemory).unwrap_or(0)
}

/// The object that a walk reads, in the walk that this run has claimed.
struct WalkedObject(*mut [u64; OBJECT_WORDS]);

impl Object for WalkedObject {
    #[inline(always)]
    fn load(&mut self, address: u64, length: u8) -> bool {
        // By its bits: every verifier understands that it is within the room there is.
        let length = u32::from(length) & (size_of::<[u64; OBJECT_WORDS]>() as u32 - 1);
        // SAFETY: there is room for that many.
        unsafe { arch::read_bytes(self.0.cast(), length, address) }
    }

    #[inline(always)]
    fn word(&self, offset: u8) -> u64 {
        // SAFETY: it points into the walk of this run, and the index is within the words.
        unsafe { self.0.cast::<u64>().add(offset as usize / 8 % OBJECT_WORDS).read_volatile() }
    }
}

/// A frame in the window of a walk.
struct ListedFrame<'a> {
    window: &'a mut FrameWindow,
    /// Where it begins in there.
    index: usize,
    /// Whether its callers are below it.
    in_a_row: bool,
}

impl Object for ListedFrame<'_> {
    #[inline(always)]
    fn load(&mut self, address: u64, length: u8) -> bool {
        /// All but a word: so a length is a matter of its bits.
        const MOST: u64 = 8 * FrameWindow::WORDS as u64 - 8;
        const PAGE: u64 = 4096;
        let length = u64::from(length);
        let offset = address.wrapping_sub(self.window.start);
        if offset < self.window.length && self.window.length - offset >= length {
            self.index = offset as usize / 8;
            return true;
        }
        // Not below its page: what is there may not be readable.
        let room = if self.in_a_row { MOST.wrapping_sub(length) & !7 } else { 0 };
        let below = if room < address % PAGE { room } else { (address % PAGE) & !7 };
        self.index = below as usize / 8;
        self.window.start = address.wrapping_sub(below);
        let length = (below + length) & (8 * FrameWindow::WORDS as u64 - 1);
        // SAFETY: there is room for that many.
        let read = unsafe {
            arch::read_bytes(self.window.words.as_mut_ptr().cast(), length as u32, self.window.start)
        };
        self.window.length = if read { length } else { 0 };
        read
    }

    #[inline(always)]
    fn word(&self, offset: u8) -> u64 {
        let index = (self.index + offset as usize / 8) % FrameWindow::WORDS;
        // SAFETY: the index is within the words.
        unsafe { self.window.words.as_ptr().add(index).read_volatile() }
    }
}

/// Writes a word of the frames of a capture that this run has claimed; 0 when there is none. Room for all that a walk can find there is.
#[inline(always)]
fn write_word(capture: u32, index: u32, word: u64) -> u32 {
    let Some(capture) = CAPTURES.get_ptr_mut(capture) else { return 0 };
    let index = index as usize % MAX_WORDS;
    // SAFETY: the index is within the frames of a capture that this run has claimed.
    unsafe { (&raw mut (*capture).frames).cast::<u64>().add(index).write(word) };
    1
}

/// Writes two words, as [`write_word`] does.
#[inline(always)]
fn write_words(capture: u32, index: u32, words: [u64; 2]) {
    let Some(capture) = CAPTURES.get_ptr_mut(capture) else { return };
    for (word, place) in words.into_iter().zip(index..) {
        // SAFETY: the index is within the frames of a capture that this run has claimed.
        unsafe { (&raw mut (*capture).frames).cast::<u64>().add(place as usize % MAX_WORDS).write(word) };
    }
}

/// The memory of the current thread, apart from the stack.
struct HeapMemory;

impl Memory for HeapMemory {
    #[inline(always)]
    fn read(&self, address: u64) -> Option<u64> {
        arch::read_word(address)
    }
}

/// Writes down what the last frame of a walk is to V8, whose code it may be.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_v8_frame(capture: u32) -> u32 {
    let Some(walk) = WALKS.get_ptr_mut(capture) else { return 0 };
    // SAFETY: it points at an element that this run has claimed.
    let walk = unsafe { &mut *walk };
    let layout = v8::Layout::from_bits(walk.v8);
    let is_compiled = walk.mapping.file == 0;
    let fp = walk.frame.registers.bp;
    let mut object = WalkedObject(&raw mut walk.object);
    let stack = NearbyMemory { capture };
    let Some(frame) = v8::identify(layout, fp, is_compiled, &stack, &mut object, &HeapMemory) else {
        return 0;
    };
    let words = walk.words;
    let kind = match frame {
        V8Frame::Internal(number) => {
            write_word(capture, words, number.into());
            walk.words = words + 1;
            FrameKind::V8Internal
        }
        V8Frame::Function(function) => {
            let [shared, place] = function.to_words();
            write_words(capture, words, [shared, place]);
            walk.words = words + 2;
            // Isolates number their functions alike; each has a thread of its own.
            walk.hash = walk.hash.mix(place).mix(u64::from(function.id.script) << 32 | u64::from(walk.tid));
            if is_compiled { FrameKind::CompiledJavaScript } else { FrameKind::JavaScript }
        }
    };
    write_word(capture, words - 1, kind.word(walk.frame.address_after()));
    0
}

/// All of HotSpot's code, as one mapping, if the address is in it: it grows without anybody's notice.
#[inline(always)]
fn hotspot_code(layout: u32, address: u64) -> Option<Mapping> {
    let [start, end] = HOTSPOT_LAYOUTS.get(layout.checked_sub(1)?)?.code();
    let code = Mapping { start, end, bias: 0, table: Mapping::HOTSPOT, file: 0 };
    if code.contains(address) { Some(code) } else { None }
}

/// The memory of the current thread, apart from the stack, as HotSpot's code is read: by the walk of the capture with this number.
struct HotSpotMemory {
    walk: *mut Walk,
}

impl Memory for HotSpotMemory {
    #[inline(always)]
    fn read(&self, address: u64) -> Option<u64> {
        arch::read_word(address)
    }
}

impl CodeMemory for HotSpotMemory {
    #[inline(always)]
    fn byte(&self, address: u64) -> Option<u8> {
        arch::read_byte(address)
    }

    #[inline(always)]
    fn load_blob(&self, address: u64, length: u16) -> bool {
        // By its bits: every verifier understands that it is within the room there is.
        let length = u32::from(length) & (size_of::<[u64; BLOB_WORDS]>() as u32 - 1);
        // SAFETY: the walk is one that this run has claimed, and has room for that many bytes.
        unsafe { arch::read_bytes((&raw mut (*self.walk).blob).cast(), length, address) }
    }

    #[inline(always)]
    fn blob_word(&self, index: usize) -> u64 {
        // SAFETY: as above; the index is within.
        unsafe { (&raw const (*self.walk).blob).cast::<u64>().add(index % BLOB_WORDS).read() }
    }
}

/// Writes down what the last frame of a walk, in HotSpot's code, is, and replaces it by its caller.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn step_up_java(capture: u32) -> u32 {
    let Some(walk) = WALKS.get_ptr_mut(capture) else { return Stop::NoRoom as u32 };
    // SAFETY: it points at an element that this run has claimed.
    let number = unsafe { (*walk).hotspot };
    let Some(layout) = HOTSPOT_LAYOUTS.get(number.wrapping_sub(1)) else { return Stop::NoTable as u32 };
    // SAFETY: as above.
    let frame = unsafe { &mut (*walk).frame };
    let stack = NearbyMemory { capture };
    let ip = frame.address_after();
    let stepped = if hotspot::is_interpreted(layout, frame) {
        let stepped = hotspot::step_interpreted(layout, frame, &stack, &HeapMemory);
        stepped.map(|method| (FrameKind::InterpretedJava, ip, method.to_words()))
    } else {
        let blob = find_java_blob(capture, number, frame.lookup_address());
        let stepped = hotspot::step_compiled(layout, blob, frame, &stack, &HotSpotMemory { walk });
        stepped.map(|Place { frame, ip: place }| {
            let words = if let HotSpotFrame::Compiled(code) = frame { code.to_words() } else { [0; 2] };
            (FrameKind::CompiledJava, place, words)
        })
    };
    // SAFETY: as above.
    let walk = unsafe { &mut *walk };
    let words = walk.words;
    match stepped {
        Ok((kind, place, [first, second])) => {
            write_word(capture, words - 1, kind.word(place));
            write_words(capture, words, [first, second]);
            walk.words = words + 2;
            walk.hash = walk.hash.mix(first ^ place).mix(second);
            STEPPED
        }
        Err(stop) => stop as u32,
    }
}

/// The blob of HotSpot's code that holds an address; 0 when none was found.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_java_blob(capture: u32, layout: u32, address: u64) -> u64 {
    let Some(walk) = WALKS.get_ptr_mut(capture) else { return 0 };
    let Some(layout) = HOTSPOT_LAYOUTS.get(layout.wrapping_sub(1)) else { return 0 };
    // SAFETY: it points at an element that this run has claimed.
    let mut object = WalkedObject(unsafe { &raw mut (*walk).object });
    hotspot::find_blob(layout, address, &mut object, &HotSpotMemory { walk }).unwrap_or(0)
}

/// In place of the number of a [`Stop`]: the walk goes on.
const STEPPED: u32 = u32::MAX;

/// Replaces a frame, whose code has this rule, by its caller.
#[inline(always)]
fn step_up(rule: Rule, frame: &mut Frame, capture: u32) -> u32 {
    match step(rule, *frame, &NearbyMemory { capture }) {
        Ok(caller) => {
            *frame = caller;
            STEPPED
        }
        Err(stop) => stop as u32,
    }
}

/// The rule of a table for an address of its file.
#[inline(always)]
fn find_rule(table: u32, svma: u64) -> Rule {
    rule_in(table, svma).unwrap_or(Rule::UNSUPPORTED)
}

#[inline(always)]
fn rule_in(number: u32, svma: u64) -> Option<Rule> {
    if number == Mapping::NO_TABLE {
        return Some(Rule::NO_TABLE);
    }
    let words = UNWIND_TABLES.get(number)?;
    let table = TableHeader::from_words([words[0].load(), words[1].load(), words[2].load()]);
    let Some(place) = table.locate(svma) else { return Some(Rule::NO_TABLE) };
    let key = Key::new(number, place.offset)?;
    let slot = UNWIND_CACHE.get(key.slot(CACHE_BITS))?;
    if let Some(rule) = key.rule(slot.load()) {
        return Maps.rule(rule);
    }
    Some(Rule::from_bits(search_rule(number, svma)))
}

/// The rule, as bits, of a table for an address of its file. Its number is put into the cache.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search_rule(table: u32, svma: u64) -> u64 {
    searched_rule(table, svma).unwrap_or(Rule::UNSUPPORTED).to_bits()
}

#[inline(always)]
fn searched_rule(number: u32, svma: u64) -> Option<Rule> {
    let words = UNWIND_TABLES.get(number)?;
    let table = TableHeader::from_words([words[0].load(), words[1].load(), words[2].load()]);
    let place = table.locate(svma)?;
    let key = Key::new(number, place.offset)?;
    let slot = UNWIND_CACHE.get(key.slot(CACHE_BITS))?;
    let mut search = RowSearch::begin(&table, place, &Maps)?;
    // SAFETY: the callback has the signature that the helper asks for, and `search` outlives the call.
    unsafe {
        bpf_loop(MAX_PAGE_PROBES, search_row as *mut c_void, (&raw mut search).cast(), 0);
    }
    let rule = search.rule(&Maps);
    slot.store(key.word(rule));
    Maps.rule(rule)
}

/// One probe of a search for a row. A loop of its own, since the verifier would walk every path of a plain one.
extern "C" fn search_row(_index: u32, search: *mut RowSearch) -> i64 {
    // SAFETY: `bpf_loop` passes the pointer it was given.
    let search = unsafe { &mut *search };
    i64::from(!search.advance(&Maps))
}

struct MappingSearch {
    search: Search,
    address: u64,
}

/// In place of an index: none.
const NOWHERE: u32 = u32::MAX;

/// The index of the mapping that holds an address or, if none does, of one that does not.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_mapping(first: u32, count: u32, address: u64) -> u32 {
    let mut search = MappingSearch { search: Search::new(first, first.wrapping_add(count)), address };
    // SAFETY: the callback has the signature that the helper asks for, and `search` outlives the call.
    unsafe {
        bpf_loop(CodeList::MAX_PROBES, search_mapping as *mut c_void, (&raw mut search).cast(), 0);
    }
    match search.search.last() {
        Some(last) if last >= first => last,
        _ => NOWHERE,
    }
}

#[inline(always)]
fn mapping(index: u32) -> Option<Mapping> {
    let words = UNWIND_MAPPINGS.get(index)?;
    Some(Mapping::from_words([words[0].load(), words[1].load(), words[2].load(), words[3].load()]))
}

/// One probe of a search for a mapping.
extern "C" fn search_mapping(_index: u32, search: *mut MappingSearch) -> i64 {
    // SAFETY: `bpf_loop` passes the pointer it was given.
    let search = unsafe { &mut *search };
    let Some(probe) = search.search.probe() else { return 1 };
    let Some(words) = UNWIND_MAPPINGS.get(probe) else { return 1 };
    search.search.narrow(probe, words[0].load() > search.address);
    0
}

struct Forgetting {
    /// The index after that of the next mapping to look at.
    next: u32,
    first: u32,
    start: u64,
    /// How many were there.
    found: u64,
}

/// The most mappings that one call makes unknown one by one; a library has one.
const MAX_FORGOTTEN: u32 = 64;

/// Makes the code of a stretch of memory unknown before another file can be mapped there, until user space has looked again.
#[inline(always)]
pub fn forget_code(process: ProcessIndex, start: u64, length: u64) {
    if length != 0 {
        forget_code_of(process.into(), start, length);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn forget_code_of(process: u32, start: u64, length: u64) -> u32 {
    let Some(process) = PROCESSES.get(process) else { return 0 };
    let code = CodeList::from_bits(process.code.load());
    let last = find_mapping(code.first, code.count, start.wrapping_add(length - 1));
    let mut forgetting = Forgetting { next: last.wrapping_add(1), first: code.first, start, found: 0 };
    // SAFETY: the callback has the signature that the helper asks for, and `forgetting` outlives the call.
    unsafe {
        bpf_loop(MAX_FORGOTTEN, forget_mapping as *mut c_void, (&raw mut forgetting).cast(), 0);
    }
    if forgetting.found == u64::from(MAX_FORGOTTEN) {
        // There may be more: then nothing of the list is known. Another list than this was made from what was mapped later.
        process.code.compare_exchange(code.to_bits(), CodeList { count: 0, ..code }.to_bits());
    }
    if forgetting.found > 0 {
        process.code.add(CodeList::FORGOTTEN);
        process.code_changes.add(1);
    }
    0
}

/// One mapping, from the last one on; 1 when it is not in the stretch.
extern "C" fn forget_mapping(_index: u32, forgetting: *mut Forgetting) -> i64 {
    // SAFETY: `bpf_loop` passes the pointer it was given.
    let forgetting = unsafe { &mut *forgetting };
    if forgetting.next <= forgetting.first {
        return 1;
    }
    forgetting.next -= 1;
    let Some([_, end, _, table]) = UNWIND_MAPPINGS.get(forgetting.next) else { return 1 };
    if end.load() <= forgetting.start {
        return 1;
    }
    table.store(Mapping::NOT_READY.into());
    forgetting.found += 1;
    0
}
