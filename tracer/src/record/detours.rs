//! Words in the memory of a process that lead to its functions by another way while these are probed ([`Detour`]).

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use anyhow::{Context as _, Result, bail};

use crate::{
    model::Address,
    plan::{Detour, ObjectPlan},
    target::{MappedObject, Target, while_held},
};

/// The words of a process that are to be changed, or are. They are as before when this is dropped.
#[derive(Default)]
pub struct Detours {
    words: Vec<Word>,
    /// How many of them have been looked at.
    done: usize,
    taken: Option<Taken>,
}

/// Words that lead another way now.
struct Taken {
    target: Arc<Target>,
    /// The memory of the program that they are in, whatever the process executes later.
    memory: File,
    words: Vec<Word>,
}

/// Who is to take detours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taker {
    /// A process that runs.
    Running,
    /// A child of one. It has what its parent had, and may even have its memory (vfork(2)): that is the parent's to give back.
    Child,
    /// A launched command that stands still.
    Held,
}

/// One of them: what it has usually, and what it is to have.
#[derive(Clone, Copy)]
struct Word {
    address: Address,
    usual: u64,
    detour: u64,
    /// As it was found.
    has: u64,
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
            has: 0,
        }));
    }

    /// Changes the words that have not been.
    ///
    /// # Errors
    /// When the process is gone, cannot be held, or has something else there.
    pub fn take(&mut self, target: &Arc<Target>, taker: Taker) -> Result<()> {
        let mut new = self.words[self.done..].to_vec();
        if new.is_empty() {
            return Ok(());
        }
        let memory = target.open_memory().context("its memory cannot be written")?;
        for word in &mut new {
            word.has = read_word(&memory, word.address).context("its memory cannot be read")?;
            // A tracer that was killed leaves detours.
            if word.has != word.usual && word.has != word.detour {
                bail!(
                    "objects of Python cannot be followed: it has another allocator for them (PYTHONMALLOC, tracemalloc)"
                );
            }
        }
        self.done = self.words.len();
        if taker == Taker::Child {
            new.retain(|word| word.has == word.usual);
        }
        let has_usual = new.iter().any(|word| word.has == word.usual);
        // From now on some may have been changed.
        let mut words = self.taken.take().map_or_else(Vec::new, |taken| taken.words);
        words.extend(&new);
        let taken = self.taken.insert(Taken { target: Arc::clone(target), memory, words });
        let write = || write_all(&taken.memory, &new, |word| word.detour);
        let written = match taker {
            _ if !has_usual => Ok(()),
            Taker::Held => write(),
            Taker::Running | Taker::Child => while_held(target.pid(), write),
        };
        written
            .context("objects of Python cannot be followed: the table of their allocator cannot be changed")
    }
}

impl Taken {
    fn give_back(&self) -> io::Result<()> {
        let is_taken =
            |word: &&Word| read_word(&self.memory, word.address).is_ok_and(|has| has == word.detour);
        // Of a program that is gone nothing can be read.
        let taken: Vec<Word> = self.words.iter().filter(is_taken).copied().collect();
        if taken.is_empty() {
            return Ok(());
        }
        while_held(self.target.pid(), || write_all(&self.memory, &taken, |word| word.usual))
    }
}

fn write_all(memory: &File, words: &[Word], value: impl Fn(&Word) -> u64) -> io::Result<()> {
    words.iter().try_for_each(|word| memory.write_all_at(&value(word).to_ne_bytes(), word.address.0))
}

impl Drop for Detours {
    fn drop(&mut self) {
        if let Some(taken) = &self.taken
            && let Err(error) = taken.give_back()
        {
            // They lead to the same functions.
            let pid = taken.target.pid();
            log::info!("process {pid} keeps the detours to its object allocator, which do no harm: {error}");
        }
    }
}

fn read_word(memory: &File, address: Address) -> io::Result<u64> {
    let mut bytes = [0; 8];
    memory.read_exact_at(&mut bytes, address.0)?;
    Ok(u64::from_ne_bytes(bytes))
}
