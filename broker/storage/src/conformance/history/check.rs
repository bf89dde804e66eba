//! Whether a history is serializable: follows its committed transactions, one after the other, on the model.

use std::collections::BTreeMap;
use std::ops::Range;

use super::model::{Table, wrong_in_page};
use super::workload::{data, gate, markers};
use super::{History, Op, Outcome, Record};
use crate::{Isolation, RangeQuery, Result, SharedStore, Version, Versionstamp, key_after};

/// How often what is left is read.
const ATTEMPTS: usize = 50;

/// What became of the transactions of a history, to see that it was not an idle one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Committed with writes, as their callers were told.
    pub committed: usize,
    /// Committed without writes.
    pub read_only: usize,
    /// Refused or given up.
    pub absent: usize,
    /// Committed, and nobody was told.
    pub unknown_committed: usize,
    /// Not committed, and nobody was told.
    pub unknown_lost: usize,
}

impl Tally {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            committed: self.committed + other.committed,
            read_only: self.read_only + other.read_only,
            absent: self.absent + other.absent,
            unknown_committed: self.unknown_committed + other.unknown_committed,
            unknown_lost: self.unknown_lost + other.unknown_lost,
        }
    }
}

/// What is left in the store.
#[derive(Debug, Default)]
pub(super) struct Remains {
    pub(super) data: Table,
    /// By the name of the transaction.
    pub(super) markers: BTreeMap<String, Vec<u8>>,
}

type Verdict<T> = std::result::Result<T, String>;

pub(super) async fn check(history: &History, store: &SharedStore) -> Verdict<Tally> {
    let mut attempts = 1;
    let remains = loop {
        match read_remains(history, store).await {
            Ok(remains) => break remains,
            // A healthy store may say so too, and doing it again is harmless.
            Err(error) if attempts < ATTEMPTS && (error.is_retryable() || error.may_have_committed()) => {
                attempts += 1;
            }
            Err(error) => return Err(format!("unexpected error: {error}")),
        }
    };
    Order::establish(&history.records, &remains)?.check(&history.records, &remains.data)
}

async fn read_remains(history: &History, store: &SharedStore) -> Result<Remains> {
    // Commits that were cancelled have read it: from now on none of them can happen any more.
    let mut tx = store.begin();
    tx.set(&gate(&history.prefix), b"shut");
    tx.commit().await?;
    let mut remains = Remains::default();
    let prefix = markers(&history.prefix);
    let (mut tx, mut next) = (store.begin(), Some(data(&history.prefix)));
    while let Some(query) = next {
        let page = tx.get_range(query.clone(), Isolation::Snapshot).await?;
        remains.data.extend(page.pairs.iter().map(|(key, value)| (key.to_vec(), value.to_vec())));
        next = query.after(&page);
    }
    let mut next = Some(RangeQuery::prefix(&prefix));
    while let Some(query) = next {
        let page = tx.get_range(query.clone(), Isolation::Snapshot).await?;
        let name = |key: &[u8]| String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
        remains.markers.extend(page.pairs.iter().map(|(key, value)| (name(key), value.to_vec())));
        next = query.after(&page);
    }
    Ok(remains)
}

/// The transactions that committed writes, in their order, with the model before and after each.
#[derive(Debug)]
pub(super) struct Order<'a> {
    committed: Vec<(Versionstamp, &'a Record)>,
    /// One more than `committed`: what was there before it, and at last what must be there now.
    tables: Vec<Table>,
    tally: Tally,
}

