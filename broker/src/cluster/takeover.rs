//! Sessions that move between pods: whoever opens one first has the connection ended that holds it elsewhere, and takes
//! over what only that pod knew of it.
//!
//! Two connections of one client at two pods: the store puts their openings in an order, and the later one wins. It waits
//! for the end of the one before it, so that a client never has two connections that work. The waiting is for order; what
//! the loser still writes is refused by the fence. It owns questions under way to other pods.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytestring::ByteString;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use weir_core::cluster::Cluster;
use weir_core::cluster::links::{Links, PeerHandler, UpLinks};
use weir_core::cluster::message::{PeerMessage, SessionMessage};
use weir_core::inbox::InboxTarget;
use weir_core::keyspace::PublishId;
use weir_core::keyspace::owner::PodId;
use weir_core::keyspace::session::{Incarnation, SessionEpoch};
use weir_core::panics::Panics;
use weir_core::sessions::{Holder, OpenOptions, Opened, Sessions};
use weir_env::seed::HashMap;
use weir_storage::Version;

use super::holds::{Hold, Holds};
use super::kicks::Kicks;
use super::notices::Notices;
use crate::broker::Broker;
use crate::clients::EVICTION_WAIT_MAX;
use crate::mailbox::Mailbox;
use crate::metrics::Metrics;

/// Longest wait for other pods to know of a session that was opened here.
const KNOWN_WAIT_MAX: Duration = Duration::from_secs(30);

/// Longest wait for other pods to know of a subscription before it is acknowledged.
const ROUTE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Longest wait of a pod that starts for links to the others.
const MEETING_MAX: Duration = Duration::from_secs(2);

/// Connections that begin to look at their inboxes at once, when all are to, and the pause before more do.
const LOOKS_AT_ONCE: usize = 1_000;
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// QoS 2 publishes that a pod has answered and that were not released, by packet id.
type Received = Vec<(u16, PublishId)>;

/// What a pod knows, tells and asks of sessions at other pods.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    pub(crate) cluster: Cluster,
    pub(crate) links: Links,
    pub(crate) holds: Arc<Holds>,
    pub(crate) notices: Notices,
    asked: Mutex<HashMap<u64, Asked>>,
    next_request: AtomicU64,
    kicks: Kicks,
    /// Of the tasks that follow what other pods do.
    pub(crate) panics: Panics,
}

/// That there was a link to every other pod at some time: see [`Elsewhere::has_heard_all_since`].
#[derive(Clone, Debug)]
pub(crate) struct AllHeard {
    /// [`weir_core::cluster::view::View::version`].
    view: u64,
    up: UpLinks,
}

#[derive(Debug)]
struct Asked {
    pod: PodId,
    answer: oneshot::Sender<Received>,
}

/// A question under way; forgotten when this is dropped.
struct Asking<'a> {
    elsewhere: &'a Elsewhere,
    request: u64,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.elsewhere.asked.lock().remove(&self.request);
    }
}

impl Elsewhere {
    pub(crate) fn new(cluster: Cluster, links: Links, metrics: &Metrics) -> Self {
        Self {
            cluster,
            links,
            holds: Arc::default(),
            notices: Notices::new(metrics.inbox_notices_all.clone()),
            asked: Mutex::default(),
            next_request: AtomicU64::new(1),
            kicks: Kicks::new(metrics.kicks.clone()),
            panics: Panics::default(),
        }
    }

    /// Whether there is a link to every other pod.
    pub(crate) fn hears_all(&self) -> bool {
        let (view, me) = (self.cluster.view(), self.cluster.me());
        view.pods.iter().all(|pod| pod.id == me || self.links.is_up(pod.id))
    }

    /// As [`Self::hears_all`], to be kept.
    pub(crate) fn all_heard(&self) -> Option<AllHeard> {
        let heard = AllHeard { view: self.cluster.view().version, up: self.links.up() };
        (self.hears_all() && self.has_heard_all_since(&heard)).then_some(heard)
    }

    /// Whether no pod has come or gone since then, and no link broken: none of them can have taken a session over from here
    /// without being heard, one that is gone since included.
    pub(crate) fn has_heard_all_since(&self, then: &AllHeard) -> bool {
        self.cluster.view().version == then.view && Arc::ptr_eq(&self.links.up(), &then.up)
    }

