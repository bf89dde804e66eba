//! `weir stream`: what streams there are, how one is doing, its messages, and what can be done about it.
//!
//! One file per command. Knows a broker from outside only: its admin API.

mod create;
mod delete;
mod describe;
mod export;
mod groups;
mod list;
mod place;
mod seek;
mod spec;
mod tail;
mod trim;
mod update;

use clap::Subcommand;

use super::admin::AdminArgs;

#[derive(Clone, Debug, Subcommand)]
pub(super) enum StreamCommand {
    /// List all streams
    List {
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Describe one stream with its shards, readers and consumer groups
    Describe {
        /// Name of the stream
        name: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Print the messages of a stream, without leaving a trace in it
    Tail(tail::TailArgs),
    /// Export a range of a stream to files; run again, it goes on where it was interrupted
    Export(Box<export::ExportArgs>),
    /// Remove the oldest messages for good
    Trim(trim::TrimArgs),
    /// Show the consumer groups of a stream and how far each is behind, or forget one
    Groups(groups::GroupsArgs),
    /// Have a consumer group go on elsewhere, also while it reads
    Seek(seek::SeekArgs),
    /// Make a stream
    Create(Box<create::CreateArgs>),
    /// Change a stream in place, also for those who read it
    Update(Box<update::UpdateArgs>),
    /// Delete a stream
    Delete(delete::DeleteArgs),
}

pub(super) async fn run(command: &StreamCommand) -> anyhow::Result<()> {
    match command {
        StreamCommand::List { admin } => list::run(admin).await,
        StreamCommand::Describe { name, admin } => describe::run(admin, name).await,
        StreamCommand::Tail(args) => tail::run(args).await,
        StreamCommand::Export(args) => export::run(args).await,
        StreamCommand::Trim(args) => trim::run(args).await,
        StreamCommand::Groups(args) => groups::run(args).await,
        StreamCommand::Seek(args) => seek::run(args).await,
        StreamCommand::Create(args) => create::run(args).await,
        StreamCommand::Update(args) => update::run(args).await,
        StreamCommand::Delete(args) => delete::run(args).await,
    }
}
