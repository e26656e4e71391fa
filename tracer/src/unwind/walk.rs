//! The walk, run on the host: what the BPF programs do with their maps, over tables in memory.
//!
//! For tests and for recorded stacks; it shares everything but the maps with the walk in the kernel.

use tracer_ebpf::stop::Stop;
use tracer_ebpf::unwind::{Frame, Mapping, Memory, Registers, Rule, Search, step};

use super::Table;

/// The most frames that a walk gives; a deeper stack ends with [`Stop::TooDeep`].
pub const MAX_FRAMES: usize = 127;

/// The executable mappings of a process, and the tables of their files.
#[derive(Clone, Debug, Default)]
pub struct CodeMap {
    mappings: Vec<Mapping>,
    tables: Vec<Table>,
}

/// Two mappings hold the same address, or one ends before it begins: no process is like that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the mapping at {0:#x} overlaps another one")]
pub struct OverlappingMappings(pub u64);

impl CodeMap {
    /// Mappings in any order; their `table` is an index into `tables`, or one of [`Mapping`]'s constants.
    ///
    /// # Errors
    /// When mappings overlap.
    pub fn new(mut mappings: Vec<Mapping>, tables: Vec<Table>) -> Result<Self, OverlappingMappings> {
        mappings.sort_by_key(|mapping| mapping.start);
        let mut end = 0;
        for mapping in &mappings {
            if mapping.start < end || mapping.end <= mapping.start {
                return Err(OverlappingMappings(mapping.start));
            }
            end = mapping.end;
        }
        Ok(Self { mappings, tables })
    }

    /// The mapping that holds an address.
    #[must_use]
    pub fn mapping(&self, avma: u64) -> Option<&Mapping> {
        let mut search = Search::new(0, u32::try_from(self.mappings.len()).ok()?);
        while let Some(probe) = search.probe() {
            search.narrow(probe, self.mappings[probe as usize].start > avma);
        }
        self.mappings.get(search.last()? as usize).filter(|mapping| mapping.contains(avma))
    }

    /// The rule at an address; [`Rule::NO_TABLE`] for code that no table covers.
    ///
    /// # Errors
    /// [`Stop::NotCode`] where nothing executable is mapped, or another reason why there is no rule.
    pub fn rule(&self, avma: u64) -> Result<Rule, Stop> {
        let mapping = self.mapping(avma).ok_or(Stop::NotCode)?;
        match mapping.table {
            Mapping::NO_TABLE => Ok(Rule::NO_TABLE),
            Mapping::NOT_READY => Err(Stop::TableNotReady),
            table => {
                let table = self.tables.get(table as usize).ok_or(Stop::NoTable)?;
                Ok(table.lookup(mapping.svma(avma)))
            }
        }
    }

    /// Walks a stack from the registers of a stopped thread.
    #[must_use]
    pub fn walk(&self, registers: Registers, memory: &impl Memory) -> Walk {
        let mut frames = Vec::new();
        let mut frame = Frame::first(registers);
        loop {
            if frames.len() == MAX_FRAMES {
                return Walk { frames, stop: Stop::TooDeep };
            }
            let rule = match self.rule(frame.lookup_address()) {
                Err(Stop::NotCode) => return Walk { frames, stop: frame.not_code() },
                rule => rule,
            };
            frames.push(frame);
            frame = match rule.and_then(|rule| step(rule, frame, memory)) {
                Ok(caller) => caller,
                Err(stop) => return Walk { frames, stop },
            };
        }
    }
}

