//! Random commands against a plain model with its whole history, with restarts in between.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use proptest::prelude::*;
use skiff_storage::embedded::Options;
use skiff_storage::{Cache, Change, ChangeKind, Compare, Embedded, Error, Meta, Op, Payload, Revision, Store};

use crate::suite::{soon, take};

#[derive(Clone, Copy, Debug)]
enum Guess {
    Any,
    Absent,
    /// The revision the key really has.
    Right,
    /// A revision it had some writes ago, or never.
    Wrong(u64),
}

#[derive(Clone, Debug)]
struct Write {
    key: u8,
    guess: Guess,
    /// `None` deletes.
    value: Option<u8>,
}

#[derive(Clone, Debug)]
enum Step {
    /// All of these at once, in this order, so that they meet the speculative head.
    Writes(Vec<Write>),
    /// Forget a part of the history, in percent of it.
    Compact(u64),
    Reopen,
    /// Compare everything.
    Check,
}

fn write() -> impl Strategy<Value = Write> {
    let guess = prop_oneof![
        3 => Just(Guess::Any),
        2 => Just(Guess::Absent),
        4 => Just(Guess::Right),
        1 => (0..20u64).prop_map(Guess::Wrong),
    ];
    (0..6u8, guess, prop::option::weighted(0.75, any::<u8>())).prop_map(|(key, guess, value)| Write {
        key,
        guess,
        value,
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => prop::collection::vec(write(), 1..12).prop_map(Step::Writes),
        1 => (0..=100u64).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
        2 => Just(Step::Check),
    ]
}

type State = BTreeMap<String, (Vec<u8>, Revision)>;

/// Answer of a model's no-op.
const NO_OP: Revision = 0;

/// The store, as simply as it can be said.
#[derive(Default)]
struct Model {
    state: State,
    /// Every change ever, with the state after it.
    history: Vec<(Expected, State)>,
    compacted: Revision,
}

type Expected = (ChangeKind, String, Vec<u8>, Option<(Vec<u8>, Revision)>, Revision);

impl Model {
    fn revision(&self) -> Revision {
        self.history.len() as Revision
    }

    fn commit(&mut self, key: &str, compare: Compare, value: Option<u8>) -> Result<Revision, Option<Revision>> {
        let before = self.state.get(key).cloned();
        let holds = match compare {
            Compare::Any => true,
            Compare::Absent => before.is_none(),
            Compare::At(revision) => before.as_ref().is_some_and(|b| b.1 == revision),
        };
        if !holds {
            return Err(before.map(|b| b.1));
        }
        let revision = self.revision() + 1;
        let (kind, bytes) = match (value, &before) {
            (None, None) => return Ok(NO_OP),
            (None, Some(b)) => (ChangeKind::Deleted, b.0.clone()),
            (Some(v), None) => (ChangeKind::Created, format!("{v}@{revision}").into_bytes()),
            (Some(v), Some(_)) => (ChangeKind::Updated, format!("{v}@{revision}").into_bytes()),
        };
        if kind == ChangeKind::Deleted {
            self.state.remove(key);
        } else {
            self.state.insert(key.to_owned(), (bytes.clone(), revision));
        }
        self.history.push(((kind, key.to_owned(), bytes, before, revision), self.state.clone()));
        Ok(revision)
    }

    fn at(&self, revision: Revision) -> State {
        match revision {
            0 => State::new(),
            n => self.history[usize::try_from(n).unwrap() - 1].1.clone(),
        }
    }

    fn after(&self, revision: Revision) -> Vec<Expected> {
        self.history[usize::try_from(revision).unwrap()..].iter().map(|(c, _)| c.clone()).collect()
    }
}

fn expected(c: &Change) -> Expected {
    let previous = c.previous.as_ref().map(|p| (p.value.to_vec(), p.revision));
    (c.kind, c.key().to_owned(), c.entry.value.to_vec(), previous, c.revision)
}

async fn open(dir: &std::path::Path) -> (Arc<Embedded>, Cache) {
    let store = Arc::new(Embedded::open(dir, Options::default()).unwrap());
    let config = skiff_storage::cache::Config { extract: Arc::new(|_, _| Meta::default()), indexed: Vec::new() };
    let dynamic: Arc<dyn Store> = Arc::<Embedded>::clone(&store);
    (store, Cache::open(dynamic, "/k/", config).await.unwrap())
}

async fn check(model: &Model, store: &Embedded, cache: &Cache) {
    let head = model.revision();
    assert_eq!(store.revision().await.unwrap(), head);
    assert_eq!(cache.revision(), head);
    for revision in 0..=head {
        if revision < model.compacted {
            assert!(matches!(store.watch("/k/", revision).await.map(|_| ()), Err(Error::Compacted { .. })));
            assert!(matches!(cache.watch("/k/", revision).map(|_| ()), Err(Error::Compacted { .. })));
            assert!(matches!(cache.list_at("/k/", revision), Err(Error::Compacted { .. })));
            if revision > 0 {
                assert!(matches!(store.range("/k/", None, revision, 0).await, Err(Error::Compacted { .. })));
            }
            continue;
        }
        let want = model.at(revision);
        if revision > 0 {
            let range = store.range("/k/", None, revision, 0).await.unwrap();
            let got: State =
                range.entries.iter().map(|e| (e.key.to_string(), (e.value.to_vec(), e.revision))).collect();
            assert_eq!(got, want, "range at {revision}");
        }
        let list = cache.list_at("/k/", revision).unwrap();
        let got: State = list.objects.iter().map(|o| (o.key.to_string(), (o.value.to_vec(), o.revision))).collect();
        assert_eq!(got, want, "cache at {revision}");

        let want = model.after(revision);
        let mut watch = store.watch("/k/", revision).await.unwrap();
        let got: Vec<Expected> = take(&mut watch, want.len()).await.iter().map(expected).collect();
        assert_eq!(got, want, "watch after {revision}");
        let mut watcher = cache.watch("/k/", revision).unwrap();
        let got: Vec<Expected> = std::iter::from_fn(|| watcher.try_next())
            .map(|event| {
                let e = event.unwrap();
                let previous = e.previous.as_ref().map(|o| (o.value.to_vec(), o.revision));
                (e.kind, e.object.key.to_string(), e.object.value.to_vec(), previous, e.revision)
            })
            .collect();
        assert_eq!(got, want, "cache watch after {revision}");
    }
}

async fn play(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, mut cache) = open(dir.path()).await;
    let mut model = Model::default();
    for step in steps.into_iter().chain([Step::Check, Step::Reopen, Step::Check]) {
        match step {
            Step::Writes(writes) => {
                let mut commits = Vec::new();
                let durable = model.revision();
                let mut wants = Vec::new();
                for Write { key, guess, value } in writes {
                    let key = format!("/k/{key}");
                    let compare = match guess {
                        Guess::Any => Compare::Any,
                        Guess::Absent => Compare::Absent,
                        Guess::Right => model.state.get(&key).map_or(Compare::Absent, |s| Compare::At(s.1)),
                        Guess::Wrong(back) => Compare::At(model.revision().saturating_sub(back)),
                    };
                    wants.push(model.commit(&key, compare, value));
                    let op = value.map_or(Op::Delete, |v| {
                        let bytes = format!("{v}@").into_bytes();
                        Op::Put(Payload { hole: Some(bytes.len()), bytes: bytes.into() })
                    });
                    let store = &store;
                    commits.push(async move { store.commit(&key, compare, op).await });
                }
                // join_all polls in order, and a commit is decided in its first poll.
                for (got, want) in soon("commits", join_all(commits)).await.into_iter().zip(wants) {
                    match (got, want) {
                        // What is durable meanwhile is the store's affair.
                        (Ok(got), Ok(NO_OP)) => assert!((durable..=model.revision()).contains(&got)),
                        (Ok(got), Ok(want)) => assert_eq!(got, want),
                        (Err(Error::Conflict { current }), Err(want)) => {
                            assert_eq!(current.map(|e| e.revision), want);
                        }
                        (got, want) => panic!("{got:?}, wanted {want:?}"),
                    }
                }
            }
            Step::Compact(percent) => {
                let to = model.revision() * percent / 100;
                store.compact(to).await.unwrap();
                model.compacted = model.compacted.max(to);
            }
            Step::Reopen => {
                drop(cache);
                drop(store);
                (store, cache) = open(dir.path()).await;
            }
            Step::Check => check(&model, &store, &cache).await,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_store_is_its_model(steps in prop::collection::vec(step(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(steps));
    }
}
