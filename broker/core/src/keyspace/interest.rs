//! What clients of a pod want live: the topics for which other pods send publishes there.
//!
//! Key: `F`, pod (16), group str (empty: a plain filter), filter. Value: format 1, live varint, QoS 0 varint. Written by
//! the pod itself, in transactions that read its `m`; removed by it, or with its `m`.

use bytes::Bytes;
use bytestring::ByteString;
use weir_storage::prefix_end;

use super::owner::PodId;
use super::{DecodeError, Reader, Writer, tag};

const FORMAT: u8 = 1;

/// For which topics, and as whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterestKey {
    /// The group of a shared subscription.
    pub group: Option<ByteString>,
    /// The topics.
    pub filter: ByteString,
}

/// Who wants publishes live. Of a plain filter each number is 0 or 1; of a group it counts members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Subscribers who get all of them live.
    pub live: u32,
    /// Subscribers who get those of QoS 0 live, and the others from their inboxes.
    pub qos0: u32,
}

impl Want {
    /// How many of them there are for a publish of this QoS.
    #[must_use]
    pub const fn weight(self, qos: u8) -> u32 {
        if qos == 0 { self.live.saturating_add(self.qos0) } else { self.live }
    }

    /// Whether nobody wants anything.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.weight(0) == 0
    }
}

/// What a pod wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInterest {
    /// Whose clients.
    pub pod: PodId,
    /// What for.
    pub key: InterestKey,
    /// How many.
    pub want: Want,
}

impl PodInterest {
    /// The key of what clients of `pod` want.
    #[must_use]
    pub fn key(pod: PodId, key: &InterestKey) -> Vec<u8> {
        let group = key.group.as_deref().unwrap_or_default();
        Writer::new(tag::INTEREST).raw(&pod.0).key_bytes(group.as_bytes()).raw(key.filter.as_bytes()).finish()
    }

    /// The value.
    #[must_use]
    pub fn value(want: Want) -> Vec<u8> {
        Writer::new(FORMAT).varint(want.live.into()).varint(want.qos0.into()).finish()
    }

    /// The keys of all pods.
    #[must_use]
    pub fn range() -> (Vec<u8>, Vec<u8>) {
        (vec![tag::INTEREST], prefix_end(&[tag::INTEREST]))
    }

    /// The keys of one pod.
    #[must_use]
    pub fn range_of(pod: PodId) -> (Vec<u8>, Vec<u8>) {
        let begin = Writer::new(tag::INTEREST).raw(&pod.0).finish();
        let end = prefix_end(&begin);
        (begin, end)
    }

    /// Reads a row.
    ///
    /// # Errors
    /// If it is none, or of a newer format.
    pub fn decode(key: Bytes, value: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(key);
        reader.take(1, "interest key")?;
        let pod = PodId(reader.id("pod")?);
        let group = Some(reader.key_string("group")?).filter(|group| !group.is_empty());
        let filter = ByteString::try_from(reader.rest()).map_err(|_| DecodeError::Invalid("filter"))?;
        let (mut reader, _) = Reader::value(value, "interest", FORMAT)?;
        Ok(Self { pod, key: InterestKey { group, filter }, want: Want::read(&mut reader)? })
    }
}

impl Want {
    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let mut count = || {
            let count = reader.varint("number of members")?;
            u32::try_from(count).map_err(|_| DecodeError::Invalid("number of members"))
        };
        Ok(Self { live: count()?, qos0: count()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let pod = PodId([9; 16]);
        for (group, key, want, value) in [
            (None, &b"\0\0a/#"[..], Want { live: 1, qos0: 0 }, &b"\x01\x01\x00"[..]),
            (Some("g"), b"\0\x01ga/#", Want { live: 300, qos0: 2 }, b"\x01\xac\x02\x02"),
        ] {
            let of = InterestKey { group: group.map(Into::into), filter: "a/#".into() };
            let stored = PodInterest::key(pod, &of);
            assert_eq!(stored, [b"F", &[9; 16][..], key].concat());
            assert_eq!(PodInterest::value(want), value);
            let (begin, end) = PodInterest::range_of(pod);
            assert!(begin <= stored && stored < end);
            let read = PodInterest::decode(stored.into(), value.to_vec().into());
            assert_eq!(read, Ok(PodInterest { pod, key: of, want }));
        }
        assert!(PodInterest::decode(b"F".to_vec().into(), b"\x01\x00\x00".to_vec().into()).is_err());
    }

    #[test]
    fn inboxes_take_what_is_not_of_qos_0() {
        let want = Want { live: 1, qos0: 2 };
        assert_eq!((want.weight(0), want.weight(1), want.weight(2)), (3, 1, 1));
        assert!(!Want { live: 0, qos0: 1 }.is_none() && Want::default().is_none());
    }
}
