//! Finds the allocator behind this library: what `dlsym(RTLD_NEXT, ...)` does, without what it brings along. `dlsym` may allocate, is in
//! a library of its own before glibc 2.34, and sets an error string; this reads the symbol tables of what is loaded.

use core::{
    ffi::{CStr, c_char, c_int, c_void},
    slice,
};

unsafe extern "C" {
    fn dl_iterate_phdr(
        callback: unsafe extern "C" fn(*const LoadedObject, usize, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
}

/// `struct dl_phdr_info`, as far as it is read.
#[repr(C)]
struct LoadedObject {
    base: usize,
    name: *const c_char,
    headers: *const ProgramHeader,
    header_count: u16,
}

/// `Elf64_Phdr`.
#[repr(C)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    physical: u64,
    file_size: u64,
    memory_size: u64,
    alignment: u64,
}

/// `Elf64_Sym`.
#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    size: u64,
}

/// A loaded object: where it is, and its dynamic section.
#[derive(Clone, Copy, Debug)]
struct Object {
    base: usize,
    dynamic: *const [usize; 2],
}

/// What is loaded behind this library, in the order in which symbols are looked for. More than this many objects are not looked at: an
/// allocator is among the first.
pub struct Objects {
    found: [Object; Objects::MOST],
    count: usize,
    own_seen: bool,
}

/// A definition of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Its address.
    pub address: *mut c_void,
    /// Which object it is in.
    pub object: usize,
}

impl Objects {
    const MOST: usize = 256;

    /// What is loaded behind this library now. Where it was loaded late, behind everything that matters, nobody calls it, and this is
    /// empty.
    pub fn behind_this() -> Self {
        const NONE: Object = Object { base: 0, dynamic: core::ptr::null() };
        let mut objects = Self { found: [NONE; Self::MOST], count: 0, own_seen: false };
        // SAFETY: the callback takes the data for what it is, while this waits.
        unsafe { dl_iterate_phdr(add, (&raw mut objects).cast()) };
        objects
    }

    /// The first definition of a function.
    pub fn find(&self, name: &CStr) -> Option<Definition> {
        let objects = self.found.iter().take(self.count).enumerate();
        objects.into_iter().find_map(|(number, object)| {
            // SAFETY: the object is loaded, and its dynamic section what the loader made it.
            let address = unsafe { object.find(name) }?;
            Some(Definition { address, object: number })
        })
    }
}

unsafe extern "C" fn add(loaded: *const LoadedObject, _size: usize, data: *mut c_void) -> c_int {
    // SAFETY: the C library passes a description of an object, and on the data of the only caller.
    let (loaded, objects) = unsafe { (&*loaded, &mut *data.cast::<Objects>()) };
    // SAFETY: the headers of a loaded object stay mapped.
    let headers = unsafe { slice::from_raw_parts(loaded.headers, loaded.header_count.into()) };
    const LOAD: u32 = 1;
    const DYNAMIC: u32 = 2;
    let own = (&raw const OWN).addr();
    let has_own = |header: &ProgramHeader| {
        let start = loaded.base.wrapping_add(header.address as usize);
        header.kind == LOAD && own.wrapping_sub(start) < header.memory_size as usize
    };
    if headers.iter().any(has_own) {
        objects.own_seen = true;
        return 0;
    }
    let dynamic = headers.iter().find(|header| header.kind == DYNAMIC);
    if let (true, Some(header), Some(place)) =
        (objects.own_seen, dynamic, objects.found.get_mut(objects.count))
    {
        let dynamic = loaded.base.wrapping_add(header.address as usize) as *const [usize; 2];
        *place = Object { base: loaded.base, dynamic };
        objects.count += 1;
    }
    0
}

/// Something of this library.
static OWN: u8 = 0;

/// What a search needs of a dynamic section.
struct Tables {
    symbols: *const Symbol,
    strings: *const c_char,
    versions: *const u16,
    gnu_hash: *const u32,
    hash: *const u32,
}

impl Object {
    /// The address of a function that the object defines.
    ///
    /// # Safety
    /// It must be loaded.
    unsafe fn find(&self, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: the caller answers for the object; its tables are what the loader searches, too.
        unsafe {
            let tables = self.tables()?;
            let index = if tables.gnu_hash.is_null() {
                tables.find_by_hash(name)
            } else {
                tables.find_by_gnu_hash(name)
            }?;
            Some(self.base.wrapping_add((*tables.symbols.add(index)).value as usize) as *mut c_void)
        }
    }

