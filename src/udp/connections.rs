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
//! - a destination that outweighs the others for [`CONNECT_AFTER`] trains gets a socket, if there is one that is free
//!   or was not used for [`IDLE_AFTER`] trains;
//! - it is left out where the kernel would send from another address than the peer is answered from, and for addresses
//!   of one link only;
//! - a peer that has moved elsewhere, another mark, or another address of ours makes another destination. What the
//!   old one's socket still receives counts; it is taken away when somebody else needs it;
//! - a refusal that a fresh look for a route may cure ends the connection.

use std::net::{IpAddr, SocketAddr};

use super::socket::{FamilySocket, SocketGroup};

/// As many trains more than to all others, before a destination is worth two system calls.
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

/// One spare socket.
#[derive(Debug)]
struct Connection {
    /// Whom it is connected to, and the mark that it was connected with.
    destination: Option<(Destination, u32)>,
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
    /// The destination without a socket that had most of the trains lately, and by how many.
    candidate: Option<Destination>,
    lead: u32,
}

impl Connections {
    /// For a sender that may connect so many spares.
    pub(super) fn new(spares: usize) -> Self {
        let connections = (0..spares).map(|_| Connection { destination: None, used: 0 }).collect();
        Self { connections, trains: 0, candidate: None, lead: 0 }
    }

    /// The place of the spare socket that is connected to `destination`, after connecting one if it is worth that.
    pub(super) fn find(&mut self, group: &SocketGroup, destination: Destination) -> Option<usize> {
        if self.connections.is_empty() {
            return None;
        }
        self.trains += 1;
        let wanted = Some((destination, group.fwmark()));
        let found = self.connections.iter().position(|connection| connection.destination == wanted);
        let found = found.or_else(|| if self.is_due(destination) { self.connect(group, destination) } else { None })?;
        self.connections[found].used = self.trains;
        Some(found)
    }

    /// Ends the connection of the spare at `place`.
    pub(super) fn end(&mut self, group: &SocketGroup, place: usize) {
        group.spares[place].disconnect();
        self.connections[place].destination = None;
    }

    /// Counts a train to a destination without a socket. True when it had enough of them.
    fn is_due(&mut self, destination: Destination) -> bool {
        if self.candidate != Some(destination) {
            if self.lead > 0 {
                self.lead -= 1;
                return false;
            }
            self.candidate = Some(destination);
        }
        self.lead += 1;
        if self.lead < CONNECT_AFTER {
            return false;
        }
        (self.candidate, self.lead) = (None, 0);
        true
    }

    fn connect(&mut self, group: &SocketGroup, destination: Destination) -> Option<usize> {
        let is_free =
            |connection: &Connection| connection.destination.is_none() || self.trains - connection.used > IDLE_AFTER;
        let of_family = |socket: &FamilySocket| socket.is_ipv6() == destination.to.is_ipv6();
        let mut spares = group.spares.iter().zip(&self.connections);
        let place = spares.position(|(socket, connection)| of_family(socket) && is_free(connection))?;
        self.end(group, place);
        match group.spares[place].connect(destination.to, destination.source) {
            Ok(true) => {
                self.connections[place].destination = Some((destination, group.fwmark()));
                Some(place)
            }
            Ok(false) => None,
            Err(error) => {
                tracing::debug!(%error, "no socket is connected to {}", destination.to);
                None
            }
        }
    }
}
