//! Delays that grow with repeated failure and are forgotten after a quiet time.

use std::time::{Duration, Instant};

/// First delay.
pub const INITIAL: Duration = Duration::from_secs(10);
/// Longest delay.
pub const MAX: Duration = Duration::from_secs(300);
/// A failure this long after the last one starts over.
pub const FORGET: Duration = Duration::from_secs(600);

/// One thing's delay.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    current: Option<(Duration, Instant)>,
}

impl Backoff {
    /// How long to wait still before trying again, when the last failure was at `failed`. `None`: try now.
    pub fn remaining(&self, failed: Instant, now: Instant) -> Option<Duration> {
        let (delay, since) = self.current?;
        if failed.saturating_duration_since(since) > FORGET {
            return None;
        }
        delay.checked_sub(now.saturating_duration_since(failed)).filter(|left| !left.is_zero())
    }

    /// Notes a try: the delay before the next one doubles, or starts over after a quiet time.
    pub fn tried(&mut self, failed: Instant, now: Instant) {
        let next = match self.current {
            Some((delay, since)) if failed.saturating_duration_since(since) <= FORGET => (delay * 2).min(MAX),
            _ => INITIAL,
        };
        self.current = Some((next, now));
    }

    /// The delay in force.
    pub fn delay(&self) -> Duration {
        self.current.map_or(INITIAL, |(delay, _)| delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_maximum_and_is_forgotten() {
        let start = Instant::now();
        let mut backoff = Backoff::default();
        let mut now = start;
        assert!(backoff.remaining(now, now).is_none(), "the first restart is at once");
        for wanted in [10, 20, 40, 80, 160, 300, 300] {
            backoff.tried(now, now);
            assert_eq!(backoff.delay(), Duration::from_secs(wanted));
            assert_eq!(backoff.remaining(now, now), Some(Duration::from_secs(wanted)));
            now += backoff.delay();
        }
        let much_later = now + FORGET + Duration::from_secs(1);
        assert!(backoff.remaining(much_later, much_later).is_none());
        backoff.tried(much_later, much_later);
        assert_eq!(backoff.delay(), INITIAL);
    }
}
