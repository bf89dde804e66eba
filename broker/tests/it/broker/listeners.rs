//! Every way in: what is spoken below MQTT, who is let in there, and what becomes of those who cannot speak it. The
//! other side is tokio-rustls and tungstenite, not our own.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Bytes, Message};
use weir::config::{Config, Listener, TlsConfig};
use weir_codec::{Decoder, DecoderConfig, Packet, ReasonCode, Role, encode};

use super::client::{AtLeastOnce, AtMostOnce, Client, V5, clean, filter, publish, text};
use super::{DEADLINE, TestBroker, config, memory};
use crate::authority::{Authority, Signed};

const FAILED: &str = "weir_connections_closed_total{reason=\"transport_error\"}";

/// TLS as this server.
pub(super) fn tls(server: &Signed) -> TlsConfig {
    TlsConfig { cert: vec![server.cert.clone()], key: vec![server.key.clone()], ..TlsConfig::default() }
}

/// A listener at a free port, or at a path.
pub(super) fn listener(name: &str, url: &str) -> Listener {
    Listener { name: name.to_owned(), ..Listener::parse(url).unwrap() }
}

async fn start(listeners: Vec<Listener>) -> TestBroker {
    start_with(Config { listeners, ..config() }).await
}

pub(super) async fn start_with(config: Config) -> TestBroker {
    TestBroker::start_with(config, &memory()).await
}

/// A connection over TLS to `host`.
pub(super) async fn handshake(
    addr: SocketAddr,
    config: ClientConfig,
    host: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let host = ServerName::try_from(host.to_owned()).unwrap();
    let handshake = TlsConnector::from(Arc::new(config)).connect(host, stream);
    tokio::time::timeout(DEADLINE, handshake).await.expect("a handshake in time")
}

type WebSocket<S> = WebSocketStream<S>;

pub(super) async fn upgrade<S>(stream: S, path: &str) -> Result<WebSocket<S>, tungstenite::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut request = format!("ws://localhost{path}").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", "mqtt".parse().unwrap());
    let upgrade = tokio_tungstenite::client_async(request, stream);
    let (stream, response) = tokio::time::timeout(DEADLINE, upgrade).await.expect("an answer in time")?;
    assert_eq!(response.headers()["sec-websocket-protocol"], "mqtt");
    Ok(stream)
}

pub(super) fn bytes_of(packets: impl IntoIterator<Item = Packet>) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    for packet in packets {
        encode(&packet, V5, &mut bytes).unwrap();
    }
    bytes.to_vec()
}

pub(super) fn connect(id: &str) -> Packet {
    Packet::Connect(Box::new(clean(id, V5)))
}

/// Packets out of a WebSocket.
pub(super) struct Packets {
    decoder: Decoder,
    input: BytesMut,
}

impl Packets {
    pub(super) fn new() -> Self {
        let config = DecoderConfig { max_packet_size: 32 << 20, role: Role::Client { version: V5 } };
        Self { decoder: Decoder::new(config), input: BytesMut::new() }
    }

