//! Tokens, and enhanced authentication: at CONNECT and anew, in one step and in several, right and wrong.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use tempfile::TempDir;
use weir::auth::{Claim, Exchange, Method, Proved, Step};
use weir::config::Config;
use weir_codec::{Auth, Connect, Packet, ReasonCode};
use weir_env::clock::Clock;

use super::client::{AtMostOnce, Client, V5, V311, clean};
use super::{TestBroker, config, memory};

const CONTINUE: ReasonCode = ReasonCode::ContinueAuthentication;
const AGAIN: ReasonCode = ReasonCode::ReAuthenticate;

struct Issuer(EncodingKey);

impl Issuer {
    /// A broker's configuration that trusts it.
    fn new() -> (Self, Config, TempDir) {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        std::fs::write(&path, pair.public_key_pem()).unwrap();
        let mut config = config();
        config.auth.jwt.key_file = Some(path);
        config.auth.jwt.leeway = Duration::ZERO;
        (Self(EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap()), config, dir)
    }

    /// A token that ends so many seconds from now.
    fn token(&self, user: &str, seconds: u64) -> Bytes {
        let now = Clock::system().wall().as_micros() / 1_000_000;
        let claims = serde_json::json!({ "sub": user, "exp": now + seconds });
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.0).unwrap().into()
    }
}

fn by_method(id: &str, method: &str, data: Option<Bytes>) -> Connect {
    Connect {
        authentication_method: Some(method.to_owned().into()),
        authentication_data: data,
        ..clean(id, V5)
    }
}

fn auth(reason: ReasonCode, method: &str, data: &[u8]) -> Packet {
    Packet::Auth(Box::new(Auth {
        reason,
        authentication_method: Some(method.to_owned().into()),
        authentication_data: Some(Bytes::copy_from_slice(data)),
        ..Auth::default()
    }))
}

