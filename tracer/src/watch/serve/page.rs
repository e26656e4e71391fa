//! `/`: subjects, conditions and recordings, as one page without scripts and without anything from elsewhere.

use std::{
    fmt::{self, Write as _},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    model::{Bytes, Mode},
    report::human::{Span, counted, per_minute, printable},
    watch::{
        engine::ConditionState,
        reading::LimitOwner,
        store::{Entry, State},
        view::{SubjectView, View},
    },
};

/// Recordings that are shown; the index has them all.
const MOST_RECORDINGS: usize = 100;

/// How often a browser gets the page anew.
const REFRESH: Duration = Duration::from_secs(15);

/// The page. `now` is since some moment on the clock of [`ConditionState::since`].
pub(super) fn page(view: &View, now: Duration) -> String {
    let mut html = String::with_capacity(16 << 10);
    // Nothing can go wrong with a string.
    _ = write_page(&mut html, view, now);
    html
}

fn write_page(html: &mut String, view: &View, now: Duration) -> fmt::Result {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host = Text(&host);
    write!(
        html,
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>tracer watch: {host}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"refresh\" content=\"{}\">\n<link rel=\"icon\" href=\"data:,\">\n<style>\n{}</style>\n\
         <h1>tracer watch: {host}</h1>\n",
        REFRESH.as_secs(),
        include_str!("page.css")
    )?;
    writeln!(
        html,
        "<p>Records when <b>{}</b>; recordings going on: {} of at most {}.</p>\n<p class=\"links\"><a href=\"/metrics\">metrics</a> \
         <a href=\"/reports/index.json\">index of the reports</a></p>",
        Text(&view.conditions.join(" or ")),
        view.ongoing,
        view.at_most
    )?;
    if view.cpu_time.is_waited_for {
        writeln!(
            html,
            "<p class=\"alarm\">Somebody should be recorded, but recordings have used up the CPU time that they may take \
             ({:.0} s an hour): the next one waits.</p>",
            view.cpu_time.an_hour.as_secs_f64()
        )?;
    }
    write_subjects(html, view, now)?;
    write_recordings(html, view)
}

fn write_subjects(html: &mut String, view: &View, now: Duration) -> fmt::Result {
    writeln!(html, "<h2>{}</h2>\n<ul id=\"subjects\">", counted(view.subjects.len() as u64, "subject"))?;
    let mut subjects: Vec<&SubjectView> = view.subjects.iter().collect();
    subjects.sort_by(|a, b| b.reading.limit.share().total_cmp(&a.reading.limit.share()));
    for subject in subjects {
        write_subject(html, subject, &view.conditions, now)?;
    }
    html.write_str("</ul>\n")?;
    for (subject, kills) in view.oom_kills.iter().filter(|(_, kills)| **kills > 0) {
        let processes = if *kills == 1 { "1 process".into() } else { format!("{kills} processes") };
        let subject = Text(subject);
        writeln!(
            html,
            "<p class=\"alarm\">The kernel has killed {processes} of {subject} for want of memory.</p>"
        )?;
    }
    Ok(())
}

fn write_subject(
    html: &mut String,
    subject: &SubjectView,
    conditions: &[String],
    now: Duration,
) -> fmt::Result {
    let SubjectView { name, reading, growth, course, holding, is_recorded, .. } = subject;
    let limit = reading.limit;
    let whose = match limit.whose {
        LimitOwner::Own => "",
        LimitOwner::Above => " (of a group above it)",
        LimitOwner::Machine => " (the machine's memory)",
    };
    let growth = growth.map_or_else(|| "too little to tell".into(), per_minute);
    writeln!(
        html,
        "<li><h3>{}</h3>\n<div class=\"course\">{}</div>\n<div class=\"facts\">\
         <meter min=\"0\" max=\"1\" low=\"0.8\" high=\"0.95\" optimum=\"0\" value=\"{:.3}\"></meter>\n\
         <p>{} of {}{whose}, {:.0} %; growth {growth}; {} resident in {}</p>",
        Text(name),
        sparkline(course),
        limit.share().clamp(0.0, 1.0),
        limit.used_bytes,
        limit.bytes,
        limit.share() * 100.0,
        reading.rss_bytes,
        if reading.processes == 1 { "1 process".into() } else { format!("{} processes", reading.processes) },
    )?;
    if let Some(note) = reading.parts.not_ours() {
        writeln!(html, "<p class=\"dim\">{}</p>", Text(&note))?;
    }
    for (condition, holding) in conditions.iter().zip(holding) {
        write_holding(html, condition, holding, now)?;
    }
    if *is_recorded {
        writeln!(html, "<p class=\"alarm\">is being recorded</p>")?;
    } else {
        writeln!(
            html,
            "<p class=\"links\"><a href=\"/debug/pprof/heap?subject={}&amp;seconds=30\">record it for 30 s, and get a pprof</a></p>",
            form_urlencoded::byte_serialize(name.as_bytes()).collect::<String>()
        )?;
    }
    html.write_str("</div></li>\n")
}

