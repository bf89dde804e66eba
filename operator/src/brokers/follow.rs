//! One task per Broker: lists what it has at start and every so often, follows its changes in between, and is the one
//! that asks a Broker which does not answer. Owns these tasks; wakes objects and decides nothing about them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;
use weir_env::seed::{HashMap, Seed};
use weir_operator_api::Broker;

use super::admin::{Admin, AdminError, Changes, Kind, Told};
use super::find::BrokerId;
use super::link::{Health, Link, Links, News};
use crate::backoff::{delay, jittered};
use crate::tasks::Tasks;

/// The first and the longest pause between two tries of a Broker that does not answer.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// How often it is looked whether a Broker has been away for long.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Time until a watch has begun.
const BEGIN: Duration = Duration::from_secs(10);
/// Pages of one list: at 500 objects each far more than a broker may have.
const PAGES_MAX: usize = 1000;

/// Who must look at something. Waking one that does not exist does nothing.
pub(crate) trait Wake: Send + Sync + 'static {
    /// The objects that declare this name, wherever they are.
    fn wake(&self, kind: Kind, name: &str) -> impl Future<Output = ()> + Send;

    /// Every object that belongs to the Broker or might.
    fn wake_all(&self, broker: &BrokerId) -> impl Future<Output = ()> + Send;
}

/// The tasks.
pub(crate) struct Followers<W> {
    links: Arc<Links>,
    admin: Arc<dyn Admin>,
    wake: Arc<W>,
    resync: Duration,
    seed: Seed,
    tasks: Tasks,
    running: HashMap<BrokerId, CancellationToken>,
}

impl<W: Wake> Followers<W> {
    /// No tasks yet. Every Broker is listed every `resync`, more or less. They end with `tasks`.
    pub(crate) fn new(
        links: Arc<Links>,
        admin: Arc<dyn Admin>,
        wake: Arc<W>,
        resync: Duration,
        seed: Seed,
        tasks: Tasks,
    ) -> Self {
        Self { links, admin, wake, resync, seed, tasks, running: HashMap::default() }
    }

    /// Follows these Brokers from now on, and no others.
    pub(crate) async fn set(&mut self, brokers: &[Arc<Broker>]) {
        for id in self.links.ids() {
            if !brokers.iter().any(|broker| BrokerId::of(broker) == id) {
                tracing::info!(broker = %id, "the Broker is gone");
                self.links.close(&id);
                if let Some(cancel) = self.running.remove(&id) {
                    cancel.cancel();
                }
                self.wake.wake_all(&id).await;
            }
        }
        for broker in brokers {
            let (link, news) = self.links.open(broker);
            match news {
                News::None => continue,
                News::Edited => {
                    self.wake.wake_all(&link.id).await;
                    continue;
                }
                News::Made => {}
            }
            let cancel = self.tasks.cancel().child_token();
            let before = self.running.insert(link.id.clone(), cancel.clone());
            if let Some(before) = before {
                before.cancel();
            }
            let follower = Follower {
                link,
                admin: self.admin.clone(),
                wake: self.wake.clone(),
                resync: self.resync,
                seed: self.seed.fork(&BrokerId::of(broker).to_string()),
            };
            self.wake.wake_all(&follower.link.id).await;
            self.tasks.spawn_droppable(cancel, async move { follower.run().await });
        }
    }
}

struct Follower<W> {
    link: Arc<Link>,
    admin: Arc<dyn Admin>,
    wake: Arc<W>,
    resync: Duration,
    seed: Seed,
}

impl<W: Wake> Follower<W> {
    async fn run(&self) {
        tokio::join!(self.follow(), self.look_for_long());
    }

    /// Has everything looked at once the Broker has been away for long, however long it keeps each try waiting.
    async fn look_for_long(&self) {
        let mut was_long = false;
        loop {
            let is_long = matches!(self.link.health(), Health::Down { long: true, .. });
            if is_long && !was_long {
                self.wake.wake_all(&self.link.id).await;
            }
            was_long = is_long;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn follow(&self) {
        let mut failures = 0;
        loop {
            let mut has_listed = false;
            let Err(error) = self.session(&mut has_listed).await;
            if has_listed {
                failures = 0;
            }
            let why = error.to_string();
            if self.link.set_down(&why) || failures == 0 {
                tracing::warn!(broker = %self.link.id, why, "the Broker cannot be followed");
                // A watch that ends with its pod is no reason to say that all is down: ask another one first.
                if !has_listed {
                    self.wake.wake_all(&self.link.id).await;
                }
            }
            let pause = jittered(delay(PAUSES.0, PAUSES.1, failures), &self.seed);
            failures += 1;
            tokio::time::sleep(pause).await;
        }
    }

    /// Follows the Broker until it does not answer.
    async fn session(&self, has_listed: &mut bool) -> Result<std::convert::Infallible, AdminError> {
        let broker = self.link.broker();
        let mut changes: Changes = self.link.note("watch", self.admin.watch(&broker).await)?;
        // The first word is `Reload`: nothing is missed between it and the list.
        match tokio::time::timeout(BEGIN, changes.next()).await {
            Ok(Some(told)) => drop(told?),
            Ok(None) => return Err(ended()),
            Err(_) => return Err(AdminError::Unavailable("the watch did not begin in time".to_owned())),
        }
        self.list().await?;
        *has_listed = true;
        loop {
            let resync = jittered(self.resync, &self.seed);
            tokio::select! {
                told = changes.next() => match told.ok_or_else(ended)?? {
                    Told::Reload => self.list().await?,
                    Told::Changed(object) => {
                        let (kind, name) = (object.kind, object.name.clone());
                        let concerns_us = self.link.ledger.lock().changed(&object);
                        if concerns_us {
                            self.wake.wake(kind, &name).await;
                        }
                    }
                    Told::Gone(kind, name) => {
                        self.link.ledger.lock().gone(kind, &name);
                        self.wake.wake(kind, &name).await;
                    }
                },
                () = self.link.suspected.notified() => self.list().await?,
                () = tokio::time::sleep(resync) => self.list().await?,
            }
        }
    }

    /// Lists all that the Broker has, and wakes those that it has not as they should be.
    async fn list(&self) -> Result<(), AdminError> {
        let broker = self.link.broker();
        let mut objects = Vec::new();
        let mut page = String::new();
        for _ in 0..PAGES_MAX {
            let listed = self.link.note("list", self.admin.list(&broker, &page).await)?;
            objects.extend(listed.objects);
            page = listed.next;
            if page.is_empty() {
                break;
            }
        }
        let differing = self.link.ledger.lock().listed(&objects);
        tracing::debug!(broker = %self.link.id, objects = objects.len(), differing = differing.len(), "listed");
        if self.link.set_up() {
            tracing::info!(broker = %self.link.id, "the Broker answers");
            self.wake.wake_all(&self.link.id).await;
            return Ok(());
        }
        for (kind, name) in differing {
            self.wake.wake(kind, &name).await;
        }
        Ok(())
    }
}

fn ended() -> AdminError {
    AdminError::Unavailable("the watch ended".to_owned())
}
