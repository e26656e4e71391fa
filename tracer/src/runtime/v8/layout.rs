//! Where things are in V8's objects, by what its file says of itself.
//!
//! V8 exports some 500 numbers for debuggers after the fact, `v8dbg_*`, in every build of Node.js, stripped or not: offsets, types, types of
//! frames. What they leave out differs by version, and [`CODE`] has it.

use std::collections::HashMap;

use object::{Object as _, ObjectSymbol as _};
use tracer_ebpf::runtime::v8 as walked;

use crate::runtime::elf::data;

/// Where things are in one build of V8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// V8's version: major, minor.
    pub version: (u32, u32),
    /// What the walk needs; without the number of the file.
    pub walked: walked::Layout,
    /// Numbers of the types of objects.
    pub types: Types,
    /// Offset of name or ScopeInfo in a SharedFunctionInfo.
    pub function_name: u64,
    /// Offset of the script.
    pub function_script: u64,
    /// Offset of the table of source positions in a BytecodeArray.
    pub bytecode_positions: u64,
    /// Offset of the first instruction in a BytecodeArray.
    pub bytecode_data: u64,
    /// Of compiled code.
    pub code: Code,
    /// Of what is known of optimised code: places in its array.
    pub deoptimization: Deoptimization,
    /// How many words of a ScopeInfo stand before the first variable.
    pub scope_first_variable: u64,
    /// The type of a frame of WebAssembly.
    pub wasm_frame: Option<u32>,
    /// Whether the distances of code in tables of source positions have flags in their lower bits, as since V8 14.1.
    pub positions_have_flags: bool,
    /// How long each instruction of bytecode is, in three widths of operands; empty when the file does not say.
    pub bytecode_sizes: Vec<u8>,
}

/// Numbers of the types of objects, by V8's own names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Types {
    pub shared_function_info: u16,
    pub script: u16,
    pub bytecode_array: u16,
    pub interpreter_data: Option<u16>,
    pub code: u16,
    /// What compiled code stands in: the Code itself before V8 11.
    pub instruction_stream: u16,
    pub fixed_array: u16,
    pub scope_info: u16,
}

/// Offsets in a Code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// What is known for deoptimisation; of baseline code the bytecode.
    pub data: u64,
    /// The table of positions.
    pub positions: u64,
    /// The address of the first instruction; `None` when the instructions follow the Code's header.
    pub start: Option<u64>,
    /// How long the instructions are, 32 bits.
    pub size: u64,
    /// The kind of code is in the lowest four bits of these.
    pub flags: u64,
    /// The kind of baseline code; Maglev's and Turbofan's are the next.
    pub baseline: u32,
}

/// Indexes in what is known of optimised code, by V8's own names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deoptimization {
    pub inlined_count: u64,
    pub literals: u64,
    pub function: u64,
    pub inlining_positions: u64,
}

/// What V8 does not export, from this version on: offsets in a Code, and of a BytecodeArray's table of source positions. From V8's
/// sources (`code.tq`, `bytecode-array.tq`), and each seen in processes of Node.js 18 to 26.
const CODE: [((u32, u32), [u64; 5], u64); 5] = [
    // data, positions, start, size, flags
    ((10, 2), [16, 24, 0, 40, 48], 32),
    ((11, 3), [16, 24, 40, 56, 48], 32),
    ((11, 8), [8, 16, 32, 44, 40], 32),
    ((12, 4), [8, 16, 40, 52, 48], 24),
    ((13, 6), [8, 16, 40, 56, 52], 24),
];

/// The first version of which SharedFunctionInfos are numbered.
const NUMBERED: (u32, u32) = (11, 8);
/// The first version of which positions have flags.
const FLAGGED_POSITIONS: (u32, u32) = (14, 1);
/// Where the instructions begin in a Code that has them itself.
pub(super) const INSTRUCTIONS_IN_CODE: u64 = 128;

