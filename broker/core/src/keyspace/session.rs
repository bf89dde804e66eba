//! Sessions: the fence, the state, subscriptions with their routes, and packet ids in use.
//!
//! Keys begin with `S`, the client's virtual shard (2) and the client id (length-prefixed), then
//! * `e`: format 1, epoch u64, pod (16), connection u64 (random), incarnation u64, flags u8 (1: persistent,
//!   2: has a will)
//! * `c`: format 1, expiry u32 (s), status u8; disconnected (1): since u64 (µs), flag u8, expiry timer (due, seq)
//! * `s` filter: format 1, subscription
//! * `d` packet id (2): format 1, publish id (16)
//! * `o` packet id (2): format 1, phase u8 (0 published, 1 released), inbox id (12)
//!
//! `x` rows are the inbox, `p` rows positions in streams: see `session_position`. Everything of a session but its inbox sorts
//! below `x`, so one range clears it.
//!
//! Route: key `G`, bucket u8, hash of the filter u64, virtual shard (2), client id (length-prefixed), filter;
//! value format 1, incarnation u64, subscription.

use bytes::Bytes;
use bytestring::ByteString;
use weir_env::clock::Timestamp;

use super::inbox::InboxId;
use super::timer::TimerId;
use super::{DecodeError, PublishId, Reader, VirtualShard, Writer, placement_hash, tag};

const FORMAT: u8 = 1;
/// Buckets of the route table, so that it can be read by several readers at once.
const ROUTE_BUCKETS: u64 = 16;

/// Counts the connections that took a session over; what an older epoch writes is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionEpoch(pub u64);

/// Random, and new with each session: rows of an earlier session of the same client id never show up in a
/// later one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

/// The virtual shard of a client's records.
#[must_use]
pub fn client_shard(client_id: &str, virtual_shards: u16) -> VirtualShard {
    shard_of(placement_hash(client_id.as_bytes()), virtual_shards)
}

/// The virtual shard of what hashes to `hash`.
#[must_use]
pub(crate) fn shard_of(hash: u64, virtual_shards: u16) -> VirtualShard {
    VirtualShard(u16::try_from(hash % u64::from(virtual_shards.max(1))).unwrap_or(0))
}

/// The keys of one client.
#[derive(Clone, Debug)]
pub struct ClientKeys {
    shard: VirtualShard,
    prefix: Writer,
}

impl ClientKeys {
    /// The keys of `client_id`.
    #[must_use]
    pub fn new(client_id: &str, virtual_shards: u16) -> Self {
        let shard = client_shard(client_id, virtual_shards);
        Self { shard, prefix: Writer::new(tag::SESSION).u16(shard.0).key_bytes(client_id.as_bytes()) }
    }

    /// The virtual shard they are on.
    #[must_use]
    pub const fn shard(&self) -> VirtualShard {
        self.shard
    }

    pub(super) fn with(&self, kind: u8) -> Writer {
        self.prefix.clone().u8(kind)
    }

    /// Of the fence.
    #[must_use]
    pub fn fence(&self) -> Vec<u8> {
        self.with(b'e').finish()
    }

    /// Of the state.
    #[must_use]
    pub fn state(&self) -> Vec<u8> {
        self.with(b'c').finish()
    }

    /// Of the subscription to `filter`.
    #[must_use]
    pub fn subscription(&self, filter: &str) -> Vec<u8> {
        self.with(b's').raw(filter.as_bytes()).finish()
    }

    /// Of all subscriptions.
    #[must_use]
    pub fn subscriptions(&self) -> (Vec<u8>, Vec<u8>) {
        self.kind(b's')
    }

    /// Of an incoming QoS 2 publish.
    #[must_use]
    pub fn incoming(&self, packet_id: u16) -> Vec<u8> {
        self.with(b'd').u16(packet_id).finish()
    }

    /// Of all incoming QoS 2 publishes.
    #[must_use]
    pub fn all_incoming(&self) -> (Vec<u8>, Vec<u8>) {
        self.kind(b'd')
    }