impl<'a> Order<'a> {
    /// The order, as markers tell it, if they agree with what callers were told.
    pub(super) fn establish(records: &'a [Record], remains: &Remains) -> Verdict<Self> {
        let (mut committed, mut tally) = (Vec::new(), Tally::default());
        for record in records {
            let marker =
                remains.markers.get(&record.name).map(|stamp| stamp_of(stamp, record)).transpose()?;
            let counter = match (&record.outcome, marker) {
                (Outcome::Committed(told), None) if record.is_read_only() && told.versionstamp.is_none() => {
                    &mut tally.read_only
                }
                (Outcome::Committed(told), Some(_)) if told.versionstamp == marker => &mut tally.committed,
                (Outcome::Absent(_), None) => &mut tally.absent,
                (Outcome::Unknown, Some(_)) => &mut tally.unknown_committed,
                (Outcome::Unknown, None) => &mut tally.unknown_lost,
                (_, marker) => return Err(format!("its marker says {marker:?}: {record}")),
            };
            *counter += 1;
            committed.extend(marker.map(|stamp| (stamp, record)));
        }
        let known = tally.committed + tally.unknown_committed;
        if remains.markers.len() != known {
            return Err(format!("{} markers of {known} transactions", remains.markers.len()));
        }
        committed.sort_by_key(|(stamp, _)| *stamp);
        if let Some(pair) = committed.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("one versionstamp for two:\n{}{}", pair[0].1, pair[1].1));
        }
        let mut tables = vec![Table::new()];
        for (stamp, record) in &committed {
            let mut table = tables.last().cloned().unwrap_or_default();
            record.writes().for_each(|write| write.apply(&mut table, Some(*stamp)));
            tables.push(table);
        }
        Ok(Self { committed, tables, tally })
    }

    /// Whether it explains everything that was seen, and what is `left`.
    pub(super) fn check(&self, records: &[Record], left: &Table) -> Verdict<Tally> {
        for record in records {
            let wrong = self.wrong_at_read_version(record).or_else(|| wrong_in_real_time(record));
            if let Some(why) = wrong {
                return Err(format!("{why}, in {record}{}", self.listing()));
            }
        }
        for (place, (stamp, record)) in self.committed.iter().enumerate() {
            let wrong = wrong_at(&self.tables[place], record, false)
                .map(|why| format!("at its place in the order, {why}"))
                .or_else(|| self.wrong_between(place, *stamp, record));
            if let Some(why) = wrong {
                return Err(format!("{why}, in {record}{}", self.listing()));
            }
        }
        let expected = self.tables.last().unwrap_or(left);
        if expected == left {
            Ok(self.tally)
        } else {
            Err(format!("at the end there is {left:?}, not {expected:?}\n{}", self.listing()))
        }
    }

    /// Every read of a transaction, whatever became of it, sees one version.
    fn wrong_at_read_version(&self, record: &Record) -> Option<String> {
        let version = record.reads_at?;
        let place = self.place_of(version);
        wrong_at(&self.tables[place], record, true).map(|why| format!("at its read version, {why}"))
    }

    /// A committed transaction whose reads are guarded has no writer between its read version and itself.
    fn wrong_between(&self, place: usize, stamp: Versionstamp, record: &Record) -> Option<String> {
        let version = record.reads_at?;
        if version >= version_of(stamp) {
            return Some(format!("committed as {stamp:?}, not after what it read"));
        }
        let guarded = guarded_ranges(record);
        let between: Range<usize> = self.place_of(version)..place;
        let overlaps = |(begin, end): &(Vec<u8>, Vec<u8>)| {
            guarded.iter().find(|range| *begin < range.end && range.start < *end && begin < end)
        };
        self.committed[between].iter().find_map(|(other, writer)| {
            let mut ranges = writer.ops.iter().filter_map(|op| match op {
                Op::Write(write) => Some(write.range(*other)),
                Op::WriteConflict { begin, end } => Some((begin.clone(), end.clone())),
                Op::Get { .. } | Op::Range { .. } | Op::ReadConflict { .. } => None,
            });
            let range = ranges.find(|range| overlaps(range).is_some())?;
            Some(format!("no conflict with {range:?} of {}", writer.name))
        })
    }

    /// How many transactions `version` includes.
    fn place_of(&self, version: Version) -> usize {
        self.committed.partition_point(|(stamp, _)| version_of(*stamp) <= version)
    }

    fn listing(&self) -> String {
        let lines = self.committed.iter().map(|(stamp, record)| format!("{stamp:?} {record}"));
        format!("committed, in order:\n{}", lines.collect::<String>())
    }
}