    unsafe fn tables(&self) -> Option<Tables> {
        const HASH: usize = 4;
        const STRINGS: usize = 5;
        const SYMBOLS: usize = 6;
        const GNU_HASH: usize = 0x6fff_fef5;
        const VERSIONS: usize = 0x6fff_fff0;
        let (mut symbols, mut strings, mut versions, mut gnu_hash, mut hash) = (0, 0, 0, 0, 0);
        let mut entry = self.dynamic;
        // SAFETY: the section ends with an entry of tag 0.
        while let [tag, value] = unsafe { *entry }
            && tag != 0
        {
            match tag {
                HASH => hash = value,
                STRINGS => strings = value,
                SYMBOLS => symbols = value,
                GNU_HASH => gnu_hash = value,
                VERSIONS => versions = value,
                _ => {}
            }
            // SAFETY: as above.
            entry = unsafe { entry.add(1) };
        }
        // glibc makes addresses of these offsets when it loads an object; musl leaves them as they are in the file, and glibc those
        // of the vDSO.
        let at = |value: usize| match value {
            0 => 0,
            offset if offset < self.base => self.base + offset,
            address => address,
        };
        (symbols != 0 && strings != 0 && (hash != 0 || gnu_hash != 0)).then(|| Tables {
            symbols: at(symbols) as *const Symbol,
            strings: at(strings) as *const c_char,
            versions: at(versions) as *const u16,
            gnu_hash: at(gnu_hash) as *const u32,
            hash: at(hash) as *const u32,
        })
    }
}

impl Tables {
    /// Whether this symbol is a function that the object defines under this name, in the version that is linked to by default.
    unsafe fn is(&self, index: usize, name: &CStr) -> bool {
        const FUNCTION: u8 = 2;
        const HIDDEN: u16 = 1 << 15;
        // SAFETY: the index is one of the object's own hash table.
        unsafe {
            let symbol = &*self.symbols.add(index);
            symbol.info & 15 == FUNCTION
                && symbol.section != 0
                && (self.versions.is_null() || *self.versions.add(index) & HIDDEN == 0)
                && is_text(self.strings.add(symbol.name as usize), name)
        }
    }

    /// By `DT_GNU_HASH`: number of buckets, first symbol, words and shift of a filter, the filter, the buckets, the hashes.
    unsafe fn find_by_gnu_hash(&self, name: &CStr) -> Option<usize> {
        let hash = name
            .to_bytes()
            .iter()
            .fold(5381_u32, |hash, &byte| hash.wrapping_mul(33).wrapping_add(byte.into()));
        // SAFETY: the table is laid out like this.
        unsafe {
            let [buckets, first, filter_words, _] = *self.gnu_hash.cast::<[u32; 4]>();
            if buckets == 0 {
                return None;
            }
            let table = self.gnu_hash.add(4 + 2 * filter_words as usize);
            let mut index = *table.add((hash % buckets) as usize);
            if index < first {
                return None;
            }
            let hashes = table.add(buckets as usize);
            loop {
                let found = *hashes.add((index - first) as usize);
                if (found | 1) == (hash | 1) && self.is(index as usize, name) {
                    return Some(index as usize);
                }
                // The last of a bucket has an odd hash.
                if found & 1 == 1 {
                    return None;
                }
                index += 1;
            }
        }
    }

    /// By `DT_HASH`: number of buckets and of symbols, the buckets, the chains.
    unsafe fn find_by_hash(&self, name: &CStr) -> Option<usize> {
        let hash = name.to_bytes().iter().fold(0_u32, |hash, &byte| {
            let hash = (hash << 4).wrapping_add(byte.into());
            let high = hash & 0xf000_0000;
            (hash ^ high >> 24) & !high
        });
        // SAFETY: the table is laid out like this.
        unsafe {
            let [buckets, _] = *self.hash.cast::<[u32; 2]>();
            if buckets == 0 {
                return None;
            }
            let table = self.hash.add(2);
            let mut index = *table.add((hash % buckets) as usize);
            while index != 0 {
                if self.is(index as usize, name) {
                    return Some(index as usize);
                }
                index = *table.add((buckets + index) as usize);
            }
            None
        }
    }
}

/// Whether a string is this text, up to its end.
unsafe fn is_text(string: *const c_char, text: &CStr) -> bool {
    let expected = text.to_bytes_with_nul().iter().enumerate();
    // SAFETY: the string ends with a zero, at which the comparison ends, too.
    expected.into_iter().all(|(at, &byte)| unsafe { *string.add(at) } as u8 == byte)
}
