//! Random concurrent transactions, and proof that some order of them, one at a time, explains all they saw.
//!
//! [`History::record`] runs them and writes down what each read, wrote and was told. [`History::check`] puts
//! those that committed in the order of their versionstamps and follows them on a model, a map in memory.
//! Knows the contract alone, and neither the engine nor whether it injects faults: each transaction that writes
//! leaves a marker with its versionstamp, so what an unknown outcome really was can be read afterwards.

mod check;
pub(super) mod model;
#[cfg(test)]
mod tests;
mod workload;

use std::fmt;

use bytes::Bytes;

pub use self::check::Tally;
use self::model::Write;
use crate::{Committed, Error, Isolation, RangePage, RangeQuery, SharedStore, Version};

/// Concurrent transactions as their callers saw them.
#[derive(Debug)]
pub struct History {
    seed: u64,
    prefix: Vec<u8>,
    records: Vec<Record>,
}

/// One transaction.
#[derive(Clone, Debug)]
struct Record {
    /// Task and number in it; unique.
    name: String,
    /// The newest version whose commit had returned when this one began.
    begun_after: Version,
    /// What it read at, if it took a read version and lived to tell.
    reads_at: Option<Version>,
    /// Whether that version was chosen by the caller.
    is_chosen: bool,
    ops: Vec<Op>,
    /// The newest version whose commit had returned when this one's was asked for.
    asked_after: Version,
    outcome: Outcome,
}

/// What was done in a transaction, and what came of it.
#[derive(Clone, Debug)]
enum Op {
    Get { key: Vec<u8>, isolation: Isolation, saw: Option<Bytes> },
    Range { query: RangeQuery, isolation: Isolation, saw: RangePage },
    ReadConflict { begin: Vec<u8>, end: Vec<u8> },
    WriteConflict { begin: Vec<u8>, end: Vec<u8> },
    Write(Write),
}

/// What its caller was told.
#[derive(Clone, Debug)]
enum Outcome {
    Committed(Committed),
    /// It failed, or was given up, and must leave no trace.
    Absent(Option<Error>),
    Unknown,
}

impl History {
    /// Runs random transactions that `seed` determines on keys below `prefix`, where there must be none yet,
    /// and writes them down.
    pub async fn record(store: &SharedStore, prefix: impl AsRef<[u8]>, seed: u64) -> Self {
        let prefix = prefix.as_ref().to_vec();
        let records = workload::run(store, &prefix, seed).await;
        Self { seed, prefix, records }
    }

    /// Whether one order of the committed transactions explains all that was seen. The store must be idle by
    /// now, and free of faults.
    ///
    /// # Panics
    /// If there is no such order: says which transaction saw what it should not.
    pub async fn check(&self, store: &SharedStore) -> Tally {
        match check::check(self, store).await {
            Ok(tally) => tally,
            Err(why) => panic!("history of seed {} is not serializable: {why}", self.seed),
        }
    }
}

impl Record {
    fn writes(&self) -> impl Iterator<Item = &Write> {
        self.ops.iter().filter_map(|op| match op {
            Op::Write(write) => Some(write),
            Op::Get { .. } | Op::Range { .. } | Op::ReadConflict { .. } | Op::WriteConflict { .. } => None,
        })
    }

    fn is_read_only(&self) -> bool {
        !self.ops.iter().any(|op| matches!(op, Op::Write(_) | Op::WriteConflict { .. }))
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:?}, ", self.name, self.reads_at)?;
        match &self.outcome {
            Outcome::Committed(told) => writeln!(f, "told {told:?}:")?,
            Outcome::Absent(Some(error)) => writeln!(f, "refused, {error}:")?,
            Outcome::Absent(None) => writeln!(f, "given up:")?,
            Outcome::Unknown => writeln!(f, "of unknown outcome:")?,
        }
        self.ops.iter().try_for_each(|op| writeln!(f, "    {op:?}"))
    }
}
