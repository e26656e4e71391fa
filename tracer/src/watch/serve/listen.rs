//! Where the service listens: at an address, at a Unix socket, or nowhere.

use std::{
    fmt, fs,
    io::{self, ErrorKind},
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere: nobody can ask.
    Nowhere,
    /// At an address and port.
    Tcp(SocketAddr),
    /// At a socket in the file system, whose permissions say who may connect.
    Unix(PathBuf),
}

impl Listen {
    /// Whether nobody from elsewhere can connect.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        match self {
            Self::Nowhere | Self::Unix(_) => true,
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => f.write_str("none"),
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Listen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.strip_prefix("unix:")) {
            ("none", _) => Ok(Self::Nowhere),
            (_, Some(path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            _ => text.parse().map(Self::Tcp).map_err(|_| {
                "it is an address with a port such as 127.0.0.1:9497, `unix:/run/tracer/watch.sock` or `none`"
            }),
        }
    }
}

/// A connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What takes connections.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A socket in the file system. Removed when dropped.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            log::debug!("cannot remove {}: {error}", self.0.display());
        }
    }
}

impl Listener {
    /// Takes the place, if it is one.
    ///
    /// # Errors
    /// When somebody has it, or it cannot be had.
    pub(super) async fn bind(listen: &Listen) -> Result<Option<Self>> {
        let place = || format!("cannot listen at {listen} (--listen)");
        Ok(match listen {
            Listen::Nowhere => None,
            Listen::Tcp(address) => Some(Self::Tcp(TcpListener::bind(address).await.with_context(place)?)),
            Listen::Unix(path) => Some(Self::bind_unix(path).await.with_context(place)?),
        })
    }

    async fn bind_unix(path: &Path) -> Result<Self> {
        if fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
            match UnixStream::connect(path).await {
                Ok(_) => bail!("another service listens there"),
                // Whoever had it was killed.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)?,
                Err(error) => return Err(error.into()),
            }
        }
        let listener = UnixListener::bind(path)?;
        let file = SocketFile(path.to_owned());
        // To connect is to write: the owner and the group may.
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
        Ok(Self::Unix(listener, file))
    }

    /// The next connection.
    ///
    /// # Errors
    /// When it broke before it was taken, or there are no more descriptors.
    pub(super) async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener, _) => Box::new(listener.accept().await?.0),
        })
    }

    /// Where that is: with the port that was given for port 0.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| "?".into(), |address| format!("http://{address}"))
            }
            Self::Unix(_, SocketFile(path)) => format!("unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_written() {
        for text in ["none", "127.0.0.1:9497", "[::1]:80", "0.0.0.0:0", "unix:/run/tracer/watch.sock"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for text in ["", "9497", ":9497", "localhost:9497", "unix:", "unix:relative", "127.0.0.1", "None"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }

    #[test]
    fn local_is_what_nobody_elsewhere_reaches() {
        let is_local = |text: &str| text.parse::<Listen>().unwrap().is_local();
        let local = ["none", "unix:/x", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"];
        assert!(local.into_iter().all(is_local));
        assert!(!["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"].into_iter().any(is_local));
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_at_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let listen = Listen::Unix(directory.path().join("watch.sock"));
        let bind = || async { Listener::bind(&listen).await.map(Option::unwrap) };
        let first = bind().await.unwrap();
        let second = format!("{:#}", bind().await.unwrap_err());
        assert!(second.contains("another service listens there"), "{second}");
        // As after a kill: the file stays.
        let Listener::Unix(socket, file) = first else { panic!("a Unix socket") };
        std::mem::forget(file);
        drop(socket);
        drop(bind().await.unwrap());
        assert!(!directory.path().join("watch.sock").exists());
        fs::write(directory.path().join("watch.sock"), "a file").unwrap();
        assert!(bind().await.is_err(), "it is not a socket, so it stays");
    }
}
