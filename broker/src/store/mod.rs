//! Opens the store that the configuration names, and counts what is done to it. The one place that knows which engines
//! there are; what a store holds is the business of `weir-core`.

mod metrics;
pub mod serve;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use prometheus_client::registry::Registry;
use secrecy::SecretString;
use weir_core::keyspace::record::RecordKind;
use weir_env::clock::Clock;
use weir_storage::{EmbeddedOptions, EmbeddedStore, MemoryStore, Meter, MeteredStore, SharedStore};
use weir_storage_fdb::{FdbNetwork, FdbOptions, FdbStore};
use weir_storage_remote::{ClientTls, RemoteOptions, RemoteStore};

use crate::config::{Config, RemoteConfig, StoreConfig};

/// Opens the store. One in FoundationDB holds the network thread of the client library, which ends when the store is
/// closed and dropped, and with the process at the latest.
///
/// # Errors
/// If it cannot be opened: the message says what to do.
pub async fn open(config: &Config, clock: Clock) -> anyhow::Result<SharedStore> {
    Ok(match &config.store {
        StoreConfig::Memory => Arc::new(MemoryStore::new(clock)),
        StoreConfig::Embedded(dir) => {
            let reserve_bytes = config.store_reserve.0;
            let options = EmbeddedOptions { reserve_bytes, ..EmbeddedOptions::default() };
            Arc::new(EmbeddedStore::open(dir, &options, clock).context("open store")?)
        }
        StoreConfig::Fdb(cluster_file) => {
            let network = FdbNetwork::start(config.fdb.client_library.as_deref()).context("open store")?;
            let options = FdbOptions {
                cluster_file: cluster_file.clone(),
                name: config.fdb.prefix.clone(),
                timeout: config.fdb.timeout,
            };
            Arc::new(FdbStore::open(&network, &options, clock).await.context("open store")?)
        }
        StoreConfig::Remote(address) => {
            let options = remote_options(address, &config.remote).context("open store")?;
            Arc::new(RemoteStore::open(&options, clock).await.context("open store")?)
        }
    })
}

fn remote_options(address: &str, config: &RemoteConfig) -> anyhow::Result<RemoteOptions> {
    let read =
        |path: &Path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let read_secret = |path: &Path| read(path).map(|text| SecretString::from(text.trim().to_owned()));
    let identity = match (&config.certificate_file, &config.key_file) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read_secret(key)?)),
        _ => None,
    };
    let tls = match &config.ca_file {
        Some(path) => Some(ClientTls { authorities: read(path)?, identity }),
        None => None,
    };
    let token = config.token_file.as_deref().map(read_secret).transpose()?;
    Ok(RemoteOptions { tls, token, timeout: config.timeout, ..RemoteOptions::new(address) })
}

/// The same store, with what its transactions cost by kind of record in `registry`.
pub(crate) fn metered(store: SharedStore, registry: &mut Registry) -> SharedStore {
    let meter = Arc::new(Meter::new(RecordKind::ALL.len(), RecordKind::index_of));
    metrics::register(&meter, registry);
    Arc::new(MeteredStore::new(store, meter))
}

/// Why there is no backup, and what to do.
pub(crate) fn explain_backup(error: &weir_storage::Error) -> String {
    match error {
        weir_storage::Error::Conflict => "the store was written while it was read, and its engine cannot keep an older \
             version for more than a few seconds: stop every broker that uses it and back it up with --store, or use \
             the engine's own backup (FoundationDB: fdbbackup)"
            .to_owned(),
        other => format!("read the store: {other}"),
    }
}
