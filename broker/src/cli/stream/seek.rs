//! `weir stream seek`: has a consumer group go on elsewhere, also while it reads.

use clap::Args;
use serde_json::{Value, json};
use weir_env::clock::Clock;
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::seek_group_request::To;

use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, Table, harmless};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct SeekArgs {
    /// Name of the stream
    name: String,
    /// Name of the group
    #[arg(long, value_name = "GROUP")]
    group: String,
    /// Where it goes on: earliest, latest, an offset of every shard, SHARD:OFFSET by commas (other shards stay), a time
    /// (RFC 3339), or a duration back from now (10m)
    #[arg(long, value_name = "WHERE", value_parser = target)]
    to: Target,
    /// Say where that is, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Where a group goes on.
#[derive(Clone, Debug, PartialEq)]
enum Target {
    All(To),
    /// Offsets by shard.
    Some(Vec<(u32, u64)>),
}

fn target(text: &str) -> Result<Target, String> {
    match text {
        "earliest" => return Ok(Target::All(To::Earliest(wire::Earliest {}))),
        "latest" => return Ok(Target::All(To::Latest(wire::Latest {}))),
        _ => {}
    }
    if let Ok(offset) = text.strip_prefix("offset:").unwrap_or(text).parse() {
        return Ok(Target::All(To::Offset(offset)));
    }
    let offset = |one: &str| {
        let (shard, offset) = one.trim().split_once(':')?;
        Some((shard.parse().ok()?, offset.parse().ok()?))
    };
    if let Some(offsets) = text.split(',').map(offset).collect() {
        return Ok(Target::Some(offsets));
    }
    let at = match crate::config::parse_duration(text) {
        Some(back) => {
            let back = u64::try_from(back.as_micros()).unwrap_or(u64::MAX);
            Some(Clock::system().wall().as_micros().saturating_sub(back))
        }
        None => text.parse().ok().and_then(|at: jiff::Timestamp| u64::try_from(at.as_microsecond()).ok()),
    };
    at.map(|at| Target::All(To::TimestampMicros(at))).ok_or_else(|| {
        "allowed: earliest, latest, an offset, SHARD:OFFSET by commas, a time such as 2026-01-31T12:00:00Z, a duration \
         such as 10m"
            .to_owned()
    })
}

pub(super) async fn run(args: &SeekArgs) -> anyhow::Result<()> {
    let mut client = args.admin.connect().await?;
    let (to, offsets) = match &args.to {
        Target::All(to) => (Some(*to), Vec::new()),
        Target::Some(offsets) => (None, offsets.clone()),
    };
    let request = wire::SeekGroupRequest {
        stream: args.name.clone(),
        group: args.group.clone(),
        to,
        offsets: offsets.into_iter().collect(),
        dry_run: args.dry_run,
    };
    let response = args.admin.answer(client.seek_group(request)).await?;
    let mut positions: Vec<(u32, u64)> = response.positions.into_iter().collect();
    positions.sort_unstable();
    let mut output = Output::stdout();
    match args.admin.output {
        Format::Json => {
            let shard = |(shard, position): &(u32, u64)| json!({"shard": shard, "position": position});
            let shards: Value = positions.iter().map(shard).collect();
            output.json(&json!({
                "stream": args.name,
                "group": args.group,
                "dryRun": args.dry_run,
                "shards": shards,
            }))?;
        }
        Format::Text => {
            let mut table = Table::new(&["SHARD#", "POSITION#"]);
            for (shard, position) in positions {
                table.row(vec![shard.to_string(), position.to_string()]);
            }
            let group = harmless(&args.group);
            let said = if args.dry_run { "would go on there" } else { "goes on there" };
            output.text(&format!("{table}group {group} {said}\n"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let time = To::TimestampMicros(1_700_000_000_000_000);
        for (text, expected) in [
            ("earliest", Target::All(To::Earliest(wire::Earliest {}))),
            ("latest", Target::All(To::Latest(wire::Latest {}))),
            ("17", Target::All(To::Offset(17))),
            ("offset:17", Target::All(To::Offset(17))),
            ("0:1, 2:3", Target::Some(vec![(0, 1), (2, 3)])),
            ("2023-11-14T22:13:20Z", Target::All(time)),
        ] {
            assert_eq!(target(text), Ok(expected), "{text}");
        }
        assert!(matches!(target("10m"), Ok(Target::All(To::TimestampMicros(_)))));
        for text in ["", "-1", "yesterday", "1960-01-01T00:00:00Z", "offset:x", "0:1,", "0:1,2"] {
            assert!(target(text).is_err(), "{text}");
        }
    }
}
