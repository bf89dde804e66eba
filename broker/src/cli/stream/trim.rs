//! `weir stream trim`: removes the oldest messages of a stream for good.

use clap::Args;
use serde_json::{Value, json};
use weir_proto::admin::v1 as wire;

use super::place::{Place, place};
use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, Table};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct TrimArgs {
    /// Name of the stream
    name: String,
    /// What comes before this goes: an offset, SHARD:OFFSET by commas, a time (RFC 3339), a duration back from now (10m),
    /// or latest for everything
    #[arg(long, value_name = "WHERE", value_parser = place)]
    before: Place,
    /// Only this shard
    #[arg(long, value_name = "N")]
    shard: Option<u32>,
    /// Say what would go, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) async fn run(args: &TrimArgs) -> anyhow::Result<()> {
    let mut client = args.admin.connect().await?;
    let request = wire::TrimStreamRequest {
        name: args.name.clone(),
        before: Some(args.before.wire()),
        shard: args.shard,
        dry_run: args.dry_run,
    };
    let response = args.admin.answer(client.trim_stream(request)).await?;
    let removed: u64 = response.shards.iter().map(|shard| shard.removed).sum();
    let mut output = Output::stdout();
    match args.admin.output {
        Format::Json => {
            let shards = response.shards.iter().map(|shard| {
                json!({
                    "shard": shard.shard,
                    "startOffset": shard.start_offset,
                    "nextOffset": shard.next_offset,
                    "removed": shard.removed,
                })
            });
            let shards: Value = shards.collect();
            output.json(
                &json!({"stream": args.name, "removed": removed, "dryRun": args.dry_run, "shards": shards}),
            )?;
        }
        Format::Text => {
            let mut table = Table::new(&["SHARD#", "START#", "NEXT#", "REMOVED#"]);
            for shard in &response.shards {
                let numbers = [shard.start_offset, shard.next_offset, shard.removed];
                let mut row = vec![shard.shard.to_string()];
                row.extend(numbers.map(|number| number.to_string()));
                table.row(row);
            }
            let said = if args.dry_run { "would remove" } else { "removed" };
            output.text(&format!("{table}{said} {removed}\n"))?;
        }
    }
    Ok(())
}
