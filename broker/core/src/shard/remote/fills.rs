//! What an owner on another pod has added to a stream, read from the store once for all who read it here.
//!
//! Where a log has several readers in this pod, they hear of new messages when those are in the log's tail in memory.
//! Without IO: the forwarder reads what [`Forwarding::poll_fill`] names. What could not be read, or is too much, the
//! readers read by themselves.

use std::sync::Arc;

use tokio::sync::watch;
use weir_storage::SharedStore;

use super::forwarding::Forwarding;
use crate::cluster::message::shard::ToOwner;
use crate::error::Result;
use crate::keyspace::LogId;
use crate::keyspace::segment::Record;
use crate::shard::logs::LogKey;
use crate::shard::{Extent, read_records};

/// Bytes read at once; of a log to which more was added meanwhile, readers read by themselves.
const FILL_BYTES: usize = 1 << 20;
/// Readers of a log for which it is read once.
const READERS_MIN: usize = 2;

/// New messages of a log that are to be read, or being read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fill {
    key: LogKey,
    log: LogId,
    /// The end of the log, as readers know it.
    from: u64,
    /// As the owner has told it.
    to: Extent,
}

/// What was read.
pub(super) type Filled = (Fill, Result<(Vec<(u64, Arc<Record>)>, u64)>);

impl Fill {
    /// Reads it.
    pub(super) async fn run(self, store: SharedStore) -> Filled {
        let read = read_records(&store, &self.log, self.from, FILL_BYTES).await;
        (self, read)
    }
}

impl Forwarding {
    /// The owner says that a log has changed.
    pub(super) fn follow_extent(&mut self, key: LogKey, extent: Extent) {
        let Some(watched) = self.watches.get_mut(&key) else { return };
        if watched.extent.receiver_count() == 0 && watched.waiting.is_empty() {
            let log = watched.log;
            self.watches.remove(&key);
            self.say(ToOwner::Unwatch { log });
            return;
        }
        let from = watched.extent.borrow().next;
        if let Some(newest) = &mut watched.filling {
            *newest = later(*newest, extent);
        } else if watched.tail.readers() >= READERS_MIN
            && extent.next > from
            && !watched.object.definition.last_value
        {
            watched.filling = Some(extent);
            self.fills.push(Fill { key, log: watched.log, from, to: extent });
        } else {
            advance(&watched.extent, extent);
        }
    }

    /// What is to be read now.
    pub(super) fn poll_fill(&mut self) -> Option<Fill> {
        self.fills.pop()
    }

    /// Something was read, or could not be.
    pub(super) fn filled(&mut self, (fill, read): Filled) {
        let Fill { key, log, from, to } = fill;
        let Some(watched) = self.watches.get_mut(&key) else { return };
        if let Ok((mut records, end)) = read
            && end >= to.next
        {
            // More may have been added since.
            records.retain(|(offset, _)| *offset < to.next);
            watched.tail.fill((from, to.next), &records);
        }
        advance(&watched.extent, to);
        let newest = watched.filling.take().filter(|newest| newest.next > to.next || newest.start > to.start);
        if let Some(newest) = newest {
            watched.filling = Some(newest);
            self.fills.push(Fill { key, log, from: to.next, to: newest });
        }
    }
}

/// The end of a log as an owner tells it: what was told before stays true.
pub(super) fn advance(sender: &watch::Sender<Extent>, extent: Extent) {
    sender.send_if_modified(|known| {
        let now = later(*known, extent);
        std::mem::replace(known, now) != now
    });
}

fn later(one: Extent, other: Extent) -> Extent {
    Extent { start: one.start.max(other.start), next: one.next.max(other.next) }
}
