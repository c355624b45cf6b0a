//! Limits of a keypair, its counters under many threads, and the three slots.

use super::*;
use crate::proto::messages::TAG_LEN;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;
use std::sync::{Barrier, Mutex};

extern crate std;

const T0: Instant = Instant::from_nanos(5_000_000_000);

fn keys(local_index: u32, is_initiator: bool) -> DerivedKeys {
    let (a, b) = (Zeroizing::new([1; HASH_LEN]), Zeroizing::new([2; HASH_LEN]));
    let (sending, receiving) = if is_initiator { (a, b) } else { (b, a) };
    DerivedKeys { sending, receiving, local_index, remote_index: 77, is_initiator }
}

fn keypair(local_index: u32, is_initiator: bool) -> Arc<Keypair> {
    Keypair::new(keys(local_index, is_initiator), T0)
}

fn age(seconds: u64) -> Instant {
    T0 + Duration::from_secs(seconds)
}

/// [WP 6.2] At 180 s it neither sends nor receives; a nanosecond before, it does both.
#[test]
fn expires_at_reject_after_time() {
    let keypair = keypair(1, true);
    assert_eq!((keypair.birth(), keypair.remote_index()), (T0, 77));
    let before = age(180) - Duration::from_nanos(1);
    assert_eq!((keypair.number(1, before), keypair.may_receive(before)), (Ok(0), Ok(())));
    assert_eq!(keypair.number(1, age(180)), Err(Rejected::ExpiredKeypair));
    assert_eq!(keypair.may_receive(age(180)), Err(Rejected::ExpiredKeypair));
    assert_eq!(keypair.sending_counter(), 1);
}

/// [WP 6.2] No counter at or beyond the limit, however trains fall; afterwards none at all.
#[test]
fn no_message_limit() {
    let near = keypair(1, true);
    near.skip_counters(REJECT_AFTER_MESSAGES - 10);
    assert_eq!(near.number(7, T0), Ok(REJECT_AFTER_MESSAGES - 10));
    assert_eq!(near.number(4, T0), Err(Rejected::MessageLimit));
    assert_eq!(near.number(1, T0), Err(Rejected::ExpiredKeypair));
    assert_eq!(near.sending_counter(), REJECT_AFTER_MESSAGES - 3);

    let exact = keypair(1, true);
    exact.skip_counters(REJECT_AFTER_MESSAGES - 3);
    assert_eq!(exact.number(3, T0), Ok(REJECT_AFTER_MESSAGES - 3), "the last counter is one below the limit");
    for _ in 0..3 {
        assert!(exact.number(1, T0).is_err());
    }
    assert_eq!(exact.sending_counter(), REJECT_AFTER_MESSAGES);

    let wrapped = keypair(1, true);
    wrapped.skip_counters(u64::MAX);
    assert_eq!(wrapped.number(64, T0), Err(Rejected::MessageLimit));
    assert_eq!(wrapped.sending_counter(), u64::MAX);
    wrapped.skip_counters(0);
    assert_eq!(wrapped.sending_counter(), u64::MAX, "never back");
}

/// [WP 6.2] Strictly more than 2^60 messages on either side; 120 s for the initiator alone.
#[test]
fn rekey_on_send() {
    let check = |is_initiator, counter, seconds, expected| {
        let keypair = keypair(1, is_initiator);
        keypair.skip_counters(counter);
        let state = (is_initiator, counter, seconds);
        assert_eq!(keypair.needs_rekey_on_send(age(seconds)), expected, "{state:?}");
        keypair.expire_sending();
        assert!(!keypair.needs_rekey_on_send(age(seconds)), "{state:?}, expired");
    };
    for is_initiator in [false, true] {
        check(is_initiator, REKEY_AFTER_MESSAGES, 0, false);
        check(is_initiator, REKEY_AFTER_MESSAGES + 1, 0, true);
        check(is_initiator, 0, 119, false);
    }
    check(true, 0, 120, true);
    check(false, 0, 179, false);
}

