//! Links in pages that come through the proxy, made to go through it, too.
//!
//! A page of a backend says `/style.css` and means its own; the browser would ask the API server. So absolute paths, and
//! addresses of the backend itself, get the proxy's path in front. Pages are changed as they pass: what is kept is at most
//! one unfinished tag. All that is not such a link stays byte for byte.
//!
//! Limits: links in style sheets and scripts are not found; a tag of more than 64 KiB is passed on as it is.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{DeflateDecoder, DeflateEncoder, GzDecoder, GzEncoder};
use futures::StreamExt;

use crate::body::Body;

/// A tag that is longer is not looked at.
const TAG: usize = 64 << 10;

/// Attributes that hold one URL, by tag.
const ATTRIBUTES: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Tags whose content is text up to their end, whatever it looks like.
const TEXT: &[&str] = &["script", "style", "textarea", "title", "iframe", "noembed", "noframes", "noscript", "xmp"];

/// Where a backend is, and where it is reached.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Path of the proxy, without a slash at its end.
    pub base: String,
    /// Hosts that mean the backend: its own address, and what the client called this server.
    pub hosts: Vec<String>,
}

impl Place {
    /// The link as the client must follow it; none when it may stay.
    pub(super) fn link(&self, link: &str) -> Option<String> {
        let (host, rest) = split(link);
        if host.is_some_and(|h| !self.hosts.iter().any(|own| own == h)) || !rest.starts_with('/') {
            return None;
        }
        let end = rest.find(['?', '#']).unwrap_or(rest.len());
        let (path, tail) = rest.split_at(end);
        if path.starts_with(&self.base) {
            return host.is_some().then(|| rest.to_owned());
        }
        Some(format!("{}{}{tail}", self.base, clean(path)))
    }
}

/// Host of a link, if it names one, and what follows.
fn split(link: &str) -> (Option<&str>, &str) {
    let scheme = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphabetic())
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    };
    let after = match link.split_once("//") {
        Some(("", rest)) => Some(rest),
        Some((before, rest)) => before.strip_suffix(':').filter(|s| scheme(s)).map(|_| rest),
        None => None,
    };
    let Some(after) = after else { return (None, link) };
    let (host, rest) = after.split_at(after.find(['/', '?', '#']).unwrap_or(after.len()));
    (Some(host), rest)
}

/// The path without `.`, `..` and doubled slashes, so that no link leaves the proxy.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = vec![];
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            p => parts.push(p),
        }
    }
    let slash = if path.ends_with('/') && !parts.is_empty() { "/" } else { "" };
    format!("/{}{slash}", parts.join("/"))
}

/// A page on its way.
pub(super) struct Page {
    place: Place,
    /// The beginning of a tag whose end has not come.
    kept: Vec<u8>,
    /// Inside of a tag with text up to its end.
    until: Option<&'static str>,
}

impl Page {
    /// Nothing of the page is here yet.
    pub(super) fn new(place: Place) -> Self {
        Self { place, kept: vec![], until: None }
    }

