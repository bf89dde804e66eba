//! Follows what other pods do to sessions: the router knows the routes of all persistent sessions, wherever their clients
//! are, and connections end whose clients have come to another pod. Knows the change feed; the router and the table of
//! persistent sessions own what it brings.

use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use weir_core::Result;
use weir_core::cluster::{Change, FeedEvent, FeedReceiver, Topic};
use weir_core::keyspace::change::SessionPhase;
use weir_core::keyspace::session::{Incarnation, SessionEpoch, StoredSubscription};
use weir_core::sessions::EndedSession;
use weir_storage::Version;
use weir_topic::Subscription;

use super::takeover::Elsewhere;
use crate::broker::{Broker, wish_of};

/// What of the feed is followed.
const TOPICS: &[Topic] = &[Topic::Routes, Topic::Sessions];
/// Changes applied before those count as known.
const EVENTS_MAX: usize = 1_000;
/// Wait before a store that failed is read again.
const RETRY_WAIT: Duration = Duration::from_millis(500);
/// Sessions looked up at once.
const LOOKUPS: usize = 32;

/// The task that follows sessions and their routes.
pub(crate) struct SessionFollower {
    broker: Arc<Broker>,
    elsewhere: Arc<Elsewhere>,
    receiver: FeedReceiver,
    /// Counts how often all routes were read.
    reading: u64,
    looking: Option<AbortOnDropHandle<()>>,
}

/// Has connections end whose sessions another pod has opened since, of which this one did not hear.
async fn look_for_lost(broker: Arc<Broker>, elsewhere: Arc<Elsewhere>) {
    let open = futures_util::stream::iter(elsewhere.holds.open());
    let look = async |(client, incarnation, epoch): (ByteString, Incarnation, SessionEpoch)| {
        let holder = loop {
            match broker.sessions.holder(&client).await {
                Ok(holder) => break holder,
                Err(error) => {
                    tracing::debug!(%error, "look up where a session is open");
                    tokio::time::sleep(RETRY_WAIT).await;
                }
            }
        };
        if holder.is_none_or(|holder| (holder.incarnation, holder.epoch) != (incarnation, epoch)) {
            elsewhere.holds.evict(&client, incarnation, epoch);
        }
    };
    open.for_each_concurrent(LOOKUPS, look).await;
}

impl SessionFollower {
    /// Reads the routes there are; what changes from then on comes with [`Self::run`]. None without other pods.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) async fn start(broker: &Arc<Broker>) -> Result<Option<(Self, usize)>> {
        let Some(elsewhere) = broker.elsewhere.clone() else { return Ok(None) };
        let mut receiver = elsewhere.cluster.feed().subscribe(TOPICS);
        // The first event says to read all, once.
        drop(receiver.next().await);
        let mut follower =
            Self { broker: Arc::clone(broker), elsewhere, receiver, reading: 0, looking: None };
        let count = follower.reload().await?;
        Ok(Some((follower, count)))
    }

    /// Follows the feed until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while let Some(events) = stop.run_until_cancelled(self.receiver.next_many(EVENTS_MAX)).await {
            for event in events {
                match event {
                    FeedEvent::Reload { .. } => {
                        while let Err(error) = self.reload().await {
                            tracing::warn!(%error, "routes of sessions at other pods wait: the store does not answer");
                            if stop.run_until_cancelled(tokio::time::sleep(RETRY_WAIT)).await.is_none() {
                                return;
                            }
                        }
                    }
                    FeedEvent::Change { version, change } => self.apply(version, &change),
                }
            }
            // A message that was retained before a route was known is retained once that counts as known: whoever
            // subscribes gets it one way or the other.
            let retained = &self.broker.retained;
            retained.caught_up(&retained.line_end()).await;
        }
    }

    /// Reads all routes. Which pods have opened sessions meanwhile is looked up beside it, of those that are open here.
    async fn reload(&mut self) -> Result<usize> {
        let looking = look_for_lost(Arc::clone(&self.broker), Arc::clone(&self.elsewhere));
        self.looking = Some(AbortOnDropHandle::new(self.broker.tasks.spawn(looking)));
        self.reading += 1;
        self.broker.sessions.follow_anew();
        let count = self.broker.load_routes(self.reading).await?;
        let (filters, sessions) = self.broker.persistent.not_met(self.reading);
        for (subscriber, filter) in filters {
            if let Ok(from) = Subscription::parse(filter.clone()) {
                self.broker.router.unsubscribe(subscriber.id, &filter, &from);
            }
        }
        for subscriber in sessions {
            let _ = subscriber
                .incarnation
                .and_then(|session| self.broker.persistent.remove(&subscriber.client_id, session));
        }
        Ok(count)
    }

    fn apply(&self, version: Version, change: &Change) {
        self.broker.sessions.follow(change);
        match change {
            Change::Route { pod, client, incarnation, filter, subscription } => {
                let is_own = *pod == self.elsewhere.cluster.me();
                self.note_route(client, *incarnation, filter, subscription.as_ref());
                if !is_own && self.broker.persistent.is_news(client, *incarnation, version) {
                    self.route((client, *incarnation), filter, subscription.as_ref());
                }
            }
            Change::Session { pod, client, incarnation, now, .. } => match now {
                SessionPhase::Clean | SessionPhase::Connected => {
                    if *pod != self.elsewhere.cluster.me() {
                        self.elsewhere.holds.lose(client, version);
                    }
                }
                SessionPhase::Away => {}
                SessionPhase::Ended => self.broker.forget(&EndedSession {
                    client_id: client.clone(),
                    incarnation: *incarnation,
                    filters: Vec::new(),
                }),
            },
            Change::PodJoined(_)
            | Change::PodChanged(_)
            | Change::PodGone(_)
            | Change::Owner { .. }
            | Change::Interest { .. }
            | Change::Catalog { .. } => {}
        }
    }

    fn note_route(
        &self,
        client: &ByteString,
        incarnation: Incarnation,
        filter: &ByteString,
        subscription: Option<&StoredSubscription>,
    ) {
        match subscription {
            Some(_) => {
                self.broker.persistent_subscriber(client, incarnation);
                self.broker.persistent.note_filter(client, incarnation, filter, self.reading);
            }
            None => self.broker.persistent.forget_filter(client, incarnation, filter),
        }
    }

    fn route(
        &self,
        (client, incarnation): (&ByteString, Incarnation),
        filter: &ByteString,
        subscription: Option<&StoredSubscription>,
    ) {
        let Ok(subscribed) = Subscription::parse(filter.clone()) else { return };
        let broker = &self.broker;
        if let Some(stored) = subscription {
            let subscriber = broker.persistent_subscriber(client, incarnation);
            broker.router.subscribe(&subscriber, filter, &subscribed, wish_of(stored));
        } else if let Some(subscriber) = broker.persistent.find(client, incarnation) {
            broker.router.unsubscribe(subscriber.id, filter, &subscribed);
        }
    }
}