    pub(super) async fn next<S>(&mut self, from: &mut WebSocket<S>) -> Packet
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.input).unwrap() {
                return packet;
            }
            match tokio::time::timeout(DEADLINE, from.next()).await.expect("a frame in time") {
                Some(Ok(Message::Binary(bytes))) => self.input.extend_from_slice(&bytes),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Publishes and receives through `client`, one byte at a time and many packets at once.
async fn exercise(mut client: Client) {
    client.send_bytewise(connect("c")).await;
    assert!(matches!(client.recv().await, Packet::ConnAck(connack) if connack.code == ReasonCode::Success));
    client.subscribe("t", AtMostOnce).await;
    client.send_bytewise(Packet::Publish(Box::new(publish(AtMostOnce, 0, "t", "slow")))).await;
    assert_eq!(text(&client.message().await), "slow");
    let many = (0..1000).map(|n| Packet::Publish(Box::new(publish(AtMostOnce, 0, "t", &n.to_string()))));
    client.send_all(many).await;
    for n in 0..1000 {
        assert_eq!(text(&client.message().await), n.to_string());
    }
    client.disconnect().await;
}

// Conformance v311: 7.1.1-1
// Conformance v5: 4.2-1
#[tokio::test]
async fn tcp_of_both_families_and_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.sock");
    let broker = start(vec![
        listener("four", "mqtt://127.0.0.1:0"),
        listener("six", "mqtt://[::1]:0"),
        listener("local", &format!("unix:{}", path.display())),
    ])
    .await;
    for addr in broker.addrs.clone() {
        exercise(Client::over(TcpStream::connect(addr).await.unwrap(), V5)).await;
    }
    exercise(Client::over(UnixStream::connect(&path).await.unwrap(), V5)).await;
    for name in ["four", "six", "local"] {
        broker
            .metric_reaches(&format!("weir_listener_connections_opened_total{{listener=\"{name}\"}}"), 1.0)
            .await;
        let ended =
            format!("weir_listener_connections_closed_total{{listener=\"{name}\",reason=\"disconnect\"}}");
        broker.metric_reaches(&ended, 1.0).await;
        assert_eq!(broker.metric(&format!("weir_listener_connections{{listener=\"{name}\"}}")).await, 0.0);
        let received =
            broker.metric(&format!("weir_listener_received_bytes_total{{listener=\"{name}\"}}")).await;
        let sent = broker.metric(&format!("weir_listener_sent_bytes_total{{listener=\"{name}\"}}")).await;
        assert!(received > 1000.0 && sent > 1000.0, "{name}: {received}, {sent}");
    }
    broker.stop().await;
    assert!(!path.exists(), "the socket goes with the broker");
}

#[tokio::test]
async fn tls_with_and_without_alpn() {
    let authority = Authority::new();
    let tls = tls(&authority.sign("server", "localhost"));
    let broker = start(vec![Listener { tls, ..listener("secure", "mqtts://127.0.0.1:0") }]).await;
    for alpn in [None, Some("mqtt")] {
        let mut client = authority.client(None);
        client.alpn_protocols.extend(alpn.map(|name| name.as_bytes().to_vec()));
        let stream = handshake(broker.addr, client, "localhost").await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), alpn.map(str::as_bytes));
        exercise(Client::over(stream, V5)).await;
    }
    let mut client = authority.client(None);
    client.alpn_protocols = vec![b"h2".to_vec()];
    handshake(broker.addr, client, "localhost").await.expect_err("another protocol is refused");
    let failures = "weir_listener_tls_handshake_failures_total{listener=\"secure\"}";
    broker.metric_reaches(failures, 1.0).await;
    broker.metric_reaches(FAILED, 1.0).await;
}

#[tokio::test]
async fn certificates_of_clients_decide_who_comes_in() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = authority.sign("server", "localhost");
    let (good, bad) = (authority.sign("good", "device.example"), other.sign("bad", "device.example"));
    let with = |auth, crl| TlsConfig {
        client_ca: Some(authority.pem.clone()),
        client_auth: auth,
        client_crl: crl,
        ..tls(&server)
    };
    let optional = Some(weir::config::ClientAuth::Optional);
    let broker = start(vec![
        Listener { tls: with(None, None), ..listener("required", "mqtts://127.0.0.1:0") },
        Listener { tls: with(optional, None), ..listener("optional", "mqtts://127.0.0.1:0") },
        Listener { tls: with(None, Some(authority.revoke())), ..listener("revoked", "mqtts://127.0.0.1:0") },
    ])
    .await;
    for (addr, own, comes_in) in [
        (broker.addrs[0], Some(&good), true),
        (broker.addrs[0], Some(&bad), false),
        (broker.addrs[0], None, false),
        (broker.addrs[1], Some(&good), true),
        (broker.addrs[1], Some(&bad), false),
        (broker.addrs[1], None, true),
        (broker.addrs[2], Some(&good), false),
    ] {
        let mut config = authority.client(own);
        // A list of authorities would keep the client from showing what is not wanted.
        if let Some(Signed { cert, key }) = own {
            let chain = vec![CertificateDer::from_pem_file(cert).unwrap()];
            let key = PrivateKeyDer::from_pem_file(key).unwrap();
            let certified =
                rustls::sign::CertifiedKey::from_der(chain, key, config.crypto_provider()).unwrap();
            config.client_auth_cert_resolver =
                Arc::new(rustls::sign::SingleCertAndKey::from(Arc::new(certified)));
        }
        // In TLS 1.3 the client is done before the server has seen its certificate.
        let ended = match handshake(addr, config, "localhost").await {
            Err(_) => true,
            Ok(stream) => {
                let mut client = Client::over(stream, V5);
                // Fails if the connection is closed already.
                let _ = client.try_send(connect("c")).await;
                client.try_recv().await.is_none()
            }
        };
        assert_eq!(!ended, comes_in, "{addr} {:?}", own.map(|own| &own.cert));
    }
}

