//! `weir stream`: what streams there are, how one is doing, and its messages.

use anyhow::anyhow;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use weir_env::clock::{Clock, Timestamp};
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::read_stream_request::Start;

use super::admin::{AdminArgs, conditions_json, declaration_json, declared, facts, ready, remarks};
use super::output::{Format, Output, Table, bytes, harmless, hex, limit, millis, time};

#[derive(Clone, Debug, Subcommand)]
pub(super) enum StreamCommand {
    /// List all streams
    List {
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Describe one stream with its shards and readers
    Describe {
        /// Name of the stream
        name: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Print the messages of a stream, without leaving a trace in it
    Tail(TailArgs),
}

#[derive(Clone, Debug, Args)]
pub(super) struct TailArgs {
    /// Name of the stream
    name: String,
    /// Where to start: earliest, latest, an offset, a time (RFC 3339), or a duration back from now (10m)
    #[arg(long, value_name = "WHERE", default_value = "latest", value_parser = offset)]
    offset: Offset,
    /// Only this shard
    #[arg(long, value_name = "N")]
    shard: Option<u32>,
    /// Wait for new messages at the end; always so with --offset latest
    #[arg(short, long)]
    follow: bool,
    /// End after so many messages
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Where to start reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offset {
    Earliest,
    Latest,
    Number(u64),
    Time(Timestamp),
}

pub(super) async fn run(command: &StreamCommand) -> anyhow::Result<()> {
    let mut output = Output::stdout();
    match command {
        StreamCommand::List { admin } => {
            let mut client = admin.connect().await?;
            let response = admin.answer(client.list_streams(wire::ListStreamsRequest {})).await?;
            match admin.output {
                Format::Json => output.json(&response.streams.iter().map(stream_json).collect())?,
                Format::Text if response.streams.is_empty() => eprintln!("there are no streams"),
                Format::Text => output.text(&list(&response.streams))?,
            }
        }
        StreamCommand::Describe { name, admin } => {
            let mut client = admin.connect().await?;
            let request = wire::DescribeStreamRequest { name: name.clone() };
            let response = admin.answer(client.describe_stream(request)).await?;
            match admin.output {
                Format::Json => output.json(&description_json(&response))?,
                Format::Text => output.text(&describe(&response))?,
            }
        }
        StreamCommand::Tail(args) => tokio::select! {
            tailed = tail(args, &mut output) => tailed?,
            interrupted = tokio::signal::ctrl_c() => interrupted?,
        },
    }
    Ok(output.flush()?)
}

async fn tail(args: &TailArgs, output: &mut Output) -> anyhow::Result<()> {
    if args.count == Some(0) {
        return Ok(());
    }
    let mut client = args.admin.connect().await?;
    let request = wire::ReadStreamRequest {
        name: args.name.clone(),
        shard: args.shard,
        start: Some(match args.offset {
            Offset::Earliest => Start::Earliest(wire::Earliest {}),
            Offset::Latest => Start::Latest(wire::Latest {}),
            Offset::Number(offset) => Start::Offset(offset),
            Offset::Time(timestamp) => Start::TimestampMicros(timestamp.as_micros()),
        }),
        follow: args.follow || args.offset == Offset::Latest,
        limit: args.count.unwrap_or(0),
    };
    let mut messages = args.admin.answer(client.read_stream(request)).await?;
    while let Some(message) = messages.message().await.map_err(|status| args.admin.explain(&status))? {
        let mut line = match args.admin.output {
            Format::Json => message_json(&message).to_string().into_bytes(),
            Format::Text => message_line(&message, output.is_terminal()),
        };
        line.push(b'\n');
        output.write(&line)?;
        if output.is_terminal() || args.follow || args.offset == Offset::Latest {
            output.flush()?;
        }
    }
    Ok(())
}

fn offset(text: &str) -> Result<Offset, String> {
    let number = text.strip_prefix("offset:").unwrap_or(text);
    match text {
        "earliest" => return Ok(Offset::Earliest),
        "latest" => return Ok(Offset::Latest),
        _ => {}
    }
    if let Ok(offset) = number.parse() {
        return Ok(Offset::Number(offset));
    }
    if let Some(back) = crate::config::parse_duration(text) {
        let back = u64::try_from(back.as_micros()).unwrap_or(u64::MAX);
        let now = Clock::system().wall().as_micros();
        return Ok(Offset::Time(Timestamp::from_micros(now.saturating_sub(back))));
    }
    timestamp(text).map(Offset::Time).map_err(|_| {
        "allowed: earliest, latest, an offset, a time such as 2026-01-31T12:00:00Z, a duration such as 10m".to_owned()
    })
}

fn timestamp(text: &str) -> anyhow::Result<Timestamp> {
    let micros = text.parse::<jiff::Timestamp>()?.as_microsecond();
    Ok(Timestamp::from_micros(u64::try_from(micros).map_err(|_| anyhow!("before 1970"))?))
}

fn message_line(message: &wire::ReadStreamResponse, is_terminal: bool) -> Vec<u8> {
    let start = format!(
        "{} {}:{} {} ",
        time(message.ts_micros),
        message.shard,
        message.offset,
        harmless(&message.topic)
    );
    let mut line = start.into_bytes();
    if is_terminal {
        line.extend_from_slice(harmless(&String::from_utf8_lossy(&message.payload)).as_bytes());
    } else {
        line.extend_from_slice(&message.payload);
    }
    line
}

fn message_json(message: &wire::ReadStreamResponse) -> Value {
    let properties = message
        .user_properties
        .iter()
        .map(|property| json!([property.name, property.value]))
        .collect::<Value>();
    let mut object = json!({
        "shard": message.shard,
        "offset": message.offset,
        "tsMicros": message.ts_micros,
        "topic": message.topic,
        "properties": properties,
    });
    let mut bytes = |name: &str, bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => object[name] = text.into(),
        Err(_) => object[format!("{name}Hex")] = hex(bytes).into(),
    };
    bytes("payload", &message.payload);
    if let Some(key) = &message.key {
        bytes("key", key);
    }
    object
}

fn list(streams: &[wire::Stream]) -> String {
    let mut table = Table::new(&["NAME", "FILTER", "SHARDS#", "MESSAGES#", "SIZE#", "READERS#", "STATUS"]);
    for stream in streams {
        table.row(vec![
            harmless(&stream.name),
            harmless(&stream.topic_filter),
            stream.shards.to_string(),
            stream.messages.to_string(),
            bytes(stream.bytes),
            stream.readers.to_string(),
            ready(&stream.conditions),
        ]);
    }
    table.to_string()
}

fn describe(response: &wire::DescribeStreamResponse) -> String {
    let stream = response.stream.clone().unwrap_or_default();
    let settings = response.settings.clone().unwrap_or_default();
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
        ("Key", key),
        ("Last value", if settings.last_value { "yes" } else { "no" }.to_owned()),
        ("Keeps", keeps),
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
        let mut readers = Table::new(&["READER", "NEXT BY SHARD"]);
        for reader in &response.readers {
            let next: Vec<String> = reader.next_offsets.iter().map(ToString::to_string).collect();
            readers.row(vec![harmless(&reader.id), next.join(" ")]);
        }
        text.push_str(&format!("\n{readers}"));
    }
    text.push_str(&remarks(&stream.conditions, &response.warnings));
    text
}

fn stream_json(stream: &wire::Stream) -> Value {
    json!({
        "name": stream.name,
        "topicFilter": stream.topic_filter,
        "shards": stream.shards,
        "messages": stream.messages,
        "bytes": stream.bytes,
        "readers": stream.readers,
        "declaration": declaration_json(stream.declaration.as_ref()),
        "conditions": conditions_json(&stream.conditions),
    })
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
    let readers =
        response.readers.iter().map(|reader| json!({"id": reader.id, "nextOffsets": reader.next_offsets}));
    json!({
        "stream": stream_json(&response.stream.clone().unwrap_or_default()),
        "settings": {
            "key": settings.key,
            "lastValue": settings.last_value,
            "retentionAgeMillis": settings.retention_age_millis,
            "retentionBytes": settings.retention_bytes,
            "retentionMessages": settings.retention_messages,
        },
        "shards": shards.collect::<Value>(),
        "readers": readers.collect::<Value>(),
        "warnings": response.warnings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_start() {
        assert_eq!(offset("earliest"), Ok(Offset::Earliest));
        assert_eq!(offset("latest"), Ok(Offset::Latest));
        assert_eq!(offset("17"), Ok(Offset::Number(17)));
        assert_eq!(offset("offset:17"), Ok(Offset::Number(17)));
        assert_eq!(
            offset("2023-11-14T22:13:20Z"),
            Ok(Offset::Time(Timestamp::from_micros(1_700_000_000_000_000)))
        );
        let Ok(Offset::Time(back)) = offset("10m") else { panic!("a duration back") };
        assert!(back < Clock::system().wall());
        for text in ["", "-1", "yesterday", "2023-11-14", "1960-01-01T00:00:00Z", "offset:x"] {
            assert!(offset(text).is_err(), "{text}");
        }
    }
}
