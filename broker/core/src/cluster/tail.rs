//! The task that reads the change feed and the signs of life of other pods, and keeps what this pod knows of members and
//! owners as the store has it.
//!
//! It reads when the tick of the feed changes, and once in a heartbeat in any case. What it has read up to is a version of
//! the store, so it grows also while nothing changes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use weir_env::clock::Instant;
use weir_storage::{Isolation, RangeQuery, Store, Transaction, Version, Watch};

use super::view::{Member, View};
use super::{Inner, membership};
use crate::error::{Error, Result};
use crate::keyspace::change::{self, Change, Floor, Topic};
use crate::keyspace::load::PodLoad;
use crate::keyspace::owner::{Owner, PodId};
use crate::keyspace::pod::{Heartbeat, Pod, PodInfo};
use crate::keyspace::{DecodeError, VirtualShard, tag};

/// Rows in one page.
const PAGE: usize = 1000;
/// Changes read in one go; if there are more, everything is read again.
const CHANGES_MAX: usize = 50_000;
/// The owner of this virtual shard trims the feed.
const TRIMMER: VirtualShard = VirtualShard(0);
/// Pause between two reads, so that a busy feed is read in larger pieces.
const PAUSE: Duration = Duration::from_millis(1);

/// The reader of the feed.
pub(super) struct Tail {
    inner: Arc<Inner>,
    /// All changes up to here have been taken in.
    cursor: Version,
    lives_due: Instant,
    trim_due: Instant,
    /// Changes read since the start, and at which version when there were how many.
    read: u64,
    places: VecDeque<Place>,
}

/// A version, when it was, and how many changes had been read then.
struct Place {
    at: Instant,
    version: Version,
    read: u64,
}

/// What one look has found.
struct Found {
    version: Version,
    news: News,
    lives: Option<Vec<(PodId, Heartbeat)>>,
    /// When the look began: what it found was so then, or later.
    since: Instant,
    tick: Watch,
}

enum News {
    /// What has changed, and the members if they have.
    Changes(Vec<(Version, Arc<Change>)>, Option<Vec<Member>>),
    /// Something is missing: all there is.
    Everything(Vec<Member>, Vec<(VirtualShard, Owner)>),
}