#[tokio::test]
async fn the_name_that_is_asked_for_picks_the_certificate() {
    let authority = Authority::new();
    let (one, two) = (authority.sign("one", "one.example"), authority.sign("two", "*.two.example"));
    let tls = TlsConfig {
        cert: vec![one.cert.clone(), two.cert.clone()],
        key: vec![one.key.clone(), two.key.clone()],
        ..TlsConfig::default()
    };
    let broker = start(vec![Listener { tls, ..listener("secure", "mqtts://127.0.0.1:0") }]).await;
    for (host, certificate) in [("one.example", &one), ("x.two.example", &two)] {
        let stream = handshake(broker.addr, authority.client(None), host).await.unwrap();
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        assert_eq!(shown, CertificateDer::from_pem_file(&certificate.cert).unwrap(), "{host}");
    }
    // The first is shown, and is for somebody else.
    handshake(broker.addr, authority.client(None), "three.example").await.expect_err("a wrong name");
}

#[tokio::test]
async fn new_certificates_are_for_new_connections() {
    let authority = Authority::new();
    let server = authority.sign("server", "old.example");
    let listener = Listener { tls: tls(&server), ..listener("secure", "mqtts://127.0.0.1:0") };
    let broker = start(vec![listener]).await;
    let old = handshake(broker.addr, authority.client(None), "old.example").await.unwrap();
    let mut old = Client::over(old, V5);
    old.send(connect("old")).await;
    assert!(matches!(old.recv().await, Packet::ConnAck(_)));

    // Half of a change is no change: key and certificate do not fit for a moment.
    authority.sign("server", "new.example");
    let new = async {
        loop {
            if let Ok(stream) = handshake(broker.addr, authority.client(None), "new.example").await {
                return stream;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let new = tokio::time::timeout(DEADLINE, new).await.expect("the new certificate in time");
    let mut new = Client::over(new, V5);
    new.send(connect("new")).await;
    assert!(matches!(new.recv().await, Packet::ConnAck(_)));
    old.synced().await;
}

#[tokio::test]
async fn a_session_of_tls_is_resumed() {
    let authority = Authority::new();
    let tls = tls(&authority.sign("server", "localhost"));
    let broker = start(vec![Listener { tls, ..listener("secure", "mqtts://127.0.0.1:0") }]).await;
    let config = authority.client(None);
    for expected in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
        let stream = handshake(broker.addr, config.clone(), "localhost").await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(expected));
        // The ticket comes with what follows.
        let mut client = Client::over(stream, V5);
        client.send(connect("c")).await;
        assert!(matches!(client.recv().await, Packet::ConnAck(_)));
        client.disconnect().await;
    }
}

// Conformance v311: 6.0.0-1, 6.0.0-2, 6.0.0-4
// Conformance v5: 6.0.0-1, 6.0.0-2, 6.0.0-4
#[tokio::test]
async fn websockets_whatever_frames_mqtt_is_cut_into() {
    let authority = Authority::new();
    let tls = tls(&authority.sign("server", "localhost"));
    let broker = start(vec![
        listener("web", "ws://127.0.0.1:0"),
        Listener { tls, ..listener("secure", "wss://127.0.0.1:0") },
    ])
    .await;
    let plain = TcpStream::connect(broker.addrs[0]).await.unwrap();
    speak(upgrade(plain, "/mqtt").await.unwrap()).await;
    let secure = handshake(broker.addrs[1], authority.client(None), "localhost").await.unwrap();
    speak(upgrade(secure, "/").await.unwrap()).await;
}

async fn speak<S>(mut socket: WebSocket<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut packets = Packets::new();
    for byte in bytes_of([connect("c")]) {
        socket.send(Message::Binary(vec![byte].into())).await.unwrap();
    }
    assert!(matches!(packets.next(&mut socket).await, Packet::ConnAck(_)));
    let subscribe = weir_codec::Subscribe {
        packet_id: super::client::id(1),
        subscription_identifier: None,
        user_properties: Vec::new(),
        filters: vec![filter("t", AtMostOnce)],
    };
    let large = "x".repeat(300_000);
    let many = (0..100).map(|n| Packet::Publish(Box::new(publish(AtMostOnce, 0, "t", &n.to_string()))));
    let last = Packet::Publish(Box::new(publish(AtMostOnce, 0, "t", &large)));
    let all = std::iter::once(Packet::Subscribe(Box::new(subscribe))).chain(many).chain([last]);
    socket.send(Message::Binary(bytes_of(all).into())).await.unwrap();
    assert!(matches!(packets.next(&mut socket).await, Packet::SubAck(_)));
    for n in 0..=100 {
        let Packet::Publish(message) = packets.next(&mut socket).await else { panic!("no PUBLISH") };
        assert_eq!(text(&message), if n < 100 { n.to_string() } else { large.clone() });
    }
    socket.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"there?")));
    socket.send(Message::Binary(bytes_of([Packet::PingReq]).into())).await.unwrap();
    assert_eq!(packets.next(&mut socket).await, Packet::PingResp);
    socket.close(None).await.unwrap();
    let end = tokio::time::timeout(DEADLINE, socket.next()).await.expect("an answer to the close");
    assert!(matches!(end, None | Some(Ok(Message::Close(_)))), "{end:?}");
}

