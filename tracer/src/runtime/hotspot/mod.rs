//! HotSpot: the names, files and lines of Java methods in a process that was started without any flag.

mod code;
mod compressed_numbers;
mod layout;
mod method;
mod vm_structs;

use std::{collections::HashMap, rc::Rc, sync::Arc};

use tracer_ebpf::runtime::hotspot::{CompiledCode, InterpretedMethod};

pub use self::layout::Layout;
pub use self::vm_structs::{Symbols, VmStructs};
use self::{
    code::{Blob, BlobReader, CompiledMethod},
    method::{MethodReader, MethodText},
};
use super::{Function, ProcessMemory, Runtime, Unread};

/// A frame in HotSpot's code, as the walk wrote it down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WalkedMethod {
    /// Of a method that was interpreted.
    Interpreted(InterpretedMethod),
    /// Of code in a blob.
    Compiled(CompiledCode),
}

/// What the HotSpot of one process has told so far.
#[derive(Debug)]
pub struct HotSpot {
    layout: Arc<Layout>,
    /// Names of blobs, by where they are: they are constants.
    names: HashMap<u64, Rc<str>>,
    /// Compiled code, by its blob and number.
    compiled: HashMap<(u64, u32), Rc<CompiledMethod>>,
}

/// Compiled code that is kept; it takes up to 50 KB.
const KEPT_CODE: usize = 256;
/// The language of its methods, in reports.
const JAVA: &str = "java";
/// Names of blobs.
const COMPILED: &str = "nmethod";
const NATIVE: &str = "native nmethod";

impl Runtime for HotSpot {
    type Layout = Layout;
    type Walked = WalkedMethod;

    fn new(layout: &Arc<Layout>) -> Self {
        Self { layout: Arc::clone(layout), names: HashMap::new(), compiled: HashMap::new() }
    }

    fn functions(
        &mut self,
        walked: WalkedMethod,
        address: u64,
        memory: &dyn ProcessMemory,
    ) -> Result<Vec<Function>, Unread> {
        match walked {
            WalkedMethod::Interpreted(method) => {
                self.interpreted(method, memory).map(|function| vec![function])
            }
            WalkedMethod::Compiled(code) => self.code(code, address, memory),
        }
    }

    fn version(&self) -> (String, &'static str) {
        (format!("Java {}", self.layout.version), "Java")
    }
}

impl HotSpot {
    fn interpreted(&self, walked: InterpretedMethod, memory: &dyn ProcessMemory) -> Result<Function, Unread> {
        if walked.method == 0 || walked.class == 0 {
            return Err(Unread::NotCaptured);
        }
        let bytecode = (walked.bytecode != InterpretedMethod::NATIVE).then(|| u32::from(walked.bytecode));
        let reader = MethodReader { layout: &self.layout, memory };
        let read = || reader.read(walked.method, Some(walked.class), bytecode);
        let text = read()?;
        // A class may have been unloaded meanwhile: what is the same twice was not put together from two.
        if read()? == text { Ok(function(text, false)) } else { Err(Unread::Moved) }
    }

    fn code(
        &mut self,
        walked: CompiledCode,
        address: u64,
        memory: &dyn ProcessMemory,
    ) -> Result<Vec<Function>, Unread> {
        if walked.blob == 0 {
            return Err(Unread::NotCaptured);
        }
        let layout = Arc::clone(&self.layout);
        let reader = BlobReader { layout: &layout, memory };
        let methods = MethodReader { layout: &layout, memory };
        let blob = self.blob(walked, &reader)?;
        let functions = match &blob {
            Blob::Stub(name) => vec![stub(name)],
            Blob::NativeMethod(method) => vec![function(methods.read(*method, None, None)?, false)],
            Blob::Method(compiled) => {
                let scopes = compiled.scopes(address, layout.number_base);
                let outer = scopes.len().saturating_sub(1);
                let scope = |(index, scope): (usize, &code::Scope)| {
                    let text = methods.read(scope.method, None, Some(scope.bytecode))?;
                    Ok(function(text, index < outer))
                };
                let functions = scopes.iter().enumerate().map(scope).collect::<Result<Vec<_>, Unread>>()?;
                if functions.is_empty() {
                    vec![function(methods.read(compiled.method, None, None)?, false)]
                } else {
                    functions
                }
            }
        };
        // The methods of compiled code live as long as it does.
        if reader.compile_id(walked.blob) == Some(walked.compile_id) {
            Ok(functions)
        } else {
            Err(Unread::Moved)
        }
    }

    fn blob(&mut self, walked: CompiledCode, reader: &BlobReader<'_>) -> Result<Blob, Unread> {
        if reader.compile_id(walked.blob) != Some(walked.compile_id) {
            return Err(Unread::Moved);
        }
        let name = self.name(walked.blob, reader).ok_or(Unread::Moved)?;
        match &*name {
            COMPILED => {
                let key = (walked.blob, walked.compile_id);
                if let Some(known) = self.compiled.get(&key) {
                    return Ok(Blob::Method(Rc::clone(known)));
                }
                let compiled = Rc::new(reader.compiled(walked.blob)?);
                if self.compiled.len() >= KEPT_CODE {
                    self.compiled.clear();
                }
                self.compiled.insert(key, Rc::clone(&compiled));
                Ok(Blob::Method(compiled))
            }
            NATIVE => reader.method(walked.blob).map(Blob::NativeMethod).ok_or(Unread::Moved),
            _ => Ok(Blob::Stub(name)),
        }
    }

