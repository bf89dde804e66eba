//! Users, passwords and access rules: what each kind of client is told, and what changes without a restart.

use std::path::Path;

use tempfile::TempDir;
use weir::config::Config;
use weir_codec::{Connect, Packet, ProtocolVersion, ReasonCode};

use super::client::{
    AtLeastOnce, AtMostOnce, ExactlyOnce, V5, V311, clean, persistent, publish, retained, text, will,
};
use super::{TestBroker, config, memory, queue, stream};

/// Lets everybody do everything below `open/`, and some people some other things.
pub(super) const RULES: &str = r##"
[[rules]]
deny = ["publish", "subscribe"]
topics = ["open/secret/#"]

[[rules]]
deny = ["publish"]
topics = ["open/plain/#"]
retain = true

[[rules]]
allow = ["publish", "subscribe"]
topics = ["open/#", "home/%u/#"]

[[rules]]
allow = ["subscribe"]
users = ["anna"]
topics = ["jobs/#", "log/#"]

[[rules]]
allow = ["consume"]
users = ["anna", "bob"]
names = ["jobs", "log"]
"##;

/// A broker with the users anna and bob, whose passwords are their names, and these rules.
pub(super) async fn guarded(rules: &str) -> (TestBroker, TempDir) {
    let (config, dir) = guarded_config(rules);
    (TestBroker::start_with(config, &memory()).await, dir)
}

pub(super) fn guarded_config(rules: &str) -> (Config, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let hash = |name: &str| weir_auth::hash_password(name.as_bytes()).unwrap();
    std::fs::write(dir.path().join("users"), format!("anna:{}\nbob:{}\n", hash("anna"), hash("bob")))
        .unwrap();
    let mut config = config();
    config.auth.users_file = Some(dir.path().join("users"));
    config.auth.reload_interval = std::time::Duration::from_millis(100);
    if !rules.is_empty() {
        write_rules(&dir, rules);
        config.auth.rules_file = Some(dir.path().join("rules.toml"));
    }
    (config, dir)
}

/// Replaces the rules as editors and Kubernetes do: by another file.
pub(super) fn write_rules(dir: &TempDir, rules: &str) {
    replace(&dir.path().join("rules.toml"), rules);
}

pub(super) fn replace(path: &Path, text: &str) {
    let other = path.with_extension("new");
    std::fs::write(&other, text).unwrap();
    std::fs::rename(other, path).unwrap();
}

pub(super) fn with(connect: Connect, user: &str, password: &str) -> Connect {
    let (username, password) = (Some(user.to_owned().into()), Some(password.to_owned().into()));
    Connect { username, password, ..connect }
}

pub(super) fn anna(version: ProtocolVersion) -> Connect {
    with(clean("anna-1", version), "anna", "anna")
}

impl TestBroker {
    pub(super) async fn told_at_connect(&self, connect: Connect) -> ReasonCode {
        let (mut client, connack) = self.connack(connect).await;
        if connack.code.is_error() {
            client.ended().await;
        }
        connack.code
    }
}

// Conformance v5: 3.1.4-2
#[tokio::test]
async fn passwords_decide_who_comes_in() {
    // Each refusal is later than the last, of one broker.
    tokio::join!(passwords_decide(V5), passwords_decide(V311));
}

async fn passwords_decide(version: ProtocolVersion) {
    let (broker, _dir) = guarded("").await;
    let connect = |user, password| with(clean("c", version), user, password);
    assert_eq!(broker.told_at_connect(connect("anna", "anna")).await, ReasonCode::Success);
    for (user, password) in [("anna", "bob"), ("anna", ""), ("carol", "carol"), ("", "anna")] {
        let told = broker.told_at_connect(connect(user, password)).await;
        assert_eq!(told, ReasonCode::BadUserNameOrPassword, "{user}");
    }
    assert_eq!(broker.told_at_connect(clean("c", version)).await, ReasonCode::NotAuthorized);
    assert!(broker.metric("weir_auth_refusals_total{reason=\"bad_credentials\"}").await >= 4.0);
    assert!(broker.metric("weir_auth_refusals_total{reason=\"anonymous\"}").await >= 1.0);
    assert!(broker.metric("weir_auth_throttled_entries").await >= 3.0);
    // Without rules, who comes in may do everything.
    let mut client = broker.connect(anna(version)).await;
    client.subscribe("#", AtMostOnce).await;
    assert!(broker.metric("weir_auth_recent_total").await >= 1.0, "the second time it is not hashed again");
}

