//! What pods that are gone have left behind: their connections end as if they had been cut off, their wills fall due and
//! their sessions begin to expire. One of the pods that live does it at once, chosen by the id of the one that is gone;
//! what it does not get to, another one does later. The store owns all state.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
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

/// Of which pods it is to be seen to what they have left.
#[derive(Debug, Default)]
struct Seen {
    gone: Mutex<Gone>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Gone {
    pods: BTreeSet<PodId>,
    /// It was missed which.
    others: bool,
}

/// Sees to what pods leave behind until `stop`.
pub(crate) async fn follow(broker: Arc<Broker>, elsewhere: Arc<Elsewhere>, stop: CancellationToken) {
    let seen = Seen::default();
    tokio::join!(listen(&broker, &elsewhere, &seen, &stop), work(&broker, &elsewhere, &seen, &stop));
}

/// Takes note of pods that are gone. Others wait for the feed to be followed: it must not take as long as the work does.
async fn listen(broker: &Arc<Broker>, elsewhere: &Elsewhere, seen: &Seen, stop: &CancellationToken) {
    let mut receiver = elsewhere.cluster.feed().subscribe(TOPICS);
    loop {
        let event = tokio::select! {
            event = receiver.next() => event,
            () = stop.cancelled() => return,
        };
        match event {
            FeedEvent::Change { change, .. } => match &*change {
                Change::PodGone(pod) => _ = seen.gone.lock().pods.insert(*pod),
                _ => continue,
            },
            FeedEvent::Reload { .. } => seen.gone.lock().others = true,
        }
        // What it has added to inboxes last it may not have told.
        broker.look_at_inboxes();
        seen.news.notify_one();
    }
}

async fn work(broker: &Arc<Broker>, elsewhere: &Elsewhere, seen: &Seen, stop: &CancellationToken) {
    let cluster = &elsewhere.cluster;
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            () = seen.news.notified() => {}
            _ = look.tick() => seen.gone.lock().others = true,
            () = stop.cancelled() => return,
        }
        let Gone { mut pods, others } = std::mem::take(&mut *seen.gone.lock());
        let view = cluster.view();
        pods.retain(|pod| view.heir(*pod) == Some(cluster.me()));
        let others = others && cluster.should_own(VirtualShard(0));
        if pods.is_empty() && !others {
            continue;
        }
        let is_gone = |pod: &[u8; 16]| pods.contains(&PodId(*pod)) || others && !view.contains(PodId(*pod));
        match broker.sessions.close_orphans(is_gone).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "connections of pods that are gone have ended"),
            Err(error) => {
                tracing::warn!(%error, "connections of pods that are gone wait: the store does not answer")
            }
        }
    }
}
