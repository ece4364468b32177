//! Chance, which whoever evaluates may fix: a run that is rebuilt from what came from outside must come to the same.

use std::cell::RefCell;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng as _};

thread_local! {
    static FIXED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
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
