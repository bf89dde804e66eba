//! The change feed: what pods keep in memory of the store, told in the order of the commits that changed it.
//!
//! Keys: `c`, `e`, versionstamp (10), sequence u32: a change. `c`, `t`: the tick, which each writer of a change writes,
//! so that pods may watch it; format 1, versionstamp (10). `c`, `f`: the floor; format 1, version u64: changes up to it are
//! gone. The sequence orders the changes of one transaction and wraps around.
//!
//! Value of a change: format 1, kind u8, then by kind
//! * 1 pod joined, 2 pod changed, 3 pod gone: pod (16)
//! * 4 owner: virtual shard u16, epoch u64, pod (16)
//! * 5 interest: pod (16), live varint, QoS 0 varint (both 0: none any more), group bytes (empty: a plain filter), filter
//!   bytes
//! * 6 route: pod (16), client bytes, filter bytes, incarnation u64, then as the value of a subscription; nothing: removed
//! * 7 session: pod (16), client bytes, epoch u64, incarnation u64, phase u8 (0 clean, 1 connected, 2 away, 3 ended)
//! * 8 catalog: `q` or `s`, name bytes
//!
//! A change is written in the transaction of what it tells of.

use bytes::Bytes;
use bytestring::ByteString;
use weir_storage::{Transaction, Version, Versionstamp, prefix_end};

use super::interest::{InterestKey, PodInterest, Want};
use super::owner::{Epoch, PodId};
use super::session::{Incarnation, SessionEpoch, StoredSubscription};
use super::{DecodeError, Reader, VirtualShard, Writer, tag};
use crate::definition::Kind;

const FORMAT: u8 = 1;
const ENTRY: u8 = b'e';
/// Bytes of a key before its versionstamp.
const STAMP_AT: usize = 2;
const TICK_STAMP_AT: usize = 1;

/// Something that has changed in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A pod is a member from now on.
    PodJoined(PodId),
    /// What a pod says of itself is different.
    PodChanged(PodId),
    /// A pod has left, or was found dead.
    PodGone(PodId),
    /// A virtual shard has an owner.
    Owner {
        /// Which shard.
        vs: VirtualShard,
        /// Of its ownership.
        epoch: Epoch,
        /// The owner.
        pod: PodId,
    },
    /// Clients of a pod want publishes to some topics, or none of them does any more.
    Interest(PodInterest),
    /// A subscription of a persistent session.
    Route {
        /// The pod that has changed it.
        pod: PodId,
        /// Whose.
        client: ByteString,
        /// To what.
        filter: ByteString,
        /// Of which of its sessions.
        incarnation: Incarnation,
        /// How; none if it is gone.
        subscription: Option<StoredSubscription>,
    },
    /// What has become of the session of a client.
    Session {
        /// The pod that has brought it about.
        pod: PodId,
        /// Whose.
        client: ByteString,
        /// Of the connection.
        epoch: SessionEpoch,
        /// Of the session.
        incarnation: Incarnation,
        /// What has become of it.
        now: SessionPhase,
    },
    /// A queue or stream has come, changed or gone.
    Catalog {
        /// Queue or stream.
        kind: Kind,
        /// Its name.
        name: ByteString,
    },
}

/// What has become of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionPhase {
    /// A connection has it, and it ends with that.
    Clean,
    /// A connection has it, and it goes on without.
    Connected,
    /// It goes on without a connection.
    Away,
    /// It has ended, one that goes on without a connection.
    Ended,
}

/// What a change is of: who follows the feed says which it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Pods.
    Pods,
    /// Owners of virtual shards.
    Owners,
    /// Interest of pods.
    Interest,
    /// Routes of persistent sessions.
    Routes,
    /// Sessions.
    Sessions,
    /// Queues and streams.
    Catalog,
}