// Conformance v311: 6.0.0-1
// Conformance v5: 6.0.0-1
#[tokio::test]
async fn text_is_no_mqtt() {
    let broker = start(vec![listener("web", "ws://127.0.0.1:0")]).await;
    let mut socket = upgrade(TcpStream::connect(broker.addr).await.unwrap(), "/mqtt").await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    let end = tokio::time::timeout(DEADLINE, socket.next()).await.expect("an end in time");
    let Some(Ok(Message::Close(Some(close)))) = end else { panic!("{end:?}") };
    assert_eq!(close.code, CloseCode::Unsupported);
}

#[tokio::test]
async fn requests_that_are_no_upgrade_get_an_answer() {
    let broker = start(vec![listener("web", "ws://127.0.0.1:0/only")]).await;
    for (request, status) in [
        ("GET /only HTTP/1.1\r\nHost: h\r\n\r\n", "426 Upgrade Required"),
        ("GET /mqtt HTTP/1.1\r\nHost: h\r\n\r\n", "404 Not Found"),
        ("\x10\x0c\0\x04MQTT\x05\x02\0\0", "400 Bad Request"),
    ] {
        let mut stream = TcpStream::connect(broker.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.expect("an end").unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
    }
    let refused = upgrade(TcpStream::connect(broker.addr).await.unwrap(), "/").await;
    assert!(matches!(refused, Err(tungstenite::Error::Http(response)) if response.status() == 404));
    upgrade(TcpStream::connect(broker.addr).await.unwrap(), "/only").await.unwrap();
    broker.metric_reaches(FAILED, 4.0).await;
}

/// The header of a proxy that passes on a connection from 10.1.2.3, with an extension.
pub(super) fn proxy_header(command: u8) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([command, 0x11, 0, 16, 10, 1, 2, 3, 10, 0, 0, 1, 0x1f, 0x90, 0x07, 0x5b, 0x04, 0, 1, 0]);
    header
}

