//! Sends the reports to where people collect profiles: Pyroscope, and whoever takes OpenTelemetry's.
//!
//! A thread for each receiver takes them out of a directory, so neither one that hangs nor one that is away holds up a recording or another
//! receiver, and what could not be sent yet is sent after the next start.

mod otlp;
mod proto;
mod pyroscope;
mod spool;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use flate2::read::MultiGzDecoder;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use ureq::Agent;

pub use self::spool::PushedProfile;
use self::spool::{QueuedProfile, Spool};
use crate::{https::tls, report::pprof::proto::Profile};

/// Where profiles are sent: `pyroscope=URL`, `otlp=URL`.
#[derive(Clone, PartialEq, Eq)]
pub struct PushTarget {
    protocol: Protocol,
    /// Without a slash at its end.
    url: String,
}

/// How they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Pyroscope,
    Otlp,
}

impl Protocol {
    const fn name(self) -> &'static str {
        match self {
            Self::Pyroscope => "pyroscope",
            Self::Otlp => "otlp",
        }
    }
}

impl FromStr for PushTarget {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (protocol, url) = match text.split_once('=') {
            Some(("pyroscope", url)) => (Protocol::Pyroscope, url),
            Some(("otlp", url)) => (Protocol::Otlp, url),
            _ => return Err("it is pyroscope=URL or otlp=URL"),
        };
        let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        let is_whole = host.is_some_and(|host| !host.is_empty() && !host.starts_with('/'));
        // The paths are appended.
        if !is_whole || url.contains(|letter: char| letter.is_whitespace() || "?#".contains(letter)) {
            return Err("its URL is http:// or https://, a host, and maybe a port and a path");
        }
        Ok(Self { protocol, url: url.trim_end_matches('/').to_owned() })
    }
}

impl PushTarget {
    /// Its directory in the spool.
    fn directory(&self) -> String {
        let hash = Sha256::digest(self.url.as_bytes());
        let digits: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{digits}", self.protocol.name())
    }

    fn request(&self, pushed: &PushedProfile, pprof: &[u8]) -> io::Result<Post> {
        match self.protocol {
            Protocol::Pyroscope => Ok(pyroscope::request(&self.url, pushed, pprof)),
            Protocol::Otlp => otlp::request(&self.url, pushed, &unpacked(pprof)?),
        }
    }
}

/// A password in it is not shown.
impl fmt::Display for PushTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.url.split_once("://").unwrap_or(("", &self.url));
        let host = rest.split('/').next().unwrap_or_default();
        let shown = host.rfind('@').map_or(rest, |at| &rest[at + 1..]);
        write!(f, "{}={scheme}://{shown}", self.protocol.name())
    }
}

impl fmt::Debug for PushTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A request by POST.
#[derive(Debug)]
struct Post {
    url: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

/// The largest profile that is unpacked.
const LARGEST: u64 = 1 << 30;

fn unpacked(pprof: &[u8]) -> io::Result<Profile> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(MultiGzDecoder::new(pprof), LARGEST), &mut bytes)?;
    Profile::decode(&bytes[..]).map_err(io::Error::other)
}

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// From the first failure to the next try. Each time it is twice as long.
    first: Duration,
    /// And so long at the most.
    longest: Duration,
    /// For a request and its answer.
    request: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(300),
            request: Duration::from_secs(30),
        }
    }
}

/// Sends to all destinations.
#[derive(Debug)]
pub struct Push {
    directory: PathBuf,
    pace: Pace,
    lines: Vec<DestinationQueue>,
}

/// One destination.
#[derive(Debug)]
struct DestinationQueue {
    destination: PushTarget,
    spool: Spool,
    /// Something was put there. The thread ends when this is dropped.
    wake: Sender<()>,
}

impl Push {
    /// To nobody yet. What waits to be sent is in this directory.
    #[must_use]
    pub fn new(directory: PathBuf, pace: Pace) -> Self {
        Self { directory, pace, lines: Vec::new() }
    }

