//! V8: the names, files and lines of JavaScript functions in a process that was started without any flag.

mod code;
mod heap;
mod layout;
mod positions;

use std::{collections::HashMap, sync::Arc};

use tracer_ebpf::runtime::v8::Id;

pub use self::layout::Layout;
use self::{
    code::{CodeObject, Place},
    heap::{Heap, Tagged},
    positions::{line_at, line_ends},
};
use super::{Function, Loaded, ProcessMemory, Runtime, Unread, Words};

/// A frame of a JavaScript function, as the walk wrote it down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WalkedFunction {
    /// The tagged address of its SharedFunctionInfo; 0 when the walk could not read it.
    pub shared: u64,
    /// The number of the function, [folded](Id::folded).
    pub id: u32,
    /// How far it was in its bytecode, counted from the tagged address; 0 when it was not interpreted.
    pub position: u32,
    /// Whether the frame is of code that was made at run time.
    pub is_compiled: bool,
}

/// What the isolates of one process have told so far.
#[derive(Debug)]
pub struct V8 {
    layout: Arc<Layout>,
    /// By script: its tagged address, its number and the address of its source.
    lines: HashMap<(u64, i32, u64), Box<[u32]>>,
    /// The Map of what compiled code stands in, once it has been seen.
    stream_map: Option<u64>,
}

/// Scripts whose line ends are kept. They take 4 bytes a line.
const KEPT_SCRIPTS: usize = 512;
/// The longest source whose lines are counted, in code units.
const LONGEST_SOURCE: usize = 64 << 20;
/// The language of its functions, in reports.
const JAVASCRIPT: &str = "javascript";
/// V8's name for functions without one.
const ANONYMOUS: &str = "(anonymous)";
/// What functions of WebAssembly are called: nothing in the objects of V8 that are read has their names.
pub const WASM: &str = "[wasm]";

impl Runtime for V8 {
    type Layout = Layout;
    type Walked = WalkedFunction;

    fn new(layout: &Arc<Layout>) -> Self {
        Self { layout: Arc::clone(layout), lines: HashMap::new(), stream_map: None }
    }

    fn functions(
        &mut self,
        walked: WalkedFunction,
        address: u64,
        memory: &dyn ProcessMemory,
    ) -> Result<Vec<Function>, Unread> {
        if walked.shared == 0 {
            return Err(Unread::NotCaptured);
        }
        let heap = Heap::new(memory);
        let shared = Tagged(walked.shared);
        self.check(walked, &heap, memory)?;
        let places = if walked.is_compiled {
            // Without it nobody knows what was inlined there, but whose it was.
            let code = CodeObject::at(address, &heap, &self.layout, &mut self.stream_map);
            let places = code.and_then(|code| code.places(address, shared, &heap, &self.layout));
            places.filter(|places| places.last().is_some_and(|place| place.function == shared))
        } else {
            None
        };
        let places = places.unwrap_or_else(|| {
            let offset = (walked.position != 0)
                .then(|| self.interpreted_offset(shared, walked.position, &heap))
                .flatten();
            vec![Place { function: shared, offset }]
        });
        let outer = places.len() - 1;
        let functions = places.into_iter().enumerate().map(|(index, place)| {
            let inlined = index < outer;
            Ok(Function { inlined, ..self.function(place, &heap)? })
        });
        let functions = functions.collect::<Result<_, Unread>>()?;
        // What was read in between is of this function if it still is the one.
        self.check(walked, &heap, memory)?;
        Ok(functions)
    }

    fn version(&self) -> (String, &'static str) {
        let (major, minor) = self.layout.version;
        (format!("V8 {major}.{minor}"), "JavaScript")
    }
}

impl V8 {
    /// What to show of a frame that is V8's own, of a type with this number: those of WebAssembly are functions, though nothing tells
    /// their names. `None` for how V8 comes from one function to the other.
    #[must_use]
    pub fn internal(&self, number: u32) -> Option<Function> {
        (self.layout.wasm_frame == Some(number)).then(|| Function {
            name: WASM.to_owned(),
            language: "wasm",
            ..Function::default()
        })
    }

