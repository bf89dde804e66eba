//! How long a shard is without service: the time without an acknowledgement at pods that nothing is done to.
//!
//! Each topic of the stream of probes has a publisher at each pod, which stays there. So what is measured is how long the
//! shard has no owner that answers, as seen by clients whose pod is well, and not how soon a client finds another pod.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use weir_codec::{Packet, QoS};

use super::clients::{Field, PATIENCE};
use super::wire::Wire;

/// From one publish of a probe to its next. The probes of a shard take turns.
const PACE: Duration = Duration::from_millis(50);
/// A shard that is served has no longer gap, on a machine that is busy.
const SERVED: Duration = Duration::from_millis(200);
const RETRY: Duration = Duration::from_millis(20);
/// A connection that says nothing for so long is no good any more.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// When the probes of each shard were acknowledged, and at which pod, since this was asked for the last time.
#[derive(Debug, Default)]
pub(super) struct Probes {
    acknowledged: Mutex<Vec<Vec<(usize, Instant)>>>,
}

/// What a fault was to the shards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ShardOutages {
    /// Shards that were looked at.
    pub(super) of: usize,
    /// How long each was without service that was.
    pub(super) outages: Vec<Duration>,
}

/// The manifest of the stream that `shards` probes publish to.
pub(super) fn manifest(shards: usize) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Stream\nmetadata: {{ name: probes }}\n\
         spec:\n  topicFilter: probes/#\n  shards: {shards}\n"
    )
}

impl Probes {
    /// Probes of so many shards.
    pub(super) fn new(shards: usize) -> Self {
        Self { acknowledged: Mutex::new(vec![Vec::new(); shards]) }
    }

    /// How long each shard was without service from `from` until `now`, as all pods but `victim` have it.
    pub(super) fn take(&self, victim: Option<usize>, from: Instant, now: Instant) -> ShardOutages {
        let shards: Vec<_> = self.acknowledged.lock().iter_mut().map(std::mem::take).collect();
        let gap = |acknowledged: &Vec<(usize, Instant)>| {
            let elsewhere = acknowledged.iter().filter(|(pod, at)| Some(*pod) != victim && *at > from);
            let mut times: Vec<Instant> = elsewhere.map(|(_, at)| *at).chain([now]).collect();
            times.sort_unstable();
            let begins = std::iter::once(from).chain(times.iter().copied());
            begins.zip(&times).map(|(begin, end)| end.saturating_duration_since(begin)).max()
        };
        let outages = shards.iter().filter_map(gap).filter(|gap| *gap > SERVED).collect();
        ShardOutages { of: shards.len(), outages }
    }
}

/// The probe of `shard` at `pod`, for ever.
pub(super) async fn probe(field: Arc<Field>, shard: usize, pod: usize) {
    let mut number = 0;
    loop {
        // Whatever it ended with: it stays with its pod.
        let _: Result<()> = converse(&field, shard, pod, &mut number).await;
        sleep(RETRY).await;
    }
}

async fn converse(field: &Field, shard: usize, pod: usize, number: &mut u64) -> Result<()> {
    let door = field.doors.lock()[pod].context("the pod is not there")?;
    let connected = timeout(PATIENCE, Wire::connect(door, &format!("probe-{shard}-{pod}"), 0)).await;
    let mut wire = connected.context("no answer to CONNECT")??;
    let mut due = field.clock.now();
    loop {
        sleep_until(due).await;
        due = field.clock.now() + PACE;
        *number += 1;
        wire.publish(&format!("probes/{shard}"), QoS::AtLeastOnce, 1, false, &number.to_string()).await?;
        match timeout(SILENCE_MAX, wire.next()).await.context("no answer")?? {
            Packet::PubAck(ack) if !ack.reason.is_error() => {
                field.probes.acknowledged.lock()[shard].push((pod, field.clock.now()));
            }
            Packet::PubAck(_) => {}
            _ => bail!("no PUBACK"),
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_env::clock::Clock;

    use super::*;

    #[test]
    fn what_the_victim_says_is_no_service() {
        let start = Clock::system().now();
        let at = |millis| start + Duration::from_millis(millis);
        let probes = Probes::new(3);
        *probes.acknowledged.lock() = vec![
            // Served all the time.
            vec![(0, at(50)), (1, at(190)), (2, at(350)), (0, at(500))],
            // Served by the victim alone for a while, and before the fault.
            vec![(0, at(90)), (1, at(110)), (1, at(200)), (0, at(420))],
            Vec::new(),
        ];
        let outages = probes.take(Some(1), at(100), at(600));
        let millis = Duration::from_millis;
        assert_eq!(outages, ShardOutages { of: 3, outages: vec![millis(250), millis(320), millis(500)] });
        assert_eq!(probes.take(None, at(600), at(700)), ShardOutages { of: 3, outages: Vec::new() });
    }
}
