//! The storage contract: an ordered key-value store with serializable, optimistic transactions.
//!
//! Engines differ in where bytes live, never in what a caller sees: the limits in [`limits`], the isolation
//! and the outcomes in [`Error`] hold on every engine, and one conformance suite checks them all. The crate
//! knows nothing of MQTT.
//!
//! A [`Transaction`] reads at one version, buffers its writes, and commits if nothing it read has been
//! written since. The closure given to [`transact()`] may run more than once, so it must have no side effects.
//!
//! # Isolation
//! Transactions are strictly serializable. All that committed writes stand in one order, that of their
//! [`Versionstamp`]s, and each of them could have run alone at its place: its serializable reads would have
//! returned the same. The order agrees with time: a transaction whose first read begins after another one's commit
//! has returned comes after it and sees it. A transaction without writes stands at its read version and always
//! commits.
//! * Every read, of whichever [`Isolation`], sees the store at the one read version and the transaction's own writes
//!   on top, also in a transaction that is refused later. Nobody sees part of a commit.
//! * A commit is refused if a key that was read serializably, or added as a read conflict, was written after the read
//!   version, or added as a write conflict: also with the value it had, also if it was absent before and after. A
//!   range counts with the keys that are not in it; a page that was cut short counts as far as it goes, so that
//!   [`RangePage::more`] may no longer hold at the commit. Neighbours of a key never count. Engines may refuse a
//!   commit without need, but rarely.
//! * Snapshot reads and blind writes never conflict. A transaction with snapshot reads is as isolated as it makes
//!   itself by adding conflicts.
//! * Whether what a transaction has itself written counts as read is left to the engine: a read conflict is added
//!   *before* the key is written.
//! * [`Transaction::set_read_version`] gives up agreement with time for the reads, not serializability.
//!
//! # Versions
//! Versions grow with every commit, over restarts too, and jump by any amount: they can be compared, not counted, and
//! tell no time. A read at a version sees every commit up to and including it. Transactions of one batch commit at
//! one version; the last two bytes of their stamps tell their order. A stamp belongs to one transaction, so keys that
//! one transaction stamps must differ elsewhere; their order is that of what follows the stamp.
//!
//! # Outcomes
//! Whoever commits writes must expect each of these; [`transact()`] sees to the second row only.
//!
//! | outcome | has it happened | what the caller does |
//! |---|---|---|
//! | [`Committed`] | yes, durably; everybody who begins from now on sees it | goes on |
//! | [`Error::Conflict`], [`Error::TooOld`], [`Error::Busy`] | no, and never will | runs it again from the start, with fresh reads; after `Busy` after a pause |
//! | [`Error::TooLarge`] | no, and never will | divides it; again is in vain |
//! | [`Error::UnknownSettled`] | perhaps, but not from now on | repeats it in a way that is harmless if it has happened: see below |
//! | [`Error::UnknownOpen`] | perhaps, or later | shuts it out first: see below |
//! | [`Error::Unavailable`] | no, and never will | gives up or tries later; says so to whoever waits |
//! | [`Error::Damaged`] | no | stops: a person must act |
//!
//! An unknown outcome *sticks*: when a repeat conflicts, or finds the store unavailable, the first attempt may still
//! have happened. Two kinds of writers get by without reading what they wrote:
//! * **One owner under a fence** (appends) writes the same keys with the same bytes. After `UnknownSettled` it repeats
//!   exactly that. After `UnknownOpen` the old bytes may come at any later moment, so it gives up its epoch: it takes
//!   over at the next one, which fences off what is still in flight, and reads the tail.
//! * **Anybody else** reads and writes one key in the transaction, a mark or a fence of its own. The repeat writes what
//!   the first attempt has read, so that one of the two conflicts; finding its own mark it knows that it is done.
//!
//! # The fence, in one round trip
//! An owner keeps the version at which it last saw its ownership record. A commit with that version set
//! ([`Transaction::set_read_version`]), the record's key as read conflict and blind writes needs no read. It commits
//! if the record has not changed since that version, and never otherwise; [`Error::TooOld`] means that the ownership
//! must be read again, which an owner does at least once in [`limits::LIFETIME`].
//!
//! # Futures that are dropped
//! Reads ([`Transaction::read_version`], [`Transaction::get`], [`Transaction::get_range`]) change nothing: the
//! transaction can go on, and may conflict on what was being read. A dropped [`Transaction::commit`] is
//! [`Error::UnknownOpen`]. [`Watch::changed`] and [`Store::failed`] can be waited for again. A dropped [`Store::close`]
//! is called again. A transaction that is dropped before its commit leaves no trace.
//!
//! # Waiting
//! Nothing waits for ever but [`Store::failed`] and [`Watch::changed`]. An engine that asks other machines gives up
//! in time of its own: reads as `Unavailable` or `Busy`, commits that may be under way as `UnknownOpen`.
//!
//! # Watches
//! A [`Watch`] is armed by the commit of its transaction and fires, once, when the key no longer has the value which
//! that transaction saw or wrote. It may fire for no reason, and may miss a change that was undone. It fires too when
//! the transaction is refused or dropped and when the store closes. One more than the engine has room for is never
//! armed, and an engine may lose one: whoever waits reads the key again now and then. It says nothing of the value.
//!
//! # Size of a transaction
//! A write counts its key twice and its value; a range cleared, read or added as a conflict counts both ends. A key
//! read or added as a conflict counts as the range that holds it alone. Each counts [`limits::OPERATION_BYTES`] besides.
//! Every call counts, also one that repeats or undoes an earlier one. Snapshot reads do not. [`TransactionSize`] is the
//! one place that counts. Limits are checked at the commit, before anything is written.
//!
//! FoundationDB takes 10 MB, in which a key occurs in its mutation and in both ends of its conflict range, each time with
//! the prefix of the installation, and each mutation and range has a size of its own. Counted like this, a transaction
//! within our limit is within that one too, however small its keys and values are.

