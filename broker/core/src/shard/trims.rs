//! Cuts of a stream's log that people ask for: everything below an offset goes, at once and for good.
//!
//! The cut is found in the background and made by the next batch, as one of retention is; of a compacted log the next
//! batches remove row by row what is below. Whoever asked is told when the new start is in the store. The log owns what
//! waits.

use std::sync::Arc;

use tokio::sync::oneshot;
use weir_storage::{Isolation, RangeQuery};

use super::log::{IndexPlace, Log, Trim};
use super::logs::key_of;
use super::owner::ShardOwner;
use super::retention::{PAGE as INDEX_PAGE, read_index};
use super::upkeep::{Done, in_background};
use super::{Context, Extent};
use crate::catalog::Object;
use crate::error::{Error, Result};
use crate::keyspace::log_state::LogState;
use crate::keyspace::segment::{self, SegmentReader};
use crate::keyspace::time_index::IndexEntry;
use crate::keyspace::{LogId, tag};

/// Who waits for a log to begin at an offset.
pub(crate) type TrimReply = oneshot::Sender<Result<Extent>>;

impl ShardOwner {
    /// Cuts `id` so that it begins at `below`, or at its end.
    pub(super) async fn trim(&mut self, object: &Arc<Object>, id: LogId, below: u64, reply: TrimReply) {
        let context = self.context.clone();
        let log = match self.log_mut(object, id).await {
            Ok(log) => log,
            Err(error) => {
                // Nobody is told if whoever asked has gone.
                let _ = reply.send(Err(error));
                return;
            }
        };
        let below = below.min(log.state.next);
        log.trims.push((below, reply));
        log.answer_trims();
        if log.state.start >= below {
            return;
        }
        if let Some(rows) = &mut log.rows {
            rows.trim(below);
            self.logs.list(key_of(&id));
        } else {
            let (of, state, first) = (log.loaded(), log.state, log.first);
            self.background.push(in_background(async move {
                let result = find(&context, &of.id, &state, first, below).await;
                Done::Trim { of, below, result }
            }));
        }
    }

    /// Makes the cut that was found with the next batch.
    pub(super) fn finish_trim(&mut self, id: LogId, below: u64, result: Result<Option<Trim>>) {
        let key = key_of(&id);
        let Some(log) = self.logs.get_mut(key) else { return };
        match result {
            Ok(Some(trim)) => {
                log.cut_by(trim);
                self.logs.list(key);
            }
            // Retention was faster.
            Ok(None) => log.answer_trims(),
            Err(error) => {
                for (_, reply) in log.trims.extract_if(.., |(at, _)| *at == below) {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }
}

impl Log {
    /// Cuts with the next batch, if that is beyond the cut that is to be made already.
    pub(super) fn cut_by(&mut self, trim: Trim) {
        let is_beyond = self.trim.is_none_or(|other| (other.start, other.base) < (trim.start, trim.base));
        self.trim = self.trim.filter(|_| !is_beyond).or(Some(trim));
    }

    /// Tells those who waited for the log to begin where it does.
    pub(super) fn answer_trims(&mut self) {
        let (start, next) = (self.state.start, self.state.next);
        for (_, reply) in self.trims.extract_if(.., |(below, _)| *below <= start) {
            let _ = reply.send(Ok(Extent { start, next }));
        }
    }

    /// They wait in vain.
    pub(super) fn refuse_trims(&mut self, error: &Error) {
        for (_, reply) in self.trims.drain(..) {
            let _ = reply.send(Err(error.clone()));
        }
    }
}

/// The cut of `log`, whose state is `state` and whose time index begins at `first`, at `below`; none if nothing is stored
/// below it any more.
async fn find(
    context: &Context,
    log: &LogId,
    state: &LogState,
    first: IndexPlace,
    below: u64,
) -> Result<Option<Trim>> {
    let everything = Trim {
        start: state.next,
        from: first,
        base: state.next,
        // No segment that begins earlier stays, and none that comes can begin earlier.
        first_ts: state.last_ts,
        bytes_trimmed: state.bytes_appended,
        is_partial: false,
    };
    if below >= state.next {
        return Ok(Some(everything));
    }
    let mut tx = context.store.begin();
    let (begin, _) = log.range(tag::SEGMENT);
    let query = RangeQuery {
        begin: begin.into(),
        end: segment::key(log, below.saturating_add(1)).into(),
        limit: 1,
        target_bytes: 0,
        reverse: true,
    };
    let Some((key, value)) = tx.get_range(query, Isolation::Snapshot).await?.pairs.pop() else {
        return Ok(None);
    };
    let base = segment::base_of_key(&key)?;
    let (first_ts, bytes_trimmed) = match SegmentReader::open(base, value) {
        Ok(segment) => (segment.header().first_ts, segment.header().log_bytes_before),
        // It may be to get rid of this one, which the time index knows too.
        Err(error) => match find_entry(context, log, first, base).await? {
            Some(entry) => (entry.first_ts, entry.log_bytes_before),
            None => return Err(error.into()),
        },
    };
    Ok(Some(Trim { start: below, base, first_ts, bytes_trimmed, ..everything }))
}

/// The segment at `base` in the time index of `log`, which has nothing before `first`; all that comes before it is read.
async fn find_entry(
    context: &Context,
    log: &LogId,
    first: IndexPlace,
    base: u64,
) -> Result<Option<IndexEntry>> {
    let mut from = first;
    loop {
        let (entries, more) = read_index(context, log, from, INDEX_PAGE).await?;
        if let Some(entry) = entries.iter().find(|entry| entry.base >= base) {
            return Ok(Some(*entry).filter(|entry| entry.base == base));
        }
        match entries.last() {
            Some(last) if more => {
                from = IndexPlace { base: last.base.saturating_add(1), ..IndexPlace::of(last) }
            }
            _ => return Ok(None),
        }
    }
}
