//! What a reconciliation asks of the API server, and what it does with its refusals.

use http::StatusCode;
use serde_json::json;

use super::server::World;
use crate::error::Error;
use crate::object::PAUSE;

#[tokio::test]
async fn the_first_touch_says_that_nothing_is_known_and_holds_the_object() {
    let world = World::new();
    world.apply("traffic", json!({ "topicFilter": "a/+" }));
    world.reconcile("traffic").await.unwrap();
    assert_eq!(world.requests(), ["PATCH object", "PATCH status", "PATCH status"]);
    assert_eq!(world.calls(), ["acquire", "apply traffic"]);
    assert_eq!(world.events(), ["Created"]);
    assert_eq!(world.ready("traffic"), ("True".to_owned(), "Ready".to_owned()));
    let status = world.status("traffic");
    assert_eq!(status.observed_generation, Some(1));
    let at = status.broker_ref.unwrap();
    assert_eq!((at.namespace.as_str(), at.name.as_str()), ("city", "main"));
}

#[tokio::test]
async fn what_is_so_already_costs_nothing() {
    let world = World::new();
    world.apply("traffic", json!({}));
    world.reconcile("traffic").await.unwrap();
    world.requests();
    world.calls();
    world.events();
    for _ in 0..3 {
        world.reconcile("traffic").await.unwrap();
    }
    assert_eq!((world.requests(), world.calls(), world.events()), (vec![], vec![], vec![]));
}

#[tokio::test]
async fn an_edit_reaches_the_broker_and_the_generation_moves() {
    let world = World::new();
    world.apply("traffic", json!({}));
    world.reconcile("traffic").await.unwrap();
    world.apply("traffic", json!({ "ackTimeout": "1m" }));
    world.reconcile("traffic").await.unwrap();
    assert_eq!(world.status("traffic").observed_generation, Some(2));
    assert_eq!(world.events(), ["Created", "Updated"]);
    assert!(world.at_broker(|broker| broker.entries.values().all(|entry| entry.spec.contains("1m"))));
}

#[tokio::test]
async fn nothing_is_said_of_an_object_that_was_made_anew_under_the_name() {
    let world = World::new();
    world.apply("traffic", json!({ "retention": { "maxAge": "no time" } }));
    let old = world.get("traffic").unwrap();
    world.reconcile("traffic").await.unwrap();
    world.server.lock().objects.clear();
    world.apply("traffic", json!({}));
    assert!(matches!(world.reconcile_object(old).await, Err(Error::Conflict)));
    assert!(world.status("traffic").conditions.is_empty());
}

#[tokio::test]
async fn an_object_that_changed_meanwhile_is_looked_at_again() {
    let world = World::new();
    world.apply("traffic", json!({}));
    world.server.lock().failures = vec![StatusCode::CONFLICT];
    assert!(matches!(world.reconcile("traffic").await, Err(Error::Conflict)));
    world.reconcile("traffic").await.unwrap();
    assert!(world.holds("traffic", "Ready"));
}

#[tokio::test]
async fn an_old_view_of_an_object_overwrites_nothing() {
    let world = World::new();
    world.apply("traffic", json!({}));
    let old = world.get("traffic").unwrap();
    world.reconcile("traffic").await.unwrap();
    // The view without finalizer meets a newer object.
    assert!(matches!(world.reconcile_object(old).await, Err(Error::Conflict)));
    assert!(world.holds("traffic", "Ready"));
}

#[tokio::test]
async fn an_api_server_that_fails_is_asked_again() {
    for code in [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GONE] {
        let world = World::new();
        world.apply("traffic", json!({}));
        // The client repeats some by itself; afterwards the reconciliation does.
        world.server.lock().failures = vec![code; 2];
        for _ in 0..3 {
            let _ = world.reconcile("traffic").await;
        }
        assert!(world.holds("traffic", "Ready"), "{code}");
    }
}

#[tokio::test]
async fn deletion_releases_and_lets_go() {
    for (policy, event, left) in [("Retain", "Released", true), ("Delete", "Deleted", false)] {
        let world = World::new();
        world.apply("traffic", json!({ "deletionPolicy": policy }));
        world.reconcile("traffic").await.unwrap();
        world.events();
        world.calls();
        world.delete("traffic");
        world.reconcile("traffic").await.unwrap();
        assert!(world.get("traffic").is_none());
        assert_eq!(world.calls(), ["release traffic"]);
        assert_eq!(world.events(), [event]);
        assert_eq!(world.at_broker(|broker| broker.entries.len() == 1), left);
    }
}