impl Client {
    /// The next packet, an AUTH of that method.
    async fn authed(&mut self, method: &str) -> Auth {
        match self.recv().await {
            Packet::Auth(auth) => {
                assert_eq!(auth.authentication_method.as_deref(), Some(method));
                *auth
            }
            other => panic!("not an AUTH: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_token_is_a_password_for_old_clients() {
    let (issuer, config, _dir) = Issuer::new();
    let broker = TestBroker::start_with(config, &memory()).await;
    for version in [V5, V311] {
        let with = |user: Option<&str>, token: Bytes| Connect {
            username: user.map(|user| user.to_owned().into()),
            password: Some(token),
            ..clean("c", version)
        };
        let mut client = broker.connect(with(Some("anna"), issuer.token("anna", 100))).await;
        client.synced().await;
        let (_, connack) = broker.connack(with(Some("bob"), issuer.token("anna", 100))).await;
        assert_eq!(connack.code, ReasonCode::BadUserNameOrPassword, "the token is not bob's");
        let (_, connack) = broker.connack(with(Some("anna"), issuer.token("anna", 0))).await;
        assert_eq!(connack.code, ReasonCode::BadUserNameOrPassword, "it is over");
        let (_, connack) = broker.connack(with(Some("anna"), "eyJ.eyJ.x".into())).await;
        assert_eq!(connack.code, ReasonCode::BadUserNameOrPassword);
        let (_, connack) = broker.connack(clean("c", version)).await;
        assert_eq!(connack.code, ReasonCode::NotAuthorized);
    }
}

// Conformance v5: 4.12.0-5, 4.12.1-1
#[tokio::test]
async fn a_fresh_token_keeps_a_client_in() {
    let (issuer, config, _dir) = Issuer::new();
    let broker = TestBroker::start_with(config, &memory()).await;
    let short = by_method("short", "JWT", Some(issuer.token("anna", 3)));
    let (mut short, connack) = broker.connack(short).await;
    assert_eq!(connack.code, ReasonCode::Success);
    assert_eq!(connack.authentication_method.as_deref(), Some("JWT"));
    let mut long = broker.connect(by_method("long", "JWT", Some(issuer.token("anna", 3)))).await;
    long.send(auth(AGAIN, "JWT", &issuer.token("anna", 100))).await;
    assert_eq!(long.authed("JWT").await.reason, ReasonCode::Success);
    short.told(ReasonCode::NotAuthorized).await;
    long.synced().await;
    broker.metric_reaches("weir_connections_closed_total{reason=\"not_authorized\"}", 1.0).await;
}

// Conformance v5: 4.12.0-1, 4.12.0-4
#[tokio::test]
async fn methods_and_tokens_that_are_wrong_at_connect() {
    let (issuer, config, _dir) = Issuer::new();
    let (stranger, _, _) = Issuer::new();
    let broker = TestBroker::start_with(config, &memory()).await;
    for (method, data, told) in [
        ("SCRAM", Some(issuer.token("anna", 9)), ReasonCode::BadAuthenticationMethod),
        ("jwt", Some(issuer.token("anna", 9)), ReasonCode::BadAuthenticationMethod),
        ("JWT", Some(stranger.token("anna", 9)), ReasonCode::NotAuthorized),
        ("JWT", Some(issuer.token("anna", 0)), ReasonCode::NotAuthorized),
        ("JWT", None, ReasonCode::NotAuthorized),
    ] {
        let (mut client, connack) = broker.connack(by_method("c", method, data)).await;
        assert_eq!(connack.code, told, "{method}");
        client.ended().await;
    }
    for (user, told) in [("bob", ReasonCode::NotAuthorized), ("anna", ReasonCode::Success)] {
        let username = Some(user.to_owned().into());
        let connect = Connect { username, ..by_method("c", "JWT", Some(issuer.token("anna", 9))) };
        let (_, connack) = broker.connack(connect).await;
        assert_eq!(connack.code, told, "the token is anna's, the user name {user}");
    }
    assert_eq!(broker.metric("weir_auth_refusals_total{reason=\"bad_method\"}").await, 2.0);
    let open = TestBroker::start().await;
    let (_, connack) = open.connack(by_method("c", "JWT", Some(issuer.token("anna", 9)))).await;
    assert_eq!(connack.code, ReasonCode::BadAuthenticationMethod, "no key is configured");
}

// Conformance v5: 4.12.0-7, 4.12.1-2
#[tokio::test]
async fn re_authentication_that_is_wrong_ends_the_connection() {
    let (issuer, config, _dir) = Issuer::new();
    let broker = TestBroker::start_with(config, &memory()).await;
    let (good, bob, old) = (issuer.token("anna", 99), issuer.token("bob", 99), issuer.token("anna", 0));
    for (packet, told) in [
        (auth(AGAIN, "JWT", &old), ReasonCode::NotAuthorized),
        (auth(AGAIN, "JWT", b""), ReasonCode::NotAuthorized),
        (auth(AGAIN, "JWT", &bob), ReasonCode::NotAuthorized),
        (auth(AGAIN, "OTHER", &good), ReasonCode::ProtocolError),
        (auth(CONTINUE, "JWT", &good), ReasonCode::ProtocolError),
        (auth(ReasonCode::Success, "JWT", &good), ReasonCode::ProtocolError),
    ] {
        let mut client = broker.connect(by_method("c", "JWT", Some(good.clone()))).await;
        client.send(packet).await;
        client.told(told).await;
    }
    let password = Connect { password: Some(good.clone()), ..clean("c", V5) };
    let mut client = broker.connect(password).await;
    client.send(auth(AGAIN, "JWT", &good)).await;
    client.told(ReasonCode::ProtocolError).await;
}

/// Asks for the number that follows, twice.
struct Counting;

struct Count(u8);

impl Method for Counting {
    fn name(&self) -> &'static str {
        "COUNT"
    }

    fn begin(&self, _: Claim) -> Box<dyn Exchange> {
        Box::new(Count(0))
    }
}

impl Exchange for Count {
    fn step(&mut self, data: Option<Bytes>) -> BoxFuture<'_, Step> {
        async move {
            // As a method that asks somebody else.
            tokio::task::yield_now().await;
            match (data.as_deref(), self.0) {
                (Some([n]), asked) if *n == asked && asked < 4 => {
                    self.0 += 2;
                    Step::Continue(Bytes::copy_from_slice(&[asked + 1]))
                }
                (Some([4]), 4) => {
                    let data = Some(Bytes::from_static(b"done"));
                    Step::Success(Proved { user: "counter".into(), expires_at: None, data })
                }
                _ => Step::Failure("can't count".to_owned()),
            }
        }
        .boxed()
    }
}

async fn counting() -> TestBroker {
    TestBroker::start_with_methods(config(), &memory(), vec![Arc::new(Counting)]).await
}

fn number(n: u8) -> Packet {
    auth(CONTINUE, "COUNT", &[n])
}

/// A client that is asked a second time before CONNACK.
async fn asked_twice(broker: &TestBroker) -> Client {
    let mut client = broker.open(V5).await;
    let connect = by_method("c", "COUNT", Some(Bytes::from_static(&[0])));
    client.send(Packet::Connect(Box::new(connect))).await;
    let asked = client.authed("COUNT").await;
    assert_eq!((asked.reason, asked.authentication_data.as_deref()), (CONTINUE, Some(&[1][..])));
    client.send(number(2)).await;
    assert_eq!(client.authed("COUNT").await.authentication_data.as_deref(), Some(&[3][..]));
    client
}

// Conformance v5: 4.12.0-2
#[tokio::test]
async fn several_steps_at_connect_and_anew() {
    let broker = counting().await;
    let mut client = asked_twice(&broker).await;
    client.send(number(4)).await;
    match client.recv().await {
        Packet::ConnAck(connack) => {
            assert_eq!(connack.code, ReasonCode::Success);
            assert_eq!(connack.authentication_data.as_deref(), Some(&b"done"[..]));
        }
        other => panic!("not a CONNACK: {other:?}"),
    }
    client.subscribe("a", AtMostOnce).await;
    for _ in 0..2 {
        client.send(auth(AGAIN, "COUNT", &[0])).await;
        assert_eq!(client.authed("COUNT").await.reason, CONTINUE);
        // Other packets go on meanwhile.
        client.synced().await;
        client.send(number(2)).await;
        assert_eq!(client.authed("COUNT").await.reason, CONTINUE);
        client.send(number(4)).await;
        let done = client.authed("COUNT").await;
        assert_eq!(
            (done.reason, done.authentication_data.as_deref()),
            (ReasonCode::Success, Some(&b"done"[..]))
        );
    }
    client.send(auth(AGAIN, "COUNT", &[0])).await;
    client.authed("COUNT").await;
    client.send(number(9)).await;
    client.told(ReasonCode::NotAuthorized).await;
}

// Conformance v5: 3.1.2-30
#[tokio::test]
async fn nothing_else_comes_between_connect_and_connack() {
    let broker = counting().await;
    for packet in [Packet::PingReq, auth(AGAIN, "COUNT", &[4]), auth(CONTINUE, "OTHER", &[4])] {
        let mut client = asked_twice(&broker).await;
        client.send(packet).await;
        match client.recv().await {
            Packet::ConnAck(connack) => assert_eq!(connack.code, ReasonCode::ProtocolError),
            other => panic!("not a CONNACK: {other:?}"),
        }
        client.ended().await;
    }
    let mut client = asked_twice(&broker).await;
    client.send(Packet::Disconnect(Box::default())).await;
    client.ended().await;
    let mut client = asked_twice(&broker).await;
    client.send(number(5)).await;
    match client.recv().await {
        Packet::ConnAck(connack) => assert_eq!(connack.code, ReasonCode::NotAuthorized),
        other => panic!("not a CONNACK: {other:?}"),
    }
}

#[tokio::test]
async fn whoever_is_nobody_yet_sends_no_large_auth() {
    let broker = counting().await;
    let mut client = asked_twice(&broker).await;
    // The beginning of an AUTH of 300,000 bytes is enough: the rest is not waited for.
    client.send_bytes(&[0xf0, 0xe0, 0xa7, 0x12]).await;
    match client.recv().await {
        Packet::ConnAck(connack) => assert_eq!(connack.code, ReasonCode::ProtocolError),
        other => panic!("not a CONNACK: {other:?}"),
    }
    client.ended().await;
}

#[tokio::test]
async fn exchanges_that_break_off_the_rules_count_as_guesses() {
    let broker = counting().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(asked_twice(&broker).await);
    }
    for client in &mut clients {
        client.send(Packet::PingReq).await;
    }
    for mut client in clients {
        assert!(matches!(client.recv().await, Packet::ConnAck(_)));
    }
    let (_, connack) = broker.connack(by_method("c", "COUNT", Some(Bytes::from_static(&[0])))).await;
    assert_eq!(connack.code, ReasonCode::ConnectionRateExceeded);
}

