//! Links and members: there is a link to each member, and a member whose link breaks is suspected.
//!
//! Knows nothing of what links carry. One task for as long as the pod is a member.

use std::collections::BTreeMap;

use tokio_util::sync::CancellationToken;

use super::Cluster;
use super::links::{Links, UpLinks};
use super::network::Peer;
use super::view::View;

/// Has links follow the members, and suspicion follow the links, until `stop`.
pub(crate) async fn run(cluster: Cluster, links: Links, stop: CancellationToken) {
    let (mut members, mut up) = (cluster.members(), links.link_events());
    let mut known: BTreeMap<_, _> = BTreeMap::new();
    loop {
        links.set_peers(&peers(&members.borrow_and_update()));
        let now: UpLinks = up.borrow_and_update().clone();
        for (pod, number) in &known {
            if now.get(pod) != Some(number) {
                cluster.suspect(*pod);
            }
        }
        now.keys().for_each(|pod| cluster.trust(*pod));
        known.clone_from(&now);
        tokio::select! {
            changed = members.changed() => if changed.is_err() { break },
            changed = up.changed() => if changed.is_err() { break },
            () = stop.cancelled() => break,
        }
    }
}

fn peers(view: &View) -> Vec<Peer> {
    let pods = view.pods.iter();
    pods.map(|member| Peer { pod: member.id, address: member.info.peer.to_string() }).collect()
}
