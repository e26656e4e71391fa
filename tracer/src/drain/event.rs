//! Events as the BPF programs write them: integers, checked before they become anything else.

use thiserror::Error;
use tracer_ebpf::{
    event::{EventKind, MappingCall, MappingEvent, ProcessChange},
    process::ProcessIndex,
    runtime::{
        FrameKind,
        hotspot::{CompiledCode, InterpretedMethod},
    },
    stack::{MAX_WORDS, StackHeader, StackId, mapping_call},
    stop::Stop,
    usdt::INSIDE,
};

use crate::model::Address;
use crate::runtime::{hotspot::WalkedMethod, python, v8};

/// An event from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A stack that was not known.
    Stack(NewStack),
    /// A system call that changes mappings. Its `call` is a [`MappingCall`].
    Mapping(MappingEvent),
    /// The process with this index replaced its program.
    Exec(ProcessIndex),
    /// A followed process has come or gone.
    Process(Change),
}

/// What became of a followed process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub change: ProcessChange,
    pub process: ProcessIndex,
    /// Index of the one that it came from.
    pub from: ProcessIndex,
}

/// A stack as the kernel walked it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewStack {
    /// Its number.
    pub id: StackId,
    pub process: ProcessIndex,
    /// The function that was called.
    pub api: u16,
    /// Why the walk ended.
    pub stop: Stop,
    /// The thread that made it first.
    pub tid: u32,
    /// Its frames, leaf first.
    pub frames: Vec<WalkedFrame>,
    /// What was mapped when it was walked.
    pub walked: WalkedCode,
}

/// A frame of a stack as the kernel walked it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WalkedFrame {
    /// Where it returns to.
    pub address: Address,
    /// What it is to a language runtime.
    pub runtime: RuntimeFrame,
}

/// What a frame is to a language runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuntimeFrame {
    /// Nothing that is known.
    Native,
    JavaScript(v8::WalkedFunction),
    /// V8's own, of a type with this number.
    V8Internal(u32),
    /// Code of HotSpot.
    Java(WalkedMethod),
    /// The loop of Python's interpreter.
    PythonLoop,
    Python(python::WalkedFunction),
}

impl RuntimeFrame {
    /// The language of such functions, as reports call it; nothing where there is none.
    #[must_use]
    pub const fn language(self) -> &'static str {
        match self {
            Self::Native => "",
            Self::JavaScript(_) | Self::V8Internal(_) => "javascript",
            Self::Java(_) => "java",
            Self::PythonLoop | Self::Python(_) => "python",
        }
    }
}

impl From<Address> for WalkedFrame {
    fn from(address: Address) -> Self {
        Self { address, runtime: RuntimeFrame::Native }
    }
}

/// By which state of the process' code a stack was walked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkedCode {
    /// How often code had been mapped or unmapped.
    pub changes: u32,
    /// Generation of the list of mappings.
    pub generation: u16,
    /// The last frame is in code that was in no list yet.
    pub last_is_unknown: bool,
}

/// What is wrong with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// It ends before it should.
    #[error("it has {0} bytes, fewer than its kind needs")]
    Short(usize),
    /// Its kind is unknown.
    #[error("its kind {0} is unknown")]
    Kind(u8),
    /// Its walk ended for an unknown reason.
    #[error("its walk ended for the unknown reason {0}")]
    Stop(u8),
    /// Its system call is unknown.
    #[error("its system call {0} is unknown")]
    Call(u8),
    /// A frame is of an unknown kind.
    #[error("its frame {0:#x} is of an unknown kind")]
    Frame(u64),
    /// What became of its process is unknown.
    #[error("its process change {0} is unknown")]
    Change(u8),
}

impl Event {
    /// Reads an event.
    ///
    /// # Errors
    /// When the bytes are not one.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields { rest: bytes, length: bytes.len() };
        match fields.u8()? {
            kind if kind == EventKind::Stack as u8 => fields.stack().map(Event::Stack),
            kind if kind == EventKind::Mapping as u8 => fields.mapping().map(Event::Mapping),
            kind if kind == EventKind::Exec as u8 => fields.exec().map(Event::Exec),
            kind if kind == EventKind::Process as u8 => fields.change().map(Event::Process),
            kind => Err(DecodeError::Kind(kind)),
        }
    }
}

