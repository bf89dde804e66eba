//! Statements of MQTT 5.0, seen from outside, chapter by chapter. What other tests prove already is not here: the
//! markers say where it is.

mod connect;
mod delivery;
mod ending;
mod publish;
mod shared;
mod subscribe;

use weir_codec::{Packet, ReasonCode};

use super::TestBroker;
use super::client::{Client, V5};

/// Bytes from hexadecimal numbers and quoted text.
fn wire(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in text.split_whitespace() {
        match word.strip_prefix('\'') {
            Some(quoted) => bytes.extend(quoted.strip_suffix('\'').unwrap().bytes()),
            None => bytes.push(u8::from_str_radix(word, 16).unwrap()),
        }
    }
    bytes
}

/// A packet of this first byte around a short body.
fn frame(first: u8, body: &str) -> Vec<u8> {
    let body = wire(body);
    [&[first, u8::try_from(body.len()).unwrap()], &body[..]].concat()
}

/// A client that has sent these bytes, and nothing before.
async fn sent(broker: &TestBroker, bytes: &[u8]) -> Client {
    let mut client = broker.open(V5).await;
    client.send_bytes(bytes).await;
    client
}

/// A connected client that sends `bytes` is told `reason`, and the connection ends.
#[track_caller]
fn told(broker: &TestBroker, bytes: &[u8], reason: ReasonCode) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let mut client = broker.clean("").await;
        client.send_bytes(bytes).await;
        match &client.rest().await[..] {
            [Packet::Disconnect(disconnect)] => {
                assert_eq!(disconnect.reason, reason, "{bytes:x?} at {caller}: {disconnect:?}");
            }
            other => panic!("{bytes:x?} at {caller}: {other:?}"),
        }
    }
}
