//! `weir stream export`: a range of a stream as files, one shard after the other.
//!
//! Reads through the admin API. What is to be exported is settled by the first run and kept in the folder (`folder`),
//! so that a later run of the same command goes on after the last complete part, and has the same messages in the end.
//! A part is written beside its name and renamed once it is on the disk (`part`). In memory is one group of rows.

mod folder;
mod parquet;
mod part;

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weir_env::clock::{Clock, Instant};
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::stream_place::Place as Start;
use weir_topic::TopicFilter;

use self::folder::{Asked, Begin, Folder, Plan, ShardPlan};
use self::part::Part;
use super::place::{Place, place};
use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, bytes};

/// How often a person is told how far it is.
const PROGRESS_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);
/// Bytes of payloads after which a part is complete although it may have more messages.
const PART_BYTES: u64 = 1 << 30;

/// What the files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum FileFormat {
    /// Apache Parquet, compressed with Snappy
    Parquet,
    /// A JSON object a line
    Jsonl,
}

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct ExportArgs {
    /// Name of the stream
    name: String,
    /// Folder for the files, which is made; an export that was interrupted there is gone on with
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What the files are
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "parquet")]
    format: FileFormat,
    /// Where to begin: earliest, latest, an offset, a time (RFC 3339), or a duration back from now (10m)
    #[arg(long, value_name = "WHERE", default_value = "earliest")]
    from: String,
    /// Where to end, that message not included; latest is the end as it is when the export begins
    #[arg(long, value_name = "WHERE", default_value = "latest")]
    until: String,
    /// Only this shard
    #[arg(long, value_name = "N")]
    shard: Option<u32>,
    /// Only messages of topics that match
    #[arg(long, value_name = "FILTER", value_parser = filter)]
    filter: Option<TopicFilter>,
    /// Messages of one file at most
    #[arg(long, value_name = "N", default_value_t = 500_000, value_parser = clap::value_parser!(u64).range(1..))]
    part_messages: u64,
    #[command(flatten)]
    admin: AdminArgs,
}

fn filter(text: &str) -> Result<TopicFilter, String> {
    TopicFilter::parse(text.to_owned()).map_err(|error| error.to_string())
}

/// What a run has done.
#[derive(Debug, Default)]
struct Done {
    files: u64,
    messages: u64,
    bytes: u64,
    gaps: Vec<Gap>,
}

/// Messages of the range that had gone before they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    shard: u32,
    /// Offset of the first.
    first: u64,
    /// The offset after the last.
    end: u64,
}

pub(super) async fn run(args: &ExportArgs) -> anyhow::Result<()> {
    let done = tokio::select! {
        done = export(args) => done?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            bail!("interrupted; the same command goes on after the last complete file");
        }
    };
    let Done { files, messages, bytes: size, gaps } = done;
    let missing: u64 = gaps.iter().map(|gap| gap.end - gap.first).sum();
    let mut output = Output::stdout();
    match args.admin.output {
        Format::Json => {
            let gap = |gap: &Gap| json!({ "shard": gap.shard, "first": gap.first, "end": gap.end });
            let gaps = gaps.iter().map(gap).collect::<Value>();
            output.json(&json!({
                "files": files, "messages": messages, "bytes": size, "missing": missing, "gaps": gaps,
            }))?;
        }
        Format::Text => {
            let mut text = match files {
                0 => "nothing was left to export".to_owned(),
                _ => format!("{messages} messages in {files} files, {}", bytes(size)),
            };
            if missing > 0 {
                text.push_str(&format!(
                    "; {missing} messages are missing: they had gone before they were read"
                ));
            }
            output.text(&format!("{text}\n"))?;
        }
    }
    Ok(())
}

async fn export(args: &ExportArgs) -> anyhow::Result<Done> {
    let stream = describe(args).await?;
    let asked = Asked {
        stream: args.name.clone(),
        format: args.format,
        from: args.from.clone(),
        until: args.until.clone(),
        shard: args.shard,
        filter: args.filter.as_ref().map(|filter| filter.as_str().to_owned()),
    };
    let folder = Folder::open(&args.out)?;
    let plan = match folder.plan()? {
        Some(plan) => {
            plan.check(&asked, &args.out)?;
            plan
        }
        None => {
            let plan = settle(args, asked, &stream)?;
            folder.keep(&plan)?;
            plan
        }
    };
    let is_compacted = stream.settings.is_some_and(|settings| settings.last_value);
    let mut run =
        Run { args, folder, is_compacted, clock: Clock::system(), told: None, done: Done::default() };
    for shard in &plan.shards {
        run.shard(&plan, shard).await?;
    }
    Ok(run.done)
}

