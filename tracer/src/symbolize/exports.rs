//! The names under which an object's functions are known to its callers.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use object::read::elf::{ElfFile64, SectionHeader as _, Sym as _};
use object::{Endianness, ReadCache, elf};

/// Unmangled names are shorter than this.
const NAME_LIMIT: usize = 256;

/// The functions that an object exports. Of aliases (`puts` and `_IO_puts`) the one with the fewest leading
/// underscores counts, then the shortest. Names stay in the file: a large object exports hundreds of thousands.
#[derive(Debug, Default)]
pub(super) struct Exports {
    /// Address, and where in the file the name is; sorted.
    names: Vec<(u64, u64)>,
}

impl Exports {
    /// Reads the global functions of the dynamic symbol table, or of the full one where there is no dynamic one.
    pub(super) fn read(file: &File) -> io::Result<Self> {
        let cache = ReadCache::new(file);
        let elf = ElfFile64::<Endianness, _>::parse(&cache).map_err(io::Error::other)?;
        let endian = elf.endian();
        let dynamic = elf.elf_dynamic_symbol_table();
        let table = if dynamic.is_empty() { elf.elf_symbol_table() } else { dynamic };
        if table.is_empty() {
            return Ok(Self::default());
        }
        let strings = elf.elf_section_table().section(table.string_section()).map_err(io::Error::other)?;
        let strings = strings.sh_offset(endian);
        let mut names: Vec<(u64, u64)> = (table.iter())
            .filter(|symbol| {
                let function = matches!(symbol.st_type(), elf::STT_FUNC | elf::STT_GNU_IFUNC);
                function && symbol.st_bind() != elf::STB_LOCAL && symbol.st_shndx(endian) != elf::SHN_UNDEF
            })
            .map(|symbol| (symbol.st_value(endian), strings.saturating_add(symbol.st_name(endian).into())))
            .collect();
        names.sort_unstable();
        names.shrink_to_fit();
        Ok(Self { names })
    }

    /// The exported name of the function at `address`, unless its names are mangled.
    pub(super) fn get(&self, address: u64, file: &File) -> Option<String> {
        let first = self.names.partition_point(|&(at, _)| at < address);
        let aliases = self.names[first..].iter().take_while(|&&(at, _)| at == address);
        plainest(aliases.filter_map(|&(_, offset)| read_name(file, offset)))
    }
}

fn read_name(file: &File, offset: u64) -> Option<String> {
    let mut buffer = [0; NAME_LIMIT];
    let length = file.read_at(&mut buffer, offset).ok()?;
    let name = buffer[..length].split(|&byte| byte == 0).next().filter(|name| name.len() < length)?;
    Some(std::str::from_utf8(name).ok()?.to_owned())
}

fn plainest(names: impl Iterator<Item = String>) -> Option<String> {
    let underscores = |name: &str| name.len() - name.trim_start_matches('_').len();
    names
        .filter(|name| !name.is_empty() && !name.starts_with("_Z") && !name.starts_with("_R"))
        .min_by(|a, b| (underscores(a), a.len(), a).cmp(&(underscores(b), b.len(), b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_aliases_the_plainest_is_taken() {
        let plainest = |names: &[&str]| plainest(names.iter().map(|&name| name.to_owned()));
        assert_eq!(plainest(&["_IO_puts", "puts"]).as_deref(), Some("puts"));
        assert_eq!(plainest(&["aligned_alloc", "__libc_memalign", "memalign"]).as_deref(), Some("memalign"));
        assert_eq!(plainest(&["_ZN1S4pushEv", ""]), None);
    }
}
