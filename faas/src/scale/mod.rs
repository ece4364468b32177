//! How many instances a revision should have: Knative's pod autoscaler, as a function of time and load.
//!
//! No clocks, no I/O: who uses it says what time it is. Two windows are averaged. The long one decides in ordinary times; when
//! the short one asks for much more than there is, nothing is taken away until that has been over for a long window.
//! What waits right now is not decided here but by the gateway, at once; this says what should be there over time.

mod window;

use std::collections::VecDeque;
use std::time::Duration;

pub use window::Window;

use crate::api::{Code, FunctionSpec, Isolation, Metric};

/// How often is decided while there is anything to decide.
pub const TICK: Duration = Duration::from_secs(2);

/// The knobs, with defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// At least so many.
    pub min: u32,
    /// At most so many.
    pub max: u32,
    /// What is counted.
    pub metric: Metric,
    /// `spec.replicas`, for [`Metric::Replicas`].
    pub replicas: u32,
    /// What one instance should have, after utilization.
    pub target: f64,
    /// What one instance may have: all of its target.
    pub most: f64,
    /// Seconds of the long window.
    pub window: u32,
    /// Seconds of the short one.
    pub panic_window: u32,
    /// How many times what is ready the short window must ask for.
    pub panic_threshold: f64,
    /// At most so many times as many.
    pub up: f64,
    /// At most so many times fewer.
    pub down: f64,
    /// How long a lower decision must hold.
    pub delay: Duration,
    /// How long the last instance stays after the long window is empty.
    pub grace: Duration,
}

/// Requests that one instance of some code is given at a time; 0 is no limit.
#[must_use]
pub fn concurrency(code: &Code, class: Isolation) -> u32 {
    code.concurrency.unwrap_or(match class {
        Isolation::Process => 1,
        Isolation::Container => 0,
    })
}

impl Settings {
    /// Those of a function whose instances take `limit` requests at a time (0: any number).
    #[must_use]
    pub fn of(spec: &FunctionSpec, limit: u32) -> Self {
        let scale = spec.scale.clone().unwrap_or_default();
        let metric = scale.metric.unwrap_or_default();
        let utilization = f64::from(scale.target_utilization_percent.unwrap_or(70)) / 100.0;
        let target = match metric {
            Metric::Rps => scale.target.unwrap_or(200.0),
            // A target above what an instance takes would never be met.
            Metric::Concurrency | Metric::Replicas if limit > 0 => {
                scale.target.unwrap_or(f64::from(limit)).min(f64::from(limit))
            }
            Metric::Concurrency | Metric::Replicas => scale.target.unwrap_or(100.0),
        };
        let window = scale.window_seconds.unwrap_or(60).max(1);
        let panic_window = f64::from(window) * f64::from(scale.panic_window_percent.unwrap_or(10)) / 100.0;
        let seconds = |n: u32| Duration::from_secs(u64::from(n));
        Self {
            min: scale.min.unwrap_or(0),
            max: scale.max.filter(|m| *m > 0).unwrap_or(u32::MAX),
            metric,
            replicas: u32::try_from(spec.replicas).unwrap_or(0),
            target: (target * utilization).max(0.01),
            most: target.max(0.01),
            window,
            panic_window: (panic_window.round() as u32).clamp(1, window),
            panic_threshold: f64::from(scale.panic_threshold_percent.unwrap_or(200)) / 100.0,
            up: scale.max_scale_up_rate.unwrap_or(1000.0).max(1.01),
            down: scale.max_scale_down_rate.unwrap_or(2.0).max(1.01),
            delay: seconds(scale.scale_down_delay_seconds.unwrap_or(0)),
            grace: seconds(scale.scale_to_zero_grace_seconds.unwrap_or(30)),
        }
    }
}

/// What was seen of one revision, and what follows from it.
#[derive(Clone, Debug)]
pub struct Scaler {
    settings: Settings,
    window: Window,
    /// When the short window last asked for too much, and the most that was wanted since it began to.
    panic: Option<(Duration, u32)>,
    /// Decisions of the delay window; the largest of them holds. Falling, so the first is the largest.
    held: VecDeque<(Duration, u32)>,
    /// Since when nothing has been wanted.
    empty: Option<Duration>,
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// So many instances.
    pub wanted: u32,
    /// Whether the short window decides.
    pub panicking: bool,
}

