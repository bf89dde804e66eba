//! Odd clients by the thousand, beside a live pair that must not notice.
//!
//! [`gather`] lets a [`Crowd`] loose on a broker and says what it saw; [`measure`] does so beside a publisher and a
//! subscriber of the load generator, and says what they saw with and without it. The clients are raw sockets: no
//! library would do what they do. Nothing here knows how a broker works inside.

mod odd;
mod wire;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::generator::{Generator, Target};
use crate::process::resident_bytes;
use weir_env::clock::Clock;

/// Messages per second of the live pair.
const LIVE_RATE: u32 = 500;
/// How much the crowd's thread yields to everybody else, so that what is measured is the broker.
const NICE: i32 = 15;
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How long the broker gets to let go of the crowd before its memory is read again.
const SETTLE: Duration = Duration::from_secs(3);

/// How many clients of each kind, and over what time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crowd {
    /// How long it stays; what happens by the thousand is spread over it.
    pub stay: Duration,
    /// Connections that send a part of a CONNECT and then nothing; a closed one is opened again.
    pub half_open: u32,
    /// Subscribers of the busy topic that never read.
    pub silent: u32,
    /// Connections that send a byte a second, half of them from their first byte on.
    pub trickling: u32,
    /// Connects with one and the same client id.
    pub takeovers: u32,
    /// Clients with a will that are cut off.
    pub wills: u32,
    /// Connections that send what is no MQTT.
    pub malformed: u32,
    /// Messages of 1 KiB to the busy topic, per second.
    pub busy_rate: u32,
}

/// What a crowd saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Odd {
    /// Half-open connections that the broker closed.
    pub half_open_closed: u32,
    /// Connects with the shared client id that were answered with success.
    pub takeovers: u32,
    /// Connections that were made with a will and cut off.
    pub wills_sent: u32,
    /// Wills that a subscriber received.
    pub wills_seen: u32,
    /// Malformed connections that the broker closed.
    pub malformed_closed: u32,
    /// Messages published to the busy topic.
    pub busy_sent: u32,
}

/// What the live pair saw.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Live {
    /// Messages published.
    pub sent: u64,
    /// Messages that did not arrive.
    pub lost: u64,
    /// Median, from publish to arrival, in milliseconds.
    pub p50_millis: f64,
    /// What 99 of 100 messages stayed within.
    pub p99_millis: f64,
    /// The slowest.
    pub max_millis: f64,
}

/// A live pair with and without a crowd.
#[derive(Clone, Debug)]
pub struct Report {
    /// Without.
    pub alone: Live,
    /// With.
    pub crowded: Live,
    /// What the crowd saw.
    pub odd: Odd,
    /// Resident memory of the broker before the crowd, at most, and after it.
    pub resident_bytes: [u64; 3],
    /// What the load generator said.
    pub raw: Value,
}

impl Crowd {
    /// A week's worth in a minute.
    #[must_use]
    pub const fn full() -> Self {
        Self {
            stay: Duration::from_secs(60),
            half_open: 1_000,
            silent: 50,
            trickling: 200,
            takeovers: 10_000,
            wills: 5_000,
            malformed: 5_000,
            busy_rate: 1_000,
        }
    }

    /// The same in a part of the time, with a part of the clients; the busy topic stays as busy.
    #[must_use]
    pub fn scaled_down(self, part: u32) -> Self {
        Self {
            stay: self.stay / part,
            half_open: self.half_open / part,
            silent: self.silent / part,
            trickling: self.trickling / part,
            takeovers: self.takeovers / part,
            wills: self.wills / part,
            malformed: self.malformed / part,
            busy_rate: self.busy_rate,
        }
    }
}

impl fmt::Display for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "In {} s: {} connections that never finish CONNECT, {} subscribers that never read a topic with {} messages \
             of 1 KiB a second, {} connections that send a byte a second, {} connects with one client id, {} clients \
             with a will that are cut off, {} connections with malformed packets; beside them one publisher and one \
             subscriber, QoS 1, {LIVE_RATE} messages a second.",
            self.stay.as_secs(),
            self.half_open,
            self.silent,
            self.busy_rate,
            self.trickling,
            self.takeovers,
            self.wills,
            self.malformed
        )
    }
}

impl Live {
    fn read(run: &Value) -> Result<Self> {
        let number = |pointer: &str| run.pointer(pointer).with_context(|| format!("{pointer} in {run}"));
        let count = |pointer| number(pointer)?.as_u64().context("a count");
        let millis = |pointer| Ok::<_, anyhow::Error>(number(pointer)?.as_f64().context("a time")? / 1e6);
        Ok(Self {
            sent: count("/sent")?,
            lost: count("/lost")?,
            p50_millis: millis("/latency/endToEnd/p50Nanos")?,
            p99_millis: millis("/latency/endToEnd/p99Nanos")?,
            max_millis: millis("/latency/endToEnd/maxNanos")?,
        })
    }
}

/// Lets `crowd` loose on the broker at `address`; returns when it has gone.
pub async fn gather(address: SocketAddr, crowd: Crowd) -> Result<Odd> {
    odd::gather(address, crowd).await
}

/// A publisher and a subscriber at QoS 1 for `duration`: what they saw, and the load generator's report.
pub async fn live_pair(generator: &Generator, target: Target, duration: Duration) -> Result<(Live, Value)> {
    let arguments =
        ["latency", "-p", "1", "-q", "1", "-t", "live", "--window", "1000", "-r"].map(str::to_owned);
    let arguments = [&arguments[..], &[LIVE_RATE.to_string()]].concat();
    let raw = generator.run(target, &arguments, duration).await?;
    Ok((Live::read(&raw)?, raw))
}

/// A live pair for the time `alone`, then beside `crowd`.
pub async fn measure(generator: &Generator, target: Target, crowd: Crowd, alone: Duration) -> Result<Report> {
    let (alone, raw_alone) = live_pair(generator, target, alone).await?;
    let before = resident_bytes(target.pid)?;
    let gone = CancellationToken::new();
    let thread = std::thread::Builder::new().name("crowd".to_owned()).spawn({
        let gone = gone.clone().drop_guard();
        move || {
            // A crowd that may not yield is only a harder one.
            let _ = rustix::process::nice(NICE);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let odd = runtime.block_on(gather(target.address, crowd));
            drop(gone);
            odd
        }
    })?;
    let peak = async {
        let mut peak = before;
        while !gone.is_cancelled() {
            peak = peak.max(resident_bytes(target.pid)?);
            tokio::time::sleep(LOOK).await;
        }
        anyhow::Ok(peak)
    };
    let (pair, peak) = tokio::join!(live_pair(generator, target, crowd.stay), peak);
    let odd = thread.join().map_err(|_| anyhow!("the crowd panicked"))??;
    let (crowded, raw_crowded) = pair?;
    let settled = Clock::system().now() + SETTLE;
    tokio::time::sleep_until(settled).await;
    let raw = json!({ "alone": raw_alone, "crowded": raw_crowded, "odd": format!("{odd:?}") });
    let resident_bytes = [before, peak?, resident_bytes(target.pid)?];
    Ok(Report { alone, crowded, odd, resident_bytes, raw })
}