/// Why a V8 is not supported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// Its pointers are compressed, or its frames are otherwise.
    #[error("V8 {}.{} was built in a way that is not known here ({what})", version.0, version.1)]
    Build {
        /// V8's version.
        version: (u32, u32),
        /// What is otherwise.
        what: &'static str,
    },
    /// It is older than what was looked at.
    #[error("V8 {}.{} is older than those that are known here", .0.0, .0.1)]
    Version((u32, u32)),
    /// It exports less than all versions do that were looked at.
    #[error("V8 exports no {0}")]
    Missing(&'static str),
}

impl Layout {
    /// Reads what an ELF file says of the V8 in it. `None` when there is none, or none that says anything.
    ///
    /// # Errors
    /// When it is not supported.
    pub fn of_elf(bytes: &[u8]) -> Result<Option<Self>, Unsupported> {
        match Symbols::read(bytes) {
            Some(symbols) => Self::of(&symbols).map(Some),
            None => Ok(None),
        }
    }

    fn of(symbols: &Symbols) -> Result<Self, Unsupported> {
        let version = symbols.version().ok_or(Unsupported::Missing("version"))?;
        let of_version = CODE.iter().rev().find(|(from, ..)| *from <= version);
        let &(_, [data, positions, start, size, flags], bytecode_positions) =
            of_version.ok_or(Unsupported::Version(version))?;
        let build = |what| Unsupported::Build { version, what };
        symbols.check_build().map_err(build)?;
        let function_flags = symbols.offset("class_SharedFunctionInfo__flags__")?;
        let function_script = symbols
            .offset("class_SharedFunctionInfo__script_or_debug_info__")
            .or_else(|_| symbols.offset("class_SharedFunctionInfo__script__"))?;
        let numbered = version >= NUMBERED;
        let instruction_stream = match start {
            0 => "type_Code__",
            _ => "type_InstructionStream__",
        };
        let walked = walked::Layout {
            shared: small(symbols.offset("class_JSFunction__shared__")?).ok_or(build("offsets"))?,
            id: small(function_flags + if numbered { 8 } else { 4 }).ok_or(build("offsets"))?,
            script: small(if numbered { 0 } else { function_script }).ok_or(build("offsets"))?,
            file: 0,
        };
        if !walked.is_readable() {
            return Err(build("offsets"));
        }
        Ok(Self {
            version,
            walked,
            types: Types {
                shared_function_info: symbols.object_type("type_SharedFunctionInfo__")?,
                script: symbols.object_type("type_Script__")?,
                bytecode_array: symbols.object_type("type_BytecodeArray__")?,
                interpreter_data: symbols.object_type("type_InterpreterData__").ok(),
                code: symbols.object_type("type_Code__")?,
                instruction_stream: symbols.object_type(instruction_stream)?,
                fixed_array: symbols.object_type("type_FixedArray__")?,
                scope_info: symbols.object_type("type_ScopeInfo__")?,
            },
            function_name: symbols.offset("class_SharedFunctionInfo__name_or_scope_info__")?,
            function_script,
            bytecode_positions,
            bytecode_data: symbols.offset("class_BytecodeArray__data__")?,
            code: Code {
                data,
                positions,
                start: (start != 0).then_some(start),
                size,
                flags,
                baseline: symbols
                    .constant("CodeKindBaseline")
                    .ok_or(Unsupported::Missing("CodeKindBaseline"))?,
            },
            deoptimization: symbols.deoptimization(),
            scope_first_variable: symbols
                .constant("scopeinfo_idx_first_vars")
                .ok_or(Unsupported::Missing("scopeinfo_idx_first_vars"))?
                .into(),
            wasm_frame: symbols.constant("frametype_WasmFrame"),
            positions_have_flags: version >= FLAGGED_POSITIONS,
            bytecode_sizes: symbols.bytecode_sizes.clone(),
        })
    }
}

fn small(offset: u64) -> Option<u8> {
    u8::try_from(offset).ok()
}

