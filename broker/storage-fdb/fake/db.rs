//! A database in memory that answers as FoundationDB does: versions, snapshots, conflicts, versionstamps, watches.
//! Knows nothing of the C API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use weir_env::clock::{Clock, Instant};

use crate::future::Signal;

type Key = Vec<u8>;
type Value = Option<Vec<u8>>;
pub(crate) type Pair = (Key, Vec<u8>);

const TOO_OLD: i32 = 1007;
const FUTURE_VERSION: i32 = 1009;
const CONFLICT: i32 = 1020;

#[derive(Clone)]
pub(crate) enum Mutation {
    Set(Key, Vec<u8>),
    Clear(Key, Key),
    StampedKey(Key, Vec<u8>),
    StampedValue(Key, Vec<u8>),
}

pub(crate) struct Database(Mutex<State>);

struct State {
    begun: Instant,
    version: i64,
    /// Each key with its values, oldest first.
    rows: BTreeMap<Key, Vec<(i64, Value)>>,
    /// What was written when.
    written: Vec<(i64, Key, Key)>,
    watches: Vec<(Key, Value, Arc<Signal>)>,
}

pub(crate) struct Query<'a> {
    pub(crate) begin: &'a [u8],
    pub(crate) end: &'a [u8],
    pub(crate) limit: usize,
    pub(crate) bytes: usize,
    pub(crate) reverse: bool,
}

impl Database {
    pub(crate) fn new() -> Self {
        let begun = Clock::system().now();
        let (rows, written, watches) = Default::default();
        Self(Mutex::new(State { begun, version: 1, rows, written, watches }))
    }

    pub(crate) fn read_version(&self) -> i64 {
        self.0.lock().now()
    }

    pub(crate) fn get(&self, key: &[u8], version: i64) -> Result<Value, i32> {
        let mut state = self.0.lock();
        state.check(version)?;
        Ok(state.value(key, version))
    }

    /// Pairs, and whether the limit or the target ended them.
    pub(crate) fn range(&self, query: &Query<'_>, version: i64) -> Result<(Vec<Pair>, bool), i32> {
        let mut state = self.0.lock();
        state.check(version)?;
        let (mut pairs, mut bytes) = (Vec::new(), 0);
        let keys: Vec<Key> =
            state.rows.range(query.begin.to_vec()..query.end.to_vec()).map(|(key, _)| key.clone()).collect();
        let keys: Box<dyn Iterator<Item = Key>> =
            if query.reverse { Box::new(keys.into_iter().rev()) } else { Box::new(keys.into_iter()) };
        for key in keys {
            let Some(value) = state.value(&key, version) else { continue };
            bytes += key.len() + value.len();
            pairs.push((key, value));
            if pairs.len() == query.limit || bytes >= query.bytes {
                // As FoundationDB: also where nothing is left.
                return Ok((pairs, true));
            }
        }
        Ok((pairs, false))
    }

    /// The version and the versionstamp of the commit.
    pub(crate) fn commit(
        &self,
        read_version: Option<i64>,
        reads: &[(Key, Key)],
        writes: &[(Key, Key)],
        mutations: Vec<Mutation>,
    ) -> Result<(i64, [u8; 10]), i32> {
        let mut state = self.0.lock();
        if let Some(read_version) = read_version.filter(|_| !reads.is_empty()) {
            state.check(read_version)?;
            let conflicts = |(at, begin, end): &(i64, Key, Key)| {
                *at > read_version && reads.iter().any(|(first, last)| first < end && begin < last)
            };
            if state.written.iter().any(conflicts) {
                return Err(CONFLICT);
            }
        }
        let version = state.now() + 1;
        state.version = version;
        let mut stamp = [0; 10];
        stamp[..8].copy_from_slice(&version.to_be_bytes());
        for (begin, end) in writes {
            state.written.push((version, begin.clone(), end.clone()));
        }
        for mutation in mutations {
            state.apply(version, mutation, stamp);
        }
        state.fire();
        Ok((version, stamp))
    }

    /// Fires `signal` once `key` has another value than at `version`.
    pub(crate) fn watch(&self, key: &[u8], version: i64, signal: Arc<Signal>) -> Result<(), i32> {
        let mut state = self.0.lock();
        state.check(version)?;
        let value = state.value(key, version);
        state.watches.push((key.to_vec(), value, signal));
        state.fire();
        Ok(())
    }
}

impl State {
    fn now(&mut self) -> i64 {
        let passed = Clock::system().now().saturating_duration_since(self.begun).as_micros();
        self.version = self.version.max(i64::try_from(passed).unwrap_or(i64::MAX));
        self.version
    }

    fn check(&mut self, version: i64) -> Result<(), i32> {
        let lifetime = i64::try_from(Duration::from_secs(5).as_micros()).unwrap_or(i64::MAX);
        match self.now() {
            now if version > now => Err(FUTURE_VERSION),
            now if version < now - lifetime => Err(TOO_OLD),
            _ => Ok(()),
        }
    }

    fn value(&self, key: &[u8], version: i64) -> Value {
        let history = self.rows.get(key)?;
        history.iter().rev().find(|(at, _)| *at <= version).and_then(|(_, value)| value.clone())
    }

    fn put(&mut self, version: i64, key: Key, value: Value) {
        let end = [&key[..], &[0]].concat();
        self.written.push((version, key.clone(), end));
        self.rows.entry(key).or_default().push((version, value));
    }

    fn apply(&mut self, version: i64, mutation: Mutation, stamp: [u8; 10]) {
        match mutation {
            Mutation::Set(key, value) => self.put(version, key, Some(value)),
            Mutation::Clear(begin, end) => {
                for (_, history) in self.rows.range_mut(begin.clone()..end.clone()) {
                    history.push((version, None));
                }
                self.written.push((version, begin, end));
            }
            Mutation::StampedKey(key, value) => self.put(version, stamped(key, stamp), Some(value)),
            Mutation::StampedValue(key, value) => self.put(version, key, Some(stamped(value, stamp))),
        }
    }

    fn fire(&mut self) {
        let now = self.version;
        let watches = std::mem::take(&mut self.watches);
        for (key, value, signal) in watches {
            match self.value(&key, now) == value {
                true => self.watches.push((key, value, signal)),
                false => signal.fire(),
            }
        }
    }
}

/// Puts the stamp where the last four bytes say.
fn stamped(mut bytes: Vec<u8>, stamp: [u8; 10]) -> Vec<u8> {
    let offset = bytes.split_off(bytes.len() - 4);
    let offset = u32::from_le_bytes(offset.try_into().expect("four bytes were split off")) as usize;
    bytes[offset..offset + stamp.len()].copy_from_slice(&stamp);
    bytes
}
