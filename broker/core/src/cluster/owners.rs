//! Who owns which virtual shard, as the feed tells it. Without IO.

use crate::keyspace::VirtualShard;
use crate::keyspace::owner::{Owner, PodId};

/// The newest owner record known of each virtual shard.
#[derive(Debug)]
pub(super) struct OwnerCache(Vec<Option<Owner>>);

impl OwnerCache {
    pub(super) fn new(virtual_shards: u16) -> Self {
        Self(vec![None; usize::from(virtual_shards)])
    }

    pub(super) fn get(&self, vs: VirtualShard) -> Option<Owner> {
        self.0.get(usize::from(vs.0)).copied().flatten()
    }

    /// Whether this is news: epochs only grow.
    pub(super) fn learn(&mut self, vs: VirtualShard, owner: Owner) -> bool {
        let Some(known) = self.0.get_mut(usize::from(vs.0)) else { return false };
        let is_new = known.is_none_or(|known| known.epoch < owner.epoch);
        if is_new {
            *known = Some(owner);
        }
        is_new
    }

    /// What `pod` owns.
    pub(super) fn of(&self, pod: PodId) -> Vec<(VirtualShard, Owner)> {
        let numbered = (0u16..).map(VirtualShard).zip(&self.0);
        numbered
            .filter_map(|(vs, owner)| owner.filter(|owner| owner.pod == pod).map(|owner| (vs, owner)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::owner::Epoch;

    #[test]
    fn the_newest_epoch_counts() {
        let mut cache = OwnerCache::new(2);
        let owner = |epoch, pod| Owner { epoch: Epoch(epoch), pod: PodId([pod; 16]) };
        let vs = VirtualShard(1);
        assert!(cache.learn(vs, owner(3, 1)));
        assert!(!cache.learn(vs, owner(2, 2)) && !cache.learn(vs, owner(3, 1)));
        assert_eq!(cache.of(PodId([1; 16])), [(vs, owner(3, 1))]);
        assert!(cache.learn(vs, owner(4, 2)) && !cache.learn(VirtualShard(9), owner(1, 1)));
        assert_eq!((cache.get(vs), cache.of(PodId([1; 16])).len()), (Some(owner(4, 2)), 0));
    }
}
