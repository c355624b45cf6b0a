//! `[STDIOTunnel]`: standard input and output lead to one target inside the tunnel, once.

use std::pin::pin;

use tokio::io::{AsyncRead, AsyncWrite, join};

use super::Context;
use super::dial::dial;
use super::failure::Failure;
use super::network::{Connection, Network};
use crate::proxy::config::StdioTunnel;

/// Connects, and carries bytes until both directions have ended.
pub(super) async fn carry<N: Network>(
    input: impl AsyncRead,
    output: impl AsyncWrite,
    description: &StdioTunnel,
    context: Context<N>,
) -> Result<(), Failure> {
    let (target, counters) = (&description.target, &context.counters);
    counters.accepted();
    let outcome = async {
        let mut connection = dial(&context.network, target, context.strategy(), context.limits.connect_timeout).await?;
        let (input, output) = (pin!(input), pin!(output));
        let mut ends = join(input, output);
        super::relay::carry(&mut ends, &mut connection, None, &context.buffers, counters).await.map_err(|error| {
            tracing::debug!(%target, %error, "the connection broke");
            connection.reset_on_drop();
            Failure::Broken
        })
    };
    outcome.await.inspect_err(|&failure| counters.failed(failure))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::proxy::config::{Host, Target};
    use crate::proxy::services::network::HostNetwork;
    use crate::proxy::services::{Listener, Services};

    #[tokio::test]
    async fn input_and_output_end_each_by_itself() {
        let listener = HostNetwork.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = Listener::local_addr(&listener).unwrap();
        let target = Target { host: Host::Address(address.ip()), port: address.port() };
        let services = Services::new(HostNetwork, Default::default(), Default::default());
        let context = services.context(HostNetwork, Default::default());
        let counters = Arc::clone(&context.counters);
        let (mut output_reader, output) = tokio::io::duplex(64);
        let description = StdioTunnel { target };
        let carried = carry(&b"question"[..], output, &description, context);
        let serve = async {
            let (mut stream, _) = Listener::accept(&listener).await.unwrap();
            let mut question = String::new();
            // Ends only if the end of the input was passed on.
            stream.read_to_string(&mut question).await.unwrap();
            stream.write_all(question.to_uppercase().as_bytes()).await.unwrap();
        };
        let read = async {
            let mut answer = [0; 8];
            output_reader.read_exact(&mut answer).await.unwrap();
            answer
        };
        let (carried, (), answer) = tokio::join!(carried, serve, read);
        assert_eq!((carried, &answer), (Ok(()), b"QUESTION"));
        assert_eq!((counters.figures().sent_bytes, counters.figures().received_bytes), (8, 8));
    }
}
