//! What is said when something is missing. In processes of their own, because a process has one network and a library
//! stays loaded: the test runs itself again with [`ROLE`] set.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use std::{env, fs};

use weir_env::clock::Clock;
use weir_storage::{Error, Store};
use weir_storage_fdb::{FdbNetwork, FdbOptions, FdbStore};

use crate::cluster::{self, not_run};

/// What a process that was started by a test does.
const ROLE: &str = "WEIR_TEST_FDB_ROLE";

/// Runs the test `name` of this binary as a process of its own.
fn run(name: &str, role: &str, variables: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", &format!("missing::{name}"), "--nocapture"]).env(ROLE, role);
    command.env_remove("FDB_LOCAL_CLIENT_LIBRARY_PATH");
    for (variable, value) in variables {
        command.env(variable, value);
    }
    command.output().unwrap()
}

fn role() -> Option<String> {
    env::var(ROLE).ok()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Compiles a client library that serves API version 620 and nothing else.
fn old_library(folder: &Path) -> PathBuf {
    let (code, library) = (folder.join("stub.rs"), folder.join("libfdb_c.so"));
    fs::write(&code, "#[unsafe(no_mangle)] pub extern \"C\" fn fdb_get_max_api_version() -> i32 { 620 }")
        .unwrap();
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let arguments = ["--edition", "2024", "--crate-type", "cdylib", "-o"];
    assert!(Command::new(rustc).args(arguments).args([&library, &code]).status().unwrap().success());
    library
}

/// Starts the network and says how that ended.
fn start_and_say() {
    match FdbNetwork::start(None) {
        Ok(network) => println!("STARTED {}", network.client_version()),
        Err(error) => println!("REFUSED {error}"),
    }
    // What failed for want of a library can be tried again, and fails alike.
    assert!(FdbNetwork::start(Some(Path::new("/nowhere.so"))).is_err());
}

#[test]
fn without_a_library_it_is_said_where_it_was_looked_for_and_what_to_install() {
    let name = "without_a_library_it_is_said_where_it_was_looked_for_and_what_to_install";
    if role().is_some() {
        return start_and_say();
    }
    let file = Path::new("/nowhere/libfdb_c.so");
    let text = said(&run(name, "start", &[("FDB_LOCAL_CLIENT_LIBRARY_PATH", file)]));
    let expected =
        ["REFUSED store unavailable", "/nowhere/libfdb_c.so", "foundationdb-clients", "fdb.clientLibrary"];
    assert!(expected.iter().all(|part| text.contains(part)), "{text}");
}

#[test]
fn a_library_that_is_too_old_is_said_to_be() {
    if role().is_some() {
        return start_and_say();
    }
    let folder = tempfile::tempdir().unwrap();
    let library = old_library(folder.path());
    let name = "a_library_that_is_too_old_is_said_to_be";
    let text = said(&run(name, "start", &[("FDB_LOCAL_CLIENT_LIBRARY_PATH", &library)]));
    assert!(text.contains("too old: API version 620") && text.contains("730"), "{text}");
}

/// A cluster file that names a port nobody answers on.
fn nobody(folder: &Path) -> (PathBuf, std::net::TcpListener) {
    // Bound and never read: the port stays ours, and no cluster answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = folder.join("fdb.cluster");
    fs::write(&file, format!("nobody:there@{}\n", listener.local_addr().unwrap())).unwrap();
    (file, listener)
}

/// The cluster does not answer: opening ends with an error that names it, reads say the same, a commit is unknown. And
/// the process ends, though the network was never stopped by hand.
#[test]
fn a_cluster_that_does_not_answer_is_an_error_and_not_a_hang() {
    let name = "a_cluster_that_does_not_answer_is_an_error_and_not_a_hang";
    let Some(role) = role() else {
        match run(name, "start", &[]) {
            output if String::from_utf8_lossy(&output.stdout).contains("NO LIBRARY") => {
                not_run("with a client library of FoundationDB: none is installed");
            }
            output => {
                let text = said(&output);
                let expected = ["has not answered within 1s", "nobody:there", "fdbcli", "127.0.0.1"];
                assert!(
                    expected[2..].iter().all(|part| text.contains(part)) && text.contains(expected[0]),
                    "{text}"
                );
            }
        }
        return;
    };
    assert_eq!(role, "start");
    let network = match FdbNetwork::start(None) {
        Ok(network) => network,
        Err(error) => return println!("NO LIBRARY {error}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let (cluster_file, _listener) = nobody(folder.path());
    let options = FdbOptions { timeout: Duration::from_secs(1), ..FdbOptions::new(cluster_file) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(FdbStore::open(&network, &options, Clock::system())).unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)));
    println!("{error}");
    let second = FdbNetwork::start(None).unwrap();
    drop((network, second));
    let error = FdbNetwork::start(None).unwrap_err();
    assert!(error.to_string().contains("once in a process"), "{error}");
}

/// The thread of the network is joined also when the process ends while stores and the network are alive.
#[test]
fn a_process_that_exits_with_the_network_running_ends_well() {
    let name = "a_process_that_exits_with_the_network_running_ends_well";
    if role().is_none() {
        let output = run(name, "exit", &[]);
        if String::from_utf8_lossy(&output.stdout).contains("NO LIBRARY") {
            not_run("with a client library of FoundationDB: none is installed");
            return;
        }
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        return;
    }
    match FdbNetwork::start(None) {
        Ok(network) => std::mem::forget(network),
        Err(error) => return println!("NO LIBRARY {error}"),
    }
    std::process::exit(7);
}

/// The network thread dies: whoever has the store is told that it is over, and nothing waits for an answer.
#[test]
fn a_network_that_ends_unasked_is_the_end_of_its_stores() {
    let name = "a_network_that_ends_unasked_is_the_end_of_its_stores";
    let Some(fake) = cluster::fake() else {
        return not_run("over a client library that fails: the stand-in is not built");
    };
    if role().is_none() {
        let text = said(&run(name, "died", &[]));
        assert!(text.contains("OVER the network thread of FoundationDB has ended"), "{text}");
        return;
    }
    let network = FdbNetwork::start(Some(&fake)).unwrap();
    let options = FdbOptions::new(cluster::fake_cluster_file());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = FdbStore::open(&network, &options, Clock::system()).await.unwrap();
        let mut tx = store.begin();
        tx.set(b"end of the network", b"");
        tx.commit().await.unwrap();
        println!("OVER {}", store.failed().await);
        assert!(matches!(store.begin().read_version().await, Err(Error::Unavailable(_))));
        store.close().await;
    });
    assert!(FdbNetwork::start(None).is_err());
}

#[tokio::test]
async fn a_cluster_file_that_is_no_such_thing_is_named() {
    let Some(options) = cluster::options() else { return };
    let network = cluster::network();
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    fs::write(&text, "hello\n").unwrap();
    for (file, why) in [
        (folder.path().join("absent"), "/etc/foundationdb/fdb.cluster"),
        (text, "description:id@host:port"),
        (folder.path().to_owned(), "directory"),
    ] {
        let options = FdbOptions { cluster_file: file.clone(), ..options.clone() };
        let error = FdbStore::open(&network, &options, Clock::system()).await.unwrap_err().to_string();
        assert!(error.contains(why) && error.contains(&file.display().to_string()), "{error}");
    }
    let store = FdbStore::open(&network, &options, Clock::system()).await.unwrap();
    store.close().await;
}
