//! What each kind of odd client does.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weir_env::clock::Clock;

use super::{Crowd, Odd, wire};

const BUSY: &str = "crowd/busy";
const SHARED_ID: &str = "crowd-everybody";
/// Connections of the shared client id that stay open until they are taken over.
const SHARED_OPEN: usize = 16;
/// Receive buffer of those that never read.
const SILENT_BUFFER: u32 = 4 << 10;
/// How long a broker may take for an answer, or to close.
const PATIENCE: Duration = Duration::from_secs(20);
/// Clients of one kind that come at the same time.
const AT_ONCE: u32 = 8;

/// Counted while the crowd is there.
#[derive(Debug, Default)]
struct Counts {
    half_open_closed: AtomicU32,
    takeovers: AtomicU32,
    wills_sent: AtomicU32,
    wills_seen: AtomicU32,
    malformed_closed: AtomicU32,
    busy_sent: AtomicU32,
}

/// What all of the crowd know.
#[derive(Clone, Debug)]
struct Member {
    address: SocketAddr,
    crowd: Crowd,
    start: Instant,
    counts: Arc<Counts>,
    /// Time to go.
    over: CancellationToken,
}

pub(super) async fn gather(address: SocketAddr, crowd: Crowd) -> Result<Odd> {
    let member = Member {
        address,
        crowd,
        start: Clock::system().now(),
        counts: Arc::default(),
        over: CancellationToken::new(),
    };
    let watcher = member.watch_wills().await?;
    let mut staying = JoinSet::new();
    for n in 0..crowd.half_open {
        staying.spawn(member.clone().until_over(move |member| member.half_open(n)));
    }
    for n in 0..crowd.silent {
        staying.spawn(member.clone().until_over(move |member| member.silent(n)));
    }
    for n in 0..crowd.trickling {
        staying.spawn(member.clone().until_over(move |member| member.trickle(n)));
    }
    staying.spawn(member.clone().until_over(Member::keep_busy));
    staying.spawn(member.clone().until_over(|member| member.count_wills(watcher)));

    let mut coming = JoinSet::new();
    for lane in 0..AT_ONCE {
        coming.spawn(member.clone().take_over(lane));
        coming.spawn(member.clone().leave_wills(lane));
        coming.spawn(member.clone().send_malformed(lane));
    }
    let mut result = Ok(());
    while let Some(came) = coming.join_next().await {
        result = result.and(came.context("a task of the crowd")?);
    }
    tokio::time::sleep_until(member.start + crowd.stay).await;
    let last = member.wait_for_wills().await;
    member.over.cancel();
    while let Some(stayed) = staying.join_next().await {
        result = result.and(stayed.context("a task of the crowd")?);
    }
    result.and(last)?;
    let read = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
    let counts = &member.counts;
    Ok(Odd {
        half_open_closed: read(&counts.half_open_closed),
        takeovers: read(&counts.takeovers),
        wills_sent: read(&counts.wills_sent),
        wills_seen: read(&counts.wills_seen),
        malformed_closed: read(&counts.malformed_closed),
        busy_sent: read(&counts.busy_sent),
    })
}

