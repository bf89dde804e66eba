//! Wills: what is published when a connection ends without a farewell.
//!
//! Keys begin with `W`, the pod of the connection (16), the client id (length-prefixed), incarnation u64 and
//! epoch u64, then a part number u16. Part 0: format 1, virtual shard u16, flag u8 (1: a will follows; without
//! it the row only says that a persistent session is connected to this pod; 2: its message has been retained), delay u32 (s),
//! expiry flag u8 with u32 (s), timer flag u8 with (due, seq), first due u64 (µs), parts u16. Parts 1 and up: format 1 in the first, then an
//! encoded message, cut into pieces.

use bytes::Bytes;
use bytestring::ByteString;
use weir_env::clock::Timestamp;

use super::session::{Incarnation, SessionEpoch};
use super::timer::TimerId;
use super::{DecodeError, Reader, VirtualShard, Writer, tag};

const FORMAT: u8 = 1;

/// Names the connection that a will belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WillId {
    /// The pod of the connection.
    pub pod: [u8; 16],
    /// Its client id.
    pub client_id: ByteString,
    /// Of its session.
    pub incarnation: Incarnation,
    /// Its epoch.
    pub epoch: SessionEpoch,
}

impl WillId {
    /// The key of part `part`.
    #[must_use]
    pub fn key(&self, part: u16) -> Vec<u8> {
        self.prefix().u16(part).finish()
    }

    /// The keys of all parts.
    #[must_use]
    pub fn range(&self) -> (Vec<u8>, Vec<u8>) {
        let begin = self.prefix().finish();
        let end = weir_storage::prefix_end(&begin);
        (begin, end)
    }

    /// The keys of parts 1 and up.
    #[must_use]
    pub fn message_range(&self) -> (Vec<u8>, Vec<u8>) {
        (self.key(1), self.range().1)
    }

    fn prefix(&self) -> Writer {
        Writer::new(tag::WILL)
            .raw(&self.pod)
            .key_bytes(self.client_id.as_bytes())
            .u64(self.incarnation.0)
            .u64(self.epoch.0)
    }

    /// The keys of all wills of `pod`.
    #[must_use]
    pub fn of_pod(pod: &[u8; 16]) -> (Vec<u8>, Vec<u8>) {
        let begin = Writer::new(tag::WILL).raw(pod).finish();
        let end = weir_storage::prefix_end(&begin);
        (begin, end)
    }

    /// The keys of all wills.
    #[must_use]
    pub fn all() -> (Vec<u8>, Vec<u8>) {
        (vec![tag::WILL], vec![tag::WILL + 1])
    }

    /// Reads a key; returns the part number too.
    ///
    /// # Errors
    /// If it is not the key of a will.
    pub fn decode_key(key: Bytes) -> Result<(Self, u16), DecodeError> {
        let mut reader = Reader::new(key);
        reader.u8("will key")?;
        let id = Self {
            pod: reader.id("will pod")?,
            client_id: reader.key_string("will client")?,
            incarnation: Incarnation(reader.u64("will incarnation")?),
            epoch: SessionEpoch(reader.u64("will epoch")?),
        };
        Ok((id, reader.u16("will part")?))
    }
}

/// Part 0 of a will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WillHeader {
    /// The virtual shard of the client, where its timers are.
    pub shard: VirtualShard,
    /// Whether there is a will; without it the row only marks the connection.
    pub has_will: bool,
    /// Whether an earlier attempt to publish it saw to what is retained at its topic.
    pub retained: bool,
    /// Seconds from the end of the connection to the publish.
    pub delay_seconds: u32,
    /// Seconds the published message may wait.
    pub expiry_seconds: Option<u32>,
    /// Fires the will, once the connection has ended.
    pub timer: Option<TimerId>,
    /// When it fell due for the first time; zero before.
    pub first_due: Timestamp,
    /// Parts that hold the message.
    pub parts: u16,
}

impl WillHeader {
    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let flags = u8::from(self.has_will) | u8::from(self.retained) << 1;
        let out = Writer::new(FORMAT).u16(self.shard.0).u8(flags).u32(self.delay_seconds);
        let out = match self.expiry_seconds {
            None => out.u8(0),
            Some(seconds) => out.u8(1).u32(seconds),
        };
        TimerId::encode_option(self.timer, out).u64(self.first_due.as_micros()).u16(self.parts).finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "will", FORMAT)?;
        let shard = VirtualShard(reader.u16("will shard")?);
        let flags = reader.u8("will flags")?;
        Ok(Self {
            shard,
            has_will: flags & 1 != 0,
            retained: flags & 2 != 0,
            delay_seconds: reader.u32("will delay")?,
            expiry_seconds: match reader.u8("will expiry flag")? {
                0 => None,
                1 => Some(reader.u32("will expiry")?),
                _ => return Err(DecodeError::Invalid("will expiry flag")),
            },
            timer: TimerId::decode_option(&mut reader)?,
            first_due: Timestamp::from_micros(reader.u64("will first due")?),
            parts: reader.u16("will parts")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden() {
        let id = WillId {
            pod: [7; 16],
            client_id: "c".into(),
            incarnation: Incarnation(1),
            epoch: SessionEpoch(2),
        };
        let mut expected = b"W".to_vec();
        expected.extend([7; 16]);
        expected.extend(b"\0\x01c\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\x01\x02");
        assert_eq!(id.key(0x0102), expected);
        assert_eq!(WillId::decode_key(expected.into()), Ok((id, 0x0102)));

        let header = WillHeader {
            shard: VirtualShard(5),
            has_will: true,
            retained: true,
            delay_seconds: 6,
            expiry_seconds: Some(7),
            timer: Some(TimerId { due: Timestamp::from_micros(8), seq: 9 }),
            first_due: Timestamp::from_micros(11),
            parts: 10,
        };
        let mut expected = b"\x01\0\x05\x03\0\0\0\x06\x01\0\0\0\x07\x01\0\0\0\0\0\0\0\x08".to_vec();
        expected.extend(b"\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x0b\0\x0a");
        assert_eq!(header.encode(), expected);
        assert_eq!(WillHeader::decode(header.encode().into()), Ok(header));
    }

    proptest! {
        #[test]
        fn headers_come_back(
            shard: u16,
            parts: u16,
            has_will: bool,
            retained: bool,
            delay_seconds: u32,
            expiry_seconds: Option<u32>,
            timer: Option<(u64, u64)>,
            first_due: u64,
            garbage: Vec<u8>,
        ) {
            let timer = timer.map(|(due, seq)| TimerId { due: Timestamp::from_micros(due), seq });
            let header = WillHeader {
                shard: VirtualShard(shard), has_will, retained, delay_seconds, expiry_seconds, timer, parts,
                first_due: Timestamp::from_micros(first_due),
            };
            prop_assert_eq!(WillHeader::decode(header.encode().into()).unwrap(), header);
            let _ = WillHeader::decode(garbage.clone().into());
            let _ = WillId::decode_key(garbage.into());
        }
    }
}
