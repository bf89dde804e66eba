//! `weir queue`: what queues there are, how one is doing, and what can be done about it.
//!
//! One file per command. Knows a broker from outside only: its admin API.

mod consumers;
mod create;
mod delete;
mod describe;
mod list;
mod pause;
mod peek;
mod purge;
mod redrive;
mod spec;
mod update;

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
    /// Show messages without consuming them
    Peek(peek::PeekArgs),
    /// Remove messages for good, those that consumers hold too
    Purge(purge::PurgeArgs),
    /// Move dead letters back to the queues they left
    Redrive(redrive::RedriveArgs),
    /// Deliver nothing until it is resumed; consumers may acknowledge what they hold
    Pause {
        /// Name of the queue
        name: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Let a paused queue deliver again
    Resume {
        /// Name of the queue
        name: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Make a queue
    Create(Box<create::CreateArgs>),
    /// Change a queue in place, also for the consumers that are connected
    Update(Box<update::UpdateArgs>),
    /// Delete a queue
    Delete(delete::DeleteArgs),
}

pub(super) async fn run(command: &QueueCommand) -> anyhow::Result<()> {
    match command {
        QueueCommand::List { admin } => list::run(admin).await,
        QueueCommand::Describe { name, admin } => describe::run(admin, name).await,
        QueueCommand::Consumers { name, admin } => consumers::run(admin, name).await,
        QueueCommand::Peek(args) => peek::run(args).await,
        QueueCommand::Purge(args) => purge::run(args).await,
        QueueCommand::Redrive(args) => redrive::run(args).await,
        QueueCommand::Pause { name, admin } => pause::run(admin, name, true).await,
        QueueCommand::Resume { name, admin } => pause::run(admin, name, false).await,
        QueueCommand::Create(args) => create::run(args).await,
        QueueCommand::Update(args) => update::run(args).await,
        QueueCommand::Delete(args) => delete::run(args).await,
    }
}

fn ordering(ordering: wire::Ordering) -> &'static str {
    match ordering {
        wire::Ordering::Unspecified => "-",
        wire::Ordering::None => "none",
        wire::Ordering::Key => "key",
    }
}
