//! `weir stream delete`: deletes a stream.

use clap::{Args, ValueEnum};
use serde_json::json;
use weir_proto::admin::v1 as wire;

use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, harmless};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct DeleteArgs {
    /// Name of the stream
    name: String,
    /// What becomes of its messages [default: as its deletionPolicy says]
    #[arg(long, value_enum, value_name = "POLICY")]
    messages: Option<Messages>,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Messages {
    /// They stay for a stream of the same name
    Retain,
    /// They are removed, also those of a stream that was deleted before
    Delete,
}

pub(super) async fn run(args: &DeleteArgs) -> anyhow::Result<()> {
    let policy = match args.messages {
        None => wire::DeletionPolicy::Unspecified,
        Some(Messages::Retain) => wire::DeletionPolicy::Retain,
        Some(Messages::Delete) => wire::DeletionPolicy::Delete,
    };
    let mut client = args.admin.connect().await?;
    let request = wire::DeleteStreamRequest { name: args.name.clone(), policy: policy.into() };
    let response = args.admin.answer(client.delete_stream(request)).await?;
    let mut output = Output::stdout();
    match args.admin.output {
        Format::Json => output.json(&json!({"name": args.name, "retained": response.retained}))?,
        Format::Text => {
            let messages = if response.retained { "its messages are kept" } else { "with its messages" };
            output.text(&format!("stream {} deleted, {messages}\n", harmless(&args.name)))?;
        }
    }
    Ok(())
}
