//! Subscriptions: to topics, shared, to queues and to streams.

use std::collections::VecDeque;
use std::sync::Arc;

use bytestring::ByteString;
use smallvec::SmallVec;
use weir_codec::{
    AckProperties, QoS, ReasonCode, RetainHandling, Subscribe, SubscribeFilter, SubscriptionOptions,
    Unsubscribe, UserProperties,
};
use weir_core::catalog::Object;
use weir_core::definition::{Definition, Kind};
use weir_core::inbox::{InboxAppend, InboxTarget, InboxUsage};
use weir_core::keyspace::session::StoredSubscription;
use weir_core::message::Message;
use weir_core::queue::{Consumer, Lost, Verdict, Window};
use weir_core::retained::RetainedCursor;
use weir_core::stream::Start;
use weir_session::Delivery;
use weir_topic::{Subscription, TopicFilter};

use super::creation::Missing;
use super::external::{CONSUMER_WINDOW_MAX, EXTERNALS_MAX, External, Refusal, Source, kind_of, resolve};
use super::handshake::NO_EXTRA;
use super::stream::request::start_of;
use super::wait::Catalog;
use super::{Connection, Tag, Unwritten};
use crate::broker::{Broker, wish_of};
use crate::config::Limits;
use crate::convert;
use crate::router::Wish;

/// Retained messages read in one go, unless half an inbox holds fewer.
const RETAINED_PAGE: u64 = 64;
/// Bytes of them.
const RETAINED_BYTES: u64 = 256 * 1024;

/// The largest page of retained messages: one that an inbox takes beside what is live.
fn retained_page(limits: &Limits) -> InboxUsage {
    InboxUsage {
        messages: RETAINED_PAGE.min(limits.inbox_messages_per_client / 2).max(1),
        bytes: RETAINED_BYTES.min(limits.inbox_bytes_per_client.0 / 2).max(1),
    }
}

/// Retained messages on their way to a new subscription.
#[derive(Debug)]
pub(super) struct RetainedScan {
    filter: TopicFilter,
    wish: Wish,
    cursor: Option<RetainedCursor>,
    done: bool,
    pub(super) messages: VecDeque<Message>,
}

impl RetainedScan {
    fn new(filter: TopicFilter, wish: Wish) -> Self {
        Self { filter, wish, cursor: None, done: false, messages: VecDeque::new() }
    }

    /// Reads on. False at the end.
    async fn read(&mut self, broker: &Broker) -> weir_core::Result<bool> {
        if self.done {
            return Ok(false);
        }
        // What was published before the subscription, or has gone to the client since, may be on its way to the store.
        broker.retained.caught_up(&broker.retained.line_end()).await;
        if self.cursor.is_none() {
            self.messages.extend(broker.sys.matching(broker, &self.filter));
        }
        let retained = &broker.retained;
        let InboxUsage { messages, bytes } = retained_page(&broker.limits);
        let size = |n| usize::try_from(n).unwrap_or(usize::MAX);
        let page = retained.matching(&self.filter, self.cursor.take(), size(messages), size(bytes)).await?;
        self.messages.extend(page.messages);
        self.done = page.next.is_none();
        self.cursor = page.next;
        Ok(true)
    }

    pub(super) fn delivery(&self, broker: &Broker, message: &Message) -> Delivery<Tag> {
        Delivery {
            message: convert::to_wire(message),
            qos: convert::qos(message.qos).min(self.wish.options.qos),
            retain: true,
            subscription_identifiers: self.wish.identifier.into_iter().collect(),
            extra: Vec::new(),
            expires_at: convert::expires_at(broker.clock, message.expires_at),
            resumable: true,
            store_release: false,
            tag: Tag::Live { shared: SmallVec::new(), _span: tracing::Span::none() },
        }
    }
}

/// Options of a bridge, which 3.1 and 3.1.1 cannot ask for: it must not get back what it brings, and hands retained
/// messages on as such. Queues, streams and shared subscriptions have no such options.
fn of_bridge(entry: &SubscribeFilter) -> SubscriptionOptions {
    let plain = !entry.filter.starts_with('$');
    SubscriptionOptions { no_local: plain, retain_as_published: plain, ..entry.options }
}

