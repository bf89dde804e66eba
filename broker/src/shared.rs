//! What a member of a shared subscription leaves behind when its session ends goes to another member [MQTT 5,
//! 4.8.2]. Who is a member, and whose turn it is, the router knows.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use weir_codec::QoS;
use weir_core::inbox::{Completion, InboxAppend, InboxTarget};

use crate::broker::Broker;
use crate::convert;
use crate::mailbox::Letter;
use crate::metrics::Dropped;
use crate::router::Group;

impl Broker {
    /// Hands messages to other members of the groups they were for. One that has no other member is lost with its
    /// receiver, as on a subscription of its own.
    pub(crate) async fn hand_on(&self, letters: impl Iterator<Item = Letter>) {
        let mut completions = Vec::new();
        for letter in letters {
            for group in letter.shared.clone() {
                completions.extend(self.hand_to(&group, &letter).await);
            }
        }
        for completion in completions {
            if let Err(error) = completion.await {
                tracing::debug!(%error, "message of a shared subscription not stored for another member");
                self.metrics.messages_dropped.inc(Dropped::StoreFailed);
            }
        }
    }

    /// Gives the message to the next member, or puts it in line for that one's inbox.
    async fn hand_to(&self, group: &Arc<Group>, letter: &Letter) -> Option<Completion> {
        let (member, wish) = group.choose(&letter.message)?;
        let now = self.clock.now().into_std();
        let left = match letter.expires_at.map(|at| at.saturating_duration_since(now)) {
            Some(Duration::ZERO) => {
                self.metrics.messages_dropped.inc(Dropped::Expired);
                return None;
            }
            left => left,
        };
        let qos = letter.qos.min(wish.options.qos);
        let Some(incarnation) = member.incarnation.filter(|_| qos != QoS::AtMostOnce) else {
            let mut letter = letter.clone();
            letter.qos = qos;
            letter.retain &= wish.options.retain_as_published;
            letter.subscription_identifiers = wish.identifier.into_iter().collect();
            letter.shared = SmallVec::from_iter([Arc::clone(group)]);
            self.router.put(&member, letter);
            return None;
        };
        let mut message = convert::to_core(&letter.message, qos, false, None, self.clock.wall());
        message.expires_at = left.map(|left| self.clock.wall().saturating_add(left));
        let target = InboxTarget {
            client_id: member.client_id.clone(),
            incarnation,
            qos: qos.as_u8(),
            retain: letter.retain && wish.options.retain_as_published,
            subscription_ids: wish.identifier.into_iter().collect(),
        };
        let targets = SmallVec::from_iter([target]);
        let append = InboxAppend { message: Arc::new(message), targets, mark: None };
        // At shutdown nobody takes it any more.
        self.inbox_writer.append(append).await.ok()
    }
}
