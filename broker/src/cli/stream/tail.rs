//! `weir stream tail`: prints the messages of a stream.

use clap::Args;
use serde_json::{Value, json};
use weir_proto::admin::v1 as wire;

use super::place::{Place, place};
use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, harmless, time};
use crate::json::set_bytes;

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct TailArgs {
    /// Name of the stream
    name: String,
    /// Where to start: earliest, latest, an offset, SHARD:OFFSET by commas, a time (RFC 3339), or a duration back from
    /// now (10m)
    #[arg(long, value_name = "WHERE", default_value = "latest", value_parser = place)]
    offset: Place,
    /// Where to end, this message excluded: as --offset; a time or offset that is yet to come is waited for
    #[arg(long, value_name = "WHERE", value_parser = place)]
    until: Option<Place>,
    /// Only topics that match this filter
    #[arg(long, value_name = "FILTER")]
    filter: Option<String>,
    /// Only messages with this key
    #[arg(long, value_name = "KEY")]
    message_key: Option<String>,
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

pub(super) async fn run(args: &TailArgs) -> anyhow::Result<()> {
    let mut output = Output::stdout();
    tokio::select! {
        tailed = tail(args, &mut output) => tailed?,
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(output.flush()?)
}

async fn tail(args: &TailArgs, output: &mut Output) -> anyhow::Result<()> {
    if args.count == Some(0) {
        return Ok(());
    }
    let mut client = args.admin.connect().await?;
    // Without an end, what is yet to come is all there is.
    let follows = args.follow || args.offset == Place::Latest && args.until.is_none();
    let request = wire::ReadStreamRequest {
        name: args.name.clone(),
        shard: args.shard,
        from: Some(args.offset.wire()),
        until: args.until.as_ref().map(Place::wire),
        topic_filter: args.filter.clone().unwrap_or_default(),
        key: args.message_key.clone().map(Into::into),
        follow: follows,
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
        if output.is_terminal() || follows || args.until.is_some() {
            output.flush()?;
        }
    }
    Ok(())
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

pub(super) fn message_json(message: &wire::ReadStreamResponse) -> Value {
    let properties = message
        .user_properties
        .iter()
        .map(|property| json!([property.name, property.value]))
        .collect::<Value>();
    let mut object = json!({
        "shard": message.shard,
        "offset": message.offset,
        "ts": message.ts_micros,
        "topic": message.topic,
        "properties": properties,
    });
    set_bytes(&mut object, "payload", &message.payload);
    if let Some(key) = &message.key {
        set_bytes(&mut object, "key", key);
    }
    object
}