/// [WP 6.2] 165 s, for the initiator alone.
#[test]
fn rekey_on_receive() {
    let check = |is_initiator, seconds, expected| {
        assert_eq!(keypair(1, is_initiator).needs_rekey_on_receive(age(seconds)), expected);
    };
    check(true, 164, false);
    check(true, 165, true);
    check(false, 165, false);
}

#[test]
fn expired_sending_still_receives() {
    let keypair = keypair(1, true);
    keypair.expire_sending();
    assert_eq!(keypair.number(1, T0), Err(Rejected::ExpiredKeypair));
    assert_eq!(keypair.may_receive(T0), Ok(()));
}

/// Threads that number trains of different lengths never get a counter twice. They begin together, and go on for long
/// enough to meet.
#[test]
fn s_22_counters_are_unique_over_threads() {
    const THREADS: u64 = 4;
    const TRAINS: usize = 100_000;
    let keypair = keypair(1, true);
    let (all, together) = (Mutex::new(Vec::new()), Barrier::new(THREADS as usize));
    std::thread::scope(|scope| {
        for thread in 1..=THREADS {
            let (keypair, all, together) = (&keypair, &all, &together);
            scope.spawn(move || {
                together.wait();
                let mut firsts = vec![0; TRAINS];
                firsts.iter_mut().for_each(|first| *first = keypair.number(thread, T0).unwrap());
                all.lock().unwrap().extend(firsts.into_iter().flat_map(|first| first..first + thread));
            });
        }
    });
    let mut all = all.into_inner().unwrap();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..keypair.sending_counter()), "each once, and none left out");
}

/// At the limit too, threads get every counter below it once and none beyond.
#[test]
fn s_22_counters_are_unique_at_the_limit() {
    let keypair = keypair(1, true);
    keypair.skip_counters(REJECT_AFTER_MESSAGES - 1000);
    let all = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Ok(first) = keypair.number(5, T0) {
                    all.lock().unwrap().extend(first..first + 5);
                }
            });
        }
    });
    let mut all = all.into_inner().unwrap();
    all.sort_unstable();
    assert!(all.into_iter().eq(REJECT_AFTER_MESSAGES - 1000..REJECT_AFTER_MESSAGES));
}

/// [WP 5.4.6] A train that one side seals, the other opens, each packet by its own counter.
#[test]
fn seals_and_opens_a_train() {
    let (a, b) = (keypair(1, true), keypair(2, false));
    let (stride, last) = (16 + 48 + TAG_LEN, 16 + TAG_LEN);
    let mut train = vec![0xaa; 2 * stride + last];
    let first = a.number(3, T0).unwrap();
    a.seal_train(first, &mut train, stride);
    let packet = |counter: u64, len: usize| Opening {
        counter,
        start: (counter as usize * stride + 16) as u32,
        len: (len - 16) as u32,
        ok: false,
    };
    let mut packets = [packet(0, stride), packet(1, stride), packet(2, last)];
    train[stride + 20] ^= 1;
    b.open_train(&mut train, &mut packets);
    assert_eq!(packets.map(|packet| packet.ok), [true, false, true]);
    assert!(train[16..16 + 48].iter().all(|&byte| byte == 0xaa));
}

#[test]
fn debug_shows_no_key() {
    let text = format!("{:?}", keypair(1, true));
    assert!(!text.contains("sending:") && !text.contains("receiving:"), "{text}");
}

type Slots = (Option<u32>, Option<u32>, Option<u32>);

fn slots(keypairs: &Keypairs) -> Slots {
    let index = |slot: Option<&Arc<Keypair>>| slot.map(|keypair| keypair.local_index());
    (index(keypairs.previous()), index(keypairs.current()), index(keypairs.next()))
}

const NONE: [u32; 0] = [];

