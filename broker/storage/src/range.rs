//! Ranges of keys: what to read, what came back, and the key arithmetic for both. Knows no engine.

use bytes::Bytes;

use crate::limits::KEY_BYTES_MAX;

/// A range of keys to read: `begin` inclusive, `end` exclusive.
#[derive(Clone, Debug)]
pub struct RangeQuery {
    /// First key of the range.
    pub begin: Bytes,
    /// First key after the range.
    pub end: Bytes,
    /// At most this many pairs; zero for no limit.
    pub limit: usize,
    /// Stop once this many bytes of keys and values are gathered (at least one pair is returned); zero for
    /// no target.
    pub target_bytes: usize,
    /// From the end of the range backwards.
    pub reverse: bool,
}

impl RangeQuery {
    /// Every key from `begin` (inclusive) to `end` (exclusive), forwards, without limit.
    #[must_use]
    pub fn new(begin: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> Self {
        Self {
            begin: Bytes::copy_from_slice(begin.as_ref()),
            end: Bytes::copy_from_slice(end.as_ref()),
            limit: 0,
            target_bytes: 0,
            reverse: false,
        }
    }

    /// Every key that begins with `prefix`, the key `prefix` itself included.
    #[must_use]
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Self {
        let prefix = prefix.as_ref();
        Self::new(prefix, prefix_end(prefix))
    }

    /// At most `limit` pairs; zero for no limit.
    #[must_use]
    pub const fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Stop once `bytes` of keys and values are gathered; zero for no target.
    #[must_use]
    pub const fn target_bytes(mut self, bytes: usize) -> Self {
        self.target_bytes = bytes;
        self
    }

    /// From the end of the range backwards.
    #[must_use]
    pub const fn reverse(mut self) -> Self {
        self.reverse = true;
        self
    }

    /// What is left to read after `page`, or `None` if it was the last one.
    #[must_use]
    pub fn after(mut self, page: &RangePage) -> Option<Self> {
        let (last, _) = page.pairs.last().filter(|_| page.more)?;
        if self.reverse {
            self.end = last.clone();
        } else {
            self.begin = key_after(last);
        }
        Some(self)
    }
}

/// What a range read returned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangePage {
    /// Pairs in the order asked for.
    pub pairs: Vec<(Bytes, Bytes)>,
    /// Whether the range held more than was returned, at the read version: no conflict guards what was not returned.
    pub more: bool,
}

/// The first key after all keys that begin with `prefix`. For a prefix that is empty or only 0xff bytes,
/// which no key follows, a key longer than any that can be stored.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let Some(last) = prefix.iter().rposition(|&byte| byte != 0xff) else {
        return vec![0xff; KEY_BYTES_MAX + 1];
    };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    end
}

/// The first key after `key`.
#[must_use]
pub fn key_after(key: &[u8]) -> Bytes {
    let mut after = Vec::with_capacity(key.len() + 1);
    after.extend_from_slice(key);
    after.push(0);
    after.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_end_follows_every_key_of_the_prefix() {
        assert_eq!(prefix_end(b"a"), b"b");
        assert_eq!(prefix_end(b"a\xff\xff"), b"b");
        assert_eq!(prefix_end(b"a\x00"), b"a\x01");
        assert!(prefix_end(b"") > vec![0xff; KEY_BYTES_MAX]);
        assert!(prefix_end(b"\xff") > vec![0xff; KEY_BYTES_MAX]);
    }

    #[test]
    fn after_continues_behind_the_last_pair_in_either_direction() {
        let page = RangePage { pairs: vec![(Bytes::from_static(b"k"), Bytes::new())], more: true };
        assert_eq!(RangeQuery::prefix("k").after(&page).map(|q| q.begin), Some(Bytes::from_static(b"k\0")));
        assert_eq!(RangeQuery::prefix("k").reverse().after(&page).map(|q| q.end), Some("k".into()));
        assert!(RangeQuery::prefix("k").after(&RangePage { more: false, ..page }).is_none());
    }
}
