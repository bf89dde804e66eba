//! Looking into a store without running on it: what keyspace it holds, and how much of each kind of record. Writes
//! nothing and owns nothing.

use weir_storage::{Isolation, KEYS_END, RangeQuery, Store};

use crate::Result;
use crate::keyspace::format::KeyspaceFormat;
use crate::keyspace::record::RecordKind;

/// Bytes read in one transaction.
const PAGE_BYTES: usize = 1 << 20;

/// Records of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub records: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
}

/// What the keyspace in `store` is; `None` if no broker has used it yet.
///
/// # Errors
/// If the store fails, or what it holds is damaged, of a newer version, or left by a restore that did not end.
pub async fn keyspace(store: &dyn Store) -> Result<Option<KeyspaceFormat>> {
    let stored = store.begin().get(&KeyspaceFormat::key(), Isolation::Snapshot).await?;
    Ok(stored.map(KeyspaceFormat::decode).transpose()?)
}

/// Counts every record of `store`, by kind. Reads it page by page, not at one version: while others write, the counts
/// are of no single moment.
///
/// # Errors
/// If the store fails.
pub async fn count(store: &dyn Store) -> Result<Vec<(RecordKind, Count)>> {
    let mut counts = vec![Count::default(); RecordKind::ALL.len()];
    let mut next = Some(RangeQuery::new(b"", KEYS_END).target_bytes(PAGE_BYTES));
    while let Some(query) = next {
        let page = store.begin().get_range(query.clone(), Isolation::Snapshot).await?;
        for (key, value) in &page.pairs {
            let count = &mut counts[RecordKind::index_of(key)];
            count.records += 1;
            count.bytes += (key.len() + value.len()) as u64;
        }
        next = query.after(&page);
    }
    Ok(RecordKind::ALL.iter().copied().zip(counts).collect())
}
