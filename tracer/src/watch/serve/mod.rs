//! What the service says by HTTP: metrics, a page, reports, profiles on demand.
//!
//! Everybody who asks gets what the service itself says between two looks ([`Query`]): nothing here reads a control group or a process.

mod connection;
mod exposition;
mod guard;
mod listen;
mod metrics;
mod own;
mod page;
mod profiles;
mod reports;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use axum::{
    Router,
    extract::{Path as Named, RawQuery, Request, State},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    middleware::{Next, from_fn_with_state},
    response::{Html, IntoResponse as _, Response},
    routing::get,
};
use tokio::{
    sync::{
        mpsc::{Receiver, Sender, channel},
        oneshot,
    },
    task::JoinHandle,
};

pub use self::listen::Listen;
use self::{exposition::Syntax, guard::Guard, listen::Listener, metrics::Answers, profiles::DefaultSample};
use super::{now, query::Query, view::View};

/// What listens, and stops to when dropped.
pub struct Server {
    queries: Receiver<Query>,
    guard: Arc<Guard>,
    place: Option<String>,
    task: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Server {
    /// Begins to listen.
    ///
    /// # Errors
    /// When others could ask without a token, the token cannot be read, or somebody else listens there.
    pub async fn start(listen: &Listen, token_file: Option<&Path>) -> Result<Self> {
        let guard = Arc::new(Guard::new(listen, token_file)?);
        let (sender, queries) = channel(connection::MOST);
        let listener = Listener::bind(listen).await?;
        let place = listener.as_ref().map(Listener::place);
        let shared = Shared { queries: sender, guard: Arc::clone(&guard), answers: Arc::default() };
        let task = listener.map(|listener| tokio::spawn(connection::serve(listener, routes(shared))));
        Ok(Self { queries, guard, place, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn place(&self) -> Option<&str> {
        self.place.as_deref()
    }

    /// The next query; none when nobody can ask.
    pub async fn query(&mut self) -> Option<Query> {
        self.queries.recv().await
    }

    /// Reads the token again.
    ///
    /// # Errors
    /// When it cannot be read; then the old one stays.
    pub fn reload(&self, token_file: Option<&Path>) -> Result<()> {
        self.guard.reload(token_file)
    }
}

/// Finds out whether it may be served like this, and changes nothing.
///
/// # Errors
/// As [`Server::start`], but for who else listens.
pub fn check(listen: &Listen, token_file: Option<&Path>) -> Result<()> {
    Guard::new(listen, token_file).map(drop)
}

/// What all requests share.
#[derive(Clone)]
struct Shared {
    queries: Sender<Query>,
    guard: Arc<Guard>,
    answers: Arc<Mutex<Answers>>,
}

fn routes(shared: Shared) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/reports/{name}", get(report))
        .route("/debug/pprof/heap", get(heap))
        .route("/debug/pprof/allocs", get(allocations))
        .route("/-/healthy", get(async || "tracer watch is healthy\n"))
        .route("/-/ready", get(ready))
        // Browsers ask for it beside every report.
        .route("/favicon.ico", get(async || StatusCode::NO_CONTENT))
        .fallback(async || {
            (StatusCode::NOT_FOUND, "there is /, /metrics, /reports/index.json and /debug/pprof/heap\n")
        })
        .layer(from_fn_with_state(shared.clone(), guarded))
        .with_state(shared)
}

async fn guarded(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let answer = guard::guarded(&shared.guard, request, next).await;
    let mut answers = shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
    *answers.entry(answer.status().as_u16()).or_default() += 1;
    drop(answers);
    answer
}

impl Shared {
    async fn view(&self) -> Result<Arc<View>, Response> {
        let ending = || (StatusCode::SERVICE_UNAVAILABLE, "the service is about to end\n").into_response();
        let (answer, view) = oneshot::channel();
        self.queries.send(Query::View(answer)).await.map_err(|_| ending())?;
        view.await.map_err(|_| ending())
    }
}

async fn page(State(shared): State<Shared>) -> Result<Response, Response> {
    let view = shared.view().await?;
    Ok(Html(page::page(&view, now())).into_response())
}

async fn metrics(State(shared): State<Shared>, headers: HeaderMap) -> Result<Response, Response> {
    let view = shared.view().await?;
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let syntax = Syntax::asked_for(accept.unwrap_or_default());
    let answers = shared.answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let text = exposition::text(&metrics::families(&view, &own::cost(), &answers), syntax);
    let kind = HeaderValue::from_static(syntax.content_type());
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

async fn report(State(shared): State<Shared>, Named(name): Named<String>) -> Result<Response, Response> {
    Ok(reports::answer(&*shared.view().await?, &name))
}

async fn heap(State(shared): State<Shared>, method: Method, RawQuery(query): RawQuery) -> Response {
    profiles::answer(&shared.queries, &method, query.as_deref(), DefaultSample::InUse).await
}

async fn allocations(State(shared): State<Shared>, method: Method, RawQuery(query): RawQuery) -> Response {
    profiles::answer(&shared.queries, &method, query.as_deref(), DefaultSample::Allocated).await
}

async fn ready(State(shared): State<Shared>) -> Response {
    match shared.view().await {
        Ok(view) if view.tally.looks > 0 => "tracer watch is ready\n".into_response(),
        Ok(_) => (StatusCode::SERVICE_UNAVAILABLE, "nobody has been looked at so far\n").into_response(),
        Err(ending) => ending,
    }
}