pub mod backup;
pub mod conformance;
mod embedded;
mod fault;
mod local;
mod memory;
mod meter;
pub mod pending;
mod range;
mod size;
mod snapshot;
mod stats;
mod transact;
mod watch;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub use embedded::{EmbeddedOptions, EmbeddedStore};
pub use fault::{CommitFault, FaultHandle, FaultRates, FaultStore, WatchFault};
pub use memory::MemoryStore;
pub use meter::{Classify, Cost, Meter, MeteredStore, Outcome};
pub use range::{RangePage, RangeQuery, key_after, prefix_end};
pub use size::TransactionSize;
pub use snapshot::{KEYS_END, Snapshot, snapshot};
pub use stats::StoreStats;
pub use transact::{BodyFuture, transact};
pub use watch::{Watch, WatchTrigger};

/// Limits in force on every engine.
pub mod limits {
    use std::time::Duration;

    /// Longest key, in bytes.
    pub const KEY_BYTES_MAX: usize = 2_000;
    /// Longest value, in bytes.
    pub const VALUE_BYTES_MAX: usize = 90_000;
    /// What each write and each range counts besides its bytes.
    pub const OPERATION_BYTES: usize = 96;
    /// Size a transaction should stay below, as [`TransactionSize`](super::TransactionSize) counts.
    pub const TRANSACTION_BYTES_TARGET: usize = 1_000_000;
    /// Size from which a commit fails with [`Error::TooLarge`](super::Error::TooLarge).
    pub const TRANSACTION_BYTES_MAX: usize = 4_000_000;
    /// Age of the read version from which reads and commits fail with [`Error::TooOld`](super::Error::TooOld).
    pub const LIFETIME: Duration = Duration::from_secs(5);
}

/// A point in the store's history. Versions grow with every commit, also across restarts; they are not a
/// clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// Greater than any that a store comes to, with room to go on above it: FoundationDB counts in 63 bits.
    pub const MAX: Self = Self(u64::MAX / 4);
}

/// Ten bytes, unique and ordered by commit: the commit version (8, big-endian) and the place in its batch (2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Versionstamp(pub [u8; 10]);

