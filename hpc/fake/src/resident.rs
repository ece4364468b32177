//! The controller as a process that stays, as slurmctld is: commands ask it through a socket in the cluster's directory, so that
//! none of them reads all jobs to say one thing. Without one each command is the controller for a moment.

use std::io::{BufReader, ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;

use crate::state::Store;
use crate::tools::{Answer, Ask, decide};

/// Name of the socket.
const SOCKET: &str = "controller";

/// A controller that stays as long as this.
pub struct Resident {
    store: Store,
    over: Arc<AtomicBool>,
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // It waits for somebody who asks.
        let _ = UnixStream::connect(self.store.path(SOCKET));
        let _ = std::fs::remove_file(self.store.path(SOCKET));
        crate::journal::forget(&self.store);
    }
}

/// Answers commands from now on.
///
/// # Errors
/// When there can be no socket.
pub fn serve(store: &Store) -> anyhow::Result<Resident> {
    let path = store.path(SOCKET);
    // One that was killed leaves its socket.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| path.display().to_string())?;
    let over = Arc::new(AtomicBool::new(false));
    let (ours, ended) = (store.clone(), Arc::clone(&over));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            if ended.load(Ordering::Relaxed) {
                return;
            }
            let (Ok(stream), store) = (stream, ours.clone()) else { continue };
            // Each waits for the lock on a thread of its own. What goes wrong the command sees: nothing comes.
            std::thread::spawn(move || drop(answer(&store, stream)));
        }
    });
    Ok(Resident { store: store.clone(), over })
}

fn answer(store: &Store, mut stream: UnixStream) -> anyhow::Result<()> {
    let ask: Ask = serde_json::from_reader(BufReader::new(&stream))?;
    let answer = decide(store, &ask).unwrap_or_else(|e| Answer {
        err: format!("fake-slurm: {e:#}\n"),
        code: 1,
        ..Answer::default()
    });
    stream.write_all(&serde_json::to_vec(&answer)?)?;
    Ok(())
}

/// Asks the controller that stays; nothing where there is none.
///
/// # Errors
/// When it went away in between.
pub(crate) fn ask(store: &Store, ask: &Ask) -> anyhow::Result<Option<Answer>> {
    let mut stream = match UnixStream::connect(store.path(SOCKET)) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        Err(e) => return Err(e).context("the controller's socket"),
    };
    stream.write_all(&serde_json::to_vec(ask)?)?;
    stream.shutdown(Shutdown::Write)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(Some(serde_json::from_slice(&bytes).context("the controller went away")?))
}
