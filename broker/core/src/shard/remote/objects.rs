//! Queues and streams as other pods name them: by id, and by how often they have changed.
//!
//! A pod may know of a change before this one does, which then waits a moment. What only other pods ask for, such as
//! what orphans hold, is read from the store. Holds the objects asked for, until the catalog changes.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::timeout;
use weir_env::seed::HashMap;

use crate::catalog::{Catalog, CatalogView, Object};
use crate::cluster::message::shard::ObjectRef;
use crate::definition::Kind;
use crate::error::{Error, Result};

/// How long a change is waited for of which another pod knows.
const CHANGE_TIME: Duration = Duration::from_secs(2);

/// The objects asked for.
#[derive(Debug)]
pub(super) struct Objects {
    catalog: Arc<Catalog>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    view: Option<Arc<CatalogView>>,
    by_id: HashMap<u32, Arc<Object>>,
}

impl Objects {
    pub(super) fn new(catalog: Arc<Catalog>) -> Self {
        Self { catalog, known: Mutex::default() }
    }

    /// The queue or stream that `reference` names.
    ///
    /// # Errors
    /// [`Error::Closed`] if there is none.
    pub(super) async fn find(&self, reference: ObjectRef) -> Result<Arc<Object>> {
        let is_new = |object: &Arc<Object>| object.generation >= reference.generation;
        let first = self.look(reference.id);
        if let Some(object) = first.filter(is_new) {
            return Ok(object);
        }
        let mut changes = self.catalog.changes();
        let awaited = async {
            loop {
                changes.borrow_and_update();
                if let Some(object) = self.look(reference.id).filter(is_new) {
                    return object;
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        if let Ok(object) = timeout(CHANGE_TIME, awaited).await {
            return Ok(object);
        }
        if let Some(object) = self.look(reference.id) {
            return Ok(object);
        }
        let stored = self.catalog.stored().await.into_iter().map(|(_, object)| object);
        let found = stored.into_iter().find(|object| object.id == reference.id).ok_or(Error::Closed)?;
        self.known.lock().by_id.insert(found.id, Arc::clone(&found));
        Ok(found)
    }

    fn look(&self, id: u32) -> Option<Arc<Object>> {
        let view = self.catalog.view();
        let mut known = self.known.lock();
        if !known.view.as_ref().is_some_and(|known| Arc::ptr_eq(known, &view)) {
            known.by_id =
                [Kind::Queue, Kind::Stream].into_iter().flat_map(|kind| view.all(kind)).map(named).collect();
            known.view = Some(view);
        }
        known.by_id.get(&id).cloned()
    }
}

fn named(object: &Arc<Object>) -> (u32, Arc<Object>) {
    (object.id, Arc::clone(object))
}
