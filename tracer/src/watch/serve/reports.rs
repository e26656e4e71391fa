//! `/reports/…`: what the index has. Names of files are looked up there, never taken from the request.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_DISPOSITION, CONTENT_TYPE},
    },
    response::{IntoResponse as _, Response},
};
use hyper::body::{Frame, SizeHint};

use crate::watch::{store, view::View};

/// A report, or the index.
pub(super) fn answer(view: &View, asked: &str) -> Response {
    if asked == store::INDEX {
        return match store::index_of(&view.recordings) {
            Ok(index) => ([(CONTENT_TYPE, "application/json")], index).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        };
    }
    let mut files = view.recordings.iter().flat_map(|entry| &entry.files);
    let Some(name) = files.find(|name| *name == asked) else {
        return (StatusCode::NOT_FOUND, "no recording has such a file: / lists them\n").into_response();
    };
    match Contents::open(&view.directory.join(name)) {
        Ok(contents) => with_headers(name, contents),
        // It has made room for another meanwhile.
        Err(error) => (StatusCode::NOT_FOUND, format!("{name}: {error}\n")).into_response(),
    }
}

fn with_headers(name: &str, contents: Contents) -> Response {
    let mut answer = Body::new(contents).into_response();
    let is_page = name.ends_with(".html");
    let kind = if is_page { "text/html; charset=utf-8" } else { "application/gzip" };
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    let attached = HeaderValue::from_str(&format!("attachment; filename=\"{name}\""));
    if let (false, Ok(attached)) = (is_page, attached) {
        answer.headers_mut().insert(CONTENT_DISPOSITION, attached);
    }
    answer
}

/// A file that is read as it is sent: reports may be large, and many may be asked for.
struct Contents {
    file: File,
    left: u64,
}

impl Contents {
    /// Read at a time. From the page cache that takes some 10 µs, so the service does not stop watching for it.
    const PIECE: u64 = 64 << 10;

    fn open(path: &Path) -> io::Result<Self> {
        let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        let left = file.metadata()?.len();
        Ok(Self { file, left })
    }

    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut piece = Vec::new();
        (&self.file).take(self.left.min(Self::PIECE)).read_to_end(&mut piece)?;
        self.left -= piece.len() as u64;
        match (piece.is_empty(), self.left) {
            (true, 0) => Ok(None),
            // The length has been promised.
            (true, _) => Err(io::ErrorKind::UnexpectedEof.into()),
            (false, _) => Ok(Some(piece.into())),
        }
    }
}

impl HttpBody for Contents {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(self.next().transpose().map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::watch::fixtures;

    #[test]
    fn nothing_is_served_but_what_the_index_has() {
        let directory = tempfile::tempdir().unwrap();
        let mut view = fixtures::view();
        view.directory = directory.path().to_owned();
        let [html, json, pprof] = &view.recordings[1].files.clone()[..] else { panic!("three files") };
        fs::write(directory.path().join(html), "a page").unwrap();
        fs::write(directory.path().join("other.html"), "another").unwrap();
        symlink("/etc/passwd", directory.path().join(json)).unwrap();
        let status = |name: &str| answer(&view, name).status();
        assert_eq!(status(html), StatusCode::OK);
        assert_eq!(answer(&view, html).headers()[CONTENT_TYPE], "text/html; charset=utf-8");
        assert_eq!(status("index.json"), StatusCode::OK);
        for name in ["other.html", json, pprof, "", ".", "..", "../etc/passwd", "/etc/passwd", ".lock", "%2e"]
        {
            assert_eq!(status(name), StatusCode::NOT_FOUND, "{name}");
        }
    }

    #[test]
    fn a_file_is_read_in_pieces_and_one_that_shrinks_is_not_filled_up() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let length = Contents::PIECE + 5;
        file.as_file().set_len(length).unwrap();
        let mut contents = Contents::open(file.path()).unwrap();
        let mut next = || contents.next().map(|piece| piece.map(|piece| piece.len() as u64));
        assert_eq!(next().unwrap(), Some(Contents::PIECE));
        assert_eq!(next().unwrap(), Some(5));
        assert_eq!(next().unwrap(), None);
        let mut contents = Contents::open(file.path()).unwrap();
        file.as_file().set_len(3).unwrap();
        assert_eq!(contents.next().unwrap().unwrap().len(), 3);
        assert!(contents.next().is_err());
    }
}