#[tokio::test]
async fn anonymous_clients_come_in_if_they_may() {
    let (mut config, _dir) = guarded_config(RULES);
    config.allow_anonymous = true;
    let broker = TestBroker::start_with(config, &memory()).await;
    let mut client = broker.clean("nobody").await;
    assert!(!client.publish("open/a", "x").await.is_error());
    assert_eq!(client.publish("home/nobody/a", "x").await, ReasonCode::NotAuthorized, "it has no user name");
    let wrong = with(clean("c", V5), "anna", "wrong");
    assert_eq!(broker.told_at_connect(wrong).await, ReasonCode::BadUserNameOrPassword);
}

#[tokio::test]
async fn guessing_is_slowed_and_then_stopped() {
    let (broker, _dir) = guarded("").await;
    let mut guesses = Vec::new();
    for n in 0..20 {
        let mut client = broker.open(V5).await;
        let connect = with(clean(&format!("c{n}"), V5), &format!("user-{n}"), "guess");
        client.send(Packet::Connect(Box::new(connect))).await;
        guesses.push(client);
    }
    for mut client in guesses {
        match client.recv().await {
            Packet::ConnAck(connack) => assert_eq!(connack.code, ReasonCode::BadUserNameOrPassword),
            other => panic!("not a CONNACK: {other:?}"),
        }
    }
    assert_eq!(broker.told_at_connect(anna(V5)).await, ReasonCode::ConnectionRateExceeded);
    let v311 = broker.told_at_connect(anna(V311)).await;
    assert_eq!(v311, ReasonCode::ServerUnavailable, "3.1.1 has no word for it");
    assert_eq!(broker.metric("weir_auth_refusals_total{reason=\"throttled\"}").await, 2.0);
    assert_eq!(broker.metric("weir_auth_refusals_total{reason=\"bad_credentials\"}").await, 20.0);
}

#[tokio::test]
async fn a_publish_that_is_not_allowed_is_refused() {
    let (broker, _dir) = guarded(RULES).await;
    let mut watcher = broker.connect(with(clean("w", V5), "bob", "bob")).await;
    watcher.subscribe("open/plain/#", AtLeastOnce).await;
    let mut client = broker.connect(anna(V5)).await;
    assert!(!client.publish("open/plain/a", "first").await.is_error());
    assert_eq!(client.publish("open/secret/a", "x").await, ReasonCode::NotAuthorized);
    assert_eq!(client.publish("home/bob/a", "x").await, ReasonCode::NotAuthorized);
    assert!(!client.publish("home/anna/a", "x").await.is_error());
    client.post(publish(ExactlyOnce, 7, "elsewhere", "x")).await;
    assert_eq!(client.pubreced(7).await, ReasonCode::NotAuthorized);
    client.post(retained(AtLeastOnce, 8, "open/plain/a", "x")).await;
    assert_eq!(client.pubacked(8).await, ReasonCode::NotAuthorized, "not retained there");
    client.post(publish(AtMostOnce, 0, "elsewhere", "x")).await;
    assert!(!client.publish("open/plain/a", "last").await.is_error(), "the connection goes on");
    assert_eq!(watcher.take_texts(2).await, ["first", "last"]);
    assert_eq!(broker.metric("weir_forbidden_total{action=\"publish\"}").await, 5.0);
    assert_eq!(broker.metric("weir_messages_dropped_total{reason=\"not_authorized\"}").await, 1.0);
}

