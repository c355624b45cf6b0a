//! Keypair slots, as the workers and the control thread share them: what is sent on is the current keypair of the tunnel, at
//! the latest when all is granted that the workers wished for.

use std::sync::{Arc, LazyLock};

use adit::proto as other_side;
use loom::thread;
use rand_core::UnwrapErr;

use crate::device::inbox::Inbox;
use crate::device::peer::{Peer, Wish};
use crate::device::signal::Signal;
use crate::key::{PrivateKey, PublicKey};
use crate::proto::handshake::Identity;
use crate::proto::keypair::Keypair;
use crate::proto::messages::{INITIATION_LEN, Message, parse};
use crate::proto::time::{Instant, Now, UnixTime};
use crate::proto::tunnel::{Tunnel, TunnelEvent};
use crate::sync::Waker;

pub(crate) const MODELS: &[crate::Model] = &[
    ("the_first_data_makes_a_session_current", the_first_data_makes_a_session_current),
    ("what_is_sent_on_is_never_what_was_cleared", what_is_sent_on_is_never_what_was_cleared),
    ("what_is_sent_on_is_never_what_was_replaced", what_is_sent_on_is_never_what_was_replaced),
    ("a_session_that_was_heard_of_is_not_displaced", a_session_that_was_heard_of_is_not_displaced),
];

/// Machine words on the stack of a thread that does a handshake; loom's own are too small.
const STACK: usize = 1 << 16;

/// Of the first session; not what an index is before there is one.
const INDEX: u32 = 7;

const OURS: [u8; 32] = [1; 32];
const THEIRS: [u8; 32] = [2; 32];

/// Two initiations of a peer that was started twice. Made once, by the library as it is built for use.
static INITIATIONS: LazyLock<[[u8; INITIATION_LEN]; 2]> = LazyLock::new(|| {
    let ours = adit::key::PrivateKey::from_bytes(OURS).public_key();
    let identity = other_side::handshake::Identity::new(adit::key::PrivateKey::from_bytes(THEIRS));
    [1, 2].map(|second| {
        let now = other_side::time::Now {
            instant: other_side::time::Instant::from_nanos(1),
            unix: other_side::time::UnixTime(std::time::Duration::from_secs(second)),
        };
        let mut tunnel = other_side::tunnel::Tunnel::new(ours, adit::key::PresharedKey::default());
        let mut rng = UnwrapErr(getrandom::SysRng);
        tunnel.create_initiation(&identity, second as u32, false, now, &mut rng).expect("it is the first")
    })
});

/// At the start, and a second later.
fn now(second: u64) -> Now {
    let passed = std::time::Duration::from_secs(second);
    Now { instant: Instant::from_nanos(1) + passed, unix: UnixTime(passed) }
}

struct Shared {
    identity: Identity,
    peer: Arc<Peer>,
    inbox: Inbox,
}

impl Shared {
    /// Answers an initiation; its session is the next one.
    fn respond(&self, number: usize) -> Arc<Keypair> {
        let now = now(number as u64);
        let Ok(Message::Initiation(message)) = parse(&INITIATIONS[number]) else { unreachable!("it is one") };
        let opened = self.identity.open_initiation(&message).expect("it is to us");
        let mut tunnel = self.peer.tunnel();
        self.peer.confirm_wished(&mut tunnel, now);
        self.settle(&mut tunnel);
        tunnel.consume_initiation(&self.identity, opened, now.instant).expect("it is new");
        let mut rng = UnwrapErr(getrandom::SysRng);
        let (_, keypair) =
            tunnel.create_response(&self.identity, INDEX + number as u32, now, &mut rng).expect("it was consumed");
        self.settle(&mut tunnel);
        keypair
    }

    /// Carries out what a step asks for, as the library's does.
    fn settle(&self, tunnel: &mut Tunnel) {
        while let Some(event) = tunnel.poll_event() {
            if event == TunnelEvent::CurrentChanged {
                self.peer.sending.store(tunnel.current().cloned());
            }
        }
    }

    /// Data came, as for `accept`.
    fn data(&self, keypair: &Arc<Keypair>) {
        if keypair.is_unconfirmed() {
            self.peer.send_on(keypair);
            self.inbox.wish(&self.peer, Wish::CONFIRM);
        }
    }

