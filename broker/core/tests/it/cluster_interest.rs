//! What clients of each pod want live: known to all once it is said to be, and gone with its pod.

use std::time::Duration;

use futures_util::FutureExt;
use weir_core::Error;
use weir_core::cluster::{Change, Cluster, FeedEvent, InterestKey, PodInterest, Topic, Want};
use weir_core::keyspace::tag;
use weir_storage::CommitFault;

use crate::cluster_support::Pods;

fn key(group: Option<&str>, filter: &str) -> InterestKey {
    InterestKey { group: group.map(Into::into), filter: filter.into() }
}

async fn stored(cluster: &Cluster) -> Vec<PodInterest> {
    let page = cluster.read_interest(None).await.unwrap();
    assert!(page.next.is_none());
    page.rows
}

#[tokio::test(start_paused = true)]
async fn interest_is_known_everywhere_and_goes_with_its_pod() {
    let pods = Pods::open(2, 1, &[]).await;
    let (one, other) = (pods.cores[0].cluster().unwrap(), pods.cores[1].cluster().unwrap());
    let mut feed = other.feed().subscribe(&[Topic::Interest]);
    assert!(matches!(feed.next().await, FeedEvent::Reload { .. }));
    let rows =
        [(key(None, "a/#"), Want { live: 1, qos0: 0 }), (key(Some("g"), "a"), Want { live: 3, qos0: 1 })];
    let version = one.write_interest(&rows).await.unwrap();
    let mut known = Box::pin(one.wait_everywhere(version));
    for (key, want) in &rows {
        let FeedEvent::Change { change, .. } = feed.next().await else { panic!("not a change") };
        let interest = PodInterest { pod: one.me(), key: key.clone(), want: *want };
        assert_eq!(*change, Change::Interest(interest));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((&mut known).now_or_never(), None, "a change is in hand");
    }
    assert!(feed.try_next().is_none());
    assert!(tokio::time::timeout(Duration::from_secs(60), known).await.is_ok());
    assert_eq!(stored(other).await.len(), 2);

    one.write_interest(&[(key(None, "a/#"), Want::default())]).await.unwrap();
    let left = stored(other).await;
    assert_eq!(left, [PodInterest { pod: one.me(), key: rows[1].0.clone(), want: rows[1].1 }]);

    // One that is found dead says nothing more.
    one.stop().await;
    let mut members = other.members();
    let gone = members.wait_for(|view| !view.contains(one.me()));
    assert!(tokio::time::timeout(Duration::from_secs(60), gone).await.is_ok());
    assert_eq!(stored(other).await, []);
    assert!(matches!(one.write_interest(&rows).await, Err(Error::Fenced)));
    assert_eq!(stored(other).await, []);
}

#[tokio::test(start_paused = true)]
async fn what_was_wanted_before_does_not_come_after_what_is_wanted_now() {
    let (pods, faults) = Pods::over_faults(1, 1, &[]).await;
    let cluster = pods.cores[0].cluster().unwrap();
    let write = async |live| cluster.write_interest(&[(key(None, "a/#"), Want { live, qos0: 0 })]).await;
    faults.fail_commits_matching(&[tag::INTEREST], CommitFault::OpenCommittedLater(Duration::from_secs(1)));
    assert!(write(1).await.is_err(), "nobody knows what becomes of it");
    faults.heal();
    write(2).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    faults.settle().await;
    assert_eq!(stored(cluster).await[0].want, Want { live: 2, qos0: 0 });
}