    /// Of an outgoing publish.
    #[must_use]
    pub fn outgoing(&self, packet_id: u16) -> Vec<u8> {
        self.with(b'o').u16(packet_id).finish()
    }

    /// Of all outgoing publishes.
    #[must_use]
    pub fn all_outgoing(&self) -> (Vec<u8>, Vec<u8>) {
        self.kind(b'o')
    }

    /// Of everything but the inbox.
    #[must_use]
    pub fn all_but_inbox(&self) -> (Vec<u8>, Vec<u8>) {
        (self.prefix.clone().finish(), self.with(b'x').finish())
    }

    fn kind(&self, kind: u8) -> (Vec<u8>, Vec<u8>) {
        (self.with(kind).finish(), self.with(kind + 1).finish())
    }
}

/// The last field of a key that begins with `prefix`.
pub(crate) fn suffix(key: &Bytes, prefix: usize, what: &'static str) -> Result<Bytes, DecodeError> {
    if key.len() < prefix { Err(DecodeError::Truncated(what)) } else { Ok(key.slice(prefix..)) }
}

/// The fence of a session: who may write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Of the connection that owns the session.
    pub epoch: SessionEpoch,
    /// The pod of that connection.
    pub pod: [u8; 16],
    /// Random: tells a repeated attempt to open the session that the first one has succeeded.
    pub connection: u64,
    /// Of the session.
    pub incarnation: Incarnation,
    /// Whether the session has state in the store.
    pub persistent: bool,
    /// Whether that connection came with a will.
    pub has_will: bool,
}

impl Fence {
    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let flags = u8::from(self.persistent) | u8::from(self.has_will) << 1;
        Writer::new(FORMAT)
            .u64(self.epoch.0)
            .raw(&self.pod)
            .u64(self.connection)
            .u64(self.incarnation.0)
            .u8(flags)
            .finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "session fence", FORMAT)?;
        let epoch = SessionEpoch(reader.u64("session epoch")?);
        let pod = reader.id("session pod")?;
        let connection = reader.u64("session connection")?;
        let incarnation = Incarnation(reader.u64("session incarnation")?);
        let flags = reader.u8("session flags")?;
        Ok(Self { epoch, pod, connection, incarnation, persistent: flags & 1 != 0, has_will: flags & 2 != 0 })
    }
}

/// Whether a connection has the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionStatus {
    /// A connection has it.
    Connected,
    /// None has it.
    Disconnected {
        /// When the last one ended.
        since: Timestamp,
        /// Ends the session; absent if it never ends by itself.
        expiry: Option<TimerId>,
    },
}

/// The state of a persistent session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionState {
    /// Seconds it outlives its connection; `u32::MAX`: for ever.
    pub expiry_seconds: u32,
    /// Whether a connection has it.
    pub status: SessionStatus,
}

impl SessionState {
    /// The timer that ends it.
    #[must_use]
    pub const fn expiry(&self) -> Option<TimerId> {
        match self.status {
            SessionStatus::Connected => None,
            SessionStatus::Disconnected { expiry, .. } => expiry,
        }
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let out = Writer::new(FORMAT).u32(self.expiry_seconds);
        match self.status {
            SessionStatus::Connected => out.u8(0),
            SessionStatus::Disconnected { since, expiry } => {
                TimerId::encode_option(expiry, out.u8(1).u64(since.as_micros()))
            }
        }
        .finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "session state", FORMAT)?;
        let expiry_seconds = reader.u32("session expiry")?;
        let status = match reader.u8("session status")? {
            0 => SessionStatus::Connected,
            1 => SessionStatus::Disconnected {
                since: Timestamp::from_micros(reader.u64("session end")?),
                expiry: TimerId::decode_option(&mut reader)?,
            },
            _ => return Err(DecodeError::Invalid("session status")),
        };
        Ok(Self { expiry_seconds, status })
    }
}