    /// Whether the function that was walked is still where it was.
    fn check(
        &self,
        walked: WalkedFunction,
        heap: &Heap<'_>,
        memory: &dyn ProcessMemory,
    ) -> Result<(), Unread> {
        let shared = Tagged(walked.shared);
        let kind = heap.type_of(shared).ok_or(Unread::Moved)?;
        if kind != self.layout.types.shared_function_info {
            return Err(Unread::Moved);
        }
        let id = self.layout.walked.function_id(shared.0, &mut Loaded::new(memory), &Words(memory));
        if id.map(Id::folded) == Some(walked.id) { Ok(()) } else { Err(Unread::Moved) }
    }

    fn interpreted_offset(&self, shared: Tagged, position: u32, heap: &Heap<'_>) -> Option<u32> {
        let bytecode = bytecode_of(heap.object(shared, FUNCTION_DATA)?, heap, &self.layout)?;
        let offset = (u64::from(position) + 1).checked_sub(self.layout.bytecode_data)?;
        source_offset(bytecode, offset, heap, &self.layout)
    }

    fn function(&mut self, place: Place, heap: &Heap<'_>) -> Result<Function, Unread> {
        let name = self.name(place.function, heap)?.filter(|name| !name.is_empty());
        let script = self.script(place.function, heap)?;
        let file = match script {
            Some(script) => text(heap.word(script, SCRIPT_NAME).ok_or(Unread::Moved)?, heap)?,
            None => None,
        };
        let line = match script.zip(place.offset) {
            Some((script, offset)) => self.line(script, offset, heap)?,
            None => None,
        };
        Ok(Function {
            name: name.unwrap_or_else(|| ANONYMOUS.to_owned()),
            file: file.map(|name| path(&name)),
            line,
            inlined: false,
            language: JAVASCRIPT,
            is_internal: false,
        })
    }

    fn name(&self, shared: Tagged, heap: &Heap<'_>) -> Result<Option<String>, Unread> {
        let name = heap.word(shared, self.layout.function_name).ok_or(Unread::Moved)?;
        match Tagged::of(name).and_then(|scope| heap.typed(scope, self.layout.types.scope_info)) {
            Some(scope) => scope_name(scope, self.layout.scope_first_variable, heap),
            None => text(name, heap),
        }
    }

    /// The script of a function; under a debugger something else points to it.
    fn script(&self, shared: Tagged, heap: &Heap<'_>) -> Result<Option<Tagged>, Unread> {
        let script = whole(heap.object(shared, self.layout.function_script), heap)?;
        Ok(heap.typed(script, self.layout.types.script))
    }

    fn line(&mut self, script: Tagged, offset: u32, heap: &Heap<'_>) -> Result<Option<u32>, Unread> {
        let source = whole(heap.object(script, SCRIPT_SOURCE), heap)?;
        let first =
            heap.smi(script, SCRIPT_FIRST_LINE).and_then(|line| u32::try_from(line).ok()).unwrap_or(0);
        let key = (script.0, heap.smi(script, SCRIPT_ID).ok_or(Unread::Moved)?, source.0);
        if !self.lines.contains_key(&key) {
            // What a script without a source has there is no string.
            let Some(ends) = self.read_line_ends(script, source, heap) else {
                return Ok(None);
            };
            if self.lines.len() >= KEPT_SCRIPTS {
                self.lines.clear();
            }
            self.lines.insert(key, ends.into());
        }
        Ok(self.lines.get(&key).and_then(|ends| first.checked_add(line_at(ends, offset))))
    }

    /// Where the lines of a script end. V8 knows that itself once it has formatted a stack.
    fn read_line_ends(&self, script: Tagged, source: Tagged, heap: &Heap<'_>) -> Option<Vec<u32>> {
        let known = heap.object(script, SCRIPT_LINE_ENDS);
        let known =
            known.and_then(|array| heap.fixed_array(heap.typed(array, self.layout.types.fixed_array)?));
        let known = known.filter(|ends| !ends.is_empty());
        let known =
            known.and_then(|ends| ends.into_iter().map(|end| u32::try_from(heap::smi(end)?).ok()).collect());
        known.or_else(|| {
            let length = heap.string_length(source).filter(|&length| length <= LONGEST_SOURCE)?;
            Some(line_ends(&heap.string(source, length)?))
        })
    }
}

/// An object that there must be, of whatever type. While the collector moves objects, what refers to one that was moved leads to where
/// it was, where another address stands instead of its type.
fn whole(object: Option<Tagged>, heap: &Heap<'_>) -> Result<Tagged, Unread> {
    object.filter(|&object| heap.type_of(object).is_some()).ok_or(Unread::Moved)
}

