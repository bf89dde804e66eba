//! `weir queue list`: all queues at a glance.

use serde_json::{Value, json};
use weir_proto::admin::v1 as wire;

use super::ordering;
use crate::cli::admin::{AdminArgs, conditions_json, declaration_json, ready};
use crate::cli::output::{Format, Output, Table, bytes, harmless, rate};

pub(super) async fn run(admin: &AdminArgs) -> anyhow::Result<()> {
    let mut client = admin.connect().await?;
    let response = admin.answer(client.list_queues(wire::ListQueuesRequest {})).await?;
    let mut output = Output::stdout();
    match admin.output {
        Format::Json => output.json(&response.queues.iter().map(queue_json).collect())?,
        Format::Text if response.queues.is_empty() => eprintln!("there are no queues"),
        Format::Text => output.text(&list(&response.queues))?,
    }
    Ok(())
}

fn list(queues: &[wire::Queue]) -> String {
    let mut table = Table::new(&[
        "NAME",
        "FILTER",
        "SHARDS#",
        "DEPTH#",
        "IN FLIGHT#",
        "CONSUMERS#",
        "IN/S#",
        "ACKED/S#",
        "SIZE#",
        "STATUS",
    ]);
    for queue in queues {
        let rates = queue.rates.unwrap_or_default();
        table.row(vec![
            harmless(&queue.name),
            harmless(&queue.topic_filter),
            queue.shards.to_string(),
            queue.depth.to_string(),
            queue.in_flight.to_string(),
            queue.consumers.to_string(),
            rate(rates.published),
            rate(rates.acknowledged),
            bytes(queue.bytes),
            if queue.paused { "paused".to_owned() } else { ready(&queue.conditions) },
        ]);
    }
    table.to_string()
}

pub(super) fn queue_json(queue: &wire::Queue) -> Value {
    let (rates, totals) = (queue.rates.unwrap_or_default(), queue.totals.unwrap_or_default());
    json!({
        "name": queue.name,
        "topicFilter": queue.topic_filter,
        "shards": queue.shards,
        "ordering": ordering(queue.ordering()),
        "depth": queue.depth,
        "inFlight": queue.in_flight,
        "consumers": queue.consumers,
        "waiting": queue.waiting,
        "bytes": queue.bytes,
        "paused": queue.paused,
        "oldestTsMicros": queue.oldest_ts_micros,
        "rates": {
            "published": rates.published,
            "delivered": rates.delivered,
            "redelivered": rates.redelivered,
            "acknowledged": rates.acknowledged,
        },
        "totals": {
            "delivered": totals.delivered,
            "redelivered": totals.redelivered,
            "acknowledged": totals.acknowledged,
            "deadLettered": totals.dead_lettered,
            "expired": totals.expired,
            "exhausted": totals.exhausted,
            "overflowed": totals.overflowed,
            "superseded": totals.superseded,
            "purged": totals.purged,
            "redriven": totals.redriven,
        },
        "declaration": declaration_json(queue.declaration.as_ref()),
        "conditions": conditions_json(&queue.conditions),
    })
}
