//! Ownership of a virtual shard: taking it over, and making every write conflict with the next takeover.

use std::time::Duration;

use weir_storage::{ConflictKind, Isolation, Transaction, Version, transact};

use super::Context;
use crate::cluster::membership::is_member;
use crate::error::{Error, Result};
use crate::keyspace::VirtualShard;
use crate::keyspace::owner::{Epoch, Owner, PodId};

/// Proof that this pod owned a shard at a version of the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tenure {
    pub(crate) owner: Owner,
    /// Version at which the owner record was read; writes fenced by it need no read.
    pub(crate) seen: Version,
}

/// How often a takeover whose outcome is unknown is repeated: a takeover too many does no harm.
const REPEATS_MAX: u32 = 5;
/// Wait between repeats.
const REPEAT_WAIT: Duration = Duration::from_millis(20);

/// Takes `vs` over at the next epoch. With `previous`, only if no other pod has taken it over since, so that
/// what this pod remembers of the shard is still true.
///
/// # Errors
/// [`Error::Fenced`] if another pod has, or this one is no member of its cluster any more; [`Error::NotOwner`] if a living
/// pod has the shard. Nothing is written then.
pub(crate) async fn take_over(
    context: &Context,
    vs: VirtualShard,
    previous: Option<Owner>,
) -> Result<Tenure> {
    let mut repeats = 0;
    loop {
        match try_take_over(context, vs, previous).await {
            Err(Error::Store(error)) if error.may_have_committed() && repeats < REPEATS_MAX => {
                repeats += 1;
                tokio::time::sleep(REPEAT_WAIT).await;
            }
            outcome => return outcome,
        }
    }
}

async fn try_take_over(context: &Context, vs: VirtualShard, previous: Option<Owner>) -> Result<Tenure> {
    let key = &Owner::key(vs);
    let pod = context.pod;
    let body = transact(&*context.store, |tx| {
        Box::pin(async move {
            let stored = tx.get(key, Isolation::Serializable).await?;
            let found = match stored.map(Owner::decode).transpose() {
                Ok(found) => found,
                Err(error) => return Ok(Err(Error::Record(error))),
            };
            // Later epochs of this pod are takeovers of its own whose outcome it did not learn.
            let is_ours = |previous: Owner| {
                found.is_some_and(|owner| owner.pod == previous.pod && owner.epoch >= previous.epoch)
            };
            if previous.is_some_and(|previous| !is_ours(previous)) {
                return Ok(Err(Error::Fenced));
            }
            if let Some(cluster) = &context.cluster
                && let Err(error) = may_take_over(tx, cluster.me(), found).await?
            {
                return Ok(Err(error));
            }
            let epoch = found.map_or(Epoch::default(), |owner| owner.epoch);
            let owner = Owner { epoch: Epoch(epoch.0 + 1), pod };
            match &context.cluster {
                Some(cluster) => cluster.write_owner(tx, vs, &owner),
                None => tx.set(key, &owner.encode()),
            }
            Ok(Ok(owner))
        })
    });
    let (owner, committed) = body.await?;
    Ok(Tenure { owner: owner?, seen: committed.version })
}

/// In a cluster only a member takes a shard over, and from nobody who is one. Both are read, so that neither can change
/// before the takeover is committed.
async fn may_take_over(
    tx: &mut dyn Transaction,
    me: PodId,
    found: Option<Owner>,
) -> weir_storage::Result<Result<()>> {
    if !is_member(tx, me).await? {
        return Ok(Err(Error::Fenced));
    }
    match found.filter(|owner| owner.pod != me) {
        Some(owner) if is_member(tx, owner.pod).await? => Ok(Err(Error::NotOwner(owner))),
        _ => Ok(Ok(())),
    }
}

