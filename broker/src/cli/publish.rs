//! `weir pub`: publishes messages and fails if the broker refuses one.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use bytestring::ByteString;
use clap::Args;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use weir_codec::{MessageProperties, QoS};
use weir_topic::TopicName;

use super::args::{self, BrokerArgs};
use crate::client::{Client, Completion, Publication};

/// Largest message read from a file or line; what brokers accept is less.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// QoS 0 messages that may wait to be written.
const UNWRITTEN_MAX: usize = 1_000;
/// Refusals that are shown one by one.
const REFUSALS_SHOWN: u64 = 10;

#[derive(Clone, Debug, Args)]
pub(super) struct PublishArgs {
    /// Topic to publish to
    topic: String,
    /// The message
    #[arg(required_unless_present_any = ["stdin_lines", "file"])]
    message: Option<String>,
    /// Publish each line of standard input
    #[arg(long, conflicts_with_all = ["message", "file"])]
    stdin_lines: bool,
    /// Publish the contents of a file; - for standard input
    #[arg(short, long, value_name = "PATH", conflicts_with = "message")]
    file: Option<PathBuf>,
    /// Quality of service; at 0 the broker can't tell what it refuses
    #[arg(short, long, default_value = "1", value_parser = args::qos)]
    qos: QoS,
    /// Keep as the topic's retained message; an empty message removes it
    #[arg(short, long)]
    retain: bool,
    /// User property, repeatable
    #[arg(short = 'P', long = "property", value_name = "NAME=VALUE", value_parser = args::property)]
    properties: Vec<(ByteString, ByteString)>,
    /// Seconds after which the message is worth nothing
    #[arg(long, value_name = "SECONDS")]
    expiry: Option<u32>,
    /// Publish it so many times
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "stdin_lines")]
    repeat: u64,
    #[command(flatten)]
    broker: BrokerArgs,
}

pub(super) async fn run(args: &PublishArgs) -> anyhow::Result<()> {
    TopicName::parse(args.topic.as_str()).with_context(|| format!("topic `{}`", args.topic))?;
    if !args.broker.version.is_v5() {
        ensure!(args.properties.is_empty(), "--property needs MQTT 5");
        ensure!(args.expiry.is_none(), "--expiry needs MQTT 5");
    }
    let fixed = fixed_message(args).await?;
    let mut publisher = Publisher {
        client: args.broker.connect(&args.broker.connect_options("pub")?).await?,
        publication: Publication {
            topic: &args.topic,
            qos: args.qos,
            retain: args.retain,
            message_expiry_interval: args.expiry,
            properties: MessageProperties {
                user_properties: args.properties.clone(),
                ..MessageProperties::default()
            },
            ..Publication::default()
        },
        published: 0,
        unwritten: 0,
        refused: 0,
    };
    match fixed {
        Some(message) => {
            for _ in 0..args.repeat {
                publisher.publish(&message).await?;
            }
        }
        None => publish_lines(&mut publisher).await?,
    }
    publisher.finish().await
}

/// The message, unless lines of standard input are the messages.
async fn fixed_message(args: &PublishArgs) -> anyhow::Result<Option<Vec<u8>>> {
    match (&args.message, &args.file) {
        (Some(message), _) => Ok(Some(message.clone().into_bytes())),
        (None, Some(path)) => {
            let mut message = Vec::new();
            let limit = MESSAGE_BYTES_MAX as u64 + 1;
            let read = if path.as_os_str() == "-" {
                tokio::io::stdin().take(limit).read_to_end(&mut message).await
            } else {
                let file = tokio::fs::File::open(path).await;
                file.with_context(|| format!("open {}", path.display()))?
                    .take(limit)
                    .read_to_end(&mut message)
                    .await
            };
            read.with_context(|| format!("read {}", path.display()))?;
            check_size(&message)?;
            Ok(Some(message))
        }
        (None, None) => Ok(None),
    }
}

async fn publish_lines(publisher: &mut Publisher<'_>) -> anyhow::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin());
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = MESSAGE_BYTES_MAX as u64 + 2;
        if (&mut lines).take(limit).read_until(b'\n', &mut line).await.context("read standard input")? == 0 {
            return Ok(());
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        check_size(&line)?;
        publisher.publish(&line).await?;
        if lines.buffer().is_empty() {
            // The next line may be long in coming.
            publisher.client.flush().await?;
        }
    }
}

fn check_size(message: &[u8]) -> anyhow::Result<()> {
    ensure!(message.len() <= MESSAGE_BYTES_MAX, "message of more than {MESSAGE_BYTES_MAX} bytes");
    Ok(())
}

struct Publisher<'a> {
    client: Client,
    publication: Publication<'a>,
    published: u64,
    unwritten: usize,
    refused: u64,
}

impl Publisher<'_> {
    async fn publish(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        while !self.client.has_room() {
            if let Some(completion) = self.client.completion().await? {
                self.note(&completion);
            }
        }
        self.client.start_publish(&Publication { payload, ..self.publication.clone() })?;
        self.published += 1;
        self.unwritten += 1;
        if self.unwritten >= UNWRITTEN_MAX {
            self.client.flush().await?;
            self.unwritten = 0;
        }
        Ok(())
    }

    async fn finish(mut self) -> anyhow::Result<()> {
        self.client.flush().await?;
        while let Some(completion) = self.client.completion().await? {
            self.note(&completion);
        }
        self.client.disconnect().await?;
        match (self.refused, self.published) {
            (0, _) => Ok(()),
            (_, 1) => bail!("the message was not published"),
            (refused, published) => bail!("{refused} of {published} messages were not published"),
        }
    }

    fn note(&mut self, completion: &Completion) {
        if completion.reason.is_error() {
            self.refused += 1;
            if self.refused <= REFUSALS_SHOWN {
                let said =
                    completion.reason_string.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
                eprintln!(
                    "weir: publish to `{}` refused: {}{said}",
                    self.publication.topic, completion.reason
                );
            }
        }
    }
}
