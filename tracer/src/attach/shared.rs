//! BPF arrays as memory of this process: read without a system call, while BPF programs change them.

use std::{io, marker::PhantomData, os::fd::AsFd, ptr::NonNull};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tracer_ebpf::{
    atomic::Word, counter::Stripe, live::LiveBucket, process::ProcessState, runtime::hotspot::SharedLayout,
    slots::SlotSet, stack::StackTotals, unwind::Chunk, usdt::Arguments,
};

/// Types that may be changed by others at any time: made of [`Word`]s alone, so any bytes are a value.
///
/// # Safety
/// Every field is a `Word`, or an array of them, and there is no padding.
pub unsafe trait Shared {}

// SAFETY: made of words, without padding; the sizes are asserted where the types are defined.
unsafe impl Shared for ProcessState {}
// SAFETY: as above.
unsafe impl Shared for SlotSet {}
// SAFETY: as above.
unsafe impl Shared for LiveBucket {}
// SAFETY: as above.
unsafe impl Shared for StackTotals {}
// SAFETY: as above.
unsafe impl Shared for Arguments {}
// SAFETY: as above.
unsafe impl Shared for Stripe {}
// SAFETY: as above.
unsafe impl Shared for Chunk {}
// SAFETY: as above.
unsafe impl Shared for SharedLayout {}
// SAFETY: it is the word that the others are made of.
unsafe impl Shared for Word {}
// SAFETY: as above.
unsafe impl<const N: usize> Shared for [Word; N] {}

/// An array of a BPF map that was made with `BPF_F_MMAPABLE`.
#[derive(Debug)]
pub struct SharedArray<T> {
    memory: NonNull<T>,
    length: usize,
    marker: PhantomData<T>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and `T: Shared` is changed atomically.
unsafe impl<T: Shared> Send for SharedArray<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for SharedArray<T> {}

impl<T: Shared> SharedArray<T> {
    /// Maps the `length` elements of a map.
    ///
    /// # Errors
    /// When the kernel refuses: the map is not mmapable, or smaller.
    pub fn map(map: impl AsFd, length: usize) -> io::Result<Self> {
        // The kernel lays elements out at multiples of 8 bytes.
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let bytes = length * size_of::<T>();
        // SAFETY: a new mapping at an address that the kernel chooses takes no memory of ours away.
        let memory = unsafe {
            mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, map, 0)?
        };
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory, length, marker: PhantomData })
    }

    /// The elements.
    #[must_use]
    pub fn elements(&self) -> &[T] {
        // SAFETY: the mapping holds `length` elements until `self` is dropped; any bytes are a `T`, and it changes by
        // whole words only, which `T` reads atomically.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.length) }
    }
}

impl<T> Drop for SharedArray<T> {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made; no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.memory.as_ptr().cast(), self.length * size_of::<T>()) };
        debug_assert!(unmapped.is_ok());
    }
}
