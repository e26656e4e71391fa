//! The stacks that are known, and the thread that finds the names of their frames.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, mpsc::Receiver},
};

use anyhow::{Context as _, Result};
use tracer_ebpf::{process::ProcessIndex, stack::StackId, usdt::NO_API};

use crate::{
    drain::NewStack,
    plan::ApiId,
    symbolize::{CodeView, Names, Worker},
};

/// The known stacks and their names.
pub(super) struct Naming {
    /// None once it has finished.
    worker: Option<Worker>,
    names: Names,
    stacks: BTreeMap<StackId, NewStack>,
    /// Those whose last frame is in code that was not known when they were made.
    unnamed: Vec<StackId>,
}

impl Naming {
    pub fn by(worker: Worker) -> Self {
        let names = worker.names().clone();
        Self { worker: Some(worker), names, stacks: BTreeMap::new(), unnamed: Vec::new() }
    }

    /// The thread, while it works.
    pub fn worker(&self) -> Option<&Worker> {
        self.worker.as_ref()
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    pub fn stacks(&self) -> &BTreeMap<StackId, NewStack> {
        &self.stacks
    }

    /// The process that a stack was made in and the function that it called; of the first process where that is not known.
    pub fn function_of(&self, stack: StackId) -> (ProcessIndex, ApiId) {
        let unknown = || (ProcessIndex::default(), NO_API);
        let (process, api) = self.stacks.get(&stack).map_or_else(unknown, |stack| (stack.process, stack.api));
        (process, ApiId(api))
    }

    /// Takes a stack in. Its last frame can be named when its code is known.
    pub fn add(&mut self, stack: NewStack) {
        if stack.walked.last_is_unknown {
            self.unnamed.push(stack.id);
        } else if let Some(worker) = &self.worker {
            worker.name(&stack);
        }
        self.stacks.insert(stack.id, stack);
    }

    /// What processes have mapped from now on.
    pub fn add_code(&self, views: Vec<CodeView>) {
        if let Some(worker) = &self.worker {
            worker.add_code(views);
        }
    }

    /// Has stacks named that were made in code which was not known then.
    pub fn name_unnamed(&mut self, of_process: impl Fn(ProcessIndex) -> bool) {
        let Self { unnamed, stacks, worker: Some(worker), .. } = self else { return };
        unnamed.retain(|id| {
            let Some(stack) = stacks.get(id) else { return false };
            let is_due = of_process(stack.process);
            if is_due {
                worker.name(stack);
            }
            !is_due
        });
    }

    /// Waits until all that is known has its names.
    pub fn catch_up(&self) {
        if let Some(worker) = &self.worker {
            worker.catch_up();
        }
    }

    /// Says when all that is known has its names.
    pub fn caught_up(&self) -> Option<Receiver<()>> {
        self.worker.as_ref().map(Worker::caught_up)
    }

    /// Forgets stacks whose places were given to others.
    pub fn forget(&mut self, gone: Arc<HashSet<StackId>>) {
        self.stacks.retain(|id, _| !gone.contains(id));
        if let Some(worker) = &self.worker {
            worker.forget(gone);
        }
    }

    /// Ends the thread, once everything is named.
    pub fn finish(&mut self) -> Result<()> {
        self.name_unnamed(|_| true);
        let worker = self.worker.take().context("the session has been finished already")?;
        if let Err(error) = worker.finish() {
            log::error!("functions may lack names: {error:#}");
        }
        Ok(())
    }
}
