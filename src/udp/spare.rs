//! A socket beside a port's pair that is connected to one destination at a time.
//!
//! The kernel chooses the socket for a datagram when it arrives. So what a peer sends lies in two buffers for some time after
//! a spare was connected to it, and keeps its order only if the pair is read first.
//!
//! A spare that was connected once is never left without a connection: the kernel takes such a socket out of the group
//! that shares the port, and it would then be the one that gets what is for nobody in particular.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::SockRef;

use super::socket::FamilySocket;
use crate::sys::socket::disconnect;

/// One spare socket: a sender connects it, the receiver reads it.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) socket: FamilySocket,
    /// It was connected a moment ago, and what its peer sent before may still wait in the pair.
    pair_first: AtomicBool,
}

impl Spare {
    pub(super) fn new(socket: FamilySocket) -> Self {
        Self { socket, pair_first: AtomicBool::new(false) }
    }

    /// Whether the pair is to be read first.
    pub(super) fn is_pair_first(&self) -> bool {
        self.pair_first.load(Ordering::Acquire)
    }

    /// The pair had nothing more, asked when the spare had something.
    pub(super) fn settle(&self) {
        self.pair_first.store(false, Ordering::Release);
    }

    /// Connects it to `to`, and ends its connection before. False where datagrams to there would not leave from `source`.
    pub(super) fn connect(&self, to: SocketAddr, source: IpAddr) -> io::Result<bool> {
        self.pair_first.store(true, Ordering::Release);
        let fd = self.socket.fd();
        let socket = SockRef::from(&fd);
        let connect = || {
            socket.connect(&to.into())?;
            Ok(socket.local_addr()?.as_socket().is_some_and(|local| local.ip() == source))
        };
        match connect() {
            Ok(true) => Ok(true),
            // It is bound to the address from which it was connected before, until it is disconnected.
            Ok(false) | Err(_) => {
                disconnect(fd)?;
                connect()
            }
        }
    }

    /// Whether a datagram waits in it, or an error that hides one.
    pub(super) fn has_something(&self) -> bool {
        let peeked = SockRef::from(&self.socket.fd()).peek(&mut [MaybeUninit::uninit()]);
        !peeked.is_err_and(|error: io::Error| error.kind() == io::ErrorKind::WouldBlock)
    }
}
