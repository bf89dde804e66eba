//! The transactions of a history: drawn from a seed, run by several tasks at once, written down.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use weir_env::seed::Seed;

use super::model::Write;
use super::{Op, Outcome, Record};
use crate::{Committed, ConflictKind, Isolation, RangeQuery, Result, SharedStore, Transaction, Version};

const TASKS: u64 = 5;
const TRANSACTIONS: u64 = 8;
const OPS_MAX: u64 = 7;
/// Few, so that transactions meet.
const KEYS: u64 = 10;
/// Where the keys that transactions read begin, below the prefix.
const DATA: &[u8] = b"k";
/// Where the markers are, below the prefix.
const MARKERS: &[u8] = b"marker/";

/// The keys that transactions read, without their markers.
pub(super) fn data(prefix: &[u8]) -> RangeQuery {
    RangeQuery::prefix([prefix, DATA].concat())
}

/// Where all markers are; what follows is the name of the transaction.
pub(super) fn markers(prefix: &[u8]) -> Vec<u8> {
    [prefix, MARKERS].concat()
}

/// A key that whoever may be cancelled in its commit has read, and that is written when no commit may happen
/// any more.
pub(super) fn gate(prefix: &[u8]) -> Vec<u8> {
    [prefix, b"gate"].concat()
}

/// What the tasks know of each other.
#[derive(Debug, Default)]
struct Board {
    /// Highest version that a commit has returned.
    returned: Version,
    /// Versions that were seen lately.
    versions: Vec<Version>,
}

impl Board {
    fn note(&mut self, version: Version) {
        self.versions.push(version);
        if self.versions.len() > 8 {
            self.versions.remove(0);
        }
    }
}

/// Runs the transactions of `seed` below `prefix`.
pub(super) async fn run(store: &SharedStore, prefix: &[u8], seed: u64) -> Vec<Record> {
    let seed = Seed::fixed(seed);
    let board = Arc::new(Mutex::new(Board::default()));
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let task = Task {
            name: task,
            store: SharedStore::clone(store),
            prefix: prefix.to_vec(),
            seed: seed.fork(&format!("task {task}")),
            board: Arc::clone(&board),
        };
        tasks.spawn(task.run());
    }
    let mut records: Vec<Record> = tasks.join_all().await.into_iter().flatten().collect();
    records.sort_by(|a, b| a.name.cmp(&b.name));
    records
}

struct Task {
    name: u64,
    store: SharedStore,
    prefix: Vec<u8>,
    seed: Seed,
    board: Arc<Mutex<Board>>,
}

impl Task {
    async fn run(self) -> Vec<Record> {
        let mut records = Vec::new();
        for number in 0..TRANSACTIONS {
            records.push(self.transaction(format!("{}.{number}", self.name)).await);
        }
        records
    }

    /// Runs one transaction from begin to commit, or until it is given up.
    async fn transaction(&self, name: String) -> Record {
        let board = self.board.lock().returned;
        let mut tx = self.store.begin();
        let mut record = Record {
            name,
            begun_after: board,
            reads_at: None,
            is_chosen: false,
            ops: Vec::new(),
            asked_after: board,
            outcome: Outcome::Absent(None),
        };
        if let Err(error) = self.fill(&mut *tx, &mut record).await {
            record.outcome = Outcome::Absent(Some(error));
            return record;
        }
        if self.seed.below(20) == 0 {
            return record;
        }
        if !record.is_read_only() {
            let key = [&markers(&self.prefix), record.name.as_bytes()].concat();
            tx.set_versionstamped_value(&key, &[0; 10], 0);
        }
        record.asked_after = self.board.lock().returned;
        record.outcome = if self.seed.below(16) == 0 {
            self.commit_impatiently(tx).await
        } else {
            self.told(tx.commit().await)
        };
        record
    }

    /// Asks for the commit and waits for it hardly at all.
    async fn commit_impatiently(&self, mut tx: Box<dyn Transaction>) -> Outcome {
        if let Err(error) = tx.get(&gate(&self.prefix), Isolation::Serializable).await {
            return Outcome::Absent(Some(error));
        }
        let patience = self.seed.below(3);
        tokio::select! {
            biased;
            outcome = tx.commit() => self.told(outcome),
            () = async { for _ in 0..=patience { tokio::task::yield_now().await } } => Outcome::Unknown,
        }
    }

    fn told(&self, outcome: Result<Committed>) -> Outcome {
        match outcome {
            Ok(committed) => {
                let mut board = self.board.lock();
                if committed.versionstamp.is_some() {
                    board.returned = board.returned.max(committed.version);
                }
                board.note(committed.version);
                Outcome::Committed(committed)
            }
            Err(error) if error.may_have_committed() => Outcome::Unknown,
            Err(error) => Outcome::Absent(Some(error)),
        }
    }