fn write_holding(html: &mut String, condition: &str, holding: &ConditionState, now: Duration) -> fmt::Result {
    let condition = Text(condition);
    match holding {
        ConditionState { holds: true, .. } => writeln!(html, "<p class=\"alarm\">{condition}: holds</p>"),
        ConditionState { since: Some(since), .. } => {
            let time = Span(now.saturating_sub(*since).as_nanos() as u64);
            writeln!(html, "<p>{condition}: for {time} so far</p>")
        }
        ConditionState { since: None, .. } => {
            writeln!(html, "<p class=\"dim\">{condition}: does not hold</p>")
        }
    }
}

/// The course of the usage, from nothing to the most.
fn sparkline(course: &[(Duration, Bytes)]) -> String {
    let (Some(&(oldest, _)), true) = (course.first(), course.len() > 1) else { return String::new() };
    let most = course.iter().map(|(_, bytes)| bytes.0).max().unwrap_or(0).max(1);
    let mut line = String::new();
    for (index, &(ago, bytes)) in course.iter().enumerate() {
        let x = 100.0 - 100.0 * ago.as_secs_f64() / oldest.as_secs_f64().max(1e-9);
        let y = 39.0 - 38.0 * bytes.0 as f64 / most as f64;
        _ = write!(line, "{}{x:.1} {y:.1}", if index == 0 { 'M' } else { 'L' });
    }
    let over = Span(oldest.as_nanos() as u64);
    format!(
        "<svg viewBox=\"0 0 100 40\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"usage over {over}, at most {}\">\
         <path class=\"below\" d=\"{line}L100 40L0 40Z\"/><path d=\"{line}\"/></svg><p class=\"dim\">{over}</p>",
        Bytes(most)
    )
}

fn write_recordings(html: &mut String, view: &View) -> fmt::Result {
    writeln!(
        html,
        "<h2>{}</h2>\n<ul id=\"recordings\">",
        counted(view.recordings.len() as u64, "recording")
    )?;
    for entry in view.recordings.iter().rev().take(MOST_RECORDINGS) {
        write_recording(html, entry)?;
    }
    html.write_str("</ul>\n")
}

