//! Which kind of record a key belongs to: for whoever counts what is in the store, or what is done to it.
//!
//! A key that ends before its kind is told, as the end of a range may, is of the first kind of its table.

use super::{LogId, tag};

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $text:literal,)+) => {
        /// A kind of record.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum RecordKind {
            $($(#[$doc])* $kind,)+
        }

        impl RecordKind {
            /// Every kind; its place here is `kind as usize`.
            pub const ALL: &'static [Self] = &[$(Self::$kind),+];

            /// The name that metrics and people see.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $text,)+
                }
            }
        }
    };
}

kinds! {
    /// What the keyspace is.
    Format = "format",
    /// Definitions of queues and streams.
    Catalog = "catalog",
    /// Members of the cluster.
    Pod = "pod",
    /// Their signs of life.
    Heartbeat = "heartbeat",
    /// What has changed lately.
    Change = "change",
    /// Fences of virtual shards.
    Owner = "owner",
    /// Messages of queues and streams.
    Segment = "segment",
    /// Payloads too large for a segment.
    LogBlob = "log_blob",
    /// Where a time begins in a log.
    TimeIndex = "time_index",
    /// Ends and sizes of logs.
    LogState = "log_state",
    /// Messages of compacted streams.
    Row = "row",
    /// The newest of each key of them, and tombstones.
    LastValue = "last_value",
    /// Marks of publishes to logs that may be repeated.
    Mark = "mark",
    /// Ids of messages that are stored once.
    Dedup = "dedup",
    /// Messages that wait for their time.
    Delayed = "delayed",
    /// Floors and counters of queues.
    QueueFloor = "queue_floor",
    /// Bitmaps of what is acknowledged.
    QueueAcks = "queue_acks",
    /// Failed attempts.
    QueueAttempts = "queue_attempts",
    /// Messages that were moved out of their log.
    QueueAside = "queue_aside",
    /// How far consumer groups have read.
    GroupPosition = "group_position",
    /// Fences and states of sessions.
    Session = "session",
    /// Subscriptions of sessions.
    Subscription = "subscription",
    /// Positions of sessions in streams.
    SessionPosition = "session_position",
    /// QoS 2 publishes received and not released.
    QosReceived = "qos_received",
    /// QoS 1 and 2 publishes sent and not done.
    QosSent = "qos_sent",
    /// Messages that wait for a session.
    Inbox = "inbox",
    /// Messages that several inboxes share, or too large for a row.
    InboxBlob = "inbox_blob",
    /// Marks of publishes to inboxes that may be repeated.
    InboxMark = "inbox_mark",
    /// Subscriptions by topic filter.
    SessionRoute = "session_route",
    /// Wills.
    Will = "will",
    /// What is to happen later.
    Timer = "timer",
    /// Retained messages.
    Retained = "retained",
    /// Retained messages too large for a row.
    RetainedBlob = "retained_blob",
    /// How much is retained.
    RetainedUsage = "retained_usage",
    /// Anything else.
    Other = "other",
}

/// Bytes before the client id of a session record: the tag, the virtual shard and the length of the id.
const CLIENT_AT: usize = 5;

impl RecordKind {
    /// The kind of the record at `key`.
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        match key.first().copied() {
            Some(tag::FORMAT) => Self::Format,
            Some(tag::CATALOG) => Self::Catalog,
            Some(tag::POD) => Self::Pod,
            Some(tag::HEARTBEAT) => Self::Heartbeat,
            Some(tag::CHANGE) => Self::Change,
            Some(tag::OWNER) => Self::Owner,
            Some(tag::SEGMENT) => Self::Segment,
            Some(tag::LOG_BLOB) => Self::LogBlob,
            Some(tag::TIME_INDEX) => Self::TimeIndex,
            Some(tag::LOG_STATE) => Self::LogState,
            Some(tag::ROW) => Self::Row,
            Some(tag::LAST_VALUE) => Self::LastValue,
            Some(tag::MARK) => Self::Mark,
            Some(tag::DEDUP) => Self::Dedup,
            Some(tag::DELAYED) => Self::Delayed,
            Some(tag::QUEUE) => match key.get(LogId::KEY_BYTES) {
                Some(b'a') => Self::QueueAcks,
                Some(b'r') => Self::QueueAttempts,
                Some(&super::aside::MOVED) => Self::QueueAside,
                _ => Self::QueueFloor,
            },
            Some(tag::GROUP) => Self::GroupPosition,
            Some(tag::SESSION) => Self::of_session(key),
            Some(tag::INBOX_BLOB) => Self::InboxBlob,
            Some(tag::INBOX_MARK) => Self::InboxMark,
            Some(tag::SESSION_ROUTE) => Self::SessionRoute,
            Some(tag::WILL) => Self::Will,
            Some(tag::TIMER) => Self::Timer,
            Some(tag::RETAINED) => Self::Retained,
            Some(tag::RETAINED_BLOB) => Self::RetainedBlob,
            Some(tag::RETAINED_USAGE) => Self::RetainedUsage,
            _ => Self::Other,
        }
    }

    /// [`RecordKind::of`] as a number, for a [`Meter`](weir_storage::Meter).
    #[must_use]
    pub fn index_of(key: &[u8]) -> usize {
        Self::of(key) as usize
    }

    fn of_session(key: &[u8]) -> Self {
        match session_part(key) {
            Some(b's') => Self::Subscription,
            Some(b'p') => Self::SessionPosition,
            Some(b'd') => Self::QosReceived,
            Some(b'o') => Self::QosSent,
            Some(b'x') => Self::Inbox,
            _ => Self::Session,
        }
    }
}

