//! SPDY/3.1, the server's side, as far as exec and port-forward use it.
//!
//! Eight kinds of frames; header blocks are compressed with one zlib state per direction and a dictionary that both
//! sides know. Flow control windows are granted as data is consumed but not waited for when sending: the clients of
//! these streams do not enforce them, and TCP holds a fast sender back.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;
const FLAG_FIN: u8 = 1;
const STATUS_REFUSED: u32 = 3;

/// Largest frame taken; the format allows 16 MiB.
const MAX_FRAME: usize = 1 << 20;
/// Largest header block after decompression.
const MAX_HEADERS: usize = 64 << 10;
/// Streams open at one time.
const MAX_STREAMS: usize = 512;
/// Frames waiting to be written, and pieces waiting to be read per stream.
const QUEUE: usize = 32;
/// Bytes of one data frame.
const CHUNK: usize = 32 << 10;
/// A client that takes no data for this long is gone. Somebody may read in a pager: it is the time after which upstream's
/// node agent ends an idle stream (`streamingConnectionIdleTimeout`).
const WRITE_TIMEOUT: Duration = Duration::from_secs(4 * 3600);

/// Names and values of a stream; names are lower case.
pub(crate) type Headers = BTreeMap<String, String>;

enum Out {
    Reply(u32),
    Data(u32, Bytes, bool),
    Reset(u32, u32),
    Ping(u32),
    Window(u32, u32),
}

/// A stream the client opened.
pub(crate) struct Stream {
    pub(crate) headers: Headers,
    /// What the client sends; ends when it closes its half.
    pub(crate) incoming: mpsc::Receiver<Bytes>,
    pub(crate) writer: Writer,
}

/// The server's half of a stream.
#[derive(Clone)]
pub(crate) struct Writer {
    id: u32,
    out: mpsc::Sender<Out>,
}

impl Writer {
    /// Sends bytes. Fails when the connection is over.
    pub(crate) async fn write(&self, data: Bytes) -> io::Result<()> {
        let mut data = data;
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(CHUNK));
            self.send(Out::Data(self.id, piece, false)).await?;
        }
        Ok(())
    }

    /// Closes this half.
    pub(crate) async fn finish(&self) -> io::Result<()> {
        self.send(Out::Data(self.id, Bytes::new(), true)).await
    }

    /// Ends the stream in both directions.
    pub(crate) async fn reset(&self) -> io::Result<()> {
        self.send(Out::Reset(self.id, STATUS_REFUSED)).await
    }

    /// The stream's number; unique on its connection.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    async fn send(&self, frame: Out) -> io::Result<()> {
        self.out.send(frame).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Runs a connection until the client leaves or nobody holds a stream or the receiver of new ones any more.
pub(crate) async fn run<S>(connection: S, opened: mpsc::Sender<Stream>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(connection);
    let (out, frames) = mpsc::channel(QUEUE);
    let weak = out.downgrade();
    let writing = tokio::spawn(write_frames(write, frames));
    let result = tokio::select! {
        result = read_frames(read, out, opened.clone()) => result,
        () = unused(&opened, weak) => Ok(()),
    };
    // What was sent before the end still goes out.
    match tokio::time::timeout(WRITE_TIMEOUT, writing).await {
        Ok(Ok(written)) => written.and(result),
        _ => result,
    }
}

