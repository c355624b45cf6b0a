//! Fuzz body: any datagram is sorted without a panic, and the short cut of the hot path agrees with the full parser.

use adit::proto::messages::{self, Message};

/// Takes `data` as a datagram.
pub(crate) fn run(data: &[u8]) {
    let parsed = messages::parse(data);
    let receiver = match parsed {
        Ok(Message::Data(header)) => {
            assert_eq!(messages::data_counter(data), header.counter);
            let mut again = data.to_vec();
            messages::write_data_header(&mut again, header.receiver, header.counter);
            assert_eq!(again, data, "a header is written as it was read");
            Some(header.receiver)
        }
        Ok(Message::Initiation(initiation)) => {
            assert_eq!(initiation.as_bytes()[..], *data);
            assert_eq!((initiation.mac1().len(), initiation.mac2().len()), (16, 16));
            None
        }
        Ok(Message::Response(response)) => {
            assert_eq!(response.as_bytes()[..], *data);
            assert_eq!(response.receiver().to_le_bytes(), data[8..12]);
            None
        }
        Ok(Message::CookieReply(reply)) => {
            assert_eq!(reply.as_bytes()[..], *data);
            None
        }
        Err(_) => None,
    };
    assert_eq!(messages::data_receiver(data), receiver, "both parsers agree on what is transport data");
}