// Conformance v311: 3.3.5-2
#[tokio::test]
async fn a_3_1_1_client_is_cut_off_rather_than_lied_to() {
    let (broker, _dir) = guarded(RULES).await;
    let mut client = broker.connect(anna(V311)).await;
    client.post(publish(AtMostOnce, 0, "elsewhere", "x")).await;
    client.synced().await;
    client.post(publish(AtLeastOnce, 1, "elsewhere", "x")).await;
    client.ended().await;
    let mut client = broker.connect(with(persistent("anna-2", V311), "anna", "anna")).await;
    client.post(publish(ExactlyOnce, 1, "elsewhere", "x")).await;
    client.ended().await;
    broker.metric_reaches("weir_connections_closed_total{reason=\"not_authorized\"}", 2.0).await;
}

#[tokio::test]
async fn a_will_that_is_not_allowed_keeps_its_client_out() {
    let (broker, _dir) = guarded(RULES).await;
    for (version, told) in [(V5, ReasonCode::NotAuthorized), (V311, ReasonCode::NotAuthorized)] {
        let connect = Connect { will: Some(will("open/secret/will", "x")), ..anna(version) };
        assert_eq!(broker.told_at_connect(connect).await, told);
        let mut kept = will("open/plain/will", "x");
        kept.retain = true;
        assert_eq!(broker.told_at_connect(Connect { will: Some(kept), ..anna(version) }).await, told);
        let allowed = Connect { will: Some(will("open/plain/will", "x")), ..anna(version) };
        assert_eq!(broker.told_at_connect(allowed).await, ReasonCode::Success);
    }
    assert_eq!(broker.metric("weir_forbidden_total{action=\"will\"}").await, 4.0);
}

#[tokio::test]
async fn subscriptions_are_judged_whole() {
    let (broker, _dir) = guarded(RULES).await;
    for (version, told) in [(V5, ReasonCode::NotAuthorized), (V311, ReasonCode::UnspecifiedError)] {
        let mut client = broker.connect(anna(version)).await;
        for denied in
            ["#", "+/a", "open/#", "open/+", "open/secret", "home/+/a", "home/bob/#", "$share/g/open/#"]
        {
            assert_eq!(client.subscribed(denied, AtMostOnce).await, told, "{denied}");
        }
        for allowed in ["open/a", "open/a/#", "home/anna/#", "$share/g/open/a", "jobs/+"] {
            assert!(!client.subscribed(allowed, AtMostOnce).await.is_error(), "{allowed}");
        }
    }
}

#[tokio::test]
async fn queues_and_streams_need_their_name_and_their_filter() {
    let (broker, _dir) = guarded(RULES).await;
    broker.declare(&[queue("jobs", "jobs/#"), stream("log", "log/#"), queue("other", "jobs/+")]).await;
    let mut anna = broker.connect(anna(V5)).await;
    for allowed in ["$queue/jobs", "$stream/log", "$stream/log/log/#", "$q/jobs/#", "$s/earliest/log/#"] {
        assert!(!anna.subscribed(allowed, AtLeastOnce).await.is_error(), "{allowed}");
        anna.unsubscribe(allowed).await;
    }
    // The name is not hers, whichever way she asks.
    for denied in ["$queue/other", "$queue/other/jobs/+", "$q/jobs/+", "$queue/nowhere"] {
        assert_eq!(anna.subscribed(denied, AtLeastOnce).await, ReasonCode::NotAuthorized, "{denied}");
    }
    // Bob may have the names and not what is in them.
    let mut bob = broker.connect(with(clean("bob-1", V5), "bob", "bob")).await;
    for denied in ["$queue/jobs", "$queue/jobs/jobs/#", "$stream/log", "$q/jobs/#", "$s/earliest/log/#"] {
        assert_eq!(bob.subscribed(denied, AtLeastOnce).await, ReasonCode::NotAuthorized, "{denied}");
    }
    assert!(broker.metric("weir_forbidden_total{action=\"consume\"}").await >= 4.0);
}