async fn describe(args: &ExportArgs) -> anyhow::Result<wire::DescribeStreamResponse> {
    let mut client = args.admin.connect().await?;
    let request = wire::DescribeStreamRequest { name: args.name.clone() };
    args.admin.answer(client.describe_stream(request)).await
}

/// Refuses a stream that is not the one of the plan any more.
async fn check_stream(args: &ExportArgs, plan: &Plan) -> anyhow::Result<()> {
    let stream = describe(args).await?;
    let is_short = |shard: &ShardPlan| {
        let found = stream.shards.iter().find(|found| found.shard == shard.shard);
        found.is_none_or(|found| found.next_offset < shard.end)
    };
    if stream.id != plan.stream_id || plan.shards.iter().any(is_short) {
        bail!(
            "stream `{}` was made anew since the export in {} began: its messages are others; use another --out",
            args.name,
            args.out.display()
        );
    }
    Ok(())
}

/// Settles what is exported, as things are now.
fn settle(args: &ExportArgs, asked: Asked, stream: &wire::DescribeStreamResponse) -> anyhow::Result<Plan> {
    let where_to = |option: &str, text: &str| {
        place(text).map_err(|problem| anyhow::anyhow!("`{text}` is not allowed for {option}; {problem}"))
    };
    let (from, until) = (where_to("--from", &args.from)?, where_to("--until", &args.until)?);
    let count = stream.shards.len();
    let has_offset = matches!(from, Place::Offset(_)) || matches!(until, Place::Offset(_));
    if has_offset && args.shard.is_none() && count != 1 {
        bail!("stream `{}` has {count} shards with offsets of their own; name one with --shard", args.name);
    }
    if let Some(shard) = args.shard
        && !stream.shards.iter().any(|found| found.shard == shard)
    {
        bail!("stream `{}` has no shard {shard}; allowed: 0 to {}", args.name, count.saturating_sub(1));
    }
    let wanted = stream.shards.iter().filter(|found| args.shard.is_none_or(|shard| shard == found.shard));
    let shards = wanted.map(|found| ShardPlan {
        shard: found.shard,
        begin: match &from {
            Place::Earliest => Begin::Offset(found.start_offset),
            Place::Latest => Begin::Offset(found.next_offset),
            Place::Offset(offset) => Begin::Offset(*offset),
            Place::Offsets(offsets) => Begin::Offset(offset_in(offsets, found)),
            Place::Time(at) => Begin::TimeMicros(at.as_micros()),
        },
        end: match &until {
            Place::Earliest => found.start_offset,
            Place::Offset(offset) => found.next_offset.min(*offset),
            Place::Offsets(offsets) => found.next_offset.min(offset_in(offsets, found)),
            Place::Latest | Place::Time(_) => found.next_offset,
        },
    });
    let until_micros = match until {
        Place::Time(at) => Some(at.as_micros()),
        Place::Earliest | Place::Latest | Place::Offset(_) | Place::Offsets(_) => None,
    };
    Ok(Plan { shards: shards.collect(), asked, stream_id: stream.id, until_micros })
}

/// What `offsets` say of a shard; where it begins, if they do not name it.
fn offset_in(offsets: &[(u32, u64)], shard: &wire::StreamShard) -> u64 {
    let named = offsets.iter().find(|(of, _)| *of == shard.shard);
    named.map_or(shard.start_offset, |(_, offset)| *offset)
}

/// A run of the command.
struct Run<'a> {
    args: &'a ExportArgs,
    folder: Folder,
    /// Of such a stream offsets are missing for good reasons.
    is_compacted: bool,
    clock: Clock,
    /// When a person was last told how far it is.
    told: Option<Instant>,
    done: Done,
}

