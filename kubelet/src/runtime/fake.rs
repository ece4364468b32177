//! A runtime that only pretends: sandboxes and containers are entries in memory.
//!
//! It is for trying a cluster's control plane at sizes for which there are no machines: everything of the node agent but
//! the machine is real (registration, lease, status, admission, one worker per pod, events), while nothing of the
//! machine is touched: no process, link, mount or file.
//!
//! Limits: containers run from their start until they are stopped, and then end with 0; every image is there; probes
//! count as passed, and volumes as mounted (their tokens are never asked for). Commands and logs are refused. What is in
//! memory is gone with the process: an agent that starts again makes its pods' containers anew.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use futures::Stream;
use jiff::Timestamp;
use tokio::sync::{Notify, oneshot};

use super::{
    Attached, Container, ContainerConfig, Credentials, Error, Event, ExecConfig, Image, Info, LogOptions, OutputStream,
    Result, Runtime, SandboxConfig, State, Stats, label,
};

/// Exit code of a process that a signal it did not catch ended: 128 and the number of SIGKILL.
const KILLED: i32 = 137;

/// What a pretended machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Cores.
    pub cpus: u64,
    /// Bytes of memory.
    pub memory: u64,
}

impl Default for Machine {
    fn default() -> Self {
        Self { cpus: 32, memory: 256 << 30 }
    }
}

/// The runtime.
#[derive(Default)]
pub struct Fake {
    containers: Mutex<HashMap<String, Container>>,
    /// Told whenever a container ends or goes.
    ended: Notify,
}

impl Fake {
    fn with<T>(&self, f: impl FnOnce(&mut HashMap<String, Container>) -> T) -> T {
        // Entries are whole after every statement, so a panic elsewhere does not spoil them.
        f(&mut self.containers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, name: &str, kind: &str, image: &str, labels: &BTreeMap<String, String>) -> Result<String> {
        let mut labels = labels.clone();
        labels.insert(label::KIND.into(), kind.into());
        // The name serves as identifier too: it is unique, and says in a status whose container it was.
        let id = name.to_owned();
        let fresh = Container {
            id: id.clone(),
            labels,
            image: image.into(),
            image_id: image.into(),
            state: State::Created,
            pid: None,
            created: Some(Timestamp::now()),
            started: None,
            finished: None,
            exit_code: 0,
            oom_killed: false,
            error: String::new(),
        };
        self.with(|all| match all.contains_key(&id) {
            true => Err(Error::Conflict(format!("the container name {name:?} is already in use"))),
            false => {
                all.insert(id.clone(), fresh);
                Ok(id)
            }
        })
    }

    fn run(&self, id: &str) -> Result<()> {
        self.with(|all| {
            let found = all.get_mut(id).ok_or_else(|| missing(id))?;
            if found.state == State::Created {
                found.state = State::Running;
                found.started = Some(Timestamp::now());
                // No process has this number; nothing is done to a pretended container's process.
                found.pid = Some(i32::MAX);
            }
            Ok(())
        })
    }

    fn end(&self, id: &str, code: i32) {
        self.with(|all| {
            if let Some(found) = all.get_mut(id).filter(|c| c.state == State::Running) {
                found.state = State::Exited;
                found.pid = None;
                found.finished = Some(Timestamp::now());
                found.exit_code = code;
            }
        });
        self.ended.notify_waiters();
    }

    fn running(&self, id: &str) -> bool {
        self.with(|all| all.get(id).is_some_and(|c| c.state == State::Running))
    }
}

fn missing(id: &str) -> Error {
    Error::NotFound(format!("no such container: {id}"))
}

fn refused<T>(what: &str) -> Result<T> {
    Err(Error::Refused(format!("{what}: the containers of this node are only simulated (--runtime=fake)")))
}

#[async_trait]
impl Runtime for Fake {
    async fn info(&self) -> Result<Info> {
        let version = concat!("fake://", env!("CARGO_PKG_VERSION")).into();
        Ok(Info { version, root_dir: "/".into(), os_image: String::new() })
    }

    async fn list(&self, pod_uid: Option<&str>) -> Result<Vec<Container>> {
        let wanted = |c: &&Container| pod_uid.is_none_or(|uid| c.label(label::POD_UID) == uid);
        Ok(self.with(|all| all.values().filter(wanted).cloned().collect()))
    }

    async fn create_sandbox(&self, config: &SandboxConfig, made: oneshot::Sender<String>) -> Result<String> {
        let id = self.add(&config.name, "sandbox", "pause", &config.labels)?;
        let _ = made.send(id.clone());
        self.run(&id)?;
        Ok(id)
    }