#[tokio::test]
async fn a_proxy_says_whose_connection_it_is() {
    let authority = Authority::new();
    let tls = tls(&authority.sign("server", "localhost"));
    let mut config = Config { allow_anonymous: true, ..config() };
    config.listeners = vec![
        Listener { proxy_protocol: true, ..listener("proxied", "mqtt://127.0.0.1:0") },
        Listener { proxy_protocol: true, tls, ..listener("secure", "mqtts://127.0.0.1:0") },
    ];
    let broker = start_with(config).await;
    for command in [0x20, 0x21] {
        let mut stream = TcpStream::connect(broker.addrs[0]).await.unwrap();
        for byte in proxy_header(command) {
            stream.write_all(&[byte]).await.unwrap();
        }
        exercise(Client::over(stream, V5)).await;
    }
    let mut stream = TcpStream::connect(broker.addrs[1]).await.unwrap();
    stream.write_all(&proxy_header(0x21)).await.unwrap();
    let host = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(authority.client(None))).connect(host, stream).await.unwrap();
    exercise(Client::over(stream, V5)).await;

    for begin in [
        &b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"[..],
        &bytes_of([connect("c")]),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
    ] {
        let mut stream = TcpStream::connect(broker.addrs[0]).await.unwrap();
        stream.write_all(begin).await.unwrap();
        Client::over(stream, V5).ended().await;
    }
    broker.metric_reaches(FAILED, 3.0).await;
}

/// Others are not heard, whatever they say.
#[tokio::test]
async fn only_proxies_that_are_named_are_believed() {
    const REFUSED: &str = "weir_listener_proxies_refused_total";
    let proxied = |name: &str, url: &str, from: &[&str]| Listener {
        proxy_protocol: true,
        proxy_from: from.iter().map(|network| network.parse().unwrap()).collect(),
        ..listener(name, url)
    };
    let mut config = Config { allow_anonymous: true, ..config() };
    config.listeners = vec![
        proxied("named", "mqtt://127.0.0.1:0", &["10.0.0.0/8", "127.0.0.0/8"]),
        proxied("other", "mqtt://127.0.0.1:0", &["10.0.0.0/8", "::1"]),
        proxied("web", "ws://127.0.0.1:0", &["10.1.2.3"]),
    ];
    let broker = start_with(config).await;
    let mut stream = TcpStream::connect(broker.addrs[0]).await.unwrap();
    stream.write_all(&proxy_header(0x21)).await.unwrap();
    exercise(Client::over(stream, V5)).await;
    for (addr, name) in [(broker.addrs[1], "other"), (broker.addrs[2], "web")] {
        // Closed before it has said anything, and also if it says that it comes from a proxy that is named.
        for said in [vec![], proxy_header(0x21)] {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            // It may be closed already.
            let _ = stream.write_all(&said).await;
            Client::over(stream, V5).ended().await;
        }
        broker.metric_reaches(&format!("{REFUSED}{{listener=\"{name}\"}}"), 2.0).await;
    }
    assert_eq!(broker.metric(&format!("{REFUSED}{{listener=\"named\"}}")).await, 0.0);
    broker.metric_reaches(FAILED, 4.0).await;
}

