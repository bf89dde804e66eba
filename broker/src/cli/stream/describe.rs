//! `weir stream describe`: one stream with its shards and readers.

use serde_json::{Value, json};
use weir_proto::admin::v1 as wire;

use super::list::stream_json;
use crate::cli::admin::{AdminArgs, declared, facts, remarks};
use crate::cli::output::{Format, Output, Table, bytes, harmless, limit, millis, rate, time};

pub(super) async fn run(admin: &AdminArgs, name: &str) -> anyhow::Result<()> {
    let mut client = admin.connect().await?;
    let request = wire::DescribeStreamRequest { name: name.to_owned() };
    let response = admin.answer(client.describe_stream(request)).await?;
    let mut output = Output::stdout();
    match admin.output {
        Format::Json => output.json(&description_json(&response))?,
        Format::Text => output.text(&describe(&response))?,
    }
    Ok(())
}

fn describe(response: &wire::DescribeStreamResponse) -> String {
    let stream = response.stream.clone().unwrap_or_default();
    let settings = response.settings.clone().unwrap_or_default();
    let (rates, spec) = (stream.rates.unwrap_or_default(), spec(response));
    let size = if settings.retention_bytes == 0 { "-".to_owned() } else { bytes(settings.retention_bytes) };
    let keeps = format!(
        "age {}, size {size}, messages {}",
        millis(settings.retention_age_millis),
        limit(settings.retention_messages)
    );
    let key = if settings.key.is_empty() { "-".to_owned() } else { harmless(&settings.key) };
    let mut text = facts(&[
        ("Name", harmless(&stream.name)),
        ("Filter", harmless(&stream.topic_filter)),
        ("Declared", declared(stream.declaration.as_ref())),
        ("Messages", format!("{}, {}", stream.messages, bytes(stream.bytes))),
        ("Oldest", time(stream.oldest_ts_micros)),
        ("Rates", format!("{}/s in, {}/s read", rate(rates.published), rate(rates.read))),
        ("Key", key),
        ("Last value", if settings.last_value { "yes" } else { "no" }.to_owned()),
        ("Keeps", keeps),
        ("Groups", format!("forgotten after {} without members", word(&spec["groups"]["expireAfter"]))),
        ("On deletion", word(&spec["deletionPolicy"])),
    ]);
    let mut shards = Table::new(&["SHARD#", "START#", "NEXT#", "SIZE#", "OLDEST", "NEWEST"]);
    for shard in &response.shards {
        shards.row(vec![
            shard.shard.to_string(),
            shard.start_offset.to_string(),
            shard.next_offset.to_string(),
            bytes(shard.bytes),
            time(shard.first_ts_micros),
            time(shard.last_ts_micros),
        ]);
    }
    text.push_str(&format!("\n{shards}"));
    if !response.readers.is_empty() {
        let mut readers = Table::new(&["READER", "SINCE", "READ#", "NEXT"]);
        for reader in &response.readers {
            let next: Vec<String> =
                reader.next.iter().map(|at| format!("{}:{}", at.shard, at.offset)).collect();
            let id = if reader.id.is_empty() { "(admin API)".to_owned() } else { harmless(&reader.id) };
            readers.row(vec![id, time(reader.since_micros), reader.read.to_string(), next.join(",")]);
        }
        text.push_str(&format!("\n{readers}"));
    }
    text.push_str(&remarks(&stream.conditions, &response.warnings));
    text
}

/// What declares the stream; null if the broker does not say.
fn spec(response: &wire::DescribeStreamResponse) -> Value {
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

fn description_json(response: &wire::DescribeStreamResponse) -> Value {
    let settings = response.settings.clone().unwrap_or_default();
    let shards = response.shards.iter().map(|shard| {
        json!({
            "shard": shard.shard,
            "startOffset": shard.start_offset,
            "nextOffset": shard.next_offset,
            "bytes": shard.bytes,
            "firstTsMicros": shard.first_ts_micros,
            "lastTsMicros": shard.last_ts_micros,
        })
    });
    let readers = response.readers.iter().map(|reader| {
        let next = reader.next.iter().map(|at| json!({"shard": at.shard, "offset": at.offset}));
        json!({
            "id": reader.id,
            "sinceMicros": reader.since_micros,
            "read": reader.read,
            "next": next.collect::<Value>(),
        })
    });
    json!({
        "stream": stream_json(&response.stream.clone().unwrap_or_default()),
        "settings": {
            "key": settings.key,
            "lastValue": settings.last_value,
            "retentionAgeMillis": settings.retention_age_millis,
            "retentionBytes": settings.retention_bytes,
            "retentionMessages": settings.retention_messages,
        },
        "spec": spec(response),
        "shards": shards.collect::<Value>(),
        "readers": readers.collect::<Value>(),
        "warnings": response.warnings,
    })
}