    async fn create_container(&self, config: &ContainerConfig) -> Result<String> {
        let mut labels = config.labels.clone();
        labels.insert(label::SANDBOX.into(), config.sandbox.clone());
        self.add(&config.name, "container", &config.image, &labels)
    }

    async fn start(&self, id: &str) -> Result<()> {
        self.run(id)
    }

    async fn terminate(&self, id: &str) -> Result<()> {
        self.end(id, 0);
        Ok(())
    }

    async fn kill(&self, id: &str) -> Result<()> {
        self.end(id, KILLED);
        Ok(())
    }

    async fn wait(&self, id: &str) -> Result<()> {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Listens before it looks, so that no end is missed.
            ended.as_mut().enable();
            if !self.running(id) {
                return Ok(());
            }
            ended.await;
        }
    }

    async fn remove(&self, id: &str) -> Result<()> {
        self.with(|all| drop(all.remove(id)));
        self.ended.notify_waiters();
        Ok(())
    }

    async fn inspect(&self, id: &str) -> Result<Container> {
        self.with(|all| all.get(id).cloned()).ok_or_else(|| missing(id))
    }

    async fn update_resources(&self, _: &str, _: i64, _: i64, _: i64) -> Result<()> {
        Ok(())
    }

    async fn image(&self, reference: &str) -> Result<Image> {
        Ok(Image { id: reference.into(), tags: vec![reference.into()], ..Image::default() })
    }

    async fn images(&self) -> Result<Vec<Image>> {
        Ok(vec![])
    }

    async fn pull(&self, _: &str, _: Option<&Credentials>) -> Result<()> {
        Ok(())
    }

    async fn save(&self, _: &str, _: &std::path::Path) -> Result<()> {
        refused("has no files of images")
    }

    async fn import(&self, _: &str, _: Vec<u8>) -> Result<()> {
        Ok(())
    }

    async fn exec(&self, _: &str, _: &ExecConfig) -> Result<Attached> {
        refused("cannot run a command")
    }

    async fn exec_exit_code(&self, _: &str) -> Result<Option<i32>> {
        refused("no command runs")
    }

    async fn exec_resize(&self, _: &str, _: u16, _: u16) -> Result<()> {
        refused("no command runs")
    }

    async fn attach(&self, _: &str, _: bool, _: bool, _: bool) -> Result<Attached> {
        refused("cannot attach")
    }

    async fn resize(&self, _: &str, _: u16, _: u16) -> Result<()> {
        refused("there is no terminal")
    }

    async fn logs(&self, _: &str, _: &LogOptions) -> Result<OutputStream> {
        refused("there is no log")
    }

    async fn stats(&self, _: &str) -> Result<Stats> {
        refused("nothing is used")
    }

    async fn written(&self, _: &str) -> Result<u64> {
        Ok(0)
    }

    async fn events(&self) -> Result<Pin<Box<dyn Stream<Item = Event> + Send>>> {
        // Containers end only when their worker ends them.
        Ok(Box::pin(futures::stream::pending()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, uid: &str) -> ContainerConfig {
        let labels = [(label::POD_UID.to_owned(), uid.to_owned())].into();
        ContainerConfig { name: name.into(), sandbox: "s".into(), image: "app:1".into(), labels, ..Default::default() }
    }

    #[tokio::test]
    async fn a_container_lives_as_the_contract_says() {
        let fake = Fake::default();
        let id = fake.create_container(&config("a", "1")).await.unwrap();
        assert!(matches!(fake.create_container(&config("a", "1")).await, Err(Error::Conflict(_))));
        fake.create_container(&config("b", "2")).await.unwrap();
        assert_eq!(fake.list(Some("1")).await.unwrap().len(), 1);
        assert_eq!(fake.list(None).await.unwrap().len(), 2);
        assert_eq!(fake.inspect(&id).await.unwrap().state, State::Created);
        fake.start(&id).await.unwrap();
        let waited = async {
            let (waited, ended) = tokio::join!(fake.wait(&id), fake.terminate(&id));
            waited.and(ended)
        };
        tokio::time::timeout(std::time::Duration::from_secs(5), waited).await.unwrap().unwrap();
        let over = fake.inspect(&id).await.unwrap();
        assert_eq!((over.state, over.exit_code, over.pid), (State::Exited, 0, None));
        for _ in 0..2 {
            fake.kill(&id).await.unwrap();
            fake.remove(&id).await.unwrap();
            fake.wait(&id).await.unwrap();
        }
        assert!(matches!(fake.inspect(&id).await, Err(Error::NotFound(_))));
        assert!(matches!(fake.start(&id).await, Err(Error::NotFound(_))));
        assert!(matches!(fake.exec(&id, &ExecConfig::default()).await, Err(Error::Refused(_))));
    }
}
