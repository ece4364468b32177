//! Logs of containers.

use bytes::Bytes;
use futures::StreamExt;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;

use super::query::Query;
use super::{Body, Server, text};
use crate::pod::spec;
use crate::pod::status::{attempts, container_id};
use crate::runtime::{LogOptions, Out, State};

/// Answers with a container's log.
pub(crate) async fn serve(server: &Server, namespace: &str, pod: &str, container: &str, query: &str) -> Response<Body> {
    let query = Query::parse(query);
    let Some(found) = server.manager.pod(namespace, pod) else {
        return text(StatusCode::NOT_FOUND, format!("pod {pod:?} not found"));
    };
    if !spec::containers(&found).iter().any(|(_, c)| c.name == container) {
        return text(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {pod:?}"));
    }
    let all = match server.manager.shared.runtime.list(Some(spec::uid(&found))).await {
        Ok(all) => all,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let tries = attempts(&all, container);
    let previous = query.flag(&["previous"]);
    let status = found.status.as_ref();
    let known = status.iter().flat_map(|s| {
        [&s.container_statuses, &s.init_container_statuses, &s.ephemeral_container_statuses]
            .into_iter()
            .flatten()
            .flatten()
    });
    let known = known.into_iter().find(|s| s.name == container);
    let chosen = if previous {
        // The one that the status calls the last: in a crash loop that is the latest attempt.
        let last = known.and_then(|s| s.last_state.as_ref()?.terminated.as_ref()?.container_id.clone());
        tries.iter().find(|c| last.as_deref() == Some(&container_id(c)))
    } else {
        tries.first()
    };
    let Some(chosen) = chosen.filter(|c| c.state != State::Created) else {
        let message = if previous {
            format!("previous terminated container {container:?} in pod {pod:?} not found")
        } else {
            let waiting = known.and_then(|s| s.state.as_ref()?.waiting.as_ref()?.reason.clone());
            let reason = waiting.unwrap_or_else(|| "ContainerCreating".into());
            format!("container {container:?} in pod {pod:?} is waiting to start: {reason}")
        };
        return text(StatusCode::BAD_REQUEST, message);
    };
    let number = |name: &str| query.get(name).and_then(|v| v.parse::<i64>().ok());
    let since_time = query.get("sinceTime").and_then(|t| t.parse::<Timestamp>().ok());
    let since = since_time
        .or_else(|| number("sinceSeconds").and_then(|s| Timestamp::from_second(Timestamp::now().as_second() - s).ok()));
    let stream = query.get("stream").unwrap_or("All");
    let options = LogOptions {
        follow: query.flag(&["follow"]) && chosen.state == State::Running,
        tail: number("tailLines").and_then(|n| u64::try_from(n).ok()),
        since: since.map(|s| s.as_second()),
        stdout: stream != "Stderr",
        stderr: stream != "Stdout",
    };
    let lines = match server.manager.shared.runtime.logs(&chosen.id, &options).await {
        Ok(lines) => lines,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let stamps = query.flag(&["timestamps"]);
    let mut left = number("limitBytes").and_then(|n| usize::try_from(n).ok());
    let mut fresh: [bool; 2] = [true, true];
    let chunks = lines.map(move |line| {
        let (out, line) = line.map_err(std::io::Error::other)?;
        let begins = &mut fresh[usize::from(out == Out::Stderr)];
        let piece = trim(&line, stamps, since, *begins);
        *begins = line.ends_with(b"\n");
        Ok(piece)
    });
    let limited = chunks.filter(|chunk| futures::future::ready(!matches!(chunk, Ok(c) if c.is_empty()))).scan(
        false,
        move |done, chunk: Result<Bytes, std::io::Error>| {
            if *done {
                return futures::future::ready(None);
            }
            let chunk = chunk.map(|chunk| match &mut left {
                Some(left) => {
                    let taken = chunk.slice(..chunk.len().min(*left));
                    *left -= taken.len();
                    *done = *left == 0;
                    taken
                }
                None => chunk,
            });
            futures::future::ready(Some(chunk.map(Frame::data)))
        },
    );
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(limited)));
    let plain = http::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    response
}

/// One of the runtime's pieces as the client wants it. A long line comes in several pieces, each with a time stamp in
/// front; only the first one's is part of the log.
fn trim(piece: &Bytes, stamps: bool, since: Option<Timestamp>, begins_line: bool) -> Bytes {
    let Some(space) = piece.iter().take(40).position(|b| *b == b' ') else { return piece.clone() };
    let stamp = std::str::from_utf8(&piece[..space]).ok().and_then(|s| s.parse::<Timestamp>().ok());
    let Some(stamp) = stamp else { return piece.clone() };
    if since.is_some_and(|since| stamp < since) {
        return Bytes::new();
    }
    if stamps && begins_line { piece.clone() } else { piece.slice(space + 1..) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_trimmed() {
        let piece = Bytes::from_static(b"2026-01-02T03:04:05.000000006Z hello world\n");
        let at = |second| Timestamp::from_second(second).unwrap();
        let stamp = "2026-01-02T03:04:05Z".parse::<Timestamp>().unwrap().as_second();
        for (stamps, since, begins, wanted) in [
            (false, None, true, "hello world\n"),
            (true, None, true, "2026-01-02T03:04:05.000000006Z hello world\n"),
            (true, None, false, "hello world\n"),
            (false, Some(at(stamp)), true, "hello world\n"),
            (false, Some(at(stamp + 1)), true, ""),
        ] {
            assert_eq!(trim(&piece, stamps, since, begins), wanted, "{stamps} {since:?} {begins}");
        }
        assert_eq!(trim(&Bytes::from_static(b"no stamp"), false, None, true), "no stamp");
    }
}