/// One entry of a SUBSCRIBE that can be granted.
struct Grant {
    text: ByteString,
    to: Subscription,
    wish: Wish,
    start: Start,
    note: Option<String>,
    /// What has to be made for it.
    create: Option<Box<Definition>>,
}

impl Connection {
    pub(super) async fn handle_subscribe(&mut self, subscribe: Subscribe) {
        if !self.refresh_access() {
            return;
        }
        let identifier = subscribe.subscription_identifier.map(std::num::NonZero::get);
        let mut reasons = Vec::with_capacity(subscribe.filters.len());
        let mut notes = Vec::new();
        let mut grants = Vec::new();
        for entry in &subscribe.filters {
            let mut checked = self.check(entry, identifier, &subscribe.user_properties, &grants);
            if let Ok(Grant { to, create: Some(wanted), .. }) = &checked
                && let Err(refusal) = self.create(to, wanted).await
            {
                checked = Err(refusal);
            }
            match checked {
                Ok(grant) => {
                    reasons.push(granted(grant.wish.options.qos));
                    notes.extend(grant.note.clone());
                    grants.push(grant);
                }
                Err(refusal) => {
                    tracing::info!(
                        client = %self.stored.client_id, filter = %entry.filter, reason = %refusal.reason,
                        text = refusal.text, "subscription refused"
                    );
                    notes.push(refusal.text);
                    reasons.push(refusal.reason);
                }
            }
        }
        if let Err(error) = self.store_grants(&grants).await {
            tracing::warn!(client = %self.stored.client_id, %error, "subscriptions could not be stored");
            reasons.fill(ReasonCode::UnspecifiedError);
            notes.push("the subscriptions could not be stored; subscribe again".to_owned());
            grants.clear();
        }
        let mut scans = Vec::new();
        for grant in grants {
            if let Some(scan) = self.install(grant).await {
                scans.push(scan);
            }
        }
        let reason_string = (!notes.is_empty()).then(|| notes.join("; ").into());
        let properties = AckProperties { reason_string, ..AckProperties::default() };
        self.session.handle_subscribed(subscribe.packet_id, reasons, properties);
        for scan in scans {
            self.queue_retained(scan);
        }
    }

    fn check(
        &self,
        entry: &SubscribeFilter,
        identifier: Option<u32>,
        properties: &UserProperties,
        granted: &[Grant],
    ) -> Result<Grant, Refusal> {
        let invalid = |text: String| Refusal { reason: ReasonCode::TopicFilterInvalid, text };
        // A copy: the subscription outlives the packet it came in.
        let text = ByteString::from(entry.filter.to_string());
        let to = Subscription::parse(text.clone()).map_err(|error| invalid(format!("{text}: {error}")))?;
        self.check_allowed(&text, &to)?;
        // What this packet has been granted so far counts; a filter that it repeats, twice.
        let held = self.subscriptions.len() + self.externals.len() + granted.len();
        let known = self.subscriptions.contains(&text) || self.externals.iter().any(|e| e.text == text);
        let limit = self.broker.limits.max_subscriptions_per_client;
        if !known && held >= usize::try_from(limit).unwrap_or(usize::MAX) {
            let text = format!("limits.maxSubscriptionsPerClient is {limit}: unsubscribe from others first");
            return Err(Refusal { reason: ReasonCode::QuotaExceeded, text });
        }
        let options = if self.bridge { of_bridge(entry) } else { entry.options };
        let wish = Wish { options, identifier };
        let mut grant = Grant { text, to, wish, start: Start::Latest, note: None, create: None };
        if kind_of(&grant.to).is_some() {
            let others = granted.iter().filter(|other| kind_of(&other.to).is_some());
            if !known && self.externals.len() + others.count() >= EXTERNALS_MAX {
                let text = format!("a connection may consume {EXTERNALS_MAX} queues and streams");
                return Err(Refusal { reason: ReasonCode::QuotaExceeded, text });
            }
            self.check_external(&mut grant, properties, granted)?;
        }
        Ok(grant)
    }

