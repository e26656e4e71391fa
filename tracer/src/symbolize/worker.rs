//! Threads that name stacks as they come.
//!
//! The first look into a large program takes up to seconds (its symbols are read then). Meanwhile events must be taken out of the
//! ring buffer, or it runs full: so symbols have a thread of their own. It names a stack at once when it arrives, while
//! the code is still mapped. What is in the memory of the process is gone sooner than code: another thread reads it before.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
};
use tracer_ebpf::{process::ProcessIndex, stack::StackId};

use super::{
    CodeView, Symbolizer,
    modules::SharedModules,
    runtimes::{RuntimeReader, SeenFrame},
};
use crate::drain::{NewStack, WalkedCode, WalkedFrame};
use crate::model::{Frame, Pid};
use crate::runtime::Unread;
use crate::target::Target;

/// What is named so far; more of it from moment to moment while the thread runs.
#[derive(Clone, Debug, Default)]
pub struct Names(Arc<Mutex<Named>>);

#[derive(Debug, Default)]
struct Named {
    stacks: HashMap<StackId, Vec<Arc<Frame>>>,
    unread: BTreeMap<Unread, u64>,
}

impl Names {
    /// The frames of a stack, leaf first, if it is named by now.
    #[must_use]
    pub fn frames(&self, id: StackId) -> Option<Vec<Arc<Frame>>> {
        self.lock().stacks.get(&id).cloned()
    }

    fn insert(&self, id: StackId, frames: Vec<Arc<Frame>>) {
        self.lock().stacks.insert(id, frames);
    }

    /// Why functions of language runtimes have no name, and in how many frames of distinct stacks.
    #[must_use]
    pub fn unread(&self) -> BTreeMap<Unread, u64> {
        self.lock().unread.clone()
    }

    fn add_unread(&self, unread: BTreeMap<Unread, u64>) {
        let mut named = self.lock();
        for (reason, frames) in unread {
            *named.unread.entry(reason).or_default() += frames;
        }
    }

    fn forget(&self, stacks: &HashSet<StackId>) {
        self.lock().stacks.retain(|id, _| !stacks.contains(id));
    }

    /// An entry is whole or absent, whatever happened to the thread.
    fn lock(&self) -> MutexGuard<'_, Named> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Job<F = WalkedFrame> {
    AddProcess(ProcessIndex, Pid),
    AddTarget(ProcessIndex, Arc<Target>),
    /// A child of the first process.
    Fork(ProcessIndex, ProcessIndex, Pid),
    Name {
        id: StackId,
        process: ProcessIndex,
        frames: Vec<F>,
        walked: WalkedCode,
    },
    Code(CodeView),
    /// What comes under these numbers from now on is other stacks.
    Forget(Arc<HashSet<StackId>>),
    /// Says so when everything before it is done.
    Answer(Sender<()>),
}

/// The threads, and the way to them.
#[derive(Debug)]
pub struct Worker {
    jobs: Sender<Job>,
    names: Names,
    threads: [JoinHandle<()>; 2],
}

impl Worker {
    /// Starts the threads. `native_frames` says that frames stay that only say how a language runtime works.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn start(native_frames: bool) -> io::Result<Self> {
        let (jobs, queue) = channel();
        let (seen, seen_queue) = channel();
        let names = Names::default();
        let (counted, filled) = (names.clone(), names.clone());
        let named = |name: &str| thread::Builder::new().name(name.into());
        let threads = [
            named("runtimes").spawn(move || read_runtimes(&queue, &seen, &counted))?,
            named("symbolize").spawn(move || name_stacks(&seen_queue, &filled, native_frames))?,
        ];
        Ok(Self { jobs, names, threads })
    }

    // A send fails only when the thread is gone; `finish` tells.

    /// Makes a process known by its index.
    pub fn add_process(&self, index: ProcessIndex, pid: Pid) {
        let _ = self.jobs.send(Job::AddProcess(index, pid));
    }

    /// Makes a process known that is held already.
    pub fn add_target(&self, index: ProcessIndex, target: &Arc<Target>) {
        let _ = self.jobs.send(Job::AddTarget(index, Arc::clone(target)));
    }

    /// Makes a process known that was forked: it has its parent's code, whether it can still be looked at or not.
    pub fn fork_process(&self, parent: ProcessIndex, child: ProcessIndex, pid: Pid) {
        let _ = self.jobs.send(Job::Fork(parent, child, pid));
    }

    /// Names the frames of a stack.
    pub fn name(&self, stack: &NewStack) {
        let &NewStack { id, process, walked, .. } = stack;
        let _ = self.jobs.send(Job::Name { id, process, frames: stack.frames.clone(), walked });
    }

    /// What processes have mapped from now on.
    pub fn add_code(&self, views: Vec<CodeView>) {
        for view in views {
            let _ = self.jobs.send(Job::Code(view));
        }
    }

    /// Forgets stacks; their numbers may be given to others.
    pub fn forget(&self, stacks: Arc<HashSet<StackId>>) {
        let _ = self.jobs.send(Job::Forget(stacks));
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
    /// When a thread has panicked.
    pub fn finish(self) -> io::Result<()> {
        drop(self.jobs);
        // Both are waited for: each ends when the one before it has.
        let has_panicked = self.threads.map(JoinHandle::join).iter().any(Result::is_err);
        if has_panicked { Err(io::Error::other("a thread that names stacks has panicked")) } else { Ok(()) }
    }
}