#[tokio::test]
async fn an_object_that_is_gone_is_gone() {
    let world = World::new();
    world.apply("traffic", json!({}));
    world.reconcile("traffic").await.unwrap();
    world.delete("traffic");
    let seen = world.get("traffic").unwrap();
    world.reconcile("traffic").await.unwrap();
    world.events();
    world.calls();
    // The watch is behind: nothing is asked or told twice.
    world.reconcile_object(seen).await.unwrap();
    assert_eq!((world.calls(), world.events()), (vec![], vec![]));
    // A new object of that name is another one.
    world.apply("traffic", json!({}));
    world.reconcile("traffic").await.unwrap();
    assert!(world.holds("traffic", "Ready"));
}

#[tokio::test]
async fn definitions_that_are_older_than_the_operator_are_named_with_what_to_do() {
    let world = World::new();
    world.server.lock().is_old = true;
    world.apply("traffic", json!({}));
    let error = world.reconcile("traffic").await.unwrap_err();
    assert!(matches!(error, Error::OldDefinitions { .. }), "{error:?}");
    assert!(
        error.to_string().contains("MessageQueue") && error.to_string().contains("update the CRDs"),
        "{error}"
    );
    assert_eq!(world.events(), ["OldDefinitions"]);
    world.server.lock().is_old = false;
    world.reconcile("traffic").await.unwrap();
    assert!(world.holds("traffic", "Ready"));
}

#[tokio::test]
async fn a_paused_object_is_left_alone_but_can_be_deleted() {
    let world = World::new();
    world.apply("traffic", json!({}));
    world.reconcile("traffic").await.unwrap();
    world.annotate("traffic", PAUSE);
    world.apply("traffic", json!({ "ackTimeout": "1m" }));
    world.calls();
    world.events();
    for _ in 0..2 {
        world.reconcile("traffic").await.unwrap();
    }
    assert_eq!((world.calls(), world.events()), (vec![], vec!["Paused".to_owned()]));
    assert_eq!(world.ready("traffic"), ("Unknown".to_owned(), "Paused".to_owned()));
    assert!(world.holds("traffic", "Paused"));
    world.delete("traffic");
    world.reconcile("traffic").await.unwrap();
    assert!(world.get("traffic").is_none());
}

#[tokio::test]
async fn an_operator_that_does_not_lead_takes_no_writer_token() {
    let world = World::new();
    *world.leadership.0.lock() = false;
    world.apply("traffic", json!({}));
    world.reconcile("traffic").await.unwrap();
    assert_eq!(world.calls(), Vec::<String>::new());
    assert_eq!(world.ready("traffic").0, "False");
}

#[tokio::test]
async fn a_token_that_the_broker_does_not_know_is_replaced() {
    let world = World::new();
    world.apply("traffic", json!({}));
    world.reconcile("traffic").await.unwrap();
    world.at_broker(|broker| broker.writer = 7);
    world.apply("traffic", json!({ "ackTimeout": "1m" }));
    world.calls();
    world.reconcile("traffic").await.unwrap();
    assert_eq!(world.calls(), ["apply traffic", "acquire", "apply traffic"]);
    // Unless another operator leads.
    world.at_broker(|broker| broker.writer = 70);
    *world.leadership.0.lock() = false;
    world.apply("traffic", json!({ "ackTimeout": "2m" }));
    world.reconcile("traffic").await.unwrap();
    assert_eq!(world.calls(), ["apply traffic"]);
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_stalled_and_can_be_deleted() {
    let world = World::new();
    // The schema lets it through, the type cannot hold it.
    world.apply("traffic", json!({ "retention": { "maxBytes": "8Ei" } }));
    world.reconcile("traffic").await.unwrap();
    assert_eq!(world.ready("traffic"), ("False".to_owned(), "Invalid".to_owned()));
    assert!(world.holds("traffic", "Stalled"));
    assert_eq!(world.requests(), ["GET object", "PATCH status"]);
    world.reconcile("traffic").await.unwrap();
    assert_eq!(world.requests(), ["GET object"], "nothing is written twice");
    world.delete("traffic");
    world.reconcile("traffic").await.unwrap();
}
