//! Messages about publishes with live subscribers elsewhere, to protobuf and back.

use std::sync::Arc;

use weir_core::cluster::message::LiveMessage;
use weir_core::cluster::message::live::Forward;
use weir_proto::peer::v1 as wire;
use weir_proto::peer::v1::live_message::Message;

use super::{Malformed, message};

pub(super) fn to_wire(message: LiveMessage) -> wire::LiveMessage {
    let LiveMessage::Forward(forward) = message;
    let forward = wire::Forward {
        message: Some(message::to_wire(&forward.message)),
        publisher: forward.publisher.map(|publisher| publisher.to_string()),
        groups: forward.groups.iter().map(ToString::to_string).collect(),
        hops: forward.hops.into(),
    };
    wire::LiveMessage { message: Some(Message::Forward(forward)) }
}

pub(super) fn from_wire(message: wire::LiveMessage) -> Result<LiveMessage, Malformed> {
    let Message::Forward(forward) = message.message.ok_or(Malformed("live message"))?;
    Ok(LiveMessage::Forward(Forward {
        message: Arc::new(message::from_wire(forward.message)?),
        publisher: forward.publisher.map(Into::into),
        groups: forward.groups.into_iter().map(Into::into).collect(),
        hops: u8::try_from(forward.hops).unwrap_or(u8::MAX),
    }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use weir_core::cluster::message::PeerMessage;
    use weir_core::message::{Message, Properties};
    use weir_env::clock::Timestamp;
    use weir_topic::TopicName;

    use super::super::tests::through;
    use super::*;

    #[test]
    fn comes_out_as_it_went_in() {
        let full = Message {
            topic: TopicName::parse("a/b").unwrap(),
            payload: Bytes::from_static(b"\x00payload"),
            qos: 2,
            retain: true,
            published_at: Timestamp::from_micros(1_700_000_000_000_000),
            expires_at: Some(Timestamp::MAX),
            dead_letter: Some(0),
            properties: Properties {
                payload_format_utf8: Some(false),
                content_type: Some("".into()),
                response_topic: Some(TopicName::parse("r").unwrap()),
                correlation_data: Some(Bytes::new()),
                user: vec![("k".into(), "v".into()), ("k".into(), "w".into())],
            },
        };
        let plain = Message {
            qos: 0,
            retain: false,
            expires_at: None,
            dead_letter: None,
            properties: Properties::default(),
            payload: Bytes::new(),
            ..full.clone()
        };
        for (message, publisher, groups, hops) in
            [(full, Some("p".into()), vec!["$share/g/a/+".into(), "h/#".into()], 2), (plain, None, vec![], 0)]
        {
            let sent = Forward { message: Arc::new(message), publisher, groups, hops };
            let came = through(LiveMessage::Forward(sent.clone()));
            assert!(
                matches!(came, PeerMessage::Live(LiveMessage::Forward(came)) if came == sent),
                "{sent:?}"
            );
        }
    }

    #[test]
    fn topics_and_qos_are_checked() {
        let message = |topic: &str, qos| {
            let message = wire::Message { topic: topic.to_owned(), qos, ..wire::Message::default() };
            let forward = wire::Forward { message: Some(message), ..wire::Forward::default() };
            from_wire(wire::LiveMessage { message: Some(super::Message::Forward(forward)) }).err()
        };
        assert_eq!(message("a", 2), None);
        assert_eq!(message("a/+", 2), Some(Malformed("topic")));
        assert_eq!(message("a", 3), Some(Malformed("QoS")));
        assert_eq!(message("a", 300), Some(Malformed("QoS")));
    }
}
