//! What pods tell each other of the feed: how far each has come, as soon as it has, so that nobody who waits for all has to
//! wait for signs of life in the store. Those tell the same later, so what gets lost here costs time alone.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use weir_storage::Version;

use super::Cluster;
use super::links::{Links, PeerHandler};
use super::message::{FeedMessage, PeerMessage};
use crate::keyspace::owner::PodId;

/// Tells every other member what this pod has applied, whenever there was a change, until `stop`.
pub(super) async fn run(cluster: Cluster, links: Links, stop: CancellationToken) {
    let mut applied = cluster.feed().applied();
    let mut told = Version::default();
    loop {
        let version = *applied.borrow_and_update();
        if cluster.feed().newest() > told && version > told {
            told = version;
            let (view, me) = (cluster.view(), cluster.me());
            for pod in view.pods.iter().map(|pod| pod.id).filter(|pod| *pod != me) {
                // The next sign of life says it, too.
                let _ = links.try_send(pod, FeedMessage::Applied(version));
            }
        }
        tokio::select! {
            changed = applied.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

/// Who takes what other pods tell.
pub(super) fn handler(cluster: Cluster) -> Arc<dyn PeerHandler> {
    Arc::new(Listener(cluster))
}

struct Listener(Cluster);

impl PeerHandler for Listener {
    fn handle(&self, from: PodId, message: PeerMessage) -> BoxFuture<'_, ()> {
        if let PeerMessage::Feed(FeedMessage::Applied(version)) = message {
            self.0.peer_applied(from, version);
        }
        Box::pin(std::future::ready(()))
    }
}
