//! The transactions of membership: joining, signs of life, declaring a pod dead, leaving, handing shards over.
//!
//! A sign of life reads the pod's own record, and whoever declares it dead clears that record having read the last sign of
//! life: of the two, one commits. So no clock is part of safety.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use weir_storage::{Isolation, RangeQuery, Transaction, Version, Versionstamp, transact};

use super::Inner;
use crate::error::{Error, Result};
use crate::keyspace::VirtualShard;
use crate::keyspace::change::Change;
use crate::keyspace::interest::PodInterest;
use crate::keyspace::owner::{Epoch, Owner, PodId};
use crate::keyspace::pod::{DrainOrder, Heartbeat, Pod};

/// How often what may be done twice is repeated after an unknown outcome.
const REPEATS_MAX: u32 = 5;
/// Wait between repeats.
const REPEAT_WAIT: Duration = Duration::from_millis(20);

/// A virtual shard that goes from its owner to another pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move {
    pub(crate) vs: VirtualShard,
    /// The owner, as it knows itself.
    pub(crate) from: Owner,
    pub(crate) to: PodId,
}

/// What became of asking a pod to drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It is asked.
    Done,
    /// There is no such pod.
    Unknown,
    /// No other pod would take clients.
    Last,
}

/// Repeats `attempt` while its outcome is unknown: doing it twice is as good as once.
async fn repeated<'a, T>(attempt: impl Fn() -> BoxFuture<'a, Result<T>>) -> Result<T> {
    let mut repeats = 0;
    loop {
        match attempt().await {
            Err(Error::Store(error)) if error.may_have_committed() && repeats < REPEATS_MAX => {
                repeats += 1;
                tokio::time::sleep(REPEAT_WAIT).await;
            }
            outcome => return outcome,
        }
    }
}

/// Whether `pod` is a member. Conflicts with its end.
pub(crate) async fn is_member(tx: &mut dyn Transaction, pod: PodId) -> weir_storage::Result<bool> {
    Ok(tx.get(&Pod::key(pod), Isolation::Serializable).await?.is_some())
}

/// Makes this pod a member.
pub(super) async fn join(inner: &Inner) -> Result<()> {
    let me = inner.me;
    let pod = &Pod { info: inner.options.info.clone(), is_draining: false, order: None };
    let beat = &inner.heartbeat(0);
    let write = move || -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let body = transact(&*inner.store, |tx| {
                Box::pin(async move {
                    tx.set(&Pod::key(me), &pod.encode());
                    tx.set(&Heartbeat::key(me), &beat.encode());
                    inner.feed.write(tx, &Change::PodJoined(me));
                    Ok(())
                })
            });
            body.await?;
            Ok(())
        })
    };
    repeated(write).await
}

/// Changes what is written of `id`. False if it is no member.
pub(super) async fn change_pod(inner: &Inner, id: PodId, change: impl Fn(&mut Pod) + Sync) -> Result<bool> {
    Ok(change_unless_last(inner, id, false, change).await? == Asked::Done)
}

/// Changes what is written of `id`; if `another_stays` is asked for, only while there is another pod that does not drain.
async fn change_unless_last(
    inner: &Inner,
    id: PodId,
    another_stays: bool,
    change: impl Fn(&mut Pod) + Sync,
) -> Result<Asked> {
    let change = &change;
    let write = move || -> BoxFuture<'_, Result<Asked>> {
        Box::pin(async move {
            let body = transact(&*inner.store, |tx| {
                Box::pin(async move {
                    let stored = tx.get(&Pod::key(id), Isolation::Serializable).await?;
                    let Some(stored) = stored else { return Ok(Ok(Asked::Unknown)) };
                    if another_stays && !has_another(tx, id).await? {
                        return Ok(Ok(Asked::Last));
                    }
                    let before = match Pod::decode(stored) {
                        Ok(pod) => pod,
                        Err(error) => return Ok(Err(Error::from(error))),
                    };
                    let mut pod = before.clone();
                    change(&mut pod);
                    if pod != before {
                        tx.set(&Pod::key(id), &pod.encode());
                        inner.feed.write(tx, &Change::PodChanged(id));
                    }
                    Ok(Ok(Asked::Done))
                })
            });
            body.await?.0
        })
    };
    repeated(write).await
}

