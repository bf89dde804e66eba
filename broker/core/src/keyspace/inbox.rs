//! Inboxes: what waits for a persistent session, and the marks that keep a repeated publish out of them.
//!
//! Row: the client's prefix (see [`session`](super::session)), `x`, incarnation u64, versionstamp (10), place
//! in the transaction u16, whose lowest bit says that the message is in a blob. Value: format 1, flags u8 (bits
//! 0-1: QoS, bit 2: retain), count and subscription ids as varints; then an encoded message, or blob id (16) and
//! length varint.
//!
//! Mark: `U`, virtual shard of the publish id (2), publish id (16). Value: format 1, time u64 (µs), progress u8
//! (1: all targets have it; 0: those up to this client id, in the order of client ids, have it: client id).

use bytes::Bytes;
use bytestring::ByteString;
use weir_env::clock::Timestamp;

use super::inbox_blob::BlobId;
use super::session::{ClientKeys, Incarnation, shard_of};
use super::{DecodeError, PublishId, Reader, Writer, placement_hash, tag};

const FORMAT: u8 = 1;

/// Names a row of one inbox: versionstamp and place. Rows are read in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InboxId(pub [u8; 12]);

impl InboxId {
    /// Most rows of one transaction.
    pub const PLACES: u16 = u16::MAX >> 1;

    /// Whether the message is in a blob.
    #[must_use]
    pub const fn is_blob(&self) -> bool {
        self.0[11] & 1 != 0
    }

    pub(super) fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let bytes = reader.take(12, "inbox id")?;
        bytes.as_ref().try_into().map(Self).map_err(|_| DecodeError::Truncated("inbox id"))
    }
}

/// The keys of one inbox.
#[derive(Clone, Debug)]
pub struct InboxKeys(Writer);

impl InboxKeys {
    /// The inbox of session `incarnation` of a client.
    #[must_use]
    pub fn new(client: &ClientKeys, incarnation: Incarnation) -> Self {
        Self(client.with(b'x').u64(incarnation.0))
    }

    /// A row.
    #[must_use]
    pub fn row(&self, id: &InboxId) -> Vec<u8> {
        self.0.clone().raw(&id.0).finish()
    }

    /// A row that the commit will give its versionstamp, and where in the key that goes.
    #[must_use]
    pub fn unstamped(&self, place: u16, is_blob: bool) -> (Vec<u8>, usize) {
        let key = self.0.clone().raw(&[0; 10]).u16(place << 1 | u16::from(is_blob)).finish();
        (key, self.0.len())
    }

    /// All rows.
    #[must_use]
    pub fn range(&self) -> (Vec<u8>, Vec<u8>) {
        let begin = self.0.clone().finish();
        let end = weir_storage::prefix_end(&begin);
        (begin, end)
    }

    /// Which row a key of this inbox is of.
    ///
    /// # Errors
    /// If it is not such a key.
    pub fn decode(&self, key: Bytes) -> Result<InboxId, DecodeError> {
        let mut reader = Reader::new(key);
        reader.take(self.0.len(), "inbox key")?;
        InboxId::decode(&mut reader)
    }
}

/// Where the message of a row is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InboxBody {
    /// In the row: an encoded message.
    Inline(Bytes),
    /// In a blob.
    Blob {
        /// Which.
        id: BlobId,
        /// Bytes of the encoded message.
        len: u64,
    },
}

/// The value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxRow {
    /// Quality of service of the delivery.
    pub qos: u8,
    /// RETAIN of the delivery.
    pub retain: bool,
    /// Identifiers of the subscriptions that matched.
    pub subscription_ids: Vec<u32>,
    /// The message.
    pub body: InboxBody,
}

impl InboxRow {
    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let head = Self::encode_head(self.qos, self.retain, &self.subscription_ids);
        match &self.body {
            InboxBody::Inline(message) => head.raw(message),
            InboxBody::Blob { id, len } => head.raw(&id.0).varint(*len),
        }
        .finish()
    }

    pub(crate) fn encode_head(qos: u8, retain: bool, subscription_ids: &[u32]) -> Writer {
        let head =
            Writer::new(FORMAT).u8(qos & 3 | u8::from(retain) << 2).varint(subscription_ids.len() as u64);
        subscription_ids.iter().fold(head, |head, id| head.varint(u64::from(*id)))
    }

    /// Reads the value of row `id`.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(id: &InboxId, value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "inbox row", FORMAT)?;
        let flags = reader.u8("inbox flags")?;
        let count = reader.varint("subscription id count")?;
        let mut subscription_ids = Vec::new();
        for _ in 0..count {
            let id = reader.varint("subscription id")?;
            subscription_ids.push(u32::try_from(id).map_err(|_| DecodeError::Invalid("subscription id"))?);
        }
        let body = if id.is_blob() {
            InboxBody::Blob { id: BlobId(reader.id("blob id")?), len: reader.varint("blob length")? }
        } else {
            InboxBody::Inline(reader.rest())
        };
        Ok(Self { qos: (flags & 3).min(2), retain: flags & 4 != 0, subscription_ids, body })
    }
}

