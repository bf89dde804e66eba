//! The end of a connection: everything it holds is given back, and its session is put away.

use weir_codec::ReasonCode;
use weir_core::keyspace::session::{OutgoingEntry, OutgoingPhase};
use weir_core::queue::{Lost, Verdict};
use weir_core::sessions::{CloseOptions, WillAction};
use weir_session::{CloseCause, Closed, Outgoing};

use super::handshake::write_all;
use super::{Connection, FAREWELL_TIMEOUT, Tag, close_label};
use crate::metrics;

impl Connection {
    pub(super) async fn finish(mut self, closed: Closed) -> metrics::Closed {
        self.transmit();
        if closed.cause != CloseCause::Lost {
            // The client may be gone, or not read: then the last packets are lost with the connection.
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, write_all(&mut self.wire)).await;
            self.settle_written().await;
        }
        if let Some(writing) = self.inbox.writing.take()
            && let Err(error) = writing.await
        {
            tracing::debug!(%error, "acknowledgements of the last moment not stored");
        }
        let ops = std::mem::take(&mut self.inbox.ops);
        if !ops.is_empty()
            && let Err(error) = self.broker.sessions.update(&self.stored, &ops).await
        {
            tracing::debug!(%error, "acknowledgements of the last moment not stored");
        }
        self.release_queues(&closed).await;
        self.subscriber.disconnect(&self.mailbox);
        self.leave(closed).await;
        close_label(closed.cause)
    }

    async fn release_queues(&mut self, closed: &Closed) {
        let lost = match closed.cause {
            CloseCause::Client(_) | CloseCause::Server(ReasonCode::ServerShuttingDown) => Lost::Left,
            CloseCause::Protocol(_) | CloseCause::KeepAlive | CloseCause::Server(_) | CloseCause::Lost => {
                Lost::Vanished
            }
        };
        while let Ok(delivery) = self.queue_rx.try_recv() {
            self.held.push_back(delivery);
        }
        for external in std::mem::take(&mut self.externals) {
            self.release_external(external, lost).await;
        }
    }

    /// Puts the session away, or ends it.
    async fn leave(self, closed: Closed) {
        let Self { broker, session, stored, subscriber, subscriptions, .. } = self;
        let state = session.into_state();
        for returned in state.returned {
            if let (Tag::Queue { log, consumer, offset, .. }, false) = (&returned.tag, returned.written) {
                let _ = broker.core.settle(*log, *consumer, *offset, Verdict::Returned).await;
            }
        }
        let outgoing = state.outgoing.iter().filter_map(outgoing_entry).collect();
        let will = if closed.publish_will { WillAction::Fire } else { WillAction::Cancel };
        let options = CloseOptions { expiry_seconds: closed.session_expiry, will, outgoing };
        if !stored.persistent {
            for (text, from) in &subscriptions {
                broker.router.unsubscribe(subscriber.id, text, from);
            }
        }
        match broker.sessions.close(&stored, &options).await {
            Ok(result) => {
                if let Some(ended) = &result.ended {
                    broker.forget(ended);
                }
                if let Some(will) = result.will {
                    broker.publish_will(will).await;
                }
            }
            Err(weir_core::Error::Fenced) => {
                tracing::debug!(client = %stored.client_id, "session continues elsewhere");
            }
            Err(error) => {
                tracing::warn!(client = %stored.client_id, %error, "end of session not stored");
            }
        }
    }
}

fn outgoing_entry(outgoing: &Outgoing<Tag>) -> Option<OutgoingEntry> {
    let (packet_id, tag, phase) = match outgoing {
        Outgoing::Published { packet_id, delivery } => (packet_id, &delivery.tag, OutgoingPhase::Published),
        Outgoing::Released { packet_id, tag } => (packet_id, tag, OutgoingPhase::Released),
    };
    match tag {
        Tag::Inbox(id) => Some(OutgoingEntry { packet_id: packet_id.get(), phase, inbox_id: *id }),
        Tag::Live { .. } | Tag::Queue { .. } | Tag::Stream => None,
    }
}
