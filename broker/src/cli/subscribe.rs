//! `weir sub`: subscribes and prints what arrives. A message is acknowledged when it has been printed.

use std::num::NonZeroU16;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytestring::ByteString;
use clap::Args;
use serde_json::json;
use tokio::time::Instant;
use weir_codec::{ProtocolVersion, Publish, QoS, ReasonCode, SubscribeFilter, SubscriptionOptions};
use weir_env::clock::Clock;

use super::args::{self, BrokerArgs, explain};
use super::output::{Output, harmless};
use crate::client::{Acks, Client, ConnectOptions};
use crate::json::set_bytes;

/// Messages printed and not yet acknowledged.
const UNACKNOWLEDGED_MAX: NonZeroU16 = NonZeroU16::new(500).expect("500 is not zero");

#[derive(Clone, Debug, Args)]
pub(super) struct SubscribeArgs {
    /// Topic filters; $queue/NAME consumes a queue, $stream/NAME reads a stream
    #[arg(required = true, value_name = "FILTER")]
    filters: Vec<String>,
    /// Highest quality of service
    #[arg(short, long, default_value = "1", value_parser = args::qos)]
    qos: QoS,
    /// End after so many messages
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    /// End after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = args::duration)]
    time: Option<Duration>,
    /// Keep the session when this ends, and resume it when started again with the same --id
    #[arg(long, requires = "id")]
    persistent: bool,
    /// How long a kept session lasts
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = args::duration)]
    session_expiry: Duration,
    /// User property of the SUBSCRIBE, repeatable
    #[arg(short = 'P', long = "property", value_name = "NAME=VALUE", value_parser = args::property)]
    properties: Vec<(ByteString, ByteString)>,
    /// Where to start in streams: earliest, latest, a time (RFC 3339 or unix microseconds), offset:N
    #[arg(long, value_name = "WHERE")]
    offset: Option<String>,
    /// Where to stop in streams, as --offset; ends when all is printed
    #[arg(long, value_name = "WHERE")]
    until: Option<String>,
    /// One line per message: {topic} {payload} {qos} {retain}, and {NAME} for a user property such as {offset}
    #[arg(long, default_value = "{topic} {payload}", conflicts_with = "json")]
    format: String,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

pub(super) async fn run(args: &SubscribeArgs) -> anyhow::Result<()> {
    let v5 = args.broker.version == ProtocolVersion::V5;
    let mut properties = args.properties.clone();
    properties.extend(args.offset.as_ref().map(|text| ("stream-offset".into(), text.as_str().into())));
    properties.extend(args.until.as_ref().map(|text| ("stream-until".into(), text.as_str().into())));
    ensure!(
        v5 || properties.is_empty(),
        "--property, --offset and --until need MQTT 5; see $s/<offset>/<filter>"
    );

    let options = ConnectOptions {
        clean_start: !args.persistent,
        session_expiry_interval: args
            .persistent
            .then(|| u32::try_from(args.session_expiry.as_secs()).unwrap_or(u32::MAX)),
        receive_maximum: Some(UNACKNOWLEDGED_MAX),
        acks: Acks::Manual,
        ..args.broker.connect_options("sub")?
    };
    let mut client = args.broker.connect(&options).await?;
    subscribe(&mut client, args, properties).await?;

    let mut printer = Printer {
        output: Output::stdout(),
        unacknowledged: Vec::new(),
        left: args.count.unwrap_or(u64::MAX),
        streams_left: if args.until.is_some() { args.filters.len() } else { usize::MAX },
        args,
    };
    let ended = Clock::system().now();
    let limit = args.time.and_then(|time| ended.checked_add(time));
    tokio::select! {
        printed = printer.run(&mut client, limit) => printed?,
        interrupted = interrupt() => interrupted?,
    }
    printer.acknowledge(&mut client)?;
    client.disconnect().await?;
    Ok(())
}