/// Reads what is in the memory of the processes, and passes the jobs on.
fn read_runtimes(queue: &Receiver<Job>, next: &Sender<Job<SeenFrame>>, names: &Names) {
    let mut reader = RuntimeReader::default();
    for job in queue {
        let job = match job {
            Job::AddProcess(index, pid) => {
                reader.add_process(index, pid);
                Job::AddProcess(index, pid)
            }
            Job::AddTarget(index, target) => {
                reader.add_process(index, target.pid());
                Job::AddTarget(index, target)
            }
            Job::Fork(parent, child, pid) => {
                reader.fork(parent, child, pid);
                Job::Fork(parent, child, pid)
            }
            Job::Code(view) => {
                reader.add_code(&view);
                Job::Code(view)
            }
            Job::Name { id, process, frames, walked } => {
                let frames = reader.see(process, &frames);
                names.add_unread(std::mem::take(&mut reader.unread));
                Job::Name { id, process, frames, walked }
            }
            Job::Forget(stacks) => Job::Forget(stacks),
            Job::Answer(answer) => Job::Answer(answer),
        };
        // It fails only when the other thread is gone; `finish` tells.
        let _ = next.send(job);
    }
}

/// Stacks that may have names later, with their processes, and when they were seen.
#[derive(Default)]
struct Late(Vec<(ProcessIndex, StackId, u64)>);

impl Late {
    /// Stacks that are looked at again.
    const MOST: usize = 4096;

    fn add(&mut self, process: ProcessIndex, id: StackId) {
        if self.0.len() < Self::MOST {
            self.0.push((process, id, monotonic_ns()));
        }
    }

    /// Names what can be named by now.
    fn name(&mut self, symbolizers: &mut HashMap<ProcessIndex, Symbolizer>, names: &Names) {
        let mut is_current = HashSet::new();
        self.0.retain(|&(process, id, seen)| {
            let (Some(symbolizer), Some(frames)) = (symbolizers.get_mut(&process), names.frames(id)) else {
                return false;
            };
            symbolizer.read_jit(&mut !is_current.insert(process));
            let frames = symbolizer.name_late(&frames, seen);
            let is_late = symbolizer.may_be_named_late(&frames);
            names.insert(id, frames);
            is_late
        });
    }

    fn forget(&mut self, stacks: &HashSet<StackId>) {
        self.0.retain(|(_, id, _)| !stacks.contains(id));
    }
}

/// The time by which runtimes write down when they made code.
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).unwrap_or_default()
}

fn name_stacks(queue: &Receiver<Job<SeenFrame>>, names: &Names, native_frames: bool) {
    let modules = SharedModules::default();
    let mut symbolizers: HashMap<ProcessIndex, Symbolizer> = HashMap::new();
    let mut late = Late::default();
    for job in queue {
        match job {
            Job::AddProcess(index, pid) => {
                symbolizers.insert(index, Symbolizer::new(pid, &modules, native_frames));
            }
            Job::AddTarget(index, target) => {
                symbolizers.insert(index, Symbolizer::of(Some(target), &modules, native_frames));
            }
            Job::Fork(parent, child, pid) => {
                let forked = symbolizers.get(&parent).map(|parent| parent.fork(pid));
                symbolizers
                    .insert(child, forked.unwrap_or_else(|| Symbolizer::new(pid, &modules, native_frames)));
            }
            Job::Name { id, process, frames, walked } => {
                let frames = match symbolizers.get_mut(&process) {
                    Some(symbolizer) => {
                        let frames = symbolizer.symbolize(&frames, walked);
                        if symbolizer.may_be_named_late(&frames) {
                            late.add(process, id);
                        }
                        frames
                    }
                    None => frames.iter().map(bare).collect(),
                };
                names.insert(id, frames);
            }
            Job::Forget(stacks) => {
                names.forget(&stacks);
                late.forget(&stacks);
            }
            Job::Answer(answer) => {
                late.name(&mut symbolizers, names);
                let _ = answer.send(());
            }
            Job::Code(view) => {
                if let Some(symbolizer) = symbolizers.get_mut(&view.process) {
                    symbolizer.add_code(&view);
                }
            }
        }
    }
    late.name(&mut symbolizers, names);
}

/// The frame of code of which nothing is known.
fn bare(frame: &SeenFrame) -> Arc<Frame> {
    Arc::new(Frame { ip: frame.walked.address, ..Frame::default() })
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::stop::Stop;

    use super::*;
    use crate::model::Address;

    #[test]
    fn forgotten_stacks_have_no_names() {
        let worker = Worker::start(false).unwrap();
        let name = |id, ip| {
            let frames = vec![Address(ip).into()];
            let (process, stop, walked) = (ProcessIndex::default(), Stop::Base, WalkedCode::default());
            worker.name(&NewStack { id: StackId::new(id), process, api: 0, stop, tid: 1, frames, walked });
        };
        name(7, 1);
        name(8, 2);
        worker.forget(Arc::new([StackId::new(7)].into()));
        name(9, 3);
        name(8, 4);
        let names = worker.names().clone();
        worker.finish().unwrap();
        let ips = [7, 8, 9].map(|id| names.frames(StackId::new(id)).map(|frames| frames[0].ip.0));
        assert_eq!(ips, [None, Some(4), Some(3)]);
    }
}
