//! Keys, values, ranges and a transaction's own writes.

use tokio::task::JoinSet;

use super::{Must, Subject};
use crate::{Isolation, RangeQuery, Versionstamp};

/// Keys sort as unsigned bytes, whatever they hold; empty values are values.
pub async fn keys_are_ordered_as_bytes(subject: Subject) {
    let sorted: [&[u8]; 10] =
        [b"", b"\0", b"\0\0", b"\0\xff", b"a", b"a\0", b"a\xff", b"b", b"\xff", b"\xff\xff"];
    let mut tx = subject.begin();
    for suffix in [7, 2, 9, 0, 4, 1, 8, 3, 6, 5].map(|index| sorted[index]) {
        tx.set(&subject.key(suffix), suffix);
    }
    tx.commit().await.must();
    let mut tx = subject.begin();
    let found = subject.pairs(&mut *tx, subject.all()).await;
    assert!(found.iter().map(|(key, _)| key.as_slice()).eq(sorted), "{found:?}");
    assert!(found.iter().all(|(key, value)| key == value));
    let reversed = subject.pairs(&mut *tx, subject.all().reverse()).await;
    assert!(found.iter().eq(reversed.iter().rev()));
    for suffix in sorted {
        assert_eq!(subject.get(suffix).await.as_deref(), Some(suffix));
    }
    assert_eq!(subject.get("absent").await, None);
}

/// Begin is inclusive and end exclusive; limits and targets stop a page; `more` is exact; pages add up.
pub async fn ranges_honour_limit_target_and_direction(subject: Subject) {
    let mut tx = subject.begin();
    for name in "abcdefghij".chars() {
        tx.set(&subject.key(name.to_string()), &[b'v'; 100]);
    }
    tx.commit().await.must();
    let mut tx = subject.begin();
    for (query, expected) in [
        (subject.range("b", "d"), "b c"),
        (subject.range("b", "d").reverse(), "c b"),
        (subject.range("bb", "dd"), "c d"),
        (subject.range("d", "d"), ""),
        (subject.range("d", "b"), ""),
        (subject.range("x", "z"), ""),
        (subject.all().limit(3), "a b c"),
        (subject.all().limit(3).reverse(), "j i h"),
        (subject.all().target_bytes(1), "a"),
        (subject.all().target_bytes(250), "a b"),
        (subject.all().target_bytes(250).reverse(), "j i"),
        (subject.all().target_bytes(250).limit(1), "a"),
    ] {
        assert_eq!(subject.names(&mut *tx, query.clone()).await, expected, "{query:?}");
    }
    for (limit, more) in [(9, true), (10, false), (11, false), (0, false)] {
        for query in [subject.all().limit(limit), subject.all().limit(limit).reverse()] {
            let page = tx.get_range(query, Isolation::Snapshot).await.must();
            assert_eq!(page.more, more, "limit {limit}");
        }
    }
    for first in [subject.all().limit(3), subject.all().target_bytes(250), subject.all().limit(4).reverse()] {
        let (mut names, mut next) = (Vec::new(), Some(first));
        while let Some(query) = next {
            let page = tx.get_range(query.clone(), Isolation::Snapshot).await.must();
            names.extend(page.pairs.iter().map(|(key, _)| key[key.len() - 1]));
            next = query.after(&page);
        }
        names.sort_unstable();
        assert_eq!(names, b"abcdefghij");
    }
}