/// Returns once the server dropped the receiver of new streams and all streams.
async fn unused(opened: &mpsc::Sender<Stream>, out: mpsc::WeakSender<Out>) {
    opened.closed().await;
    // The reader holds one, and so does the look itself.
    while out.upgrade().is_some_and(|o| o.strong_count() > 2) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn read_frames<R: AsyncRead + Unpin>(
    mut read: R,
    out: mpsc::Sender<Out>,
    opened: mpsc::Sender<Stream>,
) -> io::Result<()> {
    let mut streams: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    let mut inflate = Inflate::new();
    let mut head = [0u8; 8];
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    loop {
        match read.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let flags = head[4];
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        if length > MAX_FRAME {
            return Err(invalid("frame is too long"));
        }
        let mut body = BytesMut::zeroed(length);
        read.read_exact(&mut body).await?;
        let mut body = body.freeze();
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        if first >> 31 == 0 {
            let length = body.len() as u32;
            if let Some(sender) = streams.get(&first) {
                // A stream whose reader is gone swallows what still comes.
                if !body.is_empty() {
                    let _ = sender.send(body).await;
                }
                if flags & FLAG_FIN != 0 {
                    streams.remove(&first);
                }
                if length > 0 {
                    for id in [first, 0] {
                        out.send(Out::Window(id, length)).await.map_err(|_| gone())?;
                    }
                }
            }
            continue;
        }
        match (first & 0xffff) as u16 {
            SYN_STREAM if body.len() >= 10 => {
                let id = body.get_u32() & 0x7fff_ffff;
                body.advance(6);
                let headers = inflate.headers(&body)?;
                streams.retain(|_, s| !s.is_closed());
                if streams.len() >= MAX_STREAMS || streams.contains_key(&id) {
                    out.send(Out::Reset(id, STATUS_REFUSED)).await.map_err(|_| gone())?;
                    continue;
                }
                let (sender, incoming) = mpsc::channel(QUEUE);
                if flags & FLAG_FIN == 0 {
                    streams.insert(id, sender);
                }
                out.send(Out::Reply(id)).await.map_err(|_| gone())?;
                let stream = Stream { headers, incoming, writer: Writer { id, out: out.clone() } };
                opened.send(stream).await.map_err(|_| gone())?;
            }
            SYN_REPLY | HEADERS if body.len() >= 4 => {
                // The server opens no streams, but the compression state must see every block.
                body.advance(4);
                inflate.headers(&body)?;
            }
            RST_STREAM if body.len() >= 8 => drop(streams.remove(&(body.get_u32() & 0x7fff_ffff))),
            // Odd numbers are the client's own and want an echo.
            PING if body.len() >= 4 => {
                let id = body.get_u32();
                if id % 2 == 1 {
                    out.send(Out::Ping(id)).await.map_err(|_| gone())?;
                }
            }
            GOAWAY => return Ok(()),
            SETTINGS | WINDOW_UPDATE => {}
            _ => return Err(invalid("unknown or short control frame")),
        }
    }
}

async fn write_frames<W: AsyncWrite + Unpin>(mut write: W, mut frames: mpsc::Receiver<Out>) -> io::Result<()> {
    let mut deflate = Deflate::new()?;
    while let Some(frame) = frames.recv().await {
        let bytes = match frame {
            Out::Data(id, data, fin) => {
                let mut bytes = BytesMut::with_capacity(8 + data.len());
                bytes.put_u32(id);
                bytes.put_u32(u32::from(if fin { FLAG_FIN } else { 0 }) << 24 | data.len() as u32);
                bytes.put_slice(&data);
                bytes
            }
            Out::Reply(id) => {
                let block = deflate.headers(&Headers::new())?;
                let mut body = BytesMut::new();
                body.put_u32(id);
                body.put_slice(&block);
                control(SYN_REPLY, 0, &body)
            }
            Out::Reset(id, status) => control(RST_STREAM, 0, &[id.to_be_bytes(), status.to_be_bytes()].concat()),
            Out::Ping(id) => control(PING, 0, &id.to_be_bytes()),
            Out::Window(id, size) => control(WINDOW_UPDATE, 0, &[id.to_be_bytes(), size.to_be_bytes()].concat()),
        };
        let written = async {
            write.write_all(&bytes).await?;
            write.flush().await
        };
        tokio::time::timeout(WRITE_TIMEOUT, written).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    }
    write.shutdown().await
}

fn control(kind: u16, flags: u8, body: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(8 + body.len());
    bytes.put_u16(0x8003);
    bytes.put_u16(kind);
    bytes.put_u32(u32::from(flags) << 24 | body.len() as u32);
    bytes.put_slice(body);
    bytes
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Decompression state of one direction.
struct Inflate(Decompress);

impl Inflate {
    fn new() -> Self {
        Self(Decompress::new(true))
    }

    fn headers(&mut self, block: &[u8]) -> io::Result<Headers> {
        let mut plain = Vec::new();
        let mut rest = block;
        loop {
            plain.reserve(4096);
            let (before_in, before_out) = (self.0.total_in(), plain.len());
            match self.0.decompress_vec(rest, &mut plain, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(invalid("header compression ended")),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    rest = &rest[(self.0.total_in() - before_in) as usize..];
                    self.0.set_dictionary(&dictionary()).map_err(|_| invalid("wrong header dictionary"))?;
                    continue;
                }
                Err(_) => return Err(invalid("header block is corrupt")),
            }
            rest = &rest[(self.0.total_in() - before_in) as usize..];
            if plain.len() > MAX_HEADERS {
                return Err(invalid("header block is too long"));
            }
            let progressed = self.0.total_in() > before_in || plain.len() > before_out;
            if rest.is_empty() && plain.len() < plain.capacity() || !progressed {
                break;
            }
        }
        parse(&plain)
    }
}

fn parse(plain: &[u8]) -> io::Result<Headers> {
    let mut plain = plain;
    let mut headers = Headers::new();
    let number = |plain: &mut &[u8]| {
        if plain.len() < 4 { Err(invalid("header block is short")) } else { Ok(plain.get_u32() as usize) }
    };
    let text = |plain: &mut &[u8]| {
        let length = number(plain)?;
        if plain.len() < length {
            return Err(invalid("header block is short"));
        }
        let (text, rest) = plain.split_at(length);
        let text = String::from_utf8_lossy(text).into_owned();
        *plain = rest;
        Ok(text)
    };
    if plain.is_empty() {
        return Ok(headers);
    }
    for _ in 0..number(&mut plain)? {
        let name = text(&mut plain)?.to_lowercase();
        let value = text(&mut plain)?;
        // Several values are separated by a zero byte; the first one counts here.
        headers.insert(name, value.split('\0').next().unwrap_or_default().to_string());
    }
    Ok(headers)
}

/// Compression state of one direction.
struct Deflate(Compress);

impl Deflate {
    fn new() -> io::Result<Self> {
        let mut compress = Compress::new(Compression::default(), true);
        compress.set_dictionary(&dictionary()).map_err(io::Error::other)?;
        Ok(Self(compress))
    }

    fn headers(&mut self, headers: &Headers) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        plain.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for text in [name, value] {
                plain.put_u32(text.len() as u32);
                plain.put_slice(text.as_bytes());
            }
        }
        let mut block = Vec::new();
        let mut rest = &plain[..];
        loop {
            block.reserve(1024);
            let before = self.0.total_in();
            self.0.compress_vec(rest, &mut block, FlushCompress::Sync).map_err(io::Error::other)?;
            rest = &rest[(self.0.total_in() - before) as usize..];
            if rest.is_empty() && block.len() < block.capacity() {
                return Ok(block);
            }
        }
    }
}