    /// Sends to these from now on. What waited for others is forgotten.
    pub fn set(&mut self, destinations: &[PushTarget]) {
        self.lines.retain(|line| destinations.contains(&line.destination));
        for destination in destinations {
            if self.lines.iter().all(|line| line.destination != *destination) {
                match DestinationQueue::begin(destination, &self.directory, self.pace) {
                    Ok(line) => self.lines.push(line),
                    Err(error) => log::error!("--push {destination}: nothing is sent: {error}"),
                }
            }
        }
        let known = |name: &str| destinations.iter().any(|destination| destination.directory() == name);
        for other in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            if !other.file_name().to_str().is_some_and(known) {
                _ = fs::remove_dir_all(other.path());
            }
        }
    }

    /// Sends a `.pb.gz` file, soon.
    pub fn send(&self, pushed: &PushedProfile, pprof: &Path) {
        for DestinationQueue { destination, spool, wake } in &self.lines {
            match spool.put(pushed, pprof) {
                Ok(dropped) => {
                    for name in dropped {
                        log::error!("--push {destination}: too much waits to be sent, so {name} is not");
                    }
                    _ = wake.send(());
                }
                Err(error) => log::error!("--push {destination}: {} is not sent: {error}", pushed.name),
            }
        }
    }
}

impl DestinationQueue {
    fn begin(destination: &PushTarget, directory: &Path, pace: Pace) -> io::Result<Self> {
        let spool = Spool::open(&directory.join(destination.directory()))?;
        let (wake, woken) = channel();
        let sender = Worker {
            destination: destination.clone(),
            spool: spool.clone(),
            pace,
            agent: agent(pace.request),
        };
        thread::Builder::new().name("push".into()).spawn(move || sender.run(&woken))?;
        Ok(Self { destination: destination.clone(), spool, wake })
    }
}

