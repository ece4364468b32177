//! Writes of one turn of an HTTP/2 connection, gathered into one TLS record.
//!
//! A connection of HTTP/2 carries many answers: a client's watches all share one. Its task writes a frame and flushes it
//! before the next, so each event of each watch would be a record and a system call of its own. Here a flush is put off to
//! the next turn of the task, which it asks for at once: the tasks of the other streams are ahead of it in the queue, and
//! what they have to say goes out with the same record. Nothing waits longer than the tasks that are ready now.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is gathered at most: the plain text of one TLS record.
const RECORD: usize = 16 * 1024;
/// A piece this long is worth a record of its own and is not copied.
const LARGE: usize = 8 * 1024;

/// A connection whose small writes are gathered.
///
/// The contract with its task: a flush that answered at once is carried out by the next read, write or shutdown. Connections
/// of HTTP/2 read in every turn, before they write; those of HTTP/1.1 do not, and flush as they ever did.
pub(crate) struct Gathered<S> {
    inner: S,
    held: BytesMut,
    /// Asked to be flushed, in a turn before the next read.
    due: bool,
    gathers: bool,
}

impl<S> Gathered<S> {
    /// Gathers the writes to `inner`, or, without `gathers`, passes everything on.
    pub(crate) fn new(inner: S, gathers: bool) -> Self {
        Self { inner, held: BytesMut::new(), due: false, gathers }
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// Writes what is held. What `inner` has taken is not flushed yet.
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let n = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.held))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(n);
        }
        // Most connections are quiet most of the time: they hold no memory then.
        self.held = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    fn drain_and_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(cx))?;
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        self.due = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // A peer that reads nothing stops the writing, not the reading: the task is woken when it reads on.
        if self.due
            && let Poll::Ready(Err(e)) = self.drain_and_flush(cx)
        {
            return Poll::Ready(Err(e));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.gathers {
            return Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        }
        let more = bufs.iter().map(|b| b.len()).sum::<usize>();
        if self.held.len() + more > RECORD {
            ready!(self.drain(cx))?;
        }
        if self.held.is_empty() && more >= LARGE {
            return Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        }
        if self.held.capacity() == 0 {
            // It lives for a turn: growing piece by piece would copy most of it twice.
            self.held.reserve(RECORD);
        }
        for b in bufs {
            self.held.extend_from_slice(b);
        }
        Poll::Ready(Ok(more))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            return Pin::new(&mut self.inner).poll_flush(cx);
        }
        if !self.due {
            self.due = true;
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain_and_flush(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use proptest::prelude::*;

    use super::*;

    /// A peer that takes `room` bytes, then blocks, and remembers each write.
    #[derive(Default)]
    struct Peer {
        writes: Vec<Vec<u8>>,
        room: usize,
        flushed: usize,
        shut: bool,
    }

    impl Peer {
        fn text(&self) -> Vec<u8> {
            self.writes.concat()
        }
    }

    impl AsyncRead for Peer {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Peer {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let n = buf.len().min(self.room);
            if n == 0 {
                return Poll::Pending;
            }
            self.room -= n;
            self.writes.push(buf[..n].to_vec());
            Poll::Ready(Ok(n))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushed = self.text().len();
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.shut = true;
            Poll::Ready(Ok(()))
        }
    }

    fn read(g: &mut Gathered<Peer>, cx: &mut Context<'_>) {
        assert!(Pin::new(g).poll_read(cx, &mut ReadBuf::new(&mut [0; 8])).is_pending());
    }

    #[test]
    fn frames_of_one_turn_are_one_write() {
        let cx = &mut Context::from_waker(Waker::noop());
        let mut g = Gathered::new(Peer { room: usize::MAX, ..Peer::default() }, true);
        read(&mut g, cx);
        for frame in [b"one", b"two", b"six"] {
            assert!(matches!(Pin::new(&mut g).poll_write(cx, frame), Poll::Ready(Ok(3))));
            assert!(Pin::new(&mut g).poll_flush(cx).is_ready());
        }
        assert!(g.inner.writes.is_empty());
        read(&mut g, cx);
        assert_eq!(g.inner.writes, [b"onetwosix"]);
        assert_eq!(g.inner.flushed, 9);
    }

    #[test]
    fn http_1_is_passed_on() {
        let cx = &mut Context::from_waker(Waker::noop());
        let mut g = Gathered::new(Peer { room: usize::MAX, ..Peer::default() }, false);
        assert!(matches!(Pin::new(&mut g).poll_write(cx, b"answer"), Poll::Ready(Ok(6))));
        assert_eq!(g.inner.writes, [b"answer"]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(Vec<u8>),
        Flush,
        /// The next turn, in which the peer has room for so many bytes more.
        Turn(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (any::<u8>(), 0..3 * RECORD / 2).prop_map(|(b, n)| Step::Write(vec![b; n])),
            (any::<u8>(), 0..300usize).prop_map(|(b, n)| Step::Write(vec![b; n])),
            Just(Step::Flush),
            (0..2 * RECORD).prop_map(Step::Turn),
        ]
    }

    proptest! {
        /// What was taken comes out in its order, whole, whatever the peer's pace; little is held; and nothing that was
        /// flushed stays behind once the peer has room.
        #[test]
        fn nothing_is_lost_or_reordered(steps in prop::collection::vec(step(), 0..60)) {
            let cx = &mut Context::from_waker(Waker::noop());
            let mut g = Gathered::new(Peer::default(), true);
            let (mut taken, mut asked) = (Vec::new(), 0);
            for s in steps {
                match s {
                    Step::Write(b) => {
                        if let Poll::Ready(Ok(n)) = Pin::new(&mut g).poll_write(cx, &b) {
                            taken.extend_from_slice(&b[..n]);
                        }
                    }
                    Step::Flush => {
                        if Pin::new(&mut g).poll_flush(cx).is_ready() {
                            asked = taken.len();
                        }
                    }
                    Step::Turn(room) => {
                        g.inner.room += room;
                        read(&mut g, cx);
                    }
                }
                prop_assert!(g.held.len() <= RECORD);
                prop_assert!(taken.starts_with(&g.inner.text()));
            }
            g.inner.room = usize::MAX;
            read(&mut g, cx);
            prop_assert!(g.inner.flushed >= asked);
            prop_assert!(Pin::new(&mut g).poll_shutdown(cx).is_ready());
            prop_assert!(g.inner.shut);
            prop_assert_eq!(g.inner.text(), taken);
        }
    }
}
