//! The terminal interface (`--tui`): the recording as it goes on.
//!
//! [`ViewState`] is plain data; [`keys`] change it, [`draw`] shows it. It is drawn by a thread of its own, so that neither a
//! slow terminal nor a person keeps the recording from taking its events.

pub mod draw;
pub mod keys;
mod messages;
mod screen;
pub mod series;
pub mod state;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Sender, channel},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rustix::termios::isatty;
use tokio::sync::mpsc::UnboundedSender;

pub use self::messages::log_sink;
use self::{draw::Theme, screen::Screen, state::ViewState};
use crate::{
    cli::RecordConfig,
    model::Profile,
    record::{Findings, Observer, Request},
    report::{
        snapshot::{self, Background},
        status::{Status, Vitals},
        view::drawn_stacks,
    },
};

/// What the display is told.
enum News {
    Vitals(Vitals),
    Profile(Box<Profile>),
    Marked,
    Message(String),
    Target(String),
    /// The recording is over.
    End,
}

/// Looks on by the terminal interface.
pub struct Tui<'a> {
    config: &'a RecordConfig,
    theme: Theme,
    requests: UnboundedSender<Request>,
    screen: Option<Screen>,
    news: Option<Sender<News>>,
    snapshots: u32,
    background: Background,
    pace: RefreshPace,
}

/// Finds out whether there is a terminal to draw on, and to press keys at.
///
/// # Errors
/// When there is none.
pub fn check_terminal() -> Result<()> {
    if !isatty(std::io::stdin()) || !isatty(std::io::stdout()) {
        bail!(
            "--tui needs a terminal as standard input and output; without it, tracer shows a line and writes its reports"
        );
    }
    Ok(())
}

impl<'a> Tui<'a> {
    /// Nothing is shown before the window is open.
    #[must_use]
    pub fn new(config: &'a RecordConfig, color: bool, requests: UnboundedSender<Request>) -> Self {
        Self {
            config,
            theme: Theme::new(color),
            requests,
            screen: None,
            news: None,
            snapshots: 0,
            background: Background::default(),
            pace: RefreshPace::default(),
        }
    }

    fn tell(&self, news: News) {
        if let Some(display) = &self.news {
            // A display that has ended says so by a request of its own.
            let _ = display.send(news);
        }
    }
}

impl Observer for Tui<'_> {
    fn begin(&mut self, line: &str) -> Result<()> {
        let (news, heard) = channel();
        self.screen = Some(Screen::open(ViewState::default(), self.theme, heard, self.requests.clone())?);
        self.news = Some(news);
        let place = self.config.recording.command_output.as_ref();
        let output = place.map(|place| format!("the command writes to {}; ", place.display()));
        self.tell(News::Message(format!("{}{line}", output.unwrap_or_default())));
        Ok(())
    }

    fn say(&mut self, line: &str) {
        self.tell(News::Message(line.to_owned()));
        messages::keep(line);
    }

    fn show(&mut self, status: &Status<'_>) {
        self.tell(News::Target(format!("{} ({})", status.target.comm, status.target.pid)));
        self.tell(News::Vitals(status.vitals));
    }

    fn is_ready(&self) -> bool {
        !self.background.is_busy()
    }

    fn wants_findings(&self) -> bool {
        self.pace.is_due()
    }

    fn look(&mut self, findings: Findings) {
        let Some(display) = self.news.clone() else { return };
        let (config, pace) = (self.config.clone(), self.pace.clone());
        self.background.run(move || {
            let started = Instant::now();
            let mut profile = findings.profile();
            config.filter().apply(&mut profile);
            profile.stacks = drawn_stacks(&profile, &config.view());
            let _ = display.send(News::Profile(Box::new(profile)));
            pace.took(started.elapsed());
        });
    }

    fn snapshot(&mut self, findings: Findings) {
        self.snapshots += 1;
        let (number, config, display) = (self.snapshots, self.config.clone(), self.news.clone());
        self.background.run(move || {
            let mut profile = findings.profile();
            config.filter().apply(&mut profile);
            let said =
                snapshot::write(number, &config.destinations(&profile.target), &profile, &config.view());
            messages::keep(&said);
            if let Some(display) = display {
                let _ = display.send(News::Message(said));
            }
        });
    }

    fn marked(&mut self) {
        self.pace.now();
        self.tell(News::Marked);
    }

    fn finish(&mut self) {
        self.tell(News::End);
        self.news = None;
        // Waits for the thread, and leaves the terminal as it was.
        self.screen = None;
    }
}

/// When the next look at the stacks is due: once a second, unless that takes more than a twentieth of the time.
#[derive(Clone, Debug)]
struct RefreshPace {
    started: Instant,
    /// In milliseconds from then on.
    next: Arc<AtomicU64>,
}

impl Default for RefreshPace {
    fn default() -> Self {
        Self { started: Instant::now(), next: Arc::default() }
    }
}

impl RefreshPace {
    const TIMES_AS_LONG: u32 = 20;

    fn is_due(&self) -> bool {
        self.elapsed() >= self.next.load(Ordering::Relaxed)
    }

    fn took(&self, time: Duration) {
        let pause = (time * Self::TIMES_AS_LONG).max(Duration::from_secs(1));
        self.next.store(self.elapsed() + pause.as_millis() as u64, Ordering::Relaxed);
    }

    fn now(&self) {
        self.next.store(0, Ordering::Relaxed);
    }

    fn elapsed(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}
