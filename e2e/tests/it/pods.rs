//! Pods that are killed, stopped and terminated under load: no client is told what is not so.

use std::time::Duration;

use anyhow::Result;
use weir_e2e::pods::{Fault, Library, Options, Store, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_alone_on_a_served_store_keeps_its_promises_under_faults() -> Result<()> {
    let faults = vec![Fault::Kill, Fault::ShortPause, Fault::Terminate];
    strike(1, Vec::new(), faults).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_pods_keep_their_promises_when_one_is_killed_and_one_terminated() -> Result<()> {
    strike(3, Vec::new(), vec![Fault::Kill, Fault::Terminate]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_pods_keep_their_promises_when_each_is_stopped_for_a_while() -> Result<()> {
    strike(3, Vec::new(), vec![Fault::ShortPause, Fault::Pause, Fault::LongPause]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_pods_keep_their_promises_to_clients_that_others_wrote() -> Result<()> {
    let libraries = vec![Library::Rumqttc, Library::Paho, Library::NpmMqtt];
    strike(3, libraries, vec![Fault::Kill, Fault::Terminate, Fault::ShortPause]).await
}

#[expect(clippy::print_stdout, reason = "the table is for whoever runs the test by itself")]
async fn strike(pods: usize, libraries: Vec<Library>, faults: Vec<Fault>) -> Result<()> {
    let file = std::env::var_os("FDB_CLUSTER_FILE");
    let store = file.map_or(Store::Served, |file| Store::FoundationDbAt(file.into()));
    let pace = Duration::from_millis(20);
    let report =
        run(&Options { pods, store, shards: 4, libraries, faults, rounds: 1, pace, logs: None }).await?;
    println!("{report}");
    report.check()
}
