//! Queue and stream subscriptions of a connection: how they begin, follow the catalog, and end.
//!
//! What a subscription names may appear, change, disappear and come back at any time.

use std::sync::Arc;

use bytestring::ByteString;
use weir_codec::QoS;
use weir_core::catalog::Object;
use weir_core::definition::Kind;
use weir_core::keyspace::session_position::SessionPosition;
use weir_core::queue::{Consumer, Lost, Verdict, Window};
use weir_env::clock::Instant;
use weir_topic::Subscription;

use super::external::{CONSUMER_WINDOW_MAX, External, Source, resolve, share};
use super::stream::Member;
use super::stream::request::StreamRequest;
use super::wait::Catalog;
use super::waiting::Waiting;
use super::{Connection, Unwritten};
use crate::router::Wish;

/// Why a subscription does not have what it names.
enum Unattached {
    /// It may be tried again.
    Waits(String),
    /// The client must not have it.
    Denied(String),
}

impl Connection {
    /// Whether another subscription than `to`, by `text`, shares with that what `object` has.
    pub(super) fn consumes(&self, object: &Object, text: &ByteString, to: &Subscription) -> bool {
        let is_other = |e: &External| {
            e.text != *text && share(to, &e.to) && e.object().is_some_and(|o| o.id == object.id)
        };
        self.externals.iter().any(is_other)
    }

    /// Whether a subscription of that text goes on where it stands if it asks for this.
    pub(super) fn goes_on(&self, text: &ByteString, request: &StreamRequest) -> bool {
        self.externals.iter().any(|external| external.text == *text && external.request.goes_on_as(request))
    }

    /// A subscription begins, or goes on where it was `left`, or goes on as it is in another way.
    pub(super) async fn install_external(
        &mut self,
        text: ByteString,
        to: Subscription,
        wish: Wish,
        request: StreamRequest,
        left: Option<SessionPosition>,
        member: Option<Member>,
    ) {
        let qos = wish.options.qos;
        let known = self.externals.iter().position(|external| external.text == text);
        if let Some(external) = known.and_then(|at| self.externals.get_mut(at)) {
            // At QoS 0 the identifier is in what is encoded for it.
            let is_encoded = external.kind() == Kind::Stream && qos == QoS::AtMostOnce;
            let is_same = external.request.is_same(&request)
                && external.qos == qos
                && (external.identifier == wish.identifier || !is_encoded);
            if is_same && !external.has_ended() && member.is_none() {
                // Its messages go on where they are.
                external.identifier = wish.identifier;
                return;
            }
            if external.kind() == Kind::Stream && external.request.goes_on_as(&request) {
                external.identifier = wish.identifier;
                external.qos = qos;
                let is_same_end = external.request.ends_as(&request);
                external.request.become_as(request);
                if let Some(at) = known {
                    self.read_otherwise(at, is_same_end, member).await;
                }
                return;
            }
        }
        self.remove_external(&text, false).await;
        self.catalog.get_or_insert_with(|| Catalog::new(self.broker.core.catalog().changes()));
        let external = External {
            text,
            to,
            qos,
            identifier: wish.identifier,
            request: Box::new(request),
            left: left.map(Box::new),
            waiting: None,
            source: Source::Missing,
        };
        self.externals.push(external);
        self.connect_external(self.externals.len() - 1, member).await;
    }

    /// Attaches a subscription to its queue or stream, if that exists and no other shares it.
    pub(super) async fn connect_external(&mut self, at: usize, member: Option<Member>) {
        let Some(external) = self.externals.get_mut(at) else { return };
        let view = self.broker.core.catalog().view();
        let Ok(Some(object)) = resolve(&view, &external.to) else {
            // The catalog says when there is something again.
            external.waiting = None;
            return;
        };
        let Some(external) = self.externals.get(at) else { return };
        if let Err(why) = self.may_attach(external, &object) {
            if let Some(member) = member {
                member.leave_anew(&self.broker.core, &object).await;
            }
            return match why {
                Unattached::Denied(text) => self.banish(text),
                Unattached::Waits(why) => self.put_off(at, why),
            };
        }
        let attached = match external.kind() {
            Kind::Queue => self.consume(external.qos, object).await,
            Kind::Stream => self.read(at, object, member).await,
        };
        match attached {
            Ok(source) => {
                if let Some(external) = self.externals.get_mut(at) {
                    (external.left, external.waiting) = (None, None);
                    external.source = source;
                }
                self.forget_since(at).await;
            }
            // What one queue or stream has is nothing to the others, nor to the session.
            Err(error) => self.put_off(at, error.to_string()),
        }
    }

    /// Whether a subscription may have what it names now.
    fn may_attach(&self, external: &External, object: &Object) -> Result<(), Unattached> {
        if self.consumes(object, &external.text, &external.to) {
            // Both waited for it, under different filters.
            return Err(Unattached::Waits("consumed already under another filter".to_owned()));
        }
        // It did not exist when it was subscribed to, or has come back as another.
        if let Err(denied) = self.may_have(&external.to) {
            self.metrics.forbidden.inc(denied.what);
            let text = format!("not allowed to consume what {} names now", external.text);
            return Err(Unattached::Denied(text));
        }
        external.request.check(&object.definition).map_err(|refusal| Unattached::Waits(refusal.text))
    }