impl Versionstamp {
    /// The stamp of the transaction at place `order` of the batch that committed as `version`.
    #[must_use]
    pub fn new(version: Version, order: u16) -> Self {
        let mut stamp = [0; 10];
        stamp[..8].copy_from_slice(&version.0.to_be_bytes());
        stamp[8..].copy_from_slice(&order.to_be_bytes());
        Self(stamp)
    }
}

/// Proof of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The version at which the writes are visible; for a read-only transaction its read version.
    pub version: Version,
    /// What replaced the placeholders of this transaction's versionstamped keys and values; `None` for a
    /// read-only transaction.
    pub versionstamp: Option<Versionstamp>,
}

/// Why a store operation did not succeed. What a caller does next depends on the variant alone.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Something this transaction read was written meanwhile; nothing was committed. Run it again.
    #[error("conflict with a concurrent transaction")]
    Conflict,
    /// The read version is older than [`limits::LIFETIME`]; nothing was committed. Run it again.
    #[error("transaction too old")]
    TooOld,
    /// A key, a value or the whole transaction is over its limit; nothing was committed. Repeating cannot help.
    #[error("{what} of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// `key`, `value` or `transaction`.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The commit may or may not have happened, and is no longer in flight: what is read from now on tells which.
    #[error("commit outcome unknown, no longer in flight")]
    UnknownSettled,
    /// The commit may or may not have happened, and may still happen at any later time, unless something it has read
    /// is written first. So is one whose future was dropped.
    #[error("commit outcome unknown, still in flight")]
    UnknownOpen,
    /// The store has too much to do, or is about to be ready; nothing was committed. Run it again after a pause.
    #[error("store busy: {0}")]
    Busy(Arc<str>),
    /// The store does not answer or refuses work for now; nothing was committed.
    #[error("store unavailable: {0}")]
    Unavailable(Arc<str>),
    /// The stored bytes are damaged or of another format: a person must act.
    #[error("store damaged: {0}")]
    Damaged(Arc<str>),
}

impl Error {
    /// Whether running the same transaction again from the start is safe and may succeed.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Conflict | Self::TooOld | Self::Busy(_))
    }

    /// Whether the commit may have happened.
    #[must_use]
    pub const fn may_have_committed(&self) -> bool {
        matches!(self, Self::UnknownSettled | Self::UnknownOpen)
    }
}

/// The result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whether a read takes part in conflict detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// The transaction conflicts with a later write of what it read.
    Serializable,
    /// The same version is read, but the read never conflicts.
    Snapshot,
}

/// Which set a conflict range is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictKind {
    /// As if the range had been read at the read version.
    Read,
    /// As if the range had been written.
    Write,
}

/// A store. Cheap to share; see [`SharedStore`].
#[async_trait]
pub trait Store: Send + Sync + Debug + 'static {
    /// Starts a transaction. Its read version is taken at its first read, or by
    /// [`Transaction::set_read_version`].
    fn begin(&self) -> Box<dyn Transaction>;

    /// A short name of the engine, for logs and metrics: `memory`, `embedded`, `fdb`.
    fn engine(&self) -> &'static str;

    /// What the engine has counted since it was opened, if it counts.
    fn engine_stats(&self) -> Option<Arc<StoreStats>> {
        None
    }

    /// The store as it is now, kept readable for as long as the snapshot lives; `None` if the engine cannot keep a
    /// version longer than [`limits::LIFETIME`]. Call [`snapshot()`], which works on every engine.
    async fn hold(&self) -> Option<Result<Box<dyn Snapshot>>> {
        None
    }

    /// Makes every later version, and so every later versionstamp, greater than `version`: for records that come from
    /// another store with their versionstamps. Call it before anything else is done with the store.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the store is not that far and the engine cannot be moved on, or not beyond
    /// [`Version::MAX`].
    async fn advance(&self, version: Version) -> Result<()> {
        let now = self.begin().read_version().await?;
        if now > version {
            return Ok(());
        }
        let why = format!("its version is {} and has to be beyond {}", now.0, version.0);
        Err(Error::Unavailable(why.into()))
    }

    /// Waits until the store can never commit again, and says why; reads may go on. On a healthy store this waits
    /// for ever, also when it is closed. Cancel-safe.
    async fn failed(&self) -> Arc<str>;

    /// What there is to tell people about the store, as names and values: versions, where it is, what it consists
    /// of. Asks the store, so it takes as long as a read.
    async fn describe(&self) -> Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
    }

    /// Finishes commits in flight and lets go of files and threads. Operations after it are
    /// [`Error::Unavailable`].
    async fn close(&self);
}

