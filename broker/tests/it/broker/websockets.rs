//! What WebSockets do to the connection below MQTT: frames without end, and ends that come with data.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::SinkExt;
use tokio::io::AsyncReadExt;
use tungstenite::Message;
use weir::config::{Config, Listener};
use weir_codec::Packet;

use super::client::{AtMostOnce, publish, text};
use super::listeners::{Packets, bytes_of, connect, handshake, listener, start_with, tls, upgrade};
use super::{DEADLINE, config};
use crate::authority::Authority;

const REQUEST: &[u8] = b"GET /mqtt HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: mqtt\r\n\r\n";

/// Ends a flood when its test ends, however it does.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_without_data_do_not_keep_a_connection_from_its_timeout() {
    let mut config = config();
    config.limits.connect_timeout = Duration::from_secs(1);
    config.listeners = vec![listener("web", "ws://127.0.0.1:0")];
    let broker = start_with(config).await;
    let stop = Stop(Arc::default());
    let (addr, stopped) = (broker.addr, Arc::clone(&stop.0));
    let flood = std::thread::spawn(move || {
        let mut stream = std::net::TcpStream::connect(addr).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(REQUEST).unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
        // Empty pongs, which nobody answers.
        let frames = [0x8a, 0x80, 0, 0, 0, 0].repeat(10_000);
        while !stopped.load(Ordering::Relaxed) && stream.write_all(&frames).is_ok() {}
    });
    broker.metric_reaches("weir_connections_closed_total{reason=\"connect_timeout\"}", 1.0).await;
    drop(stop);
    flood.join().unwrap();
}

#[tokio::test]
async fn a_close_frame_in_one_piece_with_data_ends_the_connection() {
    let authority = Authority::new();
    let tls = tls(&authority.sign("server", "localhost"));
    let broker = start_with(Config {
        listeners: vec![
            listener("mqtt", "mqtt://127.0.0.1:0"),
            Listener { tls, ..listener("wss", "wss://127.0.0.1:0") },
        ],
        ..config()
    })
    .await;
    let mut subscriber = broker.clean("s").await;
    subscriber.subscribe("t", AtMostOnce).await;
    let secure = handshake(broker.addrs[1], authority.client(None), "localhost").await.unwrap();
    let mut socket = upgrade(secure, "/mqtt").await.unwrap();
    socket.send(Message::Binary(bytes_of([connect("c")]).into())).await.unwrap();
    assert!(matches!(Packets::new().next(&mut socket).await, Packet::ConnAck(_)));

    // Both are written at once, and are one record of TLS.
    let last = Packet::Publish(Box::new(publish(AtMostOnce, 0, "t", "last")));
    socket.feed(Message::Binary(bytes_of([last]).into())).await.unwrap();
    socket.send(Message::Close(None)).await.unwrap();
    assert_eq!(text(&subscriber.message().await), "last");
    let mut rest = Vec::new();
    let end = tokio::time::timeout(DEADLINE, socket.get_mut().read_to_end(&mut rest));
    // Without a farewell of TLS, which nobody waits for: the end of the WebSocket was said.
    let _ = end.await.expect("an end in time");
    assert_eq!(rest[..1], [0x88], "the close frame is answered");
}