    /// A subscription cannot have its queue or stream now: it is tried again, less and less often.
    pub(super) fn put_off(&mut self, at: usize, why: String) {
        let Some(external) = self.externals.get_mut(at) else { return };
        let before = external.waiting.take();
        if before.as_ref().is_none_or(|before| before.why() != why) {
            let (client, filter) = (&self.stored.client_id, &external.text);
            tracing::warn!(%client, %filter, why, "subscription waits, and is tried again");
        }
        let waiting = Waiting::after(before.as_deref(), why, self.broker.clock.now());
        self.timers.retry = self.timers.retry.into_iter().chain([waiting.until()]).min();
        external.waiting = Some(Box::new(waiting));
    }

    /// Tries again what has waited long enough.
    pub(super) async fn retry_externals(&mut self, now: Instant) {
        for at in 0..self.externals.len() {
            let Some(external) = self.externals.get_mut(at) else { break };
            if external.waiting.as_ref().is_none_or(|waiting| waiting.until() > now) {
                continue;
            }
            if external.lost_reader() {
                self.lose(at).await;
            }
            self.connect_external(at, None).await;
        }
        let next = self.externals.iter().filter_map(|external| Some(external.waiting.as_ref()?.until()));
        self.timers.retry = next.filter(|until| *until > now).min();
    }

    async fn consume(&mut self, qos: QoS, object: Arc<Object>) -> weir_core::Result<Source> {
        let consumer = Consumer {
            id: self.broker.consumer_id(),
            client_id: self.stored.client_id.clone(),
            since: self.broker.clock.wall(),
            window: Arc::new(Window::new(window(&object))),
            connection_window: (qos != QoS::AtMostOnce).then(|| Arc::clone(&self.window)),
            deliveries: self.queue.sender(),
        };
        self.broker.core.attach(&object, &consumer).await?;
        Ok(Source::Queue { object, consumer })
    }

    /// Ends a queue or stream subscription, `for_good` or to begin it anew. False if there is none.
    pub(super) async fn remove_external(&mut self, text: &ByteString, for_good: bool) -> bool {
        let Some(at) = self.externals.iter().position(|external| external.text == *text) else {
            return false;
        };
        let External { mut source, .. } = self.externals.remove(at);
        if for_good {
            source.leave_for_good();
        }
        self.release(source, Lost::Left).await;
        true
    }

    /// Lets go of a queue or stream.
    pub(super) async fn release(&mut self, source: Source, lost: Lost) {
        match source {
            Source::Missing => {}
            Source::Queue { object, consumer } => {
                // Messages that never reached the client go back without counting.
                while let Some(delivery) = self.queue.try_recv() {
                    self.held.push_back(delivery);
                }
                let (waiting, others): (Vec<_>, Vec<_>) =
                    self.held.drain(..).partition(|delivery| delivery.consumer == consumer.id);
                self.held.extend(others);
                let mut starved = false;
                for delivery in waiting {
                    let _ = self.broker.core.settle(delivery.handout(), Verdict::Returned).await;
                    starved |= delivery.acknowledged && self.window.give_back();
                }
                let is_its = |unwritten: &Unwritten| unwritten.handout.consumer == consumer.id;
                for unwritten in self.unwritten.iter().filter(|unwritten| is_its(unwritten)) {
                    let _ = self.broker.core.settle(unwritten.handout, Verdict::Returned).await;
                }
                self.unwritten.retain(|unwritten| !is_its(unwritten));
                let _ = self.broker.core.detach(&object, consumer.id, lost).await;
                if starved {
                    self.kick_queues().await;
                }
            }
            // Its reader ends with it, and what was read is recognised by its id.
            Source::Stream(reading) => reading.end(&self.broker.core).await,
        }
    }

    /// The catalog has changed: attaches what has appeared, lets go of what is gone.
    pub(super) async fn refresh_externals(&mut self) {
        let view = self.broker.core.catalog().view();
        for at in 0..self.externals.len() {
            let Some(external) = self.externals.get_mut(at) else { break };
            let now = resolve(&view, &external.to).ok().flatten();
            let attached = external.object().map(|object| object.id);
            match (attached, now) {
                (None, Some(_)) => self.connect_external(at, None).await,
                (Some(id), now) if now.as_ref().is_none_or(|object| object.id != id) => {
                    self.lose(at).await;
                    self.connect_external(at, None).await;
                }
                (Some(_), Some(changed)) => self.follow_change(at, changed).await,
                (Some(_) | None, None) => {}
            }
        }
    }

    /// What a connection knows of a queue or stream follows its declaration.
    async fn follow_change(&mut self, at: usize, changed: Arc<Object>) {
        let Some(external) = self.externals.get_mut(at) else { return };
        match &mut external.source {
            Source::Missing => {}
            Source::Stream(reading) => reading.object = changed,
            Source::Queue { object, consumer } => {
                let (id, starved) = (consumer.id, consumer.window.resize(window(&changed)));
                *object = Arc::clone(&changed);
                if starved {
                    // Fails only at shutdown.
                    let _ = self.broker.core.kick(&changed, id).await;
                }
            }
        }
    }
}

/// Messages that a consumer of this queue may hold.
fn window(queue: &Object) -> u32 {
    queue.definition.dispatch.max_inflight_per_consumer.clamp(1, CONSUMER_WINDOW_MAX)
}
