//! What the transport knows of a client decides what it may do: the name in its certificate, the address that a proxy
//! announces.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use weir::config::{ClientAuth, Config, Listener, TlsConfig};
use weir_codec::{Connect, Packet, ReasonCode};

use super::client::{AtMostOnce, Client, V5, V311, clean};
use super::listeners::{handshake, listener, proxy_header, tls};
use super::{TestBroker, config, memory};
use crate::authority::{Authority, Signed};

async fn start(config: Config, rules: &str) -> TestBroker {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rules.toml");
    std::fs::write(&path, rules).unwrap();
    let mut config = config;
    config.auth.rules_file = Some(path);
    config.auth.reload_interval = std::time::Duration::ZERO;
    TestBroker::start_with(config, &memory()).await
}

/// Certificates of an authority against a listener that takes them as users.
struct Certified {
    authority: Authority,
    broker: TestBroker,
}

impl Certified {
    async fn start() -> Self {
        let authority = Authority::new();
        let server = authority.sign("server", "localhost");
        let tls = TlsConfig {
            client_ca: Some(authority.pem.clone()),
            client_auth: Some(ClientAuth::Optional),
            ..tls(&server)
        };
        let mut config = config();
        config.auth.certificate_as_user = true;
        config.listeners = vec![Listener { tls, ..listener("secure", "mqtts://127.0.0.1:0") }];
        let rules = "[[rules]]\nallow = [\"publish\", \"subscribe\"]\ntopics = [\"home/%u/#\"]\n\
                     certificate = true\n";
        Self { authority, broker: start(config, rules).await }
    }

    /// What a client that shows `certificate` is told.
    async fn connect(&self, certificate: Option<&Signed>, connect: Connect) -> (Client, ReasonCode) {
        let stream =
            handshake(self.broker.addr, self.authority.client(certificate), "localhost").await.unwrap();
        let mut client = Client::over(stream, connect.version);
        client.send(Packet::Connect(Box::new(connect))).await;
        match client.recv().await {
            Packet::ConnAck(connack) => (client, connack.code),
            other => panic!("not a CONNACK: {other:?}"),
        }
    }
}

fn named(user: &str) -> Connect {
    Connect { username: Some(user.to_owned().into()), ..clean("c", V5) }
}

#[tokio::test]
async fn the_name_in_a_certificate_is_the_user() {
    let certified = Certified::start().await;
    let anna = certified.authority.sign("anna", "anna.example");
    for connect in [clean("c", V5), clean("c", V311), named(""), named("anna")] {
        let (mut client, told) = certified.connect(Some(&anna), connect.clone()).await;
        assert_eq!(told, ReasonCode::Success);
        if connect.version == V5 {
            assert!(!client.publish("home/anna/x", "x").await.is_error());
            assert_eq!(client.publish("home/bob/x", "x").await, ReasonCode::NotAuthorized);
        }
        assert!(!client.subscribed("home/anna/#", AtMostOnce).await.is_error());
        for other in ["home/bob/#", "home/+/x", "home/#", "#"] {
            assert!(client.subscribed(other, AtMostOnce).await.is_error(), "{other}");
        }
    }
    let (mut client, told) = certified.connect(Some(&anna), named("bob")).await;
    assert_eq!(told, ReasonCode::BadUserNameOrPassword, "the certificate is not bob's");
    client.ended().await;
}

#[tokio::test]
async fn who_shows_no_name_is_nobody() {
    let certified = Certified::start().await;
    let nameless = certified.authority.sign("", "nobody.example");
    for certificate in [None, Some(&nameless)] {
        let (_, told) = certified.connect(certificate, clean("c", V5)).await;
        assert_eq!(told, ReasonCode::NotAuthorized);
        let (_, told) = certified.connect(certificate, named("anna")).await;
        assert_eq!(told, ReasonCode::BadUserNameOrPassword, "a name alone proves nothing");
    }
}

#[tokio::test]
async fn a_name_in_a_certificate_widens_no_rule() {
    let certified = Certified::start().await;
    for name in ["+", "#", "a/b", "a/#", "anna/+"] {
        let signed = certified.authority.sign(name, "device.example");
        let (mut client, told) = certified.connect(Some(&signed), clean("c", V5)).await;
        assert_eq!(told, ReasonCode::Success, "{name}");
        let own = format!("home/{name}");
        for filter in [own.as_str(), "home/+/x", "home/+", "home/#", "home/anna/x", "home/a/b", "home/a/b/#"]
        {
            assert_eq!(client.subscribed(filter, AtMostOnce).await, ReasonCode::NotAuthorized, "{filter}");
        }
        for topic in ["home/anna/x", "home/a/b", "home/a/b/x"] {
            assert_eq!(client.publish(topic, "x").await, ReasonCode::NotAuthorized, "{name} {topic}");
        }
    }
}

#[tokio::test]
async fn the_address_that_a_proxy_announces_decides() {
    let mut config = Config { allow_anonymous: true, ..config() };
    config.listeners = vec![
        Listener { proxy_protocol: true, ..listener("proxied", "mqtt://127.0.0.1:0") },
        listener("direct", "mqtt://127.0.0.1:0"),
    ];
    let rules = "[[rules]]\nallow = [\"publish\"]\naddresses = [\"10.1.2.0/24\"]\ntopics = [\"far\"]\n\
                 [[rules]]\nallow = [\"publish\"]\naddresses = [\"127.0.0.0/8\"]\ntopics = [\"here\"]\n\
                 [[rules]]\nallow = [\"publish\"]\naddresses = [\"10.0.0.1\"]\ntopics = [\"to\"]\n";
    let broker = start(config, rules).await;
    let mut proxied = TcpStream::connect(broker.addrs[0]).await.unwrap();
    // From 10.1.2.3 to 10.0.0.1.
    proxied.write_all(&proxy_header(0x21)).await.unwrap();
    let direct = TcpStream::connect(broker.addrs[1]).await.unwrap();
    for (stream, id, allowed) in [(proxied, "proxied", "far"), (direct, "direct", "here")] {
        let mut client = Client::over(stream, V5);
        client.send(Packet::Connect(Box::new(clean(id, V5)))).await;
        assert!(matches!(client.recv().await, Packet::ConnAck(_)));
        for topic in ["far", "here", "to"] {
            let told = client.publish(topic, "x").await;
            assert_eq!(!told.is_error(), topic == allowed, "{id} {topic}");
        }
    }
}
