//! One transaction against a map: random writes and reads of its own, in any order.

use weir_env::seed::{Seed, trials};

use super::history::model::{Table, Write, in_range, wrong_in_page};
use super::{Must, Subject};
use crate::{Isolation, RangeQuery};

const OPS: u64 = 40;
const KEYS: u64 = 16;

/// What one random transaction has to draw from.
struct Dice<'a> {
    subject: &'a Subject,
    seed: Seed,
}

impl Dice<'_> {
    fn below(&self, bound: u64) -> u64 {
        self.seed.below(bound)
    }

    /// A key of a few, some of which begin with another one.
    fn key(&self) -> Vec<u8> {
        let number = u8::try_from(self.below(KEYS)).unwrap_or(0);
        let tail: &[u8] = match number % 4 {
            0 => b"",
            1 => b"\0",
            2 => b"\0\0",
            _ => b"\xff",
        };
        self.subject.key([&[number / 4][..], tail].concat())
    }

    fn write(&self, number: u64) -> Write {
        let (key, value) = (self.key(), number.to_string().into_bytes());
        match self.below(10) {
            0 | 1 => Write::Clear { key },
            2 | 3 => Write::ClearRange { begin: key, end: self.key() },
            4 => {
                let offset = key.len();
                Write::StampedKey { key: [&key[..], &[0; 10]].concat(), offset, value }
            }
            5 => Write::StampedValue { key, value: vec![0; 12], offset: 1 },
            _ => Write::Set { key, value },
        }
    }

    fn query(&self) -> RangeQuery {
        let query = match self.below(3) {
            0 => self.subject.all(),
            _ => RangeQuery::new(self.key(), self.key()),
        };
        let limit = usize::try_from(self.below(5)).unwrap_or(0);
        let query = if self.below(2) == 0 { query.reverse() } else { query };
        if self.below(4) == 0 { query.target_bytes(limit * 50) } else { query.limit(limit) }
    }
}

/// Whatever a transaction writes, in whatever order: what it reads in between is what a map would hold, and so
/// is what it leaves.
pub async fn a_transaction_reads_what_a_map_would_hold(subject: Subject) {
    let mut table = Table::new();
    for trial in trials(subject.histories) {
        let dice = Dice { subject: &subject, seed: Seed::fixed(trial.seed()) };
        let (mut tx, mut own, mut writes) = (subject.begin(), table.clone(), Vec::new());
        for number in 0..OPS {
            let isolation = [Isolation::Serializable, Isolation::Snapshot][usize::from(dice.below(2) == 0)];
            match dice.below(4) {
                0 => {
                    let key = dice.key();
                    let found = tx.get(&key, isolation).await.must();
                    assert_eq!(found.as_deref(), own.get(&key).map(Vec::as_slice), "{key:?} {writes:#?}");
                }
                1 => {
                    // All pages of it, or as many as there are before the transaction goes on.
                    let mut next = Some(dice.query());
                    while let Some(query) = next {
                        let page = tx.get_range(query.clone(), isolation).await.must();
                        let wrong = wrong_in_page(&own, &query, &page, true);
                        assert!(wrong.is_none(), "{query:?} {} {writes:#?}", wrong.unwrap_or_default());
                        next = query.after(&page);
                    }
                }
                _ => {
                    let write = dice.write(number);
                    write.perform(&mut *tx);
                    write.apply(&mut own, None);
                    writes.push(write);
                }
            }
        }
        let stamp = tx.commit().await.must().versionstamp;
        writes.iter().for_each(|write| write.apply(&mut table, stamp));
        let page = subject.begin().get_range(subject.all(), Isolation::Snapshot).await.must();
        assert_eq!(page.pairs, in_range(&table, &subject.all()), "{writes:#?}");
    }
}
