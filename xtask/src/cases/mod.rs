//! Replays public reports of leaks, and compares what tracer says with what is right: `cargo xtask cases`.

mod install;
mod judge;
mod known;
mod recording;

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};

use self::{
    install::Place,
    known::{CASES, Case},
    recording::{Said, Way},
};
use crate::{bench::document, command, privilege, run};

/// Those that need no large download: `cargo xtask test` records them, each once.
const QUICK: [&str; 2] = ["14", "29"];

/// Records the cases with these numbers, all where there are none, in each way, and writes what came of it into `docs/cases.md`.
///
/// # Errors
/// When something cannot be installed or recorded, or an answer is wrong.
pub fn cases(workspace: &Path, numbers: &[String]) -> Result<()> {
    let chosen = chosen(numbers)?;
    prepare(workspace)?;
    let place = Place::make(workspace)?;
    let mut wrong = Vec::new();
    for case in chosen {
        (case.install)(&place).with_context(|| format!("case {} cannot be installed", case.number))?;
        let mut rows = String::new();
        for way in Way::ALL {
            let said = recording::record(&place, case, way)?;
            let faults = judge::faults(case, way, &said);
            report(case, way, &said, &faults);
            rows += &row(way, &said, &faults);
            wrong.extend(faults.iter().map(|fault| format!("{} ({way}): {fault}", case.number)));
        }
        fs::write(place.rows().join(case.number), section(case, &rows))?;
    }
    document::replace(&workspace.join("docs/cases.md"), "cases", &sections(&place)?)?;
    ensure!(wrong.is_empty(), "not as it should be:\n{}", wrong.join("\n"));
    Ok(())
}

/// Records the cases that need no large download for a short time, and returns how many were right and wrong.
///
/// # Errors
/// When one cannot be installed or recorded.
pub fn quick(workspace: &Path) -> Result<(u32, u32)> {
    prepare(workspace)?;
    let place = Place::make(workspace)?;
    let (mut right, mut wrong) = (0, 0);
    for case in CASES.iter().filter(|case| QUICK.contains(&case.number)) {
        (case.install)(&place).with_context(|| format!("case {} cannot be installed", case.number))?;
        let way = Way::ALL[0];
        let said = recording::record(&place, case, way)?;
        let faults = judge::faults(case, way, &said);
        report(case, way, &said, &faults);
        *if faults.is_empty() { &mut right } else { &mut wrong } += 1;
    }
    Ok((right, wrong))
}

/// Builds the tracer, unless another is named, as for the tests.
fn prepare(workspace: &Path) -> Result<()> {
    privilege::check_kernel()?;
    if recording::other_binary().is_some() { Ok(()) } else { run::build(workspace) }
}

fn chosen(numbers: &[String]) -> Result<Vec<&'static Case>> {
    if let Some(unknown) = numbers.iter().find(|number| !CASES.iter().any(|case| case.number == **number)) {
        let known: Vec<_> = CASES.iter().map(|case| case.number).collect();
        bail!("there is no case {unknown}, but {}", known.join(", "));
    }
    let is_chosen = |case: &&Case| numbers.is_empty() || numbers.iter().any(|number| number == case.number);
    Ok(CASES.iter().filter(is_chosen).collect())
}

fn report(case: &Case, way: Way, said: &Said, faults: &[String]) {
    let verdict =
        if faults.is_empty() { "right".to_owned() } else { format!("WRONG, {}", faults.join("; ")) };
    command::step(&format!("case {} {}, {way}: {verdict}: {}", case.number, case.name, said.summary));
}

fn row(way: Way, said: &Said, faults: &[String]) -> String {
    let is_right = if faults.is_empty() { "yes".to_owned() } else { format!("no: {}", faults.join("; ")) };
    format!("| {way} | {} | {is_right} |\n", said.summary.replace('|', "\\|"))
}

fn section(case: &Case, rows: &str) -> String {
    let mut text = format!("### {} {}\n{}\n*Right*: {}\n\n", case.number, case.name, case.what, case.right);
    let _ = write!(text, "| recorded | says | right |\n|---|---|---|\n{rows}");
    text
}

/// What was recorded of every case, now or before, in their order.
fn sections(place: &Place) -> Result<String> {
    let read = |case: &Case| match fs::read_to_string(place.rows().join(case.number)) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(section(case, "")),
        Err(error) => Err(error),
    };
    let sections: Vec<String> = CASES.iter().map(read).collect::<Result<_, _>>()?;
    Ok(sections.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_chosen_by_their_numbers() {
        let numbers = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
            chosen(&words).map(|cases| cases.iter().map(|case| case.number).collect::<Vec<_>>())
        };
        assert_eq!(numbers(&[]).unwrap().len(), CASES.len());
        assert_eq!(numbers(&["29", "05"]).unwrap(), ["05", "29"]);
        assert!(numbers(&["77"]).unwrap_err().to_string().starts_with("there is no case 77"));
        assert_eq!(CASES.iter().filter(|case| QUICK.contains(&case.number)).count(), QUICK.len());
    }
}
