//! The pods that work on the store as any of them describes them, and which of them are to have their clients go.
//!
//! What is known of others is what they have said with their signs of life; nobody is asked. Knows nothing of how clients
//! go. The cluster owns what pods say, a pod that is alone its own.

use std::time::Duration;

use parking_lot::Mutex;

pub use crate::cluster::membership::Asked;

use crate::Core;
use crate::cluster::{DrainOrder, PodInfo, PodLoad};
use crate::error::Result;
use crate::keyspace::owner::PodId;

/// A pod as another one, or itself, describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodReport {
    /// Which.
    pub id: PodId,
    /// What it says of itself.
    pub info: PodInfo,
    /// It is given no shards.
    pub is_draining: bool,
    /// It is the one that describes.
    pub is_self: bool,
    /// What it has to do, as it said last.
    pub load: PodLoad,
    /// How long ago that was.
    pub age: Duration,
}

/// What a pod without a cluster says of itself.
#[derive(Debug, Default)]
pub(crate) struct Alone {
    info: PodInfo,
    load: Mutex<PodLoad>,
}

impl Alone {
    pub(crate) fn new(info: PodInfo) -> Self {
        Self { info, load: Mutex::default() }
    }
}

impl Core {
    /// Says from now on that this pod has so much to do. The shards it owns are counted here.
    pub fn report_load(&self, load: PodLoad) {
        match self.cluster() {
            Some(cluster) => cluster.report(PodLoad { shards: cluster.owned().len() as u64, ..load }),
            None => *self.alone.load.lock() = PodLoad { shards: self.format().virtual_shards.into(), ..load },
        }
    }

    /// All pods, in the order of their ids. One that has not been seen yet has no load and is new.
    #[must_use]
    pub fn pods(&self) -> Vec<PodReport> {
        let me = self.pod();
        let Some(cluster) = self.cluster() else {
            return vec![PodReport {
                id: me,
                info: self.alone.info.clone(),
                is_draining: false,
                is_self: true,
                load: *self.alone.load.lock(),
                age: Duration::ZERO,
            }];
        };
        let report = |member: &crate::cluster::Member| {
            let (load, age) = cluster.load_of(member.id).unwrap_or_default();
            PodReport {
                id: member.id,
                info: member.info.clone(),
                is_draining: member.is_draining,
                is_self: member.id == me,
                load,
                age,
            }
        };
        cluster.view().pods.iter().map(report).collect()
    }

    /// Asks `pod` to have its clients and shards go, or to stay after all.
    ///
    /// # Errors
    /// If the store fails, or the pod is of a version that this one does not know.
    pub async fn drain_pod(&self, pod: PodId, order: Option<DrainOrder>) -> Result<Asked> {
        let Some(cluster) = self.cluster() else {
            return Ok(if pod != self.pod() {
                Asked::Unknown
            } else if order.is_some() {
                Asked::Last
            } else {
                Asked::Done
            });
        };
        if let Some(order) = order {
            return cluster.order_drain_unless_last(pod, order).await;
        }
        Ok(if cluster.order_drain(pod, None).await? { Asked::Done } else { Asked::Unknown })
    }
}