impl Tail {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        let now = inner.clock.now();
        let (lives_due, trim_due) = (now, now + inner.options.trim_interval);
        Self { inner, cursor: Version::default(), lives_due, trim_due, read: 0, places: VecDeque::new() }
    }

    /// Reads everything for the first time.
    pub(super) async fn start(&mut self) -> Result<()> {
        let found = self.find(true).await?;
        self.take(found).await;
        Ok(())
    }

    /// Reads until stopped.
    pub(super) async fn run(mut self) {
        let inner = Arc::clone(&self.inner);
        let mut is_gap = false;
        let mut tick = None;
        loop {
            let wait = tokio::time::sleep_until(self.lives_due);
            tokio::select! {
                () = wait => {}
                () = changed(&mut tick) => tokio::time::sleep(PAUSE).await,
                () = inner.feed.woken() => {}
                () = inner.stopped.cancelled() => return,
            }
            let found = tokio::select! {
                found = self.find(is_gap) => found,
                () = inner.stopped.cancelled() => return,
            };
            match found {
                Ok(found) => {
                    is_gap = false;
                    tick = Some(self.take(found).await);
                }
                Err(error) => {
                    // What cannot be read is passed over: what it was of is read whole.
                    is_gap |= matches!(error, Error::Record(_));
                    if is_gap {
                        inner.metrics.unreadable.inc();
                        tracing::warn!(%error, "read the change feed");
                    } else {
                        tracing::debug!(%error, "read the change feed");
                    }
                    tick = None;
                    self.lives_due = inner.clock.now() + inner.options.heartbeat;
                }
            }
            self.trim().await;
        }
    }

    /// What there is after the cursor, or everything.
    async fn find(&self, everything: bool) -> Result<Found> {
        let since = self.inner.clock.now();
        let mut tx = self.inner.store.begin();
        let version = tx.read_version().await?;
        let news = if everything { None } else { self.changes(&mut *tx).await? };
        let news = match news {
            Some(changes) => {
                let is_of_pods = changes.iter().any(|(_, change)| change.topic() == Topic::Pods);
                let members = if is_of_pods { Some(members(&mut *tx).await?) } else { None };
                News::Changes(changes, members)
            }
            None => News::Everything(members(&mut *tx).await?, owners(&mut *tx).await?),
        };
        let lives = if since >= self.lives_due { Some(lives(&mut *tx).await?) } else { None };
        let tick = tx.watch(&change::tick_key());
        tx.commit().await?;
        Ok(Found { version, news, lives, since, tick })
    }

    /// The changes after the cursor; none if some of them are not there any more, or they are too many.
    async fn changes(&self, tx: &mut dyn Transaction) -> Result<Option<Vec<(Version, Arc<Change>)>>> {
        let floor = tx.get(&Floor::key(), Isolation::Snapshot).await?;
        let floor = floor.map(Floor::decode).transpose()?.unwrap_or_default();
        if floor.0 > self.cursor {
            return Ok(None);
        }
        let mut changes = Vec::new();
        for (key, value) in match rows(tx, change::range_after(self.cursor), CHANGES_MAX).await? {
            Some(rows) => rows,
            None => return Ok(None),
        } {
            changes.push((change::version_of(&key)?, Arc::new(Change::decode(value)?)));
        }
        Ok(Some(changes))
    }

    /// Takes in what was found.
    async fn take(&mut self, found: Found) -> Watch {
        let Found { version, news, lives, since, tick } = found;
        let inner = Arc::clone(&self.inner);
        self.cursor = version;
        match news {
            News::Changes(changes, members) => {
                self.read += changes.len() as u64;
                inner.metrics.changes.inc_by(changes.len() as u64);
                if let Some(members) = members {
                    inner.set_members(members);
                }
                inner.learn_owners(changes.iter().filter_map(|(_, change)| match **change {
                    Change::Owner { vs, epoch, pod } => Some((vs, Owner { epoch, pod })),
                    _ => None,
                }));
                inner.feed.deliver(&changes, version);
            }
            News::Everything(members, owners) => {
                inner.metrics.reloads.inc();
                inner.set_members(members);
                inner.learn_owners(owners);
                inner.feed.reload(version);
            }
        }
        inner.metrics.waiting.set(i64::try_from(inner.feed.waiting()).unwrap_or(i64::MAX));
        if let Some(lives) = lives {
            self.lives_due = inner.clock.now() + inner.options.heartbeat;
            self.judge(&lives, since).await;
        }
        tick
    }

    /// Notes the signs of life of other pods, and declares dead who gives none.
    async fn judge(&self, lives: &[(PodId, Heartbeat)], since: Instant) {
        let inner = &self.inner;
        let view = Arc::clone(&inner.view_tx.borrow());
        let dead = {
            let now = inner.clock.now();
            let mut pods = inner.pods.lock();
            pods.retain(|pod| view.contains(pod) && pod != inner.me);
            for member in view.pods.iter().filter(|member| member.id != inner.me) {
                let beat = lives.iter().find(|(pod, _)| *pod == member.id).map(|(_, beat)| *beat);
                // Without one it has until its TTL is over, too.
                let applied = membership::stamp(Version::default());
                let none = Heartbeat { counter: 0, ttl_ms: 5000, applied, load: PodLoad::default() };
                pods.observe(member.id, &beat.unwrap_or(none), now);
            }
            if inner.may_judge() {
                pods.dead(since)
            } else {
                pods.begin_again(now);
                Vec::new()
            }
        };
        inner.progressed();
        for (pod, counter) in dead {
            match membership::declare_dead(inner, pod, counter).await {
                Ok(true) => {
                    inner.metrics.declared_dead.inc();
                    tracing::warn!(%pod, "pod gives no sign of life: declared dead");
                    inner.feed.wake();
                }
                Ok(false) => {}
                Err(error) => tracing::debug!(%pod, %error, "declare a pod dead"),
            }
        }
    }

    /// Removes old changes, if this pod is the one that does.
    async fn trim(&mut self) {
        let now = self.inner.clock.now();
        if now < self.trim_due {
            return;
        }
        self.trim_due = now + self.inner.options.trim_interval;
        self.places.push_back(Place { at: now, version: self.cursor, read: self.read });
        let options = &self.inner.options;
        let is_old = |place: &Place| {
            now.saturating_duration_since(place.at) >= options.changes_kept
                || self.read - place.read >= options.changes_kept_max
        };
        let mut below = None;
        while let Some(place) = self.places.pop_front_if(|place| is_old(place)) {
            below = Some(place.version);
        }
        let view = Arc::clone(&self.inner.view_tx.borrow());
        if let Some(below) = below.filter(|_| view.assigned(TRIMMER) == Some(self.inner.me)) {
            // The next trim does what this one does not.
            if let Err(error) = trim_below(&*self.inner.store, below).await {
                tracing::debug!(%error, "trim the change feed");
            }
        }
    }
}