    fn name(&mut self, blob: u64, reader: &BlobReader<'_>) -> Option<Rc<str>> {
        let pointer = reader.name_pointer(blob)?;
        if let Some(name) = self.names.get(&pointer) {
            return Some(Rc::clone(name));
        }
        let name: Rc<str> = reader.name(pointer)?.into();
        self.names.insert(pointer, Rc::clone(&name));
        Some(name)
    }
}

/// A method, as a frame shows it.
fn function(MethodText { class, name, file, line }: MethodText, inlined: bool) -> Function {
    let name = format!("{class}.{name}");
    Function { is_internal: is_internal(&class, &name), name, file, line, inlined, language: JAVA }
}

/// What a frame in code of HotSpot itself shows.
fn stub(name: &str) -> Function {
    // The callers of a virtual thread that has waited are put on the stack again as it comes to them.
    if name.starts_with("StubRoutines (cont") {
        let name = "[virtual thread: callers are not on the stack]".to_owned();
        return Function { name, language: JAVA, ..Function::default() };
    }
    Function { name: format!("[{name}]"), is_internal: true, language: JAVA, ..Function::default() }
}

/// Methods that Java leaves out of its own stacks (`@Hidden`), as far as they come below what people write. The flag that says so is in no table.
const HIDDEN: &[&str] = &[
    "jdk.internal.reflect.DirectMethodHandleAccessor.invokeImpl",
    "jdk.internal.vm.Continuation.enter",
    "jdk.internal.vm.Continuation.enter0",
    "java.lang.Thread.runWith",
    "java.lang.VirtualThread.runWith",
];

/// Whether a method of a class is made by the runtime, to come from one to another. Java leaves them out of its own stacks.
fn is_internal(class: &str, method: &str) -> bool {
    let is_form = class
        .strip_prefix("java.lang.invoke.")
        .is_some_and(|class| class.starts_with("LambdaForm$") || class.ends_with("$Holder"));
    is_form || class.contains("$$Lambda") || HIDDEN.contains(&method)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tracer_ebpf::runtime::hotspot as walked;

    use super::super::lying_memory::{LyingMemory, MOST_READ, any_word};
    use super::*;

    #[test]
    fn what_the_runtime_makes_is_told_from_what_people_write() {
        for class in [
            "App$$Lambda",
            "App$$Lambda$14",
            "java.lang.invoke.LambdaForm$MH",
            "java.lang.invoke.Invokers$Holder",
        ] {
            assert!(is_internal(class, &format!("{class}.run")), "{class}");
        }
        for class in ["App", "App$Holder", "java.lang.invoke.MethodHandle", "java.lang.Thread"] {
            assert!(!is_internal(class, &format!("{class}.run")), "{class}");
        }
        assert!(is_internal("java.lang.Thread", "java.lang.Thread.runWith"));
    }

    #[test]
    fn callers_that_are_elsewhere_are_said_to_be() {
        for name in ["StubRoutines (continuation stubs)", "StubRoutines (continuationstubs)"] {
            assert!(!stub(name).is_internal && stub(name).name.starts_with("[virtual thread"));
        }
        assert!(stub("StubRoutines (1)").is_internal);
    }

    fn layout(relative: bool) -> Layout {
        use self::layout::{Method, Place, SourceFile};
        let place = |offset| match relative {
            true => Place::From { pointer: 96, offset },
            false => Place::FromBlob(offset),
        };
        Layout {
            version: 17,
            walked: walked::Layout {
                code: [0, 1 << 40],
                interpreter: [0, 0],
                heaps: [0, 1 << 33, u64::MAX],
                segment_maps: [0, 64, 0],
                blob: walked::Blob {
                    header: 16,
                    segment_bits: 7,
                    frame_size: 28,
                    compile_id: 304,
                    original_pc: 300,
                    deoptimization: [128, 176],
                    deoptimization_is_relative: relative,
                    length: 328,
                },
                method: walked::Method {
                    const_method: 8,
                    constants: 8,
                    holder: 24,
                    name: 24,
                    const_method_size: 48,
                    name_number_bits: 16,
                    name_length_bits: 32,
                    name_text: 6,
                },
            },
            blob: layout::Blob {
                name: 96,
                code: Place::Pointer(32),
                method: 112,
                calls: [place(268), place(272)],
                scopes: Place::Pointer(120),
                metadata: place(260),
                call_size: 16,
                call_scope: 4,
            },
            method: Method {
                size: 48,
                flags: 28,
                has_lines: 1,
                code_size: 32,
                name_index: 34,
                constant_pool_size: 72,
                constant_pool_length: 60,
                source_file: if relative { SourceFile::ConstantPool(54) } else { SourceFile::Class(298) },
            },
            number_base: u8::from(relative),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn memory_that_lies_is_read_to_an_end(
            memory in LyingMemory::any(),
            (object, id, address) in (any_word(), any::<u32>(), any_word()),
            relative in any::<bool>(),
        ) {
            let layout = Arc::new(layout(relative));
            let mut hotspot = HotSpot::new(&layout);
            let method = InterpretedMethod { method: object, class: u64::from(id) | 1, bytecode: id as u16 };
            let _ = hotspot.functions(WalkedMethod::Interpreted(method), address, &memory);
            // As if it were what it seems to be.
            let reader = BlobReader { layout: &layout, memory: &memory };
            let _ = MethodReader { layout: &layout, memory: &memory }.read(object, None, Some(id & 0xffff));
            if let (Some(name), Some(compile_id)) = (reader.name_pointer(object), reader.compile_id(object)) {
                hotspot.names.insert(name, COMPILED.into());
                let code = WalkedMethod::Compiled(CompiledCode { blob: object, compile_id });
                let _ = hotspot.functions(code, address, &memory);
            }
            prop_assert!(memory.read.get() < MOST_READ, "{} bytes", memory.read.get());
        }
    }
}
