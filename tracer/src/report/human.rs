//! Numbers and names as people read them.

use std::borrow::Cow;
use std::fmt;

use crate::model::Bytes;

/// A number with thousands separators: `1,234,567`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() * 4 / 3);
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}

/// A number and the thing it counts, in singular or plural: `1 block`, `1,024 blocks`.
#[must_use]
pub fn counted(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", Count(number))
}

/// A span of time in nanoseconds, two units at most: `812ms`, `4.2s`, `42s`, `4m12s`, `3h05m`, `2d04h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0 / 1_000_000;
        let seconds = milliseconds / 1000;
        f.pad(&match seconds {
            0 => format!("{milliseconds}ms"),
            1..10 => format!("{seconds}.{}s", milliseconds % 1000 / 100),
            10..60 => format!("{seconds}s"),
            60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
            3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
            _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
        })
    }
}

/// A change of a number of bytes, always with its sign: `+3.2 MiB`, `-17 B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change(pub i64);

impl Change {
    /// From one size to another.
    #[must_use]
    pub fn between(before: u64, after: u64) -> Self {
        let difference = i128::from(after) - i128::from(before);
        Self(difference.clamp(i64::MIN.into(), i64::MAX.into()) as i64)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { '-' } else { '+' };
        f.pad(&format!("{sign}{}", Bytes(self.0.unsigned_abs())))
    }
}

/// A speed of growth, in the unit of time that people compare by eye: `+42.5 MiB/min`.
#[must_use]
pub fn per_minute(bytes_per_second: f64) -> String {
    // A float cast saturates, and a rate that is no number reads as 0.
    format!("{}/min", Change((bytes_per_second * 60.0) as i64))
}

/// A part of a whole: `93.1 %`; `0.0 %` of nothing.
#[must_use]
pub fn share(part: u64, whole: u64) -> String {
    let percent = if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 };
    format!("{percent:.1} %")
}

/// An RFC 3339 time as people write it: `2026-11-22 13:05:12 UTC`. What is not one stays as it is.
#[must_use]
pub fn moment(rfc3339: &str) -> String {
    match rfc3339.split_once('T') {
        Some((date, time)) if time.ends_with('Z') => {
            let seconds = time.trim_end_matches('Z').split('.').next().unwrap_or_default();
            format!("{date} {seconds} UTC")
        }
        _ => rfc3339.to_owned(),
    }
}

/// A name that came from the target, made safe for a terminal and for XML: control characters (a symbol may hold
/// escape sequences), characters that reorder text, and those that XML 1.0 forbids are shown as their escapes.
#[must_use]
pub fn printable(name: &str) -> Cow<'_, str> {
    if !name.contains(is_unprintable) {
        return Cow::Borrowed(name);
    }
    let escape = |c: char| if is_unprintable(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(name.chars().map(escape).collect())
}

fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}')
}

/// Cuts the middle out of a text that is longer than `width` characters: of a C++ name, both ends say more.
#[must_use]
pub fn shorten(text: &str, width: usize) -> Cow<'_, str> {
    let length = text.chars().count();
    if length <= width {
        return Cow::Borrowed(text);
    }
    let kept = width.saturating_sub(1);
    let head = kept.div_ceil(2);
    let tail = kept - head;
    let start = text.chars().take(head);
    let end = text.chars().skip(length - tail);
    Cow::Owned(start.chain(['…']).chain(end).collect())
}

/// Makes the name of a function at most `width` characters long, at the price of what says least: the spelling of
/// `std::string`, then the parameters, then the arguments of templates, then the outer namespaces, then the middle.
#[must_use]
pub fn fit_name(name: &str, width: usize) -> Cow<'_, str> {
    const STRING: &str = "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >";
    if name.chars().count() <= width {
        return Cow::Borrowed(name);
    }
    let mut short = name.replace(STRING, "std::string");
    for fold in [fold_parameters, fold_template_arguments] {
        if short.chars().count() > width {
            short = fold(&short);
        }
    }
    if short.chars().count() > width {
        short = drop_namespaces(&short, width);
    }
    Cow::Owned(shorten(&short, width).into_owned())
}

/// `a::b::c` → `…::c`: as few of the outer namespaces as must go are gone, the last one but in part if little would be left.
fn drop_namespaces(name: &str, width: usize) -> String {
    let mut depth = 0_usize;
    let mut rest = name;
    for (i, c) in name.char_indices() {
        match c {
            '(' | '<' | '{' => depth += 1,
            ')' | '>' | '}' => depth = depth.saturating_sub(1),
            ':' if depth == 0 && name[i..].starts_with("::") => {
                rest = &name[i..];
                if rest.chars().count() < width {
                    break;
                }
            }
            _ => {}
        }
    }
    let (length, left) = (name.chars().count(), rest.chars().count() + 1);
    if rest.len() == name.len() || left > width {
        name.to_owned()
    } else if left < width / 2 {
        ['…'].into_iter().chain(name.chars().skip(length + 1 - width)).collect()
    } else {
        format!("…{rest}")
    }
}

