//! `weir queue update`: changes a queue in place.

use anyhow::{anyhow, bail};
use clap::Args;
use serde_json::{Value, json};
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::update_queue_request::Change;

use super::spec::{FileArgs, SettingArgs, read};
use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, harmless};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct UpdateArgs {
    /// Name of the queue; not needed with --file
    name: Option<String>,
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    settings: SettingArgs,
    /// Messages have no key of their own any more
    #[arg(long, conflicts_with = "message_key")]
    no_message_key: bool,
    /// Messages that cannot be delivered are dropped
    #[arg(long, conflicts_with_all = ["dead_letter_queue", "dead_letter_topic"])]
    no_dead_letter: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) async fn run(args: &UpdateArgs) -> anyhow::Result<()> {
    let mut patch = args.settings.spec();
    // Of the two targets of dead letters, the other one goes.
    if let Some(Value::Object(target)) = patch.get_mut("deadLetter") {
        for other in ["queueRef", "topic"] {
            target.entry(other).or_insert(Value::Null);
        }
    }
    for (field, is_gone) in [("key", args.no_message_key), ("deadLetter", args.no_dead_letter)] {
        if is_gone {
            patch.insert(field.to_owned(), Value::Null);
        }
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
    let request = wire::UpdateQueueRequest { name: name.clone(), change: Some(change) };
    let response = args.admin.answer(client.update_queue(request)).await?;
    let mut output = Output::stdout();
    match args.admin.output {
        Format::Json => output.json(&json!({"name": name, "generation": response.generation}))?,
        Format::Text => output.text(&format!("queue {} updated\n", harmless(&name)))?,
    }
    Ok(())
}
