//! What the session asks of the broker, in the order in which it asks.
//!
//! Most events wait for nothing and are handled at once. From the first that may have to wait the rest go the slower way,
//! in a future of its own: a connection is as large as what it can wait in.

use weir_codec::QoS;
use weir_session::Event;

use super::publish::Enqueued;
use super::{Connection, Tag};

/// An event that may have to wait, or what is left of it.
enum Waiting {
    Event(Event<Tag>),
    Enqueue(Enqueued),
    /// Queues are to be told of room.
    Kick,
}

impl Connection {
    pub(super) async fn handle_events(&mut self) {
        if let Some(waiting) = self.handle_quick_events() {
            Box::pin(self.handle_waiting(waiting)).await;
        }
    }

    /// Handles events up to one that may have to wait.
    fn handle_quick_events(&mut self) -> Option<Waiting> {
        let mut allowed = None;
        while let Some(event) = self.session.poll_event() {
            let waiting = match event {
                // It must be noted first.
                Event::Publish { qos, .. } if self.stored.persistent && qos == QoS::ExactlyOnce => {
                    Some(Waiting::Event(event))
                }
                Event::Publish { .. } if *allowed.get_or_insert_with(|| self.refresh_access()) => {
                    self.handle_publish(event).map(Waiting::Enqueue)
                }
                Event::Acked { tag: Tag::Queue { .. }, .. } => Some(Waiting::Event(event)),
                Event::Acked { packet_id, tag, .. } => {
                    self.note_acked(packet_id, &tag).then_some(Waiting::Kick)
                }
                Event::Auth { begins, data } => {
                    self.handle_auth(begins, data);
                    None
                }
                Event::Closed(closed) => {
                    self.closed = Some(closed);
                    None
                }
                Event::Publish { .. } => None,
                Event::Release { .. }
                | Event::Received { .. }
                | Event::Subscribe(_)
                | Event::Unsubscribe(_) => Some(Waiting::Event(event)),
            };
            if waiting.is_some() {
                return waiting;
            }
        }
        None
    }

    /// Handles an event that may have to wait, and all behind it.
    async fn handle_waiting(&mut self, waiting: Waiting) {
        let mut first = None;
        match waiting {
            Waiting::Event(event) => first = Some(event),
            Waiting::Enqueue(enqueued) => self.enqueue(enqueued).await,
            Waiting::Kick => self.kick_queues().await,
        }
        // Publishes from one on that must be noted first. Others wait for nothing.
        let mut publishes = Vec::new();
        let mut allowed = None;
        let mut releases = Vec::new();
        let mut received = Vec::new();
        while let Some(event) = first.take().or_else(|| self.session.poll_event()) {
            match event {
                Event::Publish { qos, .. }
                    if !publishes.is_empty() || self.stored.persistent && qos == QoS::ExactlyOnce =>
                {
                    publishes.push(event);
                }
                Event::Publish { .. } => {
                    if *allowed.get_or_insert_with(|| self.refresh_access())
                        && let Some(enqueued) = self.handle_publish(event)
                    {
                        self.enqueue(enqueued).await;
                    }
                }
                Event::Release { packet_id } => releases.push(packet_id),
                Event::Received { packet_id, tag } => received.push((packet_id, tag)),
                Event::Acked { packet_id, tag, reason } => self.handle_acked(packet_id, &tag, reason).await,
                Event::Subscribe(subscribe) => {
                    // Publishes before it come first.
                    self.handle_publishes(&mut publishes).await;
                    Box::pin(self.handle_subscribe(*subscribe)).await;
                }
                Event::Unsubscribe(unsubscribe) => {
                    self.handle_publishes(&mut publishes).await;
                    Box::pin(self.handle_unsubscribe(*unsubscribe)).await;
                }
                Event::Auth { begins, data } => self.handle_auth(begins, data),
                Event::Closed(closed) => self.closed = Some(closed),
            }
        }
        self.handle_publishes(&mut publishes).await;
        if !releases.is_empty() {
            Box::pin(self.handle_releases(releases)).await;
        }
        if !received.is_empty() {
            Box::pin(self.handle_received(received)).await;
        }
    }
}
