//! What the task of a connection waits for, all of it at once: its socket, answers to publishes, its mailbox, queues,
//! streams, writes, rules, the catalog and the time.
//!
//! Looks and takes note, and decides nothing. All are looked at each time, so that none keeps another from its turn, and
//! by `poll_*` functions without a future of their own: what a connection waits with, it holds as long as it lives.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::coop;
use tokio::time::Sleep;
use weir_core::groups::GroupEvent;
use weir_core::queue::QueueDelivery;
use weir_env::clock::Instant;

use super::auth::{AuthEvent, ClientAuth};
use super::external::External;
use super::inbox::Inbox;
use super::inlet::Inlet;
use super::pending::Pending;
use super::stream::{Lanes, PlaceId};
use super::wire::Wire;
use super::{Answer, Connection};
use crate::mailbox::Mailbox;

/// What there is to do.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) socket: Option<Socket>,
    pub(super) answers: Vec<Answer>,
    pub(super) mail: bool,
    pub(super) delivery: Option<QueueDelivery>,
    /// Of streams something was taken out of a lane.
    pub(super) streams: bool,
    pub(super) written: Option<weir_core::Result<()>>,
    pub(super) auth: Option<AuthEvent>,
    pub(super) catalog: bool,
    /// A consumer group of a stream has said this.
    pub(super) group: Option<(PlaceId, GroupEvent)>,
    /// The time has come that was waited for, or an earlier one that was.
    pub(super) timer: bool,
}

/// What the socket has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Socket {
    Readable,
    /// Writing happens whenever something else has.
    Writable,
    Lost,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wants {
    /// More of what the client sends.
    pub(super) read: bool,
    /// More of queues.
    pub(super) queue: bool,
    /// More of streams.
    pub(super) stream: bool,
    /// At the latest.
    pub(super) until: Option<Instant>,
}

/// Changes of the catalog, for who follows them.
pub(super) struct Catalog(BoxFuture<'static, watch::Receiver<u64>>);

impl Catalog {
    pub(super) fn new(mut changes: watch::Receiver<u64>) -> Self {
        Self(Box::pin(async move {
            if changes.changed().await.is_err() {
                // The catalog outlives every connection.
                std::future::pending::<()>().await;
            }
            changes
        }))
    }

    /// Whether it has changed since the last time.
    fn poll_changed(&mut self, context: &mut Context<'_>) -> bool {
        let Poll::Ready(changes) = self.0.poll_unpin(context) else { return false };
        *self = Self::new(changes);
        true
    }
}

impl Turn {
    /// Whether something has happened but that time went by.
    pub(super) fn is_busy(&self) -> bool {
        self.socket.is_some()
            || !self.answers.is_empty()
            || self.mail
            || self.delivery.is_some()
            || self.streams
            || self.written.is_some()
            || self.auth.is_some()
            || self.catalog
            || self.group.is_some()
    }
}

/// All that may have something, but for the socket and the time.
struct Sources<'a> {
    pending: &'a mut Pending,
    mailbox: &'a Mailbox,
    queue: &'a mut Inlet<QueueDelivery>,
    streams: &'a mut Lanes,
    externals: &'a mut [External],
    inbox: &'a mut Inbox,
    auth: &'a mut Option<Box<ClientAuth>>,
    catalog: &'a mut Option<Catalog>,
}

impl Connection {
    /// Waits until there is something to do.
    pub(super) async fn wait(&mut self, wants: Wants, mut sleep: Pin<&mut Sleep>) -> Turn {
        if wants.read || self.wire.backlog() > 0 {
            std::future::poll_fn(|context| {
                let (wire, mut sources) = self.sources();
                let socket = wire.poll_ready(wants.read, context);
                sources.poll(wants, sleep.as_mut(), socket, context)
            })
            .await
        } else {
            Box::pin(self.wait_apart(wants, sleep)).await
        }
    }

    /// Waits while nothing is wanted of the socket but to know that it is gone, which is rare.
    async fn wait_apart(&mut self, wants: Wants, mut sleep: Pin<&mut Sleep>) -> Turn {
        let (wire, mut sources) = self.sources();
        let mut lost = std::pin::pin!(wire.lost());
        std::future::poll_fn(|context| {
            let socket = lost.as_mut().poll(context).map(|()| Socket::Lost);
            sources.poll(wants, sleep.as_mut(), socket, context)
        })
        .await
    }

    /// Lets others have their turn; what there is to do then.
    pub(super) async fn look(&mut self, wants: Wants, mut sleep: Pin<&mut Sleep>) -> Turn {
        tokio::task::yield_now().await;
        std::future::poll_fn(|context| {
            let (wire, mut sources) = self.sources();
            let socket = wire.poll_ready(wants.read, context);
            match sources.poll(wants, sleep.as_mut(), socket, context) {
                Poll::Ready(turn) => Poll::Ready(turn),
                Poll::Pending => Poll::Ready(Turn::default()),
            }
        })
        .await
    }

    fn sources(&mut self) -> (&Wire, Sources<'_>) {
        let Self { wire, pending, mailbox, queue, streams, externals, inbox, auth, catalog, .. } = self;
        (wire, Sources { pending, mailbox, queue, streams, externals, inbox, auth, catalog })
    }
}

impl Sources<'_> {
    /// Ready if there is anything to do.
    fn poll(
        &mut self,
        wants: Wants,
        mut sleep: Pin<&mut Sleep>,
        socket: Poll<Socket>,
        context: &mut Context<'_>,
    ) -> Poll<Turn> {
        // However much there always is to do, other tasks and timers have their turn.
        ready!(coop::poll_proceed(context)).made_progress();
        let mut turn = Turn::default();
        if let Poll::Ready(socket) = socket {
            turn.socket = Some(socket);
        }
        // Others of the same batch are likely done too.
        while let Some(answer) = self.pending.poll_next(context) {
            let may_be_put_off = answer.1.live.as_ref().is_some_and(|live| live.may_have_to_wait());
            turn.answers.push(answer);
            if may_be_put_off {
                break;
            }
        }
        turn.mail = self.mailbox.poll_changed(context);
        if wants.queue {
            turn.delivery = self.queue.poll_recv(context);
        }
        if wants.stream {
            turn.streams = self.streams.poll_begin(context);
        }
        turn.group = self.externals.iter_mut().find_map(|external| external.poll_group(context));
        turn.written = self.inbox.poll_written(context);
        turn.auth = self.auth.as_mut().and_then(|auth| auth.poll_event(context));
        turn.catalog = self.catalog.as_mut().is_some_and(|catalog| catalog.poll_changed(context));
        if let Some(until) = wants.until {
            // One that is due too early fires and is put off then: most of what is waited for comes long before.
            if sleep.is_elapsed() || until < sleep.deadline() {
                sleep.as_mut().reset(until);
            }
            turn.timer = sleep.poll(context).is_ready();
        }
        if turn.timer || turn.is_busy() { Poll::Ready(turn) } else { Poll::Pending }
    }
}