/// A store behind a shared handle.
pub type SharedStore = Arc<dyn Store>;

/// One transaction. Dropping it without a commit leaves no trace.
///
/// Reads see this transaction's own writes, except versionstamped keys and values: before the commit these read
/// as if they had not been written.
#[async_trait]
pub trait Transaction: Send + Debug {
    /// The version that reads see.
    async fn read_version(&mut self) -> Result<Version>;

    /// Makes the transaction read, and check conflicts, as of `version`, which a recent transaction saw.
    /// Call before the first read. A version older than [`limits::LIFETIME`] makes reads and the commit of a
    /// transaction with read conflicts fail with [`Error::TooOld`]; one that was never given out makes reads fail
    /// with [`Error::Unavailable`] or [`Error::Busy`].
    fn set_read_version(&mut self, version: Version);

    /// The value of `key`. Cancel-safe, as [`Transaction::read_version`] and [`Transaction::get_range`] are.
    async fn get(&mut self, key: &[u8], isolation: Isolation) -> Result<Option<Bytes>>;

    /// A page of pairs; empty if the range ends where it begins, or before. With [`Isolation::Serializable`] the
    /// conflict range covers what was returned, or the whole range when nothing more is in it.
    async fn get_range(&mut self, query: RangeQuery, isolation: Isolation) -> Result<RangePage>;

    /// Writes `value` at `key`. Limits are checked at commit.
    fn set(&mut self, key: &[u8], value: &[u8]);

    /// Removes `key`, whether it exists or not.
    fn clear(&mut self, key: &[u8]);

    /// Removes every key from `begin` (inclusive) to `end` (exclusive); none if `end` is not after `begin`.
    fn clear_range(&mut self, begin: &[u8], end: &[u8]);

    /// Like [`Transaction::set`], with the ten bytes of `key` from `offset` on replaced at commit by the
    /// versionstamp.
    ///
    /// # Panics
    /// If `offset + 10` is beyond the key.
    fn set_versionstamped_key(&mut self, key: &[u8], offset: usize, value: &[u8]);

    /// Like [`Transaction::set`], with the ten bytes of `value` from `offset` on replaced at commit by the
    /// versionstamp.
    ///
    /// # Panics
    /// If `offset + 10` is beyond the value.
    fn set_versionstamped_value(&mut self, key: &[u8], value: &[u8], offset: usize);

    /// Adds the keys from `begin` (inclusive) to `end` (exclusive) to the read or write conflict set; none if `end` is
    /// not after `begin`. Read conflicts are added before the transaction writes there.
    fn add_conflict_range(&mut self, begin: &[u8], end: &[u8], kind: ConflictKind);

    /// Adds one key to the read or write conflict set.
    fn add_conflict_key(&mut self, key: &[u8], kind: ConflictKind) {
        let mut end = key.to_vec();
        end.push(0);
        self.add_conflict_range(key, &end, kind);
    }

    /// A watch that fires when `key` has changed from the value this transaction sees. It is armed by a
    /// successful commit, may fire for no reason and may miss a change that was undone: read, then watch
    /// again, and poll now and then.
    fn watch(&mut self, key: &[u8]) -> Watch;

    /// Makes the writes visible and durable together, or not at all. A transaction without writes always
    /// succeeds. Not cancel-safe: a commit whose future is dropped may still happen.
    async fn commit(self: Box<Self>) -> Result<Committed>;
}