    /// Takes the next piece; answers what can be passed on. An empty one is the last.
    pub(super) fn pass(&mut self, piece: &[u8]) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.kept);
        all.extend_from_slice(piece);
        let mut out = Vec::with_capacity(all.len() + all.len() / 8);
        let mut rest = all.as_slice();
        while let Some(at) = rest.iter().position(|b| *b == b'<') {
            out.extend_from_slice(&rest[..at]);
            rest = &rest[at..];
            match end(rest, self.until) {
                Some(length) => {
                    self.tag(&rest[..length], &mut out);
                    rest = &rest[length..];
                }
                None if piece.is_empty() || rest.len() > TAG => {
                    out.push(b'<');
                    rest = &rest[1..];
                }
                None => {
                    self.kept = rest.to_vec();
                    return out;
                }
            }
        }
        out.extend_from_slice(rest);
        out
    }

    /// As [`Page::pass`] for what was unpacked, which may be nothing yet.
    fn next(&mut self, piece: Vec<u8>, last: bool) -> Vec<u8> {
        let mut out = if piece.is_empty() { vec![] } else { self.pass(&piece) };
        if last {
            out.extend(self.pass(&[]));
        }
        out
    }

    /// Passes one whole tag on.
    fn tag(&mut self, tag: &[u8], out: &mut Vec<u8>) {
        let closing = tag.starts_with(b"</");
        let from = if closing { 2 } else { 1 };
        let length = tag[from..].iter().take_while(|b| b.is_ascii_alphanumeric()).count();
        let name = String::from_utf8_lossy(&tag[from..from + length]).to_ascii_lowercase();
        if let Some(until) = self.until {
            if closing && name == until {
                self.until = None;
            }
            return out.extend_from_slice(tag);
        }
        if closing || name.is_empty() {
            return out.extend_from_slice(tag);
        }
        if !tag.ends_with(b"/>") {
            self.until = TEXT.iter().find(|t| **t == name).copied();
        }
        let Some((_, known)) = ATTRIBUTES.iter().find(|(t, _)| *t == name) else {
            return out.extend_from_slice(tag);
        };
        let mut done = 0;
        for (key, value, bare) in attributes(tag, from + length) {
            if !known.contains(&key.to_ascii_lowercase().as_str()) {
                continue;
            }
            let Some(new) = std::str::from_utf8(&tag[value.clone()]).ok().and_then(|v| self.place.link(v)) else {
                continue;
            };
            out.extend_from_slice(&tag[done..value.start]);
            let quote = if bare { "\"" } else { "" };
            // Writing to a vector does not fail.
            let _ = write!(out, "{quote}{new}{quote}");
            done = value.end;
        }
        out.extend_from_slice(&tag[done..]);
    }
}

/// How a page is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain,
    Gzip,
    Deflate,
}

impl Encoding {
    /// The encoding of a header's name; none for those that are not understood here.
    pub(super) fn of(name: &str) -> Option<Self> {
        match name {
            "" => Some(Self::Plain),
            "gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            _ => None,
        }
    }

    /// The page with its links changed, packed as it was.
    pub(super) fn page(self, body: Body, place: Place) -> Body {
        let pieces = http_body_util::BodyStream::new(body).filter_map(|frame| async move {
            match frame {
                Ok(frame) => frame.into_data().ok().filter(|b| !b.is_empty()).map(Ok),
                Err(error) => Some(Err(error)),
            }
        });
        // The last piece is empty.
        let pieces = pieces.chain(futures::stream::once(async { Ok(Bytes::new()) }));
        let mut pipe = Pipe::new(self, Page::new(place));
        Body::Fallible(Box::pin(
            pieces
                .map(move |piece| piece.and_then(|p| pipe.pass(&p)))
                .filter(|out| futures::future::ready(!matches!(out, Ok(bytes) if bytes.is_empty()))),
        ))
    }
}

/// Unpacks, changes and packs again. What is written is taken out after each piece.
enum Pipe {
    Plain(Page),
    Gzip(Page, GzDecoder<Vec<u8>>, GzEncoder<Vec<u8>>),
    Deflate(Page, DeflateDecoder<Vec<u8>>, DeflateEncoder<Vec<u8>>),
}

impl Pipe {
    fn new(encoding: Encoding, page: Page) -> Self {
        let fast = Compression::fast();
        match encoding {
            Encoding::Plain => Self::Plain(page),
            Encoding::Gzip => Self::Gzip(page, GzDecoder::new(vec![]), GzEncoder::new(vec![], fast)),
            Encoding::Deflate => Self::Deflate(page, DeflateDecoder::new(vec![]), DeflateEncoder::new(vec![], fast)),
        }
    }

    fn pass(&mut self, piece: &[u8]) -> io::Result<Bytes> {
        // The coders of the two encodings have the same methods, and no trait for them.
        macro_rules! repack {
            ($page:ident, $read:ident, $write:ident, $piece:ident) => {{
                $read.write_all($piece)?;
                $read.flush()?;
                $write.write_all(&$page.next(std::mem::take($read.get_mut()), $piece.is_empty()))?;
                if $piece.is_empty() {
                    $write.try_finish()?
                } else {
                    $write.flush()?
                }
                Ok(std::mem::take($write.get_mut()).into())
            }};
        }
        match self {
            Self::Plain(page) => Ok(page.pass(piece).into()),
            Self::Gzip(page, read, write) => repack!(page, read, write, piece),
            Self::Deflate(page, read, write) => repack!(page, read, write, piece),
        }
    }
}