fn write_recording(html: &mut String, entry: &Entry) -> fmt::Result {
    let started =
        UNIX_EPOCH.checked_add(Duration::from_secs(entry.started)).unwrap_or(SystemTime::UNIX_EPOCH);
    let started = crate::report::human::moment(&humantime::format_rfc3339_seconds(started).to_string());
    writeln!(
        html,
        "<li><h3>{}</h3>\n<p class=\"dim\">{started}, since {}{}</p>",
        Text(&entry.subject),
        Text(&entry.trigger),
        match entry.state {
            State::Recording => ": goes on",
            State::Done => "",
            State::Failed => ": failed",
            State::Interrupted => ": interrupted",
        }
    )?;
    if entry.oom_kills > 0 {
        writeln!(html, "<p class=\"alarm\">the kernel killed {} of it meanwhile</p>", entry.oom_kills)?;
    }
    if let Some(digest) = &entry.digest {
        let class = if digest.leaking == Some(true) { "verdict alarm" } else { "verdict" };
        let verdict = digest.verdict.as_deref().unwrap_or("no verdict");
        writeln!(html, "<p class=\"{class}\">{}</p>", Sentence(verdict))?;
        if digest.mode == Mode::Growth {
            writeln!(
                html,
                "<p class=\"dim\">recorded in growth mode, which knows who touched or mapped memory first, and not who keeps it</p>"
            )?;
        }
        for cause in digest.causes.iter().filter(|cause| cause.bytes_per_second > 0.0).take(3) {
            writeln!(html, "<p>{}: {}</p>", per_minute(cause.bytes_per_second), Sentence(&cause.cause))?;
        }
    }
    for (class, text) in [("dim", &entry.note), ("alarm", &entry.error)] {
        if let Some(text) = text {
            writeln!(html, "<p class=\"{class}\">{}</p>", Text(text))?;
        }
    }
    if entry.cpu_seconds > 0.0 {
        writeln!(html, "<p class=\"dim\">it took {:.1} s of CPU time</p>", entry.cpu_seconds)?;
    }
    html.write_str("<p class=\"links\">")?;
    for file in &entry.files {
        let ending = file.strip_prefix(&entry.name).unwrap_or(file).trim_start_matches('.');
        let name = if ending.ends_with("html") { "report" } else { ending };
        write!(html, "<a href=\"/reports/{0}\">{1}</a> ", Text(file), Text(name))?;
    }
    html.write_str("</p></li>\n")
}

/// A text from elsewhere, which is not markup whatever it says.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in printable(self.0).chars() {
            match letter {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                letter => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

/// A text in which names are between backticks: these are shown as names.
struct Sentence<'a>(&'a str);

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<&str> = self.0.split('`').collect();
        if parts.len().is_multiple_of(2) {
            return Text(self.0).fmt(f);
        }
        for (index, part) in parts.into_iter().enumerate() {
            let part = Text(part);
            if index % 2 == 0 { part.fmt(f)? } else { write!(f, "<code>{part}</code>")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::fixtures;

    #[test]
    fn it_shows_who_is_watched_and_what_was_recorded() {
        let html = page(&fixtures::view(), Duration::from_secs(400));
        for text in [
            "180.0 MiB of 200.0 MiB, 90 %",
            "usage &gt; 80% for 5m: holds",
            "is being recorded",
            "/debug/pprof/heap?subject=new.service&amp;seconds=30",
            "href=\"/reports/shop_web-0_node-20270115T080000Z.html\">report</a>",
            "2027-01-15 08:00:00 UTC, since usage &gt; 80% for 5m",
            "the kernel killed 1 of it",
            "it took 4.5 s of CPU time",
            "they may take (144 s an hour)",
            "+200.3 MiB/min: <code>forget</code>",
            "no such process",
            "2 processes",
            "killed 3 processes of gone for",
        ] {
            assert!(html.contains(text), "{text}: {html}");
        }
    }

    #[test]
    fn names_in_a_sentence_are_shown_as_names() {
        let shown = |text: &str| Sentence(text).to_string();
        assert_eq!(
            shown("in `a<b>`, called from `c`"),
            "in <code>a&lt;b&gt;</code>, called from <code>c</code>"
        );
        assert_eq!(shown("in `a`b<`"), "in `a`b&lt;`", "nobody knows which are the name's own");
        assert_eq!(shown("nothing leaks"), "nothing leaks");
    }

    #[test]
    fn names_are_text_whatever_they_say() {
        let mut view = fixtures::view();
        view.subjects[1].name = format!("\"'&{}", fixtures::SCRIPT);
        let html = page(&view, Duration::ZERO);
        assert!(html.contains("&lt;script&gt;alert(1)") && !html.contains("<script"), "{html}");
        assert!(html.contains("subject=%22%27%26%3Cscript%3E"), "{html}");
    }

    #[test]
    fn a_course_is_drawn_from_left_to_right() {
        let course =
            [(10, 50), (5, 100), (0, 0)].map(|(ago, bytes)| (Duration::from_secs(ago), Bytes(bytes)));
        assert!(sparkline(&course).contains("d=\"M0.0 20.0L50.0 1.0L100.0 39.0\""));
        assert_eq!(sparkline(&course[..1]), "");
        assert!(!sparkline(&[(Duration::ZERO, Bytes(0)); 3]).contains("NaN"));
    }
}
