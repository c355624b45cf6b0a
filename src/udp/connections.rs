//! Which of a port's spare sockets are connected, and to whom.
//!
//! Towards a socket that is connected the kernel finds its way once: neither where a datagram is sent nor where it is
//! received is a route looked up again, and no control message says which address it leaves from. That takes a fifth
//! off what a lone datagram costs the kernel. Nothing else changes: a connected socket has the port of the others, sends
//! only what they would send from the same address, and what it receives is authenticated as ever. Whoever has none, and
//! what a connected socket cannot send, goes by the pair that all share.
//!
//! One thread sends data to a few destinations mostly, so:
//!
//! - a destination that outweighs the others for [`CONNECT_AFTER`] lone datagrams gets a socket, if there is one that is
//!   free or was not used for [`IDLE_AFTER`] trains. Trains of many share the price of a send and are no reason to
//!   connect; on the contrary, while there are none, hardly anything is on its way whose order a change could disturb;
//! - it is left out where the kernel would send from another address than the peer is answered from, and for addresses
//!   of one link only;
//! - a peer that has moved elsewhere, another mark, or another address of ours makes another destination. What the
//!   old one's socket still receives counts; it is taken away when somebody else needs it;
//! - after a refusal that a fresh look for a route may cure, the socket is free.

use std::net::{IpAddr, SocketAddr};

use super::socket::SocketGroup;
use super::spare::Spare;

/// As many lone datagrams more than to all others, and no other train in between, before a destination is worth two
/// system calls.
const CONNECT_AFTER: u32 = 16;

/// Trains sent to others after which a socket that was not used is free for another destination: so many that a
/// few dozen busy peers, who would take it from each other, leave it where it is.
const IDLE_AFTER: u64 = 1024;

/// Where trains go, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) to: SocketAddr,
    /// The address of ours that they leave from.
    pub(super) source: IpAddr,
}

/// A destination under the mark that was in force.
type Marked = (Destination, u32);

/// What one spare socket is used for.
#[derive(Debug, Clone)]
struct Connection {
    /// Whom to send to by it; nobody where it is free.
    destination: Option<Marked>,
    /// When it was used last, in trains.
    used: u64,
}

/// What one sender knows of its spare sockets.
#[derive(Debug)]
pub(super) struct Connections {
    /// One for each spare of the group.
    connections: Vec<Connection>,
    /// Trains that this was asked for.
    trains: u64,
    /// The destination without a socket that had most of the lone datagrams lately, and by how many.
    candidate: Option<Marked>,
    lead: u32,
    /// The last one to which the kernel would send from another address than it is answered from.
    refused: Option<Marked>,
}

impl Connections {
    /// For a sender that may connect so many spares.
    pub(super) fn new(spares: usize) -> Self {
        let connections = vec![Connection { destination: None, used: 0 }; spares];
        Self { connections, trains: 0, candidate: None, lead: 0, refused: None }
    }

    /// The place of the spare socket that is connected to `destination`, after connecting one if it is worth that.
    /// `lone`: one datagram is to be sent, and no more at the moment.
    pub(super) fn find(&mut self, group: &SocketGroup, destination: Destination, lone: bool) -> Option<usize> {
        if !lone {
            (self.candidate, self.lead) = (None, 0);
        }
        if let Some(place) = self.connected(group, destination) {
            return Some(place);
        }
        self.trains += 1;
        let wanted = (destination, group.fwmark());
        if self.connections.is_empty() || !lone || !self.is_due(wanted) {
            return None;
        }
        let place = self.connect(group, wanted)?;
        self.connections[place].used = self.trains;
        Some(place)
    }

    /// The place of the spare socket that is connected to `destination`, if there is one.
    pub(super) fn connected(&mut self, group: &SocketGroup, destination: Destination) -> Option<usize> {
        let wanted = Some((destination, group.fwmark()));
        let place = self.connections.iter().position(|connection| connection.destination == wanted)?;
        self.trains += 1;
        self.connections[place].used = self.trains;
        Some(place)
    }

    /// Nothing more is sent by the spare at `place`.
    pub(super) fn end(&mut self, place: usize) {
        self.connections[place].destination = None;
    }

    /// Counts a lone datagram to a destination without a socket. True when it had enough of them.
    fn is_due(&mut self, wanted: Marked) -> bool {
        if self.refused == Some(wanted) {
            return false;
        }
        if self.candidate != Some(wanted) {
            if self.lead > 0 {
                self.lead -= 1;
                return false;
            }
            self.candidate = Some(wanted);
        }
        self.lead += 1;
        if self.lead < CONNECT_AFTER {
            return false;
        }
        (self.candidate, self.lead) = (None, 0);
        true
    }

    fn connect(&mut self, group: &SocketGroup, wanted: Marked) -> Option<usize> {
        let (destination, _) = wanted;
        // What waits in it is still to come before what its peer sends to the pair from then on.
        let can_change = |(spare, connection): (&Spare, &Connection)| {
            let is_free = connection.destination.is_none() || self.trains - connection.used > IDLE_AFTER;
            is_free && spare.socket.is_ipv6() == destination.to.is_ipv6() && !spare.has_something()
        };
        let place = group.spares.iter().zip(&self.connections).position(can_change)?;
        self.end(place);
        match group.spares[place].connect(destination.to, destination.source) {
            Ok(true) => {
                self.connections[place].destination = Some(wanted);
                Some(place)
            }
            Ok(false) => {
                self.refused = Some(wanted);
                None
            }
            Err(error) => {
                tracing::debug!(%error, "no socket is connected to {}", destination.to);
                None
            }
        }
    }
}
