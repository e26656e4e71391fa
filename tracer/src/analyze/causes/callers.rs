//! By whom a stack's memory was asked for: its frames as functions, and which of them only allocate for their callers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::roles::{Role, bare_name, name_of};
use crate::analyze::{
    history::History,
    jit::{Judged, judge_as_one},
};
use crate::model::{Frame, Process, StackReport, Verdict};

/// A function: frames of one name in one module, whichever process they are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionId(u32);

/// What stands for stacks without frames.
const UNKNOWN: FunctionId = FunctionId(0);

/// A function, as it is named.
#[derive(Debug)]
struct Function {
    module: String,
    /// `module: function`, or `module+0xoffset`.
    place: String,
    /// Its name, if it has one.
    name: Option<String>,
    role: Role,
}

impl Function {
    /// Whether it is what a program begins with, which may allocate itself.
    fn is_main(&self) -> bool {
        self.name.as_deref().is_some_and(|name| name == "main" || name.ends_with("::main"))
    }
}

/// A stack as the functions that it goes through.
#[derive(Debug)]
pub struct Way {
    /// The program of its process, by number.
    pub program: usize,
    /// From the allocator outwards.
    functions: Vec<FunctionId>,
    /// The place of the one that asked.
    asked: usize,
    /// Those that may be blamed, each once, and how far from the one that asked it first is.
    pub blamable: Vec<(FunctionId, usize)>,
}

impl Way {
    /// The function that asked for the memory.
    pub fn asked(&self) -> FunctionId {
        self.functions.get(self.asked).copied().unwrap_or(UNKNOWN)
    }

    /// How many frames from the one that asked a function is.
    pub fn distance(&self, function: FunctionId) -> Option<usize> {
        self.blamable.iter().find(|(other, _)| *other == function).map(|(_, distance)| *distance)
    }

    /// What a function calls on this way; `None` where it asked itself.
    pub fn callee_of(&self, function: FunctionId) -> Option<FunctionId> {
        let below = self.distance(function)?.checked_sub(1)?;
        self.functions.get(self.asked + below).copied()
    }
}

/// The ways of all stacks.
#[derive(Debug)]
pub struct Ways {
    ways: Vec<Way>,
    functions: Vec<Function>,
    programs: usize,
}

impl Ways {
    /// Of these stacks. Their histories tell which callers of a function leak.
    pub fn of(stacks: &[Judged], history: &History, processes: &[Process]) -> Self {
        let mut names = Names::new(processes);
        let mut ways: Vec<Way> = stacks.iter().map(|judged| names.way(&judged.stack)).collect();
        let functions = names.functions;
        let mut wrappers = HashSet::new();
        /// Wrappers around wrappers; more than these are an odd way to write.
        const MOST_LEVELS: usize = 4;
        for _ in 0..MOST_LEVELS {
            ways.iter_mut().for_each(|way| way.asked = asked(&way.functions, &functions, &wrappers));
            let found = wrappers_by_use(stacks, history, &ways, &functions);
            let known = wrappers.len();
            wrappers.extend(found);
            if wrappers.len() == known {
                break;
            }
        }
        for way in &mut ways {
            way.blamable = blamable(way, &functions);
        }
        Self { ways, functions, programs: names.programs.len().max(1) }
    }

    /// The programs, by number.
    pub fn programs(&self) -> std::ops::Range<usize> {
        0..self.programs
    }

    pub fn of_stack(&self, index: usize) -> &Way {
        &self.ways[index]
    }

    /// What to call a function.
    pub fn place(&self, function: FunctionId) -> String {
        self.function(function).place.clone()
    }

    fn function(&self, function: FunctionId) -> &Function {
        &self.functions[function.0 as usize]
    }

    /// By which functions a function gets its memory, as most of it does: the one that it calls, and the one that allocates.
    pub fn by(&self, function: FunctionId, ways: &[(&Way, u64)]) -> Vec<String> {
        let below = |way: &Way| way.functions[..way.asked + way.distance(function).unwrap_or(0)].to_vec();
        let telling = |id: &FunctionId| {
            let function = self.function(*id);
            function.name.is_some()
                && !matches!(function.role, Role::Wrapper { quiet: true } | Role::Interpreter)
        };
        let mut outer: BTreeMap<FunctionId, u64> = BTreeMap::new();
        let mut inner: BTreeMap<FunctionId, u64> = BTreeMap::new();
        for &(way, weight) in ways {
            let below = below(way);
            if let Some(id) = below.iter().rev().find(|id| telling(id)) {
                *outer.entry(*id).or_default() += weight;
            }
            let allocates = way.functions[..way.asked.min(below.len())].iter().find(|id| telling(id));
            if let Some(id) = allocates {
                *inner.entry(*id).or_default() += weight;
            }
        }
        let all = ways.iter().map(|(_, weight)| *weight).fold(0, u64::saturating_add);
        let mut by: Vec<String> = [outer, inner]
            .iter()
            .filter_map(|weights| weights.iter().max_by_key(|(_, weight)| **weight))
            .filter(|(_, weight)| **weight >= all / 2)
            .filter_map(|(id, _)| self.function(*id).name.clone())
            .collect();
        by.dedup();
        by
    }

