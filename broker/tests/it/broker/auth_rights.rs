//! Whose a session is, and that rights end with the rules that gave them: for inboxes, wills and client ids.

use weir_codec::{Connect, Packet, ReasonCode};

use super::auth::{RULES, anna, guarded, replace, with, write_rules};
use super::client::{AtLeastOnce, AtMostOnce, ExactlyOnce, V5, V311, clean, persistent, text, will};

#[tokio::test]
async fn an_inbox_is_not_for_whoever_comes_with_its_client_id() {
    let (broker, _dir) = guarded(RULES).await;
    let mut own = broker.connect(with(persistent("a", V5), "anna", "anna")).await;
    own.subscribe("home/anna/x", ExactlyOnce).await;
    own.subscribe("open/a", AtLeastOnce).await;
    let mut other = broker.connect(anna(V5)).await;
    // One each of QoS 1 and 2 is in flight, another waits in the inbox.
    assert!(!other.publish("home/anna/x", "secret").await.is_error());
    other.publish_twice_acknowledged(2, "home/anna/x", "secret").await;
    for _ in 0..2 {
        assert_eq!(text(&own.message().await), "secret");
    }
    drop(own);
    broker.metric_reaches("weir_connections_closed_total{reason=\"connection_lost\"}", 1.0).await;
    assert!(!other.publish("home/anna/x", "secret").await.is_error());
    assert!(!other.publish("open/a", "open").await.is_error());

    let mut bob = broker.resume(with(persistent("a", V5), "bob", "bob")).await;
    match bob.recv().await {
        Packet::PubRel(_) => {}
        other => panic!("not the end of the QoS 2 message: {other:?}"),
    }
    assert_eq!(text(&bob.take().await), "open");
    bob.quiet().await;
    assert_eq!(broker.metric("weir_messages_dropped_total{reason=\"not_authorized\"}").await, 3.0);
}

const OWN: &str = r##"
[[rules]]
allow = ["connect"]
clients = ["%u", "%u-*"]

[[rules]]
allow = ["publish", "subscribe"]
topics = ["#"]
"##;

#[tokio::test]
async fn a_client_id_may_be_for_its_user_alone() {
    let (broker, dir) = guarded(OWN).await;
    let mut watcher = broker.connect(with(clean("bob", V5), "bob", "bob")).await;
    watcher.subscribe("will", AtMostOnce).await;
    let mut own = broker.connect(Connect { will: Some(will("will", "fired")), ..anna(V5) }).await;
    for version in [V5, V311] {
        for connect in [clean("anna-1", version), persistent("anna-1", version)] {
            let told = broker.told_at_connect(with(connect, "bob", "bob")).await;
            assert_eq!(told, ReasonCode::NotAuthorized);
        }
    }
    own.synced().await;
    watcher.quiet().await;
    assert_eq!(broker.metric("weir_forbidden_total{action=\"connect\"}").await, 4.0);
    write_rules(&dir, &OWN.replace("\"%u-*\"", "\"%u/*\""));
    own.told(ReasonCode::NotAuthorized).await;
}

#[tokio::test]
async fn a_will_ends_with_the_right_to_it() {
    let (broker, dir) = guarded(RULES).await;
    let mut bob = broker.connect(with(clean("bob-1", V5), "bob", "bob")).await;
    bob.subscribe("open/plain/will", AtMostOnce).await;
    let connect =
        |id| with(Connect { will: Some(will("open/plain/will", "x")), ..clean(id, V5) }, "anna", "anna");
    let denied = broker.connect(connect("anna-1")).await;
    let mut gone = broker.connect(connect("anna-2")).await;
    write_rules(&dir, &RULES.replace("retain = true", "will = true"));
    broker.metric_reaches("weir_auth_reloads_total{outcome=\"done\"}", 1.0).await;
    drop(denied);
    broker.metric_reaches("weir_forbidden_total{action=\"will\"}", 1.0).await;
    write_rules(&dir, RULES);
    broker.metric_reaches("weir_auth_reloads_total{outcome=\"done\"}", 2.0).await;
    let users = std::fs::read_to_string(dir.path().join("users")).unwrap();
    replace(&dir.path().join("users"), users.lines().nth(1).unwrap());
    gone.told(ReasonCode::NotAuthorized).await;
    broker.metric_reaches("weir_forbidden_total{action=\"will\"}", 2.0).await;
    bob.quiet().await;
}

#[tokio::test]
async fn files_that_could_not_be_read_are_tried_again() {
    let (broker, dir) = guarded(RULES).await;
    let path = dir.path().join("rules.toml");
    // In place and of one length and time, so that nothing shows that it is another file.
    let good = "[[rules]]\nallow = [\"publish\"]\ntopics = [\"a\"]\n";
    write_rules(&dir, &good.replace("publish", "pxblish"));
    broker.metric_reaches("weir_auth_reloads_total{outcome=\"failed\"}", 1.0).await;
    let written = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::write(&path, good).unwrap();
    std::fs::File::open(&path).unwrap().set_modified(written).unwrap();
    broker.metric_reaches("weir_auth_reloads_total{outcome=\"done\"}", 1.0).await;
    assert_eq!(broker.metric("weir_auth_reloads_total{outcome=\"failed\"}").await, 1.0, "told once");
}