fn dropped(dropped: Dropped) -> Vec<u32> {
    let keypairs = dropped.into_iter().flatten();
    keypairs
        .inspect(|keypair| assert_eq!(keypair.may_receive(T0), Err(Rejected::ExpiredKeypair), "retired"))
        .map(|keypair| keypair.local_index())
        .collect()
}

const CONFIRM: Heard = Heard::ConfirmNext { tell: false };
const CONFIRM_AND_TELL: Heard = Heard::ConfirmNext { tell: true };

fn heard(keypairs: &mut Keypairs, local_index: u32, now: Instant) -> Heard {
    keypairs.heard_on(local_index, Now { instant: now, ..Now::default() })
}

/// [WP 5.4.5] The three slots, for either role.
#[test]
fn s_25_three_slots() {
    let mut keypairs = Keypairs::default();
    assert_eq!(dropped(keypairs.add_initiator(keypair(1, true))), NONE);
    assert_eq!(slots(&keypairs), (None, Some(1), None));
    assert_eq!(dropped(keypairs.add_initiator(keypair(2, true))), NONE);
    assert_eq!(slots(&keypairs), (Some(1), Some(2), None));
    assert_eq!(dropped(keypairs.add_initiator(keypair(3, true))), [1]);
    assert_eq!(dropped(keypairs.add_responder(keypair(4, false), false)), [2]);
    assert_eq!(slots(&keypairs), (None, Some(3), Some(4)));
    assert_eq!(dropped(keypairs.add_responder(keypair(5, false), false)), [4]);
    assert!(keypairs.next().unwrap().is_unconfirmed() && !keypairs.current().unwrap().is_unconfirmed());
    let heard = [4, 3, 5].map(|index| heard(&mut keypairs, index, T0));
    assert_eq!(heard, [Heard::Nothing, Heard::Nothing, CONFIRM_AND_TELL], "of the same moment: they crossed");
    assert_eq!(dropped(keypairs.confirm_next()), NONE);
    assert_eq!(slots(&keypairs), (Some(3), Some(5), None));
    assert!(!keypairs.current().unwrap().is_unconfirmed());
    assert_eq!(dropped(keypairs.confirm_next()), NONE, "nothing to confirm");
    assert_eq!(dropped(keypairs.add_responder(keypair(6, false), false)), [3]);
    assert_eq!(dropped(keypairs.add_initiator(keypair(7, true))), [5], "an unconfirmed next outlives current");
    assert_eq!(slots(&keypairs), (Some(6), Some(7), None));
    assert!(!keypairs.previous().unwrap().is_unconfirmed(), "data on it no longer changes anything");
    assert_eq!(dropped(keypairs.clear()), [6, 7]);
    assert_eq!(slots(&keypairs), (None, None, None));
}

fn crossed(ours_wins: bool) -> Keypairs {
    let mut keypairs = Keypairs::default();
    dropped(keypairs.add_initiator(keypair(1, true)));
    dropped(keypairs.add_responder(Keypair::new(keys(2, false), age(60)), false));
    let ours = Keypair::new(keys(3, true), age(60));
    assert_eq!(dropped(keypairs.add_crossed_initiator(ours, ours_wins)), NONE);
    assert_eq!(slots(&keypairs), (Some(1), Some(3), Some(2)));
    keypairs
}

/// Crossed initiations keep all three receivable; the winner's keypair is the one sent on.
#[test]
fn crossed_slots() {
    let mut lost = crossed(false);
    assert_eq!(heard(&mut lost, 2, age(60)), CONFIRM_AND_TELL, "that ours is there, the peer cannot know");
    assert_eq!(dropped(lost.confirm_next()), [1]);
    assert_eq!(slots(&lost), (Some(3), Some(2), None));
    assert!(!lost.previous().unwrap().is_unconfirmed() && !lost.current().unwrap().is_unconfirmed());
    let mut won = crossed(true);
    assert_eq!(dropped(won.add_responder(Keypair::new(keys(4, false), age(70)), false)), [1, 2]);
    assert_eq!(heard(&mut won, 4, age(70)), CONFIRM, "a later one is confirmed as ever");
    assert!(!won.current().unwrap().is_unconfirmed());
}

