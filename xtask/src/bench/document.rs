//! Puts measured tables into a document, between the marks of their section.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// Replaces the text between `<!-- SECTION: measured -->` and `<!-- SECTION: end -->`.
///
/// # Errors
/// When the document cannot be read or written, or has no such marks.
pub fn replace(document: &Path, section: &str, text: &str) -> Result<()> {
    let shown = document.display();
    let old = fs::read_to_string(document).with_context(|| format!("cannot read {shown}"))?;
    let new = replaced(&old, section, text)
        .with_context(|| format!("{shown} has no place for the section {section}"))?;
    fs::write(document, new).with_context(|| format!("cannot write {shown}"))
}

fn replaced(document: &str, section: &str, text: &str) -> Option<String> {
    let begin = format!("<!-- {section}: measured -->\n");
    let end = format!("<!-- {section}: end -->");
    let (before, rest) = document.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}{}\n{end}{after}", text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_the_rest_stays() {
        let document = "# Title\n<!-- a: measured -->\nold\n<!-- a: end -->\ntail\n";
        let new = replaced(document, "a", "| new |\n").unwrap();
        assert_eq!(new, "# Title\n<!-- a: measured -->\n| new |\n<!-- a: end -->\ntail\n");
        assert_eq!(replaced(&new, "a", "| new |\n").unwrap(), new);
        assert_eq!(replaced(document, "b", ""), None);
    }
}
