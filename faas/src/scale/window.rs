//! How much went on in the last seconds: the exact time average of a level, and a count of arrivals.

use std::collections::VecDeque;
use std::time::Duration;

/// One second.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// Which one, since the origin of all times here.
    second: u64,
    /// The level, integrated over the second.
    level: f64,
    arrivals: u32,
}

/// The last seconds, as far back as the longest window. Times are since any origin, and never run backwards; one that does is
/// taken for the last.
#[derive(Clone, Debug)]
pub struct Window {
    buckets: VecDeque<Bucket>,
    keep: u64,
    begun: Duration,
    last: Duration,
    level: u32,
}

impl Window {
    /// An empty one that begins now and remembers `keep` seconds.
    #[must_use]
    pub fn new(now: Duration, keep: u32) -> Self {
        Self { buckets: VecDeque::new(), keep: u64::from(keep.max(1)), begun: now, last: now, level: 0 }
    }

    fn bucket(&mut self, second: u64) -> &mut Bucket {
        if self.buckets.back().is_none_or(|b| b.second < second) {
            self.buckets.push_back(Bucket { second, ..Bucket::default() });
        }
        let last = self.buckets.len() - 1;
        &mut self.buckets[last]
    }

    /// Books the level up to now.
    fn advance(&mut self, now: Duration) {
        if now <= self.last {
            return;
        }
        // What is older than all windows need not be gone through second by second.
        let oldest = Duration::from_secs(now.as_secs().saturating_sub(self.keep + 1));
        let mut at = self.last.max(oldest);
        if self.level > 0 {
            while at < now {
                let next = Duration::from_secs(at.as_secs() + 1).min(now);
                let share = (next - at).as_secs_f64() * f64::from(self.level);
                self.bucket(at.as_secs()).level += share;
                at = next;
            }
        }
        self.last = now;
        while self.buckets.front().is_some_and(|b| b.second + self.keep + 1 < now.as_secs()) {
            self.buckets.pop_front();
        }
    }

    /// From now on the level is this.
    pub fn set(&mut self, now: Duration, level: u32) {
        self.advance(now);
        self.level = level;
    }

    /// Something arrived.
    pub fn arrive(&mut self, now: Duration) {
        self.advance(now);
        let second = self.last.as_secs();
        self.bucket(second).arrivals += 1;
    }

    /// Remembers so many seconds from now on.
    pub fn keep(&mut self, seconds: u32) {
        self.keep = u64::from(seconds.max(1));
    }

    /// How long it has been looking.
    #[must_use]
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.begun)
    }

    /// Whether it has been looking for less than a second: what is now is all it knows.
    #[must_use]
    pub fn is_new(&self, now: Duration) -> bool {
        self.age(now) < Duration::from_secs(1)
    }

    /// Seconds to divide by: the window, or less when it has not been looking for so long, but at least one.
    fn span(&self, now: Duration, seconds: u32) -> f64 {
        self.age(now).as_secs_f64().clamp(1.0, f64::from(seconds.max(1)))
    }

    /// Of the oldest second only the part that is still in the window counts.
    fn sum(&self, now: Duration, seconds: u32, of: impl Fn(&Bucket) -> f64) -> f64 {
        let from = now.as_secs_f64() - f64::from(seconds.max(1));
        let weighed = self.buckets.iter().rev().map(|b| (b, (b.second as f64 + 1.0 - from).min(1.0)));
        weighed.take_while(|(_, weight)| *weight > 0.0).map(|(b, weight)| of(b) * weight).sum()
    }

    /// The average level of the last seconds. In the first second it is the level itself: nothing else is known.
    pub fn average(&mut self, now: Duration, seconds: u32) -> f64 {
        self.advance(now);
        if self.is_new(now) {
            return f64::from(self.level);
        }
        self.sum(now, seconds, |b| b.level) / self.span(now, seconds)
    }

    /// Arrivals a second, over the last seconds.
    pub fn rate(&mut self, now: Duration, seconds: u32) -> f64 {
        self.advance(now);
        self.sum(now, seconds, |b| f64::from(b.arrivals)) / self.span(now, seconds)
    }

    /// Whether nothing went on in the last seconds, of which it has seen all.
    pub fn quiet(&mut self, now: Duration, seconds: u32) -> bool {
        self.advance(now);
        self.level == 0
            && self.age(now) >= Duration::from_secs(u64::from(seconds))
            && self.sum(now, seconds, |b| b.level + f64::from(b.arrivals)) == 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn averages_are_over_time_not_over_samples() {
        let mut w = Window::new(at(0), 60);
        w.set(at(500), 10);
        w.set(at(1_000), 0);
        w.set(at(3_000), 2);
        // 10 for half a second and 2 for one, in four seconds.
        assert!((w.average(at(4_000), 60) - 7.0 / 4.0).abs() < 1e-9);
        assert_eq!(w.average(at(6_000), 2), 2.0, "only the last two seconds, of which all are seen");
    }

    #[test]
    fn the_first_second_says_what_is() {
        let mut w = Window::new(at(0), 60);
        w.set(at(1), 50);
        assert_eq!(w.average(at(2), 60), 50.0);
    }

    #[test]
    fn quiet_needs_the_whole_window() {
        let mut w = Window::new(at(0), 6);
        w.arrive(at(100));
        assert!(!w.quiet(at(3_000), 6));
        assert!(!w.quiet(at(5_900), 6), "seen too little");
        assert!(w.quiet(at(7_000), 6));
        w.set(at(8_000), 1);
        assert!(!w.quiet(at(100_000), 6), "a request that takes long is no quiet");
    }

    #[test]
    fn rates_count_arrivals() {
        let mut w = Window::new(at(0), 60);
        for i in 0..300 {
            w.arrive(at(i * 10));
        }
        assert!((w.rate(at(3_000), 60) - 100.0).abs() < 1e-9);
        assert_eq!(w.rate(at(90_000), 60), 0.0);
    }
}
