//! `weir store restore`: puts a backup into an empty store, after looking whether all of it is whole.

use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use serde_json::json;
use weir_core::restore::{self, Restore};
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::SharedStore;
use weir_storage::backup::{About, Extent};

use super::file;
use super::{Progress, StoreArgs};
use crate::cli::admin::facts;
use crate::cli::output::{Format, Output, bytes, harmless, time};
use crate::config::StoreConfig;

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct RestoreArgs {
    /// The backup
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// An empty store, as for `weir serve`; it is created if it does not exist
    #[arg(long, value_name = "STORE")]
    store: String,
    /// Configuration file (TOML) that says how to open the store [env: WEIR_CONFIG]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to print the result
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

pub(super) async fn run(args: &RestoreArgs, output: &mut Output) -> anyhow::Result<()> {
    let store = StoreArgs { store: Some(args.store.clone()), config: args.config.clone() };
    let config = store.load()?;
    if config.store == StoreConfig::Memory {
        bail!("what is restored into memory: is gone at once; --store names a store that lasts");
    }
    let (about, extent) = verify(args)?;
    let store =
        crate::store::open(&config, Clock::system()).await.with_context(|| config.store.to_string())?;
    let restored = write(args, &store, &about).await;
    store.close().await;
    restored?;
    match args.output {
        Format::Json => output.json(&json!({
            "store": config.store.to_string(),
            "records": extent.pairs,
            "bytes": extent.bytes,
            "version": about.version.0,
            "createdMicros": about.created_micros,
            "engine": about.engine,
        }))?,
        Format::Text => output.text(&facts(&[
            ("Store", config.store.to_string()),
            ("Records", format!("{}, {}", extent.pairs, bytes(extent.bytes))),
            ("As of", format!("version {}, {}", about.version.0, time(about.created_micros))),
            ("From", format!("{}, {}", harmless(&about.engine), harmless(&about.program))),
        ]))?,
    }
    Ok(())
}

/// Reads all of the backup before anything is written.
fn verify(args: &RestoreArgs) -> anyhow::Result<(About, Extent)> {
    let shown = || args.from.display().to_string();
    let mut reader = file::open(&args.from)?;
    let mut progress = Progress::new("checked");
    while let Some(pairs) = reader.next_chunk().with_context(shown)? {
        restore::check(&pairs)
            .context("the backup holds what this program cannot read")
            .with_context(shown)?;
        progress.at(reader.position());
    }
    Ok((reader.about().clone(), reader.extent()))
}

async fn write(args: &RestoreArgs, store: &SharedStore, about: &About) -> anyhow::Result<()> {
    let mut reader = file::open(&args.from)?;
    let mut progress = Progress::new("restored");
    let mut restore = Restore::begin(store, about.version, &Seed::from_entropy()).await?;
    let written = async {
        while let Some(pairs) = reader.next_chunk()? {
            restore.add(pairs).await?;
            progress.at(reader.position());
        }
        restore.finish().await?;
        Ok(())
    };
    let written: anyhow::Result<()> = tokio::select! {
        written = written => written,
        interrupted = tokio::signal::ctrl_c() => match interrupted {
            Ok(()) => Err(anyhow!("interrupted")),
            Err(error) => Err(error.into()),
        },
    };
    written.with_context(|| {
        format!(
            "{} may hold part of the backup now, and no broker will start on it: empty it (an embedded store: delete \
             the folder), then restore again",
            args.store
        )
    })
}