async fn subscribe(
    client: &mut Client,
    args: &SubscribeArgs,
    properties: Vec<(ByteString, ByteString)>,
) -> anyhow::Result<()> {
    let options = SubscriptionOptions { qos: args.qos, ..SubscriptionOptions::default() };
    let filters =
        args.filters.iter().map(|filter| SubscribeFilter { filter: filter.as_str().into(), options });
    let answer = client.subscribe(filters.collect(), properties).await.map_err(explain)?;
    let said = answer.properties.reason_string.as_ref().map(|text| harmless(text));
    let mut refused = 0;
    for (filter, reason) in args.filters.iter().zip(&answer.reasons) {
        if reason.is_error() {
            refused += 1;
            eprintln!("weir: subscription to `{filter}` refused: {reason}");
        }
    }
    match said {
        Some(said) if refused > 0 => bail!("{said}"),
        Some(said) => eprintln!("weir: {said}"),
        None => ensure!(refused == 0, "{refused} of {} subscriptions refused", args.filters.len()),
    }
    Ok(())
}

async fn interrupt() -> anyhow::Result<()> {
    tokio::signal::ctrl_c().await.context("wait for an interrupt")
}

struct Printer<'a> {
    args: &'a SubscribeArgs,
    output: Output,
    unacknowledged: Vec<Publish>,
    left: u64,
    /// Streams that have not ended.
    streams_left: usize,
}

impl Printer<'_> {
    /// Prints until there is nothing more to come.
    async fn run(&mut self, client: &mut Client, limit: Option<Instant>) -> anyhow::Result<()> {
        while self.left > 0 && self.streams_left > 0 {
            // What has arrived is printed before anything is acknowledged or waited for.
            let arrived = client.recv_until(Clock::system().now()).await?;
            let publish = match (arrived, limit) {
                (Some(publish), _) => publish,
                (None, limit) => {
                    self.acknowledge(client)?;
                    match limit {
                        Some(limit) => match client.recv_until(limit).await? {
                            Some(publish) => publish,
                            None => return Ok(()),
                        },
                        None => client.recv().await?,
                    }
                }
            };
            if is_stream_end(&publish) {
                self.streams_left -= 1;
            } else {
                self.print(&publish)?;
                self.left -= 1;
            }
            self.unacknowledged.push(publish);
            if self.unacknowledged.len() >= usize::from(UNACKNOWLEDGED_MAX.get()) / 2 {
                self.acknowledge(client)?;
            }
        }
        Ok(())
    }

    fn acknowledge(&mut self, client: &mut Client) -> anyhow::Result<()> {
        self.output.flush()?;
        for publish in self.unacknowledged.drain(..) {
            client.ack(&publish, ReasonCode::Success)?;
        }
        Ok(())
    }

    fn print(&mut self, publish: &Publish) -> anyhow::Result<()> {
        let mut line = Vec::new();
        if self.args.json {
            line.extend_from_slice(json_line(publish).to_string().as_bytes());
        } else {
            fill(&self.args.format, publish, self.output.is_terminal(), &mut line);
        }
        line.push(b'\n');
        Ok(self.output.write(&line)?)
    }
}

/// The broker's mark that a bounded replay is complete.
fn is_stream_end(publish: &Publish) -> bool {
    publish.payload.is_empty()
        && publish.topic.as_ref().is_some_and(|topic| topic.as_str().starts_with("$stream/"))
        && user_property(publish, "stream-end") == Some("true")
}

/// The last user property of that name, which is the broker's if there are several.
fn user_property<'a>(publish: &'a Publish, name: &str) -> Option<&'a str> {
    let properties = &publish.properties.user_properties;
    properties.iter().rev().find(|(n, _)| &**n == name).map(|(_, value)| &**value)
}

fn topic(publish: &Publish) -> &str {
    publish.topic.as_ref().map_or("", |topic| topic.as_str())
}

