//! A thread that names stacks as they come.
//!
//! The first look into a large program takes up to seconds (its symbols are read then). Meanwhile events must be taken out of the
//! ring buffer, or it runs full: so symbols have a thread of their own. It names a stack at once when it arrives, while
//! the code is still mapped.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
};

use super::Symbolizer;
use crate::model::{Address, Frame, Pid};

/// Stacks by number, with the names of their frames.
pub type NamedStacks = HashMap<u32, Vec<Arc<Frame>>>;

enum Job {
    AddProcess(u16, Pid),
    Name { number: u32, process: u16, frames: Vec<Address> },
    MappingsChanged(u16),
}

/// The thread, and the way to it.
#[derive(Debug)]
pub struct Worker {
    jobs: Sender<Job>,
    thread: JoinHandle<NamedStacks>,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn start() -> io::Result<Self> {
        let (jobs, queue) = channel();
        let thread = thread::Builder::new().name("symbolize".into()).spawn(move || name_stacks(&queue))?;
        Ok(Self { jobs, thread })
    }

    // A send fails only when the thread is gone; `finish` tells.

    /// Makes a process known by its index.
    pub fn add_process(&self, index: u16, pid: Pid) {
        let _ = self.jobs.send(Job::AddProcess(index, pid));
    }

    /// Names the frames of a stack.
    pub fn name(&self, number: u32, process: u16, frames: Vec<Address>) {
        let _ = self.jobs.send(Job::Name { number, process, frames });
    }

    /// A process has mapped or unmapped code.
    pub fn mappings_changed(&self, process: u16) {
        let _ = self.jobs.send(Job::MappingsChanged(process));
    }

    /// Waits until everything is named.
    ///
    /// # Errors
    /// When the thread has panicked.
    pub fn finish(self) -> io::Result<NamedStacks> {
        drop(self.jobs);
        self.thread.join().map_err(|_| io::Error::other("the thread that names stacks has panicked"))
    }
}

/// Opens what is mapped, so that it can be read when the process is gone.
fn look_ahead(symbolizer: &mut Symbolizer) {
    symbolizer.symbolize(&[]);
}

fn name_stacks(queue: &Receiver<Job>) -> NamedStacks {
    let mut symbolizers: HashMap<u16, Symbolizer> = HashMap::new();
    let mut named = NamedStacks::new();
    for job in queue {
        match job {
            Job::AddProcess(index, pid) => {
                let mut symbolizer = Symbolizer::new(pid);
                look_ahead(&mut symbolizer);
                symbolizers.insert(index, symbolizer);
            }
            Job::Name { number, process, frames } => {
                let frames = match symbolizers.get_mut(&process) {
                    Some(symbolizer) => symbolizer.symbolize(&frames),
                    None => frames.iter().map(|&ip| Frame { ip, ..Frame::default() }).collect(),
                };
                named.insert(number, frames.into_iter().map(Arc::new).collect());
            }
            Job::MappingsChanged(process) => {
                if let Some(symbolizer) = symbolizers.get_mut(&process) {
                    symbolizer.mappings_changed();
                    look_ahead(symbolizer);
                }
            }
        }
    }
    named
}
