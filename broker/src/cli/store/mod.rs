//! `weir store`: looks at a store, backs it up and restores it. `check` and `restore` open the store themselves, so no
//! broker may run on it if the engine lets in one process at a time; `backup` asks the running broker, and `serve` is what brokers with
//! `--store remote:HOST:PORT` ask.

mod backup;
mod check;
mod file;
mod restore;
mod serve;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use weir_env::clock::{Clock, Instant};
use weir_storage::SharedStore;

use super::output::{Output, bytes};
use crate::config::{self, Config, Flags, Sources, StoreConfig};

/// How often what has been done so far is told.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Open a store, say what it holds and how fast it answers
    Check(check::CheckArgs),
    /// Write everything that a broker keeps to a file, while it goes on running
    Backup(backup::BackupArgs),
    /// Put a backup into an empty store, of the same engine or another
    Restore(restore::RestoreArgs),
    /// Let the brokers of several machines or processes share one store
    Serve(serve::ServeArgs),
}

impl StoreCommand {
    /// Whether it serves others, on all cores.
    pub(super) const fn is_server(&self) -> bool {
        matches!(self, Self::Serve(_))
    }
}

pub(super) async fn run(command: &StoreCommand) -> anyhow::Result<()> {
    let mut output = Output::stdout();
    match command {
        StoreCommand::Check(args) => check::run(args, &mut output).await,
        StoreCommand::Backup(args) => backup::run(args, &mut output).await,
        StoreCommand::Restore(args) => restore::run(args, &mut output).await,
        StoreCommand::Serve(args) => serve::run(args).await,
    }
}

/// Which store.
#[derive(Clone, Debug, Args)]
struct StoreArgs {
    /// Where messages live, as for `weir serve`
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    /// Configuration file (TOML) that names the store [env: WEIR_CONFIG]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl StoreArgs {
    /// What flags, environment and configuration file say.
    fn load(&self) -> anyhow::Result<Config> {
        let env = |name: &str| std::env::var(name).ok();
        let named = env("WEIR_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        let file = self.config.clone().or(named);
        let mut config =
            config::load(&Sources { file: file.as_deref(), env: &env, flags: &Flags::default() })?;
        if let Some(store) = &self.store {
            config.store = config::parse_store(store).map_err(|problem| anyhow!("--store: {problem}"))?;
        }
        Ok(config)
    }
}

/// Opens a store that is there already.
async fn open_existing(config: &Config, clock: Clock) -> anyhow::Result<SharedStore> {
    match &config.store {
        StoreConfig::Memory => bail!("{}: is in the memory of its broker and nowhere else", config.store),
        StoreConfig::Embedded(dir) => {
            let is_empty = std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
            if is_empty {
                bail!(
                    "there is no store in {}: --store names another one, and `weir serve` makes one",
                    dir.display()
                );
            }
        }
        StoreConfig::Fdb(_) | StoreConfig::Remote(_) => {}
    }
    crate::store::open(config, clock).await.with_context(|| config.store.to_string())
}

/// Tells a person each second how far it is.
struct Progress {
    clock: Clock,
    what: &'static str,
    next: Instant,
}

impl Progress {
    fn new(what: &'static str) -> Self {
        let clock = Clock::system();
        Self { clock, what, next: clock.now() + PROGRESS_INTERVAL }
    }

    fn at(&mut self, done: u64) {
        let now = self.clock.now();
        if now >= self.next {
            self.next = now + PROGRESS_INTERVAL;
            eprintln!("{}: {}", self.what, bytes(done));
        }
    }
}
