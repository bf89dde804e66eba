//! Drops the oldest messages of an inbox that holds more than it may.
//!
//! A message that its session has read already may still be delivered; it counts as dropped all the same. Knows
//! rows and counts, not why there are too many.

use bytes::Bytes;
use bytestring::ByteString;
use weir_storage::{Isolation, RangeQuery, Transaction};

use super::{InboxLimits, InboxUsage, release_blob};
use crate::Result;
use crate::keyspace::inbox::{InboxBody, InboxId, InboxKeys, InboxRow};
use crate::keyspace::inbox_blob::BlobId;
use crate::keyspace::session::Incarnation;
use crate::sessions::{Retry, Shared};

/// Rows dropped in one transaction.
const ROWS_MAX: u64 = 500;
/// Bytes read for it.
const BYTES_MAX: usize = 500_000;

/// Drops what an inbox has too much of, oldest first. Returns how many messages went.
pub(super) async fn trim(
    shared: &Shared,
    client_id: &ByteString,
    incarnation: Incarnation,
    limits: &InboxLimits,
) -> Result<u64> {
    let mut dropped = 0;
    while let Some(excess) = shared.counters.excess(client_id, incarnation, limits) {
        let mut retry = Retry::new(shared.clock);
        let mut oldest = Oldest::default();
        loop {
            let mut tx = shared.store.begin();
            // An attempt that may have committed is repeated as it was: what it removed is not there to be found.
            let found = if retry.is_repeat() {
                Ok(())
            } else {
                find(shared, &mut *tx, client_id, incarnation, excess).await.map(|found| oldest = found)
            };
            let outcome = match found {
                Ok(()) => oldest.clear(&mut *tx).await,
                Err(error) => Err(error),
            };
            if let Some(outcome) = retry.commit(tx, outcome).await {
                outcome?;
                break;
            }
        }
        // Nothing is there: it is on its way, and whoever adds it trims.
        let Oldest { gone, last: Some(last), .. } = oldest else { break };
        shared.counters.trimmed(client_id, incarnation, gone, last);
        dropped += gone.messages;
    }
    Ok(dropped)
}

/// The oldest messages of an inbox, as many as are to go in one transaction.
#[derive(Debug, Default)]
struct Oldest {
    gone: InboxUsage,
    last: Option<InboxId>,
    rows: Vec<Bytes>,
    /// With what refers to them.
    blobs: Vec<(BlobId, Vec<u8>)>,
}

impl Oldest {
    async fn clear(&self, tx: &mut dyn Transaction) -> Result<()> {
        for (blob, reference) in &self.blobs {
            release_blob(tx, blob, reference).await?;
        }
        self.rows.iter().for_each(|key| tx.clear(key));
        Ok(())
    }
}

async fn find(
    shared: &Shared,
    tx: &mut dyn Transaction,
    client_id: &ByteString,
    incarnation: Incarnation,
    excess: InboxUsage,
) -> Result<Oldest> {
    let keys = InboxKeys::new(&shared.keys(client_id), incarnation);
    let (begin, end) = keys.range();
    let rows = if excess.bytes > 0 { ROWS_MAX } else { excess.messages.clamp(1, ROWS_MAX) };
    let query = RangeQuery::new(begin, end)
        .limit(usize::try_from(rows).unwrap_or(usize::MAX))
        .target_bytes(BYTES_MAX);
    let page = tx.get_range(query, Isolation::Serializable).await?;
    let mut oldest = Oldest::default();
    for (key, value) in page.pairs {
        let gone = &mut oldest.gone;
        if gone.messages >= excess.messages && gone.bytes >= excess.bytes {
            break;
        }
        let id = keys.decode(key.clone())?;
        gone.messages += 1;
        gone.bytes += match InboxRow::decode(&id, value)?.body {
            InboxBody::Inline(encoded) => encoded.len() as u64,
            InboxBody::Blob { id, len } => {
                let reference = id.reference(client_id, incarnation, shared.virtual_shards);
                oldest.blobs.push((id, reference));
                len
            }
        };
        oldest.rows.push(key);
        oldest.last = Some(id);
    }
    Ok(oldest)
}
