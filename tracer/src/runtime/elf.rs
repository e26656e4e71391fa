//! Data of runtimes in their files.

use object::{Object as _, ObjectSection as _, SectionKind};

/// What the file has at an address; zeroes where it leaves it to the loader to put them there.
pub(super) fn data(elf: &object::File<'_>, address: u64, size: u64) -> Option<Vec<u8>> {
    let holds = |section: &object::Section<'_, '_>| {
        let offset = address.checked_sub(section.address());
        offset.and_then(|offset| offset.checked_add(size)).is_some_and(|end| end <= section.size())
    };
    let section = elf.sections().find(holds)?;
    if section.kind() == SectionKind::UninitializedData {
        return Some(vec![0; usize::try_from(size).ok()?]);
    }
    section.data_range(address, size).ok().flatten().map(<[u8]>::to_vec)
}
