//! What the connections of a run share: the clock, what they count, and the signals to start and to stop.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytestring::ByteString;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;
use weir_codec::QoS;
use weir_env::clock::Clock;

use super::latency::Latencies;
use super::plan::Plan;
use crate::cli::args::BrokerArgs;
use crate::client::{Client, ConnectOptions};

/// Connections that one run opens at the same time.
const CONNECTING_MAX: usize = 64;

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Connections are made.
    Setup,
    /// Messages flow.
    Run {
        /// Of the first message.
        start: Instant,
        /// After the last.
        end: Instant,
    },
    /// Everybody goes home.
    Stop,
}

/// Shared by all connections of a run.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) broker: BrokerArgs,
    /// What every connection begins with.
    options: ConnectOptions,
    pub(super) clock: Clock,
    /// Zero of the times in payloads.
    base: Instant,
    /// In every payload, to know our own messages.
    pub(super) run: u64,
    /// What is read was stored before the run.
    pub(super) stored: bool,
    /// Messages of earlier runs count as well.
    pub(super) any_run: bool,
    pub(super) counts: Counts,
    /// Bounds what is under way in a closed loop.
    backlog: Option<Backlog>,
    phase_tx: watch::Sender<Phase>,
    connecting: Semaphore,
    first_error: Mutex<Option<String>>,
}

/// Messages of a closed loop: published and not yet arrived. Without a bound they would pile up in the broker and
/// in the sockets, and the run would measure how much fits there.
#[derive(Debug)]
struct Backlog {
    /// Deliveries that one message makes.
    copies: u64,
    /// Messages under way, of all publishers.
    max: u64,
    /// Messages that no longer count, because nothing has arrived for a while: QoS 0 may lose them.
    forgiven: AtomicU64,
    /// Wakes a publisher when there may be room again. One at a time, in the order of their waiting: who finds more
    /// room than it can use wakes the next.
    room: Notify,
}

/// Counters of a run.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Connections that are ready to run.
    pub(super) ready: AtomicU64,
    /// Publishers that have finished.
    pub(super) published: AtomicU64,
    /// Connections that have ended.
    pub(super) ended: AtomicU64,
    /// Messages published.
    pub(super) sent: AtomicU64,
    /// Messages that were due and could not be published in time.
    pub(super) unsent: AtomicU64,
    /// Publishes acknowledged with success.
    pub(super) acked: AtomicU64,
    /// Publishes refused.
    pub(super) refused: AtomicU64,
    /// Messages of this run received.
    pub(super) received: AtomicU64,
    /// The same of each subscriber, by its number.
    pub(super) received_by: Vec<AtomicU64>,
    /// Other messages received.
    pub(super) foreign: AtomicU64,
    /// Connections that failed.
    pub(super) errors: AtomicU64,
    /// When the last message was published, and received, in nanoseconds.
    pub(super) last_sent: AtomicU64,
    pub(super) last_received: AtomicU64,
}

/// One connection's view of the run, with the histograms of its worker.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) shared: Arc<Shared>,
    pub(super) latencies: Arc<Mutex<Latencies>>,
    pub(super) number: usize,
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

