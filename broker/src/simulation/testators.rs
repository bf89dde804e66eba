//! Clients whose connections end without a farewell, so that their wills are published.

use std::time::Duration;

use weir_codec::{Connect, Message, MessageProperties, QoS, ReasonCode, Will};
use weir_topic::TopicName;

use super::client::Client;
use super::history::{self, Event};

/// Longest time between two connections, in milliseconds.
const PAUSE_MAX: u64 = 1500;

/// Connects so many times, with another will each time, and cuts the connection. What is on its way to the broker with
/// a CONNECT that nobody answers may be a will or not.
pub(super) async fn run(client: Client, connections: u16) {
    for n in 0..connections {
        client.idle(PAUSE_MAX).await;
        let (id, payload, topic) = (client.id.clone(), format!("{}-{n}", client.id), "in/0".to_owned());
        let sent = history::Message { payload: payload.clone(), topic: topic.clone(), qos: QoS::ExactlyOnce };
        client.history.note(Event::Sent(id.clone(), sent));
        let connect = Connect {
            client_id: id.clone().into(),
            clean_start: true,
            will: Some(Will {
                message: Message {
                    topic: TopicName::parse(topic).unwrap(),
                    payload: payload.clone().into(),
                    properties: MessageProperties::default(),
                },
                qos: QoS::ExactlyOnce,
                retain: false,
                delay_interval: 0,
                message_expiry_interval: None,
            }),
            ..Connect::default()
        };
        if let Some((wire, _)) = client.open(connect).await {
            client.history.note(Event::Connected(id.clone(), wire.pod, false));
            tokio::time::sleep(Duration::from_micros(client.seed.below(PAUSE_MAX * 1000))).await;
            drop(wire);
            client.history.note(Event::Answered(id, payload, ReasonCode::Success));
            client.lost();
        }
    }
}
