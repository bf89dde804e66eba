//! Finds the topics that a filter matches, in the order of their keys, and jumps over those that it cannot.

use std::cmp::Ordering;

use bytes::Bytes;
use weir_storage::{Isolation, RangeQuery, Transaction, key_after, prefix_end};
use weir_topic::{TopicFilter, TopicName};

use crate::Result;
use crate::keyspace::retained;

/// Rows read at first, and after a jump over rows that were not read.
const ROWS_MIN: usize = 16;
/// Rows read once there has been no such jump for a while.
const ROWS_MAX: usize = 1_024;
/// Bytes read at once.
const BYTES: usize = 256 * 1_024;

/// A search under way.
pub(super) struct Scan<'a> {
    filter: &'a TopicFilter,
    levels: Vec<&'a str>,
    /// The next key to look at.
    begin: Bytes,
    end: Bytes,
    is_over: bool,
    /// Rows read and not looked at.
    rows: std::vec::IntoIter<(Bytes, Bytes)>,
    /// The last key read.
    last: Option<Bytes>,
    /// Whether the store has more behind `rows`.
    more: bool,
    rows_max: usize,
    looks_left: usize,
}

impl<'a> Scan<'a> {
    /// Begins at `after`, or at the first match, and looks at `looks` keys at most.
    pub(super) fn new(filter: &'a TopicFilter, after: Option<Bytes>, looks: usize) -> Self {
        let levels: Vec<&str> = filter.levels().collect();
        let literal =
            retained::prefix(levels.iter().copied().take_while(|level| !matches!(*level, "+" | "#")));
        let end = if filter.is_exact() { key_after(&literal) } else { prefix_end(&literal).into() };
        let begin = after.unwrap_or_else(|| literal.into());
        let is_over = begin >= end;
        Self {
            filter,
            levels,
            begin,
            end,
            is_over,
            rows: Vec::new().into_iter(),
            last: None,
            more: true,
            rows_max: ROWS_MIN,
            looks_left: looks,
        }
    }

    /// Where to go on; `None` if there is no more.
    pub(super) fn rest(&self) -> Option<Bytes> {
        (!self.is_over).then(|| self.begin.clone())
    }

    /// The next match: its topic and its value. `None` at the end, or when it has looked at enough.
    pub(super) async fn next(&mut self, tx: &mut dyn Transaction) -> Result<Option<(TopicName, Bytes)>> {
        while !self.is_over && self.looks_left > 0 {
            let Some((key, value)) = self.rows.find(|(key, _)| *key >= self.begin) else {
                if self.more {
                    self.read(tx).await?;
                } else {
                    self.is_over = true;
                }
                continue;
            };
            self.looks_left -= 1;
            let topic = retained::decode_key(&key)?;
            let matches = self.filter.matches(&topic);
            match if matches { Some(key_after(&key)) } else { jump(&self.levels, &topic, &key) } {
                Some(begin) if begin < self.end => self.begin = begin,
                _ => self.is_over = true,
            }
            if matches {
                return Ok(Some((topic, value)));
            }
        }
        Ok(None)
    }

    async fn read(&mut self, tx: &mut dyn Transaction) -> Result<()> {
        let goes_on = self.last.as_ref().is_some_and(|last| self.begin <= key_after(last));
        self.rows_max = if goes_on { ROWS_MAX.min(self.rows_max * 4) } else { ROWS_MIN };
        let query = RangeQuery::new(&self.begin, &self.end).limit(self.rows_max).target_bytes(BYTES);
        let page = tx.get_range(query, Isolation::Snapshot).await?;
        self.more = page.more;
        self.last = page.pairs.last().map(|(key, _)| key.clone());
        self.rows = page.pairs.into_iter();
        Ok(())
    }
}

/// The first key behind that of `topic`, which the filter does not match, where a match may be. `None`: there
/// is none.
fn jump(filter: &[&str], topic: &TopicName, key: &Bytes) -> Option<Bytes> {
    let levels: Vec<&str> = topic.levels().collect();
    if topic.is_reserved() && filter.first().is_some_and(|level| matches!(*level, "+" | "#")) {
        return Some(past_reserved());
    }
    for (nth, wanted) in filter.iter().enumerate() {
        let literal = match *wanted {
            "#" => return Some(key_after(key)),
            "+" => None,
            literal => Some(literal),
        };
        let here = || levels.iter().copied().take(nth);
        match (literal, levels.get(nth)) {
            // The topic ends before the filter does: the match is below it.
            (Some(literal), None) => return Some(retained::prefix(here().chain([literal])).into()),
            (None, None) => return Some(key_after(key)),
            (None, Some(_)) => {}
            (Some(literal), Some(level)) => match order(level, literal) {
                Ordering::Equal => {}
                Ordering::Less => return Some(retained::prefix(here().chain([literal])).into()),
                Ordering::Greater => return next_sibling(filter, &levels, nth),
            },
        }
    }
    // The topic goes on below the filter's last level, and so does all that follows, up to the next sibling.
    next_sibling(filter, &levels, filter.len())
}

/// The first key of another level than the topic's at the last `+` before level `before`.
fn next_sibling(filter: &[&str], levels: &[&str], before: usize) -> Option<Bytes> {
    let plus = filter.iter().take(before).rposition(|level| *level == "+")?;
    let mut key = retained::prefix(levels.iter().copied().take(plus + 1));
    // Every key of this level goes on with a null byte here.
    if let Some(last) = key.last_mut() {
        *last = 1;
    }
    Some(key.into())
}

/// The first key behind all topics that begin with `$`.
fn past_reserved() -> Bytes {
    let mut key = retained::all().0;
    key.push(b'$' + 1);
    key.into()
}

/// The order of two levels inside keys, where each is followed by a null byte.
fn order(a: &str, b: &str) -> Ordering {
    a.bytes().chain([0]).cmp(b.bytes().chain([0]))
}
