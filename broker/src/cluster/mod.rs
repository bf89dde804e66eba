//! This pod as one of many: sessions that move between pods, what its clients want of the others, and what it has for clients
//! of those.
//!
//! A broker that runs alone uses none of this.

pub(crate) mod follow;
pub(crate) mod forward;
pub(crate) mod holds;
pub(crate) mod interest;
mod kicks;
mod ledger;
mod notices;
pub(crate) mod orphans;
pub(crate) mod takeover;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytestring::ByteString;
use tokio_util::sync::CancellationToken;
use weir_core::cluster::links::Links;
use weir_core::cluster::{Cluster, Member};
use weir_core::panics::Panics;
use weir_env::clock::Clock;

use self::interest::{Interest, InterestFollower};
use crate::broker::Broker;

/// The other pods, as live routing needs them.
#[derive(Debug)]
pub(crate) struct Pods {
    pub(crate) cluster: Cluster,
    pub(crate) links: Links,
    pub(crate) interest: Arc<Interest>,
    panics: Panics,
    /// Which pod a client is sent to next.
    turn: AtomicUsize,
}

/// Without a sign of life for so long, nobody is sent to a pod.
const SILENT: Duration = Duration::from_secs(2);

impl Pods {
    pub(crate) fn new(cluster: &Cluster, links: &Links, clock: Clock) -> Self {
        let interest = Arc::new(Interest::new(cluster, clock));
        Self {
            cluster: cluster.clone(),
            links: links.clone(),
            interest,
            panics: Panics::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Reads what clients of other pods want, then follows that, and tells the others what clients here want, until `stop`.
    pub(crate) async fn start(&self, broker: &Arc<Broker>, stop: &CancellationToken) {
        let follower = InterestFollower::start(broker, &self.cluster).await;
        broker.tasks.spawn(self.panics.watch(follower.run(stop.child_token())));
        let interest = Arc::clone(&self.interest);
        broker.tasks.spawn(self.panics.watch(interest.write(stop.child_token())));
    }

    /// Whether there is another pod that takes clients, and where one of them is that says so: each in its turn.
    pub(crate) fn elsewhere(&self) -> Option<Option<ByteString>> {
        let (view, me) = (self.cluster.view(), self.cluster.me());
        let lives = |pod| self.cluster.load_of(pod).is_some_and(|(_, age)| age < SILENT);
        let takes = |pod: &&Member| pod.id != me && !pod.is_draining && lives(pod.id);
        let others: Vec<&Member> = view.pods.iter().filter(takes).collect();
        let known: Vec<_> = others.iter().filter(|pod| !pod.info.server_reference.is_empty()).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let chosen = turn.checked_rem(known.len()).and_then(|place| known.get(place));
        let reference = chosen.map(|pod| pod.info.server_reference.clone());
        (!others.is_empty()).then_some(reference)
    }

    /// Waits until one of these tasks panics. Cancel-safe.
    pub(crate) async fn panicked(&self) {
        self.panics.panicked().await;
    }
}
