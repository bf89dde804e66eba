//! Reads for messages that are moved out of their log, and for those that were.

use std::sync::Arc;

use weir_env::clock::{Instant, Timestamp};

use super::log::Log;
use super::owner::Background;
use super::upkeep::{Done, READ_RETRY_WAIT, in_background};
use super::{Context, ReadRecords, load};
use crate::error::{Error, Result};
use crate::keyspace::DecodeError;
use crate::keyspace::segment::Record;

/// Bytes read in one go.
const READ_BYTES: usize = 64 * 1024;

/// Records read for messages aside.
pub(super) enum AsideRead {
    /// Of the log, from the floor on: to be moved.
    Stragglers(Vec<(u64, Record)>),
    /// Rows from this offset on: to be delivered.
    Rows(u64, ReadRecords),
}

/// The next read that a queue wants, if none is under way.
pub(super) fn next_read(context: &Context, log: &mut Log) -> Option<Background> {
    let queue = log.queue.as_ref().filter(|_| !log.reading_asides)?;
    let (stragglers, rows) = (queue.wants_stragglers(), queue.wants_asides());
    if stragglers.is_none() && rows.is_none() {
        return None;
    }
    log.reading_asides = true;
    let (store, of, id) = (Arc::clone(&context.store), log.loaded(), log.id);
    Some(in_background(async move {
        let result = match (rows, stragglers) {
            (Some(from), _) => {
                load::read_asides(&store, &id, from, READ_BYTES).await.map(|read| AsideRead::Rows(from, read))
            }
            (None, from) => {
                let from = from.unwrap_or_default();
                load::read_heads(&store, &id, from, READ_BYTES).await.map(AsideRead::Stragglers)
            }
        };
        if result.is_err() {
            tokio::time::sleep(READ_RETRY_WAIT).await;
        }
        Done::Asides { of, result }
    }))
}

/// Takes what was read.
///
/// # Errors
/// If the read failed, or rows are missing: those messages are not delivered.
pub(super) fn finish_read(
    log: &mut Log,
    result: Result<AsideRead>,
    now: Instant,
    wall: Timestamp,
) -> Result<()> {
    log.reading_asides = false;
    let Some(queue) = &mut log.queue else { return Ok(()) };
    match result? {
        AsideRead::Stragglers(records) => queue.move_aside(records),
        AsideRead::Rows(from, (records, end)) => {
            if !queue.asides_loaded(from, end, records, now, wall).is_empty() {
                return Err(Error::Record(DecodeError::Truncated("messages moved aside")));
            }
        }
    }
    Ok(())
}