/// `a::b(c, d) const` → `a::b(…) const`
fn fold_parameters(name: &str) -> String {
    let parameters = || {
        let end = name.rfind(')')?;
        let mut depth = 0_usize;
        for (i, c) in name[..=end].char_indices().rev() {
            match c {
                ')' => depth += 1,
                '(' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some((i, end));
            }
        }
        None
    };
    match parameters() {
        Some((start, end)) if end - start > 1 && !name[end..].contains("::") => {
            format!("{}(…){}", &name[..start], &name[end + 1..])
        }
        _ => name.to_owned(),
    }
}

/// `a<b<c>, d>::e<f>` → `a<…>::e<…>`; what is no pair of brackets (`operator<`, `->`) stays.
fn fold_template_arguments(name: &str) -> String {
    let mut folded = String::with_capacity(name.len());
    let mut depth = 0_usize;
    for c in name.chars() {
        match c {
            '<' => {
                if depth == 0 {
                    folded += "<…>";
                }
                depth += 1;
            }
            '>' if depth > 0 => depth -= 1,
            _ if depth == 0 => folded.push(c),
            _ => {}
        }
    }
    // Brackets that do not pair are operators, or no brackets at all.
    if depth == 0 { folded } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_thousands_separators() {
        let text = |n| Count(n).to_string();
        assert_eq!([text(0), text(999), text(1000), text(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(text(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(counted(1, "block"), "1 block");
        assert_eq!(counted(0, "block"), "0 blocks");
    }

    #[test]
    fn spans_have_two_units_at_most() {
        let text = |seconds: f64| Span((seconds * 1e9) as u64).to_string();
        let seconds = [0.0, 0.812, 4.25, 42.9, 252.0, 3599.9, 11_100.0, 187_200.0];
        let texts = ["0ms", "812ms", "4.2s", "42s", "4m12s", "59m59s", "3h05m", "2d04h"];
        assert_eq!(seconds.map(text), texts);
    }

    #[test]
    fn changes_carry_their_sign() {
        assert_eq!(Change::between(1 << 20, 3 << 20).to_string(), "+2.0 MiB");
        assert_eq!(Change::between(17, 0).to_string(), "-17 B");
        assert_eq!(Change::between(0, u64::MAX), Change(i64::MAX));
        assert_eq!(per_minute(1024.0), "+60.0 KiB/min");
        assert_eq!(per_minute(f64::NAN), "+0 B/min");
    }

    #[test]
    fn names_from_the_target_cannot_drive_the_terminal() {
        assert_eq!(printable("\u{1b}[2Jmain\n"), "\\u{1b}[2Jmain\\n");
        assert_eq!(printable("a\u{202e}b"), "a\\u{202e}b");
        assert!(matches!(printable("größe<T>"), Cow::Borrowed("größe<T>")));
    }

    #[test]
    fn long_texts_lose_their_middle() {
        assert_eq!(shorten("abcdefghij", 5), "ab…ij");
        assert_eq!(shorten("äöüäöü", 4), "äö…ü");
        assert_eq!(shorten("abc", 3), "abc");
        assert_eq!(shorten("abc", 0), "…");
    }

    #[test]
    fn names_give_up_what_says_least() {
        let name = "a::Map<int, std::pair<int, int> >::insert(std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> > const&, int) const";
        let fit = |width| fit_name(name, width).into_owned();
        assert_eq!(fit(200), name);
        assert_eq!(fit(90), "a::Map<int, std::pair<int, int> >::insert(std::string const&, int) const");
        assert_eq!(fit(60), "a::Map<int, std::pair<int, int> >::insert(…) const");
        assert_eq!(fit(40), "a::Map<…>::insert(…) const");
        assert_eq!(fit(18), "…::insert(…) const");
        assert_eq!(fit(12), "a::Map…const");
        assert_eq!(fit_name("bool operator< <char>(a, b)", 22), "bool operat… <char>(…)");
        assert_eq!(fit_name("f(int)::{lambda()#1}::g", 20), "…::{lambda()#1}::g");
        assert_eq!(fit_name("(anonymous namespace)::a::b::Cache::Open", 19), "…::b::Cache::Open");
        assert_eq!(fit_name("ns::FunctionCallbackWrapper::Invoke", 21), "…lbackWrapper::Invoke");
    }

    #[test]
    fn no_name_is_too_odd_to_fit() {
        let odd = ["", "((((", "))))", "<<<>", "><", "a)b(", "größe<größe>(größe)", "f()", "->>->", "(…)"];
        for (name, width) in odd.iter().flat_map(|name| (0..20).map(move |width| (name, width))) {
            assert!(fit_name(name, width).chars().count() <= width.max(1), "{name} {width}");
        }
    }

    #[test]
    fn moments_read_as_written() {
        assert_eq!(moment("2026-11-22T13:05:12Z"), "2026-11-22 13:05:12 UTC");
        assert_eq!(moment("2026-11-22T13:05:12.123456Z"), "2026-11-22 13:05:12 UTC");
        assert_eq!(moment("2026-11-22T13:05:12+01:00"), "2026-11-22T13:05:12+01:00");
    }
}
