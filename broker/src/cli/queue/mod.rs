//! `weir queue`: what queues there are, how one is doing, and what can be done about it.
//!
//! One file per command. Knows a broker from outside only: its admin API.

mod consumers;
mod describe;
mod list;

use clap::Subcommand;
use weir_proto::admin::v1 as wire;

use super::admin::AdminArgs;

#[derive(Clone, Debug, Subcommand)]
pub(super) enum QueueCommand {
    /// List all queues
    List {
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Describe one queue with its shards and consumers
    Describe {
        /// Name of the queue
        name: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// List who consumes a queue: what each holds, and how long it takes to acknowledge
    Consumers {
        /// Name of the queue
        name: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

pub(super) async fn run(command: &QueueCommand) -> anyhow::Result<()> {
    match command {
        QueueCommand::List { admin } => list::run(admin).await,
        QueueCommand::Describe { name, admin } => describe::run(admin, name).await,
        QueueCommand::Consumers { name, admin } => consumers::run(admin, name).await,
    }
}

fn ordering(ordering: wire::Ordering) -> &'static str {
    match ordering {
        wire::Ordering::Unspecified => "-",
        wire::Ordering::None => "none",
        wire::Ordering::Key => "key",
    }
}
