//! Who leads: one operator at a time holds a Lease of its namespace. Owns the state of the election.
//!
//! Expiry is judged by how long the Lease has not changed by this process's own clock, never by the times in it. Who
//! cannot renew in time stops before another may take over; should two lead all the same, the broker's writer token
//! fences the older one off, and that, not this, is what keeps the data right. Written here rather than taken from
//! `kube-lease-manager`: that one works through server-side apply and a channel; a hundred lines with optimistic locking
//! are easier to reason about.

use std::pin::Pin;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use weir_env::clock::{Clock, Instant};
use weir_env::seed::Seed;

use crate::backoff::jittered;

/// A Lease that has not changed for so long is free.
const TTL: Duration = Duration::from_secs(15);
/// Who could not renew for so long leads no more.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// Time between two tries to renew or to take it.
const RETRY: Duration = Duration::from_secs(2);
/// Time one request may take.
const REQUEST: Duration = Duration::from_secs(4);

/// Whether this process leads.
pub(crate) trait Leadership: Send + Sync + 'static {
    /// Asks those who know.
    fn confirm(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;
}

/// It leads, since nobody else runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alone;

impl Leadership for Alone {
    fn confirm(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(std::future::ready(true))
    }
}

impl Leadership for Election {
    fn confirm(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(self.is_leader())
    }
}

/// A candidate.
#[derive(Debug)]
pub(crate) struct Election {
    leases: Api<Lease>,
    name: String,
    identity: String,
    clock: Clock,
    seed: Seed,
}

/// The Lease as it was last seen to change.
#[derive(Debug)]
struct Sight {
    version: Option<String>,
    since: Instant,
}

impl Election {
    /// A candidate with a name of its own for the Lease `name` in `namespace`. Give it a client that nothing else uses:
    /// renewals must not queue behind other requests.
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: String,
        clock: Clock,
        seed: Seed,
    ) -> Self {
        Self { leases: Api::namespaced(client, namespace), name: name.to_owned(), identity, clock, seed }
    }

    /// Waits until this process leads.
    pub(crate) async fn win(&self) {
        let mut sight: Option<Sight> = None;
        loop {
            match self.bounded(self.try_win(&mut sight)).await {
                Ok(true) => {
                    tracing::info!(lease = %self.name, identity = %self.identity, "leads");
                    return;
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, lease = %self.name, "the lease cannot be read or taken"),
            }
            tokio::time::sleep(jittered(RETRY, &self.seed)).await;
        }
    }

    /// Renews until this process leads no more.
    pub(crate) async fn hold(&self) {
        let mut renewed = self.clock.now();
        loop {
            let attempt = async {
                tokio::time::sleep(jittered(RETRY, &self.seed)).await;
                (self.clock.now(), self.bounded(self.renew()).await)
            };
            let left = RENEW_WITHIN.saturating_sub(self.clock.now().saturating_duration_since(renewed));
            let Ok((asked, answer)) = tokio::time::timeout(left, attempt).await else {
                tracing::error!(lease = %self.name, "the lease could not be renewed in time");
                return;
            };
            match answer {
                Ok(true) => renewed = asked,
                Ok(false) => {
                    tracing::error!(lease = %self.name, "another operator has taken the lease");
                    return;
                }
                Err(error) => tracing::warn!(%error, lease = %self.name, "the lease cannot be renewed"),
            }
        }
    }

    /// Whether the API server says that this process leads.
    async fn is_leader(&self) -> bool {
        match self.bounded(self.leases.get(&self.name)).await {
            Ok(lease) => self.is_mine(&lease),
            Err(error) => {
                tracing::warn!(%error, lease = %self.name, "the lease cannot be read");
                false
            }
        }
    }

    /// Lets another lead at once.
    pub(crate) async fn resign(&self) {
        let given = self.bounded(async {
            let mut lease = self.leases.get(&self.name).await?;
            if self.is_mine(&lease) {
                lease.spec.get_or_insert_default().holder_identity = None;
                self.leases.replace(&self.name, &PostParams::default(), &lease).await?;
            }
            Ok(())
        });
        if let Err(error) = given.await {
            tracing::warn!(%error, lease = %self.name, "the lease is not given back; it expires");
        }
    }

    async fn try_win(&self, sight: &mut Option<Sight>) -> kube::Result<bool> {
        let Some(mut lease) = self.leases.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.taken(None)) };
            return lost_race(self.leases.create(&PostParams::default(), &lease).await);
        };
        let now = self.clock.now();
        let version = lease.metadata.resource_version.clone();
        let since = match sight {
            Some(sight) if sight.version == version => sight.since,
            _ => sight.insert(Sight { version, since: now }).since,
        };
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        let is_free = holder.is_none_or(str::is_empty) || now.saturating_duration_since(since) > TTL;
        if !is_free && !self.is_mine(&lease) {
            return Ok(false);
        }
        lease.spec = Some(self.taken(lease.spec.as_ref()));
        lost_race(self.leases.replace(&self.name, &PostParams::default(), &lease).await)
    }

    async fn renew(&self) -> kube::Result<bool> {
        let mut lease = self.leases.get(&self.name).await?;
        if !self.is_mine(&lease) {
            return Ok(false);
        }
        lease.spec.get_or_insert_default().renew_time = Some(MicroTime(wall(self.clock)));
        // Somebody may have annotated it meanwhile: the next try tells whose it is.
        match self.leases.replace(&self.name, &PostParams::default(), &lease).await {
            Err(kube::Error::Api(status)) if status.is_conflict() => {
                self.leases.get(&self.name).await.map(|lease| self.is_mine(&lease))
            }
            replaced => replaced.map(|_| true),
        }
    }

    fn is_mine(&self, lease: &Lease) -> bool {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref());
        holder == Some(&self.identity)
    }

    fn taken(&self, old: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(wall(self.clock));
        let transitions = old.and_then(|old| old.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_duration_seconds: i32::try_from(TTL.as_secs()).ok(),
            lease_transitions: Some(transitions.saturating_add(1)),
            ..LeaseSpec::default()
        }
    }

    async fn bounded<T>(&self, request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
        match tokio::time::timeout(REQUEST, request).await {
            Ok(answer) => answer,
            Err(late) => Err(kube::Error::Service(late.into())),
        }
    }
}

/// That another was quicker is no failure.
fn lost_race(written: kube::Result<Lease>) -> kube::Result<bool> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The wall clock as Kubernetes writes it.
pub(crate) fn wall(clock: Clock) -> Timestamp {
    i64::try_from(clock.wall().as_micros())
        .ok()
        .and_then(|micros| Timestamp::from_microsecond(micros).ok())
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use kube::client::Body;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_hears_nothing_of_its_lease_leads_no_longer_than_it_may() {
        let silent = tower::service_fn(|_: http::Request<Body>| {
            std::future::pending::<Result<http::Response<Body>, std::convert::Infallible>>()
        });
        let clock = Clock::simulated(weir_env::clock::Timestamp::default());
        for seed in 0..20 {
            let client = Client::new(silent, "default");
            let seed = Seed::fixed(seed);
            let election = Election::new(client, "default", "weir", "me".to_owned(), clock, seed);
            let began = clock.now();
            election.hold().await;
            assert_eq!(clock.now().saturating_duration_since(began), RENEW_WITHIN);
        }
    }
}
