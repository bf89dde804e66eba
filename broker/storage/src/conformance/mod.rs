//! What every engine must do, as tests that any crate with an engine can run; see
//! [`conformance!`](crate::conformance!).
//!
//! Knows the contract alone. Each case keeps to a key prefix of its own, new in each run and cleared at its end,
//! so the suite may run on a store that holds other data, and several times at once. A case fails by panicking.

mod concurrency;
mod conflicts;
mod data;
mod history;
mod lifecycle;
mod limits;
mod own_writes;
mod visibility;

use std::any::Any;
use std::fmt::Debug;

use bytes::Bytes;
use weir_env::seed::Seed;

pub use self::history::{History, Tally};
use crate::{Committed, Error, Isolation, RangeQuery, Result, SharedStore, Transaction, prefix_end};

/// The cases of the suite.
pub mod cases {
    pub use super::concurrency::*;
    pub use super::conflicts::*;
    pub use super::data::*;
    pub use super::lifecycle::*;
    pub use super::limits::*;
    pub use super::own_writes::*;
    pub use super::visibility::*;
}

/// Random histories that a fixture is checked with if it does not say otherwise.
const HISTORIES: u64 = 20;

/// A store to test, and what must live as long as it does (its folder, say).
#[derive(Debug)]
pub struct Fixture {
    store: SharedStore,
    histories: u64,
    _keep: Box<dyn Any + Send>,
}

impl Fixture {
    /// `store`, with `keep` dropped after it.
    #[must_use]
    pub fn new(store: SharedStore, keep: impl Any + Send) -> Self {
        Self { store, histories: HISTORIES, _keep: Box::new(keep) }
    }

    /// Runs this many random histories, for an engine that is faster or slower than most.
    #[must_use]
    pub const fn histories(mut self, count: u64) -> Self {
        self.histories = count;
        self
    }
}

/// What a case works on: a store and a prefix of its own.
#[derive(Clone, Debug)]
pub struct Subject {
    store: SharedStore,
    prefix: Vec<u8>,
    histories: u64,
}

/// Expands to one test per case: `conformance!(engine, [#[tokio::test(start_paused = true)]], make())`, where
/// `make()` is a future of a [`Fixture`](crate::conformance::Fixture), or of an `Option` of one that is `None` where
/// the engine can't be tested; it then says so. Time may be paused or real; the cases
/// about old transactions sleep six seconds of it.
#[macro_export]
macro_rules! conformance {
    ($engine:ident, $attributes:tt, $make:expr) => {
        mod $engine {
            use super::*;

            $crate::conformance!(@each $attributes, $make,
                keys_are_ordered_as_bytes
                ranges_honour_limit_target_and_direction
                prefixes_hold_what_begins_with_them
                own_writes_are_read
                a_transaction_reads_what_a_map_would_hold
                clear_range_removes_exactly_its_keys
                the_last_write_of_a_transaction_wins
                versionstamps_are_unique_ordered_and_as_returned
                stamps_of_concurrent_commits_are_in_the_order_of_the_commits
                reads_see_one_version
                a_commit_is_seen_by_whoever_begins_after_it
                without_a_commit_nothing_is_left
                a_chosen_read_version_is_read
                a_version_never_given_out_is_refused
                what_is_cancelled_is_whole_or_absent
                what_was_read_and_then_written_conflicts
                a_new_key_in_a_range_read_conflicts
                a_page_conflicts_on_what_it_returned
                pages_conflict_as_the_range_they_make_up
                a_stamped_key_conflicts_where_it_comes_to_lie
                snapshot_reads_never_conflict
                added_conflicts_count_as_reads_and_writes
                empty_conflict_ranges_count_for_nothing
                blind_writes_and_readers_never_conflict
                a_stale_fence_conflicts
                an_old_transaction_is_too_old
                sizes_are_limited_exactly
                everything_in_a_transaction_counts_towards_its_size
                a_transaction_full_of_small_writes_is_taken
                watches_fire_on_changes
                watches_see_changes_made_before_they_are_armed
                a_watch_of_a_refused_transaction_fires
                a_change_that_is_undone_leaves_a_watch_armed_or_fired
                each_of_many_watches_waits_for_its_own_key
                money_is_neither_made_nor_lost
                a_ring_stays_one_ring
                lists_grow_by_appending
                one_owner_at_a_time
                histories_are_serializable
                a_closed_store_says_so
            );
        }
    };
    (@each $attributes:tt, $make:expr, $($case:ident)*) => {
        $( $crate::conformance!(@case $attributes, $make, $case); )*
    };
    (@case [$($attribute:tt)*], $make:expr, $case:ident) => {
        $($attribute)*
        async fn $case() {
            $crate::conformance::check($make.await, stringify!($case), $crate::conformance::cases::$case).await;
        }
    };
}

