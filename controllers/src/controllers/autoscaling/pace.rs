//! How fast a target may follow what its metrics ask for: bounds, stabilisation, and policies. No I/O, no clock.

use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// How long the highest recommendation holds when nothing else is said, in seconds.
const DOWN_WINDOW: i32 = 300;
/// Longest window and longest period that the API takes, in seconds.
const LONGEST: f64 = 3600.0;

/// What was recommended and done lately. Times are seconds of any clock that only goes forward.
#[derive(Clone, Debug, Default)]
pub struct History {
    recommended: Vec<(f64, i32)>,
    added: Vec<(f64, i32)>,
    removed: Vec<(f64, i32)>,
}

impl History {
    /// Notes the size that is found first: nothing is known of what was recommended before.
    pub fn begin(&mut self, current: i32, now: f64) {
        if self.recommended.is_empty() {
            self.recommended.push((now, current));
        }
    }

    /// Notes a change of size.
    pub fn scaled(&mut self, from: i32, to: i32, now: f64) {
        if to > from {
            self.added.push((now, to - from));
        } else {
            self.removed.push((now, from - to));
        }
    }

    fn forget(&mut self, now: f64) {
        for list in [&mut self.recommended, &mut self.added, &mut self.removed] {
            list.retain(|(t, _)| now - t <= LONGEST);
        }
    }
}

/// A size, and what is said about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Paced {
    /// So many replicas.
    pub replicas: i32,
    /// Reason and message of the condition `AbleToScale`.
    pub able: (&'static str, &'static str),
    /// Whether the wish was cut.
    pub limited: bool,
    /// Reason and message of the condition `ScalingLimited`.
    pub limit: (&'static str, &'static str),
}

const READY: (&str, &str) = ("ReadyForNewScale", "recommended size matches current size");
const HELD_DOWN: (&str, &str) = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const HELD_UP: (&str, &str) = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const UP_LIMIT: (&str, &str) =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: (&str, &str) =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const TOO_MANY: (&str, &str) = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: (&str, &str) = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const WITHIN: (&str, &str) = ("DesiredWithinRange", "the desired count is within the acceptable range");

/// The size that may be taken now.
pub fn pace(
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    history: &mut History,
    current: i32,
    wanted: i32,
    bounds: (i32, i32),
    now: f64,
) -> Paced {
    history.forget(now);
    let up = behavior.and_then(|b| b.scale_up.as_ref());
    let down = behavior.and_then(|b| b.scale_down.as_ref());
    let window = |r: Option<&HPAScalingRules>, default| {
        f64::from(r.and_then(|r| r.stabilization_window_seconds).unwrap_or(default))
    };
    let (up_window, down_window) = (window(up, 0), window(down, DOWN_WINDOW));
    let recent = |window: f64| {
        history.recommended.iter().filter(move |(t, _)| now - t < window).map(|(_, n)| *n).chain([wanted])
    };
    let lowest = recent(up_window).min().unwrap_or(wanted);
    let highest = recent(down_window).max().unwrap_or(wanted);
    let stable = if behavior.is_some() { current.max(lowest).min(highest) } else { highest };
    history.recommended.push((now, wanted));
    let able = match stable == wanted {
        true => READY,
        false if behavior.is_some() && wanted >= current => HELD_UP,
        false => HELD_DOWN,
    };
    let (replicas, limit) = match behavior {
        None => {
            let fastest = current.saturating_mul(2).max(4);
            let (most, over) = if bounds.1 > fastest { (fastest, UP_LIMIT) } else { (bounds.1, TOO_MANY) };
            clamp(stable, (bounds.0, TOO_FEW), (most, over))
        }
        Some(_) => {
            let fastest = up_limit(up, history, current, now).max(current);
            let slowest = down_limit(down, history, current, now).min(current);
            let most = if bounds.1 > fastest { (fastest, UP_LIMIT) } else { (bounds.1, TOO_MANY) };
            let least = if bounds.0 < slowest { (slowest, DOWN_LIMIT) } else { (bounds.0, TOO_FEW) };
            match stable.cmp(&current) {
                std::cmp::Ordering::Equal => (stable, WITHIN),
                std::cmp::Ordering::Greater => clamp(stable, (i32::MIN, TOO_FEW), most),
                std::cmp::Ordering::Less => clamp(stable, least, (i32::MAX, TOO_MANY)),
            }
        }
    };
    Paced { replicas, able, limited: replicas != stable, limit }
}

type Why = (&'static str, &'static str);

fn clamp(wanted: i32, least: (i32, Why), most: (i32, Why)) -> (i32, Why) {
    if wanted < least.0 {
        least
    } else if wanted > most.0 {
        most
    } else {
        (wanted, WITHIN)
    }
}

/// Policies as (is percent, value, period). What a rule leaves out the API has filled in; other writers may not have.
fn policies(rules: Option<&HPAScalingRules>, default: &[(bool, i32, i32)]) -> Vec<(bool, i32, i32)> {
    let given = rules.and_then(|r| r.policies.as_ref()).filter(|p| !p.is_empty());
    given.map_or_else(
        || default.to_vec(),
        |p| p.iter().map(|p| (p.type_ == "Percent", p.value, p.period_seconds)).collect(),
    )
}

fn select(rules: Option<&HPAScalingRules>) -> &str {
    rules.and_then(|r| r.select_policy.as_deref()).unwrap_or("Max")
}

/// The size at the beginning of a period.
fn before(history: &History, current: i32, period: i32, now: f64) -> i32 {
    let sum =
        |list: &[(f64, i32)]| -> i32 { list.iter().filter(|(t, _)| now - t < f64::from(period)).map(|(_, n)| n).sum() };
    current - sum(&history.added) + sum(&history.removed)
}

