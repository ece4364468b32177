//! A file that grows by what arrives: written, digested and brought to the disk by threads of its own, while the next bytes are
//! on their way.
//!
//! Blocks go to one thread in order; a few may wait, then who sends waits. Each time a good part has been written another thread
//! asks the disk for it, so that at the end little is left to wait for.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use sha2::{Digest, Sha256};
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::PollSender;

/// Bytes that are written at a time.
const BLOCK: usize = 512 << 10;
/// Blocks that wait for the disk.
const WAITING: usize = 8;
/// Bytes after which the disk is asked for what was written.
const SYNCED: usize = 64 << 20;

/// Where bytes go.
pub(crate) struct Sink {
    block: Vec<u8>,
    to: PollSender<Vec<u8>>,
    writer: JoinHandle<io::Result<Sha256>>,
}

impl Sink {
    /// At the end of this file, which is made; what it has already is digested first.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, u64)> {
        let file = File::options().create(true).read(true).append(true).open(path)?;
        let have = file.metadata()?.len();
        let (to, from) = mpsc::channel(WAITING);
        let writer = tokio::task::spawn_blocking(move || {
            let mut file = file;
            let hash = digest(&mut file)?;
            append(file, hash, from)
        });
        Ok((Self { block: vec![], to: PollSender::new(to), writer }, have))
    }

    /// The digest of the whole file, once all of it is on the disk.
    pub(crate) async fn end(mut self) -> io::Result<Sha256> {
        if !self.block.is_empty() && std::future::poll_fn(|cx| self.to.poll_reserve(cx)).await.is_ok() {
            let _ = self.to.send_item(std::mem::take(&mut self.block));
        }
        self.to.close();
        self.writer.await.map_err(io::Error::other)?
    }
}

impl AsyncWrite for Sink {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.block.len() >= BLOCK {
            // Why the writer ended it tells at the end.
            let ended = |_| io::Error::from(io::ErrorKind::BrokenPipe);
            ready!(this.to.poll_reserve(cx)).map_err(ended)?;
            let full = std::mem::replace(&mut this.block, Vec::with_capacity(BLOCK));
            this.to.send_item(full).map_err(ended)?;
        }
        let room = BLOCK - this.block.len();
        let taken = bytes.len().min(room);
        this.block.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Of what a file has from here to its end.
fn digest(file: &mut File) -> io::Result<Sha256> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; BLOCK]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn append(mut file: File, mut hash: Sha256, mut from: mpsc::Receiver<Vec<u8>>) -> io::Result<Sha256> {
    let (mut written, mut syncing) = (0, None::<std::thread::JoinHandle<io::Result<()>>>);
    let joined = |thread: std::thread::JoinHandle<io::Result<()>>| {
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that brings a file to the disk panicked")))
    };
    while let Some(block) = from.blocking_recv() {
        file.write_all(&block)?;
        hash.update(&block);
        written += block.len();
        if written >= SYNCED && syncing.as_ref().is_none_or(std::thread::JoinHandle::is_finished) {
            // An error of the disk is told once to each file that is open: it must not be lost here.
            syncing.take().map(joined).transpose()?;
            written = 0;
            let copy = file.try_clone()?;
            syncing = Some(std::thread::spawn(move || copy.sync_data()));
        }
    }
    syncing.take().map(joined).transpose()?;
    file.sync_all()?;
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn what_comes_is_there_and_digested() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes[..1000]).unwrap();
        let (mut sink, have) = Sink::open(&path).unwrap();
        assert_eq!(have, 1000);
        sink.write_all(&bytes[1000..]).await.unwrap();
        assert_eq!(sink.end().await.unwrap().finalize(), Sha256::digest(&bytes));
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[tokio::test]
    async fn a_full_disk_is_told() {
        if !Path::new("/dev/full").exists() {
            return;
        }
        let file = File::options().write(true).open("/dev/full").unwrap();
        let (to, from) = mpsc::channel(WAITING);
        let writer = tokio::task::spawn_blocking(move || append(file, Sha256::new(), from));
        let mut sink = Sink { block: vec![], to: PollSender::new(to), writer };
        let many = vec![0; BLOCK * (WAITING + 4)];
        let sent = sink.write_all(&many).await;
        let ended = sink.end().await;
        assert_eq!(ended.err().map(|e| e.kind()), Some(io::ErrorKind::StorageFull));
        assert!(sent.is_err(), "who sends notices");
    }
}