/// Length of what begins with `<`, when all of it is there.
fn end(text: &[u8], until: Option<&str>) -> Option<usize> {
    if let Some(name) = until {
        // Only the end of the text counts; everything else in it is a character.
        let enough = text.len() > name.len() + 2;
        let ends = text.len() >= 2
            && text[1] == b'/'
            && text[2..].len() >= name.len()
            && text[2..2 + name.len()].eq_ignore_ascii_case(name.as_bytes());
        if !ends {
            let may = text.len() < 2 || (text[1] == b'/' && !enough);
            return (!may).then_some(1);
        }
    }
    if text.starts_with(b"<!--") {
        // `<!-->` is a whole comment.
        return text.windows(3).skip(2).position(|w| w == b"-->").map(|at| at + 5);
    }
    if text.len() < 4 && b"<!--".starts_with(text) {
        return None;
    }
    let second = *text.get(1)?;
    if !(second.is_ascii_alphabetic() || matches!(second, b'/' | b'!' | b'?')) {
        return Some(1);
    }
    let quotes = second.is_ascii_alphabetic();
    let mut quote = None;
    for (at, b) in text.iter().enumerate().skip(1) {
        match (quote, b) {
            (None, b'>') => return Some(at + 1),
            (None, b'"' | b'\'') if quotes && before(text, at) == b'=' => quote = Some(*b),
            (Some(q), b) if *b == q => quote = None,
            _ => {}
        }
    }
    None
}

/// The last byte before `at` that is no white space.
fn before(text: &[u8], at: usize) -> u8 {
    text[..at].iter().rev().find(|b| !b.is_ascii_whitespace()).copied().unwrap_or_default()
}

