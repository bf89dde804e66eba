//! `weir queue create`: makes a queue.

use clap::Args;
use weir_proto::admin::v1 as wire;

use super::spec::{FileArgs, FixedArgs, SettingArgs, read};
use crate::cli::admin::AdminArgs;
use crate::cli::spec::{Declared, say_done, to_create};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct CreateArgs {
    /// Name of the queue; not needed with --file
    name: Option<String>,
    #[command(flatten)]
    file: FileArgs,
    /// Namespace: a manifest of the same namespace and name takes the queue over [default: default]
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
    let file = args.file.file.as_deref();
    let (name, namespace) = (args.name.as_deref(), args.namespace.as_deref());
    let Declared { name, namespace, spec } = to_create(file, read, name, namespace, spec)?;
    let mut client = args.admin.connect().await?;
    let request = wire::CreateQueueRequest { name: name.clone(), namespace, spec };
    let response = args.admin.answer(client.create_queue(request)).await?;
    say_done(&args.admin, "queue", &name, "created", response.generation)
}