/// Runs one case and closes the store; does nothing without a fixture.
pub async fn check<F: Future<Output = ()>>(
    fixture: impl Into<Option<Fixture>>,
    name: &str,
    case: impl FnOnce(Subject) -> F,
) {
    let Some(fixture) = fixture.into() else { return };
    let run = u128::from_be_bytes(Seed::from_entropy().next_id());
    let prefix = format!("conformance/{name}/{run:032x}/").into_bytes();
    let (store, histories) = (SharedStore::clone(&fixture.store), fixture.histories);
    let subject = Subject { store, prefix: prefix.clone(), histories };
    case(subject).await;
    let mut tx = fixture.store.begin();
    tx.clear_range(&prefix, &prefix_end(&prefix));
    match tx.commit().await {
        Ok(_) => fixture.store.close().await,
        // The case has closed it.
        Err(Error::Unavailable(_)) => {}
        Err(error) => panic!("unexpected error: {error}"),
    }
}

/// Says what went wrong where a case expects success.
trait Must<T> {
    fn must(self) -> T;
}

impl<T> Must<T> for Result<T> {
    #[track_caller]
    fn must(self) -> T {
        match self {
            Ok(value) => value,
            Err(error) => panic!("unexpected error: {error}"),
        }
    }
}

/// Expects a variant of [`Error`](crate::Error).
macro_rules! assert_fails {
    ($outcome:expr, $($variant:tt)+) => {
        match $outcome {
            Err($crate::Error::$($variant)+) => {}
            other => panic!("expected {}, not {other:?}", stringify!($($variant)+)),
        }
    };
}
use assert_fails;

impl Subject {
    fn begin(&self) -> Box<dyn Transaction> {
        self.store.begin()
    }

    /// The case's key that ends in `suffix`.
    fn key(&self, suffix: impl AsRef<[u8]>) -> Vec<u8> {
        [&self.prefix, suffix.as_ref()].concat()
    }

    /// All keys of the case.
    fn all(&self) -> RangeQuery {
        RangeQuery::prefix(&self.prefix)
    }

    fn range(&self, begin: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> RangeQuery {
        RangeQuery::new(self.key(begin), self.key(end))
    }

    async fn put(&self, suffix: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Committed {
        let mut tx = self.begin();
        tx.set(&self.key(suffix), value.as_ref());
        tx.commit().await.must()
    }

    async fn get(&self, suffix: impl AsRef<[u8]>) -> Option<Bytes> {
        self.begin().get(&self.key(suffix), Isolation::Snapshot).await.must()
    }

    /// Suffixes and values of a range, as `tx` sees it.
    async fn pairs(&self, tx: &mut dyn Transaction, query: RangeQuery) -> Vec<(Vec<u8>, Vec<u8>)> {
        let page = tx.get_range(query, Isolation::Snapshot).await.must();
        page.pairs.iter().map(|(key, value)| (key[self.prefix.len()..].to_vec(), value.to_vec())).collect()
    }

    /// Suffixes of a range, as `tx` sees it, for keys that are text.
    async fn names(&self, tx: &mut dyn Transaction, query: RangeQuery) -> String {
        let pairs = self.pairs(tx, query).await;
        let names: Vec<_> = pairs.iter().map(|(key, _)| String::from_utf8_lossy(key).into_owned()).collect();
        names.join(" ")
    }
}
