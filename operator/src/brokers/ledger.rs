//! What a Broker was last known to have, so that an object that is as declared costs no call. Pure; its Broker's
//! [`super::Link`] owns it.
//!
//! An entry is what a declaration was answered with, and what lists and changes have shown since. The two differ after a
//! drift. Bounded by the objects of the cluster: an entry goes with its object.

use std::collections::BTreeMap;

use super::admin::{Applied, Declared, Kind, State};

/// What was answered and seen.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: BTreeMap<(Kind, String), Entry>,
}

#[derive(Debug)]
struct Entry {
    uid: String,
    object_generation: i64,
    hash: String,
    seen: Seen,
    state: State,
}

/// What a Broker has under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// A definition: how often it has changed, and its hash.
    There(u64, String),
    /// Nothing that takes messages.
    Gone,
}

impl Ledger {
    /// How it works, if the Broker has what this generation of the object `uid` declares.
    pub(crate) fn in_sync(&self, kind: Kind, name: &str, uid: &str, generation: i64) -> Option<&State> {
        let entry = self.entries.get(&(kind, name.to_owned()))?;
        let is_same = entry.uid == uid && entry.object_generation == generation;
        let is_there = matches!(&entry.seen, Seen::There(_, hash) if *hash == entry.hash);
        (is_same && is_there).then_some(&entry.state)
    }

    /// Whether the Broker had what this generation of the object `uid` declares, and has something else now.
    pub(crate) fn has_drifted(&self, kind: Kind, name: &str, uid: &str, generation: i64) -> bool {
        let entry = self.entries.get(&(kind, name.to_owned()));
        entry.is_some_and(|entry| {
            let is_same = entry.uid == uid && entry.object_generation == generation;
            is_same && !matches!(&entry.seen, Seen::There(_, hash) if *hash == entry.hash)
        })
    }

    /// A generation of the object `uid` was declared. What was seen stays if it is newer than the answer.
    pub(crate) fn applied(
        &mut self,
        kind: Kind,
        name: &str,
        uid: &str,
        object_generation: i64,
        answer: &Applied,
    ) {
        let old = self.entries.remove(&(kind, name.to_owned()));
        let seen = match old.map(|old| old.seen) {
            Some(Seen::There(generation, hash)) if generation > answer.generation => {
                Seen::There(generation, hash)
            }
            _ => Seen::There(answer.generation, answer.hash.clone()),
        };
        let entry = Entry {
            uid: uid.to_owned(),
            object_generation,
            hash: answer.hash.clone(),
            seen,
            state: answer.state.clone(),
        };
        self.entries.insert((kind, name.to_owned()), entry);
    }

    /// The object with this uid declares it no more.
    pub(crate) fn forget(&mut self, kind: Kind, name: &str, uid: &str) {
        let key = (kind, name.to_owned());
        if self.entries.get(&key).is_some_and(|entry| entry.uid == uid) {
            self.entries.remove(&key);
        }
    }

    /// The Broker has this now. Whether an object should look at it: it differs from what it had, or nobody here has
    /// declared it.
    pub(crate) fn changed(&mut self, object: &Declared) -> bool {
        let Some(entry) = self.entries.get_mut(&(object.kind, object.name.clone())) else { return true };
        let seen = match object.active {
            true => Seen::There(object.generation, object.hash.clone()),
            false => Seen::Gone,
        };
        let differs = !object.active || object.hash != entry.hash;
        entry.seen = seen;
        let state = object.state.as_ref().filter(|state| **state != State::Unknown);
        match state {
            Some(state) if *state != entry.state => {
                entry.state = state.clone();
                true
            }
            _ => differs,
        }
    }

    /// The Broker does not have it any more.
    pub(crate) fn gone(&mut self, kind: Kind, name: &str) {
        if let Some(entry) = self.entries.get_mut(&(kind, name.to_owned())) {
            entry.seen = Seen::Gone;
        }
    }