/// The first read of `record` that the model `before` it doesn't explain: of all, or of those that a commit guards.
fn wrong_at(before: &Table, record: &Record, all: bool) -> Option<String> {
    let mut table = before.clone();
    let checks = |isolation: Isolation| all || isolation == Isolation::Serializable;
    record.ops.iter().find_map(|op| match op {
        Op::Get { key, isolation, saw } if checks(*isolation) => {
            let expected = table.get(key).map(Vec::as_slice);
            (saw.as_deref() != expected).then(|| format!("{op:?} should be {expected:?}"))
        }
        Op::Range { query, isolation, saw } if checks(*isolation) => {
            wrong_in_page(&table, query, saw, all).map(|why| format!("{query:?} {why}"))
        }
        Op::Write(write) => {
            write.apply(&mut table, None);
            None
        }
        Op::Get { .. } | Op::Range { .. } | Op::ReadConflict { .. } | Op::WriteConflict { .. } => None,
    })
}

/// Whoever begins after a commit has returned comes after it.
fn wrong_in_real_time(record: &Record) -> Option<String> {
    if let Some(version) = record.reads_at
        && version < record.begun_after
        && !record.is_chosen
    {
        return Some(format!("does not see {:?}, which was committed before it began", record.begun_after));
    }
    let Outcome::Committed(told) = &record.outcome else { return None };
    match (told.versionstamp, record.reads_at) {
        (Some(stamp), _) if version_of(stamp) != told.version => {
            Some("its stamp is of another version".into())
        }
        (Some(_), _) if told.version <= record.asked_after => {
            Some(format!("comes before {:?}, which had returned", record.asked_after))
        }
        (None, Some(version)) if told.version != version => {
            Some("a reader is not at its read version".into())
        }
        (None, None) if told.version < record.begun_after => Some("a reader of nothing is too early".into()),
        (Some(_) | None, Some(_) | None) => None,
    }
}

/// What must not be written between the read version of `record` and its commit. Only what it read before it
/// wrote anything: what a transaction has written itself may or may not count as read.
fn guarded_ranges(record: &Record) -> Vec<Range<Vec<u8>>> {
    let before_writes = record.ops.iter().take_while(|op| !matches!(op, Op::Write(_)));
    before_writes
        .filter_map(|op| match op {
            Op::Get { key, isolation: Isolation::Serializable, .. } => {
                Some(key.clone()..key_after(key).to_vec())
            }
            Op::Range { query, isolation: Isolation::Serializable, saw } => {
                let (mut begin, mut end) = (query.begin.to_vec(), query.end.to_vec());
                match saw.pairs.last().filter(|_| saw.more) {
                    Some((last, _)) if query.reverse => begin = last.to_vec(),
                    Some((last, _)) => end = key_after(last).to_vec(),
                    None => {}
                }
                Some(begin..end)
            }
            Op::ReadConflict { begin, end } => Some(begin.clone()..end.clone()),
            Op::Get { .. } | Op::Range { .. } | Op::WriteConflict { .. } | Op::Write(_) => None,
        })
        .filter(|range| range.start < range.end)
        .collect()
}

fn version_of(stamp: Versionstamp) -> Version {
    let mut version = [0; 8];
    version.copy_from_slice(&stamp.0[..8]);
    Version(u64::from_be_bytes(version))
}

fn stamp_of(marker: &[u8], record: &Record) -> Verdict<Versionstamp> {
    let stamp = marker.try_into().map_err(|_| format!("its marker is {marker:?}: {record}"))?;
    Ok(Versionstamp(stamp))
}
