//! How much is in each inbox, nearly: counted in memory, so that an inbox can be bounded without reading it.
//!
//! The map has one entry per persistent session that has been written to; it goes when the session ends.

use bytestring::ByteString;
use parking_lot::Mutex;
use weir_env::seed::HashMap;

use crate::keyspace::session::Incarnation;

/// How much one inbox may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboxLimits {
    /// Messages.
    pub messages_max: u64,
    /// Bytes of messages, shared ones counted for each inbox.
    pub bytes_max: u64,
}

impl Default for InboxLimits {
    fn default() -> Self {
        Self { messages_max: 100_000, bytes_max: 256 << 20 }
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
    inboxes: Mutex<HashMap<(ByteString, Incarnation), InboxUsage>>,
}

/// Whether a message may be added to an inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Admitted,
    /// Admitted, and the first that this process adds: what is already there is to be counted.
    First,
    Full,
}

impl InboxCounters {
    /// Adds a message if it fits.
    pub(super) fn add(
        &self,
        client_id: &ByteString,
        incarnation: Incarnation,
        bytes: u64,
        limits: &InboxLimits,
    ) -> Admission {
        let mut inboxes = self.inboxes.lock();
        let mut is_first = false;
        let usage = inboxes.entry((client_id.clone(), incarnation)).or_insert_with(|| {
            is_first = true;
            InboxUsage::default()
        });
        if usage.messages >= limits.messages_max || usage.bytes.saturating_add(bytes) > limits.bytes_max {
            return Admission::Full;
        }
        usage.messages += 1;
        usage.bytes += bytes;
        if is_first { Admission::First } else { Admission::Admitted }
    }

    /// Adds what was found when the inbox was counted.
    pub(super) fn add_counted(&self, client_id: &ByteString, incarnation: Incarnation, counted: InboxUsage) {
        if let Some(usage) = self.inboxes.lock().get_mut(&(client_id.clone(), incarnation)) {
            usage.messages = usage.messages.saturating_add(counted.messages);
            usage.bytes = usage.bytes.saturating_add(counted.bytes);
        }
    }

    /// Takes off `messages` of average size.
    pub(crate) fn remove(&self, client_id: &ByteString, incarnation: Incarnation, messages: u64) {
        if messages == 0 {
            return;
        }
        if let Some(usage) = self.inboxes.lock().get_mut(&(client_id.clone(), incarnation)) {
            let bytes = usage.bytes.checked_div(usage.messages).unwrap_or(0).saturating_mul(messages);
            usage.messages = usage.messages.saturating_sub(messages);
            usage.bytes = if usage.messages == 0 { 0 } else { usage.bytes.saturating_sub(bytes) };
        }
    }

    /// Forgets an inbox: its session has ended.
    pub(crate) fn forget(&self, client_id: &ByteString, incarnation: Incarnation) {
        self.inboxes.lock().remove(&(client_id.clone(), incarnation));
    }

    /// What an inbox holds, if this process has added to it.
    #[must_use]
    pub fn usage(&self, client_id: &ByteString, incarnation: Incarnation) -> Option<InboxUsage> {
        self.inboxes.lock().get(&(client_id.clone(), incarnation)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inbox_takes_what_fits_and_is_empty_again_when_all_is_removed() {
        let (counters, limits) = (InboxCounters::default(), InboxLimits { messages_max: 3, bytes_max: 100 });
        let client = ByteString::from("c");
        let add = |bytes| counters.add(&client, Incarnation(1), bytes, &limits);
        assert_eq!(add(60), Admission::First);
        assert_eq!(add(41), Admission::Full);
        assert_eq!(add(30), Admission::Admitted);
        assert_eq!(add(10), Admission::Admitted);
        assert_eq!(add(0), Admission::Full);
        counters.remove(&client, Incarnation(1), 3);
        assert_eq!(counters.usage(&client, Incarnation(1)), Some(InboxUsage::default()));
        counters.add_counted(&client, Incarnation(1), InboxUsage { messages: 3, bytes: 9 });
        assert_eq!(add(0), Admission::Full);
        counters.forget(&client, Incarnation(1));
        assert_eq!(counters.usage(&client, Incarnation(1)), None);
    }
}
