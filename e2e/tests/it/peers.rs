//! The brokers and clients that Weir is compared with and tested by can be had.

use anyhow::{Result, ensure};
use weir_e2e::tools;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_current_mosquitto_and_its_clients_run() -> Result<()> {
    let mosquitto = tools::mosquitto_current().await?;
    ensure!(mosquitto.version.starts_with("2."), "{mosquitto:?}");
    let help = mosquitto.subscribe.command().arg("--help").output().await?;
    let help = String::from_utf8(help.stdout)?;
    ensure!(help.contains("--ws"), "its clients speak WebSocket:\n{help}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nats_server_runs() -> Result<()> {
    let nats = tools::nats().await?;
    ensure!(nats.version.starts_with("2."), "{nats:?}");
    Ok(())
}