/// Adds the fence to `tx`: without a read if the tenure is recent, by reading the owner record otherwise.
/// Returns the version at which ownership was checked.
pub(crate) async fn fence(
    tx: &mut dyn Transaction,
    vs: VirtualShard,
    owner: &Owner,
    seen: Option<Version>,
) -> Result<Version> {
    let key = Owner::key(vs);
    if let Some(version) = seen {
        tx.set_read_version(version);
        tx.add_conflict_key(&key, ConflictKind::Read);
        return Ok(version);
    }
    let stored = tx.get(&key, Isolation::Serializable).await?;
    if stored.map(Owner::decode).transpose()? != Some(*owner) {
        return Err(Error::Fenced);
    }
    Ok(tx.read_version().await?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weir_env::clock::{Clock, Timestamp};
    use weir_env::seed::Seed;
    use weir_storage::{MemoryStore, SharedStore};

    use super::*;
    use crate::cluster::{ClusterOptions, PodInfo};
    use crate::core::{Core, Options};
    use crate::metrics::Metrics;

    const VS: VirtualShard = VirtualShard(7);

    async fn pod(store: &SharedStore, clock: Clock, seed: u64) -> Core {
        let cluster = Some(ClusterOptions::new(PodInfo::default()));
        let options = Options { cluster, ..Options::default() };
        let seed = Seed::fixed(seed);
        Core::open_with(Arc::clone(store), clock, &seed, Metrics::default(), options).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_shard_is_taken_from_nobody_who_lives_and_by_nobody_who_is_dead() {
        let clock = Clock::simulated(Timestamp::from_micros(1_700_000_000_000_000));
        let store: SharedStore = Arc::new(MemoryStore::new(clock));
        let (a, b) = (pod(&store, clock, 1).await, pod(&store, clock, 2).await);
        let first = take_over(&a.context, VS, None).await.unwrap();
        let refused = take_over(&b.context, VS, None).await.unwrap_err();
        assert!(matches!(refused, Error::NotOwner(owner) if owner == first.owner), "{refused}");
        let again = take_over(&a.context, VS, Some(first.owner)).await.unwrap();
        assert_eq!(again.owner.epoch, Epoch(first.owner.epoch.0 + 1));
        a.cluster().unwrap().leave().await.unwrap();
        let refused = take_over(&a.context, VS, Some(again.owner)).await.unwrap_err();
        assert!(matches!(refused, Error::Fenced), "{refused}");
        let taken = take_over(&b.context, VS, None).await.unwrap();
        assert_eq!((taken.owner.pod, taken.owner.epoch), (b.pod(), Epoch(again.owner.epoch.0 + 1)));
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_that_want_a_dead_pods_shard_one_gets_it() {
        for seed in 0..50 {
            let clock = Clock::simulated(Timestamp::from_micros(1_700_000_000_000_000));
            let store: SharedStore = Arc::new(MemoryStore::new(clock));
            let dead = pod(&store, clock, seed * 10).await;
            take_over(&dead.context, VS, None).await.unwrap();
            let slow = weir_storage::FaultStore::wrap(Arc::clone(&store), Seed::fixed(seed));
            let wait = Duration::from_millis(5);
            let rates = weir_storage::FaultRates {
                read_slow: 500_000,
                commit_slow: 500_000,
                slow_max: wait,
                ..weir_storage::FaultRates::default()
            };
            slow.handle().set_rates(rates);
            let slow: SharedStore = Arc::new(slow);
            let (a, b) = (pod(&slow, clock, seed * 10 + 1).await, pod(&slow, clock, seed * 10 + 2).await);
            dead.cluster().unwrap().leave().await.unwrap();
            let outcomes = tokio::join!(take_over(&a.context, VS, None), take_over(&b.context, VS, None));
            let (winner, loser) = match outcomes {
                (Ok(winner), Err(loser)) | (Err(loser), Ok(winner)) => (winner, loser),
                other => panic!("seed {seed}: {other:?}"),
            };
            assert!(matches!(loser, Error::NotOwner(owner) if owner == winner.owner), "seed {seed}: {loser}");
            for core in [&a, &b] {
                core.cluster().unwrap().stop().await;
            }
        }
    }
}
