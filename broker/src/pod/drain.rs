//! How a pod has its clients go to others: it is not ready and takes no new ones, hands its shards over, and sends away so
//! many clients in a second; when its grace is over, all that are left. A stop begins so, and whoever asks any pod for it
//! (`DrainPod`) may also take it back.
//!
//! [`Drainage`] is whether it is so, for connections; this module alone changes it. Knows nothing of what a connection does
//! to end. Orders come with what the cluster knows of this pod.

use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use weir_codec::ReasonCode;
use weir_core::cluster::{DrainOrder, DrainState, PodLoad};
use weir_env::clock::Instant;

use crate::broker::Broker;
use crate::config::DrainConfig;
use crate::http::{Readiness, ReadyState};
use crate::mailbox::Mailbox;

/// Time between two looks at who is to go.
const TICK: Duration = Duration::from_millis(20);
/// Longest wait for the handover of shards before clients are sent away all the same.
const HAND_OVER_MAX: Duration = Duration::from_secs(10);

/// Whether clients are to go to other pods, and how far that is.
#[derive(Debug, Default)]
pub(crate) struct Drainage(Mutex<Phase>);

#[derive(Clone, Copy, Debug, Default)]
struct Phase {
    state: DrainState,
    /// The pod will not be there afterwards.
    for_good: bool,
    shed: u64,
}

/// What a client is told that is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Farewell {
    pub(crate) reason: ReasonCode,
    /// Where it is to go.
    pub(crate) server_reference: Option<ByteString>,
}

impl Drainage {
    /// Whether no new clients are taken.
    pub(crate) fn is_on(&self) -> bool {
        self.0.lock().state != DrainState::Serving
    }

    /// As other pods are told, with the rest of the load.
    pub(super) fn tell(&self, load: PodLoad) -> PodLoad {
        let Phase { state, shed, .. } = *self.0.lock();
        PodLoad { state, shed, ..load }
    }

    fn set(&self, broker: &Broker, change: impl FnOnce(&mut Phase)) {
        let mut phase = self.0.lock();
        change(&mut phase);
        broker.metrics.draining.set(match phase.state {
            DrainState::Serving => 0,
            DrainState::Draining => 1,
            DrainState::Drained => 2,
        });
    }
}

impl Broker {
    /// What a client is told that is to go: to another pod if there is one, for now or, if this one goes for good and it is
    /// known where, for ever.
    pub(crate) fn farewell(&self) -> Farewell {
        let Some(server_reference) = self.pods.as_ref().and_then(|pods| pods.elsewhere()) else {
            return Farewell { reason: ReasonCode::ServerShuttingDown, server_reference: None };
        };
        let moved = self.drainage.0.lock().for_good && server_reference.is_some();
        let reason = if moved { ReasonCode::ServerMoved } else { ReasonCode::UseAnotherServer };
        Farewell { reason, server_reference }
    }
}

/// How many clients may be told by when. Without IO.
#[derive(Debug)]
struct Pace {
    rate: u32,
    since: Instant,
    told: u64,
}

impl Pace {
    fn new(rate: u32, now: Instant) -> Self {
        Self { rate, since: now, told: 0 }
    }

    /// How many may be told `now`: the first at once.
    fn due(&self, now: Instant) -> u64 {
        let elapsed =
            u64::try_from(now.saturating_duration_since(self.since).as_millis()).unwrap_or(u64::MAX);
        let allowed = elapsed.saturating_mul(u64::from(self.rate)) / 1000;
        (allowed + 1).saturating_sub(self.told)
    }
}

/// How `order` says, and what it leaves open as configured.
fn plan(order: DrainOrder, config: &DrainConfig) -> (u32, Duration) {
    let rate = if order.rate == 0 { config.rate } else { order.rate };
    let grace = if order.grace.is_zero() { config.grace } else { order.grace };
    (rate, grace)
}

/// Drains `broker` whenever any pod is asked for it, and has it take clients again when that is taken back, until `stop`.
pub(crate) async fn follow_orders(
    broker: Arc<Broker>,
    readiness: Readiness,
    config: DrainConfig,
    stop: CancellationToken,
) {
    let Some(pods) = &broker.pods else { return };
    let me = pods.cluster.me();
    let mut members = pods.cluster.members();
    let mut order = None;
    loop {
        let until_changed = members.wait_for(|view| view.member(me).and_then(|me| me.order) != order);
        let draining = async {
            if let Some(order) = order {
                run(&broker, plan(order, &config), false).await;
            }
            std::future::pending::<()>().await;
        };
        let changed = tokio::select! {
            changed = until_changed => changed.map(|view| view.member(me).and_then(|me| me.order)),
            () = draining => continue,
            () = stop.cancelled() => return,
        };
        let Ok(changed) = changed else { return };
        if changed.is_none() {
            tracing::info!("takes clients again");
            broker.drainage.set(&broker, |phase| *phase = Phase::default());
            readiness.set(ReadyState::Ready);
        } else {
            readiness.set(ReadyState::TurningAway);
        }
        order = changed;
    }
}

