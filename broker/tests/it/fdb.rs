//! The store of tests that need one, in FoundationDB: the cluster that `FDB_CLUSTER_FILE` names, if it is set. Each
//! test has an installation of its own in it.

use std::env;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::SharedStore;
use weir_storage_fdb::{FdbNetwork, FdbOptions, FdbStore};

/// An empty store in the cluster for tests, if there is one.
pub(crate) fn store() -> Option<SharedStore> {
    /// Can't be started twice in a process; joined at its exit.
    static NETWORK: OnceLock<FdbNetwork> = OnceLock::new();
    let file = env::var_os("FDB_CLUSTER_FILE").map(PathBuf::from)?;
    let network = NETWORK.get_or_init(|| FdbNetwork::start(None).unwrap());
    let id = u128::from_be_bytes(Seed::from_entropy().next_id());
    let options = FdbOptions { name: format!("test-{:027x}", id >> 20), ..FdbOptions::new(file) };
    // Tests ask within runtimes of theirs and without one; only opening needs one, for its time-out.
    let open = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(FdbStore::open(network, &options, Clock::system())).unwrap()
    };
    let store = std::thread::scope(|scope| scope.spawn(open).join().unwrap());
    Some(Arc::new(store))
}
