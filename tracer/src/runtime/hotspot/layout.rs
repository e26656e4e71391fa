//! Where things are in a HotSpot, by its own tables.
//!
//! Names of fields changed from version to version; what is read has them all. Where a field was of another type, or what it means depends
//! on others, an `enum` says which way it is.

use tracer_ebpf::runtime::hotspot::{self as walked, HEAPS};

use super::super::ProcessMemory;
use super::vm_structs::VmStructs;

/// Why a HotSpot is not supported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// It is older or newer than what was looked at.
    #[error("Java {0} is not among the versions that are known here")]
    Version(u32),
    /// It says nothing of a field that is needed.
    #[error("Java {version} does not describe {what}")]
    Missing {
        /// Its version.
        version: u32,
        /// The field.
        what: &'static str,
    },
    /// Its frames, or its objects, are larger than they can be.
    #[error("Java {0} has other frames than are known here")]
    Build(u32),
}

/// Where things are in the HotSpot of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Its version: 17.
    pub version: u32,
    /// What the walk needs.
    pub walked: walked::Layout,
    /// Of a blob of code.
    pub blob: Blob,
    /// Of a method.
    pub method: Method,
    /// What bytes of compressed numbers are counted from: [`super::compressed_numbers`].
    pub number_base: u8,
}

/// Offsets in a blob of code, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Of the pointer to its name.
    pub name: u64,
    /// Where its code begins.
    pub code: Place,
    /// The method that it was compiled from.
    pub method: u64,
    /// Where the descriptions of its calls begin and end.
    pub calls: [Place; 2],
    /// Where the descriptions of its scopes begin.
    pub scopes: Place,
    /// Where the pointers to methods are.
    pub metadata: Place,
    /// The size of the description of a call, and the offset of the scope in it.
    pub call_size: u64,
    /// The offset of the scope in the description of a call.
    pub call_scope: u64,
}

/// How a blob says where something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// By a pointer at this offset.
    Pointer(u64),
    /// By an offset from the blob itself, 32 bits, at this offset.
    FromBlob(u64),
    /// By an offset of 32 bits from where a pointer points to.
    From {
        /// The offset of the pointer.
        pointer: u64,
        /// The offset of the offset.
        offset: u64,
    },
}

/// Offsets in what makes up a method, in bytes, beside those that [`walked::Method`] has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method {
    /// In a ConstMethod: its whole size, 32 bits, in words.
    pub size: u64,
    /// In a ConstMethod: flags, 16 bits or more.
    pub flags: u64,
    /// The flag that says that there are line numbers.
    pub has_lines: u16,
    /// In a ConstMethod: the length of its bytecode, 16 bits.
    pub code_size: u64,
    /// In a ConstMethod: the index of its name, 16 bits.
    pub name_index: u64,
    /// The size of a ConstantPool: its entries are behind it.
    pub constant_pool_size: u64,
    /// In a ConstantPool: the number of its entries, 32 bits.
    pub constant_pool_length: u64,
    /// The index of the name of the source file, 16 bits: in the ConstantPool, or the class.
    pub source_file: SourceFile,
}

/// What has the index of the name of the source file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceFile {
    /// The ConstantPool, at this offset.
    ConstantPool(u64),
    /// The class, at this offset.
    Class(u64),
}

/// The versions whose tables say all that is needed, and whose frames are known. Tried: 11, 17, 21, 25 (docs/runtimes.md).
const KNOWN: [std::ops::RangeInclusive<u32>; 2] = [11..=22, 25..=25];
/// From this version on, bytes of compressed numbers are counted from 1 (JDK-8292758).
const NUMBERS_FROM_ONE: u32 = 20;

/// What is needed of the tables.
struct Fields<'a> {
    structs: &'a VmStructs,
    memory: &'a dyn ProcessMemory,
    version: u32,
}

impl Layout {
    /// Where things are in a HotSpot with these tables. `None` while it is not yet ready.
    ///
    /// # Errors
    /// When it is not supported.
    pub fn of(structs: &VmStructs, memory: &dyn ProcessMemory) -> Result<Option<Self>, Unsupported> {
        let version = structs.address("Abstract_VM_Version", "_vm_major_version");
        let version = version.and_then(|address| read_u32(memory, address)).unwrap_or(0);
        if version == 0 {
            return Ok(None);
        }
        if !KNOWN.iter().any(|known| known.contains(&version)) {
            return Err(Unsupported::Version(version));
        }
        let fields = Fields { structs, memory, version };
        if structs.constant("frame::interpreter_frame_sender_sp_offset") != Some(-1) {
            return Err(Unsupported::Build(version));
        }
        let blob = fields.blob()?;
        let method = fields.method()?;
        let number_base = u8::from(version >= NUMBERS_FROM_ONE);
        let walked = fields.walked()?;
        Ok(walked.map(|walked| Self { version, walked, blob, method, number_base }))
    }
}