/// The text of the string that a word leads to; none where it leads to something else or is a number.
fn text(word: u64, heap: &Heap<'_>) -> Result<Option<String>, Unread> {
    let Some(object) = Tagged::of(word) else { return Ok(None) };
    match heap.string_length(whole(Some(object), heap)?) {
        Some(_) => heap.name(object).map(Some).ok_or(Unread::Moved),
        None => Ok(None),
    }
}

/// Offsets in a SharedFunctionInfo and in a Script that are the same in all versions.
const FUNCTION_DATA: u64 = 8;
const SCRIPT_SOURCE: u64 = 8;
const SCRIPT_NAME: u64 = 16;
const SCRIPT_FIRST_LINE: u64 = 24;
const SCRIPT_LINE_ENDS: u64 = 56;
const SCRIPT_ID: u64 = 64;

/// The bytecode that something leads to which has to do with compiling a function: itself, interpreter data, baseline code.
fn bytecode_of(data: Tagged, heap: &Heap<'_>, layout: &Layout) -> Option<Tagged> {
    let types = &layout.types;
    let kind = heap.type_of(data)?;
    if kind == types.bytecode_array {
        return Some(data);
    }
    let within = if Some(kind) == types.interpreter_data {
        8
    } else if kind == types.code {
        layout.code.data
    } else {
        return None;
    };
    let data = heap.object(data, within)?;
    let kind = heap.type_of(data)?;
    if Some(kind) == types.interpreter_data {
        return heap.typed(heap.object(data, 8)?, types.bytecode_array);
    }
    (kind == types.bytecode_array).then_some(data)
}

/// The instructions of a bytecode array.
fn instructions(bytecode: Tagged, heap: &Heap<'_>, layout: &Layout) -> Option<Vec<u8>> {
    /// The largest functions have some hundred kilobytes.
    const LONGEST: i32 = 16 << 20;
    let length = heap.smi(bytecode, 8).filter(|length| (0..=LONGEST).contains(length))?;
    heap.raw(bytecode.0 - 1 + layout.bytecode_data, length as usize)
}

/// Where in the script the instruction at an offset of bytecode is.
fn source_offset(bytecode: Tagged, offset: u64, heap: &Heap<'_>, layout: &Layout) -> Option<u32> {
    let length = heap.smi(bytecode, 8).and_then(|length| u64::try_from(length).ok())?;
    let table = heap.byte_array(heap.object(bytecode, layout.bytecode_positions)?)?;
    let position =
        (offset < length).then(|| positions::position_at(&table, offset, layout.positions_have_flags))?;
    position.map(|position| position.offset)
}

/// The name in a ScopeInfo: the function's own or, if it has none, what it was inferred to be called.
fn scope_name(scope: Tagged, first_variable: u64, heap: &Heap<'_>) -> Result<Option<String>, Unread> {
    /// More variables than these are in a table of their own.
    const MOST_INLINE: u64 = 75;
    const HAS_SAVED_CLASS_VARIABLE: u32 = 1 << 10;
    const HAS_FUNCTION_NAME: u32 = 3 << 12;
    const HAS_INFERRED_NAME: u32 = 1 << 14;
    let word = |index: u64| heap.word(scope, 8 + 8 * index).ok_or(Unread::Moved);
    let flags = word(0)?;
    // A Smi before V8 12.9.
    let flags = if flags as u32 == 0 { (flags >> 32) as u32 } else { flags as u32 };
    let variables = heap::smi(word(2)?).and_then(|variables| u64::try_from(variables).ok());
    let variables = variables.filter(|&variables| variables < 1 << 24).ok_or(Unread::Moved)?;
    let names = if variables < MOST_INLINE { variables } else { 1 };
    let mut next = first_variable + names + variables;
    next += u64::from(flags & HAS_SAVED_CLASS_VARIABLE != 0);
    let name_at = |index| Ok(text(word(index)?, heap)?.filter(|name| !name.is_empty()));
    if flags & HAS_FUNCTION_NAME != 0 {
        if let Some(own) = name_at(next)? {
            return Ok(Some(own));
        }
        next += 2;
    }
    if flags & HAS_INFERRED_NAME != 0 { name_at(next) } else { Ok(None) }
}