#[tokio::test]
async fn whoever_sends_garbage_or_nothing_is_alone_with_it() {
    let authority = Authority::new();
    let tls = tls(&authority.sign("server", "localhost"));
    let mut config = Config { allow_anonymous: true, ..config() };
    config.limits.connect_timeout = std::time::Duration::from_secs(3);
    config.listeners = vec![
        Listener { tls: tls.clone(), ..listener("mqtts", "mqtts://127.0.0.1:0") },
        Listener { tls, ..listener("wss", "wss://127.0.0.1:0") },
        listener("ws", "ws://127.0.0.1:0"),
        Listener { proxy_protocol: true, ..listener("proxied", "mqtt://127.0.0.1:0") },
    ];
    let broker = start_with(config).await;
    let good = handshake(broker.addrs[0], authority.client(None), "localhost").await.unwrap();
    let mut good = Client::over(good, V5);
    good.send(connect("good")).await;
    assert!(matches!(good.recv().await, Packet::ConnAck(_)));
    let mut waiting = Vec::new();
    for addr in &broker.addrs {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(&[0xff; 64]).await.unwrap();
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await.expect("an end in time");
        // One says nothing, one stops in the middle.
        waiting.push(TcpStream::connect(addr).await.unwrap());
        let mut half = TcpStream::connect(addr).await.unwrap();
        let begin: &[u8] = match addr {
            addr if *addr == broker.addrs[2] => b"GET /mqtt HTT",
            addr if *addr == broker.addrs[3] => b"\r\n\r\n\0\r\nQU",
            _ => b"\x16\x03\x01\x01\x00\x01",
        };
        half.write_all(begin).await.unwrap();
        waiting.push(half);
    }
    broker.metric_reaches(FAILED, 4.0).await;
    broker.metric_reaches("weir_connections_closed_total{reason=\"connect_timeout\"}", 8.0).await;
    for stream in waiting {
        Client::over(stream, V5).ended().await;
    }
    good.synced().await;
}

#[tokio::test]
async fn large_messages_reach_a_slow_reader_through_everything() {
    let authority = Authority::new();
    let tls = tls(&authority.sign("server", "localhost"));
    let mut config = config();
    config.limits.max_packet_size = weir::config::ByteCount::mib(2);
    config.limits.outbox_bytes_per_client = weir::config::ByteCount::mib(64);
    config.listeners = vec![
        listener("mqtt", "mqtt://127.0.0.1:0"),
        Listener { tls, ..listener("wss", "wss://127.0.0.1:0") },
    ];
    let broker = start_with(config).await;
    let secure = handshake(broker.addrs[1], authority.client(None), "localhost").await.unwrap();
    let mut slow = upgrade(secure, "/mqtt").await.unwrap();
    let mut packets = Packets::new();
    let subscribe = weir_codec::Subscribe {
        packet_id: super::client::id(1),
        subscription_identifier: None,
        user_properties: Vec::new(),
        filters: vec![filter("t", AtMostOnce)],
    };
    let begin = bytes_of([connect("slow"), Packet::Subscribe(Box::new(subscribe))]);
    slow.send(Message::Binary(begin.into())).await.unwrap();
    assert!(matches!(packets.next(&mut slow).await, Packet::ConnAck(_)));
    assert!(matches!(packets.next(&mut slow).await, Packet::SubAck(_)));

    let mut publisher = broker.clean("p").await;
    let payload = |n: usize| (n % 10).to_string().repeat(1 << 20);
    for n in 0..20 {
        assert!(!publisher.publish("t", &payload(n)).await.is_error());
    }
    // More than sockets hold waits by now, in every layer.
    for n in 0..20 {
        let Packet::Publish(message) = packets.next(&mut slow).await else { panic!("no PUBLISH") };
        assert!(text(&message) == payload(n), "message {n} is damaged");
    }
    slow.send(Message::Binary(bytes_of([Packet::PingReq]).into())).await.unwrap();
    assert_eq!(packets.next(&mut slow).await, Packet::PingResp);
}