pub(super) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Shared {
    pub(super) fn new(broker: BrokerArgs, plan: &Plan, run: u64) -> anyhow::Result<Self> {
        let backlog = plan.under_way.filter(|_| plan.copies > 0).map(|max| Backlog {
            copies: plan.copies,
            max,
            forgiven: AtomicU64::new(0),
            room: Notify::new(),
        });
        let clock = Clock::system();
        Ok(Self {
            options: broker.connect_options("bench")?,
            broker,
            clock,
            base: clock.now(),
            run,
            stored: plan.stored > 0,
            any_run: plan.any_run,
            counts: Counts {
                received_by: plan.subscribers.iter().map(|_| AtomicU64::new(0)).collect(),
                ..Counts::default()
            },
            backlog,
            phase_tx: watch::Sender::new(Phase::Setup),
            connecting: Semaphore::new(CONNECTING_MAX),
            first_error: Mutex::new(None),
        })
    }

    /// Nanoseconds from the start of the process's run to `at`.
    pub(super) fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.base).as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn now(&self) -> u64 {
        self.nanos(self.clock.now())
    }

    pub(super) fn instant(&self, nanos: u64) -> Instant {
        self.base + Duration::from_nanos(nanos)
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase_tx.send_replace(phase);
    }

    pub(super) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase_tx.subscribe()
    }

    /// Messages that may be published before others have arrived.
    pub(super) fn backlog_room(&self) -> u64 {
        let Some(backlog) = &self.backlog else { return u64::MAX };
        let done = read(&self.counts.received) / backlog.copies + read(&backlog.forgiven);
        backlog.max.saturating_sub(read(&self.counts.sent).saturating_sub(done))
    }

    /// Whether publishers wait for the arrivals.
    pub(super) const fn follows_arrivals(&self) -> bool {
        self.backlog.is_some()
    }

    /// Says that messages have arrived, or that there is room left.
    pub(super) fn announce_room(&self) {
        if let Some(backlog) = &self.backlog {
            backlog.room.notify_one();
        }
    }

    /// Waits for a turn to publish after arrivals; forever if no publisher waits for them. Cancel-safe.
    pub(super) async fn room(&self) {
        match &self.backlog {
            Some(backlog) => backlog.room.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Gives up what is under way.
    pub(super) fn forgive_backlog(&self) {
        if let Some(backlog) = &self.backlog {
            let arrived = read(&self.counts.received) / backlog.copies;
            backlog.forgiven.fetch_max(read(&self.counts.sent).saturating_sub(arrived), Ordering::Relaxed);
        }
    }

    /// Counts a connection that failed, and keeps why the first did.
    pub(super) fn fail(&self, error: &anyhow::Error) {
        add(&self.counts.errors, 1);
        self.note(format!("{error:#}"));
    }

    /// Keeps the first thing that went wrong.
    pub(super) fn note(&self, what: String) {
        self.first_error.lock().get_or_insert(what);
    }

    pub(super) fn first_error(&self) -> Option<String> {
        self.first_error.lock().clone()
    }
}

impl Member {
    /// Connects, when it is this member's turn.
    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        let _turn = self.turn().await?;
        self.connect_since(self.shared.now(), |options| options).await
    }

    /// Waits until it is this member's turn to connect, which lasts until the permit is dropped.
    pub(super) async fn turn(&self) -> anyhow::Result<SemaphorePermit<'_>> {
        self.shared.connecting.acquire().await.context("wait for a turn to connect")
    }

    /// Connects now, with these changes; latency counts from `due`.
    pub(super) async fn connect_since(
        &self,
        due: u64,
        change: impl FnOnce(ConnectOptions) -> ConnectOptions,
    ) -> anyhow::Result<Client> {
        let options = self.shared.options.clone();
        let options = change(ConnectOptions {
            client_id: ByteString::from(format!("{}-{}", options.client_id, self.number)),
            // The load itself keeps the connection alive, and idle ones shall be idle.
            keep_alive: 0,
            receive_maximum: Some(NonZeroU16::MAX),
            ..options
        });
        let client = self.shared.broker.connect(&options).await?;
        self.latencies.lock().connect.record(self.shared.now().saturating_sub(due));
        Ok(client)
    }

    /// Says that this connection is ready, and waits for the start: `None` if there is none.
    pub(super) async fn started(&self) -> Option<(Instant, Instant)> {
        add(&self.shared.counts.ready, 1);
        let mut phases = self.shared.phases();
        match *phases.wait_for(|phase| *phase != Phase::Setup).await.ok()? {
            Phase::Run { start, end } => Some((start, end)),
            Phase::Setup | Phase::Stop => None,
        }
    }

    /// Waits for the end of the run. Cancel-safe.
    pub(super) async fn stopped(phases: &mut watch::Receiver<Phase>) {
        // A run that is gone is as good as stopped.
        let _ = phases.wait_for(|phase| *phase == Phase::Stop).await;
    }
}

/// Checks that the server can do `qos`.
pub(super) fn check_qos(client: &Client, qos: QoS) -> anyhow::Result<()> {
    let maximum = client.conn_ack().maximum_qos.unwrap_or(QoS::ExactlyOnce);
    ensure!(qos <= maximum, "the broker offers QoS {} at most", maximum.as_u8());
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    fn shared(under_way: Option<u64>) -> Shared {
        let plan = Plan { under_way, copies: 3, ..Plan::default() };
        let command = BrokerArgs::augment_args(clap::Command::new("test"));
        let broker = BrokerArgs::from_arg_matches(&command.get_matches_from(["test"])).unwrap();
        Shared::new(broker, &plan, 7).unwrap()
    }

    #[test]
    fn a_closed_loop_follows_the_arrivals() {
        let shared = shared(Some(10));
        assert_eq!(shared.backlog_room(), 10);
        add(&shared.counts.sent, 10);
        assert_eq!(shared.backlog_room(), 0);
        add(&shared.counts.received, 7);
        assert_eq!(shared.backlog_room(), 2);
        add(&shared.counts.sent, 2);
        shared.forgive_backlog();
        assert_eq!(shared.backlog_room(), 10);
    }

    #[test]
    fn other_loops_do_not() {
        assert_eq!(shared(None).backlog_room(), u64::MAX);
    }

    #[test]
    fn instants_and_nanoseconds_agree() {
        let shared = shared(None);
        assert_eq!(shared.nanos(shared.instant(5_000)), 5_000);
    }
}
