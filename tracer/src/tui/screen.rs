//! The terminal while it is drawn on: set up when opened, and as it was before when dropped, or when something panics.

use std::{
    io, mem, panic,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::Receiver,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use tokio::sync::mpsc::UnboundedSender;

use super::{
    News,
    draw::{Theme, draw},
    messages,
    state::ViewState,
};
use crate::record::Request;

/// The terminal, and the thread that draws on it.
pub struct Screen {
    closed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Screen {
    /// Takes the terminal, and shows the state as the news change it until it is dropped.
    ///
    /// # Errors
    /// When the terminal cannot be used.
    pub fn open(
        state: ViewState,
        theme: Theme,
        news: Receiver<News>,
        requests: UnboundedSender<Request>,
    ) -> Result<Self> {
        messages::hold_back();
        // It also sees to it that a panic leaves the terminal first.
        let terminal = ratatui::try_init().inspect_err(|_| messages::let_go());
        let terminal = terminal.context("the terminal cannot be drawn on")?;
        let closed = Arc::new(AtomicBool::new(false));
        close_on_panic(&closed);
        let display = Display { terminal, state, theme, news, requests, closed: Arc::clone(&closed) };
        let thread = thread::Builder::new().name("display".into()).spawn(|| display.run());
        match thread {
            Ok(thread) => Ok(Self { closed, thread: Some(thread) }),
            Err(error) => {
                leave();
                Err(error).context("cannot start the thread of the display")
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        let give_up = Instant::now() + LONGEST_LAST_LOOK;
        // A terminal that hangs, or is closed at the wrong moment, must not keep the recording from its end.
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) && Instant::now() < give_up {
            thread::sleep(Duration::from_millis(5));
        }
        leave();
    }
}

/// The thread that draws looks at what it is told every 50 ms.
const LONGEST_LAST_LOOK: Duration = Duration::from_secs(1);

/// Gives the terminal back, with what was to be said meanwhile.
fn leave() {
    // A terminal that is gone need not be given back.
    let _ = ratatui::try_restore();
    messages::let_go();
}

/// The thread that panics may not be the one that draws, which would draw over the message.
fn close_on_panic(closed: &Arc<AtomicBool>) {
    let restore_and_print = panic::take_hook();
    let closed = Arc::clone(closed);
    panic::set_hook(Box::new(move |panic| {
        closed.store(true, Ordering::Relaxed);
        restore_and_print(panic);
    }));
}

struct Display {
    terminal: DefaultTerminal,
    state: ViewState,
    theme: Theme,
    news: Receiver<News>,
    requests: UnboundedSender<Request>,
    closed: Arc<AtomicBool>,
}

impl Display {
    /// Time between looks for news when no key is pressed.
    const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

    fn run(mut self) {
        let ended = self.draw_until_closed();
        if let Err(error) = ended {
            // Without a display nobody can end the recording by a key.
            log::error!("the terminal cannot be used any more: {error}");
            let _ = self.requests.send(Request::End);
            // When dropped it would complain on standard error, which may be gone too, and panic.
            mem::forget(self.terminal);
        }
    }

    fn draw_until_closed(&mut self) -> io::Result<()> {
        let mut changed = true;
        while !self.closed.load(Ordering::Relaxed) {
            if changed {
                let Self { terminal, state, theme, .. } = self;
                terminal.draw(|frame| draw(frame, state, *theme))?;
            }
            changed = self.take_key()?;
            while let Ok(news) = self.news.try_recv() {
                changed = true;
                match news {
                    News::Vitals(vitals) => self.state.take_vitals(vitals),
                    News::Profile(profile) => self.state.take_profile(*profile),
                    News::Marked => self.state.mark(),
                    News::Message(message) => self.state.say(message),
                    News::Target(target) => self.state.set_target(&target),
                    News::End => return Ok(()),
                }
            }
            if let Some(message) = messages::take_latest() {
                self.state.say(message);
                changed = true;
            }
        }
        Ok(())
    }

    /// Waits a moment for a key. A terminal that is gone is an error here: crossterm would read its end over and over.
    fn wait_for_input(&self) -> io::Result<()> {
        let input = io::stdin();
        let mut input = [PollFd::new(&input, PollFlags::IN)];
        match poll(&mut input, Some(&Self::LOOK)) {
            Err(Errno::INTR) => {}
            waited => _ = waited?,
        }
        if input[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            return Err(io::Error::other("it was closed"));
        }
        Ok(())
    }

    /// Whether there was one, or the terminal has another size.
    fn take_key(&mut self) -> io::Result<bool> {
        self.wait_for_input()?;
        if !event::poll(Duration::ZERO)? {
            return Ok(false);
        }
        if let Event::Key(key) = event::read()?
            && let Some(request) = self.state.press(key)
        {
            // An error says that the recording is over.
            let _ = self.requests.send(request);
        }
        Ok(true)
    }
}