#[tokio::test]
async fn connections_are_accepted_at_a_pace() {
    let mut config = config();
    config.limits.connection_rate = 2;
    let broker = start_with(config).await;
    assert_eq!(broker.metric("weir_accept_waits_total").await, 0.0);
    // Two at once, then two a second; none is turned away.
    let mut waiting = Vec::new();
    for _ in 0..6 {
        waiting.push(broker.open(V5).await);
    }
    for (n, mut client) in waiting.into_iter().enumerate() {
        client.send(connect(&format!("c{n}"))).await;
        assert!(matches!(client.recv().await, Packet::ConnAck(_)));
    }
    assert!(broker.metric("weir_accept_waits_total").await >= 1.0);
}

#[tokio::test]
async fn a_listener_may_have_a_limit_of_its_own() {
    let broker = start(vec![
        Listener { max_connections: Some(1), ..listener("narrow", "mqtt://127.0.0.1:0") },
        listener("wide", "mqtt://127.0.0.1:0"),
    ])
    .await;
    let first = broker.clean("first").await;
    broker.open(V5).await.ended().await;
    let many = "weir_listener_connections_closed_total{listener=\"narrow\",reason=\"too_many_connections\"}";
    assert_eq!(broker.metric(many).await, 1.0);
    exercise(Client::over(TcpStream::connect(broker.addrs[1]).await.unwrap(), V5)).await;
    first.disconnect().await;
    broker.metric_reaches("weir_connections_closed_total{reason=\"disconnect\"}", 2.0).await;
    broker.clean("second").await.synced().await;
}

/// `weir pub` and `weir sub` come in everywhere, as people would try it.
#[tokio::test(flavor = "multi_thread")]
async fn our_own_client_comes_in_everywhere() {
    use weir::client::{Client, ClientTls, ConnectOptions, Endpoint, Publication, TlsFiles};

    let authority = Authority::new();
    let (server, own) = (authority.sign("server", "localhost"), authority.sign("own", "own.example"));
    let path = authority.dir().join("weir.sock");
    let tls = TlsConfig { client_ca: Some(authority.pem.clone()), ..tls(&server) };
    let broker = start(vec![
        Listener { tls: tls.clone(), ..listener("mqtts", "mqtts://127.0.0.1:0") },
        Listener { tls, ..listener("wss", "wss://127.0.0.1:0") },
        listener("ws", "ws://127.0.0.1:0"),
        listener("unix", &format!("unix:{}", path.display())),
    ])
    .await;
    let port = |n: usize| broker.addrs[n].port();
    let urls = [
        format!("mqtts://localhost:{}", port(0)),
        format!("wss://localhost:{}", port(1)),
        format!("ws://localhost:{}", port(2)),
        format!("unix:{}", path.display()),
    ];
    let files = |ca: &Path| TlsFiles {
        ca: Some(ca.to_path_buf()),
        cert: Some(own.cert.clone()),
        key: Some(own.key.clone()),
        insecure: false,
    };
    let tls = Some(ClientTls::load(&files(&authority.pem)).unwrap());
    let options = ConnectOptions { tls, max_packet_size: 32 << 20, ..ConnectOptions::default() };
    for url in urls {
        let endpoint: Endpoint = url.parse().unwrap();
        let mut client =
            Client::connect(&endpoint, &options).await.unwrap_or_else(|error| panic!("{url}: {error:?}"));
        client.subscribe(vec![filter("t", AtLeastOnce)], Vec::new()).await.unwrap();
        let payload = vec![7; 700_000];
        let publication =
            Publication { topic: "t", payload: &payload, qos: AtLeastOnce, ..Publication::default() };
        client.publish(&publication).await.unwrap();
        assert_eq!(client.recv().await.unwrap().payload, payload);
        client.disconnect().await.unwrap();
    }
    let other = Authority::new();
    let tls = Some(ClientTls::load(&files(&other.pem)).unwrap());
    let endpoint: Endpoint = format!("mqtts://localhost:{}", port(0)).parse().unwrap();
    let error =
        Client::connect(&endpoint, &ConnectOptions { tls, ..options.clone() }).await.expect_err("no trust");
    assert!(format!("{error:?}").contains("InvalidCertificate"), "{error:?}");
}
