//! Who is a member of the cluster, and who should own what because of it. Plain data.

use crate::cluster::rendezvous;
use crate::keyspace::VirtualShard;
use crate::keyspace::owner::PodId;
use crate::keyspace::pod::{DrainOrder, PodInfo};

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which pod.
    pub id: PodId,
    /// What it says of itself.
    pub info: PodInfo,
    /// It is about to leave: it is given no shards.
    pub is_draining: bool,
    /// It was asked to have its clients go, in this way.
    pub order: Option<DrainOrder>,
}

/// The members of the cluster at some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Grows with each change, in this pod.
    pub version: u64,
    /// By id. This pod is one of them until it leaves.
    pub pods: Vec<Member>,
    /// By virtual shard, who should own it.
    assigned: Vec<PodId>,
}

impl View {
    /// The view `version` of `pods`, which are in the order of their ids.
    pub(super) fn new(version: u64, pods: Vec<Member>, virtual_shards: u16) -> Self {
        let staying = pods.iter().filter(|pod| !pod.is_draining).map(|pod| pod.id);
        let assigned = (0..virtual_shards)
            .map_while(|vs| rendezvous::owner(staying.clone(), VirtualShard(vs)))
            .collect();
        Self { version, pods, assigned }
    }

    /// The member `pod`, if it is one.
    #[must_use]
    pub fn member(&self, pod: PodId) -> Option<&Member> {
        let place = self.pods.binary_search_by_key(&pod, |member| member.id).ok()?;
        self.pods.get(place)
    }

    /// Whether `pod` is a member.
    #[must_use]
    pub fn contains(&self, pod: PodId) -> bool {
        self.member(pod).is_some()
    }

    /// Who should own `vs`; nobody if all leave.
    #[must_use]
    pub fn assigned(&self, vs: VirtualShard) -> Option<PodId> {
        self.assigned.get(usize::from(vs.0)).copied()
    }

    /// The member that sees to what a pod has left behind that is none any more.
    #[must_use]
    pub fn heir(&self, gone: PodId) -> Option<PodId> {
        let staying = self.pods.iter().filter(|pod| !pod.is_draining).map(|pod| pod.id);
        rendezvous::choose(staying, &gone.0)
            .or_else(|| rendezvous::choose(self.pods.iter().map(|pod| pod.id), &gone.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_is_given_nothing() {
        let member = |id: u8, is_draining| {
            let (id, info) = (PodId([id; 16]), PodInfo::default());
            Member { id, info, is_draining, order: None }
        };
        let view = View::new(1, vec![member(1, true), member(2, false)], 8);
        let second = PodId([2; 16]);
        assert!((0..8).all(|vs| view.assigned(VirtualShard(vs)) == Some(second)));
        assert_eq!((view.assigned(VirtualShard(8)), view.heir(PodId([3; 16]))), (None, Some(second)));
        assert!(view.contains(PodId([1; 16])) && !view.contains(PodId([3; 16])));
        let view = View::new(1, vec![member(1, true)], 8);
        assert_eq!((view.assigned(VirtualShard(0)), view.heir(second)), (None, Some(PodId([1; 16]))));
    }
}
