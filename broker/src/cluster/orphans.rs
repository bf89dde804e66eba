//! What pods that are gone have left behind: their connections end as if they had been cut off, their wills fall due and
//! their sessions begin to expire. One of the pods that live does it at once, chosen by the id of the one that is gone;
//! what it does not get to, another one does later. The store owns all state.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use weir_core::cluster::{Change, FeedEvent, Topic};
use weir_core::keyspace::VirtualShard;
use weir_core::keyspace::owner::PodId;

use super::takeover::Elsewhere;
use crate::broker::Broker;

/// What of the feed is followed.
const TOPICS: &[Topic] = &[Topic::Pods];
/// How often somebody looks for what nobody has seen to.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Sees to what pods leave behind until `stop`.
pub(crate) async fn follow(broker: Arc<Broker>, elsewhere: Arc<Elsewhere>, stop: CancellationToken) {
    let cluster = &elsewhere.cluster;
    let mut receiver = cluster.feed().subscribe(TOPICS);
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    loop {
        let gone = tokio::select! {
            event = receiver.next() => match event {
                FeedEvent::Change { change, .. } => match &*change {
                    Change::PodGone(pod) => Some(*pod),
                    _ => continue,
                },
                FeedEvent::Reload { .. } => None,
            },
            _ = look.tick() => None,
            () = stop.cancelled() => return,
        };
        let view = cluster.view();
        let closed = match gone {
            Some(pod) if view.heir(pod) == Some(cluster.me()) => {
                broker.sessions.close_orphans(|other| *other == pod.0).await
            }
            None if cluster.should_own(VirtualShard(0)) => {
                broker.sessions.close_orphans(|other| !view.contains(PodId(*other))).await
            }
            Some(_) | None => continue,
        };
        match closed {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "connections of pods that are gone have ended"),
            Err(error) => {
                tracing::warn!(%error, "connections of pods that are gone wait: the store does not answer")
            }
        }
    }
}
