//! What a member of a shared subscription leaves behind when its session ends with its connection goes to another
//! member that has room [MQTT 5, 4.8.2]. A persistent session keeps what its inbox holds, which ends with it. Who is a member, and whose turn it is, the router knows.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use weir_codec::QoS;
use weir_core::inbox::{Completion, InboxAppend, InboxTarget};
use weir_core::keyspace::session::Incarnation;
use weir_env::clock::Instant;

use crate::broker::Broker;
use crate::convert;
use crate::mailbox::{Letter, size_of};
use crate::metrics::Dropped;
use crate::router::{Group, Subscriber, Wish};

/// Messages for inboxes that are in line at the same time.
const AT_ONCE: usize = 64;
/// Wait before the members are asked for room again.
const ROOM_WAIT: Duration = Duration::from_millis(10);

impl Broker {
    /// Hands messages to other members of the groups they were for, within `patience` for all of them. One that has
    /// no other member is lost with its receiver, as on a subscription of its own; one for which no member has room
    /// is dropped and counted, and costs no member anything. While others may take this pod's place, so is what is of QoS 2:
    /// its publisher may have sent it again by way of another pod.
    pub(crate) async fn hand_on(&self, letters: impl Iterator<Item = Letter>, patience: Duration) {
        let give_up_at = self.clock.now() + patience;
        let mut completions = Vec::new();
        for letter in letters {
            if letter.qos == QoS::ExactlyOnce && self.is_quiet() {
                self.metrics.messages_dropped.inc(Dropped::Quiet);
                continue;
            }
            for group in &letter.shared {
                completions.extend(self.hand_to(group, &letter, give_up_at).await);
            }
            if completions.len() >= AT_ONCE {
                self.settle_handed_on(&mut completions).await;
            }
            // They take what they have been given.
            tokio::task::yield_now().await;
        }
        self.settle_handed_on(&mut completions).await;
    }

    /// Hands messages to other members while others go on, as far as there is room for them among what is under way; the others are
    /// dropped and counted.
    pub(crate) fn hand_on_later(self: &Arc<Self>, letters: impl IntoIterator<Item = Letter>) {
        let enter = |letter: Letter| match self.under_way.try_enter(size_of(&letter.message)) {
            Some(guard) => Some((letter, guard)),
            None => {
                self.metrics.messages_dropped.inc(Dropped::OutboxFull);
                None
            }
        };
        let (letters, guards): (Vec<_>, Vec<_>) = letters.into_iter().filter_map(enter).unzip();
        if letters.is_empty() {
            return;
        }
        let broker = Arc::clone(self);
        self.tasks.spawn(async move {
            broker.hand_on(letters.into_iter(), Duration::ZERO).await;
            drop(guards);
        });
    }

    async fn settle_handed_on(&self, completions: &mut Vec<Completion>) {
        for completion in completions.drain(..) {
            if let Err(error) = completion.await {
                tracing::debug!(%error, "message of a shared subscription not stored for another member");
                self.metrics.messages_dropped.inc(Dropped::StoreFailed);
            }
        }
    }

    /// Gives the message to the next member with room, or puts it in line for that one's inbox.
    async fn hand_to(&self, group: &Arc<Group>, letter: &Letter, give_up_at: Instant) -> Option<Completion> {
        loop {
            let now = self.clock.now();
            if letter.expires_at.is_some_and(|at| at <= now.into_std()) {
                self.metrics.messages_dropped.inc(Dropped::Expired);
                return None;
            }
            if let Some((member, wish)) = self.router.heir(group, &letter.message, letter.qos) {
                let qos = letter.qos.min(wish.options.qos);
                if let Some(incarnation) = member.incarnation.filter(|_| qos != QoS::AtMostOnce) {
                    let append = self.inherited(letter, qos, incarnation, &member, wish);
                    // At shutdown nobody takes it any more.
                    return self.inbox_writer.append(append).await.ok();
                }
                let letter = Letter {
                    qos,
                    retain: letter.retain && wish.options.retain_as_published,
                    subscription_identifiers: wish.identifier.into_iter().collect(),
                    shared: SmallVec::from_iter([Arc::clone(group)]),
                    ..letter.clone()
                };
                if self.router.offer(&member, letter) {
                    return None;
                }
            }
            if self.hand_to_pod(group, letter).await || group.is_empty() {
                return None;
            }
            if now >= give_up_at {
                self.metrics.messages_dropped.inc(Dropped::OutboxFull);
                return None;
            }
            tokio::time::sleep(ROOM_WAIT).await;
        }
    }

    /// The message as it goes to the inbox of `member`.
    fn inherited(
        &self,
        letter: &Letter,
        qos: QoS,
        incarnation: Incarnation,
        member: &Subscriber,
        wish: Wish,
    ) -> InboxAppend {
        let left = letter.expires_at.map(|at| at.saturating_duration_since(self.clock.now().into_std()));
        let mut message = convert::to_core(&letter.message, qos, false, None, self.clock.wall());
        message.expires_at = left.map(|left| self.clock.wall().saturating_add(left));
        let target = InboxTarget {
            client_id: member.client_id.clone(),
            incarnation,
            qos: qos.as_u8(),
            retain: letter.retain && wish.options.retain_as_published,
            subscription_ids: wish.identifier.into_iter().collect(),
        };
        InboxAppend {
            message: Arc::new(message),
            targets: SmallVec::from_iter([target]),
            mark: None,
            noted: None,
        }
    }
}
