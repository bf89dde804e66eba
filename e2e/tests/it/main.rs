//! End-to-end tests: the real broker and foreign clients, seen from outside.
//!
//! `scenarios` holds what ordinary MQTT clients may expect of any broker; `control` proves the client drivers
//! with it against mosquitto's broker, `foreign` runs it, and queues and streams, against Weir.

mod chart;
mod control;
mod crash;
mod crowd;
mod foreign;
mod hostile;
mod image;
mod lifecycle;

mod matrix;
mod monitoring;
mod peers;
mod pods;
mod scenarios;
mod sys;
mod transports;
mod wire;

use anyhow::{Context, Result};
use weir_env::seed::Seed;

/// The random numbers of the test `name`. The seed is printed; `WEIR_E2E_SEED` repeats a run.
#[expect(clippy::print_stdout, reason = "shown when the test fails")]
fn seed(name: &str) -> Result<Seed> {
    let root = match std::env::var("WEIR_E2E_SEED") {
        Ok(text) => text.parse().context("WEIR_E2E_SEED is a number")?,
        Err(_) => Seed::from_entropy().next_u64(),
    };
    println!("{name}: WEIR_E2E_SEED={root}");
    Ok(Seed::fixed(root).fork(name))
}