/// Whether a pod besides `id` does not drain. Conflicts with the end of that, so that pods which ask each other to drain at
/// once do not all do it.
async fn has_another(tx: &mut dyn Transaction, id: PodId) -> weir_storage::Result<bool> {
    // One of a version of Weir that is not known here counts as draining, as it does among the members.
    let stays = |(key, value): (Bytes, Bytes)| {
        Pod::of_key(&key).is_ok_and(|pod| pod != id) && Pod::decode(value).is_ok_and(|pod| !pod.is_draining)
    };
    let (begin, end) = Pod::range();
    let mut next = Some(RangeQuery::new(begin, end));
    while let Some(query) = next {
        let page = tx.get_range(query.clone(), Isolation::Serializable).await?;
        next = query.after(&page);
        if page.pairs.into_iter().any(stays) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes a sign of life. False if this pod is no member any more.
pub(super) async fn beat(inner: &Inner, counter: u64) -> Result<bool> {
    let me = inner.me;
    let beat = &inner.heartbeat(counter);
    let body = transact(&*inner.store, |tx| {
        Box::pin(async move {
            let lives = is_member(tx, me).await?;
            if lives {
                tx.set(&Heartbeat::key(me), &beat.encode());
            }
            Ok(lives)
        })
    });
    Ok(body.await?.0)
}

/// Declares `pod` dead, unless it has given a sign of life after `counter` or this pod is no member itself. Whether it is
/// gone now.
pub(super) async fn declare_dead(inner: &Inner, pod: PodId, counter: u64) -> Result<bool> {
    let me = inner.me;
    let body = transact(&*inner.store, |tx| {
        Box::pin(async move {
            let stored = tx.get(&Heartbeat::key(pod), Isolation::Serializable).await?;
            // A record that cannot be read is no sign of life.
            let lives =
                stored.and_then(|value| Heartbeat::decode(value).ok()).is_some_and(|b| b.counter != counter);
            if lives || !is_member(tx, pod).await? || !is_member(tx, me).await? {
                return Ok(false);
            }
            remove(inner, tx, pod);
            Ok(true)
        })
    });
    Ok(body.await?.0)
}

/// Ends the membership of this pod.
pub(super) async fn leave(inner: &Inner) -> Result<()> {
    let me = inner.me;
    let write = move || -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let body = transact(&*inner.store, |tx| {
                Box::pin(async move {
                    if is_member(tx, me).await? {
                        remove(inner, tx, me);
                    }
                    Ok(())
                })
            });
            body.await?;
            Ok(())
        })
    };
    repeated(write).await
}

fn remove(inner: &Inner, tx: &mut dyn Transaction, pod: PodId) {
    tx.clear(&Pod::key(pod));
    tx.clear(&Heartbeat::key(pod));
    let (begin, end) = PodInterest::range_of(pod);
    tx.clear_range(&begin, &end);
    inner.feed.write(tx, &Change::PodGone(pod));
}

/// Gives shards of this pod to others, all or none. Returns the owners there are then.
///
/// # Errors
/// [`Error::Fenced`] if one of them is not this pod's, or is to go to a pod that is gone. An unknown outcome is returned.
pub(super) async fn hand_over(inner: &Inner, moves: &[Move]) -> Result<Vec<(VirtualShard, Owner)>> {
    let body = transact(&*inner.store, |tx| {
        Box::pin(async move {
            // What is written is committed also if an error is returned: so all is looked at before.
            for Move { vs, from, to } in moves {
                let stored = tx.get(&Owner::key(*vs), Isolation::Serializable).await?;
                let is_ours = stored.and_then(|value| Owner::decode(value).ok()) == Some(*from);
                if !is_ours || !is_member(tx, *to).await? {
                    return Ok(Err(Error::Fenced));
                }
            }
            let mut owners = Vec::with_capacity(moves.len());
            for Move { vs, from, to } in moves {
                let owner = Owner { epoch: Epoch(from.epoch.0 + 1), pod: *to };
                write_owner(inner, tx, *vs, &owner);
                owners.push((*vs, owner));
            }
            Ok(Ok(owners))
        })
    });
    body.await?.0
}

/// Writes who owns `vs`.
pub(super) fn write_owner(inner: &Inner, tx: &mut dyn Transaction, vs: VirtualShard, owner: &Owner) {
    let Owner { epoch, pod } = *owner;
    tx.set(&Owner::key(vs), &owner.encode());
    inner.feed.write(tx, &Change::Owner { vs, epoch, pod });
}

impl super::Cluster {
    /// Asks `pod` to have its clients go and gives it no more shards, unless there is no other pod that would take clients.
    pub(crate) async fn order_drain_unless_last(&self, pod: PodId, order: DrainOrder) -> Result<Asked> {
        let change = |pod: &mut Pod| (pod.is_draining, pod.order) = (true, Some(order));
        let asked = change_unless_last(&self.inner, pod, true, change).await?;
        self.inner.feed.wake();
        Ok(asked)
    }
}

impl Inner {
    /// The sign of life with this counter.
    fn heartbeat(&self, counter: u64) -> Heartbeat {
        let ttl_ms = u32::try_from(self.options.ttl.as_millis()).unwrap_or(u32::MAX);
        let applied = self.applied();
        Heartbeat { counter, ttl_ms, applied: stamp(applied), load: *self.load.lock() }
    }
}

