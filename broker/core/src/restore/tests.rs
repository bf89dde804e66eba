use std::sync::Arc;

use weir_env::clock::{Clock, Timestamp};
use weir_storage::{FaultStore, MemoryStore};

use super::*;
use crate::keyspace::VirtualShard;
use crate::keyspace::session::{ClientKeys, Incarnation};
use crate::keyspace::timer::TimerId;

fn memory() -> SharedStore {
    Arc::new(MemoryStore::new(Clock::system()))
}

fn pair(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> (Bytes, Bytes) {
    (Bytes::from(key.into()), Bytes::from(value.into()))
}

fn format() -> (Bytes, Bytes) {
    let format = KeyspaceFormat { virtual_shards: 256, cluster_id: [7; 16] };
    pair(KeyspaceFormat::key(), format.encode())
}

async fn all(store: &SharedStore) -> Pairs {
    store.begin().get_range(RangeQuery::new(b"", KEYS_END), Isolation::Snapshot).await.unwrap().pairs
}

#[test]
fn fences_are_raised_and_wills_follow_them() {
    let leap = EPOCH_LEAP;
    let owner = Owner { epoch: Epoch(3), pod: PodId([9; 16]) };
    let (_, value) = renew(Owner::key(VirtualShard(1)).into(), owner.encode().into()).unwrap();
    assert_eq!(Owner::decode(value), Ok(Owner { epoch: Epoch(leap + 3), pod: NOBODY }));

    let keys = ClientKeys::new("c1", 256);
    let fence = Fence {
        epoch: SessionEpoch(4),
        pod: [2; 16],
        connection: 5,
        incarnation: Incarnation(6),
        persistent: true,
        has_will: true,
    };
    let (_, value) = renew(keys.fence().into(), fence.encode().into()).unwrap();
    assert_eq!(Fence::decode(value), Ok(Fence { epoch: SessionEpoch(leap + 4), ..fence }));

    let will = |epoch| WillId {
        pod: [2; 16],
        client_id: "c1".into(),
        incarnation: Incarnation(6),
        epoch: SessionEpoch(epoch),
    };
    for part in [0, 7] {
        let (key, value) = renew(will(4).key(part).into(), Bytes::from_static(b"message")).unwrap();
        assert_eq!((WillId::decode_key(key), &value[..]), (Ok((will(leap + 4), part)), &b"message"[..]));
    }
    let timer =
        Timer::key(VirtualShard(1), TimerKind::Will, TimerId { due: Timestamp::from_micros(1), seq: 1 });
    let (_, value) = renew(timer.into(), Timer::Will(will(4)).encode().into()).unwrap();
    assert_eq!(Timer::decode(TimerKind::Will, value), Ok(Timer::Will(will(leap + 4))));
}

#[test]
fn everything_else_stays_as_it_is() {
    let keys = ClientKeys::new("ee", 256);
    let id = TimerId { due: Timestamp::from_micros(1), seq: 1 };
    for key in [
        keys.state(),
        keys.subscription("e"),
        keys.outgoing(u16::from(b'e')),
        Timer::key(VirtualShard(0), TimerKind::SessionEnd, id),
        b"l\0\0segment".to_vec(),
        b"unheard of".to_vec(),
    ] {
        let record = pair(key, "any bytes");
        assert_eq!(renew(record.0.clone(), record.1.clone()), Ok(record));
    }
}

#[test]
fn what_is_not_readable_is_found_before_anything_is_written() {
    let newer = pair(KeyspaceFormat::key(), [9; 19]);
    let unfinished = pair(KeyspaceFormat::key(), format::restoring(&[1; 16]));
    let owner = pair(Owner::key(VirtualShard(1)), "?");
    for record in [newer, unfinished, owner] {
        assert!(check(&vec![record.clone()]).is_err(), "{record:?}");
    }
    assert_eq!(check(&vec![format(), pair("l", "?")]), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_store_is_one_only_once_everything_is_in_it() {
    let store = memory();
    let seed = Seed::fixed(1);
    let mut restore = Restore::begin(&store, Version(1), &seed).await.unwrap();
    let records: Pairs = (0..50).map(|n: u32| pair(n.to_be_bytes(), vec![1; 80_000])).collect();
    restore.add(records.clone()).await.unwrap();
    restore.add(vec![format()]).await.unwrap();
    assert!(all(&store).await.len() > 10, "it is written as it comes");
    let opened = crate::inspect::keyspace(&*store).await.unwrap_err().to_string();
    assert!(opened.contains("empty the store, then restore again"), "{opened}");
    let second = Restore::begin(&store, Version(1), &Seed::fixed(2)).await.unwrap_err();
    assert!(matches!(second, RestoreError::Unfinished), "{second}");

    restore.finish().await.unwrap();
    let mut expected = records;
    expected.push(format());
    assert_eq!(all(&store).await, expected);
    let again = Restore::begin(&store, Version(1), &seed).await.unwrap_err();
    assert!(matches!(again, RestoreError::NotEmpty), "{again}");
}

#[tokio::test(start_paused = true)]
async fn who_else_writes_is_noticed() {
    let store = memory();
    let mut restore = Restore::begin(&store, Version(1), &Seed::fixed(1)).await.unwrap();
    let mut tx = store.begin();
    tx.clear(&KeyspaceFormat::key());
    tx.commit().await.unwrap();
    restore.add(vec![pair("l", "1"), format()]).await.unwrap();
    assert!(matches!(restore.finish().await, Err(RestoreError::Interfered)));
    assert!(all(&store).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn versionstamps_go_on_above_those_of_the_backup() {
    let store = memory();
    let high = Version(1 << 50);
    Restore::begin(&store, high, &Seed::fixed(1)).await.unwrap().finish().await.unwrap();
    let mut tx = store.begin();
    tx.set(b"a", b"");
    let committed = tx.commit().await.unwrap();
    assert!(committed.version > high);
    // And the clock of versions still runs.
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(store.begin().read_version().await.unwrap().0 >= committed.version.0 + 9_000_000);
    let mut old = store.begin();
    old.set_read_version(committed.version);
    assert!(matches!(old.get(b"a", Isolation::Snapshot).await, Err(weir_storage::Error::TooOld)));
}

#[tokio::test(start_paused = true)]
async fn outcomes_that_are_not_known_do_no_harm() {
    use weir_storage::CommitFault::{OpenCommittedLater, OpenLost, SettledCommitted, SettledLost};
    let later = OpenCommittedLater(Duration::from_millis(250));
    for faults in [
        [SettledCommitted, SettledLost, SettledCommitted],
        [SettledLost, OpenLost, SettledLost],
        [SettledCommitted, later.clone(), later],
    ] {
        let faulty = FaultStore::wrap(memory(), Seed::fixed(1));
        let handle = faulty.handle();
        let store: SharedStore = Arc::new(faulty);
        let [first, second, third] = faults;
        handle.fail_next_commit(first);
        let mut restore = Restore::begin(&store, Version(1), &Seed::fixed(1)).await.unwrap();
        restore.add(vec![pair("l", "1"), format()]).await.unwrap();
        handle.fail_next_commit(second);
        handle.fail_next_commit(third);
        restore.finish().await.unwrap();
        handle.settle().await;
        assert_eq!(all(&store).await, [format(), pair("l", "1")]);
    }
}
