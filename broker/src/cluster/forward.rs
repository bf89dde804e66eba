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
use futures_util::future::{BoxFuture, join_all};
use weir_codec::QoS;
use weir_core::cluster::links::{PeerHandler, TrySendError, Unreachable};
use weir_core::cluster::message::live::Forward;
use weir_core::cluster::message::{LiveMessage, PeerMessage};
use weir_core::keyspace::owner::PodId;
use weir_core::message::Message;

use super::Pods;
use crate::broker::{Broker, Inbound};
use crate::convert;
use crate::mailbox::Letter;
use crate::metrics::Dropped;
use crate::router::{Forwarded, Group, PodTarget, unplaced};

/// Longest wait for a link to a pod that is a member, in one go and as often as it breaks.
const LINK_WAIT_MAX: Duration = Duration::from_secs(5);
/// Longest wait for room in all lines at once.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(1);
/// How often that is looked for.
const ROOM_LOOK: Duration = Duration::from_millis(5);
/// How often a message of a group goes from pod to pod for want of a member.
const HOPS_MAX: u8 = 3;

/// A publish for other pods, until it is in line for each. Takes no room in any line before it goes: who waits holds up
/// nobody else.
#[derive(Debug, Default)]
pub(crate) struct Forwards(Vec<(PodId, Forward)>);

impl Forwards {
    /// Whether it is for any other pod, or is still to go to one.
    pub(crate) const fn is_waiting(&self) -> bool {
        !self.0.is_empty()
    }

    /// Puts it in line where there is room. Of QoS 0 it is dropped where there is none.
    pub(crate) fn send(&mut self, broker: &Broker, qos: QoS) {
        let Some(pods) = &broker.pods else { return };
        self.0.retain(|(pod, forward)| {
            match pods.links.try_send(*pod, LiveMessage::Forward(forward.clone())) {
                Ok(()) => false,
                Err(error) if qos == QoS::AtMostOnce => {
                    broker.metrics.messages_dropped.inc(match error {
                        TrySendError::Full => Dropped::PodBusy,
                        TrySendError::Unreachable => Dropped::PodUnreachable,
                    });
                    false
                }
                Err(_) => true,
            }
        });
    }

    /// Whether there is room for it everywhere.
    pub(crate) fn has_room(&self, broker: &Broker) -> bool {
        broker.pods.as_ref().is_none_or(|pods| {
            let mut all = self.0.iter();
            all.all(|(pod, forward)| pods.has_room(*pod, forward) == Some(true))
        })
    }

    /// Waits until there is room for it everywhere, so that it goes to all at once. Not for long where a line is full; a pod
    /// to which there is no link for too long does not get it.
    pub(crate) async fn await_room(&mut self, broker: &Broker) {
        let Some(pods) = &broker.pods else { return };
        let began = broker.clock.now();
        loop {
            let waited = broker.clock.now().saturating_duration_since(began);
            let (view, mut is_ready) = (pods.cluster.view(), true);
            self.0.retain(|(pod, forward)| {
                let (is_patient, keeps) = match pods.has_room(*pod, forward) {
                    Some(true) => (false, true),
                    Some(false) => (waited < ROOM_WAIT_MAX, true),
                    None => {
                        let is_patient = waited < LINK_WAIT_MAX && view.contains(*pod);
                        (is_patient, is_patient)
                    }
                };
                is_ready &= !is_patient;
                if !keeps {
                    broker.metrics.messages_dropped.inc(Dropped::PodUnreachable);
                }
                keeps
            });
            if is_ready {
                return;
            }
            tokio::time::sleep(ROOM_LOOK).await;
        }
    }

    /// Waits until it is in line everywhere, or nobody is there to have it.
    pub(crate) async fn wait(&mut self, broker: &Broker) {
        let Some(pods) = &broker.pods else { return };
        let sent = std::mem::take(&mut self.0).into_iter().map(|(pod, forward)| async move {
            if !pods.send(pod, forward).await {
                broker.metrics.messages_dropped.inc(Dropped::PodUnreachable);
            }
        });
        join_all(sent).await;
    }
}

impl Pods {
    fn has_room(&self, pod: PodId, forward: &Forward) -> Option<bool> {
        self.links.has_room(pod, LiveMessage::Forward(forward.clone()))
    }

    /// Puts a message in line for `pod`: waits for room, and for a link. False if the pod is gone, or has no link for too
    /// long.
    async fn send(&self, pod: PodId, forward: Forward) -> bool {
        let (mut up, mut members) = (self.links.link_events(), self.cluster.members());
        loop {
            up.borrow_and_update();
            match self.links.send(pod, LiveMessage::Forward(forward.clone())).await {
                Ok(()) => return true,
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
                        () = is_gone => return false,
                        () = tokio::time::sleep(LINK_WAIT_MAX) => return false,
                    }
                }
            }
        }
    }
}

impl Broker {
    /// A publish for the other pods in `targets`.
    pub(crate) fn forwards(&self, targets: Vec<PodTarget>, inbound: &Inbound) -> Forwards {
        if targets.is_empty() || self.pods.is_none() {
            return Forwards::default();
        }
        let message = self.kept(inbound);
        let forward = |PodTarget { pod, groups }| {
            let publisher = Some(inbound.publisher.client_id.clone());
            (pod, Forward { message: Arc::clone(&message), publisher, groups, hops: 0 })
        };
        Forwards(targets.into_iter().map(forward).collect())
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
        pods.send(pod, forward).await
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
        let letters =
            left.iter().map(|group| unplaced(group, &wire, (qos, message.retain), expires_at, *hops));
        self.hand_on_later(letters);
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
