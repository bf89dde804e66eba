//! The conditions of an object, so that `kubectl wait`, Flux, Argo CD and Helm understand them (kstatus). Pure: knows
//! no client and no clock.
//!
//! `Ready` says whether the broker has what this generation declares. `Reconciling` is true while that is being worked
//! on or tried again, `Stalled` while only an edit helps; never both. `Paused` is there while the object is paused.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// The condition that sums all up.
pub(crate) const READY: &str = "Ready";
/// Work is under way, or is tried again.
pub(crate) const RECONCILING: &str = "Reconciling";
/// Only an edit helps.
pub(crate) const STALLED: &str = "Stalled";
/// A person has asked to leave the object alone.
pub(crate) const PAUSED: &str = "Paused";

/// Characters of a message that are kept: an API server takes 32,768, a person reads fewer.
const MESSAGE_CHARS_MAX: usize = 1024;

/// What becomes of an object that is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing: it is as declared.
    Done,
    /// It is worked on or tried again.
    Working,
    /// It waits for an edit.
    Stuck,
    /// It is left alone.
    Paused,
}

/// How an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// `Some(true)`: as declared; `None`: not known.
    pub(crate) ready: Option<bool>,
    pub(crate) progress: Progress,
    /// One CamelCase word.
    pub(crate) reason: String,
    /// For people: what is so, and what to do.
    pub(crate) message: String,
}

impl Verdict {
    /// It is as declared.
    pub(crate) fn ready(message: impl Into<String>) -> Self {
        Self::new(Some(true), Progress::Done, "Ready", message)
    }

    /// It is not yet known how it is.
    pub(crate) fn pending() -> Self {
        Self::new(None, Progress::Working, "Pending", "the operator has not come to it yet")
    }

    /// It is not as declared, and is tried again without anybody doing anything.
    pub(crate) fn working(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Some(false), Progress::Working, reason, message)
    }

    /// It is not as declared, and an edit is needed.
    pub(crate) fn stuck(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Some(false), Progress::Stuck, reason, message)
    }

    /// As declared, though it does not do all that it should; the broker says why.
    pub(crate) fn impaired(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Some(false), Progress::Done, reason, message)
    }

    pub(crate) fn new(
        ready: Option<bool>,
        progress: Progress,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let message: String = message.into();
        let message = match message.char_indices().nth(MESSAGE_CHARS_MAX) {
            Some((end, _)) => format!("{}...", &message[..end]),
            None => message,
        };
        Self { ready, progress, reason: reason.into(), message }
    }

    /// The conditions that say so of `generation`; the time of one moves only if its status does.
    pub(crate) fn conditions(&self, old: &[Condition], generation: i64, now: Timestamp) -> Vec<Condition> {
        let flag = |holds: bool| if holds { "True" } else { "False" };
        let condition = |type_: &str, status: &str, reason: &str, message: &str| {
            let same = old.iter().find(|old| old.type_ == type_ && old.status == status);
            Condition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message: message.to_owned(),
                observed_generation: Some(generation),
                last_transition_time: same
                    .map_or_else(|| Time(now), |same| same.last_transition_time.clone()),
            }
        };
        let Self { ready, progress, reason, message } = self;
        let aside = |type_, holds: bool, otherwise: &str| match holds {
            true => condition(type_, flag(true), reason, message),
            false => condition(type_, flag(false), otherwise, ""),
        };
        let mut conditions = vec![
            condition(READY, ready.map_or("Unknown", flag), reason, message),
            aside(RECONCILING, *progress == Progress::Working, "Settled"),
            aside(STALLED, *progress == Progress::Stuck, "NotStalled"),
        ];
        if *progress == Progress::Paused {
            conditions.push(condition(PAUSED, flag(true), "PausedByAnnotation", message));
        }
        conditions
    }
}

/// The status of the condition `type_`, if it is there.
pub(crate) fn status_of<'c>(conditions: &'c [Condition], type_: &str) -> Option<&'c str> {
    conditions.iter().find(|condition| condition.type_ == type_).map(|condition| condition.status.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// What kstatus makes of the conditions, in its order.
    fn kstatus(conditions: &[Condition]) -> &'static str {
        match conditions {
            all if status_of(all, RECONCILING) == Some("True") => "InProgress",
            all if status_of(all, STALLED) == Some("True") => "Failed",
            all if status_of(all, READY) == Some("True") || status_of(all, READY).is_none() => "Current",
            _ => "InProgress",
        }
    }

    #[test]
    fn tools_understand_each_verdict() {
        for (verdict, expected) in [
            (Verdict::pending(), "InProgress"),
            (Verdict::ready(""), "Current"),
            (Verdict::working("BrokerMissing", "m"), "InProgress"),
            (Verdict::stuck("Invalid", "m"), "Failed"),
            (Verdict::impaired("DeadLetterBlocked", "m"), "InProgress"),
        ] {
            let conditions = verdict.conditions(&[], 3, at(1));
            assert_eq!(kstatus(&conditions), expected, "{verdict:?}");
            assert!(conditions.iter().all(|condition| condition.observed_generation == Some(3)));
            assert!(conditions.iter().all(|condition| !condition.reason.is_empty()));
            let both = [RECONCILING, STALLED].map(|type_| status_of(&conditions, type_) == Some("True"));
            assert_ne!(both, [true, true]);
        }
    }

    #[test]
    fn times_move_with_the_status_only() {
        let first = Verdict::working("BrokerMissing", "no Broker").conditions(&[], 1, at(1));
        let second = Verdict::working("BrokerUnavailable", "it is down").conditions(&first, 2, at(2));
        assert_eq!(second[0].reason, "BrokerUnavailable");
        assert_eq!(second[0].last_transition_time, Time(at(1)));
        let third = Verdict::ready("").conditions(&second, 2, at(3));
        assert_eq!(third[0].last_transition_time, Time(at(3)));
        assert_eq!(third[2].last_transition_time, Time(at(1)), "Stalled stayed False");
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let verdict = Verdict::stuck("Invalid", "ä".repeat(5000));
        assert_eq!(verdict.message.chars().count(), MESSAGE_CHARS_MAX + 3);
    }
}