impl Run<'_> {
    /// Exports what is missing of one shard.
    async fn shard(&mut self, plan: &Plan, shard: &ShardPlan) -> anyhow::Result<()> {
        let reached = self.folder.reached(&plan.asked, shard.shard)?;
        // Where reading stands: not known before the first message of a time.
        let mut position = match reached.map_or(shard.begin, Begin::Offset) {
            Begin::Offset(offset) => Some(offset),
            Begin::TimeMicros(_) => None,
        };
        if position.is_some_and(|position| position >= shard.end) {
            return check_stream(self.args, plan).await;
        }
        let mut messages = self.read(plan, shard, reached).await?;
        let mut part: Option<Part> = None;
        let mut is_over = false;
        while let Some(message) =
            messages.message().await.map_err(|status| self.args.admin.explain(&status))?
        {
            is_over = plan.until_micros.is_some_and(|until| message.ts_micros >= until);
            if message.offset >= shard.end || is_over {
                break;
            }
            let base = position.unwrap_or(message.offset);
            self.look_for_gap(shard, base, message.offset);
            let next = message.offset + 1;
            position = Some(next);
            if self.wants(&message) {
                let part = match &mut part {
                    Some(part) => part,
                    None => part.insert(self.folder.part(plan.asked.format, shard.shard, base)?),
                };
                part.write(message)?;
            }
            let is_full = |part: &mut Part| {
                part.messages() >= self.args.part_messages || part.payload_bytes() >= PART_BYTES
            };
            if let Some(full) = part.take_if(is_full) {
                self.finish(plan, full, next)?;
            }
            self.tell(shard, next);
        }
        if let Some(position) = position.filter(|_| !is_over) {
            self.look_for_gap(shard, position, shard.end);
        }
        if let Some(last) = part {
            self.finish(plan, last, shard.end)?;
        }
        Ok(())
    }

    /// The messages of a shard from where the export of it stands.
    async fn read(
        &self,
        plan: &Plan,
        shard: &ShardPlan,
        reached: Option<u64>,
    ) -> anyhow::Result<tonic::Streaming<wire::ReadStreamResponse>> {
        let start = match reached.map_or(shard.begin, Begin::Offset) {
            Begin::Offset(offset) => Start::Offset(offset),
            Begin::TimeMicros(micros) => Start::TimestampMicros(micros),
        };
        let mut client = self.args.admin.connect().await?;
        // Without the filter, which would hide what is missing.
        let request = wire::ReadStreamRequest {
            name: self.args.name.clone(),
            shard: Some(shard.shard),
            from: Some(wire::StreamPlace { place: Some(start) }),
            ..wire::ReadStreamRequest::default()
        };
        let messages = self.args.admin.answer(client.read_stream(request)).await?;
        // Now, as what is read stays the stream that it is.
        check_stream(self.args, plan).await?;
        Ok(messages)
    }

    /// Tells of what is missing between what was expected and what came, in a stream where all is expected.
    fn look_for_gap(&mut self, shard: &ShardPlan, first: u64, end: u64) {
        if self.is_compacted || first >= end {
            return;
        }
        let gap = Gap { shard: shard.shard, first, end };
        eprintln!(
            "WARN {} messages of shard {} are missing, offsets {first} to {}: they had gone before they were read",
            end - first,
            gap.shard,
            end - 1
        );
        self.done.gaps.push(gap);
    }

    fn wants(&self, message: &wire::ReadStreamResponse) -> bool {
        let Some(filter) = &self.args.filter else { return true };
        weir_topic::TopicName::parse(message.topic.clone()).is_ok_and(|topic| filter.matches(&topic))
    }

    /// `part` is complete, up to `end`.
    fn finish(&mut self, plan: &Plan, part: Part, end: u64) -> anyhow::Result<()> {
        self.done.files += 1;
        self.done.messages += part.messages();
        self.done.bytes += self.folder.complete(&plan.asked, part, end)?;
        Ok(())
    }

    fn tell(&mut self, shard: &ShardPlan, position: u64) {
        let now = self.clock.now();
        let begun = *self.told.get_or_insert(now);
        if now.saturating_duration_since(begun) >= PROGRESS_INTERVAL {
            self.told = Some(now);
            let ShardPlan { shard, end, .. } = shard;
            let Done { files, .. } = self.done;
            eprintln!("shard {shard}: at {position} of {end}; {files} files complete");
        }
    }
}
