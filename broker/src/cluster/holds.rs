//! Which connection of this pod holds which session, so that exactly that one can be ended when its client has come to
//! another pod. Knows no packet and no store; an entry lives as long as the connection's place among the clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytestring::ByteString;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio_util::sync::CancellationToken;
use weir_core::keyspace::session::{Incarnation, SessionEpoch};
use weir_env::seed::HashMap;
use weir_storage::Version;

use crate::mailbox::{Eviction, Mailbox};

/// The connections of this pod by client. Bounded by the limit on connections.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    by_client: Mutex<HashMap<ByteString, SmallVec<[Entry; 1]>>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    mailbox: Arc<Mailbox>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Its session is being opened.
    Opening {
        /// Another pod has opened the session in this version: this connection has lost it if it was earlier.
        lost_at: Version,
        /// Cancelled when this is over.
        over: CancellationToken,
    },
    Open {
        incarnation: Incarnation,
        epoch: SessionEpoch,
        version: Version,
    },
}

/// An entry; it goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    holds: Arc<Holds>,
    client_id: ByteString,
    id: u64,
}

/// What has to be waited for.
enum Wait {
    ForEnd(Arc<Mailbox>),
    ForOpening(CancellationToken),
}

impl Holds {
    /// The connection with `mailbox` is about to open the session of `client_id`.
    pub(crate) fn begin(self: &Arc<Self>, client_id: &ByteString, mailbox: &Arc<Mailbox>) -> Hold {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let state = State::Opening { lost_at: Version::default(), over: CancellationToken::new() };
        let entry = Entry { id, mailbox: Arc::clone(mailbox), state };
        self.by_client.lock().entry(client_id.clone()).or_default().push(entry);
        Hold { holds: Arc::clone(self), client_id: client_id.clone(), id }
    }

    /// Another pod has opened the session of `client_id` in `version`: connections that opened it earlier are told to
    /// end.
    pub(crate) fn lose(&self, client_id: &ByteString, version: Version) {
        let mut by_client = self.by_client.lock();
        for entry in by_client.get_mut(client_id).into_iter().flatten() {
            match &mut entry.state {
                State::Opening { lost_at, .. } => *lost_at = version.max(*lost_at),
                State::Open { version: own, .. } if *own < version => {
                    entry.mailbox.evict(Eviction::TakenOver);
                }
                State::Open { .. } => {}
            }
        }
    }

    /// The sessions that are open.
    pub(crate) fn open(&self) -> Vec<(ByteString, Incarnation, SessionEpoch)> {
        let by_client = self.by_client.lock();
        let of_client = |(client_id, entries): (&ByteString, &SmallVec<[Entry; 1]>)| {
            let open = entries.iter().filter_map(|entry| match entry.state {
                State::Open { incarnation, epoch, .. } => Some((client_id.clone(), incarnation, epoch)),
                State::Opening { .. } => None,
            });
            open.collect::<SmallVec<[_; 1]>>()
        };
        by_client.iter().flat_map(of_client).collect()
    }

    /// The connection that has opened this session in this epoch is told to end, if there is one.
    pub(crate) fn evict(&self, client_id: &ByteString, incarnation: Incarnation, epoch: SessionEpoch) {
        let _ = self.begin_end(client_id, (incarnation, epoch));
    }

    /// Ends the connection that has opened this session in this epoch, if there is one, and waits for its end. Without an
    /// end of its own: to be bounded in time. Cancel-safe.
    pub(crate) async fn end(&self, client_id: &ByteString, incarnation: Incarnation, epoch: SessionEpoch) {
        while let Some(wait) = self.begin_end(client_id, (incarnation, epoch)) {
            match wait {
                Wait::ForEnd(mailbox) => return mailbox.left().await,
                Wait::ForOpening(over) => over.cancelled().await,
            }
        }
    }