    /// Waits until there is a link to every other pod, or a moment, since one of them may be dead. Without a link to the
    /// pod that a client comes from, its QoS 2 publishes that were answered there would go live a second time here.
    pub(crate) async fn meet(&self) {
        let (mut members, mut up) = (self.cluster.members(), self.links.link_events());
        let all = async {
            loop {
                members.mark_unchanged();
                up.mark_unchanged();
                if self.hears_all() {
                    return;
                }
                let is_over = tokio::select! {
                    changed = members.changed() => changed.is_err(),
                    changed = up.changed() => changed.is_err(),
                };
                if is_over {
                    return;
                }
            }
        };
        if tokio::time::timeout(MEETING_MAX, all).await.is_err() {
            tracing::info!("another pod does not answer: starting without it");
        }
    }

    /// The inbox of `target` has more.
    pub(crate) fn inbox_changed(&self, sessions: &Sessions, target: &InboxTarget) {
        self.notices.add(&self.cluster, sessions, &target.client_id);
    }

    /// Has the connection of `holder` ended, if it is at another pod that lives, and waits for that; what that pod knew of
    /// the session. Bounded in time: a pod that does not answer loses the session all the same.
    async fn end(&self, client_id: &ByteString, holder: Holder) -> Received {
        let Holder { pod, incarnation, epoch } = holder;
        if pod == self.cluster.me() || !self.cluster.view().contains(pod) {
            return Received::new();
        }
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.asked.lock().insert(request, Asked { pod, answer });
        let _asking = Asking { elsewhere: self, request };
        let asked = async {
            let kick = SessionMessage::Kick { request, client: client_id.clone(), incarnation, epoch };
            self.links.send(pod, kick).await.ok()?;
            answered.await.ok()
        };
        let gone = async {
            let mut members = self.cluster.members();
            // Ends only with the cluster.
            let _ = members.wait_for(|view| !view.contains(pod)).await;
        };
        let received = tokio::select! {
            received = tokio::time::timeout(EVICTION_WAIT_MAX, asked) => received.ok().flatten(),
            () = gone => None,
        };
        if received.is_none() {
            tracing::info!(client = %client_id, %pod, "taken over from a pod that does not answer");
        }
        received.unwrap_or_default()
    }

    /// The link to `pod` is down: its answers do not come any more.
    fn give_up(&self, pod: PodId) {
        self.asked.lock().retain(|_, asked| asked.pod != pod);
    }
}

impl Broker {
    /// Opens the session of a client for the connection with `mailbox`, which has its place among the clients of this pod.
    /// With other pods the connection that holds it there is ended; `Hold` is to be kept as long as the place.
    pub(crate) async fn open_session(
        self: &Arc<Self>,
        client_id: &ByteString,
        options: &OpenOptions,
        mailbox: &Arc<Mailbox>,
    ) -> weir_core::Result<(Opened, Option<Hold>)> {
        let Some(elsewhere) = &self.elsewhere else {
            return Ok((self.sessions.open(client_id, options).await?, None));
        };
        let holder = self.sessions.holder(client_id).await?;
        let mut received = match holder {
            Some(holder) => elsewhere.end(client_id, holder).await,
            None => Received::new(),
        };
        let hold = elsewhere.holds.begin(client_id, mailbox);
        let opened = self.sessions.open(client_id, options).await?;
        let session = &opened.session;
        hold.opened(session.incarnation, session.epoch, opened.version);
        if let Some(previous) = opened.previous.filter(|previous| Some(*previous) != holder) {
            // It came in between.
            received.extend(elsewhere.end(client_id, previous).await);
        }
        if session.persistent {
            let subscriber = self.persistent_subscriber(client_id, session.incarnation);
            for (id, publish) in received {
                if let Some(id) = weir_codec::PacketId::new(id) {
                    subscriber.note_received(id, publish);
                }
            }
            self.persistent.opened_here(client_id, session.incarnation, opened.version);
            self.look_once_known(elsewhere, mailbox, opened.version);
        }
        Ok((opened, Some(hold)))
    }

