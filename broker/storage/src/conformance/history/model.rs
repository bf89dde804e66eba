//! What a transaction does, on a map in memory. Knows no store.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

use crate::{RangePage, RangeQuery, Transaction, Versionstamp, key_after};

/// The store as the model has it.
pub(in crate::conformance) type Table = BTreeMap<Vec<u8>, Vec<u8>>;

/// One write.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::conformance) enum Write {
    Set { key: Vec<u8>, value: Vec<u8> },
    Clear { key: Vec<u8> },
    ClearRange { begin: Vec<u8>, end: Vec<u8> },
    StampedKey { key: Vec<u8>, offset: usize, value: Vec<u8> },
    StampedValue { key: Vec<u8>, value: Vec<u8>, offset: usize },
}

impl Write {
    /// Does it in a transaction.
    pub(in crate::conformance) fn perform(&self, tx: &mut dyn Transaction) {
        match self {
            Self::Set { key, value } => tx.set(key, value),
            Self::Clear { key } => tx.clear(key),
            Self::ClearRange { begin, end } => tx.clear_range(begin, end),
            Self::StampedKey { key, offset, value } => tx.set_versionstamped_key(key, *offset, value),
            Self::StampedValue { key, value, offset } => tx.set_versionstamped_value(key, value, *offset),
        }
    }

    /// Does it on the model. Without a stamp, as its own transaction sees it before the commit.
    pub(in crate::conformance) fn apply(&self, table: &mut Table, stamp: Option<Versionstamp>) {
        match (self, stamp) {
            (Self::Set { key, value }, _) => drop(table.insert(key.clone(), value.clone())),
            (Self::Clear { key }, _) => drop(table.remove(key)),
            (Self::ClearRange { begin, end }, _) => table.retain(|key, _| key < begin || key >= end),
            (Self::StampedKey { key, offset, value }, Some(stamp)) => {
                table.insert(stamped(key, *offset, stamp), value.clone());
            }
            (Self::StampedValue { key, value, offset }, Some(stamp)) => {
                table.insert(key.clone(), stamped(value, *offset, stamp));
            }
            (Self::StampedKey { .. } | Self::StampedValue { .. }, None) => {}
        }
    }

    /// The keys it touches once it has this stamp: from, and up to but without.
    pub(in crate::conformance) fn range(&self, stamp: Versionstamp) -> (Vec<u8>, Vec<u8>) {
        let alone = |key: &[u8]| (key.to_vec(), key_after(key).to_vec());
        match self {
            Self::Set { key, .. } | Self::Clear { key } | Self::StampedValue { key, .. } => alone(key),
            Self::ClearRange { begin, end } => (begin.clone(), end.clone()),
            Self::StampedKey { key, offset, .. } => alone(&stamped(key, *offset, stamp)),
        }
    }
}

fn stamped(template: &[u8], offset: usize, stamp: Versionstamp) -> Vec<u8> {
    let mut bytes = template.to_vec();
    bytes[offset..offset + stamp.0.len()].copy_from_slice(&stamp.0);
    bytes
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
        match self {
            Self::Set { key, value } => write!(f, "set {:?} = {:?}", text(key), text(value)),
            Self::Clear { key } => write!(f, "clear {:?}", text(key)),
            Self::ClearRange { begin, end } => write!(f, "clear {:?}..{:?}", text(begin), text(end)),
            Self::StampedKey { key, value, .. } => write!(f, "stamp {:?} = {:?}", text(key), text(value)),
            Self::StampedValue { key, value, .. } => {
                write!(f, "set {:?} = stamped {:?}", text(key), text(value))
            }
        }
    }
}

/// All pairs of a range in the order asked for, without its limits.
pub(in crate::conformance) fn in_range(table: &Table, query: &RangeQuery) -> Vec<(Bytes, Bytes)> {
    let inside = |(key, _): &(&Vec<u8>, &Vec<u8>)| key[..] >= query.begin[..] && key[..] < query.end[..];
    let mut pairs: Vec<(Bytes, Bytes)> = table
        .iter()
        .filter(inside)
        .map(|(key, value)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)))
        .collect();
    if query.reverse {
        pairs.reverse();
    }
    pairs
}

/// What is wrong with `page` as an answer to `query`, if anything. `tells_more`: whether what it says of the rest
/// counts too. At the place of a commit it does not, because a page that was cut short is guarded only as far as it
/// goes.
pub(in crate::conformance) fn wrong_in_page(
    table: &Table,
    query: &RangeQuery,
    page: &RangePage,
    tells_more: bool,
) -> Option<String> {
    let all = in_range(table, query);
    let taken = page.pairs.len();
    let bytes =
        |pairs: &[(Bytes, Bytes)]| pairs.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
    let is_full = (query.limit != 0 && taken >= query.limit) || (query.target_bytes != 0 && taken > 0);
    let overshoots = |target: usize| target != 0 && taken > 1 && bytes(&page.pairs[..taken - 1]) >= target;
    if !all.starts_with(&page.pairs) {
        Some(format!("returned {:?}, not {all:?}", page.pairs))
    } else if page.more != (taken < all.len()) && (tells_more || !page.more) {
        Some(format!("`more` is {} after {taken} of {}", page.more, all.len()))
    } else if page.more && !is_full {
        Some(format!("stopped after {taken} of {} without a reason", all.len()))
    } else if (query.limit != 0 && taken > query.limit) || overshoots(query.target_bytes) {
        Some(format!("returned {taken} pairs of {} bytes", bytes(&page.pairs)))
    } else {
        None
    }
}
