//! Who may ask.
//!
//! Without a token only this machine can connect, and its browsers can be made to by pages of others: by a name of theirs that resolves to
//! 127.0.0.1 (DNS rebinding: their page could read the answers), or across sites (they could begin recordings). The first is told by the
//! `Host` header, the second by `Sec-Fetch-Site`, neither of which a page can set.

use std::{fs, net::IpAddr, path::Path, sync::RwLock};

use anyhow::{Context as _, Result, bail, ensure};
use axum::{
    extract::Request,
    http::{
        HeaderMap, HeaderValue, StatusCode, Uri,
        header::{
            AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, REFERRER_POLICY, WWW_AUTHENTICATE,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use subtle::ConstantTimeEq as _;

use super::listen::Listen;

/// What is asked for with `Authorization: Bearer TOKEN`, or as the password of any user.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token(String);

impl Token {
    /// Shorter ones can be guessed.
    const SHORTEST: usize = 16;

    /// Reads it.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let place = || format!("--token-file {}", path.display());
        let text = fs::read_to_string(path).context("cannot read it").with_context(place)?;
        Self::new(text.trim()).with_context(place)
    }

    fn new(text: &str) -> Result<Self> {
        ensure!(
            text.len() >= Self::SHORTEST && text.bytes().all(|byte| byte.is_ascii_graphic()),
            "a token has at least {} letters, digits and signs: `openssl rand -hex 32` makes one",
            Self::SHORTEST
        );
        Ok(Self(text.to_owned()))
    }

    /// Whether an `Authorization` header has it. The time that takes says nothing of it but its length.
    fn is_in(&self, header: &HeaderValue) -> bool {
        let Some((scheme, rest)) = header.to_str().ok().and_then(|text| text.split_once(' ')) else {
            return false;
        };
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.is(rest.trim().as_bytes());
        }
        // `go tool pprof` and browsers know nothing else.
        let decoded = BASE64_STANDARD.decode(rest.trim()).unwrap_or_default();
        let password = decoded.splitn(2, |&byte| byte == b':').nth(1).unwrap_or_default();
        scheme.eq_ignore_ascii_case("basic") && self.is(password)
    }

    fn is(&self, other: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(other).into()
    }
}

/// What says who may ask.
pub(super) struct Guard {
    token: RwLock<Option<Token>>,
    /// A browser connects to addresses, not to sockets in the file system.
    checks_host: bool,
}

impl Guard {
    /// For those who come to this place.
    ///
    /// # Errors
    /// When others than this machine can come, and there is no token.
    pub(super) fn new(listen: &Listen, token_file: Option<&Path>) -> Result<Self> {
        if token_file.is_none() && !listen.is_local() {
            bail!(
                "--listen {listen}: other machines could connect: give --token-file, or listen at 127.0.0.1 or a socket"
            );
        }
        let token = token_file.map(Token::read).transpose()?;
        Ok(Self { token: RwLock::new(token), checks_host: matches!(listen, Listen::Tcp(_)) })
    }

    /// Reads the token again.
    ///
    /// # Errors
    /// As [`Token::read`]; then the old one stays.
    pub(super) fn reload(&self, token_file: Option<&Path>) -> Result<()> {
        let token = token_file.map(Token::read).transpose()?;
        let mut now = self.token.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Without one, who may ask was decided at the start.
        ensure!(now.is_some() == token.is_some(), "with or without --token-file takes a new start");
        *now = token;
        Ok(())
    }

    /// Lets a request through, or says why not.
    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Refused> {
        // They say nothing, and who asks for them knows no tokens.
        if uri.path().starts_with("/-/") {
            return Ok(());
        }
        let token = self.token.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*token {
            Some(token) if !headers.get(AUTHORIZATION).is_some_and(|header| token.is_in(header)) => {
                return Err(Refused::NoToken);
            }
            None if self.checks_host && !is_for_this_machine(uri, headers) => {
                return Err(Refused::AnotherHost);
            }
            _ => {}
        }
        let from = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
        let is_ours = matches!(from, None | Some(b"same-origin" | b"none"));
        if uri.path().starts_with("/debug/") && !is_ours {
            return Err(Refused::AnotherSite);
        }
        Ok(())
    }
}

/// Why nobody answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    NoToken,
    AnotherHost,
    AnotherSite,
}

impl Refused {
    fn answer(self) -> Response {
        match self {
            Self::NoToken => {
                let challenge = [(WWW_AUTHENTICATE, "Bearer"), (WWW_AUTHENTICATE, "Basic realm=\"tracer\"")];
                let mut answer =
                    (StatusCode::UNAUTHORIZED, "the token is missing or wrong\n").into_response();
                for (name, value) in challenge {
                    answer.headers_mut().append(name, HeaderValue::from_static(value));
                }
                answer
            }
            Self::AnotherHost => (
                StatusCode::MISDIRECTED_REQUEST,
                "without a token this is served as localhost, 127.0.0.1 or [::1] alone\n",
            )
                .into_response(),
            Self::AnotherSite => (StatusCode::FORBIDDEN, "another site asks for this\n").into_response(),
        }
    }
}

/// Whether the names by which it was asked for are this machine's.
fn is_for_this_machine(uri: &Uri, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let is_ours = |authority: &str| is_this_machine(authority);
    host.to_str().is_ok_and(is_ours) && uri.authority().is_none_or(|authority| is_ours(authority.as_str()))
}

