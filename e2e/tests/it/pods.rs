//! Pods that are killed, stopped and terminated under load: no client is told what is not so.

use std::time::Duration;

use anyhow::Result;
use weir_e2e::pods::{Fault, Options, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_alone_on_a_served_store_keeps_its_promises_under_faults() -> Result<()> {
    let faults = vec![Fault::Kill, Fault::ShortPause, Fault::Terminate];
    strike(1, faults).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_pods_keep_their_promises_when_one_is_killed_and_one_terminated() -> Result<()> {
    strike(3, vec![Fault::Kill, Fault::Terminate]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_pods_keep_their_promises_when_each_is_stopped_for_a_while() -> Result<()> {
    strike(3, vec![Fault::ShortPause, Fault::Pause, Fault::LongPause]).await
}

#[expect(clippy::print_stdout, reason = "the table is for whoever runs the test by itself")]
async fn strike(pods: usize, faults: Vec<Fault>) -> Result<()> {
    let report =
        run(&Options { pods, faults, rounds: 1, pace: Duration::from_millis(20), logs: None }).await?;
    println!("{report}");
    report.check()
}
