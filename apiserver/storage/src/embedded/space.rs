//! Room on the disk.
//!
//! A database that meets a full disk in the middle of a write has to end: nobody can say what became of its pages. So it
//! does not come to that: below a reserve of free space new objects are refused with [`Error::Full`], below a quarter
//! of it every write but a deletion is, and everything that is stored can still be read. The reserve is what a burst of
//! writes may need until the next look.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::store::{Compare, Error, Op};

/// Largest reserve. On small file systems it is an eighth of them.
const RESERVE_MAX: u64 = 256 << 20;
/// How long a look is good for, if little is written meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What is known of the file system of a directory.
#[derive(Debug)]
pub(super) struct Space {
    dir: PathBuf,
    /// Bytes accepted since the last look.
    since: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Option<Instant>,
    free: u64,
    reserve: u64,
}

impl Space {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, since: AtomicU64::new(0), seen: Mutex::new(Seen { at: None, free: u64::MAX, reserve: 0 }) }
    }

    /// Refuses a write for which there is no room.
    pub(super) fn admit(&self, compare: Compare, op: &Op) -> Result<(), Error> {
        let size = match op {
            Op::Delete => return Ok(()),
            Op::Put(payload) => payload.bytes.len() as u64,
        };
        let written = self.since.fetch_add(size, Ordering::Relaxed) + size;
        let seen = self.look(written);
        let wanted = if compare == Compare::Absent { seen.reserve } else { seen.reserve / 4 };
        if seen.free >= wanted { Ok(()) } else { Err(Error::Full { free: seen.free, reserve: seen.reserve }) }
    }

    /// The last look, or a new one when that is old or much was written since.
    fn look(&self, written: u64) -> Seen {
        let mut seen = self.seen.lock();
        let fresh = seen.at.is_some_and(|at| at.elapsed() < LOOK_EVERY) && written < seen.reserve / 8;
        if fresh {
            return *seen;
        }
        self.since.store(0, Ordering::Relaxed);
        seen.at = Some(Instant::now());
        match nix::sys::statvfs::statvfs(&self.dir) {
            Ok(s) => {
                let unit = s.fragment_size();
                seen.free = unit.saturating_mul(s.blocks_available());
                seen.reserve = (unit.saturating_mul(s.blocks()) / 8).min(RESERVE_MAX);
            }
            // Without a number nothing is refused; a write that really fails ends the store.
            Err(error) => tracing::warn!(%error, "cannot see how much room is on the disk"),
        }
        *seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Payload;

    fn with(free: u64) -> Space {
        let s = Space::new("/".into());
        *s.seen.lock() = Seen { at: Some(Instant::now() + Duration::from_secs(3600)), free, reserve: 1 << 40 };
        s
    }

    #[test]
    fn new_objects_are_refused_first_and_deletions_never() {
        let put = || Op::Put(Payload::plain(&b"x"[..]));
        let half = with(1 << 39);
        assert!(matches!(half.admit(Compare::Absent, &put()), Err(Error::Full { .. })));
        assert!(half.admit(Compare::At(1), &put()).is_ok());
        let none = with(0);
        assert!(matches!(none.admit(Compare::At(1), &put()), Err(Error::Full { .. })));
        assert!(none.admit(Compare::Any, &Op::Delete).is_ok());
    }
}