/// What follows the client id in the key of a session's record.
pub(crate) fn session_part(key: &[u8]) -> Option<u8> {
    let [high, low] = key.get(CLIENT_AT - 2..CLIENT_AT)?.try_into().ok()?;
    key.get(CLIENT_AT + usize::from(u16::from_be_bytes([high, low]))).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use weir_env::clock::Timestamp;

    use super::*;
    use crate::keyspace::catalog::CatalogEntry;
    use crate::keyspace::delayed::DelayedState;
    use crate::keyspace::format::KeyspaceFormat;
    use crate::keyspace::group::GroupPosition;
    use crate::keyspace::inbox_blob::BlobId;
    use crate::keyspace::last_value::{self, Newest, Tombstone};
    use crate::keyspace::log_state::LogState;
    use crate::keyspace::mark::Mark;
    use crate::keyspace::owner::{Owner, PodId};
    use crate::keyspace::pod::{Heartbeat, Pod};
    use crate::keyspace::queue::{AckBlock, Attempts, QueueFloor};
    use crate::keyspace::session::{ClientKeys, Incarnation, SessionRoute};
    use crate::keyspace::timer::{Timer, TimerId, TimerKind};
    use crate::keyspace::will::WillId;
    use crate::keyspace::{PublishId, VirtualShard, dedup, segment};

    #[test]
    fn names_and_places_are_unique() {
        let names: BTreeSet<_> = RecordKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(names.len(), RecordKind::ALL.len());
        for (place, kind) in RecordKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, place);
        }
    }

    #[test]
    fn every_record_is_of_its_kind() {
        // A shard and a client whose bytes look like kinds.
        let log = LogId { vs: VirtualShard(u16::from(b'a')), object: u32::from(b'r'), shard: b'x', class: 3 };
        let client = ClientKeys::new("xsdo", 256);
        let timer = TimerId { due: Timestamp::from_micros(1), seq: 2 };
        let will = WillId {
            pod: [7; 16],
            client_id: "c".into(),
            incarnation: Incarnation(1),
            epoch: crate::keyspace::session::SessionEpoch(1),
        };
        for (key, kind) in [
            (KeyspaceFormat::key(), RecordKind::Format),
            (CatalogEntry::key(crate::definition::Kind::Queue, "q"), RecordKind::Catalog),
            (Pod::key(PodId([7; 16])), RecordKind::Pod),
            (Heartbeat::key(PodId([7; 16])), RecordKind::Heartbeat),
            (crate::keyspace::change::tick_key(), RecordKind::Change),
            (Owner::key(log.vs), RecordKind::Owner),
            (segment::key(&log, 7), RecordKind::Segment),
            (LogState::key(&log), RecordKind::LogState),
            (last_value::key(&log, 1), RecordKind::Row),
            (Newest::key(&log, b"k"), RecordKind::LastValue),
            (Tombstone::key(&log, 1), RecordKind::LastValue),
            (Mark::key(&log, &PublishId([1; 16])), RecordKind::Mark),
            (dedup::key(&log, Timestamp::from_micros(1), &[1; 16], 0), RecordKind::Dedup),
            (DelayedState::key(&log), RecordKind::Delayed),
            (QueueFloor::key(&log), RecordKind::QueueFloor),
            (AckBlock::key(&log, 4096), RecordKind::QueueAcks),
            (Attempts::key(&log, 1), RecordKind::QueueAttempts),
            (crate::keyspace::aside::key(&log, 1), RecordKind::QueueAside),
            (GroupPosition::key(&log, "g"), RecordKind::GroupPosition),
            (client.fence(), RecordKind::Session),
            (client.state(), RecordKind::Session),
            (client.all_but_inbox().0, RecordKind::Session),
            (client.subscription("a/#"), RecordKind::Subscription),
            (client.position("$stream/a"), RecordKind::SessionPosition),
            (client.incoming(1), RecordKind::QosReceived),
            (client.outgoing(1), RecordKind::QosSent),
            (client.all_but_inbox().1, RecordKind::Inbox),
            (SessionRoute::key("c", "a/#", 256), RecordKind::SessionRoute),
            (BlobId([1; 16]).chunk(0), RecordKind::InboxBlob),
            (will.key(0), RecordKind::Will),
            (Timer::key(log.vs, TimerKind::Will, timer), RecordKind::Timer),
            (b"R".to_vec(), RecordKind::Retained),
            (b"?".to_vec(), RecordKind::Other),
            (Vec::new(), RecordKind::Other),
        ] {
            assert_eq!(RecordKind::of(&key), kind, "{key:?}");
            // Whatever is cut off, and whatever is in the store, nothing panics.
            (0..key.len()).for_each(|len| _ = RecordKind::of(&key[..len]));
        }
        assert_eq!(RecordKind::of(b"S\0\0\xff\xffabc"), RecordKind::Session);
    }
}