fn up_limit(rules: Option<&HPAScalingRules>, history: &History, current: i32, now: f64) -> i32 {
    let all = policies(rules, &[(false, 4, 15), (true, 100, 15)]);
    let limits = all.into_iter().map(|(percent, value, period)| {
        let start = before(history, current, period, now);
        if percent {
            (f64::from(start) * (1.0 + f64::from(value) / 100.0)).ceil() as i32
        } else {
            start.saturating_add(value)
        }
    });
    match select(rules) {
        "Disabled" => current,
        "Min" => limits.min().unwrap_or(current),
        _ => limits.max().unwrap_or(current),
    }
}

fn down_limit(rules: Option<&HPAScalingRules>, history: &History, current: i32, now: f64) -> i32 {
    let all = policies(rules, &[(true, 100, 15)]);
    let limits = all.into_iter().map(|(percent, value, period)| {
        let start = before(history, current, period, now);
        if percent { (f64::from(start) * (1.0 - f64::from(value) / 100.0)) as i32 } else { start.saturating_sub(value) }
    });
    match select(rules) {
        "Disabled" => current,
        "Min" => limits.max().unwrap_or(current),
        _ => limits.min().unwrap_or(current),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn behavior(v: Value) -> HorizontalPodAutoscalerBehavior {
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn without_rules_up_at_once_and_down_after_five_minutes() {
        let mut h = History::default();
        h.begin(2, 0.0);
        let p = pace(None, &mut h, 2, 20, (1, 30), 0.0);
        assert_eq!((p.replicas, p.able, p.limited, p.limit), (4, READY, true, UP_LIMIT));
        let p = pace(None, &mut h, 4, 6, (1, 5), 15.0);
        // Twenty was asked for lately, and five is the most.
        assert_eq!((p.replicas, p.able, p.limit), (5, HELD_DOWN, TOO_MANY));
        let p = pace(None, &mut h, 5, 1, (2, 5), 30.0);
        assert_eq!((p.replicas, p.able), (5, HELD_DOWN));
        let p = pace(None, &mut h, 5, 1, (2, 5), 331.0);
        assert_eq!((p.replicas, p.able, p.limited, p.limit), (2, READY, true, TOO_FEW));
    }

    #[test]
    fn windows_of_both_directions() {
        let b = behavior(json!({"scaleUp": {"stabilizationWindowSeconds": 60},
            "scaleDown": {"stabilizationWindowSeconds": 10}}));
        let mut h = History::default();
        h.begin(3, 0.0);
        let p = pace(Some(&b), &mut h, 3, 5, (1, 9), 10.0);
        assert_eq!((p.replicas, p.able), (3, HELD_UP), "three was enough a moment ago");
        let p = pace(Some(&b), &mut h, 3, 5, (1, 9), 61.0);
        assert_eq!((p.replicas, p.able, p.limited), (5, READY, false));
        assert_eq!(pace(Some(&b), &mut h, 5, 2, (1, 9), 65.0).able, HELD_DOWN);
        let p = pace(Some(&b), &mut h, 5, 2, (1, 9), 80.0);
        assert_eq!((p.replicas, p.able), (2, READY));
    }

    #[test]
    fn policies_count_what_was_done_in_their_period() {
        let rules = |select: &str| {
            let p = json!([{"type": "Pods", "value": 2, "periodSeconds": 60},
                {"type": "Percent", "value": 50, "periodSeconds": 60}]);
            let r = json!({"stabilizationWindowSeconds": 0, "selectPolicy": select, "policies": p});
            behavior(json!({"scaleUp": r, "scaleDown": r}))
        };
        // Select, present size, wish, expected, reason.
        let cases = [
            ("Max", 10, 30, 15, UP_LIMIT),
            ("Min", 10, 30, 12, UP_LIMIT),
            ("Disabled", 10, 30, 10, UP_LIMIT),
            ("Max", 10, 11, 11, WITHIN),
            ("Max", 10, 0, 5, DOWN_LIMIT),
            ("Min", 10, 0, 8, DOWN_LIMIT),
            ("Disabled", 10, 0, 10, DOWN_LIMIT),
            ("Max", 2, 0, 1, TOO_FEW),
        ];
        for (select, current, wanted, expected, why) in cases {
            let p = pace(Some(&rules(select)), &mut History::default(), current, wanted, (1, 40), 0.0);
            assert_eq!((p.replicas, p.limit), (expected, why), "{select} {current} {wanted}");
        }
        let mut h = History::default();
        h.scaled(10, 15, 0.0);
        let b = rules("Max");
        assert_eq!(pace(Some(&b), &mut h, 15, 30, (1, 40), 30.0).replicas, 15, "all of the period's growth is used");
        assert_eq!(pace(Some(&b), &mut h, 15, 30, (1, 40), 60.0).replicas, 23);
    }

    proptest::proptest! {
        /// Whatever was recommended: a size between the bounds stays between them, and without a wish nothing moves.
        #[test]
        fn stays_within_bounds(current in 1..50i32, wishes in proptest::collection::vec(0..100i32, 1..8), with in proptest::bool::ANY) {
            let b = behavior(json!({"scaleUp": {}, "scaleDown": {"stabilizationWindowSeconds": 20}}));
            let (mut h, mut size) = (History::default(), current);
            for (i, wish) in wishes.into_iter().enumerate() {
                let p = pace(with.then_some(&b), &mut h, size, wish, (1, 50), i as f64 * 15.0);
                proptest::prop_assert!((1..=50).contains(&p.replicas), "{p:?}");
                size = p.replicas;
            }
        }
    }
}
