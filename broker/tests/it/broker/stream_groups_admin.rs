//! `weir stream groups` and `weir stream seek` on a running broker.

use serde_json::Value;
use tokio::sync::mpsc;
use weir_core::definition::{Definition, Kind};
use weir_core::groups::GroupEvent;
use weir_core::queue::ConsumerId;
use weir_core::stream::Start;

use super::{TestBroker, stream};
use crate::cli::{Finished, weir};

async fn run(broker: &TestBroker, args: &[&str]) -> Finished {
    let admin = broker.admin.to_string();
    weir(&[&["stream"], args, &["--admin", &admin]].concat(), "").await
}

async fn done(broker: &TestBroker, args: &[&str]) -> String {
    let ran = run(broker, args).await;
    assert!(ran.code == 0, "{args:?}: {ran:?}");
    ran.stdout
}

async fn refused(broker: &TestBroker, args: &[&str], why: &str) {
    let ran = run(broker, args).await;
    assert!(ran.code != 0 && ran.stderr.contains(why), "{args:?}: {ran:?}");
}

#[tokio::test]
async fn a_group_is_shown_moved_while_it_reads_and_forgotten() {
    let broker = TestBroker::start().await;
    broker.declare(&[stream("log", "log/#"), Definition { shards: 2, ..stream("wide", "wide/#") }]).await;
    broker.publish("log/1", &["0", "1", "2", "3"]).await;
    assert!(done(&broker, &["groups", "log"]).await.contains("stream log has no groups"));

    let log = broker.core.catalog().view().find(Kind::Stream, "log").unwrap();
    let (tx, mut events) = mpsc::channel(8);
    let groups = broker.core.groups();
    groups.join(&log, "workers", ConsumerId(1_000_000), "c1", &Start::Earliest, tx).await.unwrap();
    let Some(GroupEvent::Assigned { generation, from: 0, .. }) = events.recv().await else {
        panic!("it has the shard")
    };
    groups.progress(&log, "workers", 0, generation, 1);
    let shown: Value =
        serde_json::from_str(&done(&broker, &["groups", "log", "--output", "json"]).await).unwrap();
    let group = &shown["groups"][0];
    assert_eq!(
        (&group["name"], &group["lag"], &group["members"][0]),
        (&"workers".into(), &3.into(), &"c1".into())
    );
    assert_eq!((&group["shards"][0]["position"], &group["shards"][0]["end"]), (&1.into(), &4.into()));
    let text = done(&broker, &["groups", "log"]).await;
    assert!(text.lines().any(|line| line.starts_with("workers") && line.ends_with("c1")), "{text}");

    let text = done(&broker, &["describe", "log"]).await;
    let line = text.lines().find(|line| line.starts_with("workers")).unwrap_or_default();
    assert!(text.contains("FURTHEST BEHIND") && line.ends_with("0:1"), "{text}");

    // Without a change first, then while the member reads.
    let seek = ["seek", "log", "--group", "workers", "--to", "3"];
    assert!(done(&broker, &[&seek[..], &["--dry-run"]].concat()).await.contains("would go on there"));
    assert!(events.try_recv().is_err(), "nothing has changed");
    assert!(done(&broker, &seek).await.contains("goes on there"));
    assert_eq!(events.recv().await, Some(GroupEvent::Revoked { shard: 0, generation }));
    groups.release(&log, "workers", 0, generation, 2).await.unwrap();
    let again = events.recv().await;
    let newer = |given: u64| given > generation;
    assert!(
        matches!(again, Some(GroupEvent::Assigned { shard: 0, generation, from: 3 }) if newer(generation)),
        "{again:?}"
    );

    refused(&broker, &["seek", "log", "--group", "others", "--to", "3"], "has no group `others`").await;
    refused(&broker, &["seek", "log", "--group", "workers", "--to", "7:1"], "has no shard 7").await;
    refused(&broker, &["seek", "wide", "--group", "workers", "--to", "3"], "name a shard too").await;
    refused(&broker, &["groups", "log", "--delete", "workers"], "has members (1)").await;
    let delete = ["groups", "log", "--delete", "workers", "--force"];
    assert_eq!(done(&broker, &delete).await, "group workers deleted\n");
    assert_eq!(events.recv().await, Some(GroupEvent::Ended));
    refused(&broker, &delete, "has no group `workers`").await;
}