    fn check_external(
        &self,
        grant: &mut Grant,
        properties: &UserProperties,
        granted: &[Grant],
    ) -> Result<(), Refusal> {
        let queue = matches!(grant.to, Subscription::Queue { .. } | Subscription::QueueByFilter { .. });
        if queue && grant.wish.options.no_local {
            let text = "No Local has no meaning on a queue: leave it out".to_owned();
            return Err(Refusal { reason: ReasonCode::TopicFilterInvalid, text });
        }
        let view = self.broker.core.catalog().view();
        let found = resolve(&view, &grant.to)?;
        if found.is_none() {
            match self.missing(&grant.text, &grant.to)? {
                Missing::Make(wanted) => grant.create = Some(wanted),
                Missing::Wait(note) => {
                    tracing::info!(client = %self.stored.client_id, filter = %grant.text, "{note}");
                    grant.note = Some(note);
                }
            }
        }
        if !queue {
            let shards = found.as_ref().map(|object| object.definition.shards);
            let shards = shards.or(grant.create.as_ref().map(|wanted| wanted.shards)).map(usize::from);
            grant.start = start_of(&grant.to, properties, shards)?;
        }
        if let Some(object) = &found {
            let before = |other: &&Grant| {
                other.text != grant.text
                    && resolve(&view, &other.to).ok().flatten().is_some_and(|o| o.id == object.id)
            };
            if self.consumes(object, &grant.text) || granted.iter().any(|other| before(&other)) {
                let name = &object.definition.name;
                let text = format!("this connection consumes {name} already under another filter");
                return Err(Refusal { reason: ReasonCode::TopicFilterInvalid, text });
            }
        }
        grant.wish.options.qos = grant.wish.options.qos.min(QoS::AtLeastOnce);
        Ok(())
    }

    /// Whether another subscription than that by `text` is attached to `object`.
    fn consumes(&self, object: &Object, text: &ByteString) -> bool {
        let is_other = |e: &External| e.text != *text && e.object().is_some_and(|o| o.id == object.id);
        self.externals.iter().any(is_other)
    }

    async fn store_grants(&mut self, grants: &[Grant]) -> weir_core::Result<()> {
        if !self.stored.persistent || grants.is_empty() {
            return Ok(());
        }
        let stored: Vec<(ByteString, StoredSubscription)> =
            grants.iter().map(|grant| (grant.text.clone(), stored(&grant.wish, &grant.start))).collect();
        self.broker.sessions.subscribe(&self.stored, &stored).await
    }

    /// Makes a granted subscription work. Returns the retained messages it asks for.
    async fn install(&mut self, grant: Grant) -> Option<RetainedScan> {
        let Grant { text, to, wish, start, .. } = grant;
        if kind_of(&to).is_some() {
            self.install_external(text, to, wish, start).await;
            return None;
        }
        self.broker.router.subscribe(&self.subscriber, &text, &to, wish);
        let new = self.subscriptions.insert(text);
        let wanted = match wish.options.retain_handling {
            RetainHandling::OnSubscribe => true,
            RetainHandling::OnNewSubscription => new,
            RetainHandling::Never => false,
        };
        match to {
            Subscription::Plain(filter) if wanted => Some(RetainedScan::new(filter, wish)),
            _ => None,
        }
    }

    async fn install_external(&mut self, text: ByteString, to: Subscription, wish: Wish, start: Start) {
        let same = |external: &&mut External| {
            external.text == text && external.qos == wish.options.qos && external.start == start
        };
        if let Some(external) = self.externals.iter_mut().find(same) {
            // Its messages go on where they are.
            external.identifier = wish.identifier;
            return;
        }
        self.remove_external(&text, Lost::Left).await;
        self.catalog.get_or_insert_with(|| Catalog::new(self.broker.core.catalog().changes()));
        let external = External {
            text,
            to,
            qos: wish.options.qos,
            identifier: wish.identifier,
            start,
            source: Source::Missing,
        };
        self.externals.push(external);
        self.connect_external(self.externals.len() - 1).await;
    }

