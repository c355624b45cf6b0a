//! TCP forwards: a listener in one network leads to one target in the other.
//!
//! Both directions are this file: `[TCPClientTunnel]` listens on the host and connects inside the tunnel,
//! `[TCPServerTunnel]` listens inside and connects on the host. There is no handshake: who connects is connected, and
//! where the target cannot be reached, reset. Clients that cannot be served wait in the listener's queue.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::Context;
use super::clients::report;
use super::dial::dial;
use super::failure::Failure;
use super::network::{Connection, Listener, Network};
use super::relay::relay;
use crate::proxy::config::Target;

/// Serves clients for ever.
pub(super) async fn serve<L: Listener, N: Network>(
    listeners: Vec<L>,
    target: Target,
    context: Context<N>,
) -> Infallible {
    let clients = context.clients();
    let shared = Arc::new((target, context));
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let (clients, shared) = (clients.clone(), Arc::clone(&shared));
        accepting.spawn(async move {
            clients
                .queue(&listener, |mut stream: L::Stream, from, served| {
                    let shared = Arc::clone(&shared);
                    async move {
                        let (target, context) = &*shared;
                        let time = context.limits.connect_timeout;
                        let outcome = match dial(&context.network, target, context.strategy(), time).await {
                            Ok(connection) => relay(stream, connection, None, &context.buffers, &context.counters)
                                .await
                                .map_err(|error| {
                                    tracing::debug!(client = %from, %target, %error, "the connection broke");
                                    Failure::Broken
                                }),
                            Err(failure) => {
                                stream.reset_on_drop();
                                Err(failure)
                            }
                        };
                        if let Err(failure) = outcome {
                            context.counters.failed(failure);
                            tracing::debug!(client = %from, %target, %failure, "not served");
                        }
                        drop(served);
                    }
                })
                .await
        });
    }
    loop {
        match accepting.join_next().await {
            Some(ended) => report(ended.map(|never| match never {})),
            None => std::future::pending().await,
        }
    }
}
