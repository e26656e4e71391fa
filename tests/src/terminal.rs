//! A terminal of its own for the tracer, with keys to press and a screen to read: a tmux server that nobody else uses.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::process::PATIENCE;

/// The terminal, with a shell in it that stays when what it runs has ended.
#[derive(Debug)]
pub struct Terminal {
    directory: TempDir,
}

impl Terminal {
    /// Opens one of this size.
    #[track_caller]
    #[must_use]
    pub fn open(width: u16, height: u16) -> Self {
        let terminal =
            Self { directory: TempDir::new().expect("the directory for temporary files is writable") };
        let (width, height) = (width.to_string(), height.to_string());
        let shell = "PS1='$ ' exec sh";
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height, shell]);
        terminal.wait_for("$");
        terminal
    }

    /// Its working directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Types a command line.
    #[track_caller]
    pub fn run(&self, line: &str) {
        self.tmux(&["send-keys", "-l", line]);
        self.press("Enter");
    }

    /// Presses a key, by tmux's name.
    #[track_caller]
    pub fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Makes it another size.
    #[track_caller]
    pub fn resize(&self, width: u16, height: u16) {
        self.tmux(&["resize-window", "-x", &width.to_string(), "-y", &height.to_string()]);
    }

    /// What is on the screen.
    #[track_caller]
    #[must_use]
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p"]).stdout).into_owned()
    }

    /// That, and what was scrolled away.
    #[track_caller]
    #[must_use]
    pub fn history(&self) -> String {
        String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p", "-S", "-1000"]).stdout).into_owned()
    }

    /// What is on the screen, with the escape sequences of colours.
    #[track_caller]
    #[must_use]
    pub fn colored_screen(&self) -> String {
        String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p", "-e"]).stdout).into_owned()
    }

    /// What the shell has started.
    #[track_caller]
    #[must_use]
    pub fn foreground(&self) -> u32 {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]).stdout;
        let shell = String::from_utf8_lossy(&shell).trim().to_owned();
        let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"));
        children.expect("the shell runs").trim().parse().expect("the shell has started one program")
    }

    /// Whether a program draws all over it.
    #[track_caller]
    #[must_use]
    pub fn is_drawn_on(&self) -> bool {
        self.tmux(&["display-message", "-p", "#{alternate_on}"]).stdout.starts_with(b"1")
    }

    /// Waits until the screen has this text.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        self.wait_until(text, |screen| screen.contains(text))
    }

    /// Waits until the screen is as it should be.
    #[track_caller]
    pub fn wait_until(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if is_so(&screen) {
                return screen;
            }
            assert!(Instant::now() < deadline, "the screen shows {what:?}:\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Takes the terminal away from what runs in it, and waits until that has ended.
    #[track_caller]
    pub fn close(&self) {
        let program = format!("/proc/{}", self.foreground());
        self.tmux(&["kill-server"]);
        let deadline = Instant::now() + PATIENCE;
        while fs::exists(&program).expect("/proc is there") {
            assert!(Instant::now() < deadline, "{program} ends with its terminal");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    #[track_caller]
    fn tmux(&self, words: &[&str]) -> Output {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(self.directory.path().join("tmux")).args(words);
        command.current_dir(self.directory.path()).env_remove("TMUX").env("LC_ALL", "C.UTF-8");
        let output = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let socket = self.directory.path().join("tmux");
        let _ = Command::new("tmux").arg("-S").arg(socket).arg("kill-server").output();
    }
}
