//! Who should have what, by rendezvous hashing: everybody who knows the same pods says the same, and a pod that comes or
//! goes moves nothing but what it gets or had.

use crate::keyspace::owner::PodId;
use crate::keyspace::{VirtualShard, placement_hash};

/// The one of `pods` that should have what is called `name`; none if there are none.
#[must_use]
pub fn choose(pods: impl IntoIterator<Item = PodId>, name: &[u8]) -> Option<PodId> {
    pods.into_iter().max_by_key(|pod| (placement_hash(&[&pod.0, name].concat()), *pod))
}

/// The one of `pods` that should own `vs`.
#[must_use]
pub fn owner(pods: impl IntoIterator<Item = PodId>, vs: VirtualShard) -> Option<PodId> {
    choose(pods, &vs.0.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARDS: u16 = 256;

    fn owners(pods: &[u8]) -> Vec<PodId> {
        let pods = pods.iter().map(|pod| PodId([*pod; 16]));
        (0..SHARDS).map(|vs| owner(pods.clone(), VirtualShard(vs)).unwrap()).collect()
    }

    #[test]
    fn shares_are_even_and_little_moves() {
        assert_eq!(owner([], VirtualShard(1)), None);
        let (three, four) = (owners(&[1, 2, 3]), owners(&[1, 2, 3, 4]));
        for pod in 1..=3 {
            let share = three.iter().filter(|owner| **owner == PodId([pod; 16])).count();
            assert!((60..=112).contains(&share), "pod {pod} has {share} of {SHARDS}");
        }
        for (before, after) in three.iter().zip(&four) {
            assert!(before == after || *after == PodId([4; 16]), "only the new pod gets something");
        }
        assert_eq!(three, owners(&[3, 1, 2]), "their order does not matter");
    }
}
