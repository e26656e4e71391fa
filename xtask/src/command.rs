//! Runs external commands: says what is being done, shows that it goes on, and shows what a failed command said.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// How many of a failed command's last lines are shown.
const TAIL: usize = 30;

/// Says what is being done, in one line on standard error.
pub fn step(doing: &str) {
    eprintln!("xtask: {doing}");
}

/// Runs a command that shows its own progress, as cargo does.
///
/// # Errors
/// When it cannot be run or fails; what it said stands above.
pub fn run(doing: &str, command: &mut Command) -> Result<()> {
    step(doing);
    let status = command.status().with_context(|| cannot_run(command))?;
    check(command, status, "")
}

/// Runs a command in silence; on a terminal its last line is shown while it runs.
///
/// # Errors
/// When it cannot be run or fails, with the last lines that it wrote.
pub fn run_quietly(doing: &str, command: &mut Command) -> Result<()> {
    step(doing);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| cannot_run(command))?;
    let tail = follow(&mut child);
    let status = child.wait()?;
    check(command, status, &tail)
}

/// Runs a command and returns what it wrote to standard output.
///
/// # Errors
/// When it cannot be run or fails, with the last lines that it wrote.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_run(command))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = stdout.lines().chain(stderr.lines()).collect();
    let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
    check(command, output.status, &tail)?;
    Ok(stdout)
}

/// Whether a command can be run and succeeds.
#[must_use]
pub fn succeeds(command: &mut Command) -> bool {
    let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    silent.status().is_ok_and(|status| status.success())
}

/// A command line as a shell would take it.
#[must_use]
pub fn line(command: &Command) -> String {
    let mut line = String::new();
    let variables = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    for (name, value) in variables {
        let _ = write!(line, "{}={} ", name.display(), quote(&value.to_string_lossy()));
    }
    line += &quote(&command.get_program().to_string_lossy());
    for argument in command.get_args() {
        line.push(' ');
        line += &quote(&argument.to_string_lossy());
    }
    line
}

fn quote(word: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_=./:,+@%".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn cannot_run(command: &Command) -> String {
    format!("cannot run `{}`", line(command))
}

/// An error with the command line, and with the tail of the output where it has not been seen yet.
fn check(command: &Command, status: ExitStatus, tail: &str) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let separator = if tail.is_empty() { "" } else { ":\n" };
    bail!("`{}` failed, {status}{separator}{tail}", line(command))
}

/// Reads what a command writes until its end, and returns the last lines.
fn follow(child: &mut Child) -> String {
    let spinner = ProgressBar::new_spinner().with_style(
        ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}").expect("the template is constant"),
    );
    spinner.enable_steady_tick(Duration::from_millis(100));
    let (sender, lines) = mpsc::channel();
    let stdout = child.stdout.take().map(|pipe| send_lines(pipe, sender.clone()));
    let stderr = child.stderr.take().map(|pipe| send_lines(pipe, sender));
    let mut tail = VecDeque::with_capacity(TAIL);
    for line in lines {
        spinner.set_message(line.clone());
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    for reader in [stdout, stderr].into_iter().flatten() {
        reader.join().expect("the reader does not panic");
    }
    spinner.finish_and_clear();
    Vec::from(tail).join("\n")
}

fn send_lines(pipe: impl Read + Send + 'static, lines: mpsc::Sender<String>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            // Nobody listens any more when the caller has ended.
            let _ = lines.send(line);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_shows_its_line_and_what_it_said() {
        let mut command = Command::new("sh");
        command.env("WHO", "it's me").args(["-c", "echo one; echo two >&2; exit 3"]);
        let error = run_quietly("failing", &mut command).unwrap_err().to_string();
        assert!(
            error.contains(r"`WHO='it'\''s me' sh -c 'echo one; echo two >&2; exit 3'` failed"),
            "{error}"
        );
        assert!(
            error.contains("exit status: 3") && error.contains("one") && error.contains("two"),
            "{error}"
        );
    }

    #[test]
    fn only_the_last_lines_are_shown() {
        let error = output(Command::new("sh").args(["-c", "seq 100; exit 1"])).unwrap_err().to_string();
        assert!(error.ends_with("\n99\n100") && !error.contains("\n70\n"), "{error}");
    }
}
