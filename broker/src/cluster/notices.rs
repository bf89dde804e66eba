//! Tells other pods whose inboxes have more: gathered while it is sent, each client once. A pod to which the link is down,
//! so that it may have missed some, looks at all inboxes of its clients once the link is there again; what a pod that is
//! gone could not tell, all others look for (`orphans`).

use std::time::Duration;

use bytestring::ByteString;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use weir_core::cluster::Cluster;
use weir_core::cluster::links::{Links, TrySendError};
use weir_core::cluster::message::SessionMessage;
use weir_core::keyspace::owner::PodId;
use weir_core::sessions::{Place, Sessions};
use weir_env::seed::{HashMap, HashSet};

/// Clients named in one message.
const CLIENTS_PER_MESSAGE: usize = 1_000;
/// Clients that wait to be named to one pod; with more it is told to look at all of its clients' inboxes.
const CLIENTS_MAX: usize = 10_000;
/// Wait before a pod whose lane is full is told.
const FULL_WAIT: Duration = Duration::from_millis(5);

/// What is to be told.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    by_pod: Mutex<HashMap<PodId, Waiting>>,
    arrived: Notify,
    /// Times that there was more to tell a pod than may wait.
    overflows: Counter,
}

#[derive(Debug)]
enum Waiting {
    Some(HashSet<ByteString>),
    All,
}

impl Waiting {
    /// Adds a client; whether it was one too many.
    fn add(&mut self, client_id: &ByteString) -> bool {
        match self {
            Self::Some(clients) if clients.len() < CLIENTS_MAX || clients.contains(client_id) => {
                clients.insert(client_id.clone());
                false
            }
            Self::Some(_) => {
                *self = Self::All;
                true
            }
            Self::All => false,
        }
    }

    /// Some of the clients, as a message names them.
    fn first(&self) -> Vec<ByteString> {
        match self {
            Self::All => Vec::new(),
            Self::Some(clients) => clients.iter().take(CLIENTS_PER_MESSAGE).cloned().collect(),
        }
    }

    /// Forgets clients that have been named; whether that were all.
    fn named(&mut self, clients: &[ByteString]) -> bool {
        match self {
            Self::All => true,
            Self::Some(waiting) => {
                for client in clients {
                    waiting.remove(client);
                }
                waiting.is_empty()
            }
        }
    }
}

impl Notices {
    pub(crate) fn new(overflows: Counter) -> Self {
        Self { overflows, ..Self::default() }
    }

    /// The inbox of `client_id` has more: has the pod told where it is connected, if that is not this one.
    pub(crate) fn add(&self, cluster: &Cluster, sessions: &Sessions, client_id: &ByteString) {
        let to = match sessions.whereabouts(client_id) {
            Place::Away => return,
            Place::At(pod) if pod == cluster.me() => return,
            Place::At(pod) => Some(pod),
            Place::Unknown => None,
        };
        let view = cluster.view();
        let mut by_pod = self.by_pod.lock();
        let mut add = |pod| {
            let waiting = by_pod.entry(pod).or_insert_with(|| Waiting::Some(HashSet::default()));
            self.overflows.inc_by(u64::from(waiting.add(client_id)));
        };
        match to {
            Some(pod) => add(pod),
            None => view.pods.iter().map(|pod| pod.id).filter(|pod| *pod != cluster.me()).for_each(add),
        }
        drop(by_pod);
        self.arrived.notify_one();
    }

    /// The link to `pod` is down: what was in line for it may not have come.
    pub(crate) fn missed(&self, pod: PodId) {
        self.by_pod.lock().insert(pod, Waiting::All);
    }

    /// There is a link again.
    pub(crate) fn link_up(&self) {
        self.arrived.notify_one();
    }

    /// Sends what there is until `stop`.
    pub(crate) async fn run(&self, cluster: &Cluster, links: &Links, stop: &CancellationToken) {
        while stop.run_until_cancelled(self.arrived.notified()).await.is_some() {
            while self.send(cluster, links)
                && stop.run_until_cancelled(tokio::time::sleep(FULL_WAIT)).await.is_some()
            {}
        }
    }

    /// Sends what can be sent to members; whether something is left for which there is no room.
    fn send(&self, cluster: &Cluster, links: &Links) -> bool {
        let view = cluster.view();
        let pods: Vec<PodId> = {
            let mut by_pod = self.by_pod.lock();
            by_pod.retain(|pod, _| view.contains(*pod));
            by_pod.keys().copied().collect()
        };
        pods.into_iter().map(|pod| self.send_to(pod, links)).fold(false, |any, left| any | left)
    }

    fn send_to(&self, pod: PodId, links: &Links) -> bool {
        loop {
            let mut by_pod = self.by_pod.lock();
            let Some(waiting) = by_pod.get_mut(&pod) else { return false };
            let clients = waiting.first();
            let message = match waiting {
                Waiting::All => SessionMessage::AllInboxesChanged,
                Waiting::Some(_) => SessionMessage::InboxChanged { clients: clients.clone() },
            };
            match links.try_send(pod, message) {
                Ok(()) if !waiting.named(&clients) => {}
                Ok(()) => {
                    by_pod.remove(&pod);
                    return false;
                }
                Err(TrySendError::Full) => return true,
                Err(TrySendError::Unreachable) => {
                    *waiting = Waiting::All;
                    return false;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_would_have_too_many_clients_named_looks_at_all() {
        let mut waiting = Waiting::Some(HashSet::default());
        let client = |n: usize| ByteString::from(format!("c{n}"));
        assert!((0..CLIENTS_MAX).all(|n| !waiting.add(&client(n))));
        assert!(!waiting.add(&client(7)), "once more is no more");
        let first = waiting.first();
        assert_eq!(first.len(), CLIENTS_PER_MESSAGE);
        assert!(waiting.add(&client(CLIENTS_MAX)) && matches!(waiting, Waiting::All));
        assert!(!waiting.add(&client(0)) && waiting.first().is_empty());
        // They are told so by one message.
        assert!(waiting.named(&[]));
    }
}
