//! `weir queue purge`: removes messages for good.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use weir_proto::admin::v1 as wire;

use crate::cli::admin::AdminArgs;
use crate::cli::args::duration;
use crate::cli::output::{Format, Output};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct PurgeArgs {
    /// Name of the queue
    name: String,
    /// Only messages that came longer ago than this, such as 30m or 24h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    older_than: Option<Duration>,
    /// Only messages in this state
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<State>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// States that can be purged alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum State {
    /// To be delivered to whoever has room
    Ready,
    /// Held by a consumer
    InFlight,
    /// Waiting to be delivered again
    Waiting,
}

pub(super) async fn run(args: &PurgeArgs) -> anyhow::Result<()> {
    let mut client = args.admin.connect().await?;
    // The broker's clock judges: ours may be another.
    let age = args.older_than.map(|age| u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
    let state = match args.state {
        None => wire::MessageState::Unspecified,
        Some(State::Ready) => wire::MessageState::Ready,
        Some(State::InFlight) => wire::MessageState::InFlight,
        Some(State::Waiting) => wire::MessageState::Waiting,
    };
    let (mut purged, mut from) = (0, None);
    loop {
        let request = wire::PurgeQueueRequest {
            name: args.name.clone(),
            older_than_micros: age.unwrap_or(0),
            state: state.into(),
            from,
        };
        let response = args.admin.answer(client.purge_queue(request)).await?;
        purged += response.purged;
        from = response.next;
        if from.is_none() {
            break;
        }
        eprintln!("purged {purged} so far");
    }
    let mut output = Output::stdout();
    match args.admin.output {
        Format::Json => output.json(&json!({"queue": args.name, "purged": purged}))?,
        Format::Text => output.text(&format!("purged {purged}\n"))?,
    }
    Ok(())
}