    /// Attaches a subscription to its queue or stream, if that exists and no other one is.
    async fn connect_external(&mut self, at: usize) {
        let Some(external) = self.externals.get(at) else { return };
        let view = self.broker.core.catalog().view();
        let Ok(Some(object)) = resolve(&view, &external.to) else { return };
        if self.consumes(&object, &external.text) {
            // Both waited for it, under different filters.
            let (client, name) = (&self.stored.client_id, &object.definition.name);
            tracing::info!(%client, filter = %external.text, name, "consumed already under another filter");
            return;
        }
        // It did not exist when it was subscribed to, or has come back as another.
        if let Err(denied) = self.may_have(&external.to) {
            self.metrics.forbidden.inc(denied.what);
            let text = format!("not allowed to consume what {} names now", external.text);
            return self.banish(text);
        }
        let attached = match external.kind() {
            Kind::Queue => self.consume(external.qos, object).await,
            Kind::Stream => self.read(external.start.clone(), object).await,
        };
        match attached {
            Ok(source) => {
                if let Some(external) = self.externals.get_mut(at) {
                    external.source = source;
                }
            }
            Err(error) => self.fail(&error),
        }
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

    /// Ends a queue or stream subscription. False if there is none.
    pub(super) async fn remove_external(&mut self, text: &ByteString, lost: Lost) -> bool {
        let Some(at) = self.externals.iter().position(|external| external.text == *text) else {
            return false;
        };
        let external = self.externals.remove(at);
        self.release_external(external, lost).await;
        true
    }

    pub(super) async fn release_external(&mut self, external: External, lost: Lost) {
        match external.source {
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
            // Its readers end with it, and what they have read is recognised by their id.
            Source::Stream { .. } => {}
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
                (None, Some(_)) => self.connect_external(at).await,
                (Some(id), now) if now.as_ref().is_none_or(|object| object.id != id) => {
                    let source = std::mem::replace(&mut external.source, Source::Missing);
                    let gone = External {
                        text: external.text.clone(),
                        to: external.to.clone(),
                        qos: external.qos,
                        identifier: external.identifier,
                        start: external.start.clone(),
                        source,
                    };
                    self.release_external(gone, Lost::Left).await;
                    self.connect_external(at).await;
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
            Source::Stream { object, .. } => *object = changed,
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

    pub(super) async fn handle_unsubscribe(&mut self, unsubscribe: Unsubscribe) {
        if self.stored.persistent
            && let Err(error) = self.broker.sessions.unsubscribe(&self.stored, &unsubscribe.filters).await
        {
            self.fail(&error);
            return;
        }
        let mut reasons = Vec::with_capacity(unsubscribe.filters.len());
        for text in &unsubscribe.filters {
            self.forget_retained(text);
            let known = self.subscriptions.take(text);
            let removed = match known.as_ref().and_then(parsed) {
                Some((_, from)) => self.broker.router.unsubscribe(self.subscriber.id, text, &from),
                None => self.remove_external(text, Lost::Left).await,
            };
            reasons.push(if removed { ReasonCode::Success } else { ReasonCode::NoSubscriptionExisted });
        }
        // One of them may have kept another from what both name.
        self.refresh_externals().await;
        self.session.handle_unsubscribed(unsubscribe.packet_id, reasons, AckProperties::default());
    }

    /// Puts a scan of retained messages in line. It takes the place of one for the same filter, so that there
    /// are never more than subscriptions.
    fn queue_retained(&mut self, scan: RetainedScan) {
        self.forget_retained(scan.filter.as_str());
        self.retained.push_back(scan);
    }

    fn forget_retained(&mut self, filter: &str) {
        self.retained.retain(|waiting| waiting.filter.as_str() != filter);
    }

    /// Whether the next page of a scan may be read. What goes through the inbox waits until the client has taken
    /// what is there: a scan must not use up the room of what is live.
    pub(super) fn may_read_retained(&self, scan: &RetainedScan) -> bool {
        if !self.stored.persistent || scan.wish.options.qos == QoS::AtMostOnce {
            return true;
        }
        let taken = self.inbox.is_exhausted();
        let page = retained_page(&self.broker.limits);
        taken
            && self.broker.router.inboxes().has_room_for(
                &self.stored.client_id,
                self.stored.incarnation,
                page,
            )
    }

    /// Reads the next page of a scan; what is above QoS 0 for a persistent session goes through its inbox, so
    /// that it survives the connection like every other message. False at the end.
    pub(super) async fn read_retained(&mut self, scan: &mut RetainedScan) -> weir_core::Result<bool> {
        if !scan.read(&self.broker).await? {
            return Ok(false);
        }
        if self.stored.persistent && scan.wish.options.qos != QoS::AtMostOnce {
            self.keep_retained(scan).await?;
        }
        Ok(true)
    }

    /// Puts the messages of a page into the inbox, all of them in line before the first is waited for.
    async fn keep_retained(&mut self, scan: &mut RetainedScan) -> weir_core::Result<()> {
        let mut completions = Vec::with_capacity(scan.messages.len());
        for message in std::mem::take(&mut scan.messages) {
            let qos = convert::qos(message.qos).min(scan.wish.options.qos);
            if qos == QoS::AtMostOnce {
                scan.messages.push_back(message);
                continue;
            }
            let target = InboxTarget {
                client_id: self.stored.client_id.clone(),
                incarnation: self.stored.incarnation,
                qos: qos.as_u8(),
                retain: true,
                subscription_ids: scan.wish.identifier.into_iter().collect(),
            };
            let mut targets = SmallVec::new();
            targets.push(target);
            self.inbox.state().scanned.note(&message);
            let append = InboxAppend { message: Arc::new(message), targets, mark: None };
            completions.push(self.broker.inbox_writer.append(append).await?);
        }
        for completion in completions {
            completion.await?;
        }
        Ok(())
    }

    /// Brings the subscriptions of a resumed session back to life.
    pub(super) async fn resubscribe(&mut self, subscriptions: Vec<(ByteString, StoredSubscription)>) {
        let mut lost = Vec::new();
        for (text, stored) in subscriptions {
            let Ok(to) = Subscription::parse(text.clone()) else { continue };
            if self.may_have(&to).is_err() {
                self.broker.router.unsubscribe(self.subscriber.id, &text, &to);
                lost.push(text);
                continue;
            }
            let wish = wish_of(&stored);
            if kind_of(&to).is_some() {
                let start = std::str::from_utf8(&stored.extra).ok().and_then(super::parse_start);
                self.install_external(text, to, wish, start.unwrap_or(Start::Latest)).await;
            } else {
                self.broker.router.subscribe(&self.subscriber, &text, &to, wish);
                self.subscriptions.insert(text);
            }
        }
        if lost.is_empty() {
            return;
        }
        tracing::info!(client = %self.stored.client_id, ?lost, "subscriptions that are not allowed any more are removed");
        if let Err(error) = self.broker.sessions.unsubscribe(&self.stored, &lost).await {
            self.fail(&error);
        }
    }
}

/// Messages that a consumer of this queue may hold.
fn window(queue: &Object) -> u32 {
    queue.definition.dispatch.max_inflight_per_consumer.clamp(1, CONSUMER_WINDOW_MAX)
}

/// What the text of a subscription means. It was read before, so there is always an answer.
pub(super) fn parsed(text: &ByteString) -> Option<(&ByteString, Subscription)> {
    Subscription::parse(text.clone()).ok().map(|subscription| (text, subscription))
}

fn granted(qos: QoS) -> ReasonCode {
    match qos {
        QoS::AtMostOnce => ReasonCode::Success,
        QoS::AtLeastOnce => ReasonCode::GrantedQoS1,
        QoS::ExactlyOnce => ReasonCode::GrantedQoS2,
    }
}

fn stored(wish: &Wish, start: &Start) -> StoredSubscription {
    let extra = match start {
        Start::Latest => NO_EXTRA,
        Start::Earliest => "earliest".into(),
        Start::Offset(offset) => format!("offset:{offset}").into(),
        Start::Offsets(offsets) => {
            let places: Vec<String> =
                offsets.iter().map(|(shard, offset)| format!("{shard}:{offset}")).collect();
            places.join(",").into()
        }
        Start::Time(at) => at.as_micros().to_string().into(),
    };
    StoredSubscription {
        qos: wish.options.qos.as_u8(),
        no_local: wish.options.no_local,
        retain_as_published: wish.options.retain_as_published,
        retain_handling: match wish.options.retain_handling {
            RetainHandling::OnSubscribe => 0,
            RetainHandling::OnNewSubscription => 1,
            RetainHandling::Never => 2,
        },
        subscription_id: wish.identifier,
        extra,
    }
}