/// What V8 exports.
#[derive(Default)]
struct Symbols {
    /// `v8dbg_*`, without that.
    constants: HashMap<String, u32>,
    major: Option<u32>,
    minor: Option<u32>,
    bytecode_sizes: Vec<u8>,
}

const PREFIX: &[u8] = b"v8dbg_";
const MAJOR: &[u8] = b"_ZN2v88internal7Version6major_E";
const MINOR: &[u8] = b"_ZN2v88internal7Version6minor_E";
const SIZES: &[u8] = b"_ZN2v88internal11interpreter9Bytecodes14kBytecodeSizesE";

impl Symbols {
    fn read(bytes: &[u8]) -> Option<Self> {
        let elf = object::File::parse(bytes).ok()?;
        let exports_any = elf.dynamic_symbols().any(|symbol| {
            symbol.is_definition() && symbol.name_bytes().is_ok_and(|name| name.starts_with(PREFIX))
        });
        if !exports_any {
            return None;
        }
        let mut symbols = Self::default();
        // What is exported is in the other table, too, unless the file was stripped of it.
        for symbol in elf.symbols().chain(elf.dynamic_symbols()).filter(|symbol| symbol.is_definition()) {
            let Ok(name) = symbol.name_bytes() else { continue };
            let number = || data(&elf, symbol.address(), 4)?.try_into().ok().map(u32::from_le_bytes);
            if let Some(name) = name.strip_prefix(PREFIX) {
                let name = String::from_utf8_lossy(name).into_owned();
                symbols.constants.extend(number().map(|number| (name, number)));
            } else if name == MAJOR {
                symbols.major = number();
            } else if name == MINOR {
                symbols.minor = number();
            } else if name == SIZES {
                symbols.bytecode_sizes =
                    data(&elf, symbol.address(), symbol.size().min(3 << 8)).unwrap_or_default();
            }
        }
        Some(symbols)
    }

    fn version(&self) -> Option<(u32, u32)> {
        Some((self.major?, self.minor?))
    }

    fn constant(&self, name: &str) -> Option<u32> {
        self.constants.get(name).copied()
    }

    /// An offset, by the beginning of its name, which ends with the type of what is there.
    fn offset(&self, name: &'static str) -> Result<u64, Unsupported> {
        let found = self.constants.iter().find(|(known, _)| known.starts_with(name));
        found.map(|(_, &offset)| offset.into()).ok_or(Unsupported::Missing(name))
    }

    fn object_type(&self, name: &'static str) -> Result<u16, Unsupported> {
        u16::try_from(self.offset(name)?).map_err(|_| Unsupported::Missing(name))
    }

    /// Whether words are as wide and frames as [`walked::identify`] has them.
    fn check_build(&self) -> Result<(), &'static str> {
        let is =
            |name, expected: i32| self.constant(name).is_none_or(|number| number == expected.cast_unsigned());
        if !is("SystemPointerSize", 8) || !is("TaggedSize", 8) {
            return Err("its pointers are compressed");
        }
        let frames = is("off_fp_context_or_frame_type", -8)
            && is("off_fp_function", -16)
            && is("off_fp_bytecode_array", -32)
            && is("off_fp_bytecode_offset", -40);
        let tags = is("HeapObjectTag", 1) && is("SmiTag", 0) && is("SmiShiftSize", 31);
        if frames && tags { Ok(()) } else { Err("its frames are otherwise") }
    }

    fn deoptimization(&self) -> Deoptimization {
        let index = |name: &str, otherwise| self.constant(name).map_or(otherwise, u64::from);
        let function = index("DeoptimizationDataSharedFunctionInfoIndex", 6);
        Deoptimization {
            inlined_count: index("DeoptimizationDataInlinedFunctionCountIndex", 1),
            literals: index("DeoptimizationDataLiteralArrayIndex", 2),
            function: index("DeoptimizationDataWrappedSharedFunctionInfoIndex", function),
            inlining_positions: index("DeoptimizationDataInliningPositionsIndex", 7),
        }
    }
}