    fn begin_end(&self, client_id: &ByteString, wanted: (Incarnation, SessionEpoch)) -> Option<Wait> {
        let by_client = self.by_client.lock();
        let entries = by_client.get(client_id)?;
        let mut opening = None;
        for Entry { mailbox, state, .. } in entries {
            match state {
                State::Open { incarnation, epoch, .. } if (*incarnation, *epoch) == wanted => {
                    mailbox.evict(Eviction::TakenOver);
                    return Some(Wait::ForEnd(Arc::clone(mailbox)));
                }
                State::Open { .. } => {}
                // It may turn out to be the one.
                State::Opening { over, .. } => opening = Some(Wait::ForOpening(over.clone())),
            }
        }
        opening
    }
}

impl Hold {
    /// The session is open as of `version`. If another pod has opened it since, the connection is told to end.
    pub(crate) fn opened(&self, incarnation: Incarnation, epoch: SessionEpoch, version: Version) {
        let mut by_client = self.holds.by_client.lock();
        let mut entries = by_client.get_mut(&self.client_id).into_iter().flatten();
        let Some(entry) = entries.find(|entry| entry.id == self.id) else { return };
        let before = std::mem::replace(&mut entry.state, State::Open { incarnation, epoch, version });
        if let State::Opening { lost_at, over } = before {
            if version < lost_at {
                entry.mailbox.evict(Eviction::TakenOver);
            }
            over.cancel();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut by_client = self.holds.by_client.lock();
        let Some(entries) = by_client.get_mut(&self.client_id) else { return };
        if let Some(at) = entries.iter().position(|entry| entry.id == self.id)
            && let State::Opening { over, .. } = entries.remove(at).state
        {
            over.cancel();
        }
        if entries.is_empty() {
            by_client.remove(&self.client_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const SESSION: Incarnation = Incarnation(7);

    fn mailbox() -> Arc<Mailbox> {
        Arc::new(Mailbox::new(1_000))
    }

    fn is_evicted(mailbox: &Mailbox) -> bool {
        mailbox.eviction() == Some(Eviction::TakenOver)
    }

    #[test]
    fn who_opened_earlier_loses() {
        let (holds, client) = (Arc::new(Holds::default()), ByteString::from("c"));
        let (old, young, slow) = (mailbox(), mailbox(), mailbox());
        let first = holds.begin(&client, &old);
        first.opened(SESSION, SessionEpoch(1), Version(10));
        let second = holds.begin(&client, &young);
        second.opened(SESSION, SessionEpoch(3), Version(30));
        let third = holds.begin(&client, &slow);
        holds.lose(&client, Version(20));
        assert!(is_evicted(&old) && !is_evicted(&young) && !is_evicted(&slow));
        third.opened(SESSION, SessionEpoch(1), Version(15));
        assert!(is_evicted(&slow), "another pod has opened it since");
        drop((first, second, third));
        assert!(holds.by_client.lock().is_empty());
    }

    #[tokio::test]
    async fn exactly_the_connection_that_is_meant_is_ended() {
        let (holds, client) = (Arc::new(Holds::default()), ByteString::from("c"));
        let (one, other) = (mailbox(), mailbox());
        assert_eq!(holds.end(&client, SESSION, SessionEpoch(1)).now_or_never(), Some(()), "there is none");
        let hold = holds.begin(&client, &one);
        assert_eq!(holds.end(&client, SESSION, SessionEpoch(1)).now_or_never(), None, "it may be this one");
        hold.opened(SESSION, SessionEpoch(2), Version(20));
        assert_eq!(holds.end(&client, SESSION, SessionEpoch(1)).now_or_never(), Some(()), "it is not");
        assert!(!is_evicted(&one));
        let _other = holds.begin(&client, &other);
        let mut end = std::pin::pin!(holds.end(&client, SESSION, SessionEpoch(2)));
        assert_eq!(end.as_mut().now_or_never(), None);
        assert!(is_evicted(&one) && !is_evicted(&other));
        one.leave();
        end.await;
    }

    #[tokio::test]
    async fn an_opening_that_fails_keeps_nobody_waiting() {
        let (holds, client) = (Arc::new(Holds::default()), ByteString::from("c"));
        let hold = holds.begin(&client, &mailbox());
        let mut end = std::pin::pin!(holds.end(&client, SESSION, SessionEpoch(1)));
        assert_eq!(end.as_mut().now_or_never(), None);
        drop(hold);
        end.await;
    }
}