// Conformance v5: 4.12.0-6
#[tokio::test]
async fn a_client_without_a_method_hears_of_none() {
    let (issuer, config, _dir) = Issuer::new();
    let broker = TestBroker::start_with(config, &memory()).await;
    let password = Connect { password: Some(issuer.token("anna", 99)), ..clean("c", V5) };
    let (_, connack) = broker.connack(password).await;
    assert_eq!((connack.code, connack.authentication_method), (ReasonCode::Success, None));
}

/// Never has enough, once it has begun anew.
struct Endless;

impl Method for Endless {
    fn name(&self) -> &'static str {
        "ENDLESS"
    }

    fn begin(&self, _: Claim) -> Box<dyn Exchange> {
        Box::new(Self)
    }
}

impl Exchange for Endless {
    fn step(&mut self, data: Option<Bytes>) -> BoxFuture<'_, Step> {
        let step = match data.as_deref() {
            Some(b"let me in") => Step::Success(Proved { user: "patient".into(), ..Proved::default() }),
            _ => Step::Continue(Bytes::from_static(b"more")),
        };
        std::future::ready(step).boxed()
    }
}

#[tokio::test]
async fn the_steps_of_an_exchange_are_bounded() {
    let broker = TestBroker::start_with_methods(config(), &memory(), vec![Arc::new(Endless)]).await;
    let begin = by_method("c", "ENDLESS", None);
    let mut client = broker.open(V5).await;
    client.send(Packet::Connect(Box::new(begin))).await;
    for _ in 0..16 {
        client.authed("ENDLESS").await;
        client.send(auth(CONTINUE, "ENDLESS", b"")).await;
    }
    match client.recv().await {
        Packet::ConnAck(connack) => assert_eq!(connack.code, ReasonCode::NotAuthorized),
        other => panic!("not a CONNACK: {other:?}"),
    }
    let at_once = by_method("c", "ENDLESS", Some("let me in".into()));
    let mut client = broker.connect(at_once).await;
    client.send(auth(AGAIN, "ENDLESS", b"")).await;
    for _ in 0..16 {
        client.authed("ENDLESS").await;
        client.send(auth(CONTINUE, "ENDLESS", b"")).await;
    }
    client.told(ReasonCode::NotAuthorized).await;
}

#[tokio::test]
async fn an_exchange_that_stalls_is_given_up() {
    let mut config = config();
    config.limits.connect_timeout = Duration::from_millis(300);
    let broker = TestBroker::start_with_methods(config, &memory(), vec![Arc::new(Counting)]).await;
    let mut client = asked_twice(&broker).await;
    client.ended().await;
    broker.metric_reaches("weir_connections_closed_total{reason=\"connect_timeout\"}", 1.0).await;
}
