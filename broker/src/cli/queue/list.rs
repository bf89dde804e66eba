//! `weir queue list`: all queues at a glance.

use serde_json::{Value, json};
use weir_proto::admin::v1 as wire;

use super::ordering;
use crate::cli::admin::{AdminArgs, conditions_json, declaration_json, ready};
use crate::cli::output::{Format, Output, Table, bytes, harmless};

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
    let mut table =
        Table::new(&["NAME", "FILTER", "SHARDS#", "DEPTH#", "IN FLIGHT#", "CONSUMERS#", "SIZE#", "STATUS"]);
    for queue in queues {
        table.row(vec![
            harmless(&queue.name),
            harmless(&queue.topic_filter),
            queue.shards.to_string(),
            queue.depth.to_string(),
            queue.in_flight.to_string(),
            queue.consumers.to_string(),
            bytes(queue.bytes),
            ready(&queue.conditions),
        ]);
    }
    table.to_string()
}

pub(super) fn queue_json(queue: &wire::Queue) -> Value {
    json!({
        "name": queue.name,
        "topicFilter": queue.topic_filter,
        "shards": queue.shards,
        "ordering": ordering(queue.ordering()),
        "depth": queue.depth,
        "inFlight": queue.in_flight,
        "consumers": queue.consumers,
        "bytes": queue.bytes,
        "declaration": declaration_json(queue.declaration.as_ref()),
        "conditions": conditions_json(&queue.conditions),
    })
}