fn agent(limit: Duration) -> Agent {
    Agent::config_builder()
        .timeout_global(Some(limit))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        // From one report to the next it is long.
        .max_idle_connections(0)
        .user_agent(concat!("tracer/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls())
        .build()
        .new_agent()
}

/// Why something was not taken.
#[derive(Debug, PartialEq, Eq)]
enum SendError {
    /// It may be, later.
    Later(String),
    /// It never will.
    Never(String),
}

/// What a thread does.
struct Worker {
    destination: PushTarget,
    spool: Spool,
    pace: Pace,
    agent: Agent,
}

impl Worker {
    /// Sends what waits, oldest first, until nobody puts anything there any more.
    fn run(&self, woken: &Receiver<()>) {
        let Self { destination, spool, pace, .. } = self;
        let mut pause: Option<Duration> = None;
        loop {
            let Some(waiting) = spool.first() else {
                if woken.recv().is_err() {
                    return;
                }
                continue;
            };
            let name = &waiting.pushed.name;
            let removed = match self.send(&waiting) {
                Ok(()) => {
                    if pause.take().is_some() {
                        log::warn!("--push {destination}: {name} was taken, as it should be");
                    }
                    log::info!("--push {destination}: {name} was sent");
                    spool.remove(&waiting)
                }
                Err(SendError::Never(why)) => {
                    log::error!("--push {destination}: {name} is not sent: {why}");
                    spool.remove(&waiting)
                }
                Err(SendError::Later(why)) => {
                    if pause.is_none() {
                        log::error!("--push {destination}: {why}; it is tried again until {name} is taken");
                    }
                    let time = pause.map_or(pace.first, |pause| (pause * 2).min(pace.longest));
                    pause = Some(time);
                    if !wait(woken, time) {
                        return;
                    }
                    Ok(())
                }
            };
            // It would be sent again and again, as fast as it is taken.
            if let Err(error) = removed {
                log::error!(
                    "--push {destination}: {name} cannot be removed, and nothing more is sent: {error}"
                );
                return;
            }
        }
    }

    fn send(&self, waiting: &QueuedProfile) -> Result<(), SendError> {
        let unreadable = |error: io::Error| SendError::Never(format!("it cannot be read: {error}"));
        let pprof = fs::read(&waiting.file).map_err(unreadable)?;
        let Post { url, headers, body } =
            self.destination.request(&waiting.pushed, &pprof).map_err(unreadable)?;
        let request = headers
            .into_iter()
            .fold(self.agent.post(url), |request, (name, value)| request.header(name, value));
        let response = request.send(&body[..]).map_err(|error| SendError::Later(error.to_string()))?;
        let status = response.status().as_u16();
        let is_page = response
            .headers()
            .get("content-type")
            .and_then(|kind| kind.to_str().ok())
            .is_some_and(|kind| kind.trim_start().starts_with("text/html"));
        let answer = response
            .into_body()
            .with_config()
            .limit(LONGEST_ANSWER)
            .read_to_vec()
            .map_err(|error| SendError::Later(error.to_string()));
        judge(self.destination.protocol, status, is_page, answer)
    }
}

/// Bytes of an answer that are read.
const LONGEST_ANSWER: u64 = 64 << 10;

/// Whether it was taken.
fn judge(
    protocol: Protocol,
    status: u16,
    is_page: bool,
    answer: Result<Vec<u8>, SendError>,
) -> Result<(), SendError> {
    let said = |answer: &[u8]| {
        let text: String = String::from_utf8_lossy(answer).chars().take(200).collect();
        format!("it answers {status}: {}", crate::report::human::printable(text.trim()))
    };
    match status {
        200..300 if is_page => Err(SendError::Later("it answers with a page: is the URL right?".into())),
        200..300 => match protocol {
            Protocol::Pyroscope => Ok(()),
            Protocol::Otlp => otlp::judge(&answer?),
        },
        408 | 429 | 500.. => Err(SendError::Later(said(&answer.unwrap_or_default()))),
        _ => Err(SendError::Never(said(&answer.unwrap_or_default()))),
    }
}

/// Waits so long, whatever comes meanwhile; `false` when nothing will come any more.
fn wait(woken: &Receiver<()>, time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        match woken.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::report::{Options, Report as _, fixtures, pprof::Pprof};

    const QUICK: Pace = Pace {
        first: Duration::from_millis(1),
        longest: Duration::from_millis(20),
        request: Duration::from_millis(300),
    };
    const PATIENCE: Duration = Duration::from_secs(60);
    const TAKEN: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    /// What came: the first line, and the body.
    type Came = (String, Vec<u8>);

    /// A server that answers each request with the next of these, and with the last from then on; with an empty one never.
    struct Server {
        port: u16,
        came: Receiver<Came>,
    }

    impl Server {
        fn answering(answers: &[&'static str]) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let answers = answers.to_vec();
            let (tell, came) = channel();
            thread::spawn(move || {
                let mut held = Vec::new();
                for (number, stream) in listener.incoming().enumerate() {
                    let mut stream = stream.unwrap();
                    let Some(request) = read_request(&stream) else { continue };
                    if tell.send(request).is_err() {
                        return;
                    }
                    let answer = answers[number.min(answers.len() - 1)];
                    stream.write_all(answer.as_bytes()).unwrap();
                    if answer.is_empty() {
                        held.push(stream);
                    }
                }
            });
            Self { port, came }
        }

        fn destination(&self, protocol: &str) -> PushTarget {
            format!("{protocol}=http://127.0.0.1:{}", self.port).parse().unwrap()
        }

        fn next(&self) -> Came {
            self.came.recv_timeout(PATIENCE).expect("something is sent")
        }
    }

    fn read_request(stream: &TcpStream) -> Option<Came> {
        let mut reader = BufReader::new(stream);
        let mut first = String::new();
        reader.read_line(&mut first).ok()?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        Some((first, body))
    }

    struct Fixture {
        directory: tempfile::TempDir,
        report: PathBuf,
        push: Push,
    }

    impl Fixture {
        fn sending_to(destinations: &[PushTarget]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let report = directory.path().join("web-1.pb.gz");
            Pprof
                .write(&fixtures::node(), &Options::default(), &mut fs::File::create(&report).unwrap())
                .unwrap();
            let mut push = Push::new(directory.path().join("spool"), QUICK);
            push.set(destinations);
            Self { directory, report, push }
        }

        fn send(&self, number: u64) {
            let pushed = PushedProfile {
                name: format!("web-{number}"),
                service: "web".into(),
                from: number,
                until: number + 120,
                ..PushedProfile::default()
            };
            self.push.send(&pushed, &self.report);
        }

        /// Files that wait for a destination.
        fn waiting(&self, destination: &PushTarget) -> usize {
            fs::read_dir(self.directory.path().join("spool").join(destination.directory())).unwrap().count()
        }

        fn wait_until_nothing_waits(&self, destination: &PushTarget) {
            let began = Instant::now();
            while self.waiting(destination) > 0 {
                assert!(began.elapsed() < PATIENCE, "it is still there");
                thread::yield_now();
            }
        }
    }

    #[test]
    fn a_report_is_sent_as_each_receiver_wants_it() {
        let (pyroscope, collector) = (Server::answering(&[TAKEN]), Server::answering(&[TAKEN]));
        let destinations = [pyroscope.destination("pyroscope"), collector.destination("otlp")];
        let fixture = Fixture::sending_to(&destinations);
        fixture.send(10);
        let (line, body) = pyroscope.next();
        assert_eq!(line.trim_end(), "POST /ingest?name=web%7B%7D&from=10&until=130&spyName=tracer HTTP/1.1");
        let pprof = fs::read(&fixture.report).unwrap();
        assert!(memchr::memmem::find(&body, &pprof).is_some());
        let (line, body) = collector.next();
        assert_eq!(line.trim_end(), "POST /v1development/profiles HTTP/1.1");
        assert_eq!(body, destinations[1].request(&parcel_of(10), &pprof).unwrap().body);
        destinations.iter().for_each(|destination| fixture.wait_until_nothing_waits(destination));
    }

    fn parcel_of(number: u64) -> PushedProfile {
        PushedProfile {
            name: format!("web-{number}"),
            service: "web".into(),
            from: number,
            until: number + 120,
            ..PushedProfile::default()
        }
    }

    #[test]
    fn what_fails_is_sent_again_in_its_order_and_what_is_refused_is_not() {
        let server = Server::answering(&[
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nfull",
            "garbage\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>",
            // It hangs.
            "",
            "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n",
            TAKEN,
            "HTTP/1.1 422 Unprocessable Entity\r\ncontent-length: 3\r\n\r\nbad",
            "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
            TAKEN,
        ]);
        let destination = server.destination("pyroscope");
        let fixture = Fixture::sending_to(std::slice::from_ref(&destination));
        (1..=4).for_each(|number| fixture.send(number));
        let came: Vec<String> = (0..9).map(|_| server.next().0).collect();
        let number = |line: &String| line.split("from=").nth(1).unwrap()[..1].to_owned();
        assert_eq!(came.iter().map(number).collect::<String>(), "111111234");
        fixture.wait_until_nothing_waits(&destination);
    }

    #[test]
    fn what_nobody_takes_waits_and_holds_up_nobody() {
        // Nobody listens at the first, and the second never answers.
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let gone: PushTarget = format!("otlp=http://127.0.0.1:{gone}").parse().unwrap();
        let hanging = Server::answering(&[""]);
        let well = Server::answering(&[TAKEN]);
        let destinations = [gone.clone(), hanging.destination("pyroscope"), well.destination("pyroscope")];
        let mut fixture = Fixture::sending_to(&destinations);
        for number in 1..=3 {
            fixture.send(number);
            well.next();
        }
        fixture.wait_until_nothing_waits(&destinations[2]);
        assert_eq!((fixture.waiting(&gone), fixture.waiting(&destinations[1])), (6, 6));
        // Who is not sent to any more is forgotten.
        fixture.push.set(&[]);
        assert_eq!(fs::read_dir(fixture.directory.path().join("spool")).unwrap().count(), 0);
    }

    #[test]
    fn what_waits_is_sent_after_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::answering(&[TAKEN]);
        let destination = server.destination("pyroscope");
        let spool = Spool::open(&directory.path().join(destination.directory())).unwrap();
        let report = directory.path().join("report");
        fs::write(&report, "pprof").unwrap();
        spool.put(&parcel_of(7), &report).unwrap();
        let mut push = Push::new(directory.path().to_owned(), QUICK);
        push.set(&[destination]);
        assert!(server.next().0.contains("from=7"));
    }

    #[test]
    fn a_destination_is_a_protocol_and_a_url_whose_password_is_not_shown() {
        let shown = |text: &str| text.parse::<PushTarget>().map(|to| to.to_string());
        assert_eq!(shown("otlp=http://[::1]:4318/"), Ok("otlp=http://[::1]:4318".into()));
        let secret: PushTarget = "pyroscope=https://u:p%40ss@host/base/".parse().unwrap();
        assert_eq!((secret.to_string(), format!("{secret:?}")), {
            let shown = "pyroscope=https://host/base".to_owned();
            (shown.clone(), shown)
        });
        for wrong in [
            "http://host",
            "otlp=host:4318",
            "otlp=http://",
            "zipkin=http://x",
            "otlp=http:///x",
            "otlp=http://x?y",
        ] {
            assert!(shown(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pauses_grow_and_end_when_nothing_more_comes() {
        let (wake, woken) = channel();
        wake.send(()).unwrap();
        assert!(wait(&woken, Duration::from_millis(1)));
        drop(wake);
        assert!(!wait(&woken, PATIENCE));
    }
}
