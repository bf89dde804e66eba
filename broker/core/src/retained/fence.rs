//! Who may still write what is retained, where there are other pods: a pod that is a member, for a session that nobody has
//! taken over. What a pod has in line when it is stopped would else replace what came after it by way of another pod.
//!
//! Both are read in the transaction that writes, which conflicts with their end: no clock is part of it.

use std::collections::BTreeMap;

use weir_storage::Transaction;

use super::Shared;
use crate::cluster::membership::is_member;
use crate::keyspace::session::{ClientKeys, Incarnation, SessionEpoch};
use crate::sessions::{SessionRef, read_fence};
use crate::{Error, Result};

/// What one transaction has read of those it writes for.
pub(super) struct Fences<'a>(BTreeMap<(&'a str, SessionEpoch, Incarnation), bool>);

impl<'a> Fences<'a> {
    /// Costs a read, and none without other pods.
    ///
    /// # Errors
    /// [`Error::Fenced`] if this pod is no member any more; or if the store fails.
    pub(super) async fn new(shared: &Shared, tx: &mut dyn Transaction) -> Result<Self> {
        match &shared.cluster {
            Some(cluster) if !is_member(tx, cluster.me()).await? => Err(Error::Fenced),
            Some(_) | None => Ok(Self(BTreeMap::new())),
        }
    }

    /// Whether the connection that holds, or held, `publisher` still has the session. Costs a read for each session.
    pub(super) async fn is_current(
        &mut self,
        shared: &Shared,
        tx: &mut dyn Transaction,
        publisher: Option<&'a SessionRef>,
    ) -> Result<bool> {
        let Some(session) = publisher.filter(|_| shared.cluster.is_some()) else { return Ok(true) };
        let SessionRef { client_id, epoch, incarnation, .. } = session;
        let key = (&**client_id, *epoch, *incarnation);
        if let Some(known) = self.0.get(&key) {
            return Ok(*known);
        }
        let keys = ClientKeys::new(client_id, shared.virtual_shards);
        let fence = read_fence(tx, &keys).await?;
        let holds = fence.is_some_and(|fence| fence.epoch == *epoch && fence.incarnation == *incarnation);
        self.0.insert(key, holds);
        Ok(holds)
    }
}