/// The fields of an event in the order in which the contract's structures have them; the kind has been read.
struct Fields<'a> {
    rest: &'a [u8],
    length: usize,
}

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Short(self.length))?;
        self.rest = rest;
        Ok(*array)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_ne_bytes)
    }

    fn process(&mut self) -> Result<ProcessIndex, DecodeError> {
        self.u16().map(ProcessIndex::new)
    }

    fn stack_id(&mut self) -> Result<StackId, DecodeError> {
        self.u32().map(StackId::new)
    }

    /// [`StackHeader`] and the frames behind it.
    fn stack(mut self) -> Result<NewStack, DecodeError> {
        let stop = self.u8()?;
        let stop = Stop::try_from(stop).map_err(DecodeError::Stop)?;
        let (process, api, words) = (self.process()?, self.u16()?, self.u16()?);
        let (id, tid) = (self.stack_id()?, self.u32()?);
        let (changes, generation) = (self.u32()?, self.u16()?);
        let last_is_unknown = self.u16()?.to_ne_bytes()[0] != 0;
        let walked = WalkedCode { changes, generation, last_is_unknown };
        let mut frames = self.frames(usize::from(words).min(MAX_WORDS))?;
        let mut api = api;
        if mapping_call(api).is_none() && api & INSIDE != 0 {
            api &= !INSIDE;
            // The function that was called is no caller. Where it is all that is known, it stays.
            if frames.len() > 1 {
                frames.remove(0);
            }
        }
        Ok(NewStack { id, process, api, stop, tid, frames, walked })
    }

    /// Frames, in so many words.
    fn frames(&mut self, words: usize) -> Result<Vec<WalkedFrame>, DecodeError> {
        let length = words * size_of::<u64>();
        let (frames, _) = self.rest.split_at_checked(length).ok_or(DecodeError::Short(self.length))?;
        self.rest = frames;
        let mut walked = Vec::new();
        while !self.rest.is_empty() {
            let word = self.u64()?;
            let (kind, address) = FrameKind::of_word(word).ok_or(DecodeError::Frame(word))?;
            let runtime = match kind {
                FrameKind::Native => RuntimeFrame::Native,
                FrameKind::PythonLoop => RuntimeFrame::PythonLoop,
                FrameKind::Python => {
                    let (id, position) = (self.u32()?, self.u32()?);
                    RuntimeFrame::Python(python::WalkedFunction { code: address, id, position })
                }
                FrameKind::V8Internal => RuntimeFrame::V8Internal(self.u64()? as u32),
                FrameKind::JavaScript | FrameKind::CompiledJavaScript => {
                    RuntimeFrame::JavaScript(v8::WalkedFunction {
                        shared: self.u64()?,
                        id: self.u32()?,
                        position: self.u32()?,
                        is_compiled: kind == FrameKind::CompiledJavaScript,
                    })
                }
                FrameKind::InterpretedJava => {
                    let words = [self.u64()?, self.u64()?];
                    RuntimeFrame::Java(WalkedMethod::Interpreted(InterpretedMethod::from_words(words)))
                }
                FrameKind::CompiledJava => {
                    let words = [self.u64()?, self.u64()?];
                    RuntimeFrame::Java(WalkedMethod::Compiled(CompiledCode::from_words(words)))
                }
            };
            walked.push(WalkedFrame { address: Address(address), runtime });
        }
        Ok(walked)
    }

    /// [`MappingEvent`]
    fn mapping(mut self) -> Result<MappingEvent, DecodeError> {
        let call = self.u8()?;
        MappingCall::try_from(call).map_err(DecodeError::Call)?;
        Ok(MappingEvent {
            event: EventKind::Mapping as u8,
            call,
            at_exit: self.u8()?,
            in_allocator: self.u8()?,
            process: self.process()?,
            padding: self.u16()?,
            tid: self.u32()?,
            stack: self.stack_id()?,
            time_ns: self.u64()?,
            args: [self.u64()?, self.u64()?, self.u64()?, self.u64()?, self.u64()?, self.u64()?],
            result: self.u64()?.cast_signed(),
        })
    }

    /// [`ProcessEvent`](tracer_ebpf::event::ProcessEvent)
    fn change(mut self) -> Result<Change, DecodeError> {
        let change = ProcessChange::try_from(self.u8()?).map_err(DecodeError::Change)?;
        Ok(Change { change, process: self.process()?, from: self.process()? })
    }

    /// The process of a [`StackHeader`].
    fn exec(mut self) -> Result<ProcessIndex, DecodeError> {
        self.u8()?;
        self.process()
    }
}

