//! Series by a name that others chose, within a bound.
//!
//! The first so many names in use have series of their own, all others share those of [`OTHERS`]. A name is free again
//! when nobody counts under it any more. Knows no metric: whoever makes the series removes them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use weir_env::seed::HashMap;

/// The label of all that have no series of their own: no queue and no stream can have this name.
pub const OTHERS: &str = "_other";

/// The series of each name, as long as somebody holds them.
#[derive(Debug)]
pub(super) struct Names<S> {
    named: Mutex<HashMap<Arc<str>, Weak<S>>>,
    others: Mutex<Weak<S>>,
    max: AtomicUsize,
}

impl<S> Names<S> {
    /// At most `max` of them.
    pub(super) fn new(max: usize) -> Self {
        Self { named: Mutex::default(), others: Mutex::default(), max: AtomicUsize::new(max) }
    }

    /// Bounds those that come into use from now on.
    pub(super) fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// The series of `name`, or of all others; `make` makes them for a label.
    pub(super) fn get(&self, name: &str, make: impl FnOnce(Arc<str>) -> S) -> Arc<S> {
        let mut named = self.named.lock();
        if let Some(series) = named.get(name).and_then(Weak::upgrade) {
            return series;
        }
        if !named.contains_key(name) && named.len() >= self.max.load(Ordering::Relaxed) {
            let mut others = self.others.lock();
            return others.upgrade().unwrap_or_else(|| {
                let series = Arc::new(make(OTHERS.into()));
                *others = Arc::downgrade(&series);
                series
            });
        }
        let label: Arc<str> = name.into();
        let series = Arc::new(make(Arc::clone(&label)));
        named.insert(label, Arc::downgrade(&series));
        series
    }

    /// To be called when series are dropped: unless others took their place, frees `label` and has them removed.
    pub(super) fn release(&self, label: &str, remove: impl FnOnce()) {
        let mut named = self.named.lock();
        let in_use = |series: &Weak<S>| series.strong_count() > 0;
        if named.get(label).is_some_and(in_use) || (label == OTHERS && in_use(&self.others.lock())) {
            return;
        }
        named.remove(label);
        remove();
    }
}