/// The dictionary of SPDY/3: words with their length in front, then common values.
fn dictionary() -> Vec<u8> {
    const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
        accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
        content-length content-location content-md5 content-range content-type date etag expect expires from host \
        if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards \
        pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding \
        upgrade user-agent vary via warning www-authenticate method get status";
    const MORE: [&str; 8] = ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"];
    const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
        203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
        403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
        Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
        chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
        text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS.split_whitespace().chain(MORE) {
        dictionary.put_u32(word.len() as u32);
        dictionary.put_slice(word.as_bytes());
    }
    dictionary.put_slice(TAIL.as_bytes());
    dictionary
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_dictionary_is_the_known_one() {
        let dictionary = dictionary();
        let (a, b) = dictionary.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65_521;
            (a, (b + a) % 65_521)
        });
        assert_eq!((dictionary.len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }

    proptest! {
        /// Blocks that share one state come back as they went in.
        #[test]
        fn headers_survive(blocks in prop::collection::vec(
            prop::collection::btree_map("[a-z-]{1,20}", "[ -~]{0,200}", 0..20), 1..5)
        ) {
            let (mut deflate, mut inflate) = (Deflate::new().unwrap(), Inflate::new());
            for headers in blocks {
                let block = deflate.headers(&headers).unwrap();
                prop_assert_eq!(inflate.headers(&block).unwrap(), headers);
            }
        }

        /// No input makes the reader panic or wait for ever.
        #[test]
        fn junk_ends_the_connection(junk in prop::collection::vec(any::<u8>(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (out, _frames) = mpsc::channel(1000);
                let (opened, _streams) = mpsc::channel(1000);
                let _ = read_frames(&junk[..], out, opened).await;
            });
        }
    }

    #[tokio::test]
    async fn a_stream_goes_both_ways() {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let (opened, mut streams) = mpsc::channel(4);
        let session = tokio::spawn(run(server, opened));
        let headers = Headers::from([("streamtype".to_string(), "data".to_string())]);
        let block = Deflate::new().unwrap().headers(&headers).unwrap();
        let mut syn = BytesMut::new();
        syn.put_u32(1);
        syn.put_slice(&[0; 6]);
        syn.put_slice(&block);
        client.write_all(&control(SYN_STREAM, 0, &syn)).await.unwrap();
        client.write_all(&[0, 0, 0, 1, FLAG_FIN, 0, 0, 2, b'h', b'i']).await.unwrap();
        client.write_all(&control(PING, 0, &7u32.to_be_bytes())).await.unwrap();
        let mut stream = streams.recv().await.unwrap();
        assert_eq!(stream.headers, headers);
        assert_eq!(stream.incoming.recv().await.unwrap(), "hi");
        assert!(stream.incoming.recv().await.is_none());
        stream.writer.write(Bytes::from_static(b"ho")).await.unwrap();
        stream.writer.finish().await.unwrap();
        drop((stream, streams));
        let mut seen = Vec::new();
        client.read_to_end(&mut seen).await.unwrap();
        assert!(seen.windows(10).any(|w| w == [0, 0, 0, 1, 0, 0, 0, 2, b'h', b'o']), "{seen:?}");
        assert!(seen.windows(12).any(|w| w == [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 7]), "{seen:?}");
        session.await.unwrap().unwrap();
    }
}
