//! After how long they who were refused are to come again: the longer, the more are refused, as upstream's server says it.

use std::collections::VecDeque;

/// Seconds at most.
const MOST: i64 = 32;

/// Who was refused of a level lately.
#[derive(Debug)]
pub(super) struct Dropped {
    /// Second, and how many then.
    seconds: VecDeque<(i64, i64)>,
    after: i64,
    raised: i64,
}

impl Default for Dropped {
    fn default() -> Self {
        Self { seconds: VecDeque::new(), after: 1, raised: 0 }
    }
}

impl Dropped {
    /// Counts one, in the second `now`.
    pub(super) fn one(&mut self, now: i64) {
        match self.seconds.back_mut() {
            Some((second, n)) if *second >= now => *n += 1,
            last => {
                if last.is_some() {
                    self.settle(now);
                }
                self.seconds.push_back((now, 1));
            }
        }
    }

    /// Seconds.
    pub(super) fn retry_after(&self) -> i64 {
        self.after
    }

    /// Doubles when three times as many were refused as there were seconds, one less when fewer were than seconds. A rise has
    /// its own time to work before the next.
    fn settle(&mut self, now: i64) {
        let within = self.seconds.iter().filter(|(second, _)| now - second <= self.after);
        let refused: i64 = within.map(|(_, n)| n).sum();
        if refused >= 3 * self.after && now - self.raised >= self.after {
            self.after = (self.after * 2).min(MOST);
            self.raised = now;
        } else if refused < self.after {
            self.after = (self.after - 1).max(1);
        }
        let keep = (2 * self.after).min(MOST);
        self.seconds.retain(|(second, _)| now - second <= keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_with_the_crowd_and_shrinks_without() {
        let mut level = Dropped::default();
        level.one(100);
        assert_eq!(level.retry_after(), 1);
        for second in 101..200 {
            for _ in 0..200 {
                level.one(second);
            }
        }
        assert_eq!(level.retry_after(), MOST);
        for second in (1000..11_000).step_by(100) {
            level.one(second);
        }
        assert_eq!(level.retry_after(), 1);
    }
}