/// The path of a script. Modules have URLs.
fn path(name: &str) -> String {
    let Some(path) = name.strip_prefix("file://") else { return name.to_owned() };
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|&digit| char::from(digit).to_digit(16));
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high << 4 | low) as u8);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tracer_ebpf::runtime::v8 as walked;

    use super::super::lying_memory::{LyingMemory, MOST_READ, any_word};
    use super::*;
    use heap::tests::MadeUp;

    #[test]
    fn urls_of_modules_are_paths() {
        assert_eq!(path("file:///srv/a%20b/m.mjs"), "/srv/a b/m.mjs");
        assert_eq!(path("node:internal/timers"), "node:internal/timers");
        assert_eq!(path("file:///srv/100%"), "/srv/100%");
    }

    #[test]
    fn a_scope_names_its_function_or_says_what_it_was_inferred_to_be() {
        const ONE_BYTE: u16 = 8;
        let mut memory = MadeUp::default();
        let string = |memory: &mut MadeUp, at, text: &str| {
            let string = memory.object(at, ONE_BYTE, &[(text.len() as u64) << 32]);
            memory.put(at + 16, text.as_bytes());
            string.0
        };
        let [own, inferred, empty] = [(0x1000, "own"), (0x1100, "Module._compile"), (0x1200, "")]
            .map(|(at, text)| string(&mut memory, at, text));
        let smi = |number: u64| number << 32;
        let both = [smi(1 << 10 | 1 << 12 | 1 << 14), 0, smi(2), 1, 2, 3, 4, 0xc1a55, own, smi(0), inferred];
        let named = memory.object(0x2000, 200, &both);
        let mut unnamed = both;
        unnamed[8] = empty;
        let unnamed = memory.object(0x3000, 200, &unnamed);
        // Flags of 32 bits, two more words before the variables, and a table of them.
        let mut many = vec![1 << 14 | 0x7, 0, smi(80), 5, 6, 0x7ab1e];
        many.extend([0; 80]);
        many.push(inferred);
        let many = memory.object(0x4000, 200, &many);
        let mut moving = both;
        moving[8] = 0x6001;
        let moving = memory.object(0x5000, 200, &moving);
        memory.object(0x6000, ONE_BYTE, &[smi(4)]);
        let heap = Heap::new(&memory);
        assert_eq!(scope_name(moving, 3, &heap), Err(Unread::Moved), "the name can't be read at the moment");
        let name = |scope, first| scope_name(scope, first, &heap).expect("it is whole").expect("it has one");
        assert_eq!(name(named, 3), "own");
        assert_eq!(name(unnamed, 3), "Module._compile");
        assert_eq!(name(many, 5), "Module._compile");
    }

    /// As of a version from 12.9 on, and of one before 11.8. Every second type is the same, so that much seems to be what it should be.
    fn layout(is_new: bool, kind: u16) -> Layout {
        let types = layout::Types {
            shared_function_info: kind,
            script: kind,
            bytecode_array: kind,
            interpreter_data: Some(kind ^ 1),
            code: kind ^ 1,
            instruction_stream: kind,
            fixed_array: kind,
            scope_info: kind,
        };
        let code = layout::Code {
            data: 8,
            positions: 16,
            start: is_new.then_some(40),
            size: 52,
            flags: 48,
            baseline: 10,
        };
        let deoptimization =
            layout::Deoptimization { inlined_count: 1, literals: 2, function: 6, inlining_positions: 7 };
        Layout {
            version: if is_new { (13, 6) } else { (10, 2) },
            walked: match is_new {
                true => walked::Layout { shared: 32, id: 64, script: 0, file: 3 },
                false => walked::Layout { shared: 24, id: 52, script: 32, file: 3 },
            },
            types,
            function_name: 16,
            function_script: 32,
            bytecode_positions: 24,
            bytecode_data: 64,
            code,
            deoptimization,
            scope_first_variable: 3,
            wasm_frame: None,
            positions_have_flags: is_new,
            bytecode_sizes: vec![1; 600],
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn memory_that_lies_is_read_to_an_end(
            memory in LyingMemory::any(),
            (kind, shared, address) in (0_u16..256, any_word(), any_word()),
            (position, is_compiled, is_new) in (any::<u32>(), any::<bool>(), any::<bool>()),
        ) {
            let layout = Arc::new(layout(is_new, kind));
            let id = layout.walked.function_id(shared, &mut Loaded::new(&memory), &Words(&memory));
            let id = id.map_or(0, Id::folded);
            let walked = WalkedFunction { shared, id, position, is_compiled };
            let _ = V8::new(&layout).functions(walked, address, &memory);
            prop_assert!(memory.read.get() < MOST_READ, "{} bytes", memory.read.get());
        }
    }
}
