//! The client's side of a session: the numbers of its commits, and the watches that are armed in it.

use std::collections::BTreeSet;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use weir_env::seed::HashMap;
use weir_proto::store::v1 as wire;
use weir_storage::WatchTrigger;

pub(super) struct Session {
    /// As the server calls it.
    pub(super) name: wire::Session,
    /// Cancelled when it is of no more use.
    pub(super) over: CancellationToken,
    commits: Mutex<Commits>,
    watches: Mutex<Watches>,
}

#[derive(Default)]
struct Commits {
    last: u64,
    /// Whose end is not known yet.
    open: BTreeSet<u64>,
}

#[derive(Default)]
struct Watches {
    last: u64,
    armed: HashMap<u64, WatchTrigger>,
    has_ended: bool,
}

/// The number of a commit, for as long as somebody wants to know how it ends.
pub(super) struct Ticket<'a> {
    session: &'a Session,
    pub(super) number: u64,
    /// Every lower number is settled.
    pub(super) settled_below: u64,
}

/// Watches of a commit that has not succeeded yet: they fire if it does not.
pub(super) struct Arming<'a> {
    session: &'a Session,
    pub(super) watches: Vec<wire::Watch>,
    is_armed: bool,
}

impl Session {
    pub(super) fn new(name: wire::Session) -> Self {
        let over = CancellationToken::new();
        Self { name, over, commits: Mutex::default(), watches: Mutex::default() }
    }

    pub(super) fn begin_commit(&self) -> Ticket<'_> {
        let mut commits = self.commits.lock();
        commits.last += 1;
        let number = commits.last;
        commits.open.insert(number);
        let settled_below = commits.open.first().copied().unwrap_or(number);
        Ticket { session: self, number, settled_below }
    }

    /// Takes watches up, before the commit that arms them is sent. In a session that has ended they fire.
    pub(super) fn arm(&self, triggers: Vec<(Bytes, WatchTrigger)>) -> Arming<'_> {
        let mut watches = self.watches.lock();
        let mut sent = Vec::with_capacity(triggers.len());
        for (key, trigger) in triggers {
            if !watches.has_ended {
                watches.last += 1;
                let number = watches.last;
                watches.armed.insert(number, trigger);
                sent.push(wire::Watch { number, key });
            }
        }
        Arming { session: self, watches: sent, is_armed: false }
    }

    pub(super) fn fire(&self, numbers: &[u64]) {
        let mut watches = self.watches.lock();
        let fired: Vec<_> = numbers.iter().filter_map(|number| watches.armed.remove(number)).collect();
        drop(watches);
        drop(fired);
    }

    /// Takes out watches that nobody holds any more; the server need not keep them either.
    pub(super) fn take_orphans(&self) -> Vec<u64> {
        let mut watches = self.watches.lock();
        let orphans = watches.armed.extract_if(|_, trigger| trigger.is_orphaned());
        orphans.map(|(number, _)| number).collect()
    }

    /// Fires every watch, those to come too: nobody will tell of them.
    pub(super) fn end(&self) {
        self.over.cancel();
        let fired = {
            let mut watches = self.watches.lock();
            watches.has_ended = true;
            std::mem::take(&mut watches.armed)
        };
        drop(fired);
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.session.commits.lock().open.remove(&self.number);
    }
}

impl Arming<'_> {
    /// The commit has succeeded.
    pub(super) fn armed(mut self) {
        self.is_armed = true;
    }
}

impl Drop for Arming<'_> {
    fn drop(&mut self) {
        if !self.is_armed {
            let numbers: Vec<u64> = self.watches.iter().map(|watch| watch.number).collect();
            self.session.fire(&numbers);
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_storage::Watch;

    use super::*;

    #[test]
    fn a_commit_says_what_nobody_asks_for_any_more() {
        let session = Session::new(wire::Session::default());
        let (first, second) = (session.begin_commit(), session.begin_commit());
        assert_eq!((second.number, second.settled_below), (2, 1));
        drop(second);
        let third = session.begin_commit();
        assert_eq!((third.number, third.settled_below), (3, 1));
        drop(first);
        assert_eq!(session.begin_commit().settled_below, 3);
    }

    #[test]
    fn watches_fire_unless_they_are_armed_and_the_session_goes_on() {
        let session = Session::new(wire::Session::default());
        let (trigger, refused) = Watch::new();
        drop(session.arm(vec![(Bytes::new(), trigger)]));
        assert!(refused.has_fired());
        let (trigger, armed) = Watch::new();
        let (other, orphan) = Watch::new();
        session.arm(vec![(Bytes::new(), trigger), (Bytes::new(), other)]).armed();
        drop(orphan);
        assert_eq!((session.take_orphans(), armed.has_fired()), (vec![3], false));
        session.end();
        assert!(armed.has_fired());
        let (trigger, late) = Watch::new();
        session.arm(vec![(Bytes::new(), trigger)]).armed();
        assert!(late.has_fired(), "nobody would tell");
    }
}