/// Data on the session that lost counts a second later, if there is none on the other one; and that is gone back to.
#[test]
fn crossed_sessions_settle() {
    let (soon, settles_at) = (age(60) + Duration::from_millis(10), age(61));
    let mut silent = crossed(true);
    assert!(silent.current().unwrap().is_unconfirmed() && silent.next().unwrap().is_unconfirmed());
    assert_eq!(silent.only_heard_on_next(settles_at), None);
    assert_eq!(heard(&mut silent, 2, settles_at), CONFIRM, "the peer has no other");

    let mut restarted = crossed(true);
    for _ in 0..2 {
        assert_eq!(heard(&mut restarted, 2, soon), Heard::DecideAt(settles_at));
    }
    assert_eq!(restarted.only_heard_on_next(settles_at - Duration::from_nanos(1)), None);
    assert_eq!(restarted.only_heard_on_next(settles_at).map(|now| now.instant), Some(soon));
    assert_eq!(dropped(restarted.confirm_next()), [1]);
    assert_eq!(slots(&restarted), (Some(3), Some(2), None));
    assert_eq!(restarted.only_heard_on_next(settles_at), None, "once");
    assert!(restarted.previous().unwrap().is_unconfirmed());
    assert_eq!(heard(&mut restarted, 2, settles_at), Heard::Nothing);
    assert_eq!(heard(&mut restarted, 3, settles_at), Heard::ReturnToPrevious);
    restarted.return_to_previous();
    assert_eq!(slots(&restarted), (Some(2), Some(3), None));
    assert!(!restarted.previous().unwrap().is_unconfirmed() && !restarted.current().unwrap().is_unconfirmed());
    assert_eq!(heard(&mut restarted, 2, settles_at), Heard::Nothing);

    for theirs_first in [false, true] {
        let mut agreed = crossed(true);
        if theirs_first {
            heard(&mut agreed, 2, soon);
        }
        assert_eq!(heard(&mut agreed, 3, soon), Heard::Decided);
        assert!(!agreed.current().unwrap().is_unconfirmed());
        assert_eq!(heard(&mut agreed, 2, soon), Heard::Nothing);
        assert_eq!(agreed.only_heard_on_next(settles_at), None);
        assert_eq!(heard(&mut agreed, 2, settles_at), CONFIRM, "so late it is no leftover");
    }
}

/// An initiation that was overtaken by the response to ours has crossed it, too.
#[test]
fn overtaken_initiation() {
    let check = |is_initiator, seconds, ours_wins, expected: Heard| {
        let mut keypairs = Keypairs::default();
        dropped(keypairs.add_initiator(keypair(1, is_initiator)));
        dropped(keypairs.add_responder(Keypair::new(keys(2, false), age(seconds)), ours_wins));
        assert_eq!(heard(&mut keypairs, 2, age(seconds)), expected, "{is_initiator} {seconds} {ours_wins}");
        assert!(matches!(heard(&mut keypairs, 2, age(seconds + 1)), Heard::ConfirmNext { .. }));
    };
    check(true, 0, true, Heard::DecideAt(age(1)));
    check(true, 0, false, CONFIRM_AND_TELL);
    check(true, 1, true, CONFIRM);
    check(false, 0, true, CONFIRM);
}

#[test]
fn a_new_identity_sends_on_none() {
    let mut keypairs = Keypairs::default();
    dropped(keypairs.add_initiator(keypair(1, true)));
    dropped(keypairs.add_responder(keypair(2, false), false));
    keypairs.expire_sending();
    for keypair in [keypairs.current().unwrap(), keypairs.next().unwrap()] {
        assert!(!keypair.may_send(T0) && keypair.may_receive(T0).is_ok());
    }
}