/// Writes `format` with its placeholders replaced. `\n` and `\t` are escapes, `{{` is a brace.
fn fill(format: &str, publish: &Publish, is_terminal: bool, line: &mut Vec<u8>) {
    let text = |text: &str, line: &mut Vec<u8>| {
        if is_terminal {
            line.extend_from_slice(harmless(text).as_bytes());
        } else {
            line.extend_from_slice(text.as_bytes());
        }
    };
    let mut rest = format;
    while let Some(at) = rest.find(['{', '\\']) {
        line.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at..];
        if let Some(tail) = rest.strip_prefix("{{") {
            line.push(b'{');
            rest = tail;
        } else if let Some(tail) = rest.strip_prefix("\\n") {
            line.push(b'\n');
            rest = tail;
        } else if let Some(tail) = rest.strip_prefix("\\t") {
            line.push(b'\t');
            rest = tail;
        } else if let Some((name, tail)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            match name {
                "topic" => text(topic(publish), line),
                "payload" if is_terminal => text(&String::from_utf8_lossy(&publish.payload), line),
                "payload" => line.extend_from_slice(&publish.payload),
                "qos" => line.push(b'0' + publish.header.qos.as_u8()),
                "retain" => line.push(b'0' + u8::from(publish.header.retain)),
                name => text(user_property(publish, name).unwrap_or_default(), line),
            }
            rest = tail;
        } else {
            line.push(rest.as_bytes()[0]);
            rest = &rest[1..];
        }
    }
    line.extend_from_slice(rest.as_bytes());
}

fn json_line(publish: &Publish) -> serde_json::Value {
    let properties: Vec<_> =
        publish.properties.user_properties.iter().map(|(name, value)| json!([&**name, &**value])).collect();
    let mut object = json!({
        "topic": topic(publish),
        "qos": publish.header.qos.as_u8(),
        "retain": publish.header.retain,
        "properties": properties,
    });
    set_bytes(&mut object, "payload", &publish.payload);
    if let Some(content_type) = &publish.properties.content_type {
        object["contentType"] = (&**content_type).into();
    }
    if let Some(response_topic) = &publish.properties.response_topic {
        object["responseTopic"] = response_topic.as_str().into();
    }
    if let Some(seconds) = publish.header.message_expiry_interval {
        object["expirySeconds"] = seconds.into();
    }
    object
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use weir_codec::{MessageProperties, PublishHeader};
    use weir_topic::TopicName;

    use super::*;

    fn publish(payload: &'static [u8], properties: &[(&str, &str)]) -> Publish {
        let user_properties =
            properties.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Publish {
            header: PublishHeader { qos: QoS::AtLeastOnce, ..PublishHeader::default() },
            topic: Some(TopicName::parse("a/b").unwrap()),
            payload: Bytes::from_static(payload),
            properties: MessageProperties { user_properties, ..MessageProperties::default() },
        }
    }

    #[track_caller]
    fn check_format(format: &str, expected: &str) {
        let publish = publish(b"hi", &[("offset", "forged"), ("offset", "7")]);
        let mut line = Vec::new();
        fill(format, &publish, false, &mut line);
        assert_eq!(String::from_utf8(line).unwrap(), expected, "{format}");
    }

    #[test]
    fn formats() {
        check_format("{topic} {payload}", "a/b hi");
        check_format("{qos}/{retain}", "1/0");
        check_format("{offset}|{nothing}|", "7||");
        check_format("{{topic}\\t\\n\\x{", "{topic}\t\n\\x{");
        check_format("", "");
        check_format("é{payload}ü", "éhiü");
    }

    #[test]
    fn payloads_are_raw_in_a_pipe_and_harmless_on_a_terminal() {
        let publish = publish(b"\x1b[2J\xff", &[]);
        let (mut pipe, mut terminal) = (Vec::new(), Vec::new());
        fill("{payload}", &publish, false, &mut pipe);
        fill("{payload}", &publish, true, &mut terminal);
        assert_eq!(pipe, b"\x1b[2J\xff");
        assert_eq!(String::from_utf8(terminal).unwrap(), "\\u{1b}[2J\u{fffd}");
    }

    #[test]
    fn json_lines_hold_text_or_base64() {
        let text = json_line(&publish(b"hi", &[("k", "v")]));
        assert_eq!(
            text,
            json!({"topic": "a/b", "payload": "hi", "qos": 1, "retain": false, "properties": [["k", "v"]]})
        );
        assert_eq!(json_line(&publish(b"\xff\x00", &[]))["payloadBase64"], "/wA=");
    }

    #[test]
    fn only_the_brokers_mark_ends_a_stream() {
        let mut end = publish(b"", &[("stream-end", "true")]);
        assert!(!is_stream_end(&end), "an ordinary topic");
        end.topic = Some(TopicName::parse("$stream/s").unwrap());
        assert!(is_stream_end(&end));
    }
}
