//! Laws of the seats, and turns one can follow by hand.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, poll};
use proptest::prelude::*;

use super::*;

const PATIENCE: Duration = Duration::from_secs(15);

fn share(name: &str, nominal: u32, reserved: u32, most: u32) -> Share {
    Share { name: name.into(), nominal, reserved, most, queues: 8, hand: 2, length: 100 }
}

fn enter(hall: &Arc<Hall>, slot: usize, flow: u64, width: u32) -> BoxFuture<'static, Result<Seat, Refusal>> {
    let hall = Arc::clone(hall);
    async move { hall.enter(slot, flow, width, PATIENCE).await }.boxed()
}

async fn seated(asked: &mut BoxFuture<'static, Result<Seat, Refusal>>) -> Option<Seat> {
    match poll!(asked) {
        Poll::Ready(got) => Some(got.map_err(Refusal::as_str).unwrap()),
        Poll::Pending => None,
    }
}

#[tokio::test]
async fn what_is_lent_comes_back() {
    let hall = Arc::new(Hall::new(10));
    let slots = hall.arrange(&[share("busy", 5, 5, 10), share("quiet", 5, 2, 10)]);
    let mut all: Vec<_> = (0..20).map(|_| enter(&hall, slots[0], 1, 1)).collect();
    let mut seats = vec![];
    for asked in &mut all {
        seats.extend(seated(asked).await);
    }
    assert_eq!(seats.len(), 8, "its five, and the three that the other lends");
    let mut quiet: Vec<_> = (0..4).map(|_| enter(&hall, slots[1], 2, 1)).collect();
    let mut got = vec![];
    for asked in &mut quiet {
        got.extend(seated(asked).await);
    }
    assert_eq!(got.len(), 2, "two are its own at any time");
    // The next to come back are the ones it lent, though the other has waited longer.
    drop(seats.drain(..2));
    for asked in &mut quiet[2..] {
        got.push(seated(asked).await.expect("what is its own"));
    }
    assert!(seated(&mut all[8]).await.is_none());
    drop((got, quiet));
    assert!(seated(&mut all[8]).await.is_some());
}

#[tokio::test]
async fn a_flow_that_asks_little_does_not_wait_for_one_that_asks_much() {
    let hall = Arc::new(Hall::new(1));
    let slots = hall.arrange(&[share("one", 1, 1, 1)]);
    // Two flows that share no queue.
    let (heavy, light) = (0, (1..).find(|f| deal(*f, 8, 2).iter().all(|q| !deal(0, 8, 2).contains(q))).unwrap());
    let mut asked: Vec<_> = (0..50).map(|_| (heavy, enter(&hall, slots[0], heavy, 1))).collect();
    asked.push((light, enter(&hall, slots[0], light, 1)));
    let seat = seated(&mut asked.remove(0).1).await;
    // They ask when they are polled first.
    for (_, one) in &mut asked {
        assert!(seated(one).await.is_none());
    }
    drop(seat);
    let mut served = vec![];
    while !asked.is_empty() {
        // Dropped at the end of the turn, the seat goes to the next.
        let mut seat = None;
        for at in 0..asked.len() {
            if let Some(got) = seated(&mut asked[at].1).await {
                seat = Some(got);
                served.push(asked.remove(at).0);
                break;
            }
        }
        assert!(seat.is_some(), "nobody is served");
    }
    let place = served.iter().position(|flow| *flow == light).unwrap();
    assert!(place <= 3, "{place} others were served before");
}

#[tokio::test]
async fn full_queues_and_no_queues_refuse() {
    let hall = Arc::new(Hall::new(2));
    let short = Share { length: 1, hand: 1, ..share("short", 1, 1, 1) };
    let none = Share { queues: 0, ..share("none", 1, 1, 1) };
    let slots = hall.arrange(&[short, none]);
    let _seat = seated(&mut enter(&hall, slots[0], 1, 1)).await.unwrap();
    let mut waits = enter(&hall, slots[0], 1, 1);
    assert!(seated(&mut waits).await.is_none());
    assert_eq!(enter(&hall, slots[0], 1, 1).await.err(), Some(Refusal::QueueFull));
    // Who goes away makes room for the next.
    drop(waits);
    assert!(seated(&mut enter(&hall, slots[0], 1, 1)).await.is_none());
    let _other = seated(&mut enter(&hall, slots[1], 1, 1)).await.unwrap();
    assert_eq!(enter(&hall, slots[1], 1, 1).await.err(), Some(Refusal::ConcurrencyLimit));
}