/// `localhost`, `127.0.0.1:9497`, `[::1]:9497`
fn is_this_machine(authority: &str) -> bool {
    let name = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(name, _)| name),
        None => authority.split_once(':').map_or(authority, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Asks the guard first, and tells browsers that nothing else belongs to what they get.
pub(super) async fn guarded(guard: &Guard, request: Request, next: Next) -> Response {
    let mut answer = match guard.check(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.answer(),
    };
    const ALONE: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; \
                         base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, ALONE),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in headers {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer.headers_mut().insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn guard(listen: &str, token: Option<&str>) -> Guard {
        let checks_host = matches!(listen.parse().unwrap(), Listen::Tcp(_));
        let token = token.map(|text| Token::new(text).unwrap());
        Guard { token: RwLock::new(token), checks_host }
    }

    fn check(guard: &Guard, uri: &str, headers: &[(&'static str, &str)]) -> Result<(), Refused> {
        let value = |text: &str| HeaderValue::from_str(text).unwrap();
        let mut map = HeaderMap::new();
        for &(name, text) in headers {
            map.append(name, value(text));
        }
        guard.check(&uri.parse().unwrap(), &map)
    }

    #[test]
    fn only_names_of_this_machine_are_answered() {
        let guard = guard("127.0.0.1:9497", None);
        for host in ["localhost", "LOCALHOST:9497", "127.0.0.1:9497", "127.1.2.3", "[::1]:9497", "[::1]"] {
            assert_eq!(check(&guard, "/metrics", &[("host", host)]), Ok(()), "{host}");
        }
        for host in
            ["evil.test", "evil.test:9497", "localhost.evil.test", "10.0.0.1:9497", "", "[", "::1", "0.0.0.0"]
        {
            assert_eq!(check(&guard, "/metrics", &[("host", host)]), Err(Refused::AnotherHost), "{host}");
        }
        assert_eq!(check(&guard, "/metrics", &[]), Err(Refused::AnotherHost));
        let two = [("host", "localhost"), ("host", "evil.test")];
        assert_eq!(check(&guard, "/metrics", &two), Err(Refused::AnotherHost));
        assert_eq!(
            check(&guard, "http://evil.test/metrics", &[("host", "localhost")]),
            Err(Refused::AnotherHost)
        );
        assert_eq!(check(&guard, "/-/healthy", &[("host", "pod")]), Ok(()));
        assert_eq!(check(&super::tests::guard("unix:/x", None), "/metrics", &[]), Ok(()));
    }

    #[test]
    fn other_sites_begin_no_recordings() {
        let guard = guard("127.0.0.1:9497", None);
        let from = |site, uri| check(&guard, uri, &[("host", "localhost"), ("sec-fetch-site", site)]);
        for site in ["cross-site", "same-site", "nonsense"] {
            assert_eq!(from(site, "/debug/pprof/heap?subject=x"), Err(Refused::AnotherSite));
            // A link may lead to the page.
            assert_eq!(from(site, "/"), Ok(()));
        }
        assert_eq!(from("same-origin", "/debug/pprof/heap?subject=x"), Ok(()));
        assert_eq!(from("none", "/debug/pprof/heap?subject=x"), Ok(()));
    }

    #[test]
    fn a_token_is_asked_for_everywhere() {
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        for listen in ["0.0.0.0:9497", "127.0.0.1:9497", "unix:/x"] {
            let guard = guard(listen, Some(SECRET));
            let with = |authorization: &str| {
                check(&guard, "/metrics", &[("host", "a.test"), ("authorization", authorization)])
            };
            assert_eq!(check(&guard, "/metrics", &[("host", "localhost")]), Err(Refused::NoToken));
            let right =
                [format!("Bearer {SECRET}"), format!("bearer  {SECRET}"), basic(&format!(":{SECRET}"))];
            assert!(right.iter().all(|header| with(header).is_ok()), "{listen}");
            assert_eq!(with(&basic(&format!("anybody:{SECRET}"))), Ok(()));
            let longer = format!("Bearer {SECRET}x");
            for wrong in
                ["", "Bearer", "Bearer ", "Bearer x", SECRET, &longer, "Basic !", &basic(SECRET), "Basic "]
            {
                assert_eq!(with(wrong), Err(Refused::NoToken), "{wrong}");
            }
        }
    }

    #[test]
    fn nobody_from_elsewhere_asks_without_a_token() {
        let error = |listen: &str, file: Option<&Path>| {
            Guard::new(&listen.parse().unwrap(), file).err().map(|error| format!("{error:#}"))
        };
        assert!(error("0.0.0.0:9497", None).unwrap().contains("give --token-file"));
        assert_eq!(error("127.0.0.1:9497", None), None);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        assert!(error("0.0.0.0:9497", Some(&file)).unwrap().contains("cannot read it"));
        for short in ["", "short", "with spaces in it, and long enough"] {
            fs::write(&file, short).unwrap();
            assert!(error("127.0.0.1:9497", Some(&file)).unwrap().contains("at least 16"), "{short}");
        }
        fs::write(&file, format!("{SECRET}\n")).unwrap();
        assert_eq!(error("0.0.0.0:9497", Some(&file)), None);
    }
}
