//! `weir queue consumers`: who consumes a queue, and how.

use serde_json::{Value, json};
use weir_proto::admin::v1 as wire;

use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, Table, harmless, nanos, time};

pub(super) async fn run(admin: &AdminArgs, name: &str) -> anyhow::Result<()> {
    let mut client = admin.connect().await?;
    let request = wire::DescribeQueueRequest { name: name.to_owned() };
    let response = admin.answer(client.describe_queue(request)).await?;
    let mut output = Output::stdout();
    match admin.output {
        Format::Json => output.json(&response.consumers.iter().map(json_of).collect())?,
        Format::Text if response.consumers.is_empty() => eprintln!("nobody consumes this queue"),
        Format::Text => output.text(&table(&response.consumers).to_string())?,
    }
    Ok(())
}

pub(super) fn table(consumers: &[wire::QueueConsumer]) -> Table {
    let mut table = Table::new(&[
        "CONSUMER",
        "IN FLIGHT#",
        "WINDOW#",
        "DELIVERED#",
        "ACKED#",
        "REJECTED#",
        "ACK P50#",
        "ACK P99#",
        "SINCE",
    ]);
    for consumer in consumers {
        table.row(vec![
            harmless(&consumer.id),
            consumer.in_flight.to_string(),
            consumer.window.to_string(),
            consumer.delivered.to_string(),
            consumer.acknowledged.to_string(),
            consumer.rejected.to_string(),
            latency(consumer.ack_p50_micros),
            latency(consumer.ack_p99_micros),
            time(consumer.since_micros),
        ]);
    }
    table
}

fn latency(micros: u64) -> String {
    if micros == 0 { "-".to_owned() } else { nanos(micros.saturating_mul(1000)) }
}

pub(super) fn json_of(consumer: &wire::QueueConsumer) -> Value {
    json!({
        "id": consumer.id,
        "inFlight": consumer.in_flight,
        "window": consumer.window,
        "delivered": consumer.delivered,
        "acknowledged": consumer.acknowledged,
        "rejected": consumer.rejected,
        "ackP50Micros": consumer.ack_p50_micros,
        "ackP99Micros": consumer.ack_p99_micros,
        "sinceMicros": consumer.since_micros,
    })
}