    /// For whom a function works, on the way that weighs most: the nearest caller with a name of another module, library or class;
    /// of a function without a name, the nearest caller that has one.
    pub fn caller(&self, function: FunctionId, ways: &[(&Way, u64)]) -> Option<String> {
        if function == UNKNOWN {
            return None;
        }
        let this = self.function(function);
        let (way, _) = ways.iter().max_by_key(|(_, weight)| *weight)?;
        let at = way.asked + way.distance(function).unwrap_or(0);
        let callers = way.functions.get(at + 1..)?.iter().map(|id| self.function(*id));
        let mut callers = callers.take_while(|caller| !matches!(caller.role, Role::Base | Role::Interpreter));
        let caller = callers.find(|caller| match (&this.name, &caller.name) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(own), Some(name)) => {
                matches!(caller.role, Role::Own | Role::Member(_))
                    && (caller.module != this.module || house(name) != house(own))
            }
        })?;
        Some(if caller.module == this.module { caller.name.clone()? } else { caller.place.clone() })
    }
}

/// What comes first in the names of all functions of a library or a class: `regex` of `regex::dfa::Cache::new`, `lxb` of
/// `lxb_css_memory_init`.
fn house(name: &str) -> &str {
    let name = name_of(name).trim_start_matches(['_', '<', '&']);
    let end = name.find("::").or_else(|| name.find('_')).unwrap_or(name.len());
    &name[..end]
}

/// Numbers functions, once each.
struct Names<'a> {
    processes: &'a [Process],
    functions: Vec<Function>,
    by_name: HashMap<(String, String), FunctionId>,
    /// Stacks share their frames: one is read once.
    by_frame: HashMap<(*const Frame, usize), FunctionId>,
    /// Names of programs, by number, and the name that the file of their code has.
    programs: Vec<Program>,
}

/// What processes run, and how it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Program {
    file: String,
    name: String,
}

impl Program {
    fn of(process: &Process) -> Self {
        let last = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
        let file = process.exe.as_deref().map_or_else(|| process.comm.clone(), last);
        // The kernel's name for it is that of the file that was executed, which may be a link to another: `redis-server` to
        // `redis-check-rdb`. Threads and programs rename themselves; then the command line does not begin so.
        // Behind their name some write over their command line what they do: `redis-server 127.0.0.1:6379`.
        let words = process.command.first().map(|path| [path.split(' ').next().unwrap_or(path), path]);
        let called = words.into_iter().flatten().map(last).find(|name| {
            !process.comm.is_empty() && name.starts_with(&process.comm) && !file.starts_with(&process.comm)
        });
        Self { name: called.unwrap_or_else(|| file.clone()), file }
    }
}

impl<'a> Names<'a> {
    fn new(processes: &'a [Process]) -> Self {
        let unknown = Function {
            module: String::new(),
            place: "an unknown place".to_owned(),
            name: None,
            role: Role::Own,
        };
        Self {
            processes,
            functions: vec![unknown],
            by_name: HashMap::new(),
            by_frame: HashMap::new(),
            programs: Vec::new(),
        }
    }

    fn way(&mut self, stack: &StackReport) -> Way {
        let process = self.processes.get(stack.process.map_or(0, |place| place as usize));
        let program =
            process.map(Program::of).unwrap_or(Program { file: String::new(), name: String::new() });
        let known = self.programs.iter().position(|other| *other == program);
        let program = known.unwrap_or_else(|| {
            self.programs.push(program);
            self.programs.len() - 1
        });
        // A script asks nobody for native memory: a native function does it on its behalf. Which function called that is said beside.
        let mut functions: Vec<FunctionId> = Vec::with_capacity(stack.frames.len());
        for frame in &stack.frames {
            match frame.language.as_deref() {
                Some("javascript" | "wasm") => {}
                // They stand where the interpreter's loop was.
                Some("python") => {
                    let python = self.python();
                    if functions.last() != Some(&python) {
                        functions.push(python);
                    }
                }
                _ => functions.push(self.function(frame, program)),
            }
        }
        Way { program, functions, asked: 0, blamable: Vec::new() }
    }

    /// The loop of Python's interpreter.
    fn python(&mut self) -> FunctionId {
        let name = "_PyEval_EvalFrameDefault".to_owned();
        let function = Function {
            role: Role::Interpreter,
            module: String::new(),
            place: name.clone(),
            name: Some(name),
        };
        self.by_name(function)
    }

