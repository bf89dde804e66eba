//! Publishers whose last message is retained, one after the other on a topic of each, and what is retained in the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::time::{sleep, timeout};
use weir_codec::{Packet, QoS};

use super::clients::{Field, PATIENCE};
use super::wire::{Wire, ack};

/// From one publish of a keeper to its next.
const PACE: Duration = Duration::from_millis(50);
/// Wait before the next pod is tried.
const RETRY: Duration = Duration::from_millis(20);
/// Attempts at reading what is retained.
const READS_MAX: usize = 10;

/// What one keeper knows of its topic.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    /// The last number that was sent, and the last that was acknowledged; 0 is none.
    pub(super) sent: u64,
    pub(super) acknowledged: u64,
}

impl Kept {
    /// What is wrong with `found` being retained in the end, if it is.
    pub(super) fn is_wrong(self, found: Option<u64>) -> bool {
        !(self.acknowledged..=self.sent).contains(&found.unwrap_or(0))
    }
}

fn topic(n: usize) -> String {
    format!("kept/{n}")
}

/// Keeper `n`, until there is enough and its last publish is acknowledged.
pub(super) async fn keep(field: Arc<Field>, n: usize) {
    for attempt in n.. {
        // What has no answer is sent again by way of another pod.
        if keep_on(&field, n, attempt).await.is_ok() {
            return;
        }
        sleep(RETRY).await;
    }
}

async fn keep_on(field: &Field, n: usize, attempt: usize) -> Result<()> {
    let mut wire = field.connect(&format!("keeper-{n}"), attempt, 0).await?;
    let mut dup = true;
    loop {
        let number = {
            let mut ledger = field.ledger.lock();
            let kept = ledger.kept.entry(topic(n)).or_default();
            if kept.sent == kept.acknowledged {
                if field.enough.is_cancelled() {
                    return Ok(());
                }
                (kept.sent, dup) = (kept.sent + 1, false);
            }
            kept.sent
        };
        let id = u16::try_from(number % 60_000).unwrap_or(0) + 1;
        wire.publish_retained(&topic(n), id, dup, &number.to_string()).await?;
        let answer = async {
            loop {
                match wire.next().await? {
                    Packet::PubAck(answer) => break Ok(answer.reason),
                    Packet::Disconnect(disconnect) => bail!("disconnected with {:?}", disconnect.reason),
                    _ => {}
                }
            }
        };
        let reason = timeout(PATIENCE, answer).await.context("no answer")??;
        ensure!(!reason.is_error(), "a retained publish was refused with {reason:?}");
        field.ledger.lock().kept.entry(topic(n)).or_default().acknowledged = number;
        sleep(PACE).await;
    }
}

/// The numbers that are retained, by topic.
pub(super) async fn read(field: &Field) -> Result<BTreeMap<String, u64>> {
    let expected = field.ledger.lock().kept.len();
    let mut last = None;
    for attempt in 0..READS_MAX {
        match read_once(field, attempt, expected).await {
            Ok(found) => return Ok(found),
            Err(error) => last = Some(error),
        }
        sleep(RETRY).await;
    }
    Err(last.context("an error")?.context("read what is retained"))
}

async fn read_once(field: &Field, attempt: usize, expected: usize) -> Result<BTreeMap<String, u64>> {
    let mut wire: Wire = field.connect(&format!("kept-reader-{attempt}"), attempt, 0).await?;
    let mut found = BTreeMap::new();
    let subscribed = wire.subscribe("kept/#", QoS::AtLeastOnce, None);
    let mut packets = timeout(PATIENCE * 5, subscribed).await.context("no SUBACK")??;
    loop {
        for packet in packets.drain(..) {
            let Packet::Publish(publish) = packet else { continue };
            let topic = publish.topic.context("a topic")?.as_str().to_owned();
            found.insert(topic, std::str::from_utf8(&publish.payload)?.parse()?);
            wire.send(&Packet::PubAck(ack(publish.header.packet_id.context("a packet id")?))).await?;
        }
        if found.len() >= expected {
            return Ok(found);
        }
        match timeout(PATIENCE * 2, wire.next()).await {
            Ok(packet) => packets.push(packet?),
            // What is missing the audit tells.
            Err(_) => return Ok(found),
        }
    }
}
