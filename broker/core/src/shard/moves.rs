//! Which virtual shards this pod takes up because its cluster has changed, and which it hands to others: some in each
//! moment when a pod has come, all when this one leaves.
//!
//! The task that does it knows owners and members. What is in a shard is the affair of the shard's own task.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;
use weir_env::clock::Instant;

use super::handed::Offer;
use super::seat::is_ours;
use super::{Command, Owners};
use crate::catalog::{Catalog, Object};
use crate::cluster::Cluster;
use crate::cluster::membership::Move;
use crate::definition::Kind;
use crate::error::{Error, Result};
use crate::keyspace::owner::PodId;
use crate::keyspace::{LogId, VirtualShard};

/// Time between two looks, also if nothing seems to have changed, and between two batches of moves.
const INTERVAL: Duration = Duration::from_millis(250);
/// How long a shard may take to commit what is in line before it stays where it is.
const OFFER_TIME: Duration = Duration::from_secs(1);
/// How long a pod that is to leave waits until it reads so itself.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// How often a handover of all shards is tried: a pod that was to get some may die meanwhile.
const ATTEMPTS_MAX: u32 = 5;

impl Owners {
    /// Takes shards up and hands them over as `cluster` changes, until closed or dropped.
    pub(crate) fn follow_cluster(self: &Arc<Self>, cluster: Cluster, catalog: Arc<Catalog>) {
        let mover = Mover { owners: Arc::downgrade(self), cluster, catalog, taken_up: BTreeSet::new() };
        let closed = self.context().closed.clone();
        self.spawn(async move {
            tokio::select! {
                () = mover.run() => {}
                () = closed.cancelled() => {}
            }
        });
    }

    /// Hands every shard of this pod to who should own it when this pod is gone. Returns how many there were.
    ///
    /// # Errors
    /// If the store fails. Others take over then what was not handed over.
    pub(crate) async fn hand_over_all(&self, cluster: &Cluster) -> Result<usize> {
        cluster.drain().await?;
        self.hand_over_rest(cluster).await
    }

