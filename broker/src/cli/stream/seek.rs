//! `weir stream seek`: has a consumer group go on elsewhere, also while it reads.

use clap::Args;
use serde_json::{Value, json};
use weir_proto::admin::v1 as wire;

use super::place::{Place, place};
use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, Table, harmless};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct SeekArgs {
    /// Name of the stream
    name: String,
    /// Name of the group
    #[arg(long, value_name = "GROUP")]
    group: String,
    /// Where it goes on: earliest, latest, an offset (of a stream with one shard), SHARD:OFFSET by commas (other shards
    /// stay), a time (RFC 3339), or a duration back from now (10m)
    #[arg(long, value_name = "WHERE", value_parser = place)]
    to: Place,
    /// Say where that is, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) async fn run(args: &SeekArgs) -> anyhow::Result<()> {
    let mut client = args.admin.connect().await?;
    let request = wire::SeekGroupRequest {
        stream: args.name.clone(),
        group: args.group.clone(),
        to: Some(args.to.wire()),
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
