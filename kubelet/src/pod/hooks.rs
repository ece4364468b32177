//! `postStart` and `preStop`.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::probes::action::{self, Outcome};
use crate::runtime::Runtime;

/// Longest that a hook other than a command may take when nothing else bounds it.
const HTTP_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a hook. The caller bounds the time.
pub async fn run(
    runtime: &dyn Runtime,
    id: &str,
    container: &Container,
    handler: &LifecycleHandler,
    pod_ip: Option<IpAddr>,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        return match action::run(runtime, id, &command).await? {
            (0, _) => Ok(()),
            (code, output) => Err(format!("Exec lifecycle hook ({command:?}) exited with {code}, message: {output:?}")),
        };
    }
    let ip = pod_ip.unwrap_or(IpAddr::from([127, 0, 0, 1]));
    if let Some(http) = &handler.http_get {
        return match action::http(http, container, ip, HTTP_TIMEOUT).await {
            Outcome::Success | Outcome::Warning(_) => Ok(()),
            Outcome::Failure(text) => Err(text),
        };
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
        return Ok(());
    }
    if let Some(tcp) = &handler.tcp_socket {
        let host = tcp.host.clone().unwrap_or_else(|| ip.to_string());
        return match action::tcp(&host, action::port(&tcp.port, container)?, HTTP_TIMEOUT).await {
            Outcome::Success | Outcome::Warning(_) => Ok(()),
            Outcome::Failure(text) => Err(text),
        };
    }
    Err("the hook names no action".into())
}
