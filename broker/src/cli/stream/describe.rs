//! `weir stream describe`: one stream with its shards, readers and consumer groups.

use serde_json::{Value, json};
use weir_proto::admin::v1 as wire;

use super::groups::{behind, group_json};
use super::list::stream_json;
use crate::cli::admin::{AdminArgs, declared, facts, remarks};
use crate::cli::output::{Format, Output, Table, bytes, harmless, limit, millis, rate, time};

/// Consumer groups that people are shown; `weir stream groups` has all.
const GROUPS_SHOWN: usize = 10;

pub(super) async fn run(admin: &AdminArgs, name: &str) -> anyhow::Result<()> {
    let mut client = admin.connect().await?;
    let request = wire::DescribeStreamRequest { name: name.to_owned() };
    let response = admin.answer(client.describe_stream(request)).await?;
    let request = wire::ListGroupsRequest { stream: name.to_owned() };
    let groups = admin.answer(client.list_groups(request)).await?.groups;
    let mut output = Output::stdout();
    match admin.output {
        Format::Json => output.json(&description_json(&response, &groups))?,
        Format::Text => output.text(&describe(&response, &groups))?,
    }
    Ok(())
}

fn describe(response: &wire::DescribeStreamResponse, groups: &[wire::Group]) -> String {
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
    if !groups.is_empty() {
        text.push_str(&format!("\n{}", summaries(&stream.name, groups)));
    }
    text.push_str(&remarks(&stream.conditions, &response.warnings));
    text
}

/// The first groups, a line each.
fn summaries(stream: &str, groups: &[wire::Group]) -> String {
    let mut table = Table::new(&["GROUP", "MEMBERS#", "LAG#", "BEHIND#", "FURTHEST BEHIND"]);
    for group in groups.iter().take(GROUPS_SHOWN) {
        let furthest = group.shards.iter().filter(|shard| shard.lag > 0);
        let furthest = furthest.max_by_key(|shard| (shard.lag_millis, shard.lag));
        table.row(vec![
            harmless(&group.name),
            group.members.len().to_string(),
            group.lag.to_string(),
            behind(group.lag_millis),
            furthest.map_or_else(|| "-".to_owned(), |shard| format!("{}:{}", shard.shard, shard.position)),
        ]);
    }
    let more = groups.len().saturating_sub(GROUPS_SHOWN);
    let rest = if more == 0 {
        String::new()
    } else {
        format!("{more} more: weir stream groups {}\n", harmless(stream))
    };
    format!("{table}{rest}")
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

fn description_json(response: &wire::DescribeStreamResponse, groups: &[wire::Group]) -> Value {
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
        "groups": groups.iter().map(group_json).collect::<Value>(),
        "warnings": response.warnings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, at: &[(u64, u64, u64)]) -> wire::Group {
        let shard = |(shard, (position, lag, lag_millis)): (u32, &(u64, u64, u64))| wire::GroupShard {
            shard,
            position: *position,
            lag: *lag,
            lag_millis: *lag_millis,
            ..wire::GroupShard::default()
        };
        wire::Group {
            name: name.to_owned(),
            members: vec!["a".to_owned()],
            lag: at.iter().map(|(_, lag, _)| lag).sum(),
            lag_millis: at.iter().map(|(_, _, millis)| *millis).max().unwrap_or_default(),
            shards: (0..).zip(at).map(shard).collect(),
        }
    }

    #[test]
    fn a_few_groups_are_shown_with_where_they_are_furthest_behind() {
        let groups = [group("workers", &[(7, 1, 900), (4, 2, 61_234)]), group("idle", &[(8, 0, 0)])];
        let expected = "\
GROUP    MEMBERS  LAG  BEHIND  FURTHEST BEHIND
workers        1    3     61s  1:4
idle           1    0       -  -
";
        assert_eq!(summaries("s", &groups), expected);
        let groups: Vec<_> = (0..13).map(|n| group(&format!("g{n}"), &[(0, 0, 0)])).collect();
        let shown = summaries("s", &groups);
        assert_eq!(shown.lines().count(), 1 + GROUPS_SHOWN + 1, "{shown}");
        assert!(shown.ends_with("\n3 more: weir stream groups s\n"), "{shown}");
    }
}