#[tokio::test]
async fn a_queue_that_appears_later_is_judged_when_it_does() {
    let (broker, _dir) = guarded(RULES).await;
    let mut bob = broker.connect(with(clean("bob-1", V5), "bob", "bob")).await;
    assert!(!bob.subscribed("$queue/jobs", AtLeastOnce).await.is_error(), "nobody knows yet what it takes");
    broker.declare(&[queue("jobs", "jobs/#")]).await;
    bob.told(ReasonCode::NotAuthorized).await;
}

#[tokio::test]
async fn rules_change_without_a_restart() {
    let (broker, dir) = guarded(RULES).await;
    let mut anna = broker.connect(anna(V5)).await;
    let mut bob = broker.connect(with(clean("bob-1", V5), "bob", "bob")).await;
    let mut kept = broker.connect(with(persistent("bob-2", V5), "bob", "bob")).await;
    anna.subscribe("open/a", AtMostOnce).await;
    bob.subscribe("open/b", AtMostOnce).await;
    kept.subscribe("open/b", AtLeastOnce).await;
    kept.subscribe("home/bob/x", AtLeastOnce).await;
    assert_eq!(anna.publish("new/a", "x").await, ReasonCode::NotAuthorized);

    write_rules(&dir, "[[rules]]\nallow = [\"publish\"\n");
    broker.metric_reaches("weir_auth_reloads_total{outcome=\"failed\"}", 1.0).await;
    assert_eq!(anna.publish("new/a", "x").await, ReasonCode::NotAuthorized, "the old rules hold");
    assert!(!anna.publish("open/a", "x").await.is_error());
    assert_eq!(text(&anna.message().await), "x");

    write_rules(
        &dir,
        "[[rules]]\nallow = [\"publish\", \"subscribe\"]\ntopics = [\"new/#\", \"open/a\", \"home/#\"]\n",
    );
    broker.metric_reaches("weir_auth_reloads_total{outcome=\"done\"}", 1.0).await;
    bob.told(ReasonCode::NotAuthorized).await;
    kept.told(ReasonCode::NotAuthorized).await;
    assert!(!anna.publish("new/a", "x").await.is_error());
    assert_eq!(anna.publish("open/b", "x").await, ReasonCode::NotAuthorized);
    anna.synced().await;

    // The session comes back without what it may not have, and with the rest.
    let mut kept = broker.resume(with(persistent("bob-2", V5), "bob", "bob")).await;
    assert!(!anna.publish("home/bob/x", "allowed").await.is_error());
    assert_eq!(text(&kept.take().await), "allowed");
    write_rules(&dir, "[[rules]]\nallow = [\"publish\", \"subscribe\"]\ntopics = [\"#\"]\n");
    broker.metric_reaches("weir_auth_reloads_total{outcome=\"done\"}", 2.0).await;
    assert!(!anna.publish("open/b", "x").await.is_error());
    kept.quiet().await;
}

#[tokio::test]
async fn a_user_that_is_gone_must_go() {
    let (broker, dir) = guarded("").await;
    let mut anna = broker.connect(anna(V5)).await;
    let mut bob = broker.connect(with(clean("bob-1", V5), "bob", "bob")).await;
    let users = std::fs::read_to_string(dir.path().join("users")).unwrap();
    let without_bob = users.lines().next().unwrap();
    replace(&dir.path().join("users"), without_bob);
    bob.told(ReasonCode::NotAuthorized).await;
    anna.synced().await;
    let told = broker.told_at_connect(with(clean("bob-1", V5), "bob", "bob")).await;
    assert_eq!(told, ReasonCode::BadUserNameOrPassword, "although it was verified lately");
}

#[tokio::test]
async fn a_broken_file_ends_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rules.toml");
    std::fs::write(&path, "[[rules]]\nallow = [\"read\"]\ntopics = [\"#\"]\n").unwrap();
    let mut config = config();
    config.auth.rules_file = Some(path.clone());
    config.auth.users_file = Some(dir.path().join("absent"));
    let error = weir::auth::check(&config.auth).unwrap_err().to_string();
    assert!(error.contains("absent: can't be read"), "{error}");
    assert!(error.contains(&format!("{}:2: allow: `read` is not allowed", path.display())), "{error}");
}
