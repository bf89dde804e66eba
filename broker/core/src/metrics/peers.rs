//! What goes to other pods and comes from them, by pod.
//!
//! Pods come and go under ever new ids, so there is a bound: the first [`PEERS_NAMED_MAX`] have series of their own, all
//! others share those of [`OTHERS`]. The series of a pod go when it is no member any more.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::names::Names;
use crate::cluster::message::Lane;
use crate::keyspace::owner::PodId;

/// Pods with series of their own.
pub const PEERS_NAMED_MAX: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabels {
    peer: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabels {
    peer: Arc<str>,
    lane: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;

/// What links to other pods carry. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct PeerMetrics {
    /// Links that are up.
    pub up: Gauge,
    /// Messages dropped because nobody handles them here: of a newer version.
    pub unhandled: Counter,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    names: Names<PeerSeries>,
    families: Families,
}

#[derive(Clone, Debug, Default)]
struct Families {
    sent_messages: Family<LaneLabels, Counter>,
    sent_bytes: Family<LaneLabels, Counter>,
    received_messages: Family<LaneLabels, Counter>,
    received_bytes: Family<LaneLabels, Counter>,
    queued_bytes: Family<LaneLabels, Gauge>,
    waits: Family<LaneLabels, Counter>,
    refusals: Family<LaneLabels, Counter>,
    links: Family<PeerLabels, Counter>,
    round_trip: Family<PeerLabels, Seconds>,
}

/// The series of one lane.
#[derive(Debug)]
pub(crate) struct LaneSeries {
    pub(crate) sent_messages: Counter,
    pub(crate) sent_bytes: Counter,
    pub(crate) received_messages: Counter,
    pub(crate) received_bytes: Counter,
    pub(crate) queued_bytes: Gauge,
    pub(crate) waits: Counter,
    pub(crate) refusals: Counter,
}

/// The series of one pod; removed when they are dropped.
#[derive(Debug)]
pub(crate) struct PeerSeries {
    inner: std::sync::Weak<Inner>,
    label: Arc<str>,
    pub(crate) lanes: [LaneSeries; Lane::COUNT],
    pub(crate) links: Counter,
    pub(crate) round_trip: Seconds,
}

impl Default for Inner {
    fn default() -> Self {
        Self { names: Names::new(PEERS_NAMED_MAX), families: Families::default() }
    }
}

impl PeerMetrics {
    /// Makes the series part of `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let families = &self.inner.families;
        registry.register("peers_up", "Links to other pods that are up", self.up.clone());
        registry.register(
            "peer_unhandled",
            "Messages of other pods dropped because nobody handles them here",
            self.unhandled.clone(),
        );
        for (name, help, family) in [
            ("peer_sent_messages", "Messages sent to another pod", &families.sent_messages),
            ("peer_sent_bytes", "Bytes of messages sent to another pod", &families.sent_bytes),
            ("peer_received_messages", "Messages received from another pod", &families.received_messages),
            ("peer_received_bytes", "Bytes of messages received from another pod", &families.received_bytes),
            (
                "peer_waits",
                "Messages that waited for room in what is in line for another pod",
                &families.waits,
            ),
            (
                "peer_refused",
                "Messages refused because too much was in line for another pod",
                &families.refusals,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
        registry.register(
            "peer_queued_bytes",
            "Bytes of messages in line for another pod",
            families.queued_bytes.clone(),
        );
        registry.register("peer_links", "Times that a link to another pod came up", families.links.clone());
        registry.register_with_unit(
            "peer_round_trip",
            "How long another pod last took to answer a ping",
            Unit::Seconds,
            families.round_trip.clone(),
        );
    }

    /// The series of `pod`.
    pub(crate) fn of(&self, pod: PodId) -> Arc<PeerSeries> {
        let inner = &self.inner;
        inner.names.get(&pod.to_string(), |label| inner.families.series(label, Arc::downgrade(inner)))
    }
}

impl Families {
    fn series(&self, label: Arc<str>, inner: std::sync::Weak<Inner>) -> PeerSeries {
        let peer = PeerLabels { peer: Arc::clone(&label) };
        let lanes = Lane::ALL.map(|lane| {
            let labels = LaneLabels { peer: Arc::clone(&label), lane: lane.name() };
            LaneSeries {
                sent_messages: self.sent_messages.get_or_create_owned(&labels),
                sent_bytes: self.sent_bytes.get_or_create_owned(&labels),
                received_messages: self.received_messages.get_or_create_owned(&labels),
                received_bytes: self.received_bytes.get_or_create_owned(&labels),
                queued_bytes: self.queued_bytes.get_or_create_owned(&labels),
                waits: self.waits.get_or_create_owned(&labels),
                refusals: self.refusals.get_or_create_owned(&labels),
            }
        });
        let links = self.links.get_or_create_owned(&peer);
        let round_trip = self.round_trip.get_or_create_owned(&peer);
        PeerSeries { inner, label, lanes, links, round_trip }
    }

    fn remove(&self, label: &Arc<str>) {
        let peer = PeerLabels { peer: Arc::clone(label) };
        self.links.remove(&peer);
        self.round_trip.remove(&peer);
        for lane in Lane::ALL {
            let labels = LaneLabels { peer: Arc::clone(label), lane: lane.name() };
            for family in [
                &self.sent_messages,
                &self.sent_bytes,
                &self.received_messages,
                &self.received_bytes,
                &self.waits,
                &self.refusals,
            ] {
                family.remove(&labels);
            }
            self.queued_bytes.remove(&labels);
        }
    }
}

impl Drop for PeerSeries {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.names.release(&self.label, || inner.families.remove(&self.label));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn series_are_bounded_and_go_with_their_pod() {
        let (metrics, mut registry) = (PeerMetrics::default(), Registry::default());
        metrics.register(&mut registry);
        let pods: Vec<_> =
            (0..=PEERS_NAMED_MAX).map(|n| metrics.of(PodId((n as u128).to_be_bytes()))).collect();
        for series in &pods {
            series.links.inc();
        }
        let shown = text(&registry);
        assert_eq!(shown.matches("peer_links_total{").count(), PEERS_NAMED_MAX + 1);
        assert!(shown.contains(r#"peer_links_total{peer="_other"} 1"#), "{shown}");
        drop(pods);
        assert!(!text(&registry).contains("{peer="), "series are left");
    }
}
