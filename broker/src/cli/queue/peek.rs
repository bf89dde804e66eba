//! `weir queue peek`: messages of a queue, without consuming them.

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use weir_proto::admin::v1 as wire;

use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, harmless, hex, millis, time};
use crate::json::set_bytes;

/// Messages asked for at once.
const PAGE: u32 = 100;

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct PeekArgs {
    /// Name of the queue
    name: String,
    /// How many messages
    #[arg(short = 'n', long, value_name = "COUNT", default_value = "10", value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Where to begin: front, a place as it is printed (0:12 or 0:p5:12), or an offset (of the shard given by --shard)
    #[arg(long, value_name = "PLACE", default_value = "front")]
    from: String,
    /// Only this shard
    #[arg(long, value_name = "NUMBER")]
    shard: Option<u32>,
    /// Only topics that match this filter
    #[arg(long, value_name = "FILTER")]
    topic: Option<String>,
    /// Only messages with this key
    #[arg(long, value_name = "KEY")]
    message_key: Option<String>,
    /// Bytes of each payload that are shown, up to 65536
    #[arg(long, value_name = "BYTES", default_value = "256")]
    payload_bytes: u32,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) async fn run(args: &PeekArgs) -> anyhow::Result<()> {
    let mut client = args.admin.connect().await?;
    let mut from = args.start()?;
    let mut left = args.count;
    let mut output = Output::stdout();
    loop {
        let request = wire::PeekQueueRequest {
            name: args.name.clone(),
            from,
            shard: args.shard,
            topic_filter: args.topic.clone().unwrap_or_default(),
            key: args.message_key.clone().map(|key| key.into_bytes().into()),
            limit: left.min(PAGE),
            payload_bytes: args.payload_bytes,
        };
        let response = args.admin.answer(client.peek_queue(request)).await?;
        for message in &response.messages {
            let line = match args.admin.output {
                Format::Json => format!("{}\n", json_of(message)),
                Format::Text => text_of(message),
            };
            output.write(line.as_bytes())?;
        }
        output.flush()?;
        left = left.saturating_sub(u32::try_from(response.messages.len()).unwrap_or(u32::MAX));
        from = response.next;
        if left == 0 || from.is_none() {
            return Ok(());
        }
    }
}

impl PeekArgs {
    fn start(&self) -> anyhow::Result<Option<wire::QueuePosition>> {
        if self.from == "front" {
            return Ok(None);
        }
        if let Ok(offset) = self.from.parse() {
            return Ok(Some(wire::QueuePosition { shard: self.shard.unwrap_or(0), priority: 0, offset }));
        }
        match parse_place(&self.from) {
            Some(place) if self.shard.is_none_or(|only| only == place.shard) => Ok(Some(place)),
            Some(place) => {
                bail!("--from is in shard {}, --shard is another: leave one of them out", place.shard)
            }
            None => {
                let allowed = "front, a place as it is printed (0:12 or 0:p5:12), or an offset";
                bail!("`{}` is not allowed for --from; allowed: {allowed}", self.from)
            }
        }
    }
}

/// Reads what [`place`] writes.
fn parse_place(text: &str) -> Option<wire::QueuePosition> {
    let (shard, rest) = text.split_once(':')?;
    let (priority, offset) = match rest.strip_prefix('p') {
        Some(rest) => rest.split_once(':')?,
        None => ("0", rest),
    };
    Some(wire::QueuePosition {
        shard: shard.parse().ok()?,
        priority: priority.parse().ok()?,
        offset: offset.parse().ok()?,
    })
}

fn place(message: &wire::PeekedMessage) -> String {
    let at = message.position.unwrap_or_default();
    let class = if at.priority == 0 { String::new() } else { format!("p{}:", at.priority) };
    format!("{}:{class}{}", at.shard, at.offset)
}

