//! The roll call of a shard that has a new owner: nothing is handed out before every other pod has announced what its
//! consumers hold, or has had time to.
//!
//! The shard's owner has it. A pod that runs alone calls nobody.

use std::collections::BTreeSet;
use std::time::Duration;

use weir_env::clock::Instant;

use super::owner::ShardOwner;
use crate::keyspace::owner::PodId;

/// How long pods have to answer. What one that does not has in flight may be delivered to others too.
const ROLL_TIME: Duration = Duration::from_secs(1);

/// Pods that have not answered, and until when they may.
#[derive(Debug)]
pub(super) struct Roll {
    missing: BTreeSet<PodId>,
    until: Instant,
}

impl ShardOwner {
    /// Asks all other pods for their consumers: this one has just taken the shard over.
    pub(super) fn call_roll(&mut self) {
        let missing: BTreeSet<PodId> = match &self.context.remote {
            Some(remote) => remote.call_roll(self.vs).into_iter().collect(),
            None => BTreeSet::new(),
        };
        let until = self.context.clock.now() + ROLL_TIME;
        self.roll = (!missing.is_empty()).then_some(Roll { missing, until });
    }

    /// `pod` has announced its consumers.
    pub(super) fn answer_roll(&mut self, pod: PodId) {
        let Some(roll) = &mut self.roll else { return };
        roll.missing.remove(&pod);
        if roll.missing.is_empty() {
            self.end_roll();
        }
    }

    /// When [`ShardOwner::end_roll`] is to be called, unless all answer before.
    pub(super) fn roll_due(&self) -> Option<Instant> {
        self.roll.as_ref().map(|roll| roll.until)
    }

    /// Deliveries begin.
    pub(super) fn end_roll(&mut self) {
        if self.roll.take().is_some() {
            self.logs.touch_all();
        }
    }
}