/// All changes up to `version`, as a place in the feed.
pub(super) fn stamp(version: Version) -> Versionstamp {
    Versionstamp::new(version, u16::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weir_env::clock::{Clock, Timestamp};
    use weir_env::seed::Seed;
    use weir_storage::{FaultRates, FaultStore, MemoryStore, SharedStore};

    use super::*;
    use crate::cluster::{Cluster, ClusterOptions, PodInfo};
    use crate::metrics::ClusterMetrics;

    async fn pod(store: &SharedStore, clock: Clock, id: u8) -> Cluster {
        let options = ClusterOptions::new(PodInfo::default());
        let (store, metrics) = (Arc::clone(store), ClusterMetrics::default());
        let pod = Cluster::join(store, clock, PodId([id; 16]), 4, options, metrics).await.unwrap();
        // The test beats itself.
        pod.stop().await;
        pod
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_sign_of_life_and_a_declaration_of_death_one_commits() {
        let (mut lived, mut died) = (0, 0);
        for seed in 0..200 {
            let clock = Clock::simulated(Timestamp::from_micros(1_700_000_000_000_000));
            let store = FaultStore::wrap(Arc::new(MemoryStore::new(clock)), Seed::fixed(seed));
            let slow_max = Duration::from_millis(5);
            let rates =
                FaultRates { read_slow: 500_000, commit_slow: 500_000, slow_max, ..FaultRates::default() };
            store.handle().set_rates(rates);
            let store: SharedStore = Arc::new(store);
            let (a, b) = (pod(&store, clock, 1).await, pod(&store, clock, 2).await);
            let counter = 1000;
            assert!(beat(&a.inner, counter).await.unwrap());
            // It reads more, so it takes longer.
            let ahead = Duration::from_millis(Seed::fixed(seed).below(15));
            let late = async {
                tokio::time::sleep(ahead).await;
                beat(&a.inner, counter + 1).await
            };
            let (lives, dead) = tokio::join!(late, declare_dead(&b.inner, a.me(), counter));
            let (lives, dead) = (lives.unwrap(), dead.unwrap());
            assert!(lives != dead, "seed {seed}: lives {lives}, dead {dead}");
            assert_eq!(beat(&a.inner, counter + 2).await.unwrap(), lives);
            lived += u32::from(lives);
            died += u32::from(dead);
            // The dead declare nobody dead.
            assert!(!declare_dead(&a.inner, b.me(), 0).await.unwrap() || lives);
        }
        assert!(lived > 20 && died > 20, "{lived} lived, {died} died");
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_pods_that_ask_each_other_to_drain_one_stays() {
        let order = DrainOrder { rate: 0, grace: Duration::ZERO };
        for seed in 0..50 {
            let clock = Clock::simulated(Timestamp::from_micros(1_700_000_000_000_000));
            let store = FaultStore::wrap(Arc::new(MemoryStore::new(clock)), Seed::fixed(seed));
            let slow_max = Duration::from_millis(5);
            store.handle().set_rates(FaultRates { read_slow: 500_000, slow_max, ..FaultRates::default() });
            let store: SharedStore = Arc::new(store);
            let (a, b) = (pod(&store, clock, 1).await, pod(&store, clock, 2).await);
            let (by_a, by_b) = tokio::join!(
                a.order_drain_unless_last(b.me(), order),
                b.order_drain_unless_last(a.me(), order),
            );
            let asked = [by_a.unwrap(), by_b.unwrap()];
            assert!(asked.contains(&Asked::Done) && asked.contains(&Asked::Last), "seed {seed}: {asked:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_ours_is_not_handed_over_nor_to_a_pod_that_is_gone() {
        let clock = Clock::simulated(Timestamp::from_micros(1_700_000_000_000_000));
        let store: SharedStore = Arc::new(MemoryStore::new(clock));
        let (a, b) = (pod(&store, clock, 1).await, pod(&store, clock, 2).await);
        let from = Owner { epoch: Epoch(3), pod: a.me() };
        let mut tx = store.begin();
        for vs in [0, 1] {
            write_owner(&a.inner, &mut *tx, VirtualShard(vs), &from);
        }
        tx.commit().await.unwrap();
        let to = |vs, pod: &Cluster| Move { vs: VirtualShard(vs), from, to: pod.me() };
        let stale = Move { from: Owner { epoch: Epoch(2), pod: a.me() }, ..to(1, &b) };
        let outcome = hand_over(&a.inner, &[to(0, &b), stale]).await;
        assert!(matches!(outcome, Err(Error::Fenced)), "{outcome:?}");
        let handed = hand_over(&a.inner, &[to(0, &b)]).await.unwrap();
        assert_eq!(handed, [(VirtualShard(0), Owner { epoch: Epoch(4), pod: b.me() })]);
        leave(&b.inner).await.unwrap();
        let outcome = hand_over(&a.inner, &[to(1, &b)]).await;
        assert!(matches!(outcome, Err(Error::Fenced)), "{outcome:?}");
    }
}
