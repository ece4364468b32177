//! Chance and time, which whoever evaluates may fix: a run that is rebuilt from what came from outside must come to the same.

use std::cell::{Cell, RefCell};

use jiff::Timestamp;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng as _};

thread_local! {
    static FIXED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

thread_local! {
    static TIME: Cell<Option<Timestamp>> = const { Cell::new(None) };
}

/// Evaluates with chance that depends on the seed only, at a time that stands still.
pub fn with_seed_at<R>(seed: u64, at: Timestamp, f: impl FnOnce() -> R) -> R {
    struct Back(Option<Timestamp>);
    impl Drop for Back {
        fn drop(&mut self) {
            TIME.with(|time| time.set(self.0));
        }
    }
    let _back = Back(TIME.with(|time| time.replace(Some(at))));
    with_seed(seed, f)
}

/// The time that evaluations see; none where it is the clock's.
pub(crate) fn time() -> Option<Timestamp> {
    TIME.with(Cell::get)
}

/// Evaluates with chance that depends on the seed only.
pub fn with_seed<R>(seed: u64, f: impl FnOnce() -> R) -> R {
    struct Back(Option<StdRng>);
    impl Drop for Back {
        fn drop(&mut self) {
            let before = self.0.take();
            FIXED.with(|fixed| *fixed.borrow_mut() = before);
        }
    }
    let before = FIXED.with(|fixed| fixed.borrow_mut().replace(StdRng::seed_from_u64(seed)));
    let _back = Back(before);
    f()
}

/// Throws the dice.
pub(crate) fn throw<R>(f: impl FnOnce(&mut dyn RngCore) -> R) -> R {
    FIXED.with(|fixed| match fixed.borrow_mut().as_mut() {
        Some(fixed) => f(fixed),
        None => f(&mut rand::rng()),
    })
}

/// A seed for another thread that goes on with what is evaluated here; none where chance is not fixed.
pub(crate) fn seed() -> Option<u64> {
    FIXED.with(|fixed| fixed.borrow_mut().as_mut().map(RngCore::next_u64))
}

/// A UUID of version 4.
pub(crate) fn uuid() -> String {
    let mut bytes = [0; 16];
    throw(|dice| dice.fill_bytes(&mut bytes));
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_fixes_chance_while_it_holds() {
        let fixed = || with_seed(7, || (uuid(), uuid()));
        assert_eq!(fixed(), fixed());
        assert_ne!(fixed().0, fixed().1);
        assert_ne!(with_seed(8, uuid), fixed().0);
        assert_ne!(uuid(), uuid());
    }
}
