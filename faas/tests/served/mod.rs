//! An API server in this process.

use std::path::Path;
use std::sync::Arc;

use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_storage::embedded::{Embedded, Options};

/// One that keeps its objects below `dir`, and a client that may do everything.
pub(crate) async fn served(dir: &Path) -> (Server, kube::Client) {
    let store = Embedded::open(dir.join("store"), Options::default()).unwrap();
    let server = Server::builder(Arc::new(store)).start().await.unwrap();
    let client = server.client(User::new("admin", &["system:masters"]));
    (server, client)
}
