//! What MQTT 3.1.1 asks of a server, statement by statement: byte for byte where the form of packets matters, else
//! with the client of single packets. What MQTT 3.1 has else is in `v31`.

mod connect;
mod delivery;
mod failures;
mod format;
mod order;
mod retained;
mod sessions;
mod subscriptions;
mod topics;
mod v31;
mod wills;

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weir_codec::{Connect, Packet, Publish, Will};

use super::client::{AtLeastOnce, Client, V311, clean, will};
use super::{DEADLINE, TestBroker};

/// Time in which nothing may come where nothing is expected.
const QUIET: Duration = Duration::from_millis(100);

/// A connection that knows nothing of packets.
struct Raw {
    stream: TcpStream,
}

/// The bytes of packets in words: `first byte: body; ...`. A body is hexadecimal numbers, `'text'`, and `` `text` ``
/// behind its length of two bytes. The remaining length is added.
fn bytes(text: &str) -> Vec<u8> {
    let mut all = Vec::new();
    for packet in text.split(';').map(str::trim).filter(|packet| !packet.is_empty()) {
        let (first, mut rest) = packet.split_once(':').expect("first byte: body");
        let mut body = Vec::new();
        loop {
            rest = rest.trim_start();
            let Some(kind) = rest.chars().next() else { break };
            if matches!(kind, '\'' | '`') {
                let (quoted, behind) = rest[1..].split_once(kind).expect("quotes are closed");
                if kind == '`' {
                    body.extend_from_slice(&u16::try_from(quoted.len()).unwrap().to_be_bytes());
                }
                body.extend_from_slice(quoted.as_bytes());
                rest = behind;
            } else {
                let (number, behind) = rest.split_once(' ').unwrap_or((rest, ""));
                body.push(u8::from_str_radix(number, 16).expect("is hexadecimal"));
                rest = behind;
            }
        }
        all.push(u8::from_str_radix(first.trim(), 16).expect("is hexadecimal"));
        all.push(u8::try_from(body.len()).ok().filter(|length| *length < 128).expect("is short"));
        all.extend_from_slice(&body);
    }
    all
}

impl TestBroker {
    async fn raw(&self) -> Raw {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Raw { stream }
    }

    /// A connection that has sent this and was answered with that.
    async fn raw_after(&self, sent: &str, answer: &str) -> Raw {
        let mut raw = self.raw().await;
        raw.send(sent).await;
        raw.expect(answer).await;
        raw
    }

    /// A clean session.
    async fn raw_clean(&self, id: &str) -> Raw {
        self.raw_after(&format!("10: `MQTT` 04 02 00 00 `{id}`"), "20: 00 00").await
    }

    /// The same of MQTT 3.1.1, by packets.
    async fn old(&self, id: &str) -> Client {
        self.connect(clean(id, V311)).await
    }

    /// A subscriber of MQTT 3.1.1 with one filter.
    async fn old_subscriber(&self, id: &str, to: &str, qos: weir_codec::QoS) -> Client {
        let mut client = self.old(id).await;
        client.subscribe(to, qos).await;
        client
    }

    /// What ends a connection for breaking the protocol: nothing is answered, and its will is published.
    #[track_caller]
    fn breaks(&self, watcher: &mut Client, sent: Vec<u8>) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let what = format!("{sent:02x?} at {caller}");
            let connect = "10: `MQTT` 04 0e 00 00 `breaker` `will` `gone`";
            let mut raw = self.raw_after(connect, "20: 00 00").await;
            raw.send_bytes(&sent).await;
            raw.ends_silently(&what).await;
            match tokio::time::timeout(DEADLINE, watcher.take()).await {
                Ok(will) => assert_eq!(&will.payload[..], b"gone", "{what}"),
                Err(_) => panic!("no will: {what}"),
            }
        }
    }

    /// A CONNECT that breaks the format: the connection ends without an answer.
    async fn refuses_silently(&self, connect: Vec<u8>) {
        let what = format!("{connect:02x?}");
        let mut raw = self.raw().await;
        raw.send_bytes(&connect).await;
        raw.ends_silently(&what).await;
    }

    /// Who is told when a connection of [`Self::breaks`] has ended.
    async fn watcher(&self) -> Client {
        self.old_subscriber("watcher", "will", AtLeastOnce).await
    }
}

impl Raw {
    async fn send(&mut self, text: &str) {
        self.send_bytes(&bytes(text)).await;
    }

    async fn send_bytes(&mut self, bytes: &[u8]) {
        tokio::time::timeout(DEADLINE, self.stream.write_all(bytes)).await.expect("room").unwrap();
    }

    /// The next bytes are these.
    #[track_caller]
    fn expect(&mut self, text: &str) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        let expected = bytes(text);
        async move {
            let mut got = vec![0; expected.len()];
            let mut length = 0;
            while length < got.len() {
                let read = tokio::time::timeout(DEADLINE, self.stream.read(&mut got[length..])).await;
                match read {
                    Ok(Ok(n)) if n > 0 => length += n,
                    other => panic!(
                        "{other:?} after {:02x?}, expected {expected:02x?} at {caller}",
                        &got[..length]
                    ),
                }
            }
            assert!(got == expected, "{got:02x?}, expected {expected:02x?} at {caller}");
        }
    }

    /// Everything sent before is handled, and nothing has come of it.
    #[track_caller]
    fn synced(&mut self) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            self.send("c0:").await;
            let mut got = [0; 2];
            let read = tokio::time::timeout(DEADLINE, self.stream.read_exact(&mut got)).await;
            assert!(matches!(read, Ok(Ok(_))), "{read:?} at {caller}");
            assert_eq!(got, [0xd0, 0], "at {caller}");
        }
    }

    /// Nothing comes for a while, to one who must not ask.
    async fn quiet(&mut self) {
        let read = tokio::time::timeout(QUIET, self.stream.read_u8()).await;
        assert!(read.is_err(), "{read:02x?} came");
    }

    /// The connection ends and nothing comes before.
    async fn ends_silently(&mut self, what: &str) {
        let mut rest = Vec::new();
        match tokio::time::timeout(DEADLINE, self.stream.read_to_end(&mut rest)).await {
            // A reset is an end too.
            Ok(_) => assert!(rest.is_empty(), "{rest:02x?} came: {what}"),
            Err(_) => panic!("the connection does not end: {what}"),
        }
    }
}

/// A CONNECT whose end makes the broker publish `gone` to `will`.
fn with_will(connect: Connect) -> Connect {
    Connect { will: Some(Will { qos: AtLeastOnce, ..will("will", "gone") }), ..connect }
}

fn packet(publish: Publish) -> Packet {
    Packet::Publish(Box::new(publish))
}