/// What a client asked for with a topic filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredSubscription {
    /// Highest quality of service of deliveries.
    pub qos: u8,
    /// Not the client's own publishes.
    pub no_local: bool,
    /// RETAIN as the publisher set it.
    pub retain_as_published: bool,
    /// When retained messages follow the subscription: 0, 1 or 2.
    pub retain_handling: u8,
    /// Comes back with each delivery.
    pub subscription_id: Option<u32>,
    /// Whatever the broker wants to keep with it.
    pub extra: Bytes,
}

impl StoredSubscription {
    fn encode_to(&self, out: Writer) -> Writer {
        let options = (self.qos & 3)
            | u8::from(self.no_local) << 2
            | u8::from(self.retain_as_published) << 3
            | (self.retain_handling & 3) << 4;
        out.u8(options).varint(self.subscription_id.map_or(0, |id| u64::from(id) + 1)).bytes(&self.extra)
    }

    fn decode_from(reader: &mut Reader) -> Result<Self, DecodeError> {
        let options = reader.u8("subscription options")?;
        let id = reader.varint("subscription id")?;
        let subscription_id = match id.checked_sub(1) {
            None => None,
            Some(id) => Some(u32::try_from(id).map_err(|_| DecodeError::Invalid("subscription id"))?),
        };
        Ok(Self {
            qos: (options & 3).min(2),
            no_local: options & 4 != 0,
            retain_as_published: options & 8 != 0,
            retain_handling: options >> 4 & 3,
            subscription_id,
            extra: reader.bytes("subscription extra")?,
        })
    }

    /// The value of a subscription.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.encode_to(Writer::new(FORMAT)).finish()
    }

    /// Reads the value of a subscription.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "subscription", FORMAT)?;
        Self::decode_from(&mut reader)
    }
}

/// A subscription of a persistent session as every pod knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRoute {
    /// Whose.
    pub client_id: ByteString,
    /// Of which of its sessions.
    pub incarnation: Incarnation,
    /// To what.
    pub filter: ByteString,
    /// How.
    pub subscription: StoredSubscription,
}

impl SessionRoute {
    /// The key of the route of `client_id` for `filter`.
    #[must_use]
    pub fn key(client_id: &str, filter: &str, virtual_shards: u16) -> Vec<u8> {
        let hash = placement_hash(filter.as_bytes());
        let bucket = u8::try_from(hash % ROUTE_BUCKETS).unwrap_or(0);
        Writer::new(tag::SESSION_ROUTE)
            .u8(bucket)
            .u64(hash)
            .u16(client_shard(client_id, virtual_shards).0)
            .key_bytes(client_id.as_bytes())
            .raw(filter.as_bytes())
            .finish()
    }

    /// The value of a route.
    #[must_use]
    pub fn value(incarnation: Incarnation, subscription: &StoredSubscription) -> Vec<u8> {
        subscription.encode_to(Writer::new(FORMAT).u64(incarnation.0)).finish()
    }

    /// The keys of all routes.
    #[must_use]
    pub fn all() -> (Vec<u8>, Vec<u8>) {
        (vec![tag::SESSION_ROUTE], vec![tag::SESSION_ROUTE + 1])
    }

    /// Reads a row.
    ///
    /// # Errors
    /// If it is not a route, or of a newer format.
    pub fn decode(key: Bytes, value: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(key);
        reader.take(1 + 1 + 8 + 2, "route key")?;
        let client_id = reader.key_string("route client")?;
        let filter = ByteString::try_from(reader.rest()).map_err(|_| DecodeError::Invalid("route filter"))?;
        let (mut reader, _) = Reader::value(value, "route", FORMAT)?;
        let incarnation = Incarnation(reader.u64("route incarnation")?);
        Ok(Self {
            client_id,
            incarnation,
            filter,
            subscription: StoredSubscription::decode_from(&mut reader)?,
        })
    }
}

