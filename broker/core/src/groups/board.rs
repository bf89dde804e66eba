//! Where members leave how far they have come, for the coordinator to take when it is about to store positions: telling
//! it costs a lock and no message, however often it is done. Holds what the coordinator has not taken; knows nothing of
//! who may say what.

use std::collections::BTreeMap;

use bytestring::ByteString;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// By group and shard: the newest generation that was told of, and how far it has come. At most the shards of the stream
/// for each group that has members.
pub(super) type Progress = BTreeMap<ByteString, BTreeMap<u8, (u64, u64)>>;

/// What members have told and the coordinator has not taken.
#[derive(Debug, Default)]
pub(super) struct Board {
    told: Mutex<Progress>,
    first: Notify,
}

impl Board {
    /// Everything below `position` is acknowledged. Never waits.
    pub(super) fn tell(&self, group: &str, shard: u8, generation: u64, position: u64) {
        let mut told = self.told.lock();
        let was_empty = told.is_empty();
        if !told.contains_key(group) {
            told.insert(group.into(), BTreeMap::new());
        }
        if let Some(shards) = told.get_mut(group) {
            let newest = shards.entry(shard).or_insert((generation, position));
            *newest = (*newest).max((generation, position));
        }
        drop(told);
        if was_empty {
            self.first.notify_one();
        }
    }

    /// What was told since the last call.
    pub(super) fn take(&self) -> Progress {
        std::mem::take(&mut *self.told.lock())
    }

    /// Waits until something is told after everything was taken. Cancel-safe.
    pub(super) async fn told(&self) {
        self.first.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_newest_of_each_shard_is_kept_and_the_first_wakes() {
        let board = Board::default();
        assert!(board.told().now_or_never().is_none());
        for (shard, generation, position) in [(0, 1, 5), (0, 1, 4), (1, 2, 3), (1, 1, 9), (0, 2, 0)] {
            board.tell("g", shard, generation, position);
        }
        assert!(board.told().now_or_never().is_some());
        assert!(board.told().now_or_never().is_none(), "once is enough");
        let expected = BTreeMap::from([(0, (2, 0)), (1, (2, 3))]);
        assert_eq!(board.take(), BTreeMap::from([("g".into(), expected)]));
        assert!(board.take().is_empty());
        board.tell("g", 0, 1, 1);
        assert!(board.told().now_or_never().is_some());
    }
}