impl Change {
    /// What it is of.
    #[must_use]
    pub const fn topic(&self) -> Topic {
        match self {
            Self::PodJoined(_) | Self::PodChanged(_) | Self::PodGone(_) => Topic::Pods,
            Self::Owner { .. } => Topic::Owners,
            Self::Interest(_) => Topic::Interest,
            Self::Route { .. } => Topic::Routes,
            Self::Session { .. } => Topic::Sessions,
            Self::Catalog { .. } => Topic::Catalog,
        }
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let out = Writer::new(FORMAT);
        match self {
            Self::PodJoined(pod) => out.u8(1).raw(&pod.0),
            Self::PodChanged(pod) => out.u8(2).raw(&pod.0),
            Self::PodGone(pod) => out.u8(3).raw(&pod.0),
            Self::Owner { vs, epoch, pod } => out.u8(4).u16(vs.0).u64(epoch.0).raw(&pod.0),
            Self::Interest(PodInterest { pod, key: InterestKey { group, filter }, want }) => out
                .u8(5)
                .raw(&pod.0)
                .varint(want.live.into())
                .varint(want.qos0.into())
                .bytes(group.as_deref().unwrap_or_default().as_bytes())
                .bytes(filter.as_bytes()),
            Self::Route { pod, client, filter, incarnation, subscription } => {
                let out = out.u8(6).raw(&pod.0).bytes(client.as_bytes()).bytes(filter.as_bytes());
                let out = out.u64(incarnation.0);
                match subscription {
                    Some(subscription) => out.raw(&subscription.encode()),
                    None => out,
                }
            }
            Self::Session { pod, client, epoch, incarnation, now } => {
                let out = out.u8(7).raw(&pod.0).bytes(client.as_bytes());
                out.u64(epoch.0).u64(incarnation.0).u8(match now {
                    SessionPhase::Clean => 0,
                    SessionPhase::Connected => 1,
                    SessionPhase::Away => 2,
                    SessionPhase::Ended => 3,
                })
            }
            Self::Catalog { kind, name } => {
                let kind = match kind {
                    Kind::Queue => b'q',
                    Kind::Stream => b's',
                };
                out.u8(8).u8(kind).bytes(name.as_bytes())
            }
        }
        .finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "change", FORMAT)?;
        let kind = reader.u8("kind of change")?;
        let pod = |reader: &mut Reader| reader.id("pod").map(PodId);
        Ok(match kind {
            1 => Self::PodJoined(pod(&mut reader)?),
            2 => Self::PodChanged(pod(&mut reader)?),
            3 => Self::PodGone(pod(&mut reader)?),
            4 => Self::Owner {
                vs: VirtualShard(reader.u16("virtual shard")?),
                epoch: Epoch(reader.u64("epoch")?),
                pod: pod(&mut reader)?,
            },
            5 => {
                let pod = pod(&mut reader)?;
                let want = Want::read(&mut reader)?;
                let group = Some(reader.string("group")?).filter(|group| !group.is_empty());
                let key = InterestKey { group, filter: reader.string("filter")? };
                Self::Interest(PodInterest { pod, key, want })
            }
            6 => {
                let pod = pod(&mut reader)?;
                let (client, filter) = (reader.string("client id")?, reader.string("filter")?);
                let incarnation = Incarnation(reader.u64("incarnation")?);
                let rest = Some(reader.rest()).filter(|rest| !rest.is_empty());
                let subscription = rest.map(StoredSubscription::decode).transpose()?;
                Self::Route { pod, client, filter, incarnation, subscription }
            }
            7 => {
                let pod = pod(&mut reader)?;
                let client = reader.string("client id")?;
                let epoch = SessionEpoch(reader.u64("session epoch")?);
                let incarnation = Incarnation(reader.u64("incarnation")?);
                let now = match reader.u8("phase of a session")? {
                    0 => SessionPhase::Clean,
                    1 => SessionPhase::Connected,
                    2 => SessionPhase::Away,
                    3 => SessionPhase::Ended,
                    _ => return Err(DecodeError::Invalid("phase of a session")),
                };
                Self::Session { pod, client, epoch, incarnation, now }
            }
            8 => {
                let kind = match reader.u8("queue or stream")? {
                    b'q' => Kind::Queue,
                    b's' => Kind::Stream,
                    _ => return Err(DecodeError::Invalid("queue or stream")),
                };
                Self::Catalog { kind, name: reader.string("name")? }
            }
            _ => return Err(DecodeError::Invalid("kind of change")),
        })
    }

    /// Adds this to `tx`. `sequence` is greater than that of a change which was added to it before.
    pub fn write(&self, tx: &mut dyn Transaction, sequence: u32) {
        let key = Writer::new(tag::CHANGE).u8(ENTRY).raw(&[0; 10]).u32(sequence).finish();
        tx.set_versionstamped_key(&key, STAMP_AT, &self.encode());
        let tick = Writer::new(FORMAT).raw(&[0; 10]).finish();
        tx.set_versionstamped_value(&tick_key(), &tick, TICK_STAMP_AT);
    }
}

/// The key that is written with each change.
#[must_use]
pub fn tick_key() -> Vec<u8> {
    Writer::new(tag::CHANGE).u8(b't').finish()
}

/// The keys of the changes after `version`.
#[must_use]
pub fn range_after(version: Version) -> (Vec<u8>, Vec<u8>) {
    let entries = Writer::new(tag::CHANGE).u8(ENTRY);
    let next = Version(version.0.saturating_add(1));
    (entries.clone().raw(&Versionstamp::new(next, 0).0).finish(), prefix_end(&entries.finish()))
}

/// The keys of the changes up to `version`.
#[must_use]
pub fn range_to(version: Version) -> (Vec<u8>, Vec<u8>) {
    (Writer::new(tag::CHANGE).u8(ENTRY).finish(), range_after(version).0)
}

