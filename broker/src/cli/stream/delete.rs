//! `weir stream delete`: deletes a stream.

use clap::Args;
use weir_proto::admin::v1 as wire;

use crate::cli::admin::AdminArgs;
use crate::cli::spec::{Messages, policy, say_deleted};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct DeleteArgs {
    /// Name of the stream
    name: String,
    /// What becomes of its messages [default: as its deletionPolicy says]
    #[arg(long, value_enum, value_name = "POLICY")]
    messages: Option<Messages>,
    /// Also if an object of a Kubernetes cluster declares it; an operator that runs makes it anew
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) async fn run(args: &DeleteArgs) -> anyhow::Result<()> {
    let mut client = args.admin.connect().await?;
    let request = wire::DeleteStreamRequest {
        name: args.name.clone(),
        policy: policy(args.messages),
        force: args.force,
    };
    let response = args.admin.answer(client.delete_stream(request)).await?;
    say_deleted(&args.admin, "stream", &args.name, response.retained)
}
