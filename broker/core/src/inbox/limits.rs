//! How much is in each inbox, nearly: counted in memory, so that an inbox can be bounded without reading it.
//!
//! The map has one entry per persistent session that has been written to; it goes when the session ends. What another
//! pod takes out of an inbox is not seen here: before one of those counts as full it is counted anew.

use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use parking_lot::Mutex;
use weir_env::clock::Instant;
use weir_env::seed::HashMap;

use crate::keyspace::inbox::InboxId;
use crate::keyspace::session::Incarnation;

/// How long the count of an inbox that was found half full is good enough to call it full, though another pod takes
/// from it.
const RECOUNT_AFTER: Duration = Duration::from_secs(10);

/// What happens to a message for a full inbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum InboxOverflow {
    /// It is not added to that inbox, and counted.
    #[default]
    DropNewest,
    /// It is added, and the oldest messages go, and are counted.
    DropOldest,
    /// It is added to no inbox, and its publisher is told.
    RejectPublish,
}

/// How much one inbox may hold, and what happens beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboxLimits {
    /// Messages.
    pub messages_max: u64,
    /// Bytes of messages, shared ones counted for each inbox.
    pub bytes_max: u64,
    /// What happens beyond.
    pub overflow: InboxOverflow,
}

impl Default for InboxLimits {
    fn default() -> Self {
        Self { messages_max: 100_000, bytes_max: 256 << 20, overflow: InboxOverflow::default() }
    }
}

/// What one inbox holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InboxUsage {
    /// Messages.
    pub messages: u64,
    /// Bytes of messages.
    pub bytes: u64,
}

/// The usage of all inboxes this process has met.
#[derive(Debug, Default)]
pub struct InboxCounters {
    inboxes: Mutex<HashMap<(ByteString, Incarnation), Counted>>,
}

/// Tells which inboxes have room. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct InboxRoom {
    pub(super) counters: Arc<InboxCounters>,
    pub(super) limits: InboxLimits,
}

impl InboxRoom {
    /// Whether an inbox takes a message of about `bytes` and gives up nothing for it. One that this process has not
    /// added to has room.
    #[must_use]
    pub fn has_room(&self, client_id: &ByteString, incarnation: Incarnation, bytes: u64) -> bool {
        self.has_room_for(client_id, incarnation, InboxUsage { messages: 1, bytes })
    }

    /// The same for several messages at once.
    #[must_use]
    pub fn has_room_for(&self, client_id: &ByteString, incarnation: Incarnation, more: InboxUsage) -> bool {
        let usage = self.counters.usage(client_id, incarnation).unwrap_or_default();
        !usage.plus(more).is_over(&self.limits)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    usage: InboxUsage,
    /// Up to here messages have been dropped and taken off: their acknowledgement, if it still comes, is not.
    trimmed: Option<InboxId>,
    /// While it is being counted what was there before: how many messages have gone meanwhile, of those or of others.
    gone: Option<u64>,
    /// When what was there before was counted, and what was found.
    found: Option<(Instant, InboxUsage)>,
}

impl Counted {
    /// What is in the inbox as far as is known. Until what was there before has been counted it is at least this.
    fn held(&self) -> InboxUsage {
        self.usage.without(self.gone.unwrap_or(0))
    }
}

/// Whether a message may be added to an inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Admitted,
    /// Admitted, and the first that this process adds: what is already there is to be counted.
    First,
    Full,
}

impl InboxUsage {
    fn is_over(&self, limits: &InboxLimits) -> bool {
        self.messages > limits.messages_max || self.bytes > limits.bytes_max
    }

