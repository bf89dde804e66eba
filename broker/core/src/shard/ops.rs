//! What people ask of a log of a queue: to show, remove or give out messages. Each is one step on the owner's state;
//! what reads the store or other shards is done by whoever asks.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::owner::ShardOwner;
use crate::catalog::Object;
use crate::error::{Error, Result};
use crate::keyspace::LogId;
use crate::keyspace::segment::Record;
use crate::queue::{MessageState, StateFilter};

/// Messages that are not done: offset, where each is, and how often it was delivered without success.
pub(crate) type States = Vec<(u64, MessageState, u32)>;

/// A step.
#[derive(Debug)]
pub(crate) enum Operation {
    /// Where messages are; those that are done are left out.
    States { offsets: Vec<u64>, reply: oneshot::Sender<Result<States>> },
    /// Ends all messages before an offset: how many so far, and whether there are more.
    PurgeBelow { end: u64, reply: oneshot::Sender<Result<(u64, bool)>> },
    /// Ends messages, given with what they cost, in some state: how many.
    Purge { costs: Vec<(u64, u64)>, filter: StateFilter, reply: oneshot::Sender<Result<u64>> },
    /// Takes messages out, to be moved elsewhere: which.
    TakeOut { records: Vec<(u64, Arc<Record>)>, reply: oneshot::Sender<Result<Vec<u64>>> },
    /// What became of messages that were taken out: how many are done.
    Moved { results: Vec<(u64, bool)>, reply: oneshot::Sender<Result<u64>> },
}

impl ShardOwner {
    /// Does one step. Nobody is told if it cannot be done because whoever asked has gone.
    pub(super) async fn operate(&mut self, object: &Arc<Object>, id: LogId, operation: Operation) {
        let now = self.context.clock.now();
        let queue = match self.log_mut(object, id).await {
            Ok(log) => log.queue.as_mut().ok_or(Error::Closed),
            Err(error) => Err(error),
        };
        match operation {
            Operation::States { offsets, reply } => {
                let states = queue.map(|queue| {
                    let of = |offset: u64| {
                        queue.state_of(offset, now).map(|(state, failed)| (offset, state, failed))
                    };
                    offsets.into_iter().filter_map(of).collect()
                });
                let _ = reply.send(states);
            }
            Operation::PurgeBelow { end, reply } => {
                let _ = reply.send(queue.map(|queue| queue.purge_below(end)));
            }
            Operation::Purge { costs, filter, reply } => {
                let _ = reply.send(queue.map(|queue| queue.purge(&costs, filter, now)));
            }
            Operation::TakeOut { records, reply } => {
                let _ = reply.send(queue.map(|queue| queue.take_out(records, now)));
            }
            Operation::Moved { results, reply } => {
                let _ = reply.send(queue.map(|queue| queue.moved(&results)));
            }
        }
        self.touch_log(id);
    }
}
