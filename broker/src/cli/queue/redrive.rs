//! `weir queue redrive`: moves dead letters back to the queues they left.

use anyhow::bail;
use clap::Args;
use serde_json::json;
use weir_proto::admin::v1 as wire;

use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, harmless};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct RedriveArgs {
    /// Name of the queue that holds the dead letters
    name: String,
    /// Only dead letters that left this queue
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// Move all to this queue, instead of each to the one it left
    #[arg(long, value_name = "NAME")]
    to: Option<String>,
    /// How many at most
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) async fn run(args: &RedriveArgs) -> anyhow::Result<()> {
    let mut client = args.admin.connect().await?;
    let (mut moved, mut busy, mut homeless, mut from) = (0, 0, 0, None);
    let failure = loop {
        let request = wire::RedriveQueueRequest {
            name: args.name.clone(),
            left_queue: args.queue.clone().unwrap_or_default(),
            to: args.to.clone().unwrap_or_default(),
            limit: args.count.map_or(0, |count| count.saturating_sub(moved)),
            from,
        };
        let response = args.admin.answer(client.redrive_queue(request)).await?;
        moved += response.moved;
        busy += response.busy;
        homeless += response.homeless;
        from = response.next;
        if !response.failure.is_empty() {
            break Some(response.failure);
        }
        if from.is_none() || args.count.is_some_and(|count| moved >= count) {
            break None;
        }
        eprintln!("moved {moved} so far");
    };
    let mut output = Output::stdout();
    match args.admin.output {
        Format::Json => {
            let summary = json!({"queue": args.name, "moved": moved, "busy": busy, "homeless": homeless});
            output.json(&summary)?;
        }
        Format::Text => output.text(&summary(moved, busy, homeless))?,
    }
    match failure {
        Some(why) => bail!("not all were moved: {}", harmless(&why)),
        None => Ok(()),
    }
}

fn summary(moved: u64, busy: u64, homeless: u64) -> String {
    let mut text = format!("moved {moved}\n");
    if busy > 0 {
        text.push_str(&format!("left {busy} that consumers hold\n"));
    }
    if homeless > 0 {
        text.push_str(&format!("left {homeless} that have no queue to go back to; --to names one\n"));
    }
    text
}
