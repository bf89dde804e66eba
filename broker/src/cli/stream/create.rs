//! `weir stream create`: makes a stream.

use anyhow::{anyhow, bail};
use clap::Args;
use serde_json::{Value, json};
use weir_proto::admin::v1 as wire;

use super::spec::{FileArgs, FixedArgs, SettingArgs, read};
use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, harmless};
use crate::cli::spec::Declared;

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct CreateArgs {
    /// Name of the stream; not needed with --file
    name: Option<String>,
    #[command(flatten)]
    file: FileArgs,
    /// Namespace: a manifest of the same namespace and name takes the stream over [default: default]
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    namespace: Option<String>,
    #[command(flatten)]
    fixed: FixedArgs,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) async fn run(args: &CreateArgs) -> anyhow::Result<()> {
    let mut spec = args.fixed.spec();
    spec.append(&mut args.settings.spec());
    let Declared { name, namespace, spec } = match &args.file.file {
        Some(_) if !spec.is_empty() => bail!("flags for fields and --file exclude each other"),
        Some(file) => read(file, args.name.as_deref())?,
        None => Declared {
            name: args.name.clone().ok_or_else(|| anyhow!("a name is needed, or a manifest: --file FILE"))?,
            namespace: args.namespace.clone().unwrap_or_default(),
            spec: Value::Object(spec).to_string(),
        },
    };
    let mut client = args.admin.connect().await?;
    let request = wire::CreateStreamRequest { name: name.clone(), namespace, spec };
    let response = args.admin.answer(client.create_stream(request)).await?;
    let mut output = Output::stdout();
    match args.admin.output {
        Format::Json => output.json(&json!({"name": name, "generation": response.generation}))?,
        Format::Text => output.text(&format!("stream {} created\n", harmless(&name)))?,
    }
    Ok(())
}