fn count(counter: &AtomicU32) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Member {
    /// Runs `client` until the crowd goes. A client that the broker throws out is what a crowd expects.
    async fn until_over<F>(self, client: impl FnOnce(Self) -> F) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let over = self.over.clone();
        let lived = over.run_until_cancelled(client(self)).await;
        lived.unwrap_or(Ok(()))
    }

    async fn open(&self) -> Result<TcpStream> {
        TcpStream::connect(self.address).await.context("connect to the broker")
    }

    /// A connection whose CONNECT was accepted.
    async fn connected(&self, client_id: &str, will: Option<&str>) -> Result<TcpStream> {
        let mut stream = self.open().await?;
        stream.write_all(&wire::connect(client_id, will)).await?;
        let answer = tokio::time::timeout(PATIENCE, wire::next_packet(&mut stream)).await;
        let answer = answer.with_context(|| format!("`{client_id}` waits for CONNACK"))??;
        ensure!(answer == Some(0x20), "`{client_id}` got {answer:x?} for CONNACK");
        Ok(stream)
    }

    /// Waits for the turn of the `n`th of `all`, which are spread over the crowd's stay.
    async fn turn(&self, n: u32, all: u32) {
        tokio::time::sleep_until(self.start + self.crowd.stay * n / all.max(1)).await;
    }

    async fn half_open(self, n: u32) -> Result<()> {
        let connect = wire::connect(&format!("crowd-half-{n}"), None);
        let part = &connect[..n as usize % connect.len()];
        loop {
            let mut stream = self.open().await?;
            stream.write_all(part).await?;
            // Nothing comes but the end.
            let _ = stream.read_u8().await;
            count(&self.counts.half_open_closed);
        }
    }

    async fn silent(self, n: u32) -> Result<()> {
        let socket = if self.address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
        socket.set_recv_buffer_size(SILENT_BUFFER)?;
        let mut stream = socket.connect(self.address).await?;
        let id = format!("crowd-silent-{n}");
        stream.write_all(&[wire::connect(&id, None), wire::subscribe(BUSY)].concat()).await?;
        std::future::pending().await
    }

    async fn trickle(self, n: u32) -> Result<()> {
        loop {
            let id = format!("crowd-trickle-{n}");
            let (mut stream, bytes) = if n.is_multiple_of(2) {
                (self.open().await?, wire::connect(&id, None))
            } else {
                (self.connected(&id, None).await?, wire::publish("crowd/trickle", &[b'.'; 1_000]))
            };
            for byte in bytes {
                if stream.write_u8(byte).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn keep_busy(self) -> Result<()> {
        let mut stream = self.connected("crowd-busy", None).await?;
        let message = wire::publish(BUSY, &[b'.'; 1_024]);
        for n in 1.. {
            stream.write_all(&message).await.context("publish to the busy topic")?;
            count(&self.counts.busy_sent);
            tokio::time::sleep_until(self.start + Duration::from_secs(1) * n / self.crowd.busy_rate.max(1))
                .await;
        }
        Ok(())
    }

    async fn take_over(self, lane: u32) -> Result<()> {
        let mut open = VecDeque::new();
        for n in (lane..self.crowd.takeovers).step_by(AT_ONCE as usize) {
            self.turn(n, self.crowd.takeovers).await;
            // One that is taken over before it is answered was there all the same.
            if let Ok(stream) = self.connected(SHARED_ID, None).await {
                count(&self.counts.takeovers);
                open.push_back(stream);
            }
            if open.len() > SHARED_OPEN / AT_ONCE as usize {
                open.pop_front();
            }
        }
        Ok(())
    }

    async fn leave_wills(self, lane: u32) -> Result<()> {
        for n in (lane..self.crowd.wills).step_by(AT_ONCE as usize) {
            self.turn(n, self.crowd.wills).await;
            let stream = self.connected(&format!("crowd-will-{n}"), Some(&format!("crowd/will/{n}"))).await?;
            // Cut off, as by a power failure: a reset instead of an orderly end.
            stream.set_zero_linger()?;
            drop(stream);
            count(&self.counts.wills_sent);
        }
        Ok(())
    }

    async fn send_malformed(self, lane: u32) -> Result<()> {
        for n in (lane..self.crowd.malformed).step_by(AT_ONCE as usize) {
            self.turn(n, self.crowd.malformed).await;
            let mut stream = self.open().await?;
            // The broker may have closed before all was written.
            let _ = stream.write_all(&wire::malformed(n)).await;
            let end = async { while stream.read_u8().await.is_ok() {} };
            if tokio::time::timeout(PATIENCE, end).await.is_ok() {
                count(&self.counts.malformed_closed);
            }
        }
        Ok(())
    }

    /// A subscriber of all wills.
    async fn watch_wills(&self) -> Result<TcpStream> {
        let mut stream = self.connected("crowd-watcher", None).await?;
        stream.write_all(&wire::subscribe("crowd/will/#")).await?;
        let answer = tokio::time::timeout(PATIENCE, wire::next_packet(&mut stream)).await;
        ensure!(answer.context("wait for SUBACK")?? == Some(0x90), "no SUBACK");
        Ok(stream)
    }

    async fn count_wills(self, mut stream: TcpStream) -> Result<()> {
        while let Some(first) = wire::next_packet(&mut stream).await? {
            if first >> 4 == 3 {
                count(&self.counts.wills_seen);
            }
        }
        anyhow::bail!("the subscriber of the wills was thrown out")
    }

    /// Waits until every will has been seen, or none has come for a while.
    async fn wait_for_wills(&self) -> Result<()> {
        let seen = || self.counts.wills_seen.load(Ordering::Relaxed);
        let give_up = Clock::system().now() + PATIENCE;
        while seen() < self.counts.wills_sent.load(Ordering::Relaxed) && Clock::system().now() < give_up {
            // The counter has no event of its own.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}
