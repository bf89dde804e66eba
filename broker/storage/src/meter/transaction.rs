//! A transaction that counts its keys by kind, and tells the meter when it ends. Knows neither the engine nor what a
//! kind means.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Cost, Meter, Outcome};
use crate::{Committed, ConflictKind, Isolation, RangePage, RangeQuery, Result, Transaction, Version, Watch};

#[derive(Debug)]
pub(super) struct MeteredTransaction {
    /// Taken by the commit.
    inner: Option<Box<dyn Transaction>>,
    account: Account,
}

/// What the transaction has cost so far; told to the meter when it is dropped.
#[derive(Debug)]
struct Account {
    meter: Arc<Meter>,
    /// Kinds in the order of their first use: a transaction has few of them.
    costs: Vec<(usize, Cost)>,
    /// Whether the writes are to be counted.
    committed: bool,
}

impl MeteredTransaction {
    pub(super) const fn new(inner: Box<dyn Transaction>, meter: Arc<Meter>) -> Self {
        Self { inner: Some(inner), account: Account { meter, costs: Vec::new(), committed: false } }
    }

    fn inner(&mut self) -> &mut dyn Transaction {
        &mut **self.inner.as_mut().expect("the commit consumes the transaction")
    }
}

impl Account {
    fn of(&mut self, key: &[u8]) -> &mut Cost {
        let kind = self.meter.kind(key);
        // Keys of one kind mostly come one after the other.
        let index = self.costs.iter().rposition(|(known, _)| *known == kind).unwrap_or_else(|| {
            self.costs.push((kind, Cost::default()));
            self.costs.len() - 1
        });
        &mut self.costs[index].1
    }

    fn read(&mut self, key: &[u8], value: Option<&Bytes>) {
        let cost = self.of(key);
        cost.keys_read += 1;
        cost.bytes_read += (key.len() + value.map_or(0, Bytes::len)) as u64;
    }

    fn write(&mut self, key: &[u8], value: &[u8]) {
        let cost = self.of(key);
        cost.keys_written += 1;
        cost.bytes_written += (key.len() + value.len()) as u64;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        for (kind, cost) in &self.costs {
            let Cost { keys_read, bytes_read, .. } = *cost;
            let reads = Cost { keys_read, bytes_read, ..Cost::default() };
            self.meter.add(*kind, if self.committed { cost } else { &reads });
        }
    }
}

#[async_trait]
impl Transaction for MeteredTransaction {
    async fn read_version(&mut self) -> Result<Version> {
        self.inner().read_version().await
    }

    fn set_read_version(&mut self, version: Version) {
        self.inner().set_read_version(version);
    }

    async fn get(&mut self, key: &[u8], isolation: Isolation) -> Result<Option<Bytes>> {
        let value = self.inner().get(key, isolation).await?;
        self.account.read(key, value.as_ref());
        Ok(value)
    }

    async fn get_range(&mut self, query: RangeQuery, isolation: Isolation) -> Result<RangePage> {
        let page = self.inner().get_range(query, isolation).await?;
        for (key, value) in &page.pairs {
            self.account.read(key, Some(value));
        }
        Ok(page)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.account.write(key, value);
        self.inner().set(key, value);
    }

    fn clear(&mut self, key: &[u8]) {
        self.account.of(key).keys_cleared += 1;
        self.inner().clear(key);
    }

    fn clear_range(&mut self, begin: &[u8], end: &[u8]) {
        if begin < end {
            self.account.of(begin).ranges_cleared += 1;
        }
        self.inner().clear_range(begin, end);
    }

    fn set_versionstamped_key(&mut self, key: &[u8], offset: usize, value: &[u8]) {
        self.account.write(key, value);
        self.inner().set_versionstamped_key(key, offset, value);
    }

    fn set_versionstamped_value(&mut self, key: &[u8], value: &[u8], offset: usize) {
        self.account.write(key, value);
        self.inner().set_versionstamped_value(key, value, offset);
    }

    fn add_conflict_range(&mut self, begin: &[u8], end: &[u8], kind: ConflictKind) {
        self.inner().add_conflict_range(begin, end, kind);
    }

    fn watch(&mut self, key: &[u8]) -> Watch {
        self.inner().watch(key)
    }

    async fn commit(mut self: Box<Self>) -> Result<Committed> {
        let inner = self.inner.take().expect("the commit consumes the transaction");
        let committed = inner.commit().await;
        let outcome = Outcome::of(&committed);
        self.account.committed = outcome == Outcome::Committed;
        self.account.meter.count(outcome);
        committed
    }
}