/// Reads, ranges and snapshot reads see what their own transaction wrote and cleared.
pub async fn own_writes_are_read(subject: Subject) {
    for name in ["a", "b", "c", "d", "e", "f"] {
        subject.put(name, "old").await;
    }
    let key = |name: &str| subject.key(name);
    let mut tx = subject.begin();
    tx.set(&key("bb"), b"new");
    tx.clear(&key("a"));
    tx.clear_range(&key("c"), &key("e"));
    tx.set(&key("cc"), b"new");
    tx.set(&key("e"), b"new");
    tx.set(&key("g"), b"new");
    for (name, expected) in [
        ("a", None),
        ("b", Some("old")),
        ("bb", Some("new")),
        ("c", None),
        ("cc", Some("new")),
        ("e", Some("new")),
    ] {
        for isolation in [Isolation::Serializable, Isolation::Snapshot] {
            let found = tx.get(&key(name), isolation).await.must();
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{name}");
        }
    }
    for (query, expected) in [
        (subject.all(), "b bb cc e f g"),
        (subject.all().reverse(), "g f e cc bb b"),
        (subject.all().limit(3), "b bb cc"),
        (subject.all().limit(2).reverse(), "g f"),
        (subject.range("c", "e"), "cc"),
    ] {
        assert_eq!(subject.names(&mut *tx, query.clone()).await, expected, "{query:?}");
    }
    for (query, more) in [(subject.all().limit(6), false), (subject.all().limit(5), true)] {
        assert_eq!(tx.get_range(query, Isolation::Snapshot).await.must().more, more);
    }
    assert_eq!(subject.get("a").await.as_deref(), Some(&b"old"[..]), "not yet for others");
    tx.commit().await.must();
    let mut tx = subject.begin();
    assert_eq!(subject.names(&mut *tx, subject.all()).await, "b bb cc e f g");
}

/// A range clear takes what is in it, also what was never there, and nothing else.
pub async fn clear_range_removes_exactly_its_keys(subject: Subject) {
    for name in ["a", "b", "bx", "c", "d"] {
        subject.put(name, "x").await;
    }
    let mut tx = subject.begin();
    tx.clear_range(&subject.key("b"), &subject.key("c"));
    tx.clear_range(&subject.key("d"), &subject.key("d"));
    tx.clear_range(&subject.key("d"), &subject.key("a"));
    tx.clear_range(&subject.key("x"), &subject.key("z"));
    tx.clear(&subject.key("never"));
    tx.commit().await.must();
    let mut tx = subject.begin();
    assert_eq!(subject.names(&mut *tx, subject.all()).await, "a c d");
}

/// Writes of one transaction take effect in their order, versionstamped ones among them.
pub async fn the_last_write_of_a_transaction_wins(subject: Subject) {
    let key = |name: &str| subject.key(name);
    let stamped = [&subject.key("s/")[..], &[0; 10]].concat();
    let mut tx = subject.begin();
    tx.set(&key("a"), b"1");
    tx.set(&key("a"), b"2");
    tx.set(&key("b"), b"1");
    tx.clear(&key("b"));
    tx.set(&key("c"), b"1");
    tx.clear_range(&key("c"), &key("d"));
    tx.set(&key("c"), b"2");
    tx.set_versionstamped_key(&stamped, stamped.len() - 10, b"gone");
    tx.set_versionstamped_value(&key("t"), &[0; 10], 0);
    tx.set_versionstamped_value(&key("u"), &[0; 10], 0);
    tx.clear_range(&key("s"), &key("t"));
    tx.set(&key("t"), b"2");
    tx.commit().await.must();
    let mut tx = subject.begin();
    assert_eq!(subject.names(&mut *tx, subject.all()).await, "a c t u");
    for (name, expected) in [("a", "2"), ("c", "2"), ("t", "2")] {
        assert_eq!(subject.get(name).await.as_deref(), Some(expected.as_bytes()), "{name}");
    }
    assert_eq!(subject.get("u").await.map(|value| value.len()), Some(10));
}

