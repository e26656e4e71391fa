//! `PAGEMAP_SCAN`, the system interface that lists the present pages of a range without a word for each absent one
//! (Linux 6.7; `include/uapi/linux/fs.h`, `Documentation/admin-guide/mm/pagemap.rst`).

use std::ffi::c_void;
use std::marker::PhantomData;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

use crate::model::{Address, AddressRange};

/// The page is in memory.
const PAGE_IS_PRESENT: u64 = 1 << 3;
/// It is part of a huge page.
const PAGE_IS_HUGE: u64 = 1 << 6;
/// It is the one zero page that every untouched page reads from; no memory of the process, and not in its RSS.
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// `struct page_region`: neighbouring pages of the same categories.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

const _: () = assert!(size_of::<PageRegion>() == 24);

impl PageRegion {
    /// Where it is.
    pub(super) const fn range(&self) -> AddressRange {
        AddressRange { start: Address(self.start), end: Address(self.end) }
    }
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct ScanArg<'a> {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
    buffer: PhantomData<&'a mut [PageRegion]>,
}

const _: () = assert!(size_of::<ScanArg<'_>>() == 96);

impl<'a> ScanArg<'a> {
    /// Asks for the present pages of `range`.
    fn of_present_pages(range: AddressRange, buffer: &'a mut [PageRegion]) -> Self {
        Self {
            size: size_of::<Self>() as u64,
            flags: 0,
            start: range.start.0,
            end: range.end.0,
            walk_end: 0,
            regions: buffer.as_mut_ptr() as u64,
            regions_len: buffer.len() as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: PAGE_IS_PRESENT,
            category_anyof_mask: 0,
            return_mask: PAGE_IS_PRESENT,
            buffer: PhantomData,
        }
    }
}

// SAFETY: `PAGEMAP_SCAN` is `_IOWR('f', 16, struct pm_scan_arg)`, the opcode below; `ScanArg` is that structure and
// borrows, for as long as it lives, the buffer that its `regions` and `regions_len` describe and that the kernel writes
// `page_region`s to. `flags` is 0, so no page of the target is changed. On any other descriptor than a pagemap the
// opcode means nothing and is refused.
unsafe impl Ioctl for ScanArg<'_> {
    /// How many regions were written to the buffer.
    type Output = usize;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<ScanArg<'_>>(b'f', 16)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut *self).cast()
    }

    unsafe fn output_from_ptr(regions: IoctlOutput, _argument: *mut c_void) -> rustix::io::Result<usize> {
        usize::try_from(regions).map_err(|_| Errno::INVAL)
    }
}

/// Whether the first page of `range` is part of a huge page.
///
/// # Errors
/// As [`scan`].
pub(super) fn is_huge(pagemap: impl AsFd, range: AddressRange) -> Result<bool, Errno> {
    let mut buffer = [PageRegion::default()];
    let argument = ScanArg {
        max_pages: 1,
        category_mask: PAGE_IS_PRESENT | PAGE_IS_HUGE,
        ..ScanArg::of_present_pages(range, &mut buffer)
    };
    // SAFETY: `ScanArg` is the argument of this call, see its `Ioctl` implementation.
    Ok(unsafe { ioctl(pagemap, argument) }? > 0)
}

/// Finds the resident pages of `range` in the process whose `/proc/PID/pagemap` is given. Returns the regions, and
/// where to go on when the buffer could not hold them all.
///
/// # Errors
/// `ENOTTY` where the kernel has no such call; `ESRCH` when the process has no memory any more.
pub(super) fn scan(
    pagemap: impl AsFd,
    range: AddressRange,
    buffer: &mut [PageRegion],
) -> Result<(&[PageRegion], Option<Address>), Errno> {
    let argument = ScanArg {
        category_inverted: PAGE_IS_PFNZERO,
        category_mask: PAGE_IS_PRESENT | PAGE_IS_PFNZERO,
        ..ScanArg::of_present_pages(range, buffer)
    };
    // SAFETY: `ScanArg` is the argument of this call, see its `Ioctl` implementation.
    let count = unsafe { ioctl(pagemap, argument) }?;
    let regions = &buffer[..count.min(buffer.len())];
    // Not `walk_end`: after a complete walk of more than 512 regions it is where the kernel last flushed its own buffer
    // (seen on 6.18; `do_pagemap_scan` in fs/proc/task_mmu.c), and going on from there would count pages twice.
    // A walk that ended early has filled the buffer.
    let full = regions.len() == buffer.len();
    Ok((regions, regions.last().filter(|_| full).map(|region| Address(region.end))))
}