impl Scaler {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(settings: Settings, now: Duration) -> Self {
        let window = Window::new(now, settings.window);
        Self { settings, window, panic: None, held: VecDeque::new(), empty: None }
    }

    /// Other settings; what was seen stays.
    pub fn configure(&mut self, settings: Settings) {
        self.window.keep(settings.window);
        self.settings = settings;
    }

    /// So many requests are under way or wait.
    pub fn load(&mut self, now: Duration, in_flight: u32) {
        self.window.set(now, in_flight);
    }

    /// A request came.
    pub fn arrive(&mut self, now: Duration) {
        self.window.arrive(now);
    }

    /// How many instances there should be, when `ready` can answer.
    pub fn decide(&mut self, now: Duration, ready: u32) -> Decision {
        let (raw, panicking) = self.averaged(now, ready);
        let raw = match (self.settings.metric, self.settings.replicas) {
            (Metric::Replicas, 0) => raw.min(1),
            (Metric::Replicas, n) => n,
            _ => raw,
        };
        let held = self.hold(now, raw);
        let s = &self.settings;
        let (min, max) = match s.metric {
            Metric::Replicas if s.replicas > 0 => (0, u32::MAX),
            _ => (s.min.min(s.max), s.max),
        };
        let wanted = held.clamp(min, max);
        // The last instance stays for a while.
        let wanted = if wanted > 0 {
            self.empty = None;
            wanted
        } else if ready == 0 {
            0
        } else if !self.window.quiet(now, self.settings.window) {
            self.empty = None;
            1
        } else {
            let since = *self.empty.get_or_insert(now);
            u32::from(now.saturating_sub(since) < self.settings.grace)
        };
        Decision { wanted, panicking }
    }

    /// What the two windows ask for, within the rates.
    fn averaged(&mut self, now: Duration, ready: u32) -> (u32, bool) {
        let s = &self.settings;
        let (long, short) = match s.metric {
            Metric::Rps => (self.window.rate(now, s.window), self.window.rate(now, s.panic_window)),
            Metric::Concurrency | Metric::Replicas => {
                (self.window.average(now, s.window), self.window.average(now, s.panic_window))
            }
        };
        let there = f64::from(ready.max(1));
        let most = (s.up * there).ceil().max(there + 1.0);
        let least = if ready == 0 { 0.0 } else { (f64::from(ready) / s.down).floor().min(f64::from(ready - 1)) };
        // What is kept free for more to come is for load that lasts. Knative would start two instances for the first request of
        // a function whose instances take one at a time.
        let each = if self.window.is_new(now) { s.most } else { s.target };
        let count = |load: f64| (load / each).ceil();
        let bounded = |n: f64| n.clamp(least, most) as u32;
        let by_long = bounded(count(long));
        let by_short = bounded(count(short));
        let over = count(short) / there >= s.panic_threshold;
        if over {
            let so_far = self.panic.map_or(0, |(_, n)| n);
            self.panic = Some((now, so_far));
        } else if self.panic.is_some_and(|(at, _)| now.saturating_sub(at) > Duration::from_secs(u64::from(s.window))) {
            self.panic = None;
        }
        match &mut self.panic {
            Some((_, most)) => {
                *most = (*most).max(by_long).max(by_short).max(ready.min(s.max));
                (*most, true)
            }
            None => (by_long, false),
        }
    }

    /// The largest decision of the delay window.
    fn hold(&mut self, now: Duration, wanted: u32) -> u32 {
        let delay = self.settings.delay;
        while self.held.back().is_some_and(|(_, n)| *n <= wanted) {
            self.held.pop_back();
        }
        self.held.push_back((now, wanted));
        while self.held.len() > 1 && self.held.front().is_some_and(|(at, _)| now.saturating_sub(*at) >= delay) {
            self.held.pop_front();
        }
        self.held.front().map_or(wanted, |(_, n)| *n)
    }
}

#[cfg(test)]
mod tests;