const _: () = assert!(size_of::<StackHeader>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    fn stack_bytes(stop: u8, frames: &[u64]) -> Vec<u8> {
        let mut bytes = vec![EventKind::Stack as u8, stop];
        bytes.extend(7_u16.to_ne_bytes());
        bytes.extend(0x1234_u16.to_ne_bytes());
        bytes.extend((frames.len() as u16).to_ne_bytes());
        bytes.extend(99_u32.to_ne_bytes());
        bytes.extend(4242_u32.to_ne_bytes());
        bytes.extend(5_u32.to_ne_bytes());
        bytes.extend(6_u16.to_ne_bytes());
        bytes.extend([1, 0]);
        bytes.extend(frames.iter().flat_map(|frame| frame.to_ne_bytes()));
        bytes
    }

    #[test]
    fn a_stack_is_read_as_it_was_written() {
        let event = Event::decode(&stack_bytes(Stop::TooDeep as u8, &[0x10, 0x20])).unwrap();
        let frames = [0x10, 0x20].map(|ip| WalkedFrame::from(Address(ip))).to_vec();
        let walked = WalkedCode { changes: 5, generation: 6, last_is_unknown: true };
        let stack = NewStack {
            id: StackId::new(99),
            process: ProcessIndex::new(7),
            api: 0x1234,
            stop: Stop::TooDeep,
            tid: 4242,
            frames,
            walked,
        };
        assert_eq!(event, Event::Stack(stack));
    }

    #[test]
    fn frames_of_runtimes_have_words_of_their_own() {
        let words = [
            FrameKind::JavaScript.word(0x10),
            0xabc1,
            u64::from(77_u32) << 32 | 9,
            FrameKind::V8Internal.word(0x20),
            13,
            FrameKind::PythonLoop.word(0x40),
            FrameKind::Python.word(0x7f00_1230),
            u64::from(34_u32) << 32 | 5,
            0x30,
            FrameKind::InterpretedJava.word(0x40),
            0x5000,
            0x7000 << 16 | 6,
            FrameKind::CompiledJava.word(0x50),
            0x6000,
            88,
        ];
        let Ok(Event::Stack(stack)) = Event::decode(&stack_bytes(0, &words)) else { panic!("a stack") };
        let function = v8::WalkedFunction { shared: 0xabc1, id: 9, position: 77, is_compiled: false };
        let method = InterpretedMethod { method: 0x5000, class: 0x7000, bytecode: 6 };
        let code = CompiledCode { blob: 0x6000, compile_id: 88 };
        let python = python::WalkedFunction { code: 0x7f00_1230, id: 5, position: 34 };
        let frame = |ip, runtime| WalkedFrame { address: Address(ip), runtime };
        let expected = [
            frame(0x10, RuntimeFrame::JavaScript(function)),
            frame(0x20, RuntimeFrame::V8Internal(13)),
            frame(0x40, RuntimeFrame::PythonLoop),
            frame(0x7f00_1230, RuntimeFrame::Python(python)),
            frame(0x30, RuntimeFrame::Native),
            frame(0x40, RuntimeFrame::Java(WalkedMethod::Interpreted(method))),
            frame(0x50, RuntimeFrame::Java(WalkedMethod::Compiled(code))),
        ];
        assert_eq!(stack.frames, expected);
        for length in [1, 2, 4, 7] {
            assert!(Event::decode(&stack_bytes(0, &words[..length])).is_err(), "cut in a frame");
        }
        let unknown = 0xff00_0000_0000_0010;
        assert_eq!(Event::decode(&stack_bytes(0, &[unknown])), Err(DecodeError::Frame(unknown)));
    }

    #[test]
    fn broken_events_are_errors() {
        assert_eq!(Event::decode(&[]), Err(DecodeError::Short(0)));
        assert_eq!(Event::decode(&[77]), Err(DecodeError::Kind(77)));
        assert_eq!(Event::decode(&stack_bytes(200, &[])), Err(DecodeError::Stop(200)));
        let whole = stack_bytes(0, &[1, 2, 3]);
        for length in 1..whole.len() {
            assert_eq!(Event::decode(&whole[..length]), Err(DecodeError::Short(length)));
        }
        assert_eq!(Event::decode(&[EventKind::Process as u8, 9]), Err(DecodeError::Change(9)));
        assert_eq!(Event::decode(&[EventKind::Mapping as u8, 9]), Err(DecodeError::Call(9)));
    }
}
