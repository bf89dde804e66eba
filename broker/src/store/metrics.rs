//! What transactions cost, by the names Prometheus sees. The numbers are the meter's; this reads them when asked.
//!
//! Labels are the kinds of records and the outcomes of transactions, so the number of series is fixed.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::{Registry, Unit};
use weir_core::keyspace::record::RecordKind;
use weir_storage::{Cost, Meter, Outcome};

/// One number of a [`Cost`].
struct Column {
    name: &'static str,
    help: &'static str,
    /// In bytes; else in keys or ranges, which is part of the name.
    bytes: bool,
    of: fn(&Cost) -> u64,
}

const COLUMNS: [Column; 6] = [
    Column {
        name: "store_read_keys",
        help: "Keys read from the store, by kind of record",
        bytes: false,
        of: |cost| cost.keys_read,
    },
    Column {
        name: "store_read",
        help: "Bytes of keys and values read from the store",
        bytes: true,
        of: |cost| cost.bytes_read,
    },
    Column {
        name: "store_written_keys",
        help: "Keys written by commits",
        bytes: false,
        of: |cost| cost.keys_written,
    },
    Column {
        name: "store_written",
        help: "Bytes of keys and values written by commits",
        bytes: true,
        of: |cost| cost.bytes_written,
    },
    Column {
        name: "store_cleared_keys",
        help: "Keys cleared one by one by commits",
        bytes: false,
        of: |cost| cost.keys_cleared,
    },
    Column {
        name: "store_cleared_ranges",
        help: "Ranges of keys cleared by commits",
        bytes: false,
        of: |cost| cost.ranges_cleared,
    },
];

/// Makes the numbers of `meter`, whose kinds are [`RecordKind`]s, part of `registry`.
pub(super) fn register(meter: &Arc<Meter>, registry: &mut Registry) {
    registry.register_collector(Box::new(Costs(Arc::clone(meter))));
}

#[derive(Debug)]
struct Costs(Arc<Meter>);

impl Collector for Costs {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let costs = RecordKind::ALL.iter().map(|kind| (kind.as_str(), self.0.cost(*kind as usize)));
        let costs: Vec<(&str, Cost)> = costs.collect();
        for column in COLUMNS {
            let unit = column.bytes.then_some(&Unit::Bytes);
            let mut family =
                encoder.encode_descriptor(column.name, column.help, unit, MetricType::Counter)?;
            for (record, cost) in &costs {
                let labels = [("record", *record)];
                ConstCounter::new((column.of)(cost)).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Transactions that were asked to commit, by how they ended";
        let mut family = encoder.encode_descriptor("store_transactions", help, None, MetricType::Counter)?;
        for outcome in Outcome::ALL {
            let labels = [("outcome", outcome.as_str())];
            ConstCounter::new(self.0.transactions(outcome)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use weir_core::keyspace::VirtualShard;
    use weir_core::keyspace::owner::{Epoch, Owner, PodId};
    use weir_env::clock::Clock;
    use weir_storage::{MemoryStore, SharedStore};

    use super::*;

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[tokio::test]
    async fn what_commits_write_is_seen_by_record() {
        let mut registry = Registry::default();
        let store: SharedStore = Arc::new(MemoryStore::new(Clock::system()));
        let store = crate::store::metered(store, registry.sub_registry_with_prefix("weir"));
        insta::assert_snapshot!(text(&registry));

        let mut tx = store.begin();
        tx.set(&Owner::key(VirtualShard(1)), &Owner { epoch: Epoch(1), pod: PodId([1; 16]) }.encode());
        tx.commit().await.unwrap();
        let text = text(&registry);
        for line in [
            "weir_store_written_keys_total{record=\"owner\"} 1\n",
            "weir_store_written_bytes_total{record=\"owner\"} 28\n",
            "weir_store_transactions_total{outcome=\"committed\"} 1\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
