//! Counters of a session: each is handed out once, and none beyond the message limit.

use std::sync::Arc;

use loom::thread;
use zeroize::Zeroizing;

use crate::proto::constants::REJECT_AFTER_MESSAGES;
use crate::proto::handshake::DerivedKeys;
use crate::proto::keypair::Keypair;
use crate::proto::rejected::Rejected;
use crate::proto::time::Instant;

pub(crate) const MODELS: &[crate::Model] = &[
    ("a_counter_is_handed_out_once", a_counter_is_handed_out_once),
    ("no_counter_lies_beyond_the_limit", no_counter_lies_beyond_the_limit),
];

/// A keypair whose keys protect nothing.
pub(crate) fn keypair(local_index: u32) -> Arc<Keypair> {
    let key = || Zeroizing::new([0; 32]);
    let keys = DerivedKeys { sending: key(), receiving: key(), local_index, remote_index: 0, is_initiator: true };
    Keypair::new(keys, Instant::default())
}

/// Takes trains of `lens` packets on as many threads, and returns all counters, in order.
fn number(keypair: &Arc<Keypair>, lens: [u64; 3]) -> Vec<Result<u64, Rejected>> {
    let threads = lens.map(|len| {
        let keypair = keypair.clone();
        thread::spawn(move || match keypair.number(len, Instant::default()) {
            Ok(first) => (first..first + len).map(Ok).collect(),
            Err(reason) => vec![Err(reason)],
        })
    });
    let mut all: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().expect("it does not panic")).collect();
    all.sort_by_key(|it| it.ok());
    all
}

fn a_counter_is_handed_out_once() {
    crate::check(|| {
        let keypair = keypair(1);
        let counters: Vec<u64> = number(&keypair, [1, 2, 3]).into_iter().flatten().collect();
        assert_eq!(counters, [0, 1, 2, 3, 4, 5]);
    });
}

/// Where a train does not fit any more, the keypair has ended, for those that would still fit, too.
fn no_counter_lies_beyond_the_limit() {
    crate::check(|| {
        let keypair = keypair(1);
        keypair.skip_counters(REJECT_AFTER_MESSAGES - 3);
        let outcomes = number(&keypair, [1, 2, 2]);
        let counters: Vec<u64> = outcomes.iter().copied().flatten().collect();
        assert!(counters.iter().all(|&counter| counter < REJECT_AFTER_MESSAGES));
        assert!(counters.windows(2).all(|pair| pair[0] < pair[1]), "{counters:?}");
        assert!(outcomes.contains(&Err(Rejected::MessageLimit)));
        assert!(!keypair.may_send(Instant::default()));
    });
}