/// How far an outgoing QoS 2 publish has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutgoingPhase {
    /// PUBLISH may have been sent, PUBREC (at QoS 1: PUBACK) has not come.
    Published,
    /// PUBREC has come, PUBCOMP has not.
    Released,
}

/// A packet id in use for a publish to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutgoingEntry {
    /// The packet id, never zero.
    pub packet_id: u16,
    /// How far it has come.
    pub phase: OutgoingPhase,
    /// What it carries.
    pub inbox_id: InboxId,
}

impl OutgoingEntry {
    /// The value; the packet id is in the key.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let phase = match self.phase {
            OutgoingPhase::Published => 0,
            OutgoingPhase::Released => 1,
        };
        Writer::new(FORMAT).u8(phase).raw(&self.inbox_id.0).finish()
    }

    /// Reads a row whose key ends in `packet_id`.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(packet_id: Bytes, value: Bytes) -> Result<Self, DecodeError> {
        let packet_id = Reader::new(packet_id).u16("outgoing packet id")?;
        let (mut reader, _) = Reader::value(value, "outgoing publish", FORMAT)?;
        let phase = match reader.u8("outgoing phase")? {
            0 => OutgoingPhase::Published,
            1 => OutgoingPhase::Released,
            _ => return Err(DecodeError::Invalid("outgoing phase")),
        };
        Ok(Self { packet_id, phase, inbox_id: InboxId::decode(&mut reader)? })
    }
}

/// An incoming QoS 2 publish that has not been released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncomingPublish {
    /// Names it.
    pub id: PublishId,
    /// Whether it was delivered to everybody, and answered. Known once its connection has ended in order, and before it goes
    /// out if it had to wait for room at other pods.
    pub is_answered: bool,
}