/// The stamp in keys and values is the one the commit returned; stamps grow with commits.
pub async fn versionstamps_are_unique_ordered_and_as_returned(subject: Subject) {
    let template = |tail: &[u8]| [&subject.key("feed/")[..], &[0xee; 10], tail].concat();
    let offset = subject.key("feed/").len();
    let mut stamps: Vec<Versionstamp> = Vec::new();
    for round in 0..5u8 {
        let mut tx = subject.begin();
        tx.set_versionstamped_key(&template(b"\x01"), offset, &[round, 1]);
        tx.set_versionstamped_key(&template(b"\x02"), offset, &[round, 2]);
        tx.set_versionstamped_value(&subject.key("last"), b"<..........>", 1);
        let unseen = tx.get_range(subject.range("feed/", "feed0"), Isolation::Snapshot).await.must();
        assert_eq!(unseen.pairs.len(), 2 * usize::from(round), "not readable before the commit");
        let committed = tx.commit().await.must();
        let stamp = committed.versionstamp.expect("a transaction with writes has a stamp");
        assert_eq!(stamp.0[..8], committed.version.0.to_be_bytes());
        assert_eq!(subject.get("last").await.expect("was written")[1..11], stamp.0);
        stamps.push(stamp);
    }
    assert!(stamps.is_sorted_by(|a, b| a < b), "{stamps:?}");
    let feed = RangeQuery::prefix(subject.key("feed/"));
    let found = subject.pairs(&mut *subject.begin(), feed).await;
    let expected = stamps.iter().zip(0u8..).flat_map(|(stamp, round)| {
        [1, 2].map(|tail| ([b"feed/", &stamp.0[..], &[tail]].concat(), vec![round, tail]))
    });
    assert!(found.iter().cloned().eq(expected), "{found:?}");
    let read_only = subject.begin().commit().await.must();
    assert_eq!(read_only.versionstamp, None);
}

/// A prefix holds every key that begins with it, itself included, and no other, also when it ends in 0xff.
pub async fn prefixes_hold_what_begins_with_them(subject: Subject) {
    let keys: [&[u8]; 9] =
        [b"a", b"a\0", b"a\xff", b"a\xff\0", b"a\xff\xff", b"a\xff\xff\xff", b"b", b"b\xfe", b"\xff\xff"];
    for key in keys {
        subject.put(key, key).await;
    }
    let prefixes: [&[u8]; 8] = [b"", b"a", b"a\0", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"c"];
    for prefix in prefixes {
        let mut tx = subject.begin();
        let query = RangeQuery::prefix(subject.key(prefix));
        let found = subject.pairs(&mut *tx, query.clone()).await;
        let expected: Vec<_> = keys.into_iter().filter(|key| key.starts_with(prefix)).collect();
        assert!(found.iter().map(|(key, _)| key.as_slice()).eq(expected.iter().copied()), "{prefix:?}");
        // A clear takes the same, as its transaction sees it.
        tx.clear_range(&query.begin, &query.end);
        assert_eq!(subject.pairs(&mut *tx, query).await, []);
        assert_eq!(subject.pairs(&mut *tx, subject.all()).await.len(), keys.len() - expected.len());
    }
}

/// Of two commits the one that is seen first has the lower stamp, however many are under way at once; what one
/// transaction stamps is ordered by what follows the stamp.
pub async fn stamps_of_concurrent_commits_are_in_the_order_of_the_commits(subject: Subject) {
    let mut tasks = JoinSet::new();
    for task in 0..16u8 {
        let subject = subject.clone();
        tasks.spawn(async move {
            let (prefix, mut stamps) = (subject.key("feed/"), Vec::new());
            for round in 0..4u8 {
                let mut tx = subject.begin();
                for tail in [2, 0, 1] {
                    let template = [&prefix[..], &[0; 10], &[tail]].concat();
                    tx.set_versionstamped_key(&template, prefix.len(), &[task, round, tail]);
                }
                stamps.extend(tx.commit().await.must().versionstamp);
            }
            (task, stamps)
        });
    }
    let mut told: Vec<(Versionstamp, u8, u8)> = Vec::new();
    for (task, stamps) in tasks.join_all().await {
        assert!(stamps.len() == 4 && stamps.is_sorted_by(|a, b| a < b), "{stamps:?}");
        told.extend(stamps.into_iter().zip(0..).map(|(stamp, round)| (stamp, task, round)));
    }
    told.sort_unstable();
    let rows = told.iter().flat_map(|(stamp, task, round)| {
        [0, 1, 2].map(|tail| ([b"feed/", &stamp.0[..], &[tail]].concat(), vec![*task, *round, tail]))
    });
    let found = subject.pairs(&mut *subject.begin(), subject.all()).await;
    assert!(rows.eq(found.iter().cloned()), "{found:?}");
    assert!(told.windows(2).all(|pair| pair[0].0 < pair[1].0), "each has its own");
}