    /// As [`Self::hand_over_all`], of a pod that drains already, and until it does not any more.
    pub(crate) async fn hand_over_rest(&self, cluster: &Cluster) -> Result<usize> {
        let mut members = cluster.members();
        let drains = |pods: &crate::cluster::View| pods.member(cluster.me()).is_none_or(|me| me.is_draining);
        // Until then it may take shards over.
        if tokio::time::timeout(DRAIN_TIME, members.wait_for(|view| drains(view))).await.is_err() {
            return Ok(0);
        }
        let mut count = 0;
        for _ in 0..ATTEMPTS_MAX {
            let leaving = surplus(cluster);
            if leaving.is_empty() {
                break;
            }
            match self.hand_over(cluster, leaving).await {
                Ok(handed) => count += handed,
                // Somebody is gone, or what was written is not known: what is ours is looked up again.
                Err(Error::Fenced | Error::Store(_)) => tokio::time::sleep(INTERVAL).await,
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }

    /// Hands shards to the pods named, all in one transaction but for those that cannot stop in time.
    async fn hand_over(&self, cluster: &Cluster, shards: Vec<(VirtualShard, PodId)>) -> Result<usize> {
        let offers = shards.into_iter().map(|(vs, to)| async move {
            let (reply, answer) = oneshot::channel();
            self.get(vs).ok()?.send(Command::HandOver { reply }).await.ok()?;
            let offer = tokio::time::timeout(OFFER_TIME, answer).await.ok()?.ok()?;
            Some((vs, to, offer))
        });
        let offers: Vec<(VirtualShard, PodId, Offer)> =
            join_all(offers).await.into_iter().flatten().collect();
        let moves: Vec<Move> =
            offers.iter().map(|(vs, to, offer)| Move { vs: *vs, from: offer.owner, to: *to }).collect();
        if moves.is_empty() {
            return Ok(0);
        }
        let result = cluster.hand_over(&moves).await;
        if result.is_ok() {
            cluster.metrics().handed_over.inc_by(moves.len() as u64);
        }
        // The shards go on, each as what it is now.
        for (_, _, offer) in offers {
            drop(offer.done);
        }
        result.map(|()| moves.len())
    }
}

/// What this pod owns and another should.
fn surplus(cluster: &Cluster) -> Vec<(VirtualShard, PodId)> {
    let (view, me) = (cluster.view(), cluster.me());
    let owned = cluster.owned().into_iter();
    owned.filter_map(|(vs, _)| Some((vs, view.assigned(vs).filter(|pod| *pod != me)?))).collect()
}

struct Mover {
    owners: Weak<Owners>,
    cluster: Cluster,
    catalog: Arc<Catalog>,
    /// Shards of this pod in which what happens by itself does.
    taken_up: BTreeSet<VirtualShard>,
}

impl Mover {
    async fn run(mut self) {
        let (mut members, mut changed) = (self.cluster.members(), self.cluster.owners_changed());
        let clock = self.owners.upgrade().map(|owners| owners.context().clock);
        let Some(clock) = clock else { return };
        let mut moves_at: Instant = clock.now();
        loop {
            members.mark_unchanged();
            changed.mark_unchanged();
            let Some(owners) = self.owners.upgrade() else { return };
            self.take_up(&owners).await;
            if clock.now() >= moves_at {
                self.give(&owners).await;
                moves_at = clock.now() + INTERVAL;
            }
            drop(owners);
            tokio::select! {
                _ = members.changed() => {}
                _ = changed.changed() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    /// Starts the shards that this pod is to own and that somebody has owned before, and what happens by itself in them.
    async fn take_up(&mut self, owners: &Owners) {
        let cluster = &self.cluster;
        let all = (0..cluster.virtual_shards()).map(VirtualShard);
        let ours: BTreeSet<VirtualShard> =
            all.filter(|vs| is_ours(cluster, *vs) && cluster.record_of(*vs).is_some()).collect();
        for vs in &ours {
            // Fails at shutdown only.
            let _ = owners.get(*vs);
        }
        let me = cluster.me();
        self.taken_up.retain(|vs| cluster.owner_of(*vs) == Some(me));
        let owned = ours.into_iter().filter(|vs| cluster.owner_of(*vs) == Some(me));
        let new: BTreeSet<VirtualShard> = owned.filter(|vs| !self.taken_up.contains(vs)).collect();
        if new.is_empty() {
            return;
        }
        let failed = self.take_up_logs(owners, &new).await;
        self.taken_up.extend(new.difference(&failed));
    }

    /// Has the owners of `shards` read the logs in which something happens by itself; which of them could not.
    async fn take_up_logs(&self, owners: &Owners, shards: &BTreeSet<VirtualShard>) -> BTreeSet<VirtualShard> {
        let view = self.catalog.view();
        let objects = view.all(Kind::Queue).chain(view.all(Kind::Stream).filter(|stream| ages(stream)));
        let logs = objects.flat_map(|object| object.logs.iter().map(move |log| (object, *log)));
        let taken_up = logs.filter(|(_, log)| shards.contains(&log.vs)).map(|(object, log)| async move {
            match take_up_log(owners, object, log).await {
                // A damaged one stays so.
                Ok(()) | Err(Error::Record(_)) => None,
                Err(error) => {
                    tracing::debug!(queue_or_stream = object.definition.name, %error, "take up");
                    Some(log.vs)
                }
            }
        });
        join_all(taken_up).await.into_iter().flatten().collect()
    }

    /// Hands some of the shards that others should own to them.
    async fn give(&self, owners: &Owners) {
        let mut surplus = surplus(&self.cluster);
        let per_turn = f64::from(self.cluster.options().moves_per_second) * INTERVAL.as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small positive number"
        )]
        surplus.truncate((per_turn as usize).max(1));
        if surplus.is_empty() {
            return;
        }
        match owners.hand_over(&self.cluster, surplus).await {
            Ok(shards) => tracing::debug!(shards, "handed virtual shards over"),
            Err(error) => tracing::debug!(%error, "hand virtual shards over"),
        }
    }
}

/// Whether something happens in a stream although nobody asks for it.
fn ages(stream: &Object) -> bool {
    stream.definition.retention.max_age_ms > 0 || stream.definition.last_value
}

async fn take_up_log(owners: &Owners, object: &Arc<Object>, log: LogId) -> Result<()> {
    let object = Arc::clone(object);
    owners.get(log.vs)?.ask(|reply| Command::Describe { object, log, reply }).await?.map(drop)
}
