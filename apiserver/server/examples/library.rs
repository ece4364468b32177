//! The API server as a library: starts one in this process, uses it through a `kube::Client`, and says how long that took.
//!
//! `cargo run --release -p skiff-apiserver --example library -- 20` starts twenty, one after another. The data of a test
//! is best in memory: without a directory as second argument it is in `/dev/shm` where there is one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ObjectMeta, PostParams};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_storage::embedded::{Embedded, Options};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let runs: usize = args.next().map_or(Ok(1), |n| n.parse())?;
    let memory = Path::new("/dev/shm");
    let place = args.next().map_or_else(
        || if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() },
        std::path::PathBuf::from,
    );
    let mut took: Vec<Duration> = vec![];
    for _ in 0..runs.max(1) {
        let dir = tempfile::tempdir_in(&place)?;
        let begun = Instant::now();
        let store = Embedded::open(dir.path(), Options::default())?;
        let server = Server::builder(Arc::new(store)).start().await?;
        took.push(begun.elapsed());

        let client = server.client(User::new("admin", &["system:masters"]));
        let maps = Api::<ConfigMap>::namespaced(client, "default");
        let metadata = ObjectMeta { name: Some("hello".into()), ..ObjectMeta::default() };
        let made = maps.create(&PostParams::default(), &ConfigMap { metadata, ..ConfigMap::default() }).await?;
        assert!(made.metadata.uid.is_some(), "the server gave it one");
        server.shutdown();
    }
    took.sort();
    println!("started {} times: median {:?}, longest {:?}", took.len(), took[took.len() / 2], took[took.len() - 1]);
    Ok(())
}