    /// All that the Broker has, after a list: what it should have and has not, or differently.
    pub(crate) fn listed(&mut self, objects: &[Declared]) -> Vec<(Kind, String)> {
        let mut differing = Vec::new();
        let mut missing: BTreeMap<(Kind, String), ()> =
            self.entries.keys().cloned().map(|key| (key, ())).collect();
        for object in objects {
            let key = (object.kind, object.name.clone());
            if missing.remove(&key).is_some() && self.changed(object) {
                differing.push(key);
            }
        }
        for (key, ()) in missing {
            self.gone(key.0, &key.1);
            differing.push(key);
        }
        differing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brokers::Outcome;

    fn answer(generation: u64, hash: &str) -> Applied {
        Applied {
            outcome: Outcome::Created,
            drifted: false,
            changed: Vec::new(),
            generation,
            hash: hash.to_owned(),
            state: State::Ready,
        }
    }

    fn declared(name: &str, generation: u64, hash: &str) -> Declared {
        let (name, hash) = (name.to_owned(), hash.to_owned());
        Declared { kind: Kind::Queue, name, generation, hash, active: true, state: Some(State::Ready) }
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.applied(Kind::Queue, "a", "u1", 1, &answer(1, "h1"));
        ledger
    }

    fn is_in_sync(ledger: &Ledger) -> bool {
        ledger.in_sync(Kind::Queue, "a", "u1", 1).is_some()
    }

    #[test]
    fn only_what_was_declared_and_is_unchanged_is_in_sync() {
        let mut ledger = ledger();
        assert!(is_in_sync(&ledger));
        assert!(ledger.in_sync(Kind::Queue, "a", "u1", 2).is_none(), "edited");
        assert!(ledger.in_sync(Kind::Queue, "a", "u2", 1).is_none(), "made anew");
        assert!(ledger.in_sync(Kind::Stream, "a", "u1", 1).is_none());
        assert!(!ledger.changed(&declared("a", 1, "h1")), "its own change");
        assert!(is_in_sync(&ledger));
        assert!(ledger.changed(&declared("a", 2, "h2")));
        assert!(!is_in_sync(&ledger));
        ledger.applied(Kind::Queue, "a", "u1", 1, &answer(3, "h1"));
        assert!(is_in_sync(&ledger));
        ledger.gone(Kind::Queue, "a");
        assert!(!is_in_sync(&ledger));
    }

    #[test]
    fn a_change_that_was_seen_before_its_answer_came_is_not_forgotten() {
        let mut ledger = ledger();
        ledger.changed(&declared("a", 3, "h3"));
        ledger.applied(Kind::Queue, "a", "u1", 1, &answer(2, "h1"));
        assert!(!is_in_sync(&ledger));
    }

    #[test]
    fn a_list_finds_what_differs_and_what_is_missing() {
        let mut ledger = ledger();
        ledger.applied(Kind::Queue, "b", "u2", 1, &answer(1, "h1"));
        ledger.applied(Kind::Stream, "c", "u3", 1, &answer(1, "h1"));
        let mut kept = declared("b", 1, "h1");
        kept.active = false;
        let found = ledger.listed(&[declared("a", 1, "h1"), kept, declared("foreign", 1, "x")]);
        assert_eq!(found, [(Kind::Queue, "b".to_owned()), (Kind::Stream, "c".to_owned())]);
        assert!(is_in_sync(&ledger));
    }

    #[test]
    fn a_list_that_cannot_say_how_it_is_changes_nothing() {
        let mut ledger = ledger();
        let mut object = declared("a", 1, "h1");
        object.state = Some(State::Unknown);
        assert_eq!(ledger.listed(&[object.clone()]), []);
        let blocked = State::NotReady { reason: "DeadLetterBlocked".into(), message: "m".into() };
        object.state = Some(blocked.clone());
        assert_eq!(ledger.listed(&[object]), [(Kind::Queue, "a".to_owned())]);
        assert_eq!(ledger.in_sync(Kind::Queue, "a", "u1", 1), Some(&blocked));
    }
}
