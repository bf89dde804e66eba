//! Places of streams where what is stored cannot be read, which stop everybody who comes there.
//!
//! Finds out which segment or message it is when the read of a page has failed, and says so once for each place, however
//! many readers come there again and again. Must never change what is stored. Owns the places that were told.

use std::collections::BTreeSet;

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use weir_storage::{Isolation, RangeQuery, SharedStore, Transaction};

use super::shard::PAGE_BYTES;
use crate::error::{Error, Result};
use crate::keyspace::segment::{self, SegmentReader};
use crate::keyspace::{DecodeError, LogId, last_value, tag};
use crate::shard::blob;

/// Places that are remembered; with one more, all of them may be told again.
const PLACES_MAX: usize = 10_000;

/// A place of a stream where what is stored cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "what is stored at {shard}:{at} is damaged ({why}) and stops all who read this shard: restore the store from a \
     backup, or give up what comes before {shard}:{next}: `weir stream trim {stream} --before {shard}:{next}`"
)]
pub struct Damage {
    /// Name of the stream.
    pub stream: String,
    /// The shard.
    pub shard: u8,
    /// Offset of the first message that cannot be read.
    pub at: u64,
    /// Offset of the first one after it that may be.
    pub next: u64,
    /// What is wrong with it.
    pub why: DecodeError,
}

/// Which places were told.
#[derive(Debug)]
pub(crate) struct Damages {
    told: Mutex<BTreeSet<(LogId, u64)>>,
    count: Counter,
}

impl Damages {
    pub(super) fn new(count: Counter) -> Self {
        Self { told: Mutex::default(), count }
    }

    /// Tells people, unless they have been told of this place.
    pub(super) fn tell(&self, log: &LogId, damage: &Damage) {
        let is_new = {
            let mut told = self.told.lock();
            if told.len() >= PLACES_MAX {
                told.clear();
            }
            told.insert((*log, damage.at))
        };
        if is_new {
            self.count.inc();
            let Damage { stream, shard, at, .. } = damage;
            tracing::warn!(stream, shard, base = at, error = %damage, "read stream");
        }
    }
}

/// Where a log cannot be read.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) at: u64,
    pub(super) next: u64,
    pub(super) why: DecodeError,
}

/// The first place from `from` on, where the read of a page has failed, that cannot be read; none if that was but
/// because it was removed meanwhile. `end` is the end of the log.
///
/// # Errors
/// If the store fails.
pub(super) async fn locate(
    store: &SharedStore,
    log: &LogId,
    last_value: bool,
    (from, end): (u64, u64),
) -> Result<Option<Found>> {
    // All at one version: what retention removes is not damaged.
    let mut tx = store.begin();
    if last_value { in_rows(&mut *tx, log, from).await } else { in_segments(&mut *tx, log, from, end).await }
}

async fn in_segments(tx: &mut dyn Transaction, log: &LogId, from: u64, end: u64) -> Result<Option<Found>> {
    let after = segment::key(log, from.saturating_add(1));
    let (_, all_end) = log.range(tag::SEGMENT);
    let first = RangeQuery {
        begin: segment::key(log, 0).into(),
        end: after.clone().into(),
        limit: 1,
        target_bytes: 0,
        reverse: true,
    };
    let mut pairs = tx.get_range(first, Isolation::Snapshot).await?.pairs;
    // More than the page that failed.
    let others = RangeQuery::new(after, &all_end[..]).target_bytes(2 * PAGE_BYTES);
    pairs.extend(tx.get_range(others, Isolation::Snapshot).await?.pairs);
    for (key, value) in pairs {
        let base = segment::base_of_key(&key)?;
        let why = match damage_of(tx, log, base, value, from).await? {
            None => continue,
            Some((Some(at), why)) => return Ok(Some(Found { at, next: at.saturating_add(1), why })),
            Some((None, why)) => why,
        };
        let next = RangeQuery::new(segment::key(log, base.saturating_add(1)), &all_end[..]).limit(1);
        let next = tx.get_range(next, Isolation::Snapshot).await?.pairs.pop();
        let next = next.map(|(key, _)| segment::base_of_key(&key)).transpose()?.unwrap_or(end);
        return Ok(Some(Found { at: base, next, why }));
    }
    Ok(None)
}

/// Why the segment at `base` cannot be read, and, if that is one message of it, from `from` on, whose payload is not
/// there, which.
async fn damage_of(
    tx: &mut dyn Transaction,
    log: &LogId,
    base: u64,
    value: Bytes,
    from: u64,
) -> Result<Option<(Option<u64>, DecodeError)>> {
    let mut segment = match SegmentReader::open(base, value) {
        Ok(segment) => segment,
        Err(why) => return Ok(Some((None, why))),
    };
    loop {
        let (offset, record) = match segment.next_record() {
            Ok(Some(next)) => next,
            Ok(None) => return Ok(None),
            Err(why) => return Ok(Some((None, why))),
        };
        if let Some(len) = record.blob_len.filter(|_| offset >= from) {
            match blob(tx, log, offset, len).await {
                Ok(_) => {}
                Err(Error::Record(why)) => return Ok(Some((Some(offset), why))),
                Err(error) => return Err(error),
            }
        }
    }
}

async fn in_rows(tx: &mut dyn Transaction, log: &LogId, from: u64) -> Result<Option<Found>> {
    let (begin, end) = last_value::range_from(log, from);
    let rows = RangeQuery::new(begin, end).target_bytes(2 * PAGE_BYTES);
    for (key, value) in tx.get_range(rows, Isolation::Snapshot).await?.pairs {
        let at = last_value::offset_of_key(&key)?;
        let outcome = match last_value::decode(value) {
            Ok(row) => match row.blob_len {
                Some(len) => blob(tx, log, at, len).await.map(drop),
                None => Ok(()),
            },
            Err(why) => Err(Error::Record(why)),
        };
        match outcome {
            Ok(()) => {}
            Err(Error::Record(why)) => return Ok(Some(Found { at, next: at.saturating_add(1), why })),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