    fn by_name(&mut self, function: Function) -> FunctionId {
        let name = (function.module.clone(), function.place.clone());
        let next = FunctionId(u32::try_from(self.functions.len()).unwrap_or(0));
        let id = *self.by_name.entry(name).or_insert(next);
        if id == next {
            self.functions.push(function);
        }
        id
    }

    fn function(&mut self, frame: &Arc<Frame>, program: usize) -> FunctionId {
        let key = (Arc::as_ptr(frame), program);
        if let Some(&id) = self.by_frame.get(&key) {
            return id;
        }
        let function = function_of(frame, &self.programs[program]);
        let id = self.by_name(function);
        self.by_frame.insert(key, id);
        id
    }
}

fn function_of(frame: &Frame, program: &Program) -> Function {
    let module = frame.module.clone().unwrap_or_default();
    let shown = if !module.is_empty() && module == program.file { &program.name } else { &module };
    let is_compiled = matches!(frame.language.as_deref(), Some("jit" | "java"));
    let place = match &frame.function {
        // Of code that is compiled as it runs the module says nothing.
        Some(function) if is_compiled => anew(function).to_owned(),
        Some(function) if module.is_empty() => bare_name(function).to_owned(),
        Some(function) => format!("{shown}: {}", bare_name(function)),
        None if module.is_empty() => frame.label(),
        None => frame.label().replacen(&*module, shown, 1),
    };
    let name = frame
        .function
        .as_deref()
        .map(|function| if is_compiled { anew(function).to_owned() } else { bare_name(function).to_owned() });
    Function { role: Role::of(frame), module, place, name }
}

/// The name of a compiled function, however often it has been compiled: V8 marks how well (`JS:*handle`).
fn anew(function: &str) -> &str {
    let name = ["JS:", "LazyCompile:", "Function:"].iter().find_map(|kind| function.strip_prefix(kind));
    match name {
        Some(name) => name.trim_start_matches(['*', '~', '^', '+']),
        None => name_of(function),
    }
}

/// The place of the function that asked for the memory: what allocates for its caller is passed over.
fn asked(way: &[FunctionId], functions: &[Function], wrappers: &HashSet<FunctionId>) -> usize {
    let function = |at: usize| way.get(at).map(|id| &functions[id.0 as usize]);
    let role = |at: usize| function(at).map(|function| function.role);
    let mut at = 0;
    loop {
        let before = at;
        while at + 1 < way.len() && is_passed_over(at, way, functions, wrappers) {
            at += 1;
        }
        if let Some(Role::Member(family)) = role(at) {
            let more = (at..way.len()).find(|&at| {
                !matches!(role(at), Some(Role::Member(other)) if other == family)
                    && !matches!(role(at), Some(Role::Wrapper { .. }))
            });
            if let Some(next) = more
                && matches!(role(next), Some(Role::Own | Role::Member(_)))
            {
                at = next;
            }
        }
        if at == before {
            break;
        }
    }
    let is_main = function(at).is_some_and(|function| function.role == Role::Base && function.is_main());
    match role(at) {
        // Of wrappers alone the outermost is blamed: better than where threads begin.
        Some(Role::Base | Role::Interpreter | Role::Wrapper { .. }) | None if !is_main => {
            let last =
                |is: fn(Role) -> bool| (0..way.len().min(at + 1)).rev().find(|&at| role(at).is_some_and(is));
            last(|role| matches!(role, Role::Own | Role::Member(_)))
                .or_else(|| last(|role| role == Role::Wrapper { quiet: false }))
                .unwrap_or(0)
        }
        _ => at,
    }
}

/// Whether a function allocates for its caller: by its name, by its use, or as a part without a name of one that does.
fn is_passed_over(
    at: usize,
    way: &[FunctionId],
    functions: &[Function],
    wrappers: &HashSet<FunctionId>,
) -> bool {
    /// So many parts of a wrapper are looked through.
    const PARTS: usize = 3;

    let function = |at: usize| way.get(at).map(|id| &functions[id.0 as usize]);
    let Some(this) = function(at) else { return false };
    if matches!(this.role, Role::Wrapper { .. }) || wrappers.contains(&way[at]) {
        return true;
    }
    let is_part = |at: usize| {
        function(at).is_some_and(|other| {
            let is_code_of_its_own = matches!(other.role, Role::Own | Role::Member(_));
            other.name.is_none() && other.module == this.module && is_code_of_its_own
        })
    };
    let next = (at..at + PARTS).find(|&at| !is_part(at)).unwrap_or(at);
    next > at
        && function(next)
            .is_some_and(|next| next.module == this.module && next.role == Role::Wrapper { quiet: false })
}

