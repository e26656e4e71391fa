//! Threads by which a runtime works for itself: they compile what the program runs often, and collect what it let go.
//!
//! What they hold grows while a program warms up, for a minute or more, and evenly enough to look like a leak. Later it
//! grows if the program makes new code without end, which is one.

use std::sync::Arc;

use crate::model::Frame;

/// The functions that all work of such a thread is below.
const THREADS: &[&str] = &[
    // HotSpot
    "CompileBroker::compiler_thread_loop",
    "CompileBroker::invoke_compiler_on_method",
    "ConcurrentGCThread::run",
    "WorkerThread::run",
    "GangWorker::run",
    // V8
    "v8::internal::OptimizingCompileDispatcher::",
    "v8::internal::LazyCompileDispatcher::",
    "v8::internal::baseline::ConcurrentBaselineCompiler::",
    "v8::internal::maglev::MaglevConcurrentDispatcher::",
    "v8::internal::ConcurrentMarking::",
];

/// Whether a stack is one of such a thread.
#[must_use]
pub fn is_housekeeping(frames: &[Arc<Frame>]) -> bool {
    let is_of_thread = |name: &str| THREADS.iter().any(|thread| name.starts_with(thread));
    frames.iter().filter_map(|frame| frame.function.as_deref()).any(is_of_thread)
}
