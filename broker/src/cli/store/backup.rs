//! `weir store backup`: asks a running broker for a backup, or makes one of a store that no broker uses.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use serde_json::json;
use weir_env::clock::Clock;
use weir_proto::admin::v1 as wire;
use weir_storage::backup::Backup;

use super::file::BackupFile;
use super::{Progress, StoreArgs, open_existing};
use crate::cli::admin::{AdminArgs, facts};
use crate::cli::output::{Format, Output, bytes, harmless, time};

/// Longest wait for the next bytes of the broker.
const PART_WAIT: Duration = Duration::from_mins(1);

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct BackupArgs {
    /// File to write, which must not exist, or folder for a new one
    #[arg(long, value_name = "FILE|DIR")]
    to: PathBuf,
    /// Read this store instead of asking a broker; none may run on an embedded one
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    /// Configuration file (TOML) that says how to open --store [env: WEIR_CONFIG]
    #[arg(short, long, value_name = "FILE", requires = "store")]
    config: Option<PathBuf>,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) async fn run(args: &BackupArgs, output: &mut Output) -> anyhow::Result<()> {
    let mut file = BackupFile::create(&args.to, Clock::system().wall())?;
    let written = async {
        match &args.store {
            Some(store) => {
                let store = StoreArgs { store: Some(store.clone()), config: args.config.clone() };
                of_store(&store, &mut file).await
            }
            None => of_broker(&args.admin, &mut file).await,
        }
    };
    tokio::select! {
        written = written => written?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            bail!("interrupted: there is no backup");
        }
    }
    let size = file.written();
    let (path, about, extent) = file.finish()?;
    match args.admin.output {
        Format::Json => output.json(&json!({
            "file": path.display().to_string(),
            "fileBytes": size,
            "records": extent.pairs,
            "bytes": extent.bytes,
            "version": about.version.0,
            "createdMicros": about.created_micros,
            "engine": about.engine,
            "program": about.program,
        }))?,
        Format::Text => output.text(&facts(&[
            ("File", format!("{}, {}", path.display(), bytes(size))),
            ("Records", format!("{}, {}", extent.pairs, bytes(extent.bytes))),
            ("As of", format!("version {}, {}", about.version.0, time(about.created_micros))),
            ("Engine", harmless(&about.engine)),
        ]))?,
    }
    Ok(())
}

async fn of_store(args: &StoreArgs, file: &mut BackupFile) -> anyhow::Result<()> {
    let clock = Clock::system();
    let store = open_existing(&args.load()?, clock)
        .await
        .context("a broker that runs makes its backup itself, without --store")?;
    let mut progress = Progress::new("read");
    let copied = async {
        let program = concat!("weir ", env!("CARGO_PKG_VERSION"));
        let explain = |error| anyhow!(crate::store::explain_backup(&error));
        let mut backup = Backup::begin(&store, program, clock.wall().as_micros()).await.map_err(explain)?;
        while let Some(part) = backup.next().await.map_err(explain)? {
            file.write(&part)?;
            progress.at(file.written());
        }
        Ok(())
    };
    let copied = copied.await;
    store.close().await;
    copied
}

async fn of_broker(admin: &AdminArgs, file: &mut BackupFile) -> anyhow::Result<()> {
    let mut client = admin.connect().await.context(
        "--store backs up a store whose broker does not run; for the backup of a running one, --admin says where it \
         is",
    )?;
    let mut parts = admin.answer(client.back_up_store(wire::BackUpStoreRequest {})).await?;
    let mut progress = Progress::new("received");
    loop {
        let part = tokio::time::timeout(PART_WAIT, parts.message()).await;
        let part = part.map_err(|_| anyhow!("the broker has sent nothing for {PART_WAIT:?}"))?;
        let Some(part) = part.map_err(|status| admin.explain(&status))? else { return Ok(()) };
        file.write(&part.data)?;
        progress.at(file.written());
    }
}
