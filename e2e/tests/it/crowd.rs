//! Odd clients by the hundred: a live pair beside them loses nothing, and the broker forgets them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio_util::sync::CancellationToken;
use weir_e2e::crowd::{self, Crowd, Odd};
use weir_e2e::generator::{Generator, Target};
use weir_e2e::weir::{Setup, Weir, binary};
use weir_e2e::{http, within};

/// A crowd that a test has time for.
const CROWD: Crowd = Crowd {
    stay: Duration::from_secs(4),
    half_open: 200,
    silent: 20,
    trickling: 50,
    takeovers: 400,
    wills: 300,
    malformed: 300,
    busy_rate: 500,
};
/// How long the live pair talks before it is asked whether the crowd has gone.
const TALK: Duration = Duration::from_secs(2);
/// Growth of resident memory from the first crowd to the second: less than what the second leaves behind if the
/// clients that never read, or half of the others, are not forgotten.
const GROWTH_BYTES_MAX: u64 = 16 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_odd_clients_costs_a_live_pair_nothing() -> Result<()> {
    let setup = Setup::memory()?.with_arguments(&["--connect-timeout", "2s"]);
    let weir = setup.start().await?;
    survive(&weir).await.with_context(|| weir.to_string())?;
    weir.no_panic()?;
    weir.terminate().await
}

async fn survive(weir: &Weir) -> Result<()> {
    let before = connections(weir).await?;
    // The first crowd leaves what a broker keeps for the next: buffers, free lists, the store's memory of writes.
    meet(weir).await.context("the first crowd")?;
    gone(weir, before).await?;
    let once = weir.resident_bytes()?;
    meet(weir).await.context("the second crowd")?;
    gone(weir, before).await?;
    let twice = weir.resident_bytes()?;
    ensure!(twice < once + GROWTH_BYTES_MAX, "memory grew from {once} to {twice} bytes");
    Ok(())
}

/// A crowd, and a live pair for as long as it is there.
async fn meet(weir: &Weir) -> Result<()> {
    let generator = Generator { binary: binary().await?.to_owned(), cpus: None, threads: 1 };
    let pid = weir.pid().context("a running broker")?;
    let target = Target { address: weir.mqtt(), pid, protocol: "5" };
    let left = CancellationToken::new();
    let come_and_go = async {
        let odd = within("the crowd to come and go", crowd::gather(weir.mqtt(), CROWD)).await;
        left.cancel();
        odd
    };
    let talk = async {
        while !left.is_cancelled() {
            let (live, raw) = crowd::live_pair(&generator, target, TALK).await?;
            ensure!(live.sent > 0 && live.lost == 0, "the live pair: {live:?}");
            ensure!(raw["receivedAgain"] == 0, "the live pair received messages twice: {raw}");
        }
        Ok(())
    };
    let (odd, talked) = tokio::join!(come_and_go, talk);
    let odd = odd?;
    talked?;
    let Odd { half_open_closed, takeovers, wills_sent, wills_seen, malformed_closed, busy_sent } = odd;
    ensure!(wills_sent == CROWD.wills && wills_seen == wills_sent, "every will is published once: {odd:?}");
    ensure!(malformed_closed == CROWD.malformed, "every malformed connection is closed: {odd:?}");
    ensure!(half_open_closed > 0, "half-open connections end: {odd:?}");
    ensure!(takeovers > CROWD.takeovers / 2 && busy_sent > 0, "the crowd was there: {odd:?}");
    Ok(())
}

/// Waits until the broker counts as many clients as `before`.
async fn gone(weir: &Weir, before: u64) -> Result<()> {
    within("the crowd's connections to be forgotten", async {
        while connections(weir).await? > before {
            // A gauge can only be asked.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    })
    .await
}

/// The gauge of connected clients.
async fn connections(weir: &Weir) -> Result<u64> {
    let (_, metrics) = http::get(weir.http(), "/metrics").await?;
    let gauge = metrics.lines().find_map(|line| line.strip_prefix("weir_connections "));
    gauge.context("weir_connections")?.parse().context("weir_connections")
}
