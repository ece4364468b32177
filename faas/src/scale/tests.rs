use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::api::Scale;

fn at(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn spec(scale: Scale) -> FunctionSpec {
    FunctionSpec { replicas: 1, scale: Some(scale), ..FunctionSpec::default() }
}

fn scaler(scale: Scale, limit: u32) -> Scaler {
    Scaler::new(Settings::of(&spec(scale), limit), at(0.0))
}

#[test]
fn defaults_are_knatives() {
    let s = Settings::of(&FunctionSpec::default(), 0);
    assert_eq!((s.min, s.max, s.window, s.panic_window), (0, u32::MAX, 60, 6));
    assert_eq!((s.target, s.panic_threshold, s.up, s.down), (70.0, 2.0, 1000.0, 2.0));
    assert_eq!((s.delay, s.grace), (Duration::ZERO, Duration::from_secs(30)));
    // A hard limit is the target; a target above it makes no sense.
    let target = |target, limit| Settings::of(&spec(Scale { target, ..Scale::default() }), limit).target;
    assert_eq!((target(None, 10), target(Some(50.0), 10), target(Some(5.0), 10)), (7.0, 7.0, 3.5));
    let rps = Scale { metric: Some(Metric::Rps), ..Scale::default() };
    assert_eq!(Settings::of(&spec(rps), 10).target, 140.0);
}

#[test]
fn the_first_request_is_answered_by_a_decision() {
    let mut s = scaler(Scale::default(), 0);
    s.load(at(0.0), 1);
    assert_eq!(s.decide(at(0.0), 0).wanted, 1);
    let mut s = scaler(Scale::default(), 10);
    s.load(at(0.0), 50);
    assert_eq!(s.decide(at(0.0), 0).wanted, 5, "50 in flight, 10 each");
    assert_eq!(s.decide(at(2.0), 5).wanted, 8, "they last: 7 each");
}

#[test]
fn one_request_starts_one_instance() {
    let mut s = scaler(Scale::default(), 1);
    s.load(at(0.0), 1);
    assert_eq!(s.decide(at(0.0), 0).wanted, 1);
    s.load(at(0.3), 0);
    assert_eq!(s.decide(at(1.9), 1).wanted, 1, "it was short");
    s.load(at(2.0), 1);
    assert_eq!(s.decide(at(9.0), 1).wanted, 2, "there is always one: the next should find a free instance");
}

#[test]
fn zero_after_window_and_grace() {
    let mut s = scaler(Scale::default(), 0);
    s.load(at(0.0), 1);
    assert_eq!(s.decide(at(0.0), 0).wanted, 1);
    s.load(at(1.0), 0);
    let ends = (1..100).map(|n| f64::from(n) * 2.0).find(|t| s.decide(at(*t), 1).wanted == 0);
    // The second of the request leaves the window at 61 s, and the next tick sees it at 62 s.
    assert_eq!(ends, Some(92.0));
}

#[test]
fn min_and_max_hold() {
    let mut s = scaler(Scale { min: Some(2), max: Some(5), ..Scale::default() }, 1);
    assert_eq!(s.decide(at(200.0), 2).wanted, 2);
    s.load(at(201.0), 500);
    assert_eq!(s.decide(at(210.0), 2).wanted, 5);
}

#[test]
fn panic_does_not_take_away() {
    let mut s = scaler(Scale::default(), 10);
    s.load(at(0.0), 1);
    s.decide(at(0.0), 0);
    s.load(at(100.0), 100);
    let d = s.decide(at(106.0), 1);
    assert!(d.panicking && d.wanted >= 14, "{d:?}");
    s.load(at(107.0), 0);
    let most = d.wanted;
    for t in [110.0, 130.0, 160.0] {
        assert_eq!(s.decide(at(t), most).wanted, most, "at {t}");
    }
    let later = s.decide(at(170.0), most);
    assert!(!later.panicking && later.wanted == most / 2, "{later:?}");
}

#[test]
fn a_lower_decision_must_hold() {
    let mut s = scaler(Scale { scale_down_delay_seconds: Some(100), ..Scale::default() }, 1);
    s.load(at(0.0), 7);
    for t in 1..60 {
        s.decide(at(f64::from(t)), 10);
    }
    assert_eq!(s.decide(at(60.0), 10).wanted, 10);
    s.load(at(60.0), 0);
    for t in (62..150).step_by(2) {
        assert_eq!(s.decide(at(f64::from(t)), 10).wanted, 10, "at {t}");
    }
    assert!(s.decide(at(260.0), 10).wanted < 10);
}

#[test]
fn replicas_decide_when_asked_to() {
    let of = |replicas| {
        let scale = Scale { metric: Some(Metric::Replicas), ..Scale::default() };
        Settings::of(&FunctionSpec { replicas, scale: Some(scale), ..FunctionSpec::default() }, 1)
    };
    let mut s = Scaler::new(of(4), at(0.0));
    assert_eq!(s.decide(at(0.0), 0).wanted, 4);
    s.load(at(1.0), 100);
    assert_eq!(s.decide(at(70.0), 4).wanted, 4, "load says nothing");
    // Asleep by order: a request still wakes one.
    s.configure(of(0));
    assert_eq!(s.decide(at(71.0), 4).wanted, 1);
    s.load(at(72.0), 0);
    assert_eq!((0..100).map(|n| s.decide(at(134.0 + f64::from(n) * 2.0), 1).wanted).min(), Some(0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens: within the bounds, never a drop by more than the rate, never zero while something is under way.
    #[test]
    fn laws(
        min in 0u32..4, room in 0u32..20, limit in 0u32..20,
        steps in prop::collection::vec((1u32..5000, 0u32..300), 1..120),
    ) {
        let max = min + room;
        let mut s = scaler(Scale { min: Some(min), max: Some(max), ..Scale::default() }, limit);
        let bound = if max == 0 { u32::MAX } else { max };
        let (mut now, mut ready) = (Duration::ZERO, 0);
        for (millis, load) in steps {
            now += Duration::from_millis(u64::from(millis));
            s.load(now, load);
            let d = s.decide(now, ready);
            prop_assert!(d.wanted >= min && d.wanted <= bound);
            prop_assert!(d.wanted + 1 >= ready / 2, "{} of {}", d.wanted, ready);
            prop_assert!(load == 0 || d.wanted > 0 || ready == 0);
            if d.panicking {
                prop_assert!(d.wanted >= ready.min(bound));
            }
            ready = d.wanted;
        }
    }

    /// A steady load finds its number and stays there.
    #[test]
    fn steady(load in 1u32..2000, limit in 0u32..50) {
        let mut s = scaler(Scale::default(), limit);
        let target = if limit == 0 { 70.0 } else { f64::from(limit) * 0.7 };
        s.load(Duration::ZERO, load);
        let mut ready = 0;
        for tick in 0..120u64 {
            ready = s.decide(Duration::from_secs(tick * 2), ready).wanted;
        }
        prop_assert_eq!(ready, (f64::from(load) / target).ceil() as u32);
    }
}
