//! Publishes on their way to live subscribers at other pods, and those that come from there.
//!
//! A publish goes in one hop from the pod that took it to each pod whose clients want it, which gives it to its own. What
//! is of QoS 0 is dropped and counted where it cannot go at once. Above that, its publisher waits, and is told when the
//! message is in line for each of the pods: until there is room, and while a link is down, until that is up again or the pod
//! is gone. So a slow pod costs those who publish what it wants, and nobody else. What is in line when a link breaks is lost
//! to clients there whose sessions end with their connections; what is for other sessions is in their inboxes already.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytestring::ByteString;
use futures_util::future::BoxFuture;
use weir_codec::QoS;
use weir_core::cluster::links::{PeerHandler, Reserved, TrySendError, Unreachable};
use weir_core::cluster::message::live::Forward;
use weir_core::cluster::message::{LiveMessage, PeerMessage};
use weir_core::keyspace::owner::PodId;
use weir_core::message::Message;

use super::Pods;
use crate::broker::{Broker, Inbound};
use crate::convert;
use crate::mailbox::Letter;
use crate::metrics::{Dropped, Metrics};
use crate::router::{Forwarded, Group, PodTarget, unplaced};

/// Longest wait for a link to a pod that is a member, in one go and as often as it breaks.
const LINK_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often a message of a group goes from pod to pod for want of a member.
const HOPS_MAX: u8 = 3;

/// A publish for other pods.
#[derive(Debug, Default)]
pub(crate) struct Forwards {
    /// There is room in line.
    ready: Vec<Reserved>,
    /// There is none, or no link.
    waiting: Vec<(PodId, Forward)>,
}

impl Forwards {
    /// Puts in line what has room.
    pub(crate) fn send(&mut self, metrics: &Metrics) {
        for message in self.ready.drain(..) {
            if message.send().is_err() {
                metrics.messages_dropped.inc(Dropped::PodUnreachable);
            }
        }
    }

    /// Whether something has to wait.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Waits until there is room for everything, or nobody there to have it.
    pub(crate) async fn wait(&mut self, broker: &Broker) {
        for (pod, forward) in std::mem::take(&mut self.waiting) {
            let reached = match &broker.pods {
                Some(pods) => pods.reach(pod, forward).await,
                None => None,
            };
            if reached.is_none() {
                broker.metrics.messages_dropped.inc(Dropped::PodUnreachable);
            }
            self.ready.extend(reached);
        }
    }
}

impl Pods {
    /// Room in line for `pod`: waits for it, and for a link. None if the pod is gone, or has no link for too long.
    async fn reach(&self, pod: PodId, forward: Forward) -> Option<Reserved> {
        let (mut up, mut members) = (self.links.link_events(), self.cluster.members());
        loop {
            up.borrow_and_update();
            let message = LiveMessage::Forward(forward.clone());
            match self.links.reserve(pod, message).await {
                Ok(reserved) => return Some(reserved),
                Err(Unreachable) => {
                    let is_up = async {
                        // Ends only with the links.
                        let _ = up.wait_for(|up| up.contains_key(&pod)).await;
                    };
                    let is_gone = async {
                        let _ = members.wait_for(|view| !view.contains(pod)).await;
                    };
                    tokio::select! {
                        () = is_up => {}
                        () = is_gone => return None,
                        () = tokio::time::sleep(LINK_WAIT_MAX) => return None,
                    }
                }
            }
        }
    }
}

impl Broker {
    /// Has a publish ready for the other pods in `targets`, as far as there is room.
    pub(crate) fn forwards(&self, targets: Vec<PodTarget>, inbound: &Inbound) -> Forwards {
        let mut forwards = Forwards::default();
        let Some(pods) = self.pods.as_ref().filter(|_| !targets.is_empty()) else { return forwards };
        let message = self.kept(inbound);
        for PodTarget { pod, groups } in targets {
            let publisher = Some(inbound.publisher.client_id.clone());
            let forward = Forward { message: Arc::clone(&message), publisher, groups, hops: 0 };
            match pods.links.try_reserve(pod, LiveMessage::Forward(forward.clone())) {
                Ok(reserved) => forwards.ready.push(reserved),
                Err(error) if inbound.qos == QoS::AtMostOnce => {
                    self.metrics.messages_dropped.inc(match error {
                        TrySendError::Full => Dropped::PodBusy,
                        TrySendError::Unreachable => Dropped::PodUnreachable,
                    });
                }
                Err(_) => forwards.waiting.push((pod, forward)),
            }
        }
        forwards
    }

    /// Gives a message of `group` for which there is no member here to a pod that has one. Whether there was one.
    pub(crate) async fn hand_to_pod(&self, group: &Arc<Group>, letter: &Letter) -> bool {
        let Some(pods) = self.pods.as_ref().filter(|_| letter.hops < HOPS_MAX) else { return false };
        let Some(pod) = group.other_pod(letter.qos) else { return false };
        let left = letter.expires_at.map(|at| at.saturating_duration_since(self.clock.now().into_std()));
        let now = self.clock.wall();
        let message = convert::to_core(&letter.message, letter.qos, letter.retain, None, now);
        let expires_at = left.map(|left| now.saturating_add(left));
        let forward = Forward {
            message: Arc::new(Message { expires_at, ..message }),
            publisher: None,
            groups: vec![group.text().clone()],
            hops: letter.hops + 1,
        };
        let reached = pods.reach(pod, forward).await;
        reached.is_some_and(|reserved| reserved.send().is_ok())
    }

    /// Gives a publish of another pod to live subscribers here.
    fn take_forwarded(self: &Arc<Self>, forward: &Forward) {
        let Forward { message, publisher, groups, hops } = forward;
        let (wire, qos) = (convert::to_wire(message), convert::qos(message.qos));
        let expires_at = convert::expires_at(self.clock, message.expires_at);
        let publisher = publisher.as_ref().map(|publisher: &ByteString| &**publisher);
        let forwarded = Forwarded { publisher, groups, hops: *hops };
        let (matched, left) = self.router.matches_forwarded(&wire, qos, message.retain, forwarded);
        self.deliver_to(&matched, &wire, expires_at, &tracing::Span::none());
        if left.is_empty() {
            return;
        }
        let letters: Vec<Letter> = left
            .iter()
            .map(|group| unplaced(group, &wire, (qos, message.retain), expires_at, *hops))
            .collect();
        let broker = Arc::clone(self);
        self.tasks.spawn(async move { broker.hand_on(letters.into_iter(), Duration::ZERO).await });
    }
}

/// Takes publishes of other pods.
#[derive(Debug)]
pub(crate) struct LiveHandler {
    broker: Weak<Broker>,
}

impl LiveHandler {
    pub(crate) fn new(broker: &Arc<Broker>) -> Self {
        Self { broker: Arc::downgrade(broker) }
    }
}

impl PeerHandler for LiveHandler {
    fn handle(&self, _from: PodId, message: PeerMessage) -> BoxFuture<'_, ()> {
        // Its lane brings nothing else.
        if let (Some(broker), PeerMessage::Live(LiveMessage::Forward(forward))) =
            (self.broker.upgrade(), message)
        {
            broker.take_forwarded(&forward);
        }
        Box::pin(std::future::ready(()))
    }
}