fn state_word(state: wire::MessageState) -> &'static str {
    match state {
        wire::MessageState::Unspecified => "-",
        wire::MessageState::Ready => "ready",
        wire::MessageState::InFlight => "in-flight",
        wire::MessageState::Waiting => "waiting",
        wire::MessageState::Leaving => "leaving",
    }
}

/// One line of facts, then one of the payload.
fn text_of(message: &wire::PeekedMessage) -> String {
    let left = |left: u64| if left == 0 { String::new() } else { format!(" for {}", millis(left)) };
    let state = match message.state() {
        wire::MessageState::InFlight if message.consumer.is_empty() => "being moved".to_owned(),
        wire::MessageState::InFlight => {
            format!("in flight with {}{}", harmless(&message.consumer), left(message.left_millis))
        }
        wire::MessageState::Waiting => format!("waiting{}", left(message.left_millis)),
        wire::MessageState::Leaving => "on its way to the dead letters".to_owned(),
        other => state_word(other).to_owned(),
    };
    let failed = match message.failed_deliveries {
        0 => String::new(),
        1 => ", 1 failed delivery".to_owned(),
        n => format!(", {n} failed deliveries"),
    };
    let key = message.key.as_ref().map(|key| format!(", key {}", shown(key))).unwrap_or_default();
    let properties: String = message
        .user_properties
        .iter()
        .map(|property| format!("    {}: {}\n", harmless(&property.name), harmless(&property.value)))
        .collect();
    let cut = message.payload_len.saturating_sub(message.payload.len() as u64);
    let more = if cut == 0 { String::new() } else { format!("... ({cut} bytes more)") };
    format!(
        "{} {} {}, {state}{failed}{key}\n{properties}    {}{more}\n",
        place(message),
        time(message.ts_micros),
        harmless(&message.topic),
        shown(&message.payload)
    )
}

/// Text as it is, other bytes in hexadecimal. A character that was cut does not make it other bytes.
fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => harmless(text),
        Err(error) if error.error_len().is_none() => {
            harmless(&String::from_utf8_lossy(&bytes[..error.valid_up_to()]))
        }
        Err(_) => format!("hex:{}", hex(bytes)),
    }
}

fn json_of(message: &wire::PeekedMessage) -> Value {
    let at = message.position.unwrap_or_default();
    let mut value = json!({
        "shard": at.shard,
        "priority": at.priority,
        "offset": at.offset,
        "state": state_word(message.state()),
        "consumer": message.consumer,
        "leftMillis": message.left_millis,
        "failedDeliveries": message.failed_deliveries,
        "ts": message.ts_micros,
        "expiresMicros": message.expires_micros,
        "topic": message.topic,
        "key": null,
        "payloadLen": message.payload_len,
        "properties": message.user_properties.iter().map(|p| json!([p.name, p.value])).collect::<Value>(),
    });
    set_bytes(&mut value, "payload", &message.payload);
    if let Some(key) = &message.key {
        set_bytes(&mut value, "key", key);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_printed() {
        for (text, shard, priority, offset) in [("0:12", 0, 0, 12), ("3:p5:7", 3, 5, 7)] {
            let position = Some(wire::QueuePosition { shard, priority, offset });
            assert_eq!(parse_place(text), position);
            assert_eq!(place(&wire::PeekedMessage { position, ..Default::default() }), text);
        }
        for bad in ["", "0:", ":1", "0:p1", "0:p:1", "0:1:2", "p1:2"] {
            assert_eq!(parse_place(bad), None, "{bad}");
        }
    }

    #[test]
    fn payloads_are_shown_safely() {
        assert_eq!(shown(b"plain"), "plain");
        assert_eq!(shown(b"\x1b[2Jx"), "\\u{1b}[2Jx");
        assert_eq!(shown(&[0xff, 0x00]), "hex:ff00");
        assert_eq!(shown("grüße".as_bytes().get(..3).unwrap()), "gr", "cut within a character");
    }
}
