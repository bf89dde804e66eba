//! What other pods have changed, read from the store again. Knows nothing of how this pod hears of it.

use std::sync::Arc;

use weir_storage::Isolation;

use super::{Catalog, Entries, Object, read_entries};
use crate::definition::Kind;
use crate::error::Result;
use crate::keyspace::catalog::CatalogEntry;

/// What became of the catalog in memory.
#[derive(Clone, Debug, Default)]
pub struct Refreshed {
    /// Changed in place.
    pub updated: Vec<Arc<Object>>,
    /// Gone with their messages; others may have their names now.
    pub deleted: Vec<Arc<Object>>,
}

impl Catalog {
    /// Reads these entries again.
    ///
    /// # Errors
    /// If the store fails or an entry is damaged; nothing has changed then.
    pub async fn refresh(&self, names: &[(Kind, String)]) -> Result<Refreshed> {
        let mut entries = self.entries.lock().await;
        // It begins behind the lock: what it reads is not older than what is known.
        let mut tx = self.store.begin();
        let mut now = entries.clone();
        for (kind, name) in names {
            let value = tx.get(&CatalogEntry::key(*kind, name), Isolation::Snapshot).await?;
            let key = (*kind, name.clone());
            match value.map(CatalogEntry::decode).transpose()? {
                Some(entry) => now.insert(key, entry),
                None => now.remove(&key),
            };
        }
        Ok(self.take_up(&mut entries, now))
    }

    /// Reads everything again.
    ///
    /// # Errors
    /// As [`Catalog::refresh`].
    pub async fn reload(&self) -> Result<Refreshed> {
        let mut entries = self.entries.lock().await;
        let mut tx = self.store.begin();
        let now = read_entries(&mut *tx, Isolation::Snapshot).await??;
        Ok(self.take_up(&mut entries, now))
    }

    fn take_up(&self, entries: &mut Entries, now: Entries) -> Refreshed {
        let before = std::mem::replace(entries, now);
        if before == *entries {
            return Refreshed::default();
        }
        self.publish(entries);
        self.tell(&before, entries);
        let updated = self.changed(&before, entries).updated;
        let is_gone = |entry: &&CatalogEntry| {
            let key = (entry.definition.kind, entry.definition.name.clone());
            entries.get(&key).is_none_or(|now| now.id != entry.id)
        };
        let deleted = before.values().filter(is_gone).map(|entry| self.object(entry)).collect();
        Refreshed { updated, deleted }
    }
}
