//! A runtime whose calls are counted and timed, under upstream's names of operations.

use std::pin::Pin;
use std::time::Instant;

use async_trait::async_trait;
use futures::Stream;
use tokio::sync::oneshot;

use super::{
    Attached, Container, ContainerConfig, Credentials, Error, Event, ExecConfig, Image, Info, LogOptions, OutputStream,
    Result, Runtime, SandboxConfig, Stats,
};
use crate::metrics::AGENT;

/// A runtime and its counts. Calls that wait for a container or for events are not timed.
#[derive(Debug)]
pub struct Measured<R>(pub R);

async fn timed<T>(kind: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
    let begun = Instant::now();
    let result = call.await;
    // That something is not there is an answer.
    AGENT.operation(kind, matches!(result, Ok(_) | Err(Error::NotFound(_))), begun.elapsed());
    result
}

#[async_trait]
impl<R: Runtime> Runtime for Measured<R> {
    async fn info(&self) -> Result<Info> {
        timed("status", self.0.info()).await
    }

    async fn list(&self, pod_uid: Option<&str>) -> Result<Vec<Container>> {
        timed("list_containers", self.0.list(pod_uid)).await
    }

    async fn create_sandbox(&self, config: &SandboxConfig, made: oneshot::Sender<String>) -> Result<String> {
        let started = timed("run_podsandbox", self.0.create_sandbox(config, made)).await;
        if started.is_ok() {
            AGENT.started_pods.inc();
        }
        started
    }

    async fn create_container(&self, config: &ContainerConfig) -> Result<String> {
        timed("create_container", self.0.create_container(config)).await
    }

    async fn start(&self, id: &str) -> Result<()> {
        let started = timed("start_container", self.0.start(id)).await;
        if started.is_ok() {
            AGENT.started_containers.inc();
        }
        started
    }

    async fn terminate(&self, id: &str) -> Result<()> {
        timed("stop_container", self.0.terminate(id)).await
    }

    async fn kill(&self, id: &str) -> Result<()> {
        timed("stop_container", self.0.kill(id)).await
    }

    async fn wait(&self, id: &str) -> Result<()> {
        self.0.wait(id).await
    }

    async fn remove(&self, id: &str) -> Result<()> {
        timed("remove_container", self.0.remove(id)).await
    }

    async fn inspect(&self, id: &str) -> Result<Container> {
        timed("container_status", self.0.inspect(id)).await
    }

    async fn update_resources(&self, id: &str, cpu_shares: i64, cpu_quota: i64, memory: i64) -> Result<()> {
        timed("update_container_resources", self.0.update_resources(id, cpu_shares, cpu_quota, memory)).await
    }

    async fn image(&self, reference: &str) -> Result<Image> {
        timed("image_status", self.0.image(reference)).await
    }

    async fn images(&self) -> Result<Vec<Image>> {
        timed("list_images", self.0.images()).await
    }

    async fn pull(&self, reference: &str, credentials: Option<&Credentials>) -> Result<()> {
        timed("pull_image", self.0.pull(reference, credentials)).await
    }

    async fn save(&self, id: &str, to: &std::path::Path) -> Result<()> {
        self.0.save(id, to).await
    }

    async fn import(&self, reference: &str, layer: Vec<u8>) -> Result<()> {
        self.0.import(reference, layer).await
    }

    async fn exec(&self, id: &str, config: &ExecConfig) -> Result<Attached> {
        timed("exec", self.0.exec(id, config)).await
    }

    async fn exec_exit_code(&self, exec_id: &str) -> Result<Option<i32>> {
        self.0.exec_exit_code(exec_id).await
    }

    async fn exec_resize(&self, exec_id: &str, width: u16, height: u16) -> Result<()> {
        self.0.exec_resize(exec_id, width, height).await
    }

    async fn attach(&self, id: &str, stdin: bool, stdout: bool, stderr: bool) -> Result<Attached> {
        timed("attach", self.0.attach(id, stdin, stdout, stderr)).await
    }

    async fn resize(&self, id: &str, width: u16, height: u16) -> Result<()> {
        self.0.resize(id, width, height).await
    }

    async fn logs(&self, id: &str, options: &LogOptions) -> Result<OutputStream> {
        self.0.logs(id, options).await
    }

    async fn stats(&self, id: &str) -> Result<Stats> {
        timed("container_stats", self.0.stats(id)).await
    }

    async fn written(&self, id: &str) -> Result<u64> {
        timed("container_stats", self.0.written(id)).await
    }

    async fn events(&self) -> Result<Pin<Box<dyn Stream<Item = Event> + Send>>> {
        self.0.events().await
    }
}
