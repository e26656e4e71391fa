//! HotSpot: the names, files and lines of Java methods in a process that was started without any flag.

mod code;
mod layout;
mod method;
mod numbers;
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
}