/// A walked stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Leaf first; the first is where the walk began.
    pub frames: Vec<Frame>,
    /// Why it ended.
    pub stop: Stop,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tracer_ebpf::unwind::{Cfa, PAGE_SIZE, SavedBp, Via};

    use super::super::table::tests::table_of;
    use super::*;

    const CODE: u64 = 0x5555_0000_0000;
    const STACK: u64 = 0x7ffe_0000_0000;

    /// A stack whose lowest word is at [`STACK`].
    #[derive(Debug)]
    struct Words(Vec<u64>);

    impl Memory for Words {
        fn read(&self, address: u64) -> Option<u64> {
            let offset = address.checked_sub(STACK)?;
            let word = usize::try_from(offset / 8).ok()?;
            if offset % 8 == 0 { self.0.get(word).copied() } else { None }
        }
    }

    /// 16 bytes of code for each rule, mapped at [`CODE`], and a page of code without a table after them.
    fn code_of(rules: &[Rule]) -> CodeMap {
        let rows: Vec<_> = rules.iter().enumerate().map(|(index, &rule)| (index as u32 * 16, rule)).collect();
        let end = CODE + 16 * rules.len() as u64;
        let jit = CODE + 0x10_0000;
        let mapping = |start, end, table| Mapping { start, end, bias: CODE, table, file: 0 };
        let mappings = vec![
            mapping(jit, jit + 0x1000, Mapping::NO_TABLE),
            mapping(CODE, end, 0),
            mapping(jit + 0x1000, jit + 0x2000, Mapping::NOT_READY),
        ];
        CodeMap::new(mappings, vec![table_of(&rows, 16 * rules.len() as u32)]).expect("apart")
    }

    /// A return address in the code of the rule with that index.
    fn ip(index: u64) -> u64 {
        CODE + 16 * index + 8
    }

    const JIT: u64 = CODE + 0x10_0008;

    fn rule(cfa: Cfa, bp: SavedBp) -> Rule {
        Rule::new(cfa, bp).expect("fits")
    }

    fn walk(rules: &[Rule], words: Vec<u64>, ip: u64, bp: u64) -> (Vec<u64>, Stop) {
        let walk = code_of(rules).walk(Registers { ip, sp: STACK, bp }, &Words(words));
        (walk.frames.iter().map(|frame| frame.registers.ip).collect(), walk.stop)
    }

    #[test]
    fn a_walk_crosses_between_tables_and_frame_pointers() {
        let rules =
            [rule(Cfa::Sp(24), SavedBp::AtCfa(-16)), rule(Cfa::Bp(16), SavedBp::AtCfa(-16)), Rule::BASE];
        // A leaf that saved bp; compiled code with a frame pointer; a function with one and a table; the base.
        let words = vec![0, STACK + 0x20, JIT, 0, STACK + 0x38, ip(1), 0, 0, ip(2)];
        assert_eq!(walk(&rules, words, ip(0), 7), (vec![ip(0), JIT, ip(1), ip(2)], Stop::Base));
    }

    #[test]
    fn broken_stacks_end_with_their_reason() {
        let plain = rule(Cfa::Sp(8), SavedBp::Same);
        for (words, bp, frames, stop) in [
            (vec![ip(0), 0x1234], 0, 2, Stop::NotCode),
            (vec![ip(0), ip(0)], 0, 3, Stop::UnreadableMemory),
            (vec![ip(1)], 0, 2, Stop::UnsupportedRule),
            (vec![ip(2)], 0, 2, Stop::NoProgress),
            (vec![ip(0), 0], 0, 2, Stop::Base),
            (vec![JIT], 0, 2, Stop::FramePointerLost),
            (vec![JIT, 0, 0x1234], STACK + 8, 2, Stop::FramePointerLost),
            (vec![JIT, STACK + 8, JIT], STACK + 8, 3, Stop::NoProgress),
            (vec![JIT + 0x1000], 0, 2, Stop::TableNotReady),
            (vec![ip(0); 4096], 0, MAX_FRAMES, Stop::TooDeep),
        ] {
            let loops = rule(Cfa::Bp(0), SavedBp::Same);
            let (walked, ended) = walk(&[plain, Rule::UNSUPPORTED, loops], words.clone(), ip(0), bp);
            assert_eq!((walked.len(), ended), (frames, stop), "{words:x?}");
        }
    }

    #[test]
    fn signal_frames_that_point_at_each_other_end_at_the_deepest_frame() {
        let mut words = vec![0; 32];
        (words[15], words[20], words[21]) = (0, STACK, ip(0));
        let (walked, stop) = walk(&[Rule::signal(160).expect("fits")], words, ip(0), 0);
        assert_eq!((walked.len(), stop), (MAX_FRAMES, Stop::TooDeep));
    }

    #[test]
    fn mappings_that_overlap_are_refused() {
        let mapping = |start, end| Mapping { start, end, ..Mapping::default() };
        let overlapping = CodeMap::new(vec![mapping(2, 4), mapping(1, 3)], Vec::new());
        assert_eq!(overlapping.err(), Some(OverlappingMappings(2)));
        assert!(CodeMap::new(vec![mapping(2, 2)], Vec::new()).is_err());
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        prop_oneof![
            (0_i64..64).prop_map(|words| rule(Cfa::Sp(words * 8), SavedBp::Same)),
            (0_i64..8, -8_i64..8).prop_map(|(cfa, bp)| rule(Cfa::Sp(cfa * 8), SavedBp::AtCfa(bp * 8))),
            (-8_i64..8, -8_i64..8).prop_map(|(cfa, bp)| rule(Cfa::Bp(cfa * 8), SavedBp::AtBp(bp * 8))),
            (-8_i64..8).prop_map(|at| rule(Cfa::AtBp { at: at * 8, plus: 8 }, SavedBp::Same)),
            (-8_i64..8).prop_map(|at| rule(Cfa::AtSp { at: at * 8, plus: 0 }, SavedBp::Same)),
            (0_i64..32).prop_map(|word| Rule::signal(word * 8).expect("fits")),
            Just(Rule::SWITCHED),
            any::<u64>().prop_map(Rule::from_bits),
        ]
    }

    /// Words that lead the walk on: into the code, the stack, or anywhere.
    fn any_word() -> impl Strategy<Value = u64> {
        prop_oneof![
            (0_u64..8).prop_map(ip),
            Just(JIT),
            (0_u64..64).prop_map(|word| STACK + word * 8),
            any::<u64>(),
            Just(0),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_stack_makes_a_walk_loop_or_panic(
            rules in prop::collection::vec(any_rule(), 1..8),
            words in prop::collection::vec(any_word(), 0..64),
            (start, bp) in (any_word(), any_word()),
        ) {
            prop_assert!(16 * rules.len() < PAGE_SIZE as usize);
            let code = code_of(&rules);
            let walk = code.walk(Registers { ip: start, sp: STACK, bp }, &Words(words));
            prop_assert!(walk.frames.len() <= MAX_FRAMES);
            for pair in walk.frames.windows(2) {
                let is_switched = code.rule(pair[0].lookup_address()).is_ok_and(Rule::is_switched);
                let is_above = pair[1].registers.sp > pair[0].registers.sp;
                prop_assert!(is_above || pair[1].via == Via::Signal || is_switched);
            }
        }
    }
}
