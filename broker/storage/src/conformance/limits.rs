//! Sizes.

use super::{Must, Subject, assert_fails};
use crate::limits::{KEY_BYTES_MAX, TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX};
use crate::{ConflictKind, TransactionSize};

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
            let room = TRANSACTION_BYTES_MAX - size.total() - key.len() - usize::from(!over);
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
