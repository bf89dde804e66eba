//! `weir stream update`: changes a stream in place.

use anyhow::{anyhow, bail};
use clap::Args;
use serde_json::{Value, json};
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::update_stream_request::Change;

use super::spec::{FileArgs, SettingArgs, read};
use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, harmless};

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
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) async fn run(args: &UpdateArgs) -> anyhow::Result<()> {
    let mut patch = args.settings.spec();
    if args.no_message_key {
        patch.insert("key".to_owned(), Value::Null);
    }
    let (name, change) = match &args.file.file {
        Some(_) if !patch.is_empty() => bail!("flags for fields and --file exclude each other"),
        Some(file) => {
            let declared = read(file, args.name.as_deref())?;
            (declared.name, Change::Spec(declared.spec))
        }
        None if patch.is_empty() => {
            bail!("there is nothing to change: name a field by its flag, or --file FILE")
        }
        None => {
            let name =
                args.name.clone().ok_or_else(|| anyhow!("a name is needed, or a manifest: --file FILE"))?;
            (name, Change::Patch(Value::Object(patch).to_string()))
        }
    };
    let mut client = args.admin.connect().await?;
    let request = wire::UpdateStreamRequest { name: name.clone(), change: Some(change) };
    let response = args.admin.answer(client.update_stream(request)).await?;
    let mut output = Output::stdout();
    match args.admin.output {
        Format::Json => output.json(&json!({"name": name, "generation": response.generation}))?,
        Format::Text => output.text(&format!("stream {} updated\n", harmless(&name)))?,
    }
    Ok(())
}