/// Attributes of a whole tag from `at` on: name, where the value is, and whether it has no quotes.
fn attributes(tag: &[u8], mut at: usize) -> Vec<(String, std::ops::Range<usize>, bool)> {
    let stop = tag.len() - 1;
    let space = |at: &mut usize| {
        while *at < stop && tag[*at].is_ascii_whitespace() {
            *at += 1;
        }
    };
    let mut found = vec![];
    while at < stop {
        while at < stop && (tag[at].is_ascii_whitespace() || tag[at] == b'/') {
            at += 1;
        }
        let from = at;
        while at < stop && !tag[at].is_ascii_whitespace() && !matches!(tag[at], b'=' | b'/') {
            at += 1;
        }
        let name = String::from_utf8_lossy(&tag[from..at]).into_owned();
        space(&mut at);
        if at >= stop || tag[at] != b'=' {
            continue;
        }
        at += 1;
        space(&mut at);
        if at >= stop {
            break;
        }
        let quote = tag[at];
        if matches!(quote, b'"' | b'\'') {
            let from = at + 1;
            let to = tag[from..].iter().position(|b| *b == quote).map_or(stop, |n| from + n);
            found.push((name, from..to, false));
            at = to + 1;
        } else {
            let from = at;
            while at < stop && !tag[at].is_ascii_whitespace() {
                at += 1;
            }
            found.push((name, from..at, true));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place() -> Place {
        Place { base: "/p/proxy".into(), hosts: vec!["10.0.0.1:80".into(), "server".into()] }
    }

    fn whole(text: &str) -> String {
        let mut page = Page::new(place());
        let mut out = page.pass(text.as_bytes());
        out.extend(page.pass(b""));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn which_links_change() {
        for (link, wanted) in [
            ("/a", Some("/p/proxy/a")),
            ("/", Some("/p/proxy/")),
            ("/a/b/?x=/y#z", Some("/p/proxy/a/b/?x=/y#z")),
            ("/a/../../../b", Some("/p/proxy/b")),
            ("http://10.0.0.1:80/a", Some("/p/proxy/a")),
            ("//server/a", Some("/p/proxy/a")),
            ("https://server/p/proxy/a", Some("/p/proxy/a")),
            ("/p/proxy/a", None),
            ("a/b", None),
            ("", None),
            ("#a", None),
            ("?a", None),
            ("http://10.0.0.1:80", None),
            ("http://elsewhere/a", None),
            ("//elsewhere/a", None),
            ("mailto:a@b//c", None),
        ] {
            assert_eq!(place().link(link).as_deref(), wanted, "{link:?}");
        }
    }

    #[test]
    fn which_places_of_a_page_change() {
        for (page, wanted) in [
            (r#"<a href="/rewriteme">test</a>"#, r#"<a href="/p/proxy/rewriteme">test</a>"#),
            ("<A\n HREF='/x' class=/y>", "<A\n HREF='/p/proxy/x' class=/y>"),
            ("<img src=/x alt=y/>", "<img src=\"/p/proxy/x\" alt=y/>"),
            (r#"<p title="/x">/y <"#, r#"<p title="/x">/y <"#),
            (r#"<!-- <a href="/x"> --><a href="/x">"#, r#"<!-- <a href="/x"> --><a href="/p/proxy/x">"#),
            (r#"<!--><a href="/x">"#, r#"<!--><a href="/p/proxy/x">"#),
            (
                r#"<script src="/s">if (a<b) '<a href="/x">'</script><a href="/x">"#,
                r#"<script src="/p/proxy/s">if (a<b) '<a href="/x">'</script><a href="/p/proxy/x">"#,
            ),
            (
                r#"<!DOCTYPE html><a title="a > b" href = "/x">"#,
                r#"<!DOCTYPE html><a title="a > b" href = "/p/proxy/x">"#,
            ),
            (r#"1 < 2 <a href="x"></a href="/x">"#, r#"1 < 2 <a href="x"></a href="/x">"#),
            (r#"<a href="/x"#, r#"<a href="/x"#),
        ] {
            assert_eq!(whole(page), wanted);
        }
    }

    #[tokio::test]
    async fn packed_pages_stay_packed() {
        use http_body_util::BodyExt;
        use std::io::Read;
        let text = r#"<a href="/x">"#.repeat(400);
        let wanted = text.replace("/x", "/p/proxy/x");
        let mut gzip = GzEncoder::new(vec![], Compression::fast());
        gzip.write_all(text.as_bytes()).unwrap();
        let packed = gzip.finish().unwrap();
        let pieces: Vec<_> = packed.chunks(7).map(Bytes::copy_from_slice).collect();
        let body = Encoding::of("gzip").unwrap().page(Body::stream(futures::stream::iter(pieces)), place());
        let out = body.collect().await.unwrap().to_bytes();
        let mut got = String::new();
        flate2::read::GzDecoder::new(&out[..]).read_to_string(&mut got).unwrap();
        assert_eq!(got, wanted);
        let body = Encoding::of("").unwrap().page(Body::full(text), place());
        assert_eq!(body.collect().await.unwrap().to_bytes(), wanted.as_bytes());
        assert_eq!(Encoding::of("br"), None);
    }

    proptest! {
        /// However a page comes, it is the same page; and a page without links is the page itself.
        #[test]
        fn pieces_do_not_matter(text in "(<a href='/x'>|<|>|</|<!--|-->|script|<script>|</script>|<!|a|\"|'|=|/| |\n){0,24}",
                                cuts in prop::collection::vec(0usize..200, 0..6)) {
            let wanted = whole(&text);
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|c| *c < text.len()).collect();
            cuts.sort_unstable();
            cuts.dedup();
            cuts.push(text.len());
            let mut page = Page::new(place());
            let (mut out, mut at) = (vec![], 0);
            for cut in cuts.into_iter().filter(|c| *c > 0) {
                out.extend(page.pass(&text.as_bytes()[at..cut]));
                at = cut;
            }
            out.extend(page.pass(b""));
            prop_assert_eq!(String::from_utf8(out).unwrap(), wanted);
            let plain = text.replace("href", "title");
            prop_assert_eq!(whole(&plain), plain);
        }
    }
}
