//! `/debug/pprof/heap` and `/debug/pprof/allocs`: a profile on demand, as Go's programs serve theirs, so that `go tool pprof`, Parca and
//! Alloy read it.

use std::time::Duration;

use axum::{
    http::{
        HeaderValue, Method, StatusCode,
        header::{ALLOW, CONTENT_DISPOSITION, CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse as _, Response},
};
use tokio::{
    sync::{mpsc::Sender, oneshot},
    task::spawn_blocking,
};

use crate::{
    report::pprof,
    watch::query::{ProfileRequest, Query, Refusal},
};

/// Where nothing else is said, as everywhere with pprof.
const TIME: Duration = Duration::from_secs(30);

/// Somebody might forget that it goes on.
const LONGEST: Duration = Duration::from_secs(10 * 60);

/// What is shown first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DefaultSample {
    /// What was not freed.
    InUse,
    /// What was allocated.
    Allocated,
}

/// Records, and answers with the profile.
pub(super) async fn answer(
    queries: &Sender<Query>,
    method: &Method,
    query: Option<&str>,
    shown: DefaultSample,
) -> Response {
    // `HEAD` would record, and throw the profile away.
    if method != Method::GET {
        return (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET")]).into_response();
    }
    match profile(queries, query, shown).await {
        Ok(profile) => {
            let headers = [
                (CONTENT_TYPE, "application/octet-stream"),
                (CONTENT_DISPOSITION, "attachment; filename=\"profile.pb.gz\""),
            ];
            (headers, profile).into_response()
        }
        Err((status, line)) => {
            let mut answer = (status, format!("{line}\n")).into_response();
            if status == StatusCode::SERVICE_UNAVAILABLE {
                answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("30"));
            }
            answer
        }
    }
}

type Failure = (StatusCode, String);

async fn profile(
    queries: &Sender<Query>,
    query: Option<&str>,
    shown: DefaultSample,
) -> Result<Vec<u8>, Failure> {
    let ProfileQuery { subject, time } = asked(query.unwrap_or_default())?;
    let ending = || (StatusCode::SERVICE_UNAVAILABLE, "the service is about to end".to_owned());
    let (answer, profile) = oneshot::channel();
    let demand = ProfileRequest { subject, time, answer };
    queries.send(Query::Profile(demand)).await.map_err(|_| ending())?;
    let profile = profile.await.map_err(|_| ending())?;
    let profile = profile.map_err(|refusal| (status_of(&refusal), refusal.to_string()))?;
    match shown {
        DefaultSample::InUse => Ok(profile),
        DefaultSample::Allocated => {
            let shown = spawn_blocking(move || pprof::shows_first("alloc_space", &profile)).await;
            let wrong = |error: String| (StatusCode::INTERNAL_SERVER_ERROR, error);
            shown.map_err(|error| wrong(error.to_string()))?.map_err(|error| wrong(error.to_string()))
        }
    }
}

const fn status_of(refusal: &Refusal) -> StatusCode {
    match refusal {
        Refusal::NoSuchSubject => StatusCode::NOT_FOUND,
        Refusal::AlreadyRecorded => StatusCode::CONFLICT,
        Refusal::TooMany(_) | Refusal::NoCpuTime(_) => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
struct ProfileQuery {
    subject: String,
    time: Duration,
}

fn asked(query: &str) -> Result<ProfileQuery, Failure> {
    let wrong = |line: &str| (StatusCode::BAD_REQUEST, line.to_owned());
    let value = |name: &str| form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
    let subject = value("subject").map(|(_, subject)| subject.into_owned()).unwrap_or_default();
    if subject.is_empty() {
        return Err(wrong("whom to record? Add ?subject=NAME: / lists them"));
    }
    let time = match value("seconds") {
        None => TIME,
        Some((_, text)) => {
            let seconds = text.parse().ok().filter(|seconds| (1..=LONGEST.as_secs()).contains(seconds));
            let limits = format!("seconds is a number from 1 to {}", LONGEST.as_secs());
            Duration::from_secs(seconds.ok_or_else(|| wrong(&limits))?)
        }
    };
    Ok(ProfileQuery { subject, time })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_a_subject_and_a_time() {
        let asked_for = |subject: &str, seconds| {
            Ok(ProfileQuery { subject: subject.into(), time: Duration::from_secs(seconds) })
        };
        assert_eq!(asked("subject=shop%2Fweb-0%2Fnode&seconds=5"), asked_for("shop/web-0/node", 5));
        assert_eq!(asked("debug=0&subject=a+b%20(2)"), asked_for("a b (2)", 30));
        let line = |query: &str| asked(query).unwrap_err();
        for query in ["", "seconds=5", "subject=", "pid=1"] {
            assert!(line(query).1.contains("whom to record?"), "{query}");
        }
        for seconds in ["0", "601", "-1", "1.5", "", "x", "99999999999999999999"] {
            let query = format!("subject=x&seconds={seconds}");
            assert_eq!(line(&query), (StatusCode::BAD_REQUEST, "seconds is a number from 1 to 600".into()));
        }
    }
}
