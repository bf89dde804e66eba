//! Figures under `$SYS` as a dashboard sees them, and their names beside those of mosquitto's broker.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use weir_e2e::clients::{Client, Connect, Kind, Subscribe, Version};
use weir_e2e::mosquitto::Mosquitto;
use weir_e2e::weir::Setup;
use weir_e2e::{tools, within};

const CLIENT: Client = Client { kind: Kind::Mosquitto, version: Version::V311 };
/// Figures that Weir has.
const FIGURES: usize = 51;

#[tokio::test]
async fn a_dashboard_finds_what_it_knows_from_mosquitto() -> Result<()> {
    let setup = Setup::memory()?.with_arguments(&["--sys-interval", "1s"]);
    let weir = setup.start().await?;
    let all = || Subscribe::to("$SYS/#", 0);
    let mut dashboard = CLIENT.subscribe(Connect::clean(weir.mqtt(), "dashboard"), all()).await?;
    let figures = dashboard.collect(FIGURES).await?;
    ensure!(figures.iter().all(|figure| figure.retain && figure.qos == 0), "{figures:?}");
    let uptime = figures.iter().find(|figure| figure.topic == "$SYS/broker/uptime").context("uptime")?;
    ensure!(uptime.payload.ends_with(" seconds"), "{uptime:?}");
    // And on they go.
    let change = dashboard.next().await?;
    ensure!(!change.retain && change.topic.starts_with("$SYS/broker/"), "{change:?}");

    let mut ours: BTreeSet<String> = figures.into_iter().map(|figure| figure.topic).collect();
    ensure!(ours.len() == FIGURES, "a topic twice");
    let tool = &tools::mosquitto().await?.broker;
    let mosquitto = Mosquitto::start_with(tool, "sys_interval 1\n", None).await?;
    let mut dashboard = CLIENT.subscribe(Connect::clean(mosquitto.mqtt(), "dashboard"), all()).await?;
    let known = within("mosquitto to publish all of it", async {
        while !ours.is_empty() {
            ours.remove(&dashboard.next().await?.topic);
        }
        Ok(())
    });
    known.await.with_context(|| format!("mosquitto has no {ours:?}"))?;
    weir.terminate().await
}
