//! What a coordinator does unasked: reading what is stored at first, ending groups that nobody uses, measuring how far
//! the others are behind. The state is the coordinator's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use weir_env::clock::Instant;

use super::coordinator::{Coordinator, Done, LAG_INTERVAL, Running};
use super::lag;
use super::state::{Group, Place};
use super::{GroupReport, GroupShard};
use crate::error::Result;
use crate::keyspace::DecodeError;
use crate::keyspace::group::GroupPosition;
use crate::queue::ConsumerId;

/// No group expires so soon after a start: its members are on their way back.
const GRACE: Duration = Duration::from_secs(600);
/// How often the store is told that a group is in use, if nothing else is.
const TOUCH_INTERVAL_MAX: Duration = Duration::from_secs(3600);

impl Coordinator {
    /// Reads what is stored of all groups, after the owners have taken their shards over: nobody else writes from then.
    pub(super) async fn load(&mut self) -> Result<()> {
        let mut stored: BTreeMap<ByteString, BTreeMap<u8, std::result::Result<GroupPosition, DecodeError>>> =
            BTreeMap::new();
        for (shard, rows) in lag::stored(&self.owners, &self.stream, self.guests.is_some()).await? {
            for (name, position) in rows {
                stored.entry(name).or_default().insert(shard, position);
            }
        }
        let shards = self.numbers();
        for (name, rows) in stored {
            let mut positions = Vec::with_capacity(rows.len());
            let is_whole = rows.len() == shards.len();
            let mut damage = None;
            for row in rows.into_values() {
                match row {
                    Ok(position) => positions.push(position),
                    Err(error) => damage = Some(error),
                }
            }
            if let Some(error) = damage {
                let stream = &self.stream.definition.name;
                tracing::error!(stream, group = %name, %error, "read positions of a consumer group");
                self.metrics.damaged.inc();
                self.damaged.insert(name, error);
            } else if is_whole {
                let places = positions
                    .iter()
                    .map(|position| Place { position: position.offset, generation: position.generation });
                let committed = positions.iter().map(|position| position.committed_at).collect();
                let mut running = self.running(&name, Group::restored(places), committed);
                if self.guests.is_some() {
                    running.group.await_members();
                }
                self.groups.insert(name, running);
            } else {
                // Nobody was told that it exists.
                shards.iter().for_each(|shard| self.unwritten.mark(*shard, &name));
                self.write_by(self.now());
            }
        }
        self.is_loaded = true;
        self.call_roll();
        Ok(())
    }

    /// Ends groups that nobody has used for long, and members whose channel is closed.
    pub(super) fn sweep(&mut self, now: Instant) {
        let wall = self.wall();
        let expiry = Duration::from_millis(self.stream.definition.group_expiry_ms);
        let may_expire = !expiry.is_zero() && now >= self.started_at + GRACE.min(expiry);
        let touch = if expiry.is_zero() { TOUCH_INTERVAL_MAX } else { TOUCH_INTERVAL_MAX.min(expiry / 4) };
        let names: Vec<ByteString> = self.groups.keys().cloned().collect();
        for name in names {
            let Some(running) = self.groups.get_mut(&name) else { continue };
            let closed: Vec<ConsumerId> =
                running.events.iter().filter(|(_, events)| events.is_closed()).map(|(id, _)| *id).collect();
            closed.into_iter().for_each(|member| running.is_closed(member, now));
            let Some(running) = self.groups.get_mut(&name) else { continue };
            if running.group.member_count() > 0 {
                running.used_at = wall;
                if running.committed.iter().all(|at| wall.saturating_since(*at) >= touch) {
                    self.unwritten.mark(0, &name);
                    self.write_by(now);
                }
            } else if may_expire && wall.saturating_since(running.used_at) >= expiry {
                self.expire(&name, "it had no members for long");
            }
        }
    }

    /// Begins to measure how far all groups are behind.
    pub(super) fn measure(&mut self) {
        self.measure_at = Some(self.now() + LAG_INTERVAL);
        if self.groups.is_empty() || self.ending.is_some() {
            return;
        }
        self.measure_at = None;
        self.take_progress();
        let (owners, stream, reports) = (Arc::clone(&self.owners), Arc::clone(&self.stream), self.reports());
        let known = std::mem::take(&mut self.times);
        self.work.push(Box::pin(async move {
            Done::Measured(lag::measure(&owners, &stream, reports, &known).await)
        }));
    }

    pub(super) fn show(&mut self, reports: &[GroupReport]) {
        self.times = lag::times(&self.stream, reports);
        let wall = self.wall();
        for report in reports {
            if let Some(running) = self.groups.get_mut(&report.name) {
                let messages = report.shards.iter().map(|shard| shard.lag).sum();
                let oldest = report.shards.iter().filter_map(|shard| shard.oldest).min();
                let age = oldest.map_or(Duration::ZERO, |oldest| wall.saturating_since(oldest));
                running.share.set_lag(messages, age);
            }
        }
    }

    /// The groups as they are now; how far they are behind is not measured yet.
    pub(super) fn reports(&self) -> Vec<GroupReport> {
        let report = |(name, running): (&ByteString, &Running)| {
            let shard = |n: u8| {
                let (place, member) = running.group.place(n);
                GroupShard {
                    shard: n,
                    position: place.position,
                    end: place.position,
                    lag: 0,
                    oldest: None,
                    member: member.cloned(),
                    generation: place.generation,
                    committed_at: running.committed.get(usize::from(n)).copied().unwrap_or_default(),
                }
            };
            let members = running.group.clients().cloned().collect();
            GroupReport { name: name.clone(), members, shards: running.group.numbers().map(shard).collect() }
        };
        self.groups.iter().map(report).collect()
    }
}