/// How far a marked publish has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MarkProgress {
    /// The targets up to this client id, in the order of client ids, have it.
    Through(ByteString),
    /// All have it.
    Complete,
}

/// Says which targets of a publish need not be given it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxMark {
    /// When it was written.
    pub at: Timestamp,
    /// How far the publish has come.
    pub progress: MarkProgress,
}

impl InboxMark {
    /// The key of the mark of `id`.
    #[must_use]
    pub fn key(id: &PublishId, virtual_shards: u16) -> Vec<u8> {
        let shard = shard_of(placement_hash(&id.0), virtual_shards);
        Writer::new(tag::INBOX_MARK).u16(shard.0).raw(&id.0).finish()
    }

    /// The keys of all marks.
    #[must_use]
    pub fn all() -> (Vec<u8>, Vec<u8>) {
        (vec![tag::INBOX_MARK], vec![tag::INBOX_MARK + 1])
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let out = Writer::new(FORMAT).u64(self.at.as_micros());
        match &self.progress {
            MarkProgress::Complete => out.u8(1),
            MarkProgress::Through(client_id) => out.u8(0).raw(client_id.as_bytes()),
        }
        .finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "inbox mark", FORMAT)?;
        let at = Timestamp::from_micros(reader.u64("mark time")?);
        let progress = match reader.u8("mark progress")? {
            1 => MarkProgress::Complete,
            0 => MarkProgress::Through(
                ByteString::try_from(reader.rest()).map_err(|_| DecodeError::Invalid("mark client"))?,
            ),
            _ => return Err(DecodeError::Invalid("mark progress")),
        };
        Ok(Self { at, progress })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_keys() {
        let client = ClientKeys::new("c1", 256);
        let keys = InboxKeys::new(&client, Incarnation(2));
        let prefix = [&client.fence()[..client.fence().len() - 1], b"x\0\0\0\0\0\0\0\x02"].concat();
        let id = InboxId(*b"0123456789\x01\x03");
        let row = [prefix.as_slice(), &id.0].concat();
        assert_eq!(keys.row(&id), row);
        assert_eq!(keys.decode(row.into()), Ok(id));
        assert!(id.is_blob());

        let (unstamped, at) = keys.unstamped(0x0081, true);
        assert_eq!(at, prefix.len());
        assert_eq!(unstamped, [prefix.as_slice(), &[0; 10], &[1, 3]].concat());

        let shard = shard_of(placement_hash(&[9; 16]), 256).0.to_be_bytes();
        let expected = [b"U".as_slice(), &shard, &[9; 16]].concat();
        assert_eq!(InboxMark::key(&PublishId([9; 16]), 256), expected);
    }

    #[test]
    fn golden_values() {
        let inline = InboxRow {
            qos: 2,
            retain: true,
            subscription_ids: vec![1, 300],
            body: InboxBody::Inline(Bytes::from_static(b"message")),
        };
        assert_eq!(inline.encode(), b"\x01\x06\x02\x01\xac\x02message");
        let body = InboxBody::Blob { id: BlobId([9; 16]), len: 300 };
        let blob = InboxRow { qos: 1, retain: false, subscription_ids: vec![], body };
        let expected = [b"\x01\x01\0".as_slice(), &[9; 16], b"\xac\x02"].concat();
        assert_eq!(blob.encode(), expected);

        let at = Timestamp::from_micros(5);
        let complete = InboxMark { at, progress: MarkProgress::Complete };
        assert_eq!(complete.encode(), b"\x01\0\0\0\0\0\0\0\x05\x01");
        let through = InboxMark { at, progress: MarkProgress::Through("c".into()) };
        assert_eq!(through.encode(), b"\x01\0\0\0\0\0\0\0\x05\0c");
        for mark in [complete, through] {
            assert_eq!(InboxMark::decode(mark.encode().into()), Ok(mark));
        }
    }

    proptest! {
        #[test]
        fn rows_come_back(
            qos in 0..3u8,
            retain: bool,
            subscription_ids: Vec<u32>,
            inline: Vec<u8>,
            blob: Option<([u8; 16], u64)>,
        ) {
            let id = InboxId([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, u8::from(blob.is_some())]);
            let body = match blob {
                Some((id, len)) => InboxBody::Blob { id: BlobId(id), len },
                None => InboxBody::Inline(inline.clone().into()),
            };
            let row = InboxRow { qos, retain, subscription_ids, body };
            prop_assert_eq!(InboxRow::decode(&id, row.encode().into()).unwrap(), row);
            let _ = InboxRow::decode(&id, inline.clone().into());
            let _ = InboxMark::decode(inline.into());
        }
    }
}