#[tokio::test]
async fn nobody_waits_for_ever() {
    let hall = Arc::new(Hall::new(1));
    let slots = hall.arrange(&[share("one", 1, 1, 1)]);
    let seat = enter(&hall, slots[0], 1, 1).await.ok().unwrap();
    let short = hall.enter(slots[0], 1, 1, Duration::from_millis(10)).await;
    assert_eq!(short.err(), Some(Refusal::TimeOut));
    assert_eq!(hall.loads()[0].waiting, 0);
    drop(seat);
    assert!(enter(&hall, slots[0], 1, 1).await.is_ok());
}

#[tokio::test]
async fn a_level_that_is_no_more_ends_with_its_last_request() {
    let hall = Arc::new(Hall::new(2));
    let slots = hall.arrange(&[share("old", 1, 1, 1)]);
    let seat = seated(&mut enter(&hall, slots[0], 1, 1)).await.unwrap();
    let mut waits = enter(&hall, slots[0], 1, 1);
    assert!(seated(&mut waits).await.is_none());
    let next = hall.arrange(&[share("new", 1, 1, 1)]);
    assert_ne!(next, slots, "its place is not free");
    assert_eq!(hall.loads().len(), 1);
    drop(seat);
    drop(seated(&mut waits).await.expect("who waits is served"));
    assert_eq!(hall.arrange(&[share("new", 1, 1, 1), share("third", 1, 1, 1)]), [next[0], slots[0]]);
}

proptest! {
    #[test]
    fn a_hand_has_different_cards(flow: u64, queues in 1_usize..200, hand in 1_usize..12) {
        let hand = hand.min(queues);
        let dealt = deal(flow, queues, hand);
        prop_assert_eq!(dealt.len(), hand);
        prop_assert_eq!(dealt.iter().collect::<HashSet<_>>().len(), hand);
        prop_assert!(dealt.iter().all(|q| *q < queues));
    }

    /// Whatever comes and goes: nobody takes more than there is, nobody waits for what is their own, and all that is taken comes back.
    #[test]
    fn seats_are_counted(
        steps in prop::collection::vec((0_usize..3, 0_u64..4, 1_u32..4, prop::bool::ANY, any::<prop::sample::Index>()), 1..120),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let hall = Arc::new(Hall::new(12));
            let shares = [share("a", 6, 4, 12), share("b", 4, 1, 6), share("c", 2, 2, 2)];
            let slots = hall.arrange(&shares);
            let (mut seats, mut asked) = (vec![], vec![]);
            for (level, flow, width, ends, which) in steps {
                if ends && !seats.is_empty() {
                    drop(seats.swap_remove(which.index(seats.len())));
                } else {
                    asked.push(enter(&hall, slots[level], flow, width));
                }
                let mut still = vec![];
                for mut one in asked {
                    match seated(&mut one).await {
                        Some(seat) => seats.push(seat),
                        None => still.push(one),
                    }
                }
                asked = still;
                let loads = hall.loads();
                prop_assert_eq!(loads.iter().map(|l| l.waiting as usize).sum::<usize>(), asked.len());
                prop_assert_eq!(loads.iter().map(|l| l.executing as usize).sum::<usize>(), seats.len());
                // A level alone may have one request that is wider than all that is free.
                let over: u32 = loads.iter().filter(|l| l.executing == 1).map(|l| l.seats).sum();
                prop_assert!(loads.iter().map(|l| l.seats).sum::<u32>() <= 12 + over);
                for l in loads.iter().filter(|l| l.executing > 1) {
                    prop_assert!(l.seats <= l.share.most);
                }
                for l in loads.iter().filter(|l| l.waiting > 0) {
                    prop_assert!(l.seats + 3 > l.share.reserved, "{l:?}");
                }
            }
            drop(asked);
            drop(seats);
            for l in hall.loads() {
                prop_assert_eq!((l.seats, l.executing, l.waiting), (0, 0, 0));
            }
            Ok(())
        })?;
    }
}
