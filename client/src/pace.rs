//! How long a broken watch waits before it asks again.
//!
//! The back-off of kube-rs has two faults for a program that must be back soon and must not press a server that says no:
//! a list that failed counts as begun, which sets its pause back each time; and where nobody answers it comes to half a
//! minute, in which a node would not see its pods although the server is there again.

use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use kube::runtime::utils::Backoff as _;
use kube::runtime::watcher::{DefaultBackoff, Error, Event};

/// The longest pause while the server does not answer. One that does and refuses is asked ever less, up to every 30 s, as
/// by client-go.
const SILENT: Duration = Duration::from_secs(5);

/// Pauses after each error: 0.8 s and more, twice as long each time, up to 30 s; 5 s while nobody answers. What comes
/// meanwhile is not lost, but asked for later.
pub(crate) fn paced<T: Send + 'static>(
    items: impl Stream<Item = Result<T, Error>> + Send + 'static,
) -> BoxStream<'static, Result<T, Error>> {
    let begin = (items.boxed(), DefaultBackoff::default(), None);
    let next = |(mut items, mut backoff, pause): (BoxStream<'static, Result<T, Error>>, DefaultBackoff, _)| async move {
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        let item = items.next().await?;
        let pause = match &item {
            Ok(_) => {
                backoff.reset();
                None
            }
            Err(error) => {
                let longest = if answered(error) { Duration::MAX } else { SILENT };
                backoff.next().map(|pause| pause.min(longest))
            }
        };
        Some((item, (items, backoff, pause)))
    };
    stream::unfold(begin, next).boxed()
}

/// The same for the events of a kind, in which the begin of a list is told when there is a list.
pub(crate) fn events<K: Send + 'static>(
    events: impl Stream<Item = Result<Event<K>, Error>> + Send + 'static,
) -> BoxStream<'static, Result<Event<K>, Error>> {
    let mut listing = false;
    let listed = paced(events.filter(|event| std::future::ready(!matches!(event, Ok(Event::Init)))));
    let told = listed.flat_map(move |event| {
        let part = matches!(event, Ok(Event::InitApply(_) | Event::InitDone));
        let begin = (part && !listing).then_some(Ok(Event::Init));
        listing = matches!(event, Ok(Event::InitApply(_)));
        stream::iter(begin.into_iter().chain([event]))
    });
    told.boxed()
}

/// Whether the server itself said so.
fn answered(error: &Error) -> bool {
    match error {
        Error::InitialListFailed(e) | Error::WatchStartFailed(e) | Error::WatchFailed(e) => {
            matches!(e, kube::Error::Api(_))
        }
        Error::WatchError(_) | Error::NoResourceVersion => true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::StreamExt as _;
    use futures::stream::BoxStream;
    use http_body_util::Full;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::watcher;
    use kube::{Api, Client};

    type Watch = fn(Api<ConfigMap>, watcher::Config) -> BoxStream<'static, ()>;

    /// How often a server is asked in ten minutes that answers with `code`, or not at all.
    async fn asked(watch: Watch, code: Option<u16>, config: watcher::Config) -> usize {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let answer = move |_: http::Request<kube::client::Body>| {
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                let Some(code) = code else { return Err(std::io::Error::other("nobody there")) };
                let status = format!(r#"{{"kind":"Status","status":"Failure","message":"no","code":{code}}}"#);
                let body = Full::new(bytes::Bytes::from(status));
                // A code between 400 and 599 is one that exists.
                Ok(http::Response::builder().status(code).body(body).unwrap())
            }
        };
        let api: Api<ConfigMap> = Api::namespaced(Client::new(tower::service_fn(answer), "default"), "a");
        let all = watch(api, config).for_each(|()| std::future::ready(()));
        assert!(tokio::time::timeout(std::time::Duration::from_secs(600), all).await.is_err());
        asked.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_refuses_is_asked_ever_less_and_one_that_is_away_soon_again() {
        let watches: [Watch; 2] = [
            |api, config| crate::watch(api, config).map(drop).boxed(),
            |api, config| crate::watch_dynamic(api, config).map(drop).boxed(),
        ];
        for watch in watches {
            for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
                let refused = asked(watch, Some(403), config.clone()).await;
                assert!((10..40).contains(&refused), "{refused} times");
                let away = asked(watch, None, config).await;
                assert!((100..200).contains(&away), "{away} times");
            }
        }
    }
}
