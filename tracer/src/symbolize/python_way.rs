//! The functions by which CPython comes from one Python function to the other.
//!
//! They say how the interpreter works, and which of them a call passes changes as it gets hot; so they are folded away.

use std::rc::Rc;
use std::sync::Arc;

use super::{Module, Region, SeenFrame};
use crate::drain::RuntimeFrame;
use crate::model::Frame;

/// Where in a stack the interpreter's loop is.
pub(super) struct PythonWay {
    module: String,
    /// Places of the loop's frames: the innermost and the outermost.
    first: usize,
    last: usize,
    /// Each place of the loop, to find what it calls.
    loops: Vec<usize>,
    /// Whether the loop is made of functions that call each other in the last place.
    has_tail_calls: bool,
}

/// The interpreter's functions that call functions: exact names.
const CALLS: [&str; 29] = [
    "PyCFunction_Call",
    "PyEval_EvalCode",
    "PyEval_EvalCodeEx",
    "PyEval_EvalFrame",
    "PyEval_EvalFrameEx",
    "PyIter_Send",
    "PyObject_Call",
    "PyVectorcall_Call",
    "_PyEval_EvalCode",
    "_PyEval_EvalCodeWithName",
    "_PyEval_EvalFrame",
    "_PyEval_Vector",
    "_PyFunction_Vectorcall",
    "_PyObject_Call",
    "_PyObject_Call_Prepend",
    "_PyObject_MakeTpCall",
    "_PyVectorcall_Call",
    "call_function",
    "cfunction_call",
    "do_call_core",
    "function_code_fastcall",
    "gen_iternext",
    "gen_send_ex",
    "gen_send_ex2",
    "method_call",
    "method_vectorcall",
    "object_vacall",
    "py_trampoline_evaluator",
    "vectorcall_method",
];

/// And how others begin.
const CALLS_BEGIN: [&str; 7] = [
    "PyObject_Call",
    "PyObject_Vectorcall",
    "_PyFunction_FastCall",
    "_PyObject_Call",
    "_PyObject_FastCall",
    "_PyObject_Vectorcall",
    "cfunction_vectorcall_",
];

/// The loop of interpreters that are built with tail calls is made of these.
const PARTS_OF_LOOP: &str = "_TAIL_CALL_";

impl PythonWay {
    /// `None` for a stack without Python.
    pub(super) fn of(
        seen: &[SeenFrame],
        regions: &[Option<Region<Rc<Module>>>],
        has_tail_calls: bool,
    ) -> Option<Self> {
        let is_loop = |&index: &usize| seen[index].walked.runtime == RuntimeFrame::PythonLoop;
        let loops: Vec<usize> = (0..seen.len()).filter(is_loop).collect();
        let (&first, &last) = (loops.first()?, loops.last()?);
        let module = regions.get(first)?.as_ref()?.module.name.clone();
        Some(Self { module, first, last, loops, has_tail_calls })
    }

    /// Whether the frames at a place only lead from one Python function to the next.
    pub(super) fn leads_by(&self, index: usize, frames: &[Arc<Frame>]) -> bool {
        let is_between = self.first < index && index < self.last;
        let is_called_by_loop = self.loops.contains(&(index + 1));
        frames.iter().all(|frame| {
            let is_pythons = frame.module.as_ref() == Some(&self.module);
            match frame.function.as_deref() {
                // Made at run time for `python -X perf`, one for each function.
                Some(function) if frame.language.as_deref() == Some("jit") => function.starts_with("py::"),
                Some(function) => is_pythons && is_call(function),
                // Nothing is known of it but that it lies between; the files of distributions name few functions.
                None => is_pythons && (is_between || is_called_by_loop && self.has_tail_calls),
            }
        })
    }
}

fn is_call(function: &str) -> bool {
    CALLS.contains(&function)
        || CALLS_BEGIN.iter().any(|begin| function.starts_with(begin))
        || function.starts_with(PARTS_OF_LOOP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(module: &str, function: Option<&str>, language: Option<&str>) -> [Arc<Frame>; 1] {
        [Arc::new(Frame {
            module: Some(module.to_owned()),
            function: function.map(str::to_owned),
            language: language.map(str::to_owned),
            ..Frame::default()
        })]
    }

    #[test]
    fn the_way_from_one_function_to_the_next_is_told_from_functions_that_do_something() {
        // malloc's caller, a function of C, a call; the loop; a function of C; the loop; main
        let way = PythonWay {
            module: "python3.11".to_owned(),
            first: 3,
            last: 6,
            loops: vec![3, 6],
            has_tail_calls: false,
        };
        let leads = |index, module: &str, function| way.leads_by(index, &frame(module, function, Some("c")));
        assert!(leads(2, "python3.11", Some("_PyObject_MakeTpCall")));
        assert!(leads(2, "python3.11", Some("cfunction_vectorcall_FASTCALL")));
        assert!(!leads(2, "python3.11", Some("list_resize")));
        assert!(!leads(2, "_ctypes.so", Some("_PyObject_MakeTpCall")), "another's function of that name");
        assert!(
            leads(4, "python3.11", None) && !leads(7, "python3.11", None) && !leads(2, "python3.11", None)
        );
        assert!(!leads(4, "libffi.so.8", None));
        let trampoline = |function| way.leads_by(5, &frame("[anon]", Some(function), Some("jit")));
        assert!(trampoline("py::handle:/srv/leak.py") && !trampoline("JS:handle"));
        let of_tail_calls = PythonWay { has_tail_calls: true, ..way };
        assert!(of_tail_calls.leads_by(2, &frame("python3.11", None, None)), "a part of the loop");
        assert!(!of_tail_calls.leads_by(1, &frame("python3.11", None, None)));
    }
}
