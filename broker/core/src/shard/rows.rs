//! What an owner remembers of a compacted log beside its state: when a look at its oldest rows is due.
//!
//! Nothing here grows with rows or keys: which message is the newest of its key is in the store, and looked up by the
//! batch that replaces it (`compaction`). This has no IO; the owner feeds it times and what batches found.

use std::time::Duration;

use weir_env::clock::Timestamp;

use super::upkeep::{MAINTAIN_INTERVAL, MAINTAIN_INTERVAL_MAX};
use crate::definition::Definition;
use crate::keyspace::last_value;
use crate::keyspace::log_state::LogState;
use crate::keyspace::segment::Record;

/// How long a tombstone stays readable, so that readers who were away learn that its key is gone.
pub const TOMBSTONE_KEPT: Duration = Duration::from_secs(24 * 3600);

/// What a compacted log may keep, at some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowLimits {
    /// Bytes of rows; the newest one stays, however large it is.
    pub(crate) bytes: Option<u64>,
    /// Rows.
    pub(crate) messages: Option<u64>,
    /// Rows that are not younger go.
    pub(crate) rows_until: Option<Timestamp>,
    /// Tombstones that are not younger go.
    pub(crate) tombstones_until: Timestamp,
    /// Rows below this offset go, because somebody said so.
    pub(crate) trimmed_below: u64,
}

impl RowLimits {
    /// Those of one shard at `now`.
    pub(crate) fn of(definition: &Definition, shard: u8, now: Timestamp) -> Self {
        let retention = &definition.retention;
        let before = |age: Duration| {
            Timestamp::default()
                .saturating_add(now.saturating_since(Timestamp::default()).saturating_sub(age))
        };
        Self {
            bytes: definition.share(retention.max_bytes, shard),
            messages: definition.share(retention.max_messages, shard),
            rows_until: max_age(definition).map(before),
            tombstones_until: before(TOMBSTONE_KEPT),
            trimmed_below: 0,
        }
    }

    /// Whether a log of `messages` rows with `bytes` in all is too large.
    pub(crate) fn exceeded(&self, messages: u64, bytes: u64) -> bool {
        let is_over = |limit: Option<u64>, value: u64| limit.is_some_and(|limit| value > limit);
        is_over(self.messages, messages) || (messages > 1 && is_over(self.bytes, bytes))
    }

    /// Whether a row that came `at` is too old.
    pub(crate) fn outlives(&self, at: Timestamp) -> bool {
        self.rows_until.is_some_and(|until| at <= until)
    }
}

fn max_age(definition: &Definition) -> Option<Duration> {
    let millis = definition.retention.max_age_ms;
    (millis != 0).then(|| Duration::from_millis(millis))
}

/// What a batch learned of the oldest rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// When the oldest row that is left came; none if the store has none.
    pub(crate) oldest: Option<Timestamp>,
    /// The same of tombstones.
    pub(crate) first_tombstone: Option<Timestamp>,
    /// There is more to remove than one transaction takes.
    pub(crate) is_partial: bool,
}

/// When the oldest rows of a log want to be looked at: a few numbers, however many rows and keys there are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rows {
    /// No row is older; it may be gone since. None if there is no row.
    oldest: Option<Timestamp>,
    /// The same of tombstones.
    first_tombstone: Option<Timestamp>,
    /// The next batch looks.
    is_due: bool,
    /// Rows below this offset are to go.
    trimmed_below: u64,
}

impl Rows {
    /// Of a log whose oldest row and tombstone came then.
    pub(crate) fn restore(oldest: Option<Timestamp>, first_tombstone: Option<Timestamp>) -> Self {
        Self { oldest, first_tombstone, ..Self::default() }
    }

    /// Whether a batch is wanted although nothing is appended.
    pub(crate) fn is_due(&self) -> bool {
        self.is_due
    }

    /// Whether the next batch has to look, which does.
    pub(crate) fn take_due(&mut self) -> bool {
        std::mem::take(&mut self.is_due)
    }

    /// The next batches remove all rows below an offset.
    pub(super) fn trim(&mut self, below: u64) {
        self.trimmed_below = self.trimmed_below.max(below);
        self.is_due = true;
    }

    /// Rows below this offset are to go.
    pub(crate) fn trimmed_below(&self) -> u64 {
        self.trimmed_below
    }

    /// No row came before, if there is one.
    pub(crate) fn oldest(&self) -> Option<Timestamp> {
        self.oldest
    }

    /// No tombstone came before.
    pub(crate) fn first_tombstone(&self) -> Option<Timestamp> {
        self.first_tombstone
    }

    /// A look that was due did not take place.
    pub(crate) fn put_back(&mut self) {
        self.is_due = true;
    }

