//! The cluster that tests run on, if there is one.

use std::collections::BTreeSet;
use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::OnceLock;

use parking_lot::Mutex;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage_fdb::{FdbNetwork, FdbOptions, FdbStore};

/// Names the cluster file of a cluster that tests may write to.
const VARIABLE: &str = "FDB_CLUSTER_FILE";

/// The network of this process: tests come and go, and it can't be started twice. It is joined at exit.
pub(crate) fn network() -> FdbNetwork {
    static NETWORK: OnceLock<FdbNetwork> = OnceLock::new();
    NETWORK.get_or_init(|| FdbNetwork::start(None).unwrap()).clone()
}

/// Says that something was not run, once, and where the test runner does not hide it.
pub(crate) fn not_run(what: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().insert(what.to_owned()) {
        let mut stderr = io::stderr();
        writeln!(stderr, "NOT RUN {what}").unwrap();
    }
}

/// Options of a store of its own in the cluster; `None`, and a line that says so, if there is no cluster.
pub(crate) fn options() -> Option<FdbOptions> {
    let Some(file) = env::var_os(VARIABLE).map(PathBuf::from) else {
        not_run(&format!("on FoundationDB: {VARIABLE} does not name a cluster file"));
        return None;
    };
    let id = u128::from_be_bytes(Seed::from_entropy().next_id());
    Some(FdbOptions { name: format!("test-{:027x}", id >> 20), ..FdbOptions::new(file) })
}

/// A store of its own in the cluster, if there is one.
pub(crate) async fn store() -> Option<FdbStore> {
    let options = options()?;
    Some(FdbStore::open(&network(), &options, Clock::system()).await.unwrap())
}