    /// Waits until every pod knows of a change of `version`, or some seconds: a pod that does not answer keeps no client
    /// waiting longer. Whoever waited in vain is counted. Does nothing without other pods.
    pub(crate) async fn known_everywhere(&self, version: Option<Version>) {
        let (Some(elsewhere), Some(version)) = (&self.elsewhere, version) else { return };
        let known = elsewhere.cluster.wait_everywhere(version);
        if tokio::time::timeout(ROUTE_WAIT_MAX, known).await.is_err() {
            self.metrics.routes_late.inc();
            tracing::warn!(
                "a pod has not heard of a subscription in time: its publishes may not reach it yet"
            );
        }
    }

    /// Has a connection look at its inbox once every pod knows where it is: what was added to it before that was told to
    /// nobody, or to another pod.
    fn look_once_known(&self, elsewhere: &Elsewhere, mailbox: &Arc<Mailbox>, version: Version) {
        let known = elsewhere.cluster.wait_everywhere(version);
        let mailbox = Arc::clone(mailbox);
        self.tasks.spawn(async move {
            tokio::select! {
                _ = tokio::time::timeout(KNOWN_WAIT_MAX, known) => mailbox.inbox_changed(),
                () = mailbox.left() => {}
            }
        });
    }

    /// Has all connections look at their inboxes, some at a time.
    pub(crate) fn look_at_inboxes(self: &Arc<Self>) {
        let mailboxes = self.clients.staying();
        self.tasks.spawn(async move {
            for some in mailboxes.chunks(LOOKS_AT_ONCE) {
                some.iter().for_each(|mailbox| mailbox.inbox_changed());
                tokio::time::sleep(LOOK_PAUSE).await;
            }
        });
    }

    /// Ends the connection that another pod has asked to, and tells what only this pod knew of its session.
    async fn handle_kick(
        self: &Arc<Self>,
        client_id: &ByteString,
        incarnation: Incarnation,
        epoch: SessionEpoch,
    ) -> Received {
        let Some(elsewhere) = &self.elsewhere else { return Received::new() };
        let ended = elsewhere.holds.end(client_id, incarnation, epoch);
        if tokio::time::timeout(EVICTION_WAIT_MAX, ended).await.is_err() {
            tracing::info!(client = %client_id, "a connection whose client is elsewhere takes long to end");
        }
        let subscriber = self.persistent.find(client_id, incarnation);
        subscriber.map(|subscriber| subscriber.take_received()).unwrap_or_default()
    }
}

/// Takes what other pods say of sessions.
pub(crate) struct SessionHandler {
    broker: std::sync::Weak<Broker>,
}

impl SessionHandler {
    pub(crate) fn new(broker: &Arc<Broker>) -> Self {
        Self { broker: Arc::downgrade(broker) }
    }
}

impl PeerHandler for SessionHandler {
    fn handle(&self, from: PodId, message: PeerMessage) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some(broker) = self.broker.upgrade() else { return };
            let Some(elsewhere) = broker.elsewhere.clone() else { return };
            // Its lane brings nothing else.
            let PeerMessage::Session(message) = message else { return };
            match message {
                SessionMessage::Kick { request, client, incarnation, epoch } => {
                    let place = elsewhere.kicks.begin().await;
                    let ending = Arc::clone(&broker);
                    broker.tasks.spawn(async move {
                        let received = ending.handle_kick(&client, incarnation, epoch).await;
                        // Without a link nobody waits any more.
                        let _ =
                            elsewhere.links.send(from, SessionMessage::Kicked { request, received }).await;
                        drop(place);
                    });
                }
                SessionMessage::Kicked { request, received } => {
                    let asked = elsewhere.asked.lock().remove(&request).filter(|asked| asked.pod == from);
                    // Whoever asked may have given up.
                    let _ = asked.map(|asked| asked.answer.send(received));
                }
                SessionMessage::InboxChanged { clients } => {
                    clients.iter().for_each(|client| broker.clients.notify_inbox(client));
                }
                SessionMessage::AllInboxesChanged => broker.look_at_inboxes(),
            }
        })
    }

    fn link_up(&self, _pod: PodId) {
        if let Some(broker) = self.broker.upgrade()
            && let Some(elsewhere) = &broker.elsewhere
        {
            elsewhere.notices.link_up();
        }
    }

    fn link_down(&self, pod: PodId) {
        if let Some(broker) = self.broker.upgrade()
            && let Some(elsewhere) = &broker.elsewhere
        {
            elsewhere.give_up(pod);
            elsewhere.notices.missed(pod);
        }
    }
}
