//! Clients that subscribe to what nobody else wants, and have it published by way of some pod the moment they may rely
//! on that.

use std::time::Duration;

use weir_codec::{Packet, QoS};

use super::client::Client;
use super::live::SETTLE;
use super::publishers::Publisher;

/// Longest time between two probes, in milliseconds.
const PAUSE_MAX: u64 = 500;

/// Subscribes so many times, each in a session of its own, has `publisher` publish to it, and waits for that.
pub(super) async fn run(client: Client, publisher: Client, probes: u16) {
    let mut client = client;
    let mut publisher = Publisher::new(publisher);
    for n in 0..probes {
        client.idle(PAUSE_MAX).await;
        publisher.connected().await;
        let topic = format!("probe/{}-{n}/x", client.id);
        let (mut wire, _) = client.connect(false, 10).await;
        if client.subscribe(&mut wire, &topic.replace("/x", "/#"), QoS::AtLeastOnce, &[]).await.is_some() {
            let payload = publisher.publish(QoS::AtLeastOnce, false, topic).await;
            let coming = async {
                while let Some(packet) = wire.next().await {
                    if let Packet::Publish(publish) = packet
                        && client.received(&publish) == payload
                    {
                        return;
                    }
                }
            };
            // If it does not come, the checker says whether it should have.
            let _ = tokio::time::timeout(SETTLE + Duration::from_secs(1), coming).await;
        }
        client.lost();
    }
}
