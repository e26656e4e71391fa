//! Who asks by HTTP, as plainly as it can be done: what is sent is what the test says. And who is sent something.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
};

use crate::process::{PATIENCE, wait_until};

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// The lines with headers, as they came.
    pub headers: Vec<String>,
    /// What follows them.
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads one to its end.
    ///
    /// # Errors
    /// When the connection breaks, or ends before there is one.
    pub fn read(stream: &mut impl Read) -> io::Result<Self> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.split("\r\n").map(str::to_owned);
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let status = status.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { status, headers: lines.collect(), body: bytes.split_off(end + 4) })
    }

    /// The value of a header, empty when there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let mut fields = self.headers.iter().filter_map(|line| line.split_once(": "));
        fields.find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    /// The body as text.
    #[track_caller]
    #[must_use]
    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("it is text")
    }
}

/// A connection to an address such as `127.0.0.1:9497`.
#[track_caller]
#[must_use]
pub fn connect(address: &str) -> TcpStream {
    let stream =
        TcpStream::connect(address).unwrap_or_else(|error| panic!("{address} takes connections: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).expect("it can have one");
    stream
}

/// What a client sends for a page: `headers` are whole lines.
#[must_use]
pub fn request(path: &str, headers: &[&str]) -> String {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    format!("GET {path} HTTP/1.1\r\n{headers}\r\n")
}

/// Gets a page of an address, as its clients do.
#[track_caller]
#[must_use]
pub fn get(address: &str, path: &str) -> Answer {
    ask(address, &request(path, &[&format!("Host: {address}")]))
}

/// Sends a text to an address, and reads the answer.
#[track_caller]
#[must_use]
pub fn ask(address: &str, text: &str) -> Answer {
    let mut stream = connect(address);
    stream.write_all(text.as_bytes()).expect("it takes the request");
    Answer::read(&mut stream).unwrap_or_else(|error| panic!("{address} answers {text:?}: {error}"))
}

/// Gets a page of a socket in the file system.
#[track_caller]
#[must_use]
pub fn get_of_socket(socket: &Path, path: &str) -> Answer {
    let mut stream = UnixStream::connect(socket).expect("it takes connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("it can have one");
    stream.write_all(request(path, &["Host: localhost"]).as_bytes()).expect("it takes the request");
    Answer::read(&mut stream).expect("it answers")
}

/// Takes one request, and answers that all is well: what it asks for, and its body.
#[track_caller]
#[must_use]
pub fn take_request(listener: &TcpListener) -> (String, Vec<u8>) {
    listener.set_nonblocking(true).expect("it can be waited for");
    let (stream, _) = wait_until("somebody calls", || listener.accept().ok());
    stream.set_read_timeout(Some(PATIENCE)).expect("it can have one");
    let mut reader = BufReader::new(&stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).expect("it is text") > 0, "a whole request: {head}");
    }
    let length = |line: &str| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok();
    let mut body = vec![0; head.lines().find_map(length).expect("it says how long it is")];
    reader.read_exact(&mut body).expect("it is that long");
    let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    (&stream).write_all(answer).expect("it listens");
    (head.lines().next().unwrap_or_default().to_owned(), body)
}
