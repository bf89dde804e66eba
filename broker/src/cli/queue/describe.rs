//! `weir queue describe`: one queue with its shards and consumers.

use serde_json::{Value, json};
use weir_proto::admin::v1 as wire;

use super::list::queue_json;
use super::{consumers, ordering};
use crate::cli::admin::{AdminArgs, declared, facts, remarks};
use crate::cli::output::{Format, Output, Table, bytes, harmless, limit, millis, rate, time};

pub(super) async fn run(admin: &AdminArgs, name: &str) -> anyhow::Result<()> {
    let mut client = admin.connect().await?;
    let request = wire::DescribeQueueRequest { name: name.to_owned() };
    let response = admin.answer(client.describe_queue(request)).await?;
    let mut output = Output::stdout();
    match admin.output {
        Format::Json => output.json(&description_json(&response))?,
        Format::Text => output.text(&describe(&response))?,
    }
    Ok(())
}

fn describe(response: &wire::DescribeQueueResponse) -> String {
    let queue = response.queue.clone().unwrap_or_default();
    let settings = response.settings.clone().unwrap_or_default();
    let spec = spec(response);
    let filter = match queue.topic_filter.as_str() {
        "" => "- (fed by dead letters and redrive only)".to_owned(),
        filter => harmless(filter),
    };
    let mut text = facts(&[
        ("Name", harmless(&queue.name)),
        ("Filter", filter),
        ("Declared", declared(queue.declaration.as_ref())),
        ("Depth", format!("{} ({} in flight), {}", queue.depth, queue.in_flight, bytes(queue.bytes))),
        ("State", if queue.paused { "paused: nothing is delivered" } else { "delivers" }.to_owned()),
        ("Waiting", format!("{} to be delivered again", queue.waiting)),
        ("Oldest", time(queue.oldest_ts_micros)),
        ("Rates", rates(&queue.rates.unwrap_or_default())),
        ("Totals", totals(&queue.totals.unwrap_or_default())),
        ("Ordering", ordering(queue.ordering()).to_owned()),
        ("Key", or_none(&settings.key)),
        ("Last value", if settings.last_value { "yes" } else { "no" }.to_owned()),
        (
            "Dispatch",
            format!("{}, {} per consumer", settings.dispatch_strategy, settings.max_inflight_per_consumer),
        ),
        ("Ack timeout", millis(settings.ack_timeout_millis)),
        ("Deliveries", limit(settings.max_deliveries.into())),
        ("Backoff", backoff(&spec["retryBackoff"])),
        ("Dead letters", or_none(&settings.dead_letter)),
        ("Keeps", keeps(&settings)),
        ("When full", or_none(&settings.overflow)),
        ("Publishers", controls(&spec["publisherControls"])),
        ("Dedup window", word(&spec["dedup"]["window"])),
        ("On deletion", word(&spec["deletionPolicy"])),
    ]);
    let mut shards =
        Table::new(&["SHARD#", "FLOOR#", "NEXT#", "DEPTH#", "IN FLIGHT#", "DELAYED#", "LEAVING#", "SIZE#"]);
    for shard in &response.shards {
        shards.row(vec![
            shard.shard.to_string(),
            shard.floor.to_string(),
            shard.next_offset.to_string(),
            shard.depth.to_string(),
            shard.in_flight.to_string(),
            shard.delayed.to_string(),
            shard.leaving.to_string(),
            bytes(shard.bytes),
        ]);
    }
    text.push_str(&format!("\n{shards}"));
    if !response.consumers.is_empty() {
        text.push_str(&format!("\n{}", consumers::table(&response.consumers)));
    }
    text.push_str(&remarks(&queue.conditions, &response.warnings));
    text
}

/// What declares the queue; null if the broker does not say.
fn spec(response: &wire::DescribeQueueResponse) -> Value {
    serde_json::from_str(&response.spec).unwrap_or_default()
}

/// A value of the `spec` as it would be written.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => harmless(text),
        other => harmless(&other.to_string()),
    }
}

fn backoff(backoff: &Value) -> String {
    let [initial, factor, max] = ["initial", "factor", "max"].map(|name| word(&backoff[name]));
    format!("{initial}, times {factor} up to {max}")
}

/// What publishers may ask for.
fn controls(controls: &Value) -> String {
    let allowed: Vec<String> = controls.as_array().into_iter().flatten().map(word).collect();
    if allowed.is_empty() { "-".to_owned() } else { format!("may ask for {}", allowed.join(", ")) }
}

fn rates(rates: &wire::QueueRates) -> String {
    format!(
        "{}/s in, {}/s delivered ({}/s again), {}/s acknowledged",
        rate(rates.published),
        rate(rates.delivered),
        rate(rates.redelivered),
        rate(rates.acknowledged)
    )
}

/// What has become of messages, without what never happened.
fn totals(totals: &wire::QueueTotals) -> String {
    let others = [
        (totals.redelivered, "redelivered"),
        (totals.dead_lettered, "dead-lettered"),
        (totals.expired, "expired"),
        (totals.exhausted, "dropped after the last attempt"),
        (totals.overflowed, "dropped for newer ones"),
        (totals.superseded, "superseded"),
        (totals.purged, "purged"),
        (totals.redriven, "redriven"),
    ];
    let mut text = format!("{} acknowledged", totals.acknowledged);
    for (n, what) in others.into_iter().filter(|(n, _)| *n > 0) {
        text.push_str(&format!(", {n} {what}"));
    }
    text
}

fn keeps(settings: &wire::QueueSettings) -> String {
    let size = if settings.retention_bytes == 0 { "-".to_owned() } else { bytes(settings.retention_bytes) };
    format!(
        "age {}, size {size}, messages {}",
        millis(settings.retention_age_millis),
        limit(settings.retention_messages)
    )
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { harmless(text) }
}

fn description_json(response: &wire::DescribeQueueResponse) -> Value {
    let settings = response.settings.clone().unwrap_or_default();
    let shards = response.shards.iter().map(|shard| {
        json!({
            "shard": shard.shard,
            "floor": shard.floor,
            "nextOffset": shard.next_offset,
            "depth": shard.depth,
            "bytes": shard.bytes,
            "inFlight": shard.in_flight,
            "delayed": shard.delayed,
            "leaving": shard.leaving,
        })
    });
    json!({
        "queue": queue_json(&response.queue.clone().unwrap_or_default()),
        "settings": {
            "key": settings.key,
            "lastValue": settings.last_value,
            "ackTimeoutMillis": settings.ack_timeout_millis,
            "maxDeliveries": settings.max_deliveries,
            "maxInflightPerConsumer": settings.max_inflight_per_consumer,
            "dispatchStrategy": settings.dispatch_strategy,
            "retentionAgeMillis": settings.retention_age_millis,
            "retentionBytes": settings.retention_bytes,
            "retentionMessages": settings.retention_messages,
            "overflow": settings.overflow,
            "deadLetter": settings.dead_letter,
        },
        "spec": spec(response),
        "shards": shards.collect::<Value>(),
        "consumers": response.consumers.iter().map(consumers::json_of).collect::<Value>(),
        "warnings": response.warnings,
    })
}
