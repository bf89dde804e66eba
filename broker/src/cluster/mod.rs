//! This pod as one of many: sessions that move between pods, what its clients want of the others, and what it has for clients
//! of those.
//!
//! A broker that runs alone uses none of this.

pub(crate) mod follow;
pub(crate) mod forward;
pub(crate) mod holds;
pub(crate) mod interest;
mod ledger;
pub(crate) mod notices;
pub(crate) mod orphans;
pub(crate) mod takeover;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use weir_core::cluster::Cluster;
use weir_core::cluster::links::Links;
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
}

impl Pods {
    pub(crate) fn new(cluster: &Cluster, links: &Links, clock: Clock) -> Self {
        let interest = Arc::new(Interest::new(cluster, clock));
        Self { cluster: cluster.clone(), links: links.clone(), interest, panics: Panics::default() }
    }

    /// Reads what clients of other pods want, then follows that, and tells the others what clients here want, until `stop`.
    pub(crate) async fn start(&self, broker: &Arc<Broker>, stop: &CancellationToken) {
        let follower = InterestFollower::start(broker, &self.cluster).await;
        broker.tasks.spawn(self.panics.watch(follower.run(stop.child_token())));
        let interest = Arc::clone(&self.interest);
        broker.tasks.spawn(self.panics.watch(interest.write(stop.child_token())));
    }

    /// Waits until one of these tasks panics. Cancel-safe.
    pub(crate) async fn panicked(&self) {
        self.panics.panicked().await;
    }
}
