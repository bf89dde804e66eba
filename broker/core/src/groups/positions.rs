//! Which positions of groups differ from what is stored, and who waits for them to be. No IO: the coordinator writes
//! what [`Unwritten::next`] gives it, as it is then, and says how that ended.
//!
//! One write at a time is under way for each shard, so what is written last is what was decided last. What could not be
//! written is written again, whatever it has become until then.

use std::collections::{BTreeMap, BTreeSet};

use bytestring::ByteString;
use tokio::sync::oneshot;

use super::GroupError;
use crate::error::Result;

/// Rows in one write: 300 kB at most, beside the messages of its batch.
const ROWS_MAX: usize = 100;

/// What follows once something of a group is stored, or could not be.
#[derive(Debug)]
pub(super) enum Then {
    /// The group exists, and who asked to join joins.
    Create,
    /// Somebody is told.
    Reply(oneshot::Sender<std::result::Result<(), GroupError>>),
}

#[derive(Debug)]
struct Flight {
    seq: u64,
    groups: Vec<ByteString>,
}

#[derive(Debug)]
struct Waiter {
    group: ByteString,
    seq: u64,
    /// Shards that are not written yet.
    left: BTreeSet<u8>,
    then: Then,
}

/// What is to be written.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    /// Groups by shard.
    marked: BTreeMap<u8, BTreeSet<ByteString>>,
    in_flight: BTreeMap<u8, Flight>,
    waiters: Vec<Waiter>,
    /// Of the last write or waiter: a write holds what was marked before it began.
    seq: u64,
}

impl Unwritten {
    /// The position of `group` in `shard` is to be written.
    pub(super) fn mark(&mut self, shard: u8, group: &ByteString) {
        let groups = self.marked.entry(shard).or_default();
        if !groups.contains(group) {
            groups.insert(group.clone());
        }
    }

    /// Those in `shards` are to be written; `then` follows.
    pub(super) fn mark_then(&mut self, shards: impl IntoIterator<Item = u8>, group: &ByteString, then: Then) {
        let left: BTreeSet<u8> = shards.into_iter().collect();
        left.iter().for_each(|shard| self.mark(*shard, group));
        self.seq += 1;
        self.waiters.push(Waiter { group: group.clone(), seq: self.seq, left, then });
    }

    /// A shard and groups whose positions in it are to be written now.
    pub(super) fn next(&mut self) -> Option<(u8, Vec<ByteString>)> {
        let shard = *self.marked.keys().find(|shard| !self.in_flight.contains_key(shard))?;
        let marked = self.marked.get_mut(&shard)?;
        let groups: Vec<_> = std::iter::from_fn(|| marked.pop_first()).take(ROWS_MAX).collect();
        if marked.is_empty() {
            self.marked.remove(&shard);
        }
        self.seq += 1;
        self.in_flight.insert(shard, Flight { seq: self.seq, groups: groups.clone() });
        Some((shard, groups))
    }

    /// How the write for `shard` ended: what follows from it, by group.
    pub(super) fn finish(&mut self, shard: u8, result: &Result<()>) -> Vec<(ByteString, Then, Result<()>)> {
        let Some(flight) = self.in_flight.remove(&shard) else { return Vec::new() };
        if result.is_err() {
            flight.groups.iter().for_each(|group| self.mark(shard, group));
        }
        let mut followed = Vec::new();
        for mut waiter in std::mem::take(&mut self.waiters) {
            let is_of_it = waiter.seq < flight.seq
                && waiter.left.contains(&shard)
                && flight.groups.contains(&waiter.group);
            if is_of_it {
                waiter.left.remove(&shard);
            }
            if is_of_it && (result.is_err() || waiter.left.is_empty()) {
                followed.push((waiter.group, waiter.then, result.clone()));
            } else {
                self.waiters.push(waiter);
            }
        }
        followed
    }

    /// Whether somebody waits for what is to be written.
    pub(super) fn is_urgent(&self) -> bool {
        !self.waiters.is_empty()
    }

    /// Whether a write is under way.
    pub(super) fn is_writing(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Whether something is to be written that no write under way has to end for.
    pub(super) fn is_marked(&self) -> bool {
        !self.marked.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn done(followed: &[(ByteString, Then, Result<()>)]) -> Vec<(&str, bool)> {
        followed.iter().map(|(group, _, result)| (&**group, result.is_ok())).collect()
    }

    #[test]
    fn who_waits_is_told_when_every_shard_is_written_by_writes_that_began_later() {
        let mut unwritten = Unwritten::default();
        let (a, b) = (ByteString::from("a"), ByteString::from("b"));
        unwritten.mark(0, &a);
        assert_eq!(unwritten.next(), Some((0, vec![a.clone()])));
        unwritten.mark_then([0, 1], &a, Then::Create);
        unwritten.mark(1, &b);
        assert_eq!(unwritten.next(), Some((1, vec![a.clone(), b.clone()])));
        assert_eq!(unwritten.next(), None, "one write at a time for a shard");
        assert!(unwritten.finish(0, &Ok(())).is_empty(), "that write is older");
        assert!(unwritten.finish(1, &Ok(())).is_empty());
        assert_eq!(unwritten.next(), Some((0, vec![a])));
        assert_eq!(done(&unwritten.finish(0, &Ok(()))), [("a", true)]);
        assert!(!unwritten.is_marked() && !unwritten.is_urgent() && !unwritten.is_writing());
    }

    #[test]
    fn what_could_not_be_written_is_written_again_and_who_waits_is_told_at_once() {
        let mut unwritten = Unwritten::default();
        let a = ByteString::from("a");
        unwritten.mark_then([0, 1], &a, Then::Create);
        assert_eq!(unwritten.next(), Some((0, vec![a.clone()])));
        assert_eq!(unwritten.next(), Some((1, vec![a.clone()])));
        assert_eq!(done(&unwritten.finish(1, &Err(Error::Closed))), [("a", false)]);
        assert!(unwritten.finish(0, &Ok(())).is_empty());
        assert_eq!(unwritten.next(), Some((1, vec![a])));
    }

    #[test]
    fn a_write_holds_a_bounded_number_of_rows() {
        let mut unwritten = Unwritten::default();
        (0..ROWS_MAX * 2 + 1).for_each(|n| unwritten.mark(0, &n.to_string().into()));
        let mut counts = Vec::new();
        while let Some((shard, groups)) = unwritten.next() {
            counts.push(groups.len());
            unwritten.finish(shard, &Ok(()));
        }
        assert_eq!(counts, [ROWS_MAX, ROWS_MAX, 1]);
    }
}
