//! Ownership of a virtual shard: taking it over, and making every write conflict with the next takeover.

use weir_storage::{ConflictKind, Isolation, Transaction, Version, transact};

use super::Context;
use crate::error::{Error, Result};
use crate::keyspace::VirtualShard;
use crate::keyspace::owner::{Epoch, Owner};

/// Proof that this pod owned a shard at a version of the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tenure {
    pub(crate) owner: Owner,
    /// Version at which the owner record was read; writes fenced by it need no read.
    pub(crate) seen: Version,
}

/// Takes `vs` over at the next epoch. Returns the tenure and whether `previous` was still the owner, so
/// that what this pod remembers of the shard is still true.
pub(crate) async fn take_over(
    context: &Context,
    vs: VirtualShard,
    previous: Option<Owner>,
) -> Result<(Tenure, bool)> {
    let key = Owner::key(vs);
    let pod = context.pod;
    let key = &key;
    let body = transact(&*context.store, |tx| {
        Box::pin(async move {
            let stored = tx.get(key, Isolation::Serializable).await?;
            let found = match stored.map(Owner::decode).transpose() {
                Ok(found) => found,
                Err(error) => return Ok((Err(Error::Record(error)), false)),
            };
            let epoch = found.map_or(Epoch::default(), |owner| owner.epoch);
            let owner = Owner { epoch: Epoch(epoch.0 + 1), pod };
            tx.set(key, &owner.encode());
            Ok((Ok(owner), found.is_some() && found == previous))
        })
    });
    let ((owner, continued), committed) = body.await?;
    Ok((Tenure { owner: owner?, seen: committed.version }, continued))
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
