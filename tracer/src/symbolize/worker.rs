//! A thread that names stacks as they come.
//!
//! The first look into a large program takes up to seconds (its symbols are read then). Meanwhile events must be taken out of the
//! ring buffer, or it runs full: so symbols have a thread of their own. It names a stack at once when it arrives, while
//! the code is still mapped.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
};

use super::Symbolizer;
use crate::model::{Address, Frame, Pid};

/// What is named so far; more of it from moment to moment while the thread runs.
#[derive(Clone, Debug, Default)]
pub struct Names(Arc<Mutex<HashMap<u32, Vec<Arc<Frame>>>>>);

impl Names {
    /// The frames of a stack, leaf first, if it is named by now.
    #[must_use]
    pub fn frames(&self, number: u32) -> Option<Vec<Arc<Frame>>> {
        self.lock().get(&number).cloned()
    }

    fn insert(&self, number: u32, frames: Vec<Arc<Frame>>) {
        self.lock().insert(number, frames);
    }

    fn forget(&self, stacks: &HashSet<u32>) {
        self.lock().retain(|number, _| !stacks.contains(number));
    }

    /// An entry is whole or absent, whatever happened to the thread.
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Vec<Arc<Frame>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Job {
    AddProcess(u16, Pid),
    Name {
        number: u32,
        process: u16,
        frames: Vec<Address>,
    },
    /// What comes under these numbers from now on is other stacks.
    Forget(Arc<HashSet<u32>>),
    MappingsChanged(u16),
    /// Says so when everything before it is done.
    Answer(Sender<()>),
}

/// The thread, and the way to it.
#[derive(Debug)]
pub struct Worker {
    jobs: Sender<Job>,
    names: Names,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn start() -> io::Result<Self> {
        let (jobs, queue) = channel();
        let names = Names::default();
        let filled = names.clone();
        let thread =
            thread::Builder::new().name("symbolize".into()).spawn(move || name_stacks(&queue, &filled))?;
        Ok(Self { jobs, names, thread })
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

    /// Forgets stacks; their numbers may be given to others.
    pub fn forget(&self, stacks: Arc<HashSet<u32>>) {
        let _ = self.jobs.send(Job::Forget(stacks));
    }

    /// A process has mapped or unmapped code.
    pub fn mappings_changed(&self, process: u16) {
        let _ = self.jobs.send(Job::MappingsChanged(process));
    }

    /// Waits until everything that was asked for is done.
    pub fn catch_up(&self) {
        // An error says that the thread is gone; `finish` tells.
        let _ = self.caught_up().recv();
    }

    /// Says so when everything that was asked for by now is done; an error says that the thread is gone.
    #[must_use]
    pub fn caught_up(&self) -> Receiver<()> {
        let (answer, answered) = channel();
        let _ = self.jobs.send(Job::Answer(answer));
        answered
    }

    /// What it has named, and goes on naming.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Waits until everything is named.
    ///
    /// # Errors
    /// When the thread has panicked.
    pub fn finish(self) -> io::Result<()> {
        drop(self.jobs);
        let ended = self.thread.join();
        ended.map_err(|_| io::Error::other("the thread that names stacks has panicked"))
    }
}

/// Opens what is mapped, so that it can be read when the process is gone.
fn look_ahead(symbolizer: &mut Symbolizer) {
    symbolizer.symbolize(&[]);
}

fn name_stacks(queue: &Receiver<Job>, names: &Names) {
    let mut symbolizers: HashMap<u16, Symbolizer> = HashMap::new();
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
                    None => frames.iter().map(|&ip| Arc::new(Frame { ip, ..Frame::default() })).collect(),
                };
                names.insert(number, frames);
            }
            Job::Forget(stacks) => names.forget(&stacks),
            Job::Answer(answer) => {
                let _ = answer.send(());
            }
            Job::MappingsChanged(process) => {
                if let Some(symbolizer) = symbolizers.get_mut(&process) {
                    symbolizer.mappings_changed();
                    look_ahead(symbolizer);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgotten_stacks_have_no_names() {
        let worker = Worker::start().unwrap();
        let name = |number, ip| worker.name(number, 0, vec![Address(ip)]);
        name(7, 1);
        name(8, 2);
        worker.forget(Arc::new([7].into()));
        name(9, 3);
        name(8, 4);
        let names = worker.names().clone();
        worker.finish().unwrap();
        let ips = [7, 8, 9].map(|number| names.frames(number).map(|frames| frames[0].ip.0));
        assert_eq!(ips, [None, Some(4), Some(3)]);
    }
}