    fn plus(self, other: Self) -> Self {
        Self {
            messages: self.messages.saturating_add(other.messages),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    /// Without so many messages of average size.
    fn without(self, messages: u64) -> Self {
        let bytes = self.bytes.checked_div(self.messages).unwrap_or(0).saturating_mul(messages);
        self.minus(Self { messages, bytes })
    }

    fn minus(self, other: Self) -> Self {
        let messages = self.messages.saturating_sub(other.messages);
        Self { messages, bytes: if messages == 0 { 0 } else { self.bytes.saturating_sub(other.bytes) } }
    }
}

impl InboxCounters {
    /// Adds a message if it fits, or if older ones make room for it.
    pub(super) fn add(
        &self,
        client_id: &ByteString,
        incarnation: Incarnation,
        bytes: u64,
        limits: &InboxLimits,
    ) -> Admission {
        let mut inboxes = self.inboxes.lock();
        let mut is_first = false;
        let inbox = (client_id.clone(), incarnation);
        let counted = inboxes.entry(inbox.clone()).or_insert_with(|| {
            is_first = true;
            Counted { gone: Some(0), ..Counted::default() }
        });
        let one = InboxUsage { messages: 1, bytes };
        if counted.held().plus(one).is_over(limits) && limits.overflow != InboxOverflow::DropOldest {
            if is_first {
                inboxes.remove(&inbox);
            }
            return Admission::Full;
        }
        counted.usage = counted.usage.plus(one);
        if is_first { Admission::First } else { Admission::Admitted }
    }

    /// Adds what was found when the inbox was counted, and takes off what has gone since.
    pub(super) fn add_counted(
        &self,
        client_id: &ByteString,
        incarnation: Incarnation,
        found: InboxUsage,
        now: Instant,
    ) {
        self.change(client_id, incarnation, |counted| {
            counted.found = Some((now, found));
            counted.usage = counted.usage.plus(found);
            let gone = counted.gone.take().unwrap_or(0);
            counted.usage = counted.usage.without(gone);
        });
    }

    /// Takes off a message that is not added after all.
    pub(super) fn undo(&self, client_id: &ByteString, incarnation: Incarnation, bytes: u64) {
        let undone = InboxUsage { messages: 1, bytes };
        self.change(client_id, incarnation, |counted| counted.usage = counted.usage.minus(undone));
    }

    /// Takes off messages that are done with, as of average size.
    pub(crate) fn remove(
        &self,
        client_id: &ByteString,
        incarnation: Incarnation,
        ids: impl Iterator<Item = InboxId>,
    ) {
        self.change(client_id, incarnation, |counted| {
            let messages =
                ids.filter(|id| counted.trimmed.is_none_or(|trimmed| *id > trimmed)).count() as u64;
            match &mut counted.gone {
                Some(gone) => *gone += messages,
                None => counted.usage = counted.usage.without(messages),
            }
        });
    }

    /// What an inbox has too much of, as soon as it is counted.
    pub(super) fn excess(
        &self,
        client_id: &ByteString,
        incarnation: Incarnation,
        limits: &InboxLimits,
    ) -> Option<InboxUsage> {
        let inboxes = self.inboxes.lock();
        let counted = inboxes.get(&(client_id.clone(), incarnation)).filter(|counted| counted.gone.is_none());
        let usage = counted.map(|counted| counted.usage).filter(|usage| usage.is_over(limits))?;
        let messages = usage.messages.saturating_sub(limits.messages_max);
        Some(InboxUsage { messages, bytes: usage.bytes.saturating_sub(limits.bytes_max) })
    }

    /// Takes off the oldest messages, up to `last`: they are gone.
    pub(super) fn trimmed(
        &self,
        client_id: &ByteString,
        incarnation: Incarnation,
        gone: InboxUsage,
        last: InboxId,
    ) {
        self.change(client_id, incarnation, |counted| {
            counted.usage = counted.usage.minus(gone);
            counted.trimmed = counted.trimmed.max(Some(last));
        });
    }

    fn change(&self, client_id: &ByteString, incarnation: Incarnation, change: impl FnOnce(&mut Counted)) {
        if let Some(counted) = self.inboxes.lock().get_mut(&(client_id.clone(), incarnation)) {
            change(counted);
        }
    }

    /// Forgets the count of an inbox that seems to hold too much, because another pod may have taken from it since it
    /// was counted: the next message has it counted anew. One that was found half full then is left for a while, so
    /// that large inboxes are not read all the time. Whether it was forgotten.
    pub(super) fn recount(
        &self,
        client_id: &ByteString,
        incarnation: Incarnation,
        now: Instant,
        limits: &InboxLimits,
    ) -> bool {
        let mut inboxes = self.inboxes.lock();
        let inbox = (client_id.clone(), incarnation);
        let is_old = inboxes.get(&inbox).is_some_and(|counted| match counted.found {
            Some((at, found)) => !found.plus(found).is_over(limits) || now >= at + RECOUNT_AFTER,
            None => false,
        });
        is_old && inboxes.remove(&inbox).is_some()
    }

    /// Forgets an inbox: its session has ended, or another pod takes from it from here on.
    pub(crate) fn forget(&self, client_id: &ByteString, incarnation: Incarnation) {
        self.inboxes.lock().remove(&(client_id.clone(), incarnation));
    }

    /// What an inbox holds, if this process has added to it.
    #[must_use]
    pub fn usage(&self, client_id: &ByteString, incarnation: Incarnation) -> Option<InboxUsage> {
        self.inboxes.lock().get(&(client_id.clone(), incarnation)).map(Counted::held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Instant {
        weir_env::clock::Clock::system().now()
    }

    fn id(n: u8) -> InboxId {
        InboxId([n; 12])
    }

    #[test]
    fn an_inbox_takes_what_fits_and_is_empty_again_when_all_is_removed() {
        let limits = InboxLimits { messages_max: 3, bytes_max: 100, ..InboxLimits::default() };
        let counters = InboxCounters::default();
        let client = ByteString::from("c");
        let add = |bytes| counters.add(&client, Incarnation(1), bytes, &limits);
        assert_eq!(add(60), Admission::First);
        assert_eq!(add(41), Admission::Full);
        assert_eq!(add(30), Admission::Admitted);
        assert_eq!(add(10), Admission::Admitted);
        assert_eq!(add(0), Admission::Full);
        counters.add_counted(&client, Incarnation(1), InboxUsage::default(), now());
        counters.remove(&client, Incarnation(1), (1..=3).map(id));
        assert_eq!(counters.usage(&client, Incarnation(1)), Some(InboxUsage::default()));
        counters.add_counted(&client, Incarnation(1), InboxUsage { messages: 3, bytes: 9 }, now());
        assert_eq!(add(0), Admission::Full);
        counters.undo(&client, Incarnation(1), 3);
        assert_eq!(add(3), Admission::Admitted);
        counters.forget(&client, Incarnation(1));
        assert_eq!(counters.usage(&client, Incarnation(1)), None);
    }

    #[test]
    fn an_inbox_that_is_emptied_while_it_is_counted_stays_open() {
        let limits = InboxLimits { messages_max: 3, bytes_max: 100, ..InboxLimits::default() };
        let counters = InboxCounters::default();
        let client = ByteString::from("c");
        assert_eq!(counters.add(&client, Incarnation(1), 10, &limits), Admission::First);
        for n in 1..=20 {
            counters.remove(&client, Incarnation(1), std::iter::once(id(n)));
            assert_eq!(counters.add(&client, Incarnation(1), 10, &limits), Admission::Admitted);
        }
        let one = InboxUsage { messages: 1, bytes: 10 };
        assert_eq!(counters.usage(&client, Incarnation(1)), Some(one));
        counters.add_counted(&client, Incarnation(1), InboxUsage::default(), now());
        assert_eq!(counters.usage(&client, Incarnation(1)), Some(one));
    }

    #[test]
    fn what_goes_while_an_inbox_is_counted_is_taken_off() {
        let limits = InboxLimits { messages_max: 9, bytes_max: 100, overflow: InboxOverflow::DropOldest };
        let counters = InboxCounters::default();
        let client = ByteString::from("c");
        assert_eq!(counters.add(&client, Incarnation(1), 10, &limits), Admission::First);
        counters.remove(&client, Incarnation(1), (1..=3).map(id));
        for _ in 0..20 {
            counters.add(&client, Incarnation(1), 10, &limits);
        }
        assert_eq!(counters.excess(&client, Incarnation(1), &limits), None, "it is not known yet");
        counters.add_counted(&client, Incarnation(1), InboxUsage { messages: 7, bytes: 70 }, now());
        let usage = InboxUsage { messages: 21 + 7 - 3, bytes: 250 };
        assert_eq!(counters.usage(&client, Incarnation(1)), Some(usage));
        let excess = InboxUsage { messages: 16, bytes: 150 };
        assert_eq!(counters.excess(&client, Incarnation(1), &limits), Some(excess));
    }

    #[test]
    fn a_message_that_fits_into_no_inbox_leaves_no_trace() {
        let limits = InboxLimits { messages_max: 9, bytes_max: 100, overflow: InboxOverflow::DropNewest };
        let counters = InboxCounters::default();
        let client = ByteString::from("c");
        assert_eq!(counters.add(&client, Incarnation(1), 101, &limits), Admission::Full);
        assert_eq!(counters.usage(&client, Incarnation(1)), None);
        assert_eq!(counters.add(&client, Incarnation(1), 1, &limits), Admission::First, "it is counted then");
    }

    #[test]
    fn what_the_oldest_gave_up_is_taken_off_once() {
        let limits = InboxLimits { messages_max: 2, bytes_max: 100, overflow: InboxOverflow::DropOldest };
        let counters = InboxCounters::default();
        let client = ByteString::from("c");
        counters.add(&client, Incarnation(1), 10, &limits);
        counters.add_counted(&client, Incarnation(1), InboxUsage::default(), now());
        for n in 1..4 {
            assert_ne!(counters.add(&client, Incarnation(1), 10, &limits), Admission::Full, "{n}");
        }
        let excess = counters.excess(&client, Incarnation(1), &limits);
        assert_eq!(excess, Some(InboxUsage { messages: 2, bytes: 0 }));
        counters.trimmed(&client, Incarnation(1), InboxUsage { messages: 2, bytes: 20 }, id(2));
        assert_eq!(counters.excess(&client, Incarnation(1), &limits), None);
        // They were in flight, and their acknowledgements come late.
        counters.remove(&client, Incarnation(1), (1..=2).map(id));
        let left = InboxUsage { messages: 2, bytes: 20 };
        assert_eq!(counters.usage(&client, Incarnation(1)), Some(left));
        counters.remove(&client, Incarnation(1), (3..=3).map(id));
        assert_eq!(counters.usage(&client, Incarnation(1)), Some(InboxUsage { messages: 1, bytes: 10 }));
    }

    #[test]
    fn an_inbox_that_another_pod_takes_from_is_counted_again_before_it_is_full() {
        let limits = InboxLimits { messages_max: 4, bytes_max: 1_000, ..InboxLimits::default() };
        let counters = InboxCounters::default();
        let (client, session, start) = (ByteString::from("c"), Incarnation(1), now());
        let add = || counters.add(&client, session, 1, &limits);
        let recount = |at| counters.recount(&client, session, at, &limits);
        assert!(!recount(start), "there is nothing to forget");
        assert_eq!(add(), Admission::First);
        assert!(!recount(start), "it is being counted");
        counters.add_counted(&client, session, InboxUsage { messages: 2, bytes: 2 }, start);
        assert_eq!(add(), Admission::Admitted);
        assert_eq!(add(), Admission::Full);
        assert!(recount(start), "it was nearly empty when it was counted");
        assert_eq!(add(), Admission::First);
        counters.add_counted(&client, session, InboxUsage { messages: 3, bytes: 3 }, start);
        assert_eq!(add(), Admission::Full);
        assert!(!recount(start), "a full one is not read again at once");
        assert!(recount(start + RECOUNT_AFTER));
        assert_eq!(counters.usage(&client, session), None);
    }
}
