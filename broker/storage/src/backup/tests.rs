use std::sync::Arc;

use bytes::Bytes;
use weir_env::clock::Clock;
use weir_env::seed::Seed;

use super::*;
use crate::{MemoryStore, SharedStore, Version};

async fn store(pairs: u32, value_bytes: usize) -> SharedStore {
    let store: SharedStore = Arc::new(MemoryStore::new(Clock::system()));
    for batch in 0..pairs.div_ceil(100) {
        let mut tx = store.begin();
        for n in batch * 100..pairs.min(batch * 100 + 100) {
            tx.set(&n.to_be_bytes(), &vec![n.to_le_bytes()[0]; value_bytes]);
        }
        tx.commit().await.unwrap();
    }
    store
}

async fn bytes_of(store: &SharedStore) -> Vec<u8> {
    let mut backup = Backup::begin(store, "weir test", 7).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(part) = backup.next().await.unwrap() {
        assert!(part.len() < 2 * CHUNK_BYTES_TARGET, "{} bytes in one go", part.len());
        bytes.extend_from_slice(&part);
    }
    assert!(backup.next().await.unwrap().is_none());
    bytes
}

fn read(bytes: &[u8]) -> Result<(About, Vec<(Bytes, Bytes)>), BackupError> {
    let mut reader = BackupReader::open(bytes)?;
    let mut pairs = Vec::new();
    while let Some(chunk) = reader.next_chunk()? {
        pairs.extend(chunk);
    }
    assert!(reader.next_chunk()?.is_none());
    assert_eq!(reader.position(), bytes.len() as u64);
    Ok((reader.about().clone(), pairs))
}

#[tokio::test]
async fn every_pair_comes_back() {
    for (pairs, value_bytes) in [(0, 0), (1, 0), (1, 90_000), (1_000, 10), (30, 90_000)] {
        let store = store(pairs, value_bytes).await;
        let bytes = bytes_of(&store).await;
        let (about, found) = read(&bytes).unwrap();
        assert_eq!((about.engine.as_str(), about.program.as_str()), ("memory", "weir test"));
        assert_eq!(about.created_micros, 7);
        let mut tx = store.begin();
        let expected = tx.get_range(crate::RangeQuery::prefix(""), crate::Isolation::Snapshot).await;
        assert_eq!(found, expected.unwrap().pairs);
        let (_, extent) = BackupReader::open(&bytes[..]).unwrap().verify().unwrap();
        let bytes = u64::from(pairs) * (4 + value_bytes as u64);
        assert_eq!(extent, Extent { pairs: pairs.into(), bytes });
    }
}

#[tokio::test]
async fn a_backup_cut_off_anywhere_is_none() {
    let bytes = bytes_of(&store(20, 5).await).await;
    for len in 0..bytes.len() {
        let error = read(&bytes[..len]).unwrap_err();
        let expected = match error {
            BackupError::CutOff { at } => at == len as u64,
            BackupError::Foreign => len == 0,
            BackupError::Format(_) | BackupError::Io(_) | BackupError::Damaged { .. } => false,
        };
        assert!(expected, "{len} bytes: {error}");
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(read(&longer).unwrap_err().to_string().contains("something follows"));
}

#[tokio::test]
async fn no_flipped_bit_goes_unnoticed() {
    let bytes = bytes_of(&store(20, 5).await).await;
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            assert!(read(&damaged).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[tokio::test]
async fn frames_that_are_missing_repeated_or_moved_are_noticed() {
    let bytes = bytes_of(&store(12, 80_000).await).await;
    let mut frames = Vec::new();
    let mut at = MAGIC.len();
    while at < bytes.len() {
        let length = u32::from_be_bytes(bytes[at + 1..at + 5].try_into().unwrap()) as usize;
        frames.push(&bytes[at..at + length + 13]);
        at += length + 13;
    }
    assert!(frames.len() > 4, "{} frames", frames.len());
    let with = |order: &[usize]| {
        let parts: Vec<&[u8]> = order.iter().map(|n| frames[*n]).collect();
        [MAGIC, &parts.concat()].concat()
    };
    let all: Vec<usize> = (0..frames.len()).collect();
    assert!(read(&with(&all)).is_ok());
    let without: Vec<usize> = all.iter().copied().filter(|n| *n != 2).collect();
    let mut swapped = all.clone();
    swapped.swap(1, 2);
    let mut twice = all.clone();
    twice.insert(2, 2);
    for order in [without, swapped, twice] {
        assert!(read(&with(&order)).is_err(), "{order:?}");
    }
}

#[tokio::test]
async fn other_files_and_formats_are_told_apart() {
    assert!(matches!(read(b"PK\x03\x04 something else"), Err(BackupError::Foreign)));
    let error = read(b"weir backup 2\n...").unwrap_err().to_string();
    assert!(error.contains("`weir backup 2`"), "{error}");
}

#[test]
fn a_version_that_no_store_comes_to_is_refused() {
    for (version, is_fine) in [(Version::MAX.0, true), (Version::MAX.0 + 1, false), (u64::MAX, false)] {
        let body = [&version.to_be_bytes()[..], &[0; 12]].concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let frame = [&[HEADER][..], &length, &body, &checksum(0, HEADER, &body).to_be_bytes()].concat();
        let opened = read(&[MAGIC, &frame].concat()).unwrap_err();
        assert_eq!(matches!(opened, BackupError::CutOff { .. }), is_fine, "{version}: {opened}");
    }
}

/// Whatever a file holds, reading it ends without a panic and without much memory.
#[test]
fn noise_is_refused() {
    let seed = Seed::fixed(1);
    for _ in 0..2_000 {
        let len = usize::try_from(seed.next_u64() % 300).unwrap();
        let noise: Vec<u8> = (0..len).map(|_| seed.next_u64().to_be_bytes()[0]).collect();
        assert!(read(&[MAGIC, &noise].concat()).is_err());
        let number = 0;
        let frame = |kind: u8, body: &[u8]| {
            let length = u32::try_from(body.len()).unwrap().to_be_bytes();
            [&[kind][..], &length, body, &checksum(number, kind, body).to_be_bytes()].concat()
        };
        assert!(read(&[MAGIC, &frame(HEADER, &noise)].concat()).is_err());
    }
}
