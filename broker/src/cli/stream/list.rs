//! `weir stream list`: all streams at a glance.

use serde_json::{Value, json};
use weir_proto::admin::v1 as wire;

use crate::cli::admin::{AdminArgs, conditions_json, declaration_json, ready};
use crate::cli::output::{Format, Output, Table, bytes, harmless, rate, time};

pub(super) async fn run(admin: &AdminArgs) -> anyhow::Result<()> {
    let mut client = admin.connect().await?;
    let response = admin.answer(client.list_streams(wire::ListStreamsRequest {})).await?;
    let mut output = Output::stdout();
    match admin.output {
        Format::Json => output.json(&response.streams.iter().map(stream_json).collect())?,
        Format::Text if response.streams.is_empty() => eprintln!("there are no streams"),
        Format::Text => output.text(&list(&response.streams))?,
    }
    Ok(())
}

fn list(streams: &[wire::Stream]) -> String {
    let mut table = Table::new(&[
        "NAME",
        "FILTER",
        "SHARDS#",
        "MESSAGES#",
        "SIZE#",
        "READERS#",
        "IN/S#",
        "READ/S#",
        "OLDEST",
        "STATUS",
    ]);
    for stream in streams {
        let rates = stream.rates.unwrap_or_default();
        table.row(vec![
            harmless(&stream.name),
            harmless(&stream.topic_filter),
            stream.shards.to_string(),
            stream.messages.to_string(),
            bytes(stream.bytes),
            stream.readers.to_string(),
            rate(rates.published),
            rate(rates.read),
            time(stream.oldest_ts_micros),
            ready(&stream.conditions),
        ]);
    }
    table.to_string()
}

pub(super) fn stream_json(stream: &wire::Stream) -> Value {
    let rates = stream.rates.unwrap_or_default();
    json!({
        "name": stream.name,
        "topicFilter": stream.topic_filter,
        "shards": stream.shards,
        "messages": stream.messages,
        "bytes": stream.bytes,
        "readers": stream.readers,
        "oldestTsMicros": stream.oldest_ts_micros,
        "rates": {"published": rates.published, "read": rates.read},
        "declaration": declaration_json(stream.declaration.as_ref()),
        "conditions": conditions_json(&stream.conditions),
    })
}