    /// As the control thread does.
    fn grant_wishes(&self) {
        while let Some(peer) = self.inbox.pop() {
            if peer.take_wishes().has(Wish::CONFIRM) {
                let mut tunnel = peer.tunnel();
                peer.confirm(&mut tunnel, now(1));
                self.settle(&mut tunnel);
            }
        }
    }

    /// What is sent on, after a look whether the tunnel agrees.
    fn sending(&self) -> Option<Arc<Keypair>> {
        let (sending, tunnel) = (self.peer.sending.load_full(), self.peer.tunnel());
        assert_eq!(sending.as_ref().map(Arc::as_ptr), tunnel.current().map(Arc::as_ptr));
        sending
    }
}

/// A peer whose first session we have answered for.
fn answered() -> (Arc<Shared>, Arc<Keypair>) {
    spawn(|| {
        let theirs = PrivateKey::from_bytes(THEIRS).public_key();
        let shared = Shared {
            identity: Identity::new(PrivateKey::from_bytes(OURS)),
            peer: Arc::new(Peer::new(0, 0, theirs, Arc::default())),
            inbox: Inbox::new(Signal::new(Waker::new())),
        };
        let keypair = shared.respond(0);
        (Arc::new(shared), keypair)
    })
    .join()
    .expect("it does not panic")
}

fn spawn<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    thread::Builder::new().stack_size(STACK).spawn(run).expect("there are not too many")
}

/// Data comes in two lanes at once, while the control thread was asked for something else already.
fn the_first_data_makes_a_session_current() {
    LazyLock::force(&INITIATIONS);
    crate::check(|| {
        let (shared, keypair) = answered();
        shared.inbox.wish(&shared.peer, Wish::TIMERS);
        let workers = [(); 2].map(|()| {
            let (shared, keypair) = (shared.clone(), keypair.clone());
            thread::spawn(move || shared.data(&keypair))
        });
        shared.grant_wishes();
        workers.map(|worker| worker.join().expect("it does not panic"));
        shared.grant_wishes();
        assert!(shared.sending().is_some_and(|sending| Arc::ptr_eq(&sending, &keypair)));
        assert!(!keypair.is_unconfirmed());
    });
}

/// The link goes down while data comes.
fn what_is_sent_on_is_never_what_was_cleared() {
    LazyLock::force(&INITIATIONS);
    crate::check(|| {
        let (shared, keypair) = answered();
        let worker = {
            let shared = shared.clone();
            thread::spawn(move || shared.data(&keypair))
        };
        shared.grant_wishes();
        {
            let mut tunnel = shared.peer.tunnel();
            tunnel.clear();
            shared.settle(&mut tunnel);
        }
        worker.join().expect("it does not panic");
        shared.grant_wishes();
        assert!(shared.sending().is_none());
    });
}

/// The peer starts anew while data of its former life comes, and then on the new session.
fn what_is_sent_on_is_never_what_was_replaced() {
    LazyLock::force(&INITIATIONS);
    crate::check(|| {
        let (shared, former) = answered();
        let control = {
            let shared = shared.clone();
            spawn(move || {
                let keypair = shared.respond(1);
                shared.grant_wishes();
                keypair
            })
        };
        shared.data(&former);
        let new = control.join().expect("it does not panic");
        shared.grant_wishes();
        assert!(shared.sending().is_none_or(|sending| sending.may_send(now(1).instant)));
        shared.data(&new);
        shared.grant_wishes();
        assert!(shared.sending().is_some_and(|sending| Arc::ptr_eq(&sending, &new)));
    });
}

/// The peer has sent on its session, and starts another before the control thread has been told: both are sessions then.
fn a_session_that_was_heard_of_is_not_displaced() {
    LazyLock::force(&INITIATIONS);
    crate::check(|| {
        let (shared, first) = answered();
        let worker = {
            let (shared, first) = (shared.clone(), first.clone());
            thread::spawn(move || shared.data(&first))
        };
        worker.join().expect("it does not panic");
        let second = spawn({
            let shared = shared.clone();
            move || shared.respond(1)
        });
        let second = second.join().expect("it does not panic");
        assert!(shared.sending().is_some_and(|sending| Arc::ptr_eq(&sending, &first)));
        shared.grant_wishes();
        assert!(shared.sending().is_some_and(|sending| Arc::ptr_eq(&sending, &first)));
        shared.data(&second);
        shared.grant_wishes();
        assert!(shared.sending().is_some_and(|sending| Arc::ptr_eq(&sending, &second)));
    });
}
