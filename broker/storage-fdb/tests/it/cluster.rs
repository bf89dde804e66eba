//! What tests run on: the cluster that `FDB_CLUSTER_FILE` names, or else the client library in `fake/`, which shows
//! that what goes through the C API arrives and nothing about FoundationDB.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{env, fs};

use parking_lot::Mutex;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage_fdb::{FdbNetwork, FdbOptions, FdbStore};

/// Names the cluster file of a cluster that tests may write to.
const VARIABLE: &str = "FDB_CLUSTER_FILE";

/// Says that something was not run, once, and where the test runner does not hide it.
pub(crate) fn not_run(what: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().insert(what.to_owned()) {
        let mut stderr = io::stderr();
        writeln!(stderr, "NOT RUN {what}").unwrap();
    }
}

/// The cluster file that the variable names.
pub(crate) fn real() -> Option<PathBuf> {
    env::var_os(VARIABLE).map(PathBuf::from)
}

/// The client library with a cluster in it, which `cargo test` builds as an example; not if it is told to build one
/// target alone.
pub(crate) fn fake() -> Option<PathBuf> {
    let tests = env::current_exe().unwrap();
    let library = tests.parent()?.parent()?.join("examples").join("libfake_fdb_c.so");
    library.exists().then_some(library)
}

/// A cluster file for the stand-in, which does not read it.
pub(crate) fn fake_cluster_file() -> PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    let write = || {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake.cluster");
        fs::write(&file, "fake:fake@127.0.0.1:1\n").unwrap();
        file
    };
    FILE.get_or_init(write).clone()
}

/// The network of this process: tests come and go, and it can't be started twice. It is joined at exit.
pub(crate) fn network() -> FdbNetwork {
    static NETWORK: OnceLock<FdbNetwork> = OnceLock::new();
    let library = if real().is_some() { None } else { fake() };
    NETWORK.get_or_init(|| FdbNetwork::start(library.as_deref()).unwrap()).clone()
}

/// Options of a store of its own; `None`, and a line that says so, if there is nothing to run on.
pub(crate) fn options() -> Option<FdbOptions> {
    let file = match real() {
        Some(file) => file,
        None if fake().is_some() => {
            not_run(&format!(
                "on FoundationDB, but over a stand-in: {VARIABLE} does not name a cluster file"
            ));
            fake_cluster_file()
        }
        None => {
            not_run(&format!(
                "on FoundationDB: {VARIABLE} does not name a cluster file, and the stand-in is not built"
            ));
            return None;
        }
    };
    let id = u128::from_be_bytes(Seed::from_entropy().next_id());
    Some(FdbOptions { name: format!("test-{:027x}", id >> 20), ..FdbOptions::new(file) })
}

/// A store of its own, if there is anything to run on.
pub(crate) async fn store() -> Option<FdbStore> {
    let options = options()?;
    Some(FdbStore::open(&network(), &options, Clock::system()).await.unwrap())
}