    /// What the transaction does before its commit.
    async fn fill(&self, tx: &mut dyn Transaction, record: &mut Record) -> Result<()> {
        let seed = &self.seed;
        let recent = self.board.lock().versions.clone();
        if seed.below(4) == 0 && !recent.is_empty() {
            let index = usize::try_from(seed.below(recent.len() as u64)).unwrap_or(0);
            tx.set_read_version(recent[index]);
            (record.reads_at, record.is_chosen) = (Some(recent[index]), true);
        }
        // Some only write, some only read, most do both in any order.
        let (reads, writes) = [(0, 6), (6, 0), (3, 3), (4, 2)][usize::try_from(seed.below(4)).unwrap_or(0)];
        for _ in 0..=seed.below(OPS_MAX) {
            let may_guard = reads > 0 && record.writes().next().is_none();
            let op = if may_guard && seed.below(8) == 0 {
                let (begin, end) = self.range();
                tx.add_conflict_range(&begin, &end, ConflictKind::Read);
                Op::ReadConflict { begin, end }
            } else if seed.below(reads + writes) < reads {
                self.read(tx).await?
            } else {
                self.write(tx, record)
            };
            let has_read = matches!(op, Op::Get { .. } | Op::Range { .. });
            record.ops.push(op);
            if has_read && record.reads_at.is_none() {
                record.reads_at = Some(tx.read_version().await?);
            }
            for _ in 0..seed.below(4) {
                tokio::task::yield_now().await;
            }
        }
        if let Some(version) = record.reads_at.filter(|_| reads > 0 && !record.is_chosen) {
            self.board.lock().note(version);
        }
        Ok(())
    }

    async fn read(&self, tx: &mut dyn Transaction) -> Result<Op> {
        let seed = &self.seed;
        let isolation = if seed.below(3) == 0 { Isolation::Snapshot } else { Isolation::Serializable };
        if seed.below(2) == 0 {
            let key = self.key();
            let saw = tx.get(&key, isolation).await?;
            return Ok(Op::Get { key, isolation, saw });
        }
        let (begin, end) = self.range();
        let mut query = RangeQuery::new(begin, end);
        if seed.below(2) == 0 {
            query = query.reverse();
        }
        query = match seed.below(4) {
            0 => query.limit(1 + usize::try_from(seed.below(4)).unwrap_or(0)),
            1 => query.target_bytes(1 + usize::try_from(seed.below(200)).unwrap_or(0)),
            _ => query,
        };
        let saw = tx.get_range(query.clone(), isolation).await?;
        Ok(Op::Range { query, isolation, saw })
    }

    fn write(&self, tx: &mut dyn Transaction, record: &Record) -> Op {
        let seed = &self.seed;
        // No two writes write the same value, so that a read tells which one it saw.
        let value = format!("{}.{}", record.name, record.ops.len()).into_bytes();
        let write = match seed.below(12) {
            0 | 1 => Write::Clear { key: self.key() },
            2 => {
                let (begin, end) = self.range();
                Write::ClearRange { begin, end }
            }
            3 => {
                let mut key = self.key();
                key.push(b'/');
                let offset = key.len();
                key.extend([0xee; 10]);
                key.extend(&value);
                Write::StampedKey { key, offset, value }
            }
            4 => {
                let offset = value.len();
                Write::StampedValue { key: self.key(), value: [&value[..], &[0xee; 11]].concat(), offset }
            }
            5 => {
                let (begin, end) = self.range();
                tx.add_conflict_range(&begin, &end, ConflictKind::Write);
                return Op::WriteConflict { begin, end };
            }
            _ => Write::Set { key: self.key(), value },
        };
        write.perform(tx);
        Op::Write(write)
    }

    fn key(&self) -> Vec<u8> {
        let number = format!("{}", self.seed.below(KEYS));
        [&self.prefix, DATA, number.as_bytes()].concat()
    }

    /// Two keys in order, or all there are; now and then an empty range.
    fn range(&self) -> (Vec<u8>, Vec<u8>) {
        let (a, b) = (self.key(), self.key());
        match self.seed.below(6) {
            0 => {
                let RangeQuery { begin, end, .. } = data(&self.prefix);
                (begin.to_vec(), end.to_vec())
            }
            1 => (a.clone().max(b.clone()), a.min(b)),
            _ => (a.clone().min(b.clone()), a.max(b)),
        }
    }
}
