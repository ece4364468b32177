//! The health check of Services with `externalTrafficPolicy: Local`: a load balancer asks every node whether it has
//! endpoints of the Service, and sends traffic to those that have.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::frontends::local_endpoints;
use crate::index::Index;
use crate::model::Id;

/// Time a caller has for its request and the answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Wait before a port is tried again that somebody else has.
const RETRY: Duration = Duration::from_secs(10);
/// Callers served at a time, per port.
const CALLERS: usize = 32;
/// Longest request head that is read.
const HEAD: usize = 8 * 1024;

/// The running servers, one per Service that wants one. They end with this value.
#[derive(Debug, Default)]
pub struct Servers {
    running: BTreeMap<u16, Server>,
}

#[derive(Debug)]
struct Server {
    id: Id,
    endpoints: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Servers {
    /// Starts, stops and updates servers after the index.
    pub fn update(&mut self, index: &Index) {
        let mut wanted = HashMap::new();
        for (namespace, name, entry) in index.iter() {
            if let Some(port) = entry.service().and_then(|s| s.health_port) {
                wanted.insert(port, (Id { namespace: namespace.into(), name: name.into() }, local_endpoints(entry)));
            }
        }
        self.running.retain(|port, server| wanted.get(port).is_some_and(|(id, _)| *id == server.id));
        for (port, (id, count)) in wanted {
            let server = self.running.entry(port).or_insert_with(|| {
                let endpoints = Arc::new(AtomicUsize::new(0));
                Server { task: tokio::spawn(listen(port, id.clone(), endpoints.clone())), id, endpoints }
            });
            server.endpoints.store(count, Ordering::Relaxed);
        }
    }
}

async fn listen(port: u16, id: Id, endpoints: Arc<AtomicUsize>) {
    let listener = loop {
        match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::warn!(%error, port, service = ?id, "cannot answer health checks; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let callers = Arc::new(Semaphore::new(CALLERS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: a pause, so that the loop does not spin.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // Who comes when all are busy is shed: the connection closes at once.
        let Ok(permit) = callers.clone().try_acquire_owned() else { continue };
        let (id, count) = (id.clone(), endpoints.load(Ordering::Relaxed));
        tokio::spawn(async move {
            let _permit = permit;
            let _ = tokio::time::timeout(DEADLINE, answer(stream, &id, count)).await;
        });
    }
}

async fn answer(mut stream: TcpStream, id: &Id, count: usize) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") && head.len() < HEAD {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    stream.write_all(response(id, count).as_bytes()).await?;
    stream.shutdown().await
}

fn response(id: &Id, count: usize) -> String {
    let status = if count > 0 { "200 OK" } else { "503 Service Unavailable" };
    let body = serde_json::json!({
        "service": { "namespace": &*id.namespace, "name": &*id.name },
        "localEndpoints": count,
        "serviceProxyHealthy": true,
    });
    let body = body.to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {count}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}
