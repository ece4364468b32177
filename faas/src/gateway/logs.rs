//! `GET /logs/NAMESPACE/NAME`: what instances that are processes printed, for who may read the function's log.
//!
//! Lines of JSON, `{"instance", "line"}`, the line with its time first. Parameters: `tail=N` (lines of each instance),
//! `instance=NAME`, `follow=true`. Logs of pods are the API server's.

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use super::link::{Body, BoxError};
use crate::instance::{Class, Line};

/// Lines of an instance when nobody says how many.
const LINES: usize = 10_000;

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    instance: Option<String>,
    tail: Option<usize>,
    follow: bool,
}

impl Wanted {
    /// Of a query; what is not known is left out.
    fn of(query: &str) -> Self {
        let mut wanted = Self::default();
        for (name, value) in query.split('&').filter_map(|p| p.split_once('=')) {
            match name {
                "instance" if !value.is_empty() => wanted.instance = Some(value.to_owned()),
                "tail" => wanted.tail = value.parse().ok(),
                "follow" => wanted.follow = value == "true" || value == "1",
                _ => {}
            }
        }
        wanted
    }

    fn takes(&self, namespace: &str, function: &str, line: &Line) -> bool {
        *line.namespace == *namespace
            && *line.function == *function
            && self.instance.as_deref().is_none_or(|i| *i == *line.instance)
    }
}

fn bytes(line: &Line) -> Bytes {
    format!("{}\n", json!({"instance": &*line.instance, "line": line.text})).into()
}

/// The answer. It ends by itself unless it follows.
pub(super) async fn answer(class: &dyn Class, namespace: &str, function: &str, query: &str) -> Response<Body> {
    let wanted = Wanted::of(query);
    // Listened to first: what is printed meanwhile comes twice rather than never.
    let follower = wanted.follow.then(|| class.follow()).flatten();
    let old =
        class.tail(namespace, function, wanted.instance.as_deref(), wanted.tail.unwrap_or(LINES).min(LINES)).await;
    let old: Vec<Bytes> = old.iter().map(bytes).collect();
    let (namespace, function) = (namespace.to_owned(), function.to_owned());
    let new = stream::unfold((follower, wanted), move |(mut follower, wanted)| {
        let (namespace, function) = (namespace.clone(), function.clone());
        async move {
            loop {
                let next = follower.as_mut()?.recv().await;
                let text = match next {
                    Ok(line) if wanted.takes(&namespace, &function, &line) => bytes(&line),
                    Ok(_) => continue,
                    Err(RecvError::Lagged(missed)) => format!("{}\n", json!({"missed": missed})).into(),
                    Err(RecvError::Closed) => return None,
                };
                return Some((text, (follower, wanted)));
            }
        }
    });
    let all = stream::iter(old).chain(new).map(|text| Ok::<_, BoxError>(Frame::data(text)));
    let mut response = Response::new(StreamBody::new(all).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read() {
        let of = |instance: Option<&str>, tail, follow| Wanted { instance: instance.map(str::to_owned), tail, follow };
        assert_eq!(Wanted::of(""), of(None, None, false));
        assert_eq!(Wanted::of("tail=3&follow=true&instance=a-1&x=y"), of(Some("a-1"), Some(3), true));
        assert_eq!(Wanted::of("tail=x&follow=no&instance="), of(None, None, false));
        let line = Line { namespace: "n".into(), function: "f".into(), instance: "i".into(), text: String::new() };
        let takes = |w: Wanted, ns, f| w.takes(ns, f, &line);
        assert!(takes(of(None, None, true), "n", "f") && takes(of(Some("i"), None, true), "n", "f"));
        assert!(
            !takes(of(None, None, true), "n", "g")
                && !takes(of(None, None, true), "m", "f")
                && !takes(of(Some("j"), None, true), "n", "f")
        );
    }

    struct Fake(tokio::sync::broadcast::Sender<Line>);

    #[async_trait::async_trait]
    impl Class for Fake {
        fn isolation(&self) -> crate::api::Isolation {
            crate::api::Isolation::Process
        }
        async fn start(
            &self,
            _: std::sync::Arc<crate::api::FunctionRevision>,
        ) -> Result<crate::instance::Instance, crate::instance::StartError> {
            Err(crate::instance::StartError::NoRoom(String::new()))
        }
        async fn stop(&self, _: &str, _: &str) -> anyhow::Result<()> {
            Ok(())
        }
        fn events(&self) -> tokio::sync::mpsc::Receiver<crate::instance::Event> {
            tokio::sync::mpsc::channel(1).1
        }
        async fn tail(&self, _: &str, _: &str, _: Option<&str>, lines: usize) -> Vec<Line> {
            (0..lines.min(2)).map(|n| line("f", &format!("old {n}"))).collect()
        }
        fn follow(&self) -> Option<tokio::sync::broadcast::Receiver<Line>> {
            Some(self.0.subscribe())
        }
    }

    fn line(function: &str, text: &str) -> Line {
        Line { namespace: "n".into(), function: function.into(), instance: "i".into(), text: text.to_owned() }
    }

    #[tokio::test]
    async fn old_lines_come_first_then_new_ones() {
        let class = Fake(tokio::sync::broadcast::channel(8).0);
        let whole = answer(&class, "n", "f", "tail=1").await.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(whole, "{\"instance\":\"i\",\"line\":\"old 0\"}\n");
        let mut body = answer(&class, "n", "f", "follow=true").await.into_body();
        for text in ["other", "new"] {
            class.0.send(line(if text == "new" { "f" } else { "g" }, text)).unwrap();
        }
        let mut seen = Vec::new();
        for _ in 0..3 {
            let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
            let said: serde_json::Value = serde_json::from_slice(&data).unwrap();
            seen.push(said["line"].as_str().unwrap().to_owned());
        }
        assert_eq!(seen, ["old 0", "old 1", "new"]);
        drop(class);
        assert!(body.frame().await.is_none());
    }
}
