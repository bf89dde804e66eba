//! Opens the store that the configuration names. The one place that knows which engines there are.

use std::sync::Arc;

use anyhow::Context;
use weir_env::clock::Clock;
use weir_storage::{EmbeddedOptions, EmbeddedStore, MemoryStore, SharedStore};
use weir_storage_fdb::{FdbNetwork, FdbOptions, FdbStore};

use crate::config::{Config, StoreConfig};

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
    })
}
