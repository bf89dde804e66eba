//! A publish can be followed: to its commit, its deliveries and their acknowledgements.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry};
use weir_codec::Packet;

use super::client::{AtLeastOnce, V5, clean};
use super::{DEADLINE, TestBroker, memory, queue};

#[derive(Debug)]
struct Seen {
    name: &'static str,
    parent: Option<u64>,
    topic: Option<String>,
    open: bool,
}

/// Notes every span of the process, of whichever test.
#[derive(Clone, Default)]
struct Spans {
    seen: Arc<Mutex<BTreeMap<u64, Seen>>>,
    changed: Arc<Notify>,
}

struct Topic(Option<String>);

impl Visit for Topic {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "topic" {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut topic = Topic(None);
        attributes.record(&mut topic);
        let parent = context.span(id).and_then(|span| span.parent()).map(|parent| parent.id().into_u64());
        let name = attributes.metadata().name();
        // Ids are used again: a new span takes the place of a closed one that nobody looks for.
        self.seen.lock().insert(id.into_u64(), Seen { name, parent, topic: topic.0, open: true });
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        if let Some(seen) = self.seen.lock().get_mut(&id.into_u64()) {
            seen.open = false;
        }
        self.changed.notify_waiters();
    }
}

impl Spans {
    fn installed() -> &'static Self {
        static SPANS: OnceLock<Spans> = OnceLock::new();
        SPANS.get_or_init(|| {
            let spans = Self::default();
            let subscriber = Registry::default().with(spans.clone());
            tracing::subscriber::set_global_default(subscriber).unwrap();
            spans
        })
    }

    /// Names of what hangs below the publish to `topic`, and whether any of it is still open.
    fn below(&self, topic: &str) -> Option<(Vec<&'static str>, bool)> {
        let seen = self.seen.lock();
        let (root, publish) =
            seen.iter().find(|(_, span)| span.name == "publish" && span.topic.as_deref() == Some(topic))?;
        let children: Vec<&Seen> = seen.values().filter(|span| span.parent == Some(*root)).collect();
        let open = publish.open || children.iter().any(|span| span.open);
        let mut names: Vec<&str> = children.iter().map(|span| span.name).collect();
        names.sort_unstable();
        Some((names, open))
    }

    async fn wait_for(&self, topic: &str, wanted: (&[&'static str], bool)) {
        let reached = async {
            loop {
                let changed = self.changed.notified();
                let below = self.below(topic);
                if below.as_ref().is_some_and(|(names, open)| (names.as_slice(), *open) == wanted) {
                    return;
                }
                // Openings are not announced: look again now and then.
                let _ = tokio::time::timeout(std::time::Duration::from_millis(20), changed).await;
            }
        };
        let reached = tokio::time::timeout(DEADLINE, reached).await;
        assert!(reached.is_ok(), "{topic}: {:?}, not {wanted:?}", self.below(topic));
    }
}

#[tokio::test]
async fn a_publish_is_followed_to_its_commit_its_deliveries_and_their_acknowledgements() {
    let spans = Spans::installed();
    let broker = TestBroker::start_on(&memory()).await;
    broker.declare(&[queue("traced", "traced/#")]).await;
    let mut live = broker.subscriber("live", "traced/#", AtLeastOnce).await;
    let mut consumer = broker.subscriber("consumer", "$queue/traced", AtLeastOnce).await;
    let mut publisher = broker.connect(clean("publisher", V5)).await;
    assert!(!publisher.publish("traced/1", "x").await.is_error());
    let mut received = Vec::new();
    for client in [&mut live, &mut consumer] {
        match client.recv().await {
            Packet::Publish(publish) => received.push(*publish),
            other => panic!("{other:?}"),
        }
    }
    let all: &[&str] = &["commit", "deliver", "deliver"];
    spans.wait_for("traced/1", (all, true)).await;
    live.puback(&received[0], weir_codec::ReasonCode::Success).await;
    consumer.puback(&received[1], weir_codec::ReasonCode::Success).await;
    spans.wait_for("traced/1", (all, false)).await;
}