/// The version at which the change with this key was committed.
///
/// # Errors
/// If it is no key of a change.
pub fn version_of(key: &Bytes) -> Result<Version, DecodeError> {
    let mut reader = Reader::new(key.clone());
    if (reader.u8("table")?, reader.u8("kind of key")?) != (tag::CHANGE, ENTRY) {
        return Err(DecodeError::Invalid("key of a change"));
    }
    Ok(Version(reader.u64("version")?))
}

/// The version up to which changes are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Floor(pub Version);

impl Floor {
    /// The key.
    #[must_use]
    pub fn key() -> Vec<u8> {
        Writer::new(tag::CHANGE).u8(b'f').finish()
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new(FORMAT).u64(self.0.0).finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "floor of the change feed", FORMAT)?;
        Ok(Self(Version(reader.u64("floor")?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let pod = PodId([9; 16]);
        let subscription = StoredSubscription { qos: 1, ..StoredSubscription::default() };
        let with_pod = |head: &[u8]| [head, &[9; 16]].concat();
        let client: ByteString = "c".into();
        let session = |now, phase: u8| {
            let (client, epoch, incarnation) = (client.clone(), SessionEpoch(1), Incarnation(2));
            let rest = [b"\x01c\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02", &[phase][..]].concat();
            (Change::Session { pod, client, epoch, incarnation, now }, [with_pod(b"\x01\x07"), rest].concat())
        };
        let interest = |group: Option<&str>, filter: &str, want| {
            let key = InterestKey { group: group.map(Into::into), filter: filter.into() };
            Change::Interest(PodInterest { pod, key, want })
        };
        for (change, bytes) in [
            (Change::PodJoined(pod), with_pod(b"\x01\x01")),
            (Change::PodChanged(pod), with_pod(b"\x01\x02")),
            (Change::PodGone(pod), with_pod(b"\x01\x03")),
            (
                Change::Owner { vs: VirtualShard(258), epoch: Epoch(3), pod },
                with_pod(b"\x01\x04\x01\x02\0\0\0\0\0\0\0\x03"),
            ),
            (
                interest(None, "a/#", Want { live: 0, qos0: 1 }),
                [with_pod(b"\x01\x05"), b"\0\x01\0\x03a/#".to_vec()].concat(),
            ),
            (
                interest(Some("g"), "a", Want { live: 300, qos0: 2 }),
                [with_pod(b"\x01\x05"), b"\xac\x02\x02\x01g\x01a".to_vec()].concat(),
            ),
            (
                Change::Route {
                    pod,
                    client: client.clone(),
                    filter: "a".into(),
                    incarnation: Incarnation(2),
                    subscription: Some(subscription),
                },
                [with_pod(b"\x01\x06"), b"\x01c\x01a\0\0\0\0\0\0\0\x02\x01\x01\0\0".to_vec()].concat(),
            ),
            (
                Change::Route {
                    pod,
                    client: client.clone(),
                    filter: "a".into(),
                    incarnation: Incarnation(2),
                    subscription: None,
                },
                [with_pod(b"\x01\x06"), b"\x01c\x01a\0\0\0\0\0\0\0\x02".to_vec()].concat(),
            ),
            session(SessionPhase::Clean, 0),
            session(SessionPhase::Connected, 1),
            session(SessionPhase::Away, 2),
            session(SessionPhase::Ended, 3),
            (Change::Catalog { kind: Kind::Queue, name: "q".into() }, b"\x01\x08q\x01q".to_vec()),
            (Change::Catalog { kind: Kind::Stream, name: "s".into() }, b"\x01\x08s\x01s".to_vec()),
        ] {
            assert_eq!(change.encode(), bytes, "{change:?}");
            assert_eq!(Change::decode(bytes.clone().into()), Ok(change));
            (0..bytes.len()).for_each(|len| _ = Change::decode(bytes[..len].to_vec().into()));
        }
        let floor = Floor(Version(258));
        assert_eq!((Floor::key(), tick_key()), (b"cf".to_vec(), b"ct".to_vec()));
        assert_eq!(floor.encode(), b"\x01\0\0\0\0\0\0\x01\x02");
        assert_eq!(Floor::decode(floor.encode().into()), Ok(floor));
    }

    #[test]
    fn keys_are_in_the_order_of_versions() {
        let stamped = |version, sequence: u32| {
            let stamp = Versionstamp::new(Version(version), 7);
            Writer::new(tag::CHANGE).u8(ENTRY).raw(&stamp.0).u32(sequence).finish()
        };
        let (begin, end) = range_after(Version(5));
        assert!(stamped(5, u32::MAX) < begin && begin <= stamped(6, 0) && stamped(u64::MAX, 0) < end);
        let (begin, end) = range_to(Version(5));
        assert!(begin <= stamped(0, 0) && stamped(5, u32::MAX) < end && end <= stamped(6, 0));
        assert_eq!(version_of(&stamped(258, 1).into()), Ok(Version(258)));
        assert!(version_of(&tick_key().into()).is_err());
    }
}
