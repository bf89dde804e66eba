//! What makes a pod of many the one with the coordinator of a stream: that it owns the stream's first shard, since one
//! epoch. Positions are written under that fence, and no coordinator before or after can write between.

use std::sync::Arc;

use bytestring::ByteString;
use weir_storage::{ConflictKind, Isolation};

use crate::catalog::Object;
use crate::cluster::Cluster;
use crate::definition::Kind;
use crate::error::{Error, Result};
use crate::keyspace::catalog::CatalogEntry;
use crate::keyspace::group::GroupPosition;
use crate::keyspace::owner::Owner;
use crate::keyspace::{LogId, VirtualShard};
use crate::shard::Context;

/// The time for which this pod owns the first shard of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Term {
    vs: VirtualShard,
    owner: Owner,
}

impl Term {
    /// The term of this pod, if it has one now, as far as is known.
    pub(super) fn of(cluster: &Cluster, stream: &Object) -> Option<Self> {
        let vs = stream.logs.first()?.vs;
        let owner = cluster.record_of(vs).filter(|owner| owner.pod == cluster.me())?;
        Some(Self { vs, owner })
    }

    /// Whether it is not over, as far as is known.
    pub(super) fn is_current(&self, cluster: &Cluster) -> bool {
        cluster.record_of(self.vs) == Some(self.owner)
    }

    /// Writes positions in `log`, a shard of `stream`; without one, that of the group is cleared.
    ///
    /// # Errors
    /// [`Error::Fenced`] if the term is over, [`Error::Closed`] if the stream is deleted, and if the store fails. What may
    /// have been written nevertheless is not written after what is written next.
    pub(super) async fn write_positions(
        &self,
        context: &Context,
        stream: &Arc<Object>,
        log: LogId,
        rows: Vec<(ByteString, Option<GroupPosition>)>,
    ) -> Result<()> {
        let mut tx = context.store.begin();
        let owner = tx.get(&Owner::key(self.vs), Isolation::Serializable).await?;
        if owner.map(Owner::decode).transpose()? != Some(self.owner) {
            return Err(Error::Fenced);
        }
        let entry = CatalogEntry::key(Kind::Stream, &stream.definition.name);
        let entry = tx.get(&entry, Isolation::Serializable).await?.map(CatalogEntry::decode).transpose()?;
        if entry.is_none_or(|entry| entry.id != stream.id) {
            return Err(Error::Closed);
        }
        for (group, position) in rows {
            let key = GroupPosition::key(&log, &group);
            // Of two writes whose outcomes are open, the older one does not come last.
            tx.add_conflict_key(&key, ConflictKind::Read);
            match position {
                Some(position) => tx.set(&key, &position.encode()),
                None => tx.clear(&key),
            }
        }
        tx.commit().await?;
        Ok(())
    }
}