impl IncomingPublish {
    /// Its value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let id = Writer::new(FORMAT).raw(&self.id.0);
        if self.is_answered { id.u8(1).finish() } else { id.finish() }
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "incoming publish", FORMAT)?;
        let id = reader.id("publish id").map(PublishId)?;
        let is_answered = reader.remaining() > 0 && reader.u8("answer")? == 1;
        Ok(Self { id, is_answered })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::VirtualShard;
    use proptest::prelude::*;

    fn subscription() -> StoredSubscription {
        StoredSubscription {
            qos: 2,
            no_local: true,
            retain_as_published: false,
            retain_handling: 1,
            subscription_id: Some(300),
            extra: Bytes::from_static(b"x"),
        }
    }

    #[test]
    fn golden_keys() {
        let keys = ClientKeys::new("c1", 256);
        assert_eq!(keys.shard(), VirtualShard(u16::try_from(placement_hash(b"c1") % 256).unwrap()));
        let shard = keys.shard().0.to_be_bytes();
        let prefix = [b"S".as_slice(), &shard, b"\0\x02c1"].concat();
        assert_eq!(keys.fence(), [&prefix, b"e".as_slice()].concat());
        assert_eq!(keys.state(), [&prefix, b"c".as_slice()].concat());
        assert_eq!(keys.subscription("a/#"), [&prefix, b"sa/#".as_slice()].concat());
        assert_eq!(keys.incoming(258), [&prefix, b"d\x01\x02".as_slice()].concat());
        assert_eq!(keys.outgoing(258), [&prefix, b"o\x01\x02".as_slice()].concat());
        let route = SessionRoute::key("c1", "a/#", 256);
        let hash = placement_hash(b"a/#");
        let bucket = u8::try_from(hash % 16).unwrap();
        let expected = [&[b'G', bucket], hash.to_be_bytes().as_slice(), &shard, b"\0\x02c1a/#"].concat();
        assert_eq!(route, expected);
    }

    #[test]
    fn placement_never_changes() {
        assert_eq!(placement_hash(b"c1"), 0x8ea6_ff26_c9a9_5602);
    }

    #[test]
    fn golden_values() {
        let fence = Fence {
            epoch: SessionEpoch(1),
            pod: [2; 16],
            connection: 4,
            incarnation: Incarnation(3),
            persistent: true,
            has_will: true,
        };
        let mut expected = b"\x01\0\0\0\0\0\0\0\x01".to_vec();
        expected.extend([2; 16]);
        expected.extend(b"\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x03\x03");
        assert_eq!(fence.encode(), expected);
        assert_eq!(Fence::decode(expected.into()), Ok(fence));

        let connected = SessionState { expiry_seconds: 258, status: SessionStatus::Connected };
        assert_eq!(connected.encode(), b"\x01\0\0\x01\x02\0");
        let expiry = Some(TimerId { due: Timestamp::from_micros(5), seq: 6 });
        let status = SessionStatus::Disconnected { since: Timestamp::from_micros(4), expiry };
        let ended = SessionState { status, ..connected };
        let expected = b"\x01\0\0\x01\x02\x01\0\0\0\0\0\0\0\x04\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x06";
        assert_eq!(ended.encode(), expected);
        assert_eq!(SessionState::decode(ended.encode().into()), Ok(ended));
        assert_eq!(SessionState::decode(connected.encode().into()), Ok(connected));

        assert_eq!(subscription().encode(), b"\x01\x16\xad\x02\x01x");
        let route = SessionRoute::value(Incarnation(7), &subscription());
        assert_eq!(route, b"\x01\0\0\0\0\0\0\0\x07\x16\xad\x02\x01x");

        let entry =
            OutgoingEntry { packet_id: 9, phase: OutgoingPhase::Released, inbox_id: InboxId([8; 12]) };
        let mut expected = b"\x01\x01".to_vec();
        expected.extend([8; 12]);
        assert_eq!(entry.encode(), expected);
        assert_eq!(OutgoingEntry::decode(Bytes::from_static(b"\0\x09"), expected.into()), Ok(entry));

        let mut expected = b"\x01".to_vec();
        expected.extend([8; 16]);
        let waits = IncomingPublish { id: PublishId([8; 16]), is_answered: false };
        assert_eq!(waits.encode(), expected);
        assert_eq!(IncomingPublish::decode(expected.clone().into()), Ok(waits));
        let answered = IncomingPublish { is_answered: true, ..waits };
        expected.push(1);
        assert_eq!(answered.encode(), expected);
        assert_eq!(IncomingPublish::decode(expected.into()), Ok(answered));
    }

    proptest! {
        #[test]
        fn subscriptions_and_routes_come_back(
            (client_id, filter) in (".{0,40}", ".{1,40}"),
            (qos, retain_handling) in (0..3u8, 0..3u8),
            (no_local, retain_as_published) in any::<(bool, bool)>(),
            subscription_id: Option<u32>,
            extra: Vec<u8>,
            incarnation: u64,
        ) {
            let subscription = StoredSubscription {
                qos, no_local, retain_as_published, retain_handling, subscription_id, extra: extra.into(),
            };
            prop_assert_eq!(&StoredSubscription::decode(subscription.encode().into()).unwrap(), &subscription);
            let key = SessionRoute::key(&client_id, &filter, 64);
            let value = SessionRoute::value(Incarnation(incarnation), &subscription);
            let route = SessionRoute {
                client_id: client_id.into(),
                incarnation: Incarnation(incarnation),
                filter: filter.into(),
                subscription,
            };
            prop_assert_eq!(SessionRoute::decode(key.into(), value.into()).unwrap(), route);
        }

        #[test]
        fn damaged_values_never_panic(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            let _ = Fence::decode(bytes.clone());
            let _ = SessionState::decode(bytes.clone());
            let _ = StoredSubscription::decode(bytes.clone());
            let _ = SessionRoute::decode(bytes.clone(), bytes.clone());
            let _ = OutgoingEntry::decode(bytes.clone(), bytes.clone());
            let _ = IncomingPublish::decode(bytes);
        }
    }
}
