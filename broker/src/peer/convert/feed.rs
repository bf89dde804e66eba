//! Messages about the change feed, to protobuf and back.

use weir_core::cluster::message::FeedMessage;
use weir_proto::peer::v1 as wire;
use weir_proto::peer::v1::feed_message;
use weir_storage::Version;

use super::Malformed;

pub(super) fn to_wire(message: FeedMessage) -> wire::FeedMessage {
    let FeedMessage::Applied(version) = message;
    wire::FeedMessage { message: Some(feed_message::Message::Applied(version.0)) }
}

pub(super) fn from_wire(message: wire::FeedMessage) -> Result<FeedMessage, Malformed> {
    match message.message.ok_or(Malformed("feed message"))? {
        feed_message::Message::Applied(version) => Ok(FeedMessage::Applied(Version(version))),
    }
}

#[cfg(test)]
mod tests {
    use weir_core::cluster::message::PeerMessage;

    use super::super::tests::through;
    use super::*;

    #[test]
    fn comes_out_as_it_went_in() {
        let sent = FeedMessage::Applied(Version(7));
        assert!(matches!(through(sent), PeerMessage::Feed(came) if came == sent));
    }
}