impl Fields<'_> {
    fn missing(&self, what: &'static str) -> Unsupported {
        Unsupported::Missing { version: self.version, what }
    }

    fn offset(&self, owner: &'static str, field: &'static str) -> Result<u64, Unsupported> {
        self.structs.offset(owner, field).ok_or_else(|| self.missing(field))
    }

    /// Of a class that is part of another one since JDK 23.
    fn of_nmethod(&self, field: &'static str) -> Option<u64> {
        let in_own = self.structs.offset("nmethod", field);
        in_own.or_else(|| self.structs.offset("CompiledMethod", field))
    }

    fn size(&self, of: &'static str) -> Result<u64, Unsupported> {
        self.structs.size(of).ok_or_else(|| self.missing(of))
    }

    /// The word at a static field; `None` while it is 0.
    fn static_word(&self, owner: &'static str, field: &'static str) -> Result<Option<u64>, Unsupported> {
        let address = self.structs.address(owner, field).ok_or_else(|| self.missing(field))?;
        Ok(self.memory.read(address).filter(|&word| word != 0))
    }

    fn blob(&self) -> Result<Blob, Unsupported> {
        let field = |field| self.offset("nmethod", field);
        let optional = |field| self.structs.offset("nmethod", field);
        let code = match self.structs.offset("CodeBlob", "_code_offset") {
            Some(offset) => Place::FromBlob(offset),
            None => Place::Pointer(self.offset("CodeBlob", "_code_begin")?),
        };
        let calls_offset = field("_scopes_pcs_offset")?;
        let (calls, scopes) = if let Some(pointer) = optional("_immutable_data") {
            let scopes = Place::From { pointer, offset: field("_scopes_data_offset")? };
            ([Place::From { pointer, offset: calls_offset }, scopes], scopes)
        } else {
            let scopes = self.of_nmethod("_scopes_data_begin");
            let scopes = scopes.ok_or_else(|| self.missing("_scopes_data_begin"))?;
            let end = field("_dependencies_offset")?;
            ([Place::FromBlob(calls_offset), Place::FromBlob(end)], Place::Pointer(scopes))
        };
        let metadata = match self.structs.offset("CodeBlob", "_mutable_data") {
            Some(pointer) => Place::From { pointer, offset: self.offset("CodeBlob", "_relocation_size")? },
            None => Place::FromBlob(field("_metadata_offset")?),
        };
        Ok(Blob {
            name: self.offset("CodeBlob", "_name")?,
            code,
            method: self.of_nmethod("_method").ok_or_else(|| self.missing("_method"))?,
            calls,
            scopes,
            metadata,
            call_size: self.size("PcDesc")?,
            call_scope: self.offset("PcDesc", "_scope_decode_offset")?,
        })
    }

    fn method(&self) -> Result<Method, Unsupported> {
        let field = |field| self.offset("ConstMethod", field);
        let flags = self.structs.offset("ConstMethod", "_flags._flags");
        let has_lines =
            ["ConstMethod::_has_linenumber_table", "ConstMethodFlags::_misc_has_linenumber_table"];
        let has_lines = has_lines.iter().find_map(|name| self.structs.constant(name));
        let has_lines = has_lines.and_then(|flag| u16::try_from(flag).ok());
        let source_file = "_source_file_name_index";
        let source_file = match self.structs.offset("ConstantPool", source_file) {
            Some(offset) => SourceFile::ConstantPool(offset),
            None => SourceFile::Class(self.offset("InstanceKlass", source_file)?),
        };
        Ok(Method {
            size: field("_constMethod_size")?,
            flags: flags.map_or_else(|| field("_flags"), Ok)?,
            has_lines: has_lines.ok_or_else(|| self.missing("line numbers"))?,
            code_size: field("_code_size")?,
            name_index: field("_name_index")?,
            constant_pool_size: self.size("ConstantPool")?,
            constant_pool_length: self.offset("ConstantPool", "_length")?,
            source_file,
        })
    }

    fn walked(&self) -> Result<Option<walked::Layout>, Unsupported> {
        let blob = self.walked_blob()?;
        let small = |offset: Result<u64, Unsupported>| -> Result<u8, Unsupported> {
            u8::try_from(offset?).map_err(|_| Unsupported::Build(self.version))
        };
        // Its upper half, before JDK 15 a field of its own.
        let number = match self.structs.offset("Symbol", "_hash_and_refcount") {
            Some(offset) => Ok(8 * offset + 16),
            None => self.offset("Symbol", "_identity_hash").map(|offset| 8 * offset),
        };
        let method = walked::Method {
            const_method: small(self.offset("Method", "_constMethod"))?,
            constants: small(self.offset("ConstMethod", "_constants"))?,
            holder: small(self.offset("ConstantPool", "_pool_holder"))?,
            name: small(self.offset("Klass", "_name"))?,
            const_method_size: small(self.size("ConstMethod"))?,
            name_number_bits: small(number)?,
            name_length_bits: small(self.offset("Symbol", "_length").map(|offset| 8 * offset))?,
            name_text: small(self.offset("Symbol", "_body"))?,
        };
        let (low, high) =
            (self.static_word("CodeCache", "_low_bound")?, self.static_word("CodeCache", "_high_bound")?);
        let (Some(low), Some(high)) = (low, high) else { return Ok(None) };
        let (Some((heaps, segment_bits)), Some(interpreter)) = (self.heaps()?, self.interpreter()?) else {
            return Ok(None);
        };
        let [heaps, segment_maps] = heaps;
        let blob = walked::Blob { segment_bits, ..blob };
        let code = [low, high];
        Ok(Some(walked::Layout { code, interpreter, heaps, segment_maps, blob, method }))
    }

    fn walked_blob(&self) -> Result<walked::Blob, Unsupported> {
        let build = || Unsupported::Build(self.version);
        let small = |offset: u64| u16::try_from(offset).map_err(|_| build());
        let frame_size = small(self.offset("CodeBlob", "_frame_size")?)?;
        let compile_id = small(self.offset("nmethod", "_compile_id")?)?;
        let original_pc = small(self.offset("nmethod", "_orig_pc_offset")?)?;
        let is_relative = self.structs.offset("nmethod", "_deopt_handler_offset").is_some();
        let [first, second] = if is_relative {
            ["_deopt_handler_offset", "_deopt_mh_handler_offset"]
        } else {
            ["_deopt_handler_begin", "_deopt_mh_handler_begin"]
        };
        let first = small(self.of_nmethod(first).ok_or_else(|| self.missing(first))?)?;
        let second = small(self.of_nmethod(second).unwrap_or(0))?;
        let last = [frame_size, compile_id, original_pc, first, second].into_iter().max().unwrap_or(0);
        let length = (last & !7) + 8;
        if usize::from(length) >= walked::BLOB_WORDS * 8 {
            return Err(build());
        }
        Ok(walked::Blob {
            header: u8::try_from(self.size("HeapBlock")?).map_err(|_| build())?,
            segment_bits: 0,
            frame_size,
            compile_id,
            original_pc,
            deoptimization: [first, second],
            deoptimization_is_relative: is_relative,
            length,
        })
    }

    /// Where the stretches of the code begin and where their maps are, and the size of a segment, as bits.
    #[expect(clippy::type_complexity, reason = "it is taken apart at once")]
    fn heaps(&self) -> Result<Option<([[u64; HEAPS]; 2], u8)>, Unsupported> {
        let length = ["GrowableArrayBase", "GenericGrowableArray"];
        let length = length.iter().find_map(|owner| self.structs.offset(owner, "_len"));
        let length = length.ok_or_else(|| self.missing("_len"))?;
        let data = self.offset("GrowableArray<int>", "_data")?;
        let memory = self.offset("CodeHeap", "_memory")?;
        let segments = self.offset("CodeHeap", "_segmap")?;
        let low = self.offset("VirtualSpace", "_low")?;
        let bits = self.offset("CodeHeap", "_log2_segment_size")?;
        let Some(array) = self.static_word("CodeCache", "_heaps")? else { return Ok(None) };
        let (Some(count), Some(data)) =
            (read_u32(self.memory, array.wrapping_add(length)), self.memory.read(array.wrapping_add(data)))
        else {
            return Ok(None);
        };
        if count as usize > HEAPS {
            return Err(Unsupported::Build(self.version));
        }
        let heap = |index: u64| {
            let heap = self.memory.read(data + 8 * index)?;
            let word = |offset| self.memory.read(heap.wrapping_add(offset)).filter(|&word| word != 0);
            let bits =
                read_u32(self.memory, heap.wrapping_add(bits)).filter(|bits| (4..16).contains(bits))?;
            Some((word(memory.wrapping_add(low))?, word(segments.wrapping_add(low))?, bits as u8))
        };
        let Some(mut heaps) = (0..count.into()).map(heap).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        heaps.sort_unstable();
        let Some(&(_, _, bits)) = heaps.first() else { return Ok(None) };
        let mut found = [[u64::MAX; HEAPS], [0; HEAPS]];
        for (index, (begin, map, _)) in heaps.into_iter().enumerate() {
            (found[0][index], found[1][index]) = (begin, map);
        }
        Ok(Some((found, bits)))
    }

    /// Where the interpreter's code is. It is made in a piece of memory that is too large, of which the rest is given back then.
    fn interpreter(&self) -> Result<Option<[u64; 2]>, Unsupported> {
        /// What is left over by rounding.
        const REST: u32 = 1024;
        let begin = self.offset("StubQueue", "_stub_buffer")?;
        let limit = self.offset("StubQueue", "_buffer_limit")?;
        let end = self.offset("StubQueue", "_queue_end")?;
        let Some(code) = self.static_word("AbstractInterpreter", "_code")? else { return Ok(None) };
        let number = |offset| read_u32(self.memory, code.wrapping_add(offset)).filter(|&number| number != 0);
        let begin = self.memory.read(code.wrapping_add(begin)).filter(|&begin| begin != 0);
        let (Some(begin), Some(limit), Some(end)) = (begin, number(limit), number(end)) else {
            return Ok(None);
        };
        Ok((limit.abs_diff(end) < REST).then(|| [begin, begin + u64::from(limit)]))
    }
}

fn read_u32(memory: &dyn ProcessMemory, address: u64) -> Option<u32> {
    let mut bytes = [0; 4];
    memory.read_bytes(address, &mut bytes).then(|| u32::from_le_bytes(bytes))
}
