//! Words in the memory of a process that lead to its functions by another way while these are probed ([`Detour`]).

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use anyhow::{Context as _, Result, bail};

use crate::{
    model::{Address, Pid},
    plan::{Detour, ObjectPlan},
    target::{MappedObject, Target, while_held},
};

/// The words of a process that are to be changed, or are. They are as before when this is dropped.
#[derive(Default)]
pub struct Detours {
    words: Vec<Word>,
    /// Those that have been changed: the memory of the program that they were in, whatever the process executes later, and how many.
    taken: Option<(Arc<Target>, File, usize)>,
}

/// One of them: what it has, and what it is to have.
#[derive(Clone, Copy)]
struct Word {
    address: Address,
    usual: u64,
    detour: u64,
}

impl Detours {
    /// Those of a file are to be taken.
    pub fn add(&mut self, object: &MappedObject, plan: &ObjectPlan) {
        let Some(site) = plan.probes.first().map(|probe| probe.place.site()) else { return };
        let Some(place) = object.address_of(site.file_offset) else { return };
        let address = |svma: u64| place.0.wrapping_sub(site.svma()).wrapping_add(svma);
        self.words.extend(plan.detours.iter().map(|&Detour { slot, function, instead }| Word {
            address: Address(address(slot)),
            usual: address(function),
            detour: address(instead),
        }));
    }

    /// Changes the words that have not been. A process that is held stands still already.
    ///
    /// # Errors
    /// When it is gone, cannot be held, or has something else there.
    pub fn take(&mut self, target: &Arc<Target>, is_held: bool) -> Result<()> {
        let done = self.taken.as_ref().map_or(0, |(.., done)| *done);
        let new = self.words[done..].to_vec();
        if new.is_empty() {
            return Ok(());
        }
        let memory = target.open_memory().context("its memory cannot be written")?;
        for word in &new {
            let has = read_word(&memory, word.address).context("its memory cannot be read")?;
            // A fork has its parent's, and a tracer that was killed leaves them.
            if has != word.usual && has != word.detour {
                bail!(
                    "objects of Python cannot be followed: it has another allocator for them (PYTHONMALLOC, tracemalloc)"
                );
            }
        }
        // From now on some may have been.
        self.taken = Some((Arc::clone(target), memory, self.words.len()));
        let Some((_, memory, _)) = &self.taken else { return Ok(()) };
        let write = || {
            new.iter().try_for_each(|word| memory.write_all_at(&word.detour.to_ne_bytes(), word.address.0))
        };
        let written = if is_held { write() } else { while_held(target.pid(), write) };
        written
            .context("objects of Python cannot be followed: the table of their allocator cannot be changed")
    }

    fn give_back(&mut self) -> io::Result<()> {
        let Some((target, memory, done)) = self.taken.take() else { return Ok(()) };
        let words = &self.words[..done];
        let is_taken = |word: &&Word| read_word(&memory, word.address).is_ok_and(|has| has == word.detour);
        // Of a program that is gone nothing can be read.
        let taken: Vec<&Word> = words.iter().filter(is_taken).collect();
        if taken.is_empty() {
            return Ok(());
        }
        while_held(target.pid(), || {
            taken.iter().try_for_each(|word| memory.write_all_at(&word.usual.to_ne_bytes(), word.address.0))
        })
    }
}

impl Drop for Detours {
    fn drop(&mut self) {
        let pid = self.taken.as_ref().map_or(Pid(0), |(target, ..)| target.pid());
        if let Err(error) = self.give_back() {
            // They lead to the same functions.
            log::info!("process {pid} keeps the detours to its object allocator, which do no harm: {error}");
        }
    }
}

fn read_word(memory: &File, address: Address) -> io::Result<u64> {
    let mut bytes = [0; 8];
    memory.read_exact_at(&mut bytes, address.0)?;
    Ok(u64::from_ne_bytes(bytes))
}
