//! What users of other operators complain about most; a test for each that it is not so here.

use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::server::World;
use crate::brokers::{AWAY_GRACE, Kind, State};
use crate::error::Error;
use crate::object::FORCE_RELEASE;

fn key(name: &str) -> (Kind, String) {
    (Kind::Queue, name.to_owned())
}

#[tokio::test]
async fn a_finalizer_is_stuck_because_the_broker_is_gone() {
    // The Broker object is gone.
    let world = World::new();
    world.apply("traffic", json!({}));
    world.reconcile("traffic").await.unwrap();
    world.remove_brokers();
    world.delete("traffic");
    world.reconcile("traffic").await.unwrap();
    assert!(world.get("traffic").is_none());
    assert_eq!(world.events(), ["Created", "BrokerGone"]);

    // It is there and does not answer: the object waits, and says for what and what can be done.
    let world = World::new();
    world.apply("traffic", json!({}));
    world.reconcile("traffic").await.unwrap();
    world.at_broker(|broker| broker.is_away = true);
    world.delete("traffic");
    world.reconcile("traffic").await.unwrap();
    let waiting = world.status("traffic").conditions;
    assert!(waiting[0].message.contains(FORCE_RELEASE), "{}", waiting[0].message);
    world.annotate("traffic", FORCE_RELEASE);
    world.reconcile("traffic").await.unwrap();
    assert!(world.get("traffic").is_none());
    assert!(world.events().contains(&"ForceReleased".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_namespace_is_stuck_in_terminating() {
    let world = World::new();
    world.apply("traffic", json!({}));
    world.reconcile("traffic").await.unwrap();
    world.at_broker(|broker| broker.is_away = true);
    world.server.lock().ending = true;
    world.delete("traffic");
    world.reconcile("traffic").await.unwrap();
    assert!(world.get("traffic").is_some(), "it may be a moment only, and the queue would go on storing");
    tokio::time::sleep(AWAY_GRACE).await;
    world.reconcile("traffic").await.unwrap();
    assert!(world.get("traffic").is_none());

    let world = World::new();
    world.apply("traffic", json!({}));
    world.reconcile("traffic").await.unwrap();
    let id = world.context.links.ids().remove(0);
    world.context.links.get(&id).unwrap().set_down("known to be away");
    world.server.lock().ending = true;
    world.delete("traffic");
    tokio::time::sleep(AWAY_GRACE).await;
    world.reconcile("traffic").await.unwrap();
    assert!(world.get("traffic").is_none());
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_or_changed_behind_the_operator_stays_so() {
    let world = World::new();
    world.apply("traffic", json!({}));
    world.reconcile("traffic").await.unwrap();
    world.events();
    let id = world.context.links.ids().remove(0);
    let link = world.context.links.get(&id).unwrap();

    world.at_broker(|broker| broker.entries.clear());
    link.ledger.lock().gone(Kind::Queue, "traffic");
    world.reconcile("traffic").await.unwrap();
    assert!(world.at_broker(|broker| broker.entries.contains_key(&key("traffic"))));
    assert_eq!(world.events(), ["DriftRepaired"]);

    let changed = world.at_broker(|broker| {
        let entry = broker.entries.get_mut(&key("traffic")).unwrap();
        let before = entry.spec.clone();
        entry.spec = before.replace("30s", "5s");
        entry.changes += 1;
        assert_ne!(entry.spec, before);
        before
    });
    let seen = crate::brokers::Declared {
        kind: Kind::Queue,
        name: "traffic".to_owned(),
        generation: 9,
        hash: "another".to_owned(),
        active: true,
        state: None,
    };
    assert!(link.ledger.lock().changed(&seen));
    world.at_broker(|broker| broker.entries.get_mut(&key("traffic")).unwrap().changes = 10);
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.reconcile("traffic").await.unwrap();
    assert_eq!(world.at_broker(|broker| broker.entries[&key("traffic")].spec.clone()), changed);
    assert_eq!(world.events(), ["DriftRepaired"]);
    assert!(world.context.metrics.encode().contains(r#"drift_repaired_total{kind="MessageQueue"} 2"#));
}

#[tokio::test(start_paused = true)]
async fn operators_fight_over_a_queue_as_fast_as_they_can() {
    let world = World::new();
    world.apply("traffic", json!({}));
    world.reconcile("traffic").await.unwrap();
    world.events();
    let id = world.context.links.ids().remove(0);
    let link = world.context.links.get(&id).unwrap();
    let clock = world.context.clock;

    let (began, mut repairs, mut told) = (clock.now(), 0, 0);
    while clock.now().saturating_duration_since(began) < Duration::from_secs(600) {
        world.at_broker(|broker| broker.entries.clear());
        link.ledger.lock().gone(Kind::Queue, "traffic");
        world.reconcile("traffic").await.unwrap();
        let is_back = world.at_broker(|broker| broker.entries.contains_key(&key("traffic")));
        repairs += usize::from(is_back);
        if !is_back {
            assert_eq!(world.ready("traffic"), ("False".to_owned(), "DriftRepeated".to_owned()));
        }
        told += world.events().len();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!((5..=12).contains(&repairs), "{repairs} times in 10 min");
    assert!(told <= 2 * repairs + 1, "{told} events");
}

#[tokio::test]
async fn errors_are_not_in_the_status_so_that_pipelines_are_falsely_green() {
    let world = World::new();
    world.apply("traffic", json!({ "topicFilter": "$SYS/#" }));
    world.reconcile("traffic").await.unwrap();
    assert_eq!(world.ready("traffic"), ("False".to_owned(), "Invalid".to_owned()));
    assert!(world.holds("traffic", "Stalled"));
    assert_eq!(world.calls(), Vec::<String>::new());

    // Ready never speaks of another generation than the one that the Broker has.
    let world = World::new();
    world.apply("traffic", json!({}));
    world.reconcile("traffic").await.unwrap();
    world.apply("traffic", json!({ "ackTimeout": "1m" }));
    world.at_broker(|broker| broker.is_away = true);
    world.reconcile("traffic").await.unwrap();
    let status = world.status("traffic");
    assert_eq!(status.observed_generation, Some(2));
    assert_eq!(world.ready("traffic"), ("False".to_owned(), "BrokerUnavailable".to_owned()));

    // And a queue that is as declared but does not work is not ready, though nobody must edit its object.
    let world = World::new();
    world.at_broker(|broker| {
        broker.state = State::NotReady { reason: "DeadLetterBlocked".into(), message: "no target".into() };
    });
    world.apply("traffic", json!({}));
    world.reconcile("traffic").await.unwrap();
    assert_eq!(world.ready("traffic"), ("False".to_owned(), "DeadLetterBlocked".to_owned()));
    assert!(!world.holds("traffic", "Stalled"));
    world.at_broker(|broker| broker.state = State::Ready);
    world.reconcile("traffic").await.unwrap();
    assert_eq!(world.ready("traffic").0, "True");
}

#[tokio::test]
async fn data_is_lost_because_deleting_the_object_deletes_it() {
    let world = World::new();
    world.apply("traffic", json!({}));
    world.reconcile("traffic").await.unwrap();
    world.at_broker(|broker| broker.entries.get_mut(&key("traffic")).unwrap().messages = 5);
    world.delete("traffic");
    world.reconcile("traffic").await.unwrap();
    assert_eq!(world.at_broker(|broker| broker.entries[&key("traffic")].messages), 5);
    // A new object of the name has them again.
    world.apply("traffic", json!({}));
    world.events();
    world.reconcile("traffic").await.unwrap();
    assert_eq!(world.events(), ["Adopted"]);
    assert_eq!(world.at_broker(|broker| broker.entries[&key("traffic")].messages), 5);
}

#[tokio::test]
async fn edits_of_what_cannot_change_are_silently_ignored() {
    let world = World::new();
    world.apply("traffic", json!({ "shards": 2 }));
    world.reconcile("traffic").await.unwrap();
    // As after deleting and making the object anew, which no rule of the schema sees.
    world.apply("traffic", json!({ "shards": 3 }));
    world.reconcile("traffic").await.unwrap();
    assert_eq!(world.ready("traffic"), ("False".to_owned(), "ImmutableMismatch".to_owned()));
    assert!(world.holds("traffic", "Stalled"));
    assert!(world.events().contains(&"ImmutableMismatch".to_owned()));
}

#[tokio::test]
async fn retries_of_a_broker_that_is_down_starve_other_work() {
    let mut world = World::new();
    world.add_broker("other");
    for number in 0..20 {
        world.apply(&format!("q{number}"), json!({ "brokerRef": { "name": "main" } }));
    }
    world.apply("other", json!({ "brokerRef": { "name": "other" } }));
    world.apply("dying", json!({ "brokerRef": { "name": "other" } }));
    world.reconcile("dying").await.unwrap();
    let deadline = CancellationToken::new();
    world.at_broker(|broker| broker.hangs = Some(deadline.clone()));

    // Many objects of the Broker that hangs do not hold their workers, nor those of the other Broker: all but the
    // few calls that hang come to an end.
    let (ended_tx, mut ended_rx) = mpsc::channel(20);
    let stuck = (0..20).map(|number| {
        let (world, ended_tx) = (&world, ended_tx.clone());
        async move {
            world.reconcile(&format!("q{number}")).await.unwrap();
            ended_tx.send(number).await.unwrap();
        }
    });
    let others = async {
        world.reconcile("other").await.unwrap();
        world.delete("dying");
        world.reconcile("dying").await.unwrap();
        for _ in 0..18 {
            ended_rx.recv().await.unwrap();
        }
        assert!(ended_rx.try_recv().is_err(), "the calls that hang have ended");
        deadline.cancel();
    };
    futures_util::future::join(futures_util::future::join_all(stuck), others).await;
    assert!(world.holds("other", "Ready"));
    assert!(world.get("dying").is_none());

    // Once it is known to be down, nobody but its follower asks it, and nothing is written twice.
    world.calls();
    for number in 0..20 {
        world.reconcile(&format!("q{number}")).await.unwrap();
    }
    world.requests();
    for number in 0..20 {
        world.reconcile(&format!("q{number}")).await.unwrap();
    }
    assert_eq!((world.calls(), world.requests()), (vec![], vec![]));
    assert_eq!(world.ready("q7"), ("False".to_owned(), "BrokerUnavailable".to_owned()));
}

#[tokio::test]
async fn two_objects_fight_for_one_queue() {
    let world = World::new();
    world.apply("first", json!({ "queueName": "orders" }));
    world.apply("second", json!({ "queueName": "orders" }));
    world.reconcile("first").await.unwrap();
    world.reconcile("second").await.unwrap();
    assert!(world.holds("first", "Ready"));
    assert_eq!(world.ready("second"), ("False".to_owned(), "NameConflict".to_owned()));
    assert!(world.status("second").conditions[0].message.contains("default/city/first"));
    // Deleting the one that lost does not touch the queue.
    world.delete("second");
    world.reconcile("second").await.unwrap();
    assert!(world.get("second").is_none());
    assert!(world.at_broker(|broker| !broker.entries[&key("orders")].orphaned));
    world.reconcile("first").await.unwrap();
    assert!(world.holds("first", "Ready"));
}

#[tokio::test]
async fn definitions_are_left_behind_by_upgrades_and_fields_are_pruned() {
    // Every field that the operator writes is in the schema that it was built with; the chart ships that very schema.
    let crds = weir_operator_api::crds();
    for crd in crds {
        let status = serde_json::to_value(&crd.spec.versions[0]).unwrap();
        let status = &status["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"];
        assert!(status["observedGeneration"].is_object(), "{}", crd.spec.names.kind);
        assert!(status["conditions"].is_object(), "{}", crd.spec.names.kind);
        if crd.spec.names.kind != "Broker" {
            assert!(status["brokerRef"]["properties"]["namespace"].is_object(), "{}", crd.spec.names.kind);
        }
    }
    // Those of an earlier release in the cluster are told of, and no field is lost without a word.
    let world = World::new();
    world.apply("traffic", json!({}));
    world.server.lock().is_old = true;
    assert!(matches!(world.reconcile("traffic").await, Err(Error::OldDefinitions { .. })));
    assert!(world.events().contains(&"OldDefinitions".to_owned()));
    world.server.lock().is_old = false;
    world.reconcile("traffic").await.unwrap();
    assert!(world.holds("traffic", "Ready"));
}
