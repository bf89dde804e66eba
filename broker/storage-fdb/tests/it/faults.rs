//! The client library of FoundationDB with its own faults switched on: whatever it says then, the contract holds. In a
//! process of its own, because they concern a whole network: the test runs itself again with [`FAULTS`] set.

use std::env;
use std::process::Command;
use std::sync::Arc;

use weir_env::clock::Clock;
use weir_env::seed::trials;
use weir_storage::SharedStore;
use weir_storage::conformance::{History, Tally};
use weir_storage_fdb::FdbStore;

use crate::cluster::{self, not_run};

/// Options of the network that make the library fail where it may: at every place, one time in twenty.
const FAULTS: &str = "FDB_NETWORK_OPTION_CLIENT_BUGGIFY_ENABLE";
const RATES: [(&str, &str); 2] = [
    ("FDB_NETWORK_OPTION_CLIENT_BUGGIFY_SECTION_ACTIVATED_PROBABILITY", "100"),
    ("FDB_NETWORK_OPTION_CLIENT_BUGGIFY_SECTION_FIRED_PROBABILITY", "5"),
];
const SEEDS: u64 = 60;
/// The library may fail to open, too.
const OPENS_MAX: usize = 100;

async fn open() -> SharedStore {
    let options = cluster::options().unwrap();
    for _ in 0..OPENS_MAX {
        match FdbStore::open(&cluster::network(), &options, Clock::system()).await {
            Ok(store) => return Arc::new(store),
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
    panic!("the store was never opened");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_serializable_whatever_the_library_says() {
    if cluster::real().is_none() {
        return not_run("with the faults of FoundationDB's own client: there is no cluster");
    }
    if env::var_os(FAULTS).is_none() {
        let name = "faults::histories_are_serializable_whatever_the_library_says";
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", name, "--nocapture"]).env(FAULTS, "").envs(RATES);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let (store, mut tally) = (open().await, Tally::default());
    for trial in trials(SEEDS) {
        let prefix = format!("{}/", trial.seed());
        let history = History::record(&store, prefix, trial.seed()).await;
        tally = tally.plus(history.check(&store).await);
    }
    println!("{tally:?}");
    assert!(tally.committed > 0 && tally.unknown_committed > 0, "{tally:?}");
    store.close().await;
}
