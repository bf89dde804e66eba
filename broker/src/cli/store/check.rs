//! `weir store check`: opens a store and says what it is, what it holds, and how fast it reads and commits.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use weir_core::inspect::{self, Count};
use weir_core::keyspace::format::KeyspaceFormat;
use weir_core::keyspace::record::RecordKind;
use weir_env::clock::Clock;
use weir_storage::{Isolation, SharedStore, Version};

use super::{StoreArgs, open_existing};
use crate::cli::admin::facts;
use crate::cli::output::{Format, Output, Table, bytes, harmless, hex, nanos};

/// Longest wait for one answer of the store.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// A key that holds nothing: what is committed is that this stays so.
const PROBE_KEY: &[u8] = b"!";

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct CheckArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Reads, and commits, to measure
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    tries: u32,
    /// Count all records by kind, which reads the whole store
    #[arg(long)]
    count: bool,
    /// How to print the result
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

/// What was found.
struct Findings {
    store: String,
    engine: &'static str,
    /// What the engine says of itself.
    details: Vec<(&'static str, String)>,
    keyspace: Option<KeyspaceFormat>,
    version: Version,
    read: Latency,
    commit: Latency,
    counts: Option<Vec<(RecordKind, Count)>>,
}

/// Times of one kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Latency {
    p50: Duration,
    max: Duration,
}

pub(super) async fn run(args: &CheckArgs, output: &mut Output) -> anyhow::Result<()> {
    let config = args.store.load()?;
    let store = open_existing(&config, Clock::system()).await?;
    let found = find(args, config.store.to_string(), &store).await;
    store.close().await;
    let found = found?;
    match args.output {
        Format::Json => output.json(&found.document())?,
        Format::Text => output.text(&found.text(args.tries))?,
    }
    Ok(())
}

async fn find(args: &CheckArgs, name: String, store: &SharedStore) -> anyhow::Result<Findings> {
    let version = in_time(store.begin().read_version()).await.context("ask for a version")?;
    let keyspace = in_time(inspect::keyspace(&**store)).await.context("read the keyspace format")?;
    let (mut reads, mut commits) = (Vec::new(), Vec::new());
    let clock = Clock::system();
    for _ in 0..args.tries {
        let begun = clock.now();
        let mut tx = store.begin();
        in_time(tx.get(&KeyspaceFormat::key(), Isolation::Snapshot)).await.context("read")?;
        reads.push(begun.elapsed());
        let begun = clock.now();
        let mut tx = store.begin();
        tx.clear(PROBE_KEY);
        in_time(tx.commit()).await.context("commit")?;
        commits.push(begun.elapsed());
    }
    let counts = match args.count {
        true => Some(inspect::count(&**store).await.context("count the records")?),
        false => None,
    };
    let (read, commit) = (Latency::of(reads), Latency::of(commits));
    let details = in_time(store.describe()).await.context("ask the engine what it is")?;
    Ok(Findings { store: name, engine: store.engine(), details, keyspace, version, read, commit, counts })
}

/// The answer of the store, unless it takes too long.
async fn in_time<T, E: Into<anyhow::Error>>(answer: impl Future<Output = Result<T, E>>) -> anyhow::Result<T> {
    match tokio::time::timeout(ANSWER_WAIT, answer).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => bail!("the store did not answer within {ANSWER_WAIT:?}: see whether it is up"),
    }
}

impl Latency {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |place: usize| times.get(place).copied().unwrap_or_default();
        Self { p50: at(times.len() / 2), max: at(times.len().saturating_sub(1)) }
    }

    fn text(self, tries: u32) -> String {
        let shown = |time: Duration| nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        format!("p50 {}, max {} of {tries}", shown(self.p50), shown(self.max))
    }

    fn document(self) -> Value {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        json!({ "p50Nanos": nanos(self.p50), "maxNanos": nanos(self.max) })
    }
}

impl Findings {
    /// The engine with what it says of itself.
    fn engine(&self) -> String {
        let details = self.details.iter().map(|(name, value)| format!(", {name} {}", harmless(value)));
        format!("{}{}", self.engine, details.collect::<String>())
    }

    fn text(&self, tries: u32) -> String {
        let (keyspace, cluster) = match &self.keyspace {
            Some(keyspace) => {
                let shards = keyspace.virtual_shards;
                (
                    format!("format {}, {shards} virtual shards", KeyspaceFormat::VERSION),
                    hex(&keyspace.cluster_id),
                )
            }
            None => ("none yet: the first broker that starts on it makes one".to_owned(), "-".to_owned()),
        };
        let mut text = facts(&[
            ("Store", self.store.clone()),
            ("Engine", self.engine()),
            ("Keyspace", keyspace),
            ("Cluster", cluster),
            ("Version", self.version.0.to_string()),
            ("Read", self.read.text(tries)),
            ("Commit", self.commit.text(tries)),
        ]);
        if let Some(counts) = &self.counts {
            let mut table = Table::new(&["RECORD", "COUNT#", "SIZE#"]);
            for (kind, count) in counts.iter().filter(|(_, count)| count.records > 0) {
                table.row(vec![kind.as_str().to_owned(), count.records.to_string(), bytes(count.bytes)]);
            }
            let total = total(counts);
            table.row(vec!["total".to_owned(), total.records.to_string(), bytes(total.bytes)]);
            text.push_str(&format!("\n{table}"));
        }
        text
    }

    fn document(&self) -> Value {
        let counts = self.counts.as_ref().map(|counts| {
            let kinds = counts.iter().filter(|(_, count)| count.records > 0);
            let kinds = kinds.map(|(kind, count)| (kind.as_str().to_owned(), document(count)));
            json!({ "kinds": kinds.collect::<serde_json::Map<_, _>>(), "total": document(&total(counts)) })
        });
        json!({
            "store": self.store,
            "engine": self.engine,
            "details": self.details.iter().map(|(name, value)| ((*name).to_owned(), json!(value)))
                .collect::<serde_json::Map<_, _>>(),
            "keyspace": self.keyspace.as_ref().map(|keyspace| json!({
                "format": KeyspaceFormat::VERSION,
                "virtualShards": keyspace.virtual_shards,
                "clusterId": hex(&keyspace.cluster_id),
            })),
            "version": self.version.0,
            "read": self.read.document(),
            "commit": self.commit.document(),
            "records": counts,
        })
    }
}

fn total(counts: &[(RecordKind, Count)]) -> Count {
    counts.iter().fold(Count::default(), |sum, (_, count)| Count {
        records: sum.records + count.records,
        bytes: sum.bytes + count.bytes,
    })
}

fn document(count: &Count) -> Value {
    json!({ "records": count.records, "bytes": count.bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_worst_are_told() {
        let times = [5, 1, 9, 3, 4].map(Duration::from_millis);
        let latency = Latency::of(times.to_vec());
        assert_eq!(latency, Latency { p50: Duration::from_millis(4), max: Duration::from_millis(9) });
        assert_eq!(latency.text(5), "p50 4.00 ms, max 9.00 ms of 5");
        let one = Duration::from_micros(7);
        assert_eq!(Latency::of(vec![one]), Latency { p50: one, max: one });
    }
}
