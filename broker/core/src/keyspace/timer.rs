//! Timers: what is to happen to a session, a will or a blob later.
//!
//! Key: `t`, virtual shard (2), kind u8, due u64 (µs), sequence u64 (random, tells timers of one time apart).
//! Value: format 1, then by kind
//! * `s` end of a session: client id
//! * `w` will: pod (16), client id, incarnation u64, epoch u64
//! * `x` inbox of a session that has ended: client id, incarnation u64
//! * `b` hold on a blob by its writer: blob id (16)
//! * `r` chunks of a retained message that is being written: chunks id (16), topic

use bytes::Bytes;
use bytestring::ByteString;
use weir_env::clock::Timestamp;
use weir_topic::TopicName;

use super::inbox_blob::BlobId;
use super::retained::RetainedBlobId;
use super::session::{Incarnation, SessionEpoch};
use super::will::WillId;
use super::{DecodeError, Reader, VirtualShard, Writer, tag};

const FORMAT: u8 = 1;

/// When a timer is due, and which of those due then it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerId {
    /// When.
    pub due: Timestamp,
    /// Random.
    pub seq: u64,
}

impl TimerId {
    pub(super) fn encode_option(id: Option<Self>, out: Writer) -> Writer {
        match id {
            None => out.u8(0),
            Some(id) => out.u8(1).u64(id.due.as_micros()).u64(id.seq),
        }
    }

    pub(super) fn decode_option(reader: &mut Reader) -> Result<Option<Self>, DecodeError> {
        match reader.u8("timer flag")? {
            0 => Ok(None),
            1 => Self::decode(reader).map(Some),
            _ => Err(DecodeError::Invalid("timer flag")),
        }
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { due: Timestamp::from_micros(reader.u64("timer due")?), seq: reader.u64("timer sequence")? })
    }
}

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerKind {
    /// A session ends.
    SessionEnd,
    /// A will is published.
    Will,
    /// The inbox of a session that has ended is cleared.
    InboxDrain,
    /// A writer that left a blob half written lets go of it.
    BlobHold,
    /// Chunks of a retained message that never came to be are cleared.
    RetainedHold,
}

impl TimerKind {
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::SessionEnd => b's',
            Self::Will => b'w',
            Self::InboxDrain => b'x',
            Self::BlobHold => b'b',
            Self::RetainedHold => b'r',
        }
    }
}

/// A timer's value: what is to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The session of this client ends, if it still waits for this timer.
    SessionEnd(ByteString),
    /// This will is published.
    Will(WillId),
    /// The inbox of this ended session is cleared.
    InboxDrain(ByteString, Incarnation),
    /// The writer of this blob lets go of it.
    BlobHold(BlobId),
    /// These chunks are cleared, if the message retained at this topic isn't in them.
    RetainedHold(RetainedBlobId, TopicName),
}

impl Timer {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> TimerKind {
        match self {
            Self::SessionEnd(_) => TimerKind::SessionEnd,
            Self::Will(_) => TimerKind::Will,
            Self::InboxDrain(..) => TimerKind::InboxDrain,
            Self::BlobHold(_) => TimerKind::BlobHold,
            Self::RetainedHold(..) => TimerKind::RetainedHold,
        }
    }

    /// The key of a timer.
    #[must_use]
    pub fn key(shard: VirtualShard, kind: TimerKind, id: TimerId) -> Vec<u8> {
        Writer::new(tag::TIMER).u16(shard.0).u8(kind.byte()).u64(id.due.as_micros()).u64(id.seq).finish()
    }

    /// The keys of all timers of `kind` on `shard` that are due at `now`.
    #[must_use]
    pub fn due(shard: VirtualShard, kind: TimerKind, now: Timestamp) -> (Vec<u8>, Vec<u8>) {
        let prefix = Writer::new(tag::TIMER).u16(shard.0).u8(kind.byte());
        let end = prefix.clone().u64(now.as_micros().saturating_add(1)).finish();
        (prefix.finish(), end)
    }

    /// The end of the keys of all timers.
    #[must_use]
    pub fn end() -> Vec<u8> {
        vec![tag::TIMER + 1]
    }