/// Has the clients of `broker`, which is about to stop, go to other pods, if there are any. What is left ends with it.
pub(crate) async fn leave(broker: &Broker, config: &DrainConfig) {
    if broker.pods.as_ref().is_some_and(|pods| pods.elsewhere().is_some()) {
        run(broker, (config.rate, config.grace), true).await;
    }
}

/// Hands the shards over, then sends clients away, until none is left or all are told.
async fn run(broker: &Broker, (rate, grace): (u32, Duration), for_good: bool) {
    let begun = broker.clock.now();
    broker.drainage.set(broker, |phase| {
        let goes_on = phase.state != DrainState::Serving;
        let shed = if goes_on { phase.shed } else { 0 };
        *phase = Phase { state: DrainState::Draining, for_good, shed };
    });
    tracing::info!(rate, ?grace, connections = broker.metrics.connections.get(), "draining");
    let handing_over = async {
        if for_good { broker.core.hand_over_all().await } else { broker.core.hand_over_rest().await }
    };
    match tokio::time::timeout(HAND_OVER_MAX, handing_over).await {
        Ok(Ok(shards)) => tracing::info!(shards, "handed virtual shards over"),
        Ok(Err(error)) => tracing::warn!(%error, "hand virtual shards over; other pods take them over"),
        Err(_) => tracing::warn!("virtual shards are not handed over yet: the store is slow"),
    }
    send_away(broker, rate, begun + grace).await;
    let left = broker.metrics.connections.get();
    if !for_good {
        while !broker.clients.is_empty() {
            tokio::time::sleep(TICK).await;
            // Who was being let in when it began.
            send_away(broker, rate, begun + grace).await;
        }
        broker.drainage.set(broker, |phase| phase.state = DrainState::Drained);
    }
    let took = broker.clock.now().saturating_duration_since(begun);
    tracing::info!(?took, left, "drained");
}

/// Tells clients to go, so many in a second, and at `end` all that are left. Returns when all are told.
async fn send_away(broker: &Broker, rate: u32, end: Instant) {
    let mut pace = Pace::new(rate, broker.clock.now());
    let mut staying: Vec<Arc<Mailbox>> = Vec::new();
    loop {
        let now = broker.clock.now();
        if staying.is_empty() {
            staying = broker.clients.staying();
        }
        if staying.is_empty() {
            return;
        }
        let due = if now >= end { u64::MAX } else { pace.due(now) };
        let mut told = 0;
        while told < due
            && let Some(mailbox) = staying.pop()
        {
            // Who ends by itself does not count.
            told += u64::from(mailbox.send_away());
        }
        pace.told += told;
        broker.drainage.set(broker, |phase| phase.shed += told);
        // Somebody may have come in the last moment.
        if !staying.is_empty() {
            tokio::time::sleep_until((now + TICK).min(end)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_env::clock::Clock;

    use super::*;

    #[test]
    fn clients_go_at_the_rate() {
        let start = Clock::system().now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::new(50, start);
        assert_eq!(pace.due(at(0)), 1);
        pace.told = 1;
        assert_eq!((pace.due(at(0)), pace.due(at(19)), pace.due(at(20))), (0, 0, 1));
        assert_eq!(pace.due(at(1_000)), 50);
        pace.told = 51;
        assert_eq!((pace.due(at(1_000)), pace.due(at(2_000))), (0, 50));
        let one = Pace { told: 1, ..Pace::new(1, start) };
        assert_eq!((one.due(at(999)), one.due(at(1_000))), (0, 1));
    }

    #[test]
    fn what_an_order_leaves_open_is_as_configured() {
        let config = DrainConfig::default();
        let order = |rate, seconds| DrainOrder { rate, grace: Duration::from_secs(seconds) };
        assert_eq!(plan(order(0, 0), &config), (config.rate, config.grace));
        assert_eq!(plan(order(7, 30), &config), (7, Duration::from_secs(30)));
    }
}
