//! Where a thread has its Python: the place of the thread's state in the thread's own memory.
//!
//! CPython keeps it in a variable of the C library's (`pthread_setspecific`), whose place depends on the library, and is the same in all
//! threads. So it is looked for: the interpreter lists its threads, and each says where its own memory is. Since 3.12 there is a variable of
//! the compiler's, too; but that is empty while a thread has released the lock of the interpreter, as it does around most calls of C that
//! take long, so it serves only where there is nothing else (musl).

use std::collections::BTreeSet;

use super::Located;
use crate::runtime::ProcessMemory;

/// The objects of an interpreter are not where those of its version are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its threads are not where those of this version are")]
pub struct Misfit;

/// The part of a thread's own memory that is looked at.
const FIRST: i16 = -0x200;
const LAST: i16 = 0x900;
/// More interpreters and threads are not looked at.
const MOST_INTERPRETERS: usize = 16;
const MOST_THREADS: usize = 64;

/// Where the state of a thread is, from the beginning of its own memory. `None` while no thread runs Python yet.
///
/// # Errors
/// When the interpreter is not as it should be.
pub fn thread_state(located: &Located, memory: &dyn ProcessMemory) -> Result<Option<i16>, Misfit> {
    let threads = listed(located, memory)?;
    let mut places: Option<BTreeSet<i16>> = None;
    for &(state, own) in &threads {
        let found = places_of(state, own, memory);
        places = Some(match places {
            None => found,
            // One that is just ending has none any more.
            Some(places) if found.is_empty() => places,
            Some(places) if places.is_empty() => found,
            Some(places) => places.intersection(&found).copied().collect(),
        });
    }
    let Some(places) = places else { return Ok(None) };
    let place = places.iter().find(|&&place| place > 0).or(places.first());
    place.copied().map(Some).ok_or(Misfit)
}

/// The states of threads, each with where the thread's own memory is.
fn listed(located: &Located, memory: &dyn ProcessMemory) -> Result<Vec<(u64, u64)>, Misfit> {
    let places = &located.build.threads;
    let read = |address: u64, offset: u64| memory.read(address.wrapping_add(offset)).ok_or(Misfit);
    let mut listed = Vec::new();
    let mut interpreter = read(places.runtime.wrapping_add(located.bias), places.interpreters)?;
    for _ in 0..MOST_INTERPRETERS {
        if interpreter == 0 {
            break;
        }
        let mut state = read(interpreter, places.first_thread)?;
        for _ in 0..MOST_THREADS {
            if state == 0 {
                break;
            }
            let own = read(state, places.thread_id)?;
            // It is 0 until the thread is bound to its state. Both C libraries have the address of a thread's own memory at its beginning.
            if own != 0 {
                if read(own, 0)? != own {
                    return Err(Misfit);
                }
                listed.push((state, own));
            }
            state = read(state, places.next_thread)?;
        }
        interpreter = read(interpreter, places.next_interpreter)?;
    }
    Ok(listed)
}

fn places_of(state: u64, own: u64, memory: &dyn ProcessMemory) -> BTreeSet<i16> {
    const AT_ONCE: usize = 128;
    let mut places = BTreeSet::new();
    for part in (FIRST..LAST).step_by(AT_ONCE) {
        let mut bytes = [0; AT_ONCE];
        // The memory may end there.
        if !memory.read_bytes(own.wrapping_add_signed(part.into()), &mut bytes) {
            continue;
        }
        let words = bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word));
        places.extend(
            (part..).step_by(8).zip(words).filter(|&(_, word)| word == state).map(|(place, _)| place),
        );
    }
    places
}
