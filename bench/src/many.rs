//! Many watches on one HTTP/2 connection (RFC 9113), read by hand: one task looks at the frames as they come.
//!
//! A library gives each stream a queue and wakes who reads it, which is as much work again as the reading itself, on the
//! processors that the server shall have. Windows are as client-go's: nobody waits for permission to send.

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::http::{Target, tls};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Of a frame: three bytes of length, kind, flags, four of the stream.
const HEAD: usize = 9;
/// What a stream may have sent before it is told that it may send more.
const STREAM_WINDOW: u32 = 4 << 20;
/// The same for the connection.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// As HPACK's static table has `:status: 200` (RFC 7541, appendix A).
const OK: u8 = 0x80 | 8;

/// A connection with watches.
pub(crate) struct Many {
    io: TlsStream<BufReader<TcpStream>>,
    buf: BytesMut,
    out: BytesMut,
    /// Of each watch: what came since its window was widened, and the begin of a line whose end has not come.
    watches: Vec<(u32, Vec<u8>)>,
    received: u32,
}

impl Many {
    /// Opens `count` watches of a path.
    ///
    /// # Errors
    /// When the server does not answer each with 200.
    pub(crate) async fn open(target: &Target, path: &str, count: usize) -> anyhow::Result<Self> {
        let Target::Tls { address, h2, .. } = target else { bail!("HTTP/2 is measured with TLS only") };
        let mut out = BytesMut::new();
        out.put_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        // SETTINGS_INITIAL_WINDOW_SIZE
        head(&mut out, 6, SETTINGS, 0, 0);
        out.put_u16(4);
        out.put_u32(STREAM_WINDOW);
        widen(&mut out, 0, CONNECTION_WINDOW);
        let block = request(path)?;
        for i in 0..count {
            head(&mut out, block.len(), HEADERS, END_STREAM | END_HEADERS, stream(i)?);
            out.put_slice(&block);
        }
        let io = tls(*address, h2).await?;
        let watches = vec![(0, vec![]); count];
        let mut many = Self { io, buf: BytesMut::with_capacity(64 << 10), out, watches, received: 0 };
        let mut answered = 0;
        while answered < count {
            many.fill().await?;
            answered += many.frames(|_, _| bail!("data before all watches were answered"))?;
        }
        Ok(many)
    }

    /// Waits for bytes and gives the whole lines in them to `each`, with the number of their watch.
    ///
    /// # Errors
    /// When the connection or a watch ends, or `each` fails.
    pub(crate) async fn next(&mut self, each: impl FnMut(usize, &[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.fill().await?;
        self.frames(each)?;
        Ok(())
    }

    async fn fill(&mut self) -> anyhow::Result<()> {
        if !self.out.is_empty() {
            self.io.write_all_buf(&mut self.out).await?;
            self.io.flush().await?;
        }
        self.buf.reserve(32 << 10);
        ensure!(self.io.read_buf(&mut self.buf).await? > 0, "the server closed the connection");
        Ok(())
    }

    /// Takes the whole frames out of the buffer; how many answers began with them.
    fn frames(&mut self, mut each: impl FnMut(usize, &[u8]) -> anyhow::Result<()>) -> anyhow::Result<usize> {
        let mut answered = 0;
        while self.buf.len() >= HEAD {
            let length = (&self.buf[..3]).get_uint(3);
            let whole = HEAD + usize::try_from(length)?;
            if self.buf.len() < whole {
                break;
            }
            let (kind, flags, id) = (self.buf[3], self.buf[4], (&self.buf[5..HEAD]).get_u32() & (u32::MAX >> 1));
            let payload = &self.buf[HEAD..whole];
            match kind {
                DATA => {
                    ensure!(flags & END_STREAM == 0, "the server ended a watch");
                    let (index, length) = (usize::try_from(id / 2)?, u32::try_from(length)?);
                    let (received, rest) = self.watches.get_mut(index).context("data of no watch")?;
                    *received += length;
                    if *received >= STREAM_WINDOW / 2 {
                        widen(&mut self.out, id, std::mem::take(received));
                    }
                    self.received += length;
                    if self.received >= CONNECTION_WINDOW / 2 {
                        widen(&mut self.out, 0, std::mem::take(&mut self.received));
                    }
                    let end = memchr::memrchr(b'\n', payload).map_or(0, |at| at + 1);
                    if rest.is_empty() {
                        each(index, &payload[..end])?;
                    } else if end > 0 {
                        rest.extend_from_slice(&payload[..end]);
                        each(index, rest)?;
                        rest.clear();
                    }
                    rest.extend_from_slice(&payload[end..]);
                }
                HEADERS => {
                    ensure!(flags & END_STREAM == 0, "the server ended a watch");
                    ensure!(payload.first() == Some(&OK), "a watch was not answered with 200");
                    answered += 1;
                }
                SETTINGS if flags & ACK == 0 => head(&mut self.out, 0, SETTINGS, ACK, 0),
                PING if flags & ACK == 0 => {
                    head(&mut self.out, payload.len(), PING, ACK, 0);
                    self.out.put_slice(payload);
                }
                RST_STREAM | GOAWAY => bail!("the server ended a watch or the connection"),
                _ => {}
            }
            self.buf.advance(whole);
        }
        Ok(answered)
    }
}

fn stream(index: usize) -> anyhow::Result<u32> {
    Ok(u32::try_from(index * 2 + 1)?)
}

fn head(out: &mut BytesMut, length: usize, kind: u8, flags: u8, stream: u32) {
    out.put_uint(length as u64, 3);
    out.put_slice(&[kind, flags]);
    out.put_u32(stream);
}

fn widen(out: &mut BytesMut, stream: u32, by: u32) {
    head(out, 4, WINDOW_UPDATE, 0, stream);
    out.put_u32(by);
}

/// The header block of a GET (RFC 7541): what the static table has by its number, all else as it is.
fn request(path: &str) -> anyhow::Result<Vec<u8>> {
    // :method GET, :scheme https
    let mut block = vec![0x82, 0x87];
    // :path, :authority, accept, user-agent: the name's number in four bits, or what it has above fifteen in a second byte
    for (name, value) in
        [(&[4][..], path), (&[1], "bench"), (&[15, 19 - 15], "application/json"), (&[15, 58 - 15], "bench/1")]
    {
        block.extend_from_slice(name);
        let length =
            u8::try_from(value.len()).ok().filter(|n| *n < 127).context("a path that is too long for this client")?;
        block.push(length);
        block.extend_from_slice(value.as_bytes());
    }
    Ok(block)
}
