//! Names as programmers wrote them, from the names in symbol tables.

use std::fmt::{self, Write};

use cpp_demangle::DemangleOptions;

/// What a symbol is called, and the language that its mangling gives away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) text: String,
    pub(super) language: Option<&'static str>,
}

/// Demangles the name of a symbol: Rust's without its hash, C++'s with parameters but without return type (a mangled
/// name has one for templates only). A name that is not mangled, or cannot be demangled, stays as it is.
pub(super) fn demangle(symbol: &str) -> Name {
    // Rust first: its legacy names are also valid C++ ones.
    if let Some(text) = rust(symbol) {
        Name { text, language: Some("rust") }
    } else if let Some(text) = cpp(symbol) {
        Name { text, language: Some("c++") }
    } else {
        Name { text: symbol.to_owned(), language: None }
    }
}

fn rust(symbol: &str) -> Option<String> {
    let name = rustc_demangle::try_demangle(symbol).ok()?;
    let mut text = Bounded::default();
    write!(text, "{name:#}").ok()?;
    Some(text.0)
}

fn cpp(symbol: &str) -> Option<String> {
    // The demangler also takes bare types: `i` is `int`.
    if !symbol.starts_with("_Z") && !symbol.starts_with("__Z") {
        return None;
    }
    let name = cpp_demangle::BorrowedSymbol::new(symbol.as_bytes()).ok()?;
    let mut text = Bounded::default();
    name.structured_demangle(&mut text, &DemangleOptions::new().no_return_type()).ok()?;
    Some(text.0)
}

/// Text of at most [`Bounded::LIMIT`] bytes: a mangled name can refer back to its own parts, so a short one can be
/// made to demangle to gigabytes.
#[derive(Default)]
struct Bounded(String);

impl Bounded {
    const LIMIT: usize = 64 << 10;
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > Self::LIMIT {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_demangled_by_their_own_mangling() {
        for (symbol, text, language) in [
            ("_ZN2ns3FooIiE3barEi", "ns::Foo<int>::bar(int)", Some("c++")),
            ("_Z3maxIdET_S0_S0_", "max<double>(double, double)", Some("c++")),
            ("_ZL5innerv.part.0", "inner() [clone .part.0]", Some("c++")),
            ("_Z1f1A1PIS_S_ES0_IS1_S1_E", "f(A, P<A, A>, P<P<A, A>, P<A, A> >)", Some("c++")),
            ("_Znwm", "operator new(unsigned long)", Some("c++")),
            ("_ZN4core3fmt9Formatter3pad17h0123456789abcdefE", "core::fmt::Formatter::pad", Some("rust")),
            ("_RNvNtCs1234_7mycrate3foo3bar", "mycrate::foo::bar", Some("rust")),
            ("malloc", "malloc", None),
            ("i", "i", None),
            ("_Z", "_Z", None),
            ("_Zrubbish", "_Zrubbish", None),
            ("frob.constprop.0", "frob.constprop.0", None),
        ] {
            assert_eq!(demangle(symbol), Name { text: text.to_owned(), language }, "{symbol}");
        }
    }

    #[test]
    fn a_name_that_explodes_stays_mangled() {
        // f(A, P<A, A>, P<that, that>, …): each parameter holds twice the one before.
        let mut symbol = "_Z1f1A1PIS_S_E".to_owned();
        for id in "123456789ABCDEFGHIJKLMNOPQRSTUVW".chars() {
            symbol.push_str(&format!("S0_IS{id}_S{id}_E"));
        }
        assert_eq!(demangle(&symbol).text, symbol);
    }
}
