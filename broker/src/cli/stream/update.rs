//! `weir stream update`: changes a stream in place.

use clap::Args;
use serde_json::Value;
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::update_stream_request::Change as Wire;

use super::spec::{FileArgs, SettingArgs, read};
use crate::cli::admin::AdminArgs;
use crate::cli::spec::{Change, say_done, to_change};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct UpdateArgs {
    /// Name of the stream; not needed with --file
    name: Option<String>,
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    settings: SettingArgs,
    /// Messages have no key of their own any more
    #[arg(long, conflicts_with = "message_key")]
    no_message_key: bool,
    /// Also if an object of a Kubernetes cluster declares it; an operator that runs sets it back
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) async fn run(args: &UpdateArgs) -> anyhow::Result<()> {
    let mut patch = args.settings.spec();
    if args.no_message_key {
        patch.insert("key".to_owned(), Value::Null);
    }
    let (name, change) = to_change(args.file.file.as_deref(), read, args.name.as_deref(), patch)?;
    let change = match change {
        Change::Spec(spec) => Wire::Spec(spec),
        Change::Patch(patch) => Wire::Patch(patch),
    };
    let mut client = args.admin.connect().await?;
    let request = wire::UpdateStreamRequest { name: name.clone(), change: Some(change), force: args.force };
    let response = args.admin.answer(client.update_stream(request)).await?;
    say_done(&args.admin, "stream", &name, "updated", response.generation)
}
