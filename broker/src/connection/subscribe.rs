//! Subscriptions: to topics, shared, to queues and to streams.

use std::collections::VecDeque;
use std::sync::Arc;

use bytestring::ByteString;
use futures_util::future::BoxFuture;
use smallvec::SmallVec;
use weir_codec::{
    AckProperties, QoS, ReasonCode, RetainHandling, Subscribe, SubscribeFilter, SubscriptionOptions,
    Unsubscribe, UserProperties,
};
use weir_core::definition::{Definition, Kind};
use weir_core::inbox::{InboxAppend, InboxTarget, InboxUsage};
use weir_core::keyspace::session::StoredSubscription;
use weir_core::keyspace::session_position::SessionPosition;
use weir_core::message::Message;
use weir_core::retained::RetainedCursor;
use weir_env::seed::HashMap;
use weir_session::Delivery;
use weir_topic::{Subscription, TopicFilter};

use super::creation::Missing;
use super::external::{EXTERNALS_MAX, Refusal, kind_of, resolve, share};
use super::stream::Member;
use super::stream::request::StreamRequest;
use super::{Connection, Tag};
use crate::broker::{Broker, wish_of};
use crate::cluster::interest::{Held, Need, key_of};
use crate::config::Limits;
use crate::convert;
use crate::fetch::REQUESTS;
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
    request: StreamRequest,
    /// Its membership of a consumer group, if that is new.
    member: Option<Member>,
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
            // A filter that the packet repeats joins its group once.
            let is_repeated = |grant: &Grant| grants.iter().any(|other: &Grant| other.text == grant.text);
            if let Ok(grant) = &mut checked
                && !is_repeated(grant)
            {
                match Box::pin(self.join_for(&grant.text, &grant.to, &grant.request)).await {
                    Ok(member) => grant.member = member,
                    Err(refusal) => checked = Err(refusal),
                }
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
            for Grant { text, to, member, .. } in grants.drain(..) {
                if let Some(member) = member {
                    self.leave_at_once(member, &text, &to).await;
                }
            }
        }
        let mut scans = Vec::new();
        let texts = self.texts_for_pods(&grants);
        for grant in grants {
            if let Some(scan) = self.install(grant).await {
                scans.push(scan);
            }
        }
        if let Some(known) = self.known_to_pods(&texts) {
            known.await;
        }
        // Where the client begins counts from here on, whatever happens to its connection.
        let begun = self.moved_positions();
        if !begun.is_empty() && !self.update_session(&begun).await {
            return;
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
        if let Subscription::Plain(filter) | Subscription::Shared { filter, .. } = &to
            && filter.as_str().starts_with(REQUESTS)
        {
            let problem =
                "nothing is ever published below $weir: requests go there, their answers to a Response Topic";
            return Err(invalid(format!("{text}: {problem}")));
        }
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
        let mut grant = Grant {
            text,
            to,
            wish,
            request: StreamRequest::default(),
            member: None,
            note: None,
            create: None,
        };
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
        let queue = kind_of(&grant.to) == Some(Kind::Queue);
        if grant.wish.options.no_local {
            let what = if queue { "queue" } else { "stream" };
            let text = format!("No Local has no meaning on a {what}: leave it out");
            return Err(Refusal { reason: ReasonCode::TopicFilterInvalid, text });
        }
        grant.request = StreamRequest::parse(&grant.to, properties)?;
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
        match found.as_ref().map(|object| &object.definition).or(grant.create.as_deref()) {
            Some(definition) => grant.request.check(definition)?,
            None => grant.request.since = Some(self.broker.clock.wall()),
        }
        if let Some(object) = &found {
            let before = |other: &&Grant| {
                other.text != grant.text
                    && share(&grant.to, &other.to)
                    && resolve(&view, &other.to).ok().flatten().is_some_and(|o| o.id == object.id)
            };
            if self.consumes(object, &grant.text, &grant.to) || granted.iter().any(|other| before(&other)) {
                let name = &object.definition.name;
                let text = format!("this connection consumes {name} already under another filter");
                return Err(Refusal { reason: ReasonCode::TopicFilterInvalid, text });
            }
        }
        grant.wish.options.qos = grant.wish.options.qos.min(QoS::AtLeastOnce);
        Ok(())
    }

    async fn store_grants(&mut self, grants: &[Grant]) -> weir_core::Result<()> {
        if !self.stored.persistent || grants.is_empty() {
            return Ok(());
        }
        let seeks = |grant: &&Grant| {
            kind_of(&grant.to) == Some(Kind::Stream) && !self.goes_on(&grant.text, &grant.request)
        };
        let anew: Vec<ByteString> = grants.iter().filter(seeks).map(|grant| grant.text.clone()).collect();
        if !anew.is_empty() && !self.forget_positions(|text| anew.iter().any(|anew| *anew == *text)).await {
            return Ok(());
        }
        let stored: Vec<(ByteString, StoredSubscription)> =
            grants.iter().map(|grant| (grant.text.clone(), stored(&grant.wish, &grant.request))).collect();
        let version = self.broker.sessions.subscribe_anew(&self.stored, &stored, &anew).await?;
        self.broker.known_everywhere(version).await;
        Ok(())
    }

    /// Makes a granted subscription work. Returns the retained messages it asks for.
    async fn install(&mut self, grant: Grant) -> Option<RetainedScan> {
        let Grant { text, to, wish, request, member, .. } = grant;
        if kind_of(&to).is_some() {
            self.install_external(text, to, wish, request, None, member).await;
            return None;
        }
        self.broker.router.subscribe(&self.subscriber, &text, &to, wish);
        self.want_of_pods(&text, &to, wish);
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

    /// Has other pods send here what a subscription wants live. It does so as long as the connection is there.
    fn want_of_pods(&mut self, text: &ByteString, to: &Subscription, wish: Wish) {
        let Some(pods) = &self.broker.pods else { return };
        let Some(key) = key_of(to) else { return };
        let has_inbox = self.stored.persistent && wish.options.qos != QoS::AtMostOnce;
        let held = pods.interest.hold(key, if has_inbox { Need::Qos0 } else { Need::Live });
        self.interests.get_or_insert_default().insert(text.clone(), held);
    }

    /// What other pods must know of before these are acknowledged.
    fn texts_for_pods(&self, grants: &[Grant]) -> Vec<ByteString> {
        match &self.broker.pods {
            Some(_) => grants.iter().map(|grant| grant.text.clone()).collect(),
            None => Vec::new(),
        }
    }

    /// Waits until what is published at any pod comes to these subscriptions, or some seconds. None without other pods.
    fn known_to_pods(&self, texts: &[ByteString]) -> Option<BoxFuture<'static, ()>> {
        let (pods, interests) = (self.broker.pods.as_ref()?, self.interests.as_ref()?);
        let held = texts.iter().filter_map(|text| interests.get(text)).map(Held::what).collect();
        Some(Box::pin(Arc::clone(&pods.interest).known(held)))
    }

    pub(super) async fn handle_unsubscribe(&mut self, unsubscribe: Unsubscribe) {
        if !self.forget_positions(|text| unsubscribe.filters.iter().any(|filter| *filter == *text)).await {
            return;
        }
        if self.stored.persistent {
            match self.broker.sessions.unsubscribe(&self.stored, &unsubscribe.filters).await {
                Ok(version) => self.broker.known_everywhere(version).await,
                Err(error) => {
                    self.fail(&error);
                    return;
                }
            }
        }
        let mut reasons = Vec::with_capacity(unsubscribe.filters.len());
        for text in &unsubscribe.filters {
            self.forget_retained(text);
            let known = self.subscriptions.take(text);
            if let Some(interests) = &mut self.interests {
                interests.remove(text);
            }
            let removed = match known.as_ref().and_then(parsed) {
                Some((_, from)) => self.broker.router.unsubscribe(self.subscriber.id, text, &from),
                None => self.remove_external(text, true).await,
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
            let append = InboxAppend { message: Arc::new(message), targets, mark: None, noted: None };
            completions.push(self.broker.inbox_writer.append(append).await?);
        }
        for completion in completions {
            completion.await?;
        }
        Ok(())
    }

    /// Brings the subscriptions of a resumed session back to life.
    pub(super) async fn resubscribe(
        &mut self,
        subscriptions: Vec<(ByteString, StoredSubscription)>,
        positions: Vec<(ByteString, SessionPosition)>,
    ) {
        let mut positions: HashMap<ByteString, SessionPosition> = positions.into_iter().collect();
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
                let request = StreamRequest::of_stored(&to, &stored.extra);
                let left = positions.remove(&text);
                self.install_external(text, to, wish, request, left, None).await;
            } else {
                self.broker.router.subscribe(&self.subscriber, &text, &to, wish);
                self.want_of_pods(&text, &to, wish);
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

/// A subscription as it is stored.
pub(super) fn stored(wish: &Wish, request: &StreamRequest) -> StoredSubscription {
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
        extra: request.encode(),
    }
}