    /// Notes whether there may be something to remove, and says in how long that may be so otherwise.
    pub(crate) fn maintain(
        &mut self,
        definition: &Definition,
        shard: u8,
        state: &LogState,
        now: Timestamp,
    ) -> Option<Duration> {
        let limits = RowLimits::of(definition, shard, now);
        let is_old = self.oldest.is_some_and(|at| limits.outlives(at));
        let is_swept = self.first_tombstone.is_some_and(|at| at <= limits.tombstones_until);
        self.is_due |= is_old || is_swept || limits.exceeded(state.rows(), state.bytes());
        let ages = self.oldest.zip(max_age(definition)).map(|(at, age)| at.saturating_add(age));
        let sweep = self.first_tombstone.map(|at| at.saturating_add(TOMBSTONE_KEPT));
        let next = [ages, sweep].into_iter().flatten().min()?;
        Some(next.saturating_since(now).clamp(MAINTAIN_INTERVAL, MAINTAIN_INTERVAL_MAX))
    }

    /// A batch is in the store: what it found, if it looked, and what it added.
    pub(crate) fn apply<'a>(&mut self, look: Option<&Look>, added: impl Iterator<Item = &'a Record>) {
        if let Some(look) = look {
            (self.oldest, self.first_tombstone) = (look.oldest, look.first_tombstone);
            self.is_due |= look.is_partial;
        }
        for record in added {
            let at = record.message.published_at;
            self.oldest = self.oldest.or(Some(at));
            if last_value::is_tombstone(record) {
                self.first_tombstone = self.first_tombstone.or(Some(at));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::tests::queue;
    use crate::definition::{Definition, Retention};
    use crate::keyspace::segment::RecordKey;
    use crate::message::Message;
    use crate::message::tests::full_message;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn record(seconds: u64, payload: &'static [u8]) -> Record {
        let message = Message {
            published_at: at(seconds),
            payload: bytes::Bytes::from_static(payload),
            ..full_message()
        };
        Record { message, key: RecordKey::Topic, blob_len: None, span: tracing::Span::none() }
    }

    fn of_age(seconds: u64) -> Definition {
        let retention = Retention { max_age_ms: seconds * 1000, ..Retention::default() };
        Definition { retention, last_value: true, ..queue("s") }
    }

    #[test]
    fn limits() {
        let mut definition = of_age(10);
        definition.retention.max_messages = 3;
        definition.retention.max_bytes = 100;
        let limits = RowLimits::of(&definition, 0, at(15));
        assert!(limits.outlives(at(5)) && !limits.outlives(at(6)));
        assert_eq!(limits.tombstones_until, at(0));
        for (messages, bytes, expected) in [(3, 100, false), (4, 100, true), (3, 101, true), (1, 101, false)]
        {
            assert_eq!(limits.exceeded(messages, bytes), expected, "{messages} messages, {bytes} bytes");
        }
        assert!(!RowLimits::of(&queue("s"), 0, at(15)).exceeded(u64::MAX, u64::MAX));
        assert!(!RowLimits::of(&queue("s"), 0, at(15)).outlives(at(0)));
    }

    #[test]
    fn a_look_is_due_when_the_oldest_row_is_too_old() {
        let (definition, state) = (of_age(100), LogState::default());
        let mut rows = Rows::default();
        assert_eq!(rows.maintain(&definition, 0, &state, at(10)), None);
        rows.apply(None, [record(10, b"1"), record(20, b"2")].iter());
        assert_eq!(rows.maintain(&definition, 0, &state, at(20)), Some(Duration::from_secs(90)));
        assert!(!rows.is_due());
        assert_eq!(rows.maintain(&definition, 0, &state, at(110)), Some(MAINTAIN_INTERVAL));
        assert!(rows.take_due() && !rows.is_due());
        // The first had been replaced.
        rows.apply(Some(&Look { oldest: Some(at(20)), ..Look::default() }), std::iter::empty());
        assert_eq!(rows.maintain(&definition, 0, &state, at(110)), Some(Duration::from_secs(10)));
        assert!(!rows.is_due());
        rows.put_back();
        assert!(rows.is_due());
    }

    #[test]
    fn tombstones_are_looked_for_after_their_time() {
        let (definition, state) = (queue("s"), LogState::default());
        let mut rows = Rows::default();
        rows.apply(None, [record(10, b"1"), record(20, b"")].iter());
        assert_eq!(rows.maintain(&definition, 0, &state, at(20)), Some(TOMBSTONE_KEPT));
        let due = at(20).saturating_add(TOMBSTONE_KEPT);
        assert!(rows.maintain(&definition, 0, &state, due).is_some() && rows.take_due());
        rows.apply(
            Some(&Look { oldest: Some(at(10)), is_partial: true, ..Look::default() }),
            std::iter::empty(),
        );
        assert!(rows.is_due(), "there is more to remove");
        assert_eq!(rows.maintain(&definition, 0, &state, due), None);
    }

    #[test]
    fn nothing_is_remembered_by_row_or_key() {
        // What can be copied bit by bit has nothing that grows.
        fn is_bounded<T: Copy>() {}
        is_bounded::<Rows>();
    }

    #[test]
    fn a_log_that_is_too_large_is_looked_at() {
        let mut definition = queue("s");
        definition.retention.max_messages = 3;
        let mut rows = Rows::default();
        for (next, removed, expected) in [(10, 7, false), (10, 6, true)] {
            rows.maintain(&definition, 0, &LogState { next, removed, ..LogState::default() }, at(1));
            assert_eq!(rows.take_due(), expected, "{removed} of {next} removed");
        }
    }
}
