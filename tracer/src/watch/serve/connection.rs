//! Connections, and what each may take: nobody keeps the service from watching, or others from asking.
//!
//! A connection has one request. Prometheus and browsers make the next one at once, and so nobody holds a place without asking.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Semaphore,
    time::{Sleep, sleep, timeout},
};

use super::listen::{Listener, Stream};

/// Connections at a time; others wait for their turn in the kernel's queue.
pub(super) const MOST: usize = 64;

/// Time to send a request: less than the 10 s after which Prometheus gives up, so that those who hold all places go before.
const TIME_TO_ASK: Duration = Duration::from_secs(5);

/// The largest request line and headers. Browsers send some 2 KiB.
const LARGEST_HEAD: usize = 16 << 10;

/// Time in which somebody who gets an answer has to take something of it.
const TIME_TO_TAKE: Duration = Duration::from_secs(30);

/// Time for everything: a large report over a slow line takes minutes.
const TIME_FOR_ALL: Duration = Duration::from_secs(15 * 60);

/// Time without new connections when one cannot be taken: there are no descriptors until another ends.
const TIME_TO_REST: Duration = Duration::from_millis(100);

/// Serves until it is dropped.
pub(super) async fn serve(listener: Listener, router: Router) {
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok(stream) => {
                let router = router.clone();
                tokio::spawn(async move {
                    answer(stream, router).await;
                    drop(place);
                });
            }
            Err(error) => {
                log::debug!("a connection was not taken: {error}");
                sleep(TIME_TO_REST).await;
            }
        }
    }
}

async fn answer(stream: Box<dyn Stream>, router: Router) {
    let mut http = http1::Builder::new();
    http.keep_alive(false).timer(TokioTimer::new());
    http.header_read_timeout(TIME_TO_ASK).max_buf_size(LARGEST_HEAD);
    let stream = TokioIo::new(Taken { stream, waiting: None });
    let connection = http.serve_connection(stream, TowerToHyperService::new(router));
    match timeout(TIME_FOR_ALL, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::debug!("a connection broke: {error}"),
        Err(_) => log::debug!("a connection took too long"),
    }
}

/// A stream whose other end must take what is written.
struct Taken {
    stream: Box<dyn Stream>,
    /// Until when, since nothing more could be written.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Taken {
    fn unless_it_takes_too_long<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(TIME_TO_TAKE)));
        ready!(waiting.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Taken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Taken {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.unless_it_takes_too_long(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.unless_it_takes_too_long(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_left_and_who_takes_it_slowly_is_not() {
        let (stream, mut other) = duplex(16);
        let mut taken = Taken { stream: Box::new(stream), waiting: None };
        let writing = tokio::spawn(async move { taken.write_all(&[7; 64]).await });
        for _ in 0..3 {
            sleep(TIME_TO_TAKE - Duration::from_secs(1)).await;
            other.read_exact(&mut [0; 16]).await.unwrap();
        }
        assert!(writing.await.unwrap().is_ok());

        let (stream, _other) = duplex(16);
        let mut taken = Taken { stream: Box::new(stream), waiting: None };
        let error = taken.write_all(&[7; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
