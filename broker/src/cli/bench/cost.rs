//! What a run costs the broker's store, from the counters at its `/metrics`, read before and after.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cli::output::Table;

/// Longest wait for the figures.
const DEADLINE: Duration = Duration::from_secs(5);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 8 << 20;

/// The counters of the store at one moment, or what they grew by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StoreCost {
    records: BTreeMap<String, RecordCost>,
    commits: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct RecordCost {
    keys_written: u64,
    bytes_written: u64,
    keys_read: u64,
    bytes_read: u64,
}

/// What the cost is shared by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// `message` or `connection`.
    pub(super) unit: &'static str,
    /// How many.
    pub(super) count: u64,
    /// Bytes of payload published.
    pub(super) payload_bytes: u64,
}

impl StoreCost {
    /// Reads the counters of the broker whose HTTP listener is at `address`.
    pub(super) async fn read(address: &str) -> anyhow::Result<Self> {
        let address = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
        let text = tokio::time::timeout(DEADLINE, fetch(address))
            .await
            .with_context(|| format!("http://{address}/metrics did not answer within {DEADLINE:?}"))?
            .with_context(|| format!("read http://{address}/metrics; --http is the broker's own --http"))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut cost = Self::default();
        for line in text.lines() {
            let Some((name, rest)) = line.split_once('{') else { continue };
            let Some((labels, value)) = rest.split_once("} ") else { continue };
            let Ok(value) = value.trim().parse() else { continue };
            let Some((label, label_value)) = labels.split_once('=') else { continue };
            let label_value = label_value.trim_matches('"');
            match (name, label, label_value) {
                ("weir_store_transactions_total", "outcome", "committed") => cost.commits = value,
                (name, "record", record) => {
                    let record = cost.records.entry(record.to_owned()).or_default();
                    match name {
                        "weir_store_written_keys_total" => record.keys_written = value,
                        "weir_store_written_bytes_total" => record.bytes_written = value,
                        "weir_store_read_keys_total" => record.keys_read = value,
                        "weir_store_read_bytes_total" => record.bytes_read = value,
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        cost
    }

    /// What was spent since `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let records = self.records.iter().map(|(name, now)| {
            let then = earlier.records.get(name).copied().unwrap_or_default();
            let spent = RecordCost {
                keys_written: now.keys_written.saturating_sub(then.keys_written),
                bytes_written: now.bytes_written.saturating_sub(then.bytes_written),
                keys_read: now.keys_read.saturating_sub(then.keys_read),
                bytes_read: now.bytes_read.saturating_sub(then.bytes_read),
            };
            (name.clone(), spent)
        });
        Self {
            records: records.filter(|(_, cost)| *cost != RecordCost::default()).collect(),
            commits: self.commits.saturating_sub(earlier.commits),
        }
    }

    fn total(&self) -> RecordCost {
        self.records.values().fold(RecordCost::default(), |sum, cost| RecordCost {
            keys_written: sum.keys_written + cost.keys_written,
            bytes_written: sum.bytes_written + cost.bytes_written,
            keys_read: sum.keys_read + cost.keys_read,
            bytes_read: sum.bytes_read + cost.bytes_read,
        })
    }

    /// A table of what each kind of record cost per message or connection.
    pub(super) fn text(&self, work: Work) -> String {
        let each = |n: u64| format!("{:.2}", ratio(n, work.count));
        let mut table = Table::new(&[
            &format!("STORE, PER {}", work.unit.to_uppercase()),
            "KEYS WRITTEN#",
            "BYTES WRITTEN#",
            "PER PAYLOAD BYTE#",
            "KEYS READ#",
            "BYTES READ#",
        ]);
        let total = [("total".to_owned(), self.total())];
        let rows = self.records.iter().map(|(name, cost)| (name.clone(), *cost)).chain(total);
        for (name, cost) in rows {
            let amplification = match work.payload_bytes {
                0 => "-".to_owned(),
                bytes => format!("{:.3}", ratio(cost.bytes_written, bytes)),
            };
            table.row(vec![
                name,
                each(cost.keys_written),
                each(cost.bytes_written),
                amplification,
                each(cost.keys_read),
                each(cost.bytes_read),
            ]);
        }
        let commits = match self.commits {
            0 => "nothing was committed\n".to_owned(),
            commits => {
                format!("{commits} commits, {:.1} {}s a commit\n", ratio(work.count, commits), work.unit)
            }
        };
        format!("\n{table}{commits}")
    }

    pub(super) fn document(&self, work: Work) -> Value {
        let records = self.records.iter().map(|(name, cost)| (name.clone(), cost.document()));
        let total = self.total();
        json!({
            "records": records.collect::<serde_json::Map<_, _>>(),
            "total": total.document(),
            "commits": self.commits,
            "unit": work.unit,
            "bytesWrittenPerUnit": ratio(total.bytes_written, work.count),
            "bytesWrittenPerPayloadByte": ratio(total.bytes_written, work.payload_bytes),
        })
    }
}

impl RecordCost {
    fn document(&self) -> Value {
        json!({
            "keysWritten": self.keys_written,
            "bytesWritten": self.bytes_written,
            "keysRead": self.keys_read,
            "bytesRead": self.bytes_read,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn ratio(n: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { n as f64 / of as f64 }
}

async fn fetch(address: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let head = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await?;
    let status = answer.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "it answered `{status}`");
    ensure!(answer.contains("weir_store_transactions_total"), "these are not the figures of a broker");
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "\
        # TYPE weir_store_written_bytes counter\n\
        weir_store_written_bytes_total{record=\"segment\"} 100\n\
        weir_store_written_bytes_total{record=\"owner\"} 28\n\
        weir_store_transactions_total{outcome=\"committed\"} 2\n\
        weir_store_transactions_total{outcome=\"conflict\"} 7\n";
    const AFTER: &str = "\
        weir_store_written_bytes_total{record=\"segment\"} 1100\n\
        weir_store_written_keys_total{record=\"segment\"} 5\n\
        weir_store_written_bytes_total{record=\"owner\"} 28\n\
        weir_store_read_bytes_total{record=\"log_state\"} 50\n\
        weir_store_transactions_total{outcome=\"committed\"} 4\n\
        weir_other_total{record=\"segment\"} 9\n\
        weir_uptime 3\n";

    #[test]
    fn what_grew_is_shared_by_the_messages() {
        let spent = StoreCost::parse(AFTER).since(&StoreCost::parse(BEFORE));
        let work = Work { unit: "message", count: 10, payload_bytes: 500 };
        let text = spent.text(work);
        assert_eq!(
            text,
            "\n\
             STORE, PER MESSAGE  KEYS WRITTEN  BYTES WRITTEN  PER PAYLOAD BYTE  KEYS READ  BYTES READ\n\
             log_state                   0.00           0.00             0.000       0.00        5.00\n\
             segment                     0.50         100.00             2.000       0.00        0.00\n\
             total                       0.50         100.00             2.000       0.00        5.00\n\
             2 commits, 5.0 messages a commit\n"
        );
        let document = spent.document(work);
        assert_eq!(document["records"]["segment"]["bytesWritten"], 1000);
        assert_eq!(document["bytesWrittenPerUnit"], 100.0);
        assert!(document["records"].get("owner").is_none(), "nothing was spent on it");
    }

    #[test]
    fn nothing_done_is_no_division() {
        let text = StoreCost::default().text(Work { unit: "connection", count: 0, payload_bytes: 0 });
        assert!(text.contains("nothing was committed") && !text.contains("NaN"), "{text}");
    }
}