impl Inner {
    fn set_members(&self, pods: Vec<Member>) {
        let version = self.view_tx.borrow().version + 1;
        let view = View::new(version, pods, self.virtual_shards);
        self.metrics.members.set(i64::try_from(view.pods.len()).unwrap_or(i64::MAX));
        let before = self.view_tx.send_replace(Arc::new(view));
        let view = Arc::clone(&self.view_tx.borrow());
        for gone in before.pods.iter().filter(|pod| !view.contains(pod.id)) {
            tracing::info!(pod = %gone.id, "pod has left the cluster");
        }
        for new in view.pods.iter().filter(|pod| !before.contains(pod.id) && pod.id != self.me) {
            tracing::info!(pod = %new.id, peer = %new.info.peer, "pod is in the cluster");
        }
        self.progressed();
    }
}

/// Removes changes of versions up to `below`. The floor never falls: a pod that was held up and comes late to it would have
/// others believe that nothing is missing.
async fn trim_below(store: &dyn Store, below: Version) -> Result<()> {
    let mut tx = store.begin();
    let floor = tx.get(&Floor::key(), Isolation::Serializable).await?;
    // One that cannot be read is replaced.
    let floor = floor.and_then(|floor| Floor::decode(floor).ok()).unwrap_or_default();
    if floor.0 < below {
        tx.set(&Floor::key(), &Floor(below).encode());
        let (begin, end) = change::range_to(below);
        tx.clear_range(&begin, &end);
        tx.commit().await?;
    }
    Ok(())
}

/// Waits for the watch, and for ever without one.
async fn changed(tick: &mut Option<Watch>) {
    match tick {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// The rows of `range`; none if they are more than `max`.
async fn rows(
    tx: &mut dyn Transaction,
    (begin, end): (Vec<u8>, Vec<u8>),
    max: usize,
) -> Result<Option<Vec<(Bytes, Bytes)>>> {
    let mut rows = Vec::new();
    let mut next = Some(RangeQuery::new(begin, end).limit(PAGE));
    while let Some(query) = next {
        let page = tx.get_range(query.clone(), Isolation::Snapshot).await?;
        next = query.after(&page);
        rows.extend(page.pairs);
        if rows.len() > max {
            return Ok(None);
        }
    }
    Ok(Some(rows))
}

/// What was read; none and a warning if it cannot be.
fn readable<T>(what: &str, record: std::result::Result<T, DecodeError>) -> Option<T> {
    record.inspect_err(|error| tracing::warn!(what, %error, "a record of the cluster cannot be read")).ok()
}

async fn all_rows(tx: &mut dyn Transaction, range: (Vec<u8>, Vec<u8>)) -> Result<Vec<(Bytes, Bytes)>> {
    Ok(rows(tx, range, usize::MAX).await?.unwrap_or_default())
}

async fn members(tx: &mut dyn Transaction) -> Result<Vec<Member>> {
    let rows = all_rows(tx, Pod::range()).await?;
    // One of a version of Weir that is not known here is a member all the same, which nobody can reach.
    let member = |(key, value): (Bytes, Bytes)| {
        let id = readable("pod", Pod::of_key(&key))?;
        let pod = readable("pod", Pod::decode(value));
        let unknown = Pod { info: PodInfo::default(), is_draining: true, order: None };
        let Pod { info, is_draining, order } = pod.unwrap_or(unknown);
        Some(Member { id, info, is_draining, order })
    };
    Ok(rows.into_iter().filter_map(member).collect())
}

async fn lives(tx: &mut dyn Transaction) -> Result<Vec<(PodId, Heartbeat)>> {
    let rows = all_rows(tx, Heartbeat::range()).await?;
    let life = |(key, value): (Bytes, Bytes)| {
        Heartbeat::of_key(&key).and_then(|pod| Ok((pod, Heartbeat::decode(value)?)))
    };
    // What cannot be read is no sign of life.
    Ok(rows.into_iter().filter_map(|row| life(row).ok()).collect())
}

async fn owners(tx: &mut dyn Transaction) -> Result<Vec<(VirtualShard, Owner)>> {
    let range = (vec![tag::OWNER], weir_storage::prefix_end(&[tag::OWNER]));
    let owner = |(key, value): (Bytes, Bytes)| {
        let vs = key.get(1..).and_then(|vs| vs.try_into().ok()).map(u16::from_be_bytes);
        let vs = vs.ok_or(DecodeError::Truncated("virtual shard"))?;
        Ok((VirtualShard(vs), Owner::decode(value)?))
    };
    // Whoever is to take such a shard over says what is wrong with it.
    let rows = all_rows(tx, range).await?.into_iter();
    Ok(rows.filter_map(|row| readable("shard owner", owner(row))).collect())
}
