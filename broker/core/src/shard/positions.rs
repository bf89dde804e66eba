//! Positions of consumer groups on their way into the batches of a shard's owner. What they mean and what becomes of
//! those that could not be written is the affair of who sends them.

use std::sync::Arc;

use bytestring::ByteString;
use tokio::sync::oneshot;

use super::batch::Batch;
use super::log::Log;
use super::logs::key_of;
use super::mutations::Mutation;
use super::owner::ShardOwner;
use super::{Command, Owners};
use crate::catalog::Object;
use crate::error::Result;
use crate::keyspace::LogId;
use crate::keyspace::group::GroupPosition;

/// Positions in one log, by group; without one, that of the group is cleared.
#[derive(Debug)]
pub(crate) struct PendingPositions {
    pub(super) object: Arc<Object>,
    pub(super) log: LogId,
    pub(super) rows: Vec<(ByteString, Option<GroupPosition>)>,
    pub(super) reply: oneshot::Sender<Result<()>>,
}

/// Has the owner of `log`, a shard of `stream`, write positions; waits until they are durable.
///
/// # Errors
/// If they are not, as far as is known.
pub(crate) async fn write_positions(
    owners: &Owners,
    stream: &Arc<Object>,
    log: LogId,
    rows: Vec<(ByteString, Option<GroupPosition>)>,
) -> Result<()> {
    let object = Arc::clone(stream);
    let positions = |reply| Command::Positions(PendingPositions { object, log, rows, reply });
    owners.get(log.vs)?.ask(positions).await?
}

impl ShardOwner {
    /// Puts positions in line for the next batch.
    pub(super) async fn write_positions(&mut self, pending: PendingPositions) {
        match self.log_mut(&pending.object, pending.log).await {
            Ok(log) => {
                let key = key_of(&log.id);
                log.positions.push_back(pending);
                self.logs.list(key);
            }
            Err(error) => _ = pending.reply.send(Err(error)),
        }
    }
}

/// Adds what waits of `log` to a batch, as far as there is room.
pub(super) fn add(batch: &mut Batch, log: &mut Log) {
    while !batch.mutations.is_full()
        && let Some(pending) = log.positions.pop_front()
    {
        for (group, position) in pending.rows {
            let key = GroupPosition::key(&log.id, &group);
            batch.mutations.push(match position {
                Some(position) => Mutation::Set(key, position.encode().into()),
                None => Mutation::Clear(key),
            });
        }
        batch.positions.push(pending.reply);
    }
}
