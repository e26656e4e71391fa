//! Where the interpreter's loop is beside its function: compilers put apart what is rarely run, and that part has no name in files that
//! were stripped.

use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindSection as _};
use iced_x86::{Decoder, DecoderOptions, FlowControl};
use object::{Object as _, ObjectSection as _};

/// Address and length of the part that is apart: what the function jumps into the midst of. A jump to the beginning may be the call of
/// another function in the last place.
pub(super) fn cold_part(bytes: &[u8], function: (u64, u32)) -> Option<(u64, u32)> {
    let elf = object::File::parse(bytes).ok()?;
    let targets = jumps_out_of(&elf, function)?;
    let section = elf.section_by_name(".eh_frame")?;
    let frames = section.data().ok()?;
    let mut frames = EhFrame::new(frames, LittleEndian);
    frames.set_address_size(8);
    let bases = BaseAddresses::default().set_eh_frame(section.address());
    let mut entries = frames.entries(&bases);
    let mut parts = Vec::new();
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let Ok(entry) = partial.parse(EhFrame::cie_from_offset) else { continue };
        let (start, end) = (entry.initial_address(), entry.end_address());
        let within = targets.iter().filter(|&&target| start < target && target < end).count();
        if within > 0 && start != function.0 {
            parts.push((within, start, u32::try_from(end - start).ok()?));
        }
    }
    let (_, start, length) = parts.into_iter().max()?;
    Some((start, length))
}

fn jumps_out_of(elf: &object::File<'_>, (start, length): (u64, u32)) -> Option<Vec<u64>> {
    let text = elf
        .sections()
        .find(|section| start.checked_sub(section.address()).is_some_and(|offset| offset < section.size()))?;
    let code = text.data_range(start, length.into()).ok()??;
    let within = start..start + u64::from(length);
    let decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    let jumps = decoder.into_iter().filter(|instruction| {
        matches!(
            instruction.flow_control(),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
        )
    });
    Some(jumps.map(|jump| jump.near_branch_target()).filter(|target| !within.contains(target)).collect())
}
