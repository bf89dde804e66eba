//! How many bytes of publishes are becoming durable: of each client, and over all of them.
//!
//! Each virtual shard, the inboxes and the retained store bound what waits for them; this bounds their sum, and the
//! answers that wait to be written. Whoever reads a client asks first, and leaves the client's next packets where
//! they are while there is too much. Nobody waits in here: a publish that has begun goes on. So a bound is exceeded
//! by what each worker thread has decoded at that moment, at most a packet and what a read brought.
//!
//! A client has a share, and never more than what is left for all: one alone takes at most half, n of them leave the
//! nth part of one, and who has nothing under way finds room although others wait. What a client has under way is
//! counted by its connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::gauge::Gauge;

use crate::metrics::PublishWait;

/// Bytes a publish takes beside its message, estimated: in the line of its shard, in the batch, and what waits for the
/// answer.
const ENTRY_BYTES: u64 = 2048;

/// Counts the publishes under way.
#[derive(Debug)]
pub(crate) struct UnderWay {
    bytes: Arc<AtomicU64>,
    bytes_max: u64,
    /// Of one client.
    share: u64,
    gauge: Gauge,
}

/// One publish; it counts until this is dropped.
#[derive(Debug)]
pub(crate) struct UnderWayGuard {
    bytes: Arc<AtomicU64>,
    own: u64,
    gauge: Gauge,
}

impl UnderWay {
    pub(crate) fn new(bytes_max: u64, share: u64, gauge: Gauge) -> Self {
        Self { bytes: Arc::default(), bytes_max, share, gauge }
    }

    /// Counts a publish of `size` bytes.
    pub(crate) fn enter(&self, size: usize) -> UnderWayGuard {
        let own = u64::try_from(size).unwrap_or(u64::MAX / 2).saturating_add(ENTRY_BYTES);
        self.bytes.fetch_add(own, Ordering::Relaxed);
        self.gauge.inc_by(i64::try_from(own).unwrap_or(0));
        UnderWayGuard { bytes: Arc::clone(&self.bytes), own, gauge: self.gauge.clone() }
    }

    /// As [`UnderWay::enter`]; none if there is no room.
    pub(crate) fn try_enter(&self, size: usize) -> Option<UnderWayGuard> {
        let guard = self.enter(size);
        (self.bytes.load(Ordering::Relaxed) <= self.bytes_max).then_some(guard)
    }

    /// Why a client with `own` bytes under way, and `more` that are not counted yet, should begin no more, if so.
    pub(crate) fn must_wait(&self, own: u64, more: u64) -> Option<PublishWait> {
        let own = own.saturating_add(more);
        if own >= self.share {
            return Some(PublishWait::Client);
        }
        let taken = self.bytes.load(Ordering::Relaxed).saturating_add(more);
        let left = self.bytes_max.saturating_sub(taken);
        (own >= left).then_some(PublishWait::All)
    }
}

impl UnderWayGuard {
    /// What this publish counts for.
    pub(crate) const fn bytes(&self) -> u64 {
        self.own
    }
}

impl Drop for UnderWayGuard {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.own, Ordering::Relaxed);
        self.gauge.dec_by(i64::try_from(self.own).unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn under_way(bytes_max: u64, share: u64) -> UnderWay {
        UnderWay::new(bytes_max, share, Gauge::default())
    }

    /// Lets `clients` publish in turn until all of them have to wait; returns what each has under way.
    fn fill(under_way: &UnderWay, clients: usize, guards: &mut Vec<UnderWayGuard>) -> Vec<u64> {
        let mut own = vec![0; clients];
        let mut any = true;
        while any {
            any = false;
            for own in &mut own {
                if under_way.must_wait(*own, 0).is_none() {
                    let guard = under_way.enter(0);
                    *own += guard.bytes();
                    guards.push(guard);
                    any = true;
                }
            }
        }
        own
    }

    #[test]
    fn a_client_has_no_more_than_its_share() {
        let under_way = under_way(1 << 20, 10 << 10);
        let mut guards = Vec::new();
        assert_eq!(fill(&under_way, 1, &mut guards), [10 << 10]);
        assert_eq!(under_way.must_wait(10 << 10, 0), Some(PublishWait::Client));
        assert_eq!(under_way.must_wait(0, 0), None);
        guards.pop();
        assert_eq!(under_way.must_wait(9 << 10, 0), None);
        assert_eq!(under_way.must_wait(9 << 10, 1 << 10), Some(PublishWait::Client));
    }

    #[test]
    fn what_needs_room_and_finds_none_is_turned_away() {
        let under_way = under_way(3 * ENTRY_BYTES, 0);
        let guards: Vec<_> = (0..3).map(|_| under_way.try_enter(0)).collect();
        assert!(guards.iter().all(Option::is_some) && under_way.try_enter(0).is_none());
        drop(guards);
        assert!(under_way.try_enter(1).is_some() && under_way.try_enter(usize::MAX).is_none());
        assert_eq!(under_way.gauge.get(), 0);
    }

    #[test]
    fn many_clients_leave_room_for_one_that_comes() {
        for clients in [1, 2, 7, 100] {
            let under_way = under_way(1 << 20, 1 << 20);
            let mut guards = Vec::new();
            let own = fill(&under_way, clients, &mut guards);
            let fair = (1 << 20) / (clients as u64 + 1);
            for own in own {
                assert!(own.abs_diff(fair) <= ENTRY_BYTES, "{clients} clients: {own}, not {fair}");
                assert_eq!(under_way.must_wait(own, 0), Some(PublishWait::All), "{clients} clients");
            }
            assert_eq!(under_way.must_wait(0, 0), None, "{clients} clients");
        }
    }

    #[test]
    fn nobody_begins_when_all_of_it_is_taken() {
        let under_way = under_way(1024, 1024);
        let _guard = under_way.enter(1024);
        assert_eq!(under_way.must_wait(0, 0), Some(PublishWait::All));
    }
}
