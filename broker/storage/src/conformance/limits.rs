//! Sizes.

use super::{Must, Subject, assert_fails};
use crate::limits::{KEY_BYTES_MAX, TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX};
use crate::{ConflictKind, Isolation, RangeQuery, Transaction, TransactionSize};

/// Keys, values and transactions are taken up to their limit and refused from the next byte on.
pub async fn sizes_are_limited_exactly(subject: Subject) {
    let longest = vec![b'k'; KEY_BYTES_MAX - subject.prefix.len()];
    subject.put(&longest, vec![b'v'; VALUE_BYTES_MAX]).await;
    assert_eq!(subject.get(&longest).await.map(|value| value.len()), Some(VALUE_BYTES_MAX));

    let too_long = subject.key([&longest[..], b"k"].concat());
    let mut tx = subject.begin();
    tx.set(&too_long, b"x");
    assert_fails!(tx.commit().await, TooLarge { what: "key", .. });
    let mut tx = subject.begin();
    tx.set(&subject.key("big"), &[0; VALUE_BYTES_MAX + 1]);
    assert_fails!(tx.commit().await, TooLarge { what: "value", .. });
    // A key over the limit can't be there to be cleared.
    let mut tx = subject.begin();
    tx.clear(&too_long);
    tx.set(&subject.key("ok"), b"x");
    tx.commit().await.must();

    for over in [false, true] {
        let mut tx = subject.begin();
        let mut size = TransactionSize::default();
        let fence = subject.key("fence");
        tx.add_conflict_key(&fence, ConflictKind::Read);
        size.add_range(fence.len(), fence.len() + 1);
        let (begin, end) = (subject.key("x"), subject.key("y"));
        tx.clear_range(&begin, &end);
        size.add_range(begin.len(), end.len());
        for number in 0.. {
            let key = subject.key(format!("row {number:03}"));
            let room = room_for(&size, &key) - usize::from(!over);
            let value = vec![b'v'; room.min(VALUE_BYTES_MAX)];
            tx.set(&key, &value);
            size.add_write(key.len(), value.len());
            // The last one leaves room for itself alone.
            if room <= VALUE_BYTES_MAX {
                break;
            }
        }
        assert_eq!(size.total() == TRANSACTION_BYTES_MAX, over);
        match over {
            false => drop(tx.commit().await.must()),
            true => assert_fails!(tx.commit().await, TooLarge { what: "transaction", .. }),
        }
    }
}

/// Bytes of a value at `key` with which the size is at the limit.
fn room_for(size: &TransactionSize, key: &[u8]) -> usize {
    TRANSACTION_BYTES_MAX - size.total() - TransactionSize::of_write(key.len(), 0)
}

/// A transaction may be full of the smallest writes there are, and of ranges. It then takes the most room where an
/// engine stores more than was written.
pub async fn a_transaction_full_of_small_writes_is_taken(subject: Subject) {
    for kind in 0..4 {
        let (mut tx, mut size) = (subject.begin(), TransactionSize::default());
        for number in 0u32.. {
            let key = subject.key(number.to_be_bytes());
            let end = subject.key((number + 1).to_be_bytes());
            match kind {
                0 => tx.clear(&key),
                1 => tx.set(&key, b""),
                2 => tx.clear_range(&key, &end),
                _ => tx.add_conflict_range(&key, &end, ConflictKind::Write),
            }
            match kind {
                0 | 1 => size.add_write(key.len(), 0),
                _ => size.add_range(key.len(), end.len()),
            }
            if number == 0 {
                // From here on the order of the writes is kept to the commit.
                let (key, value) = (subject.key("stamped"), [0; 10]);
                tx.set_versionstamped_value(&key, &value, 0);
                size.add_write(key.len(), value.len());
            }
            if size.total() + TransactionSize::of_write(key.len(), key.len()) >= TRANSACTION_BYTES_MAX {
                break;
            }
        }
        tx.commit().await.must();
    }
}

/// Something that a transaction can be filled with, by what it adds to the size.
#[derive(Clone, Copy, Debug)]
enum Filling {
    Get,
    Range,
    ReadConflict,
    WriteConflict,
    Clear,
    ClearRange,
    StampedKey,
    StampedValue,
}

impl Filling {
    const ALL: [Self; 8] = [
        Self::Get,
        Self::Range,
        Self::ReadConflict,
        Self::WriteConflict,
        Self::Clear,
        Self::ClearRange,
        Self::StampedKey,
        Self::StampedValue,
    ];

    async fn add(self, subject: &Subject, tx: &mut dyn Transaction, size: &mut TransactionSize) {
        let key = subject.key(vec![b'k'; KEY_BYTES_MAX - subject.prefix.len()]);
        let (end, value) = (subject.key("z"), vec![b'v'; 50_000]);
        match self {
            Self::Get => drop(tx.get(&key, Isolation::Serializable).await.must()),
            Self::Range => {
                drop(tx.get_range(RangeQuery::new(&key, &end), Isolation::Serializable).await.must());
            }
            Self::ReadConflict => tx.add_conflict_key(&key, ConflictKind::Read),
            Self::WriteConflict => tx.add_conflict_range(&key, &end, ConflictKind::Write),
            Self::Clear => tx.clear(&key),
            Self::ClearRange => tx.clear_range(&key, &end),
            Self::StampedKey => tx.set_versionstamped_key(&key, key.len() - 10, &value),
            Self::StampedValue => tx.set_versionstamped_value(&key, &value, 0),
        }
        match self {
            Self::Get | Self::ReadConflict => size.add_range(key.len(), key.len() + 1),
            Self::Range | Self::WriteConflict | Self::ClearRange => size.add_range(key.len(), end.len()),
            Self::Clear => size.add_write(key.len(), 0),
            Self::StampedKey | Self::StampedValue => size.add_write(key.len(), value.len()),
        }
    }
}

/// Reads, conflicts, clears and stamped writes count as much as plain writes do, also where they repeat one
/// another. Snapshot reads do not.
pub async fn everything_in_a_transaction_counts_towards_its_size(subject: Subject) {
    for filling in Filling::ALL {
        for over in [false, true] {
            let (mut tx, mut size) = (subject.begin(), TransactionSize::default());
            while size.total() < TRANSACTION_BYTES_MAX - 60_000 {
                filling.add(&subject, &mut *tx, &mut size).await;
                tx.get(&subject.key("free of charge"), Isolation::Snapshot).await.must();
            }
            let key = subject.key("the rest");
            let room = room_for(&size, &key) - usize::from(!over);
            tx.set(&key, &vec![b'v'; room]);
            match over {
                false => drop(tx.commit().await.must()),
                true => {
                    assert_fails!(
                        tx.commit().await,
                        TooLarge { what: "transaction", size: TRANSACTION_BYTES_MAX, .. }
                    )
                }
            }
        }
    }
}