/// What may be blamed for a stack: the function that asked, and its callers up to where an interpreter or an event loop called them,
/// and from there on what is no runtime's.
fn blamable(way: &Way, functions: &[Function]) -> Vec<(FunctionId, usize)> {
    let mut found: Vec<(FunctionId, usize)> = Vec::new();
    let mut is_within = true;
    for (distance, id) in way.functions.get(way.asked..).unwrap_or_default().iter().enumerate() {
        let function = &functions[id.0 as usize];
        let may_be = match function.role {
            _ if distance == 0 => true,
            Role::Own => true,
            Role::Member(_) => is_within && function.name.is_some(),
            Role::Wrapper { .. } | Role::Interpreter | Role::Base => false,
        };
        is_within &= !matches!(function.role, Role::Interpreter | Role::Base);
        if may_be && !found.iter().any(|(other, _)| other == id) {
            found.push((*id, distance));
        }
    }
    if found.is_empty() {
        found.push((UNKNOWN, 0));
    }
    found
}

/// What goes through a function for one of its callers.
#[derive(Default)]
struct Use {
    stacks: Vec<usize>,
    allocated: u64,
    freed: u64,
}

/// The functions that allocate for their callers, by how they are used within their module: everything of it is allocated through
/// them, or some of their callers free what they get, and only others do not.
fn wrappers_by_use(
    stacks: &[Judged],
    history: &History,
    ways: &[Way],
    functions: &[Function],
) -> Vec<FunctionId> {
    let mut uses: BTreeMap<FunctionId, BTreeMap<FunctionId, Use>> = BTreeMap::new();
    let mut of_modules: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, way) in
        ways.iter().enumerate().filter(|(index, _)| stacks[*index].stack.kind.counts_by_default())
    {
        let asked = way.asked();
        let function = &functions[asked.0 as usize];
        *of_modules.entry(&function.module).or_default() += 1;
        let caller = way.functions.get(way.asked + 1..).unwrap_or_default().iter().find(|id| **id != asked);
        let Some(&caller) = caller else { continue };
        let of = &functions[caller.0 as usize];
        if function.role != Role::Own || of.role != Role::Own || of.module != function.module {
            continue;
        }
        let stack = &stacks[index].stack;
        let used = uses.entry(asked).or_default().entry(caller).or_default();
        used.stacks.push(index);
        used.allocated = used.allocated.saturating_add(stack.allocated_objects);
        used.freed = used.freed.saturating_add(stack.freed_objects);
    }
    let is_wrapper = |(&id, callers): (&FunctionId, &BTreeMap<FunctionId, Use>)| {
        let through: usize = callers.values().map(|used| used.stacks.len()).sum();
        let all = of_modules.get(&*functions[id.0 as usize].module).copied().unwrap_or(0);
        is_common(callers.len(), through, all) || is_blamed_on_callers(callers, stacks, history)
    };
    uses.iter().filter(|one| is_wrapper(*one)).map(|(&id, _)| id).collect()
}

/// Whether a module allocates nearly everything through a function that several call.
const fn is_common(callers: usize, stacks: usize, of_module: usize) -> bool {
    const SEVERAL: usize = 4;
    callers >= SEVERAL && stacks * 10 >= of_module * 9
}

/// Whether what some callers of a function get from it leaks, and others, as many at least, free what they get.
fn is_blamed_on_callers(callers: &BTreeMap<FunctionId, Use>, stacks: &[Judged], history: &History) -> bool {
    /// So many blocks show that a caller frees them.
    const ENOUGH: u64 = 32;

    let frees = |used: &&Use| used.allocated >= ENOUGH && used.freed >= used.allocated / 10 * 9;
    let clean = callers.values().filter(frees).count();
    if clean == 0 || callers.len() < 2 {
        return false;
    }
    let leaks = |used: &&Use| {
        !frees(used)
            && judge_as_one(used.stacks.iter().map(|&index| &stacks[index]), history).verdict
                == Verdict::Leaking
    };
    let leaking = callers.values().filter(leaks).count();
    leaking > 0 && leaking <= clean
}

/// `addon.node: Session::Open`, of the innermost frame that does not allocate for its caller.
#[must_use]
pub fn place_name(frames: &[Arc<Frame>]) -> String {
    let program = Program { file: String::new(), name: String::new() };
    let functions: Vec<Function> = frames.iter().map(|frame| function_of(frame, &program)).collect();
    let way: Vec<FunctionId> =
        (0..functions.len()).map(|at| FunctionId(u32::try_from(at).unwrap_or(0))).collect();
    let at = asked(&way, &functions, &HashSet::new());
    functions.get(at).map_or_else(|| "an unknown place".to_owned(), |function| function.place.clone())
}