    /// Which timer of which shard a key is of.
    ///
    /// # Errors
    /// If it is not the key of a timer.
    pub fn decode_key(key: Bytes) -> Result<(VirtualShard, TimerId), DecodeError> {
        let mut reader = Reader::new(key);
        reader.take(1, "timer key")?;
        let shard = VirtualShard(reader.u16("timer shard")?);
        reader.take(1, "timer kind")?;
        Ok((shard, TimerId::decode(&mut reader)?))
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let out = Writer::new(FORMAT);
        match self {
            Self::SessionEnd(client_id) => out.bytes(client_id.as_bytes()),
            Self::Will(id) => {
                out.raw(&id.pod).bytes(id.client_id.as_bytes()).u64(id.incarnation.0).u64(id.epoch.0)
            }
            Self::InboxDrain(client_id, incarnation) => out.bytes(client_id.as_bytes()).u64(incarnation.0),
            Self::BlobHold(blob) => out.raw(&blob.0),
            Self::RetainedHold(chunks, topic) => out.raw(&chunks.0).bytes(topic.as_bytes()),
        }
        .finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(kind: TimerKind, value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "timer", FORMAT)?;
        Ok(match kind {
            TimerKind::SessionEnd => Self::SessionEnd(reader.string("timer client")?),
            TimerKind::Will => Self::Will(WillId {
                pod: reader.id("timer pod")?,
                client_id: reader.string("timer client")?,
                incarnation: Incarnation(reader.u64("timer incarnation")?),
                epoch: SessionEpoch(reader.u64("timer epoch")?),
            }),
            TimerKind::InboxDrain => Self::InboxDrain(
                reader.string("timer client")?,
                Incarnation(reader.u64("timer incarnation")?),
            ),
            TimerKind::BlobHold => Self::BlobHold(BlobId(reader.id("timer blob")?)),
            TimerKind::RetainedHold => {
                let id = RetainedBlobId(reader.id("timer chunks")?);
                let topic = TopicName::parse(reader.string("timer topic")?);
                Self::RetainedHold(id, topic.map_err(|_| DecodeError::Invalid("timer topic"))?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let id = TimerId { due: Timestamp::from_micros(3), seq: 4 };
        let key = Timer::key(VirtualShard(0x0102), TimerKind::Will, id);
        assert_eq!(key, b"t\x01\x02w\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04");
        assert_eq!(Timer::decode_key(key.clone().into()), Ok((VirtualShard(0x0102), id)));
        assert!(key < Timer::end());
        let due_at =
            |micros| Timer::due(VirtualShard(0x0102), TimerKind::Will, Timestamp::from_micros(micros));
        assert!((due_at(3).0..due_at(3).1).contains(&key));
        assert!(!(due_at(2).0..due_at(2).1).contains(&key));

        let will = WillId {
            pod: [7; 16],
            client_id: "c".into(),
            incarnation: Incarnation(1),
            epoch: SessionEpoch(2),
        };
        let mut will_bytes = vec![1];
        will_bytes.extend([7; 16]);
        will_bytes.extend(b"\x01c\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02");
        let mut blob_bytes = vec![1];
        blob_bytes.extend([9; 16]);
        let topic = TopicName::parse("a").unwrap();
        let cases = [
            (Timer::SessionEnd("c".into()), b"\x01\x01c".to_vec()),
            (Timer::Will(will), will_bytes),
            (Timer::InboxDrain("c".into(), Incarnation(1)), b"\x01\x01c\0\0\0\0\0\0\0\x01".to_vec()),
            (
                Timer::RetainedHold(RetainedBlobId([9; 16]), topic),
                [&blob_bytes, b"\x01a".as_slice()].concat(),
            ),
            (Timer::BlobHold(BlobId([9; 16])), blob_bytes),
        ];
        for (timer, bytes) in cases {
            assert_eq!(timer.encode(), bytes);
            assert_eq!(Timer::decode(timer.kind(), bytes.clone().into()), Ok(timer.clone()));
            for cut in 0..bytes.len() {
                let cut = Bytes::from(bytes.clone()).slice(..cut);
                assert!(Timer::decode(timer.kind(), cut).is_err());
            }
        }
    }
}
