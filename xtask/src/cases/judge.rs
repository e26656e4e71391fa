//! Compares what tracer said of a case with what is right.

use super::{
    known::{Case, Verdict},
    recording::{Said, Way},
};

/// What is not as it should be, each in a few words.
pub fn faults(case: &Case, way: Way, said: &Said) -> Vec<String> {
    let verdicts = if way.is_sampled { case.sampled } else { case.exact };
    let verdict = if way.seconds < 30 { verdicts.0 } else { verdicts.1 };
    let mut faults = Vec::new();
    if !verdict.allows(said.leaking) {
        faults.push(format!("the verdict is {}", verdict.name()));
    }
    // Of a sample the heaviest may be another than the one that the sentence is about.
    let is_named = |word: &&str| said.cause.contains(word) || said.summary.contains(word);
    if !case.cause.is_empty() && !case.cause.iter().any(is_named) {
        faults.push(format!("the cause is {}", case.cause.join(" or ")));
    }
    if !case.says.iter().all(|word| said.summary.contains(word)) {
        faults.push(format!("it says {}", case.says.join(", ")));
    }
    if !case.parts.is_empty() && !case.parts.contains(&&*said.part) {
        faults.push(format!("what grew is {}, not {}", case.parts.join(" or "), said.part));
    }
    if let Some((least, most)) = case.per_minute
        && said.leaking == Some(true)
        && !said.per_minute.is_some_and(|rate| (least..=most).contains(&rate))
    {
        faults.push(format!("the rate is {least} to {most} MiB/min"));
    }
    faults
}

impl Verdict {
    fn allows(self, leaking: Option<bool>) -> bool {
        match self {
            Self::Leaking => leaking == Some(true),
            Self::NotAcquitted => leaking != Some(false),
            Self::NotConvicted => leaking != Some(true),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Leaking => "leaking",
            Self::NotAcquitted => "leaking or open",
            Self::NotConvicted => "not a leak or open",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::known::CASES;

    #[test]
    fn an_answer_has_to_be_right_in_every_respect() {
        let case = CASES.iter().find(|case| case.number == "07").expect("it is there");
        let [short, .., sampled] = Way::ALL;
        let right = Said {
            summary: "leaking".to_owned(),
            leaking: Some(true),
            cause: "libmupdf.so: fz_new_pixmap_with_data, fz_convert_pixmap".to_owned(),
            per_minute: Some(300.0),
            part: "native".to_owned(),
        };
        assert_eq!(faults(case, short, &right), [""; 0]);
        assert_eq!(faults(case, sampled, &right), [""; 0]);
        for wrong in [
            Said { leaking: None, ..right.clone() },
            Said { leaking: Some(false), ..right.clone() },
            Said { cause: "python3: main".to_owned(), ..right.clone() },
            Said { per_minute: Some(20.0), ..right.clone() },
            Said { part: "managed".to_owned(), ..right.clone() },
        ] {
            assert_eq!(faults(case, short, &wrong).len(), 1, "{wrong:?}");
        }
    }
}
