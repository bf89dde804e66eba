//! What to do about an object. Pure: an object, its Broker and what that was last known to have go in, one step and, after
//! a call, what to say of it come out. Knows no client and no clock.

use weir_operator_api::{ObjectStatus, Problem};

use super::Note;
use crate::brokers::{AdminError, Applied, Health, Kind, Outcome, Place, Policy, Refusal, Released, State};
use crate::conditions::{self, PAUSED, Progress, READY, Verdict};

/// An object as far as it matters.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) kind: Kind,
    /// Its name at the Broker.
    pub(crate) backend: String,
    pub(crate) generation: i64,
    pub(crate) is_deleted: bool,
    /// It has the finalizer.
    pub(crate) is_held: bool,
    pub(crate) is_paused: bool,
    pub(crate) is_forced: bool,
    pub(crate) policy: Policy,
    pub(crate) problems: Vec<Problem>,
    pub(crate) status: ObjectStatus,
}

/// Its Broker.
#[derive(Clone, Debug)]
pub(crate) enum Broker {
    /// This one, how it is, and what it has of the object if that is as declared.
    At { health: Health, in_sync: Option<State> },
    /// Not a definite one.
    None(Place),
}

impl Broker {
    /// Why it cannot be asked, if it cannot be.
    pub(crate) fn unreachable(&self) -> Option<&str> {
        match self {
            Self::At { health: Health::Down { why, .. }, .. } | Self::None(Place::Unknown(why)) => Some(why),
            Self::At { .. } | Self::None(_) => None,
        }
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// None.
    Nothing,
    /// Give it the finalizer, and look again.
    Hold,
    /// Take the finalizer away: it may go.
    LetGo(Note),
    /// Ask the Broker to have what it declares.
    Apply,
    /// Ask the Broker to give it up.
    Release,
    /// Say how it is.
    Say(Settled),
}

/// How an object is, and when to look again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    /// None: as it was said to be.
    pub(crate) verdict: Option<Verdict>,
    pub(crate) notes: Vec<Note>,
    pub(crate) again: Again,
}

/// Reason of an object that waits to be set back again.
const DRIFT_REPEATED: &str = "DriftRepeated";

/// When to look at an object again, if nothing happens before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// When something happens.
    Woken,
    /// As often as everything is looked at.
    Resync,
    /// After a pause that grows.
    Backoff,
    /// When it may be set back again.
    Repair,
}

impl Subject {
    /// Whether this generation was said to be `Ready`.
    fn was_ready(&self) -> bool {
        self.status.observed_generation == Some(self.generation)
            && conditions::status_of(&self.status.conditions, READY) == Some("True")
    }

    /// Whether this generation waits to be set back.
    fn is_fought_over(&self) -> bool {
        let ready = self.status.conditions.iter().find(|condition| condition.type_ == READY);
        self.status.observed_generation == Some(self.generation)
            && ready.is_some_and(|ready| ready.reason == DRIFT_REPEATED)
    }

    /// The words for its queue or stream.
    fn what(&self) -> String {
        format!("the {} `{}`", self.kind.noun(), self.backend)
    }

    /// A verdict; an event too, the first time that it is reached.
    fn settle(&self, verdict: Verdict, again: Again) -> Settled {
        let ready = self.status.conditions.iter().find(|condition| condition.type_ == READY);
        let is_known = ready.is_some_and(|ready| {
            ready.reason == verdict.reason && ready.observed_generation == Some(self.generation)
        });
        let is_bad = verdict.ready == Some(false) || verdict.progress == Progress::Paused;
        let notes = match is_bad && !is_known {
            true if verdict.progress == Progress::Paused => {
                vec![Note::normal("Paused", verdict.message.clone())]
            }
            true => vec![Note::warning(verdict.reason.clone(), verdict.message.clone())],
            false => Vec::new(),
        };
        Settled { verdict: Some(verdict), notes, again }
    }
}

/// The next step of an object.
pub(crate) fn next(subject: &Subject, broker: &Broker) -> Step {
    if subject.is_deleted {
        return next_of_deleted(subject, broker);
    }
    if subject.is_paused {
        return Step::Say(paused(subject));
    }
    if let Some(problem) = subject.problems.first() {
        let others = match subject.problems.len() {
            1 => String::new(),
            all => format!(" (and {} more)", all - 1),
        };
        let verdict = Verdict::stuck("Invalid", format!("{problem}{others}"));
        return Step::Say(subject.settle(verdict, Again::Resync));
    }
    let (health, in_sync) = match broker {
        Broker::At { health, in_sync } => (health, in_sync),
        Broker::None(place) => return Step::Say(nowhere(subject, place)),
    };
    match (health, in_sync) {
        // Not asked yet: nothing can be said that is not so already.
        (Health::New, _) if subject.was_ready() => Step::Nothing,
        (Health::New, _) => {
            Step::Say(Settled { verdict: Some(Verdict::pending()), notes: Vec::new(), again: Again::Woken })
        }
        (Health::Down { long: false, .. }, Some(_)) => Step::Nothing,
        (Health::Down { why, long: true }, Some(_)) => {
            let message = format!("{} is as declared, but its Broker does not answer: {why}", subject.what());
            let verdict = Verdict::new(None, Progress::Working, "BrokerUnavailable", message);
            Step::Say(subject.settle(verdict, Again::Woken))
        }
        (Health::Down { long: false, .. }, None) if subject.was_ready() => Step::Nothing,
        (Health::Down { why, .. }, None) => Step::Say(subject.settle(unavailable(why), Again::Woken)),
        (Health::Up, _) if !subject.is_held => Step::Hold,
        (Health::Up, Some(State::Ready)) => {
            Step::Say(Settled { verdict: Some(ready(subject)), notes: Vec::new(), again: Again::Woken })
        }
        (Health::Up, Some(State::Unknown | State::NotReady { .. }) | None) => Step::Apply,
    }
}

fn next_of_deleted(subject: &Subject, broker: &Broker) -> Step {
    if !subject.is_held {
        return Step::Nothing;
    }
    let what = subject.what();
    if subject.is_forced {
        let note = format!("let go by annotation; {what} and its messages stay as they are at the Broker");
        return Step::LetGo(Note::warning("ForceReleased", note));
    }
    match broker {
        Broker::At { health: Health::Up, .. } => Step::Release,
        Broker::At { health: Health::New, .. } => Step::Say(Settled {
            verdict: Some(Verdict::working("Releasing", "waiting for the Broker")),
            notes: Vec::new(),
            again: Again::Woken,
        }),
        Broker::At { health: Health::Down { why, .. }, .. } => {
            Step::Say(subject.settle(unreleased(why), Again::Backoff))
        }
        Broker::None(Place::Unknown(why)) => Step::Say(subject.settle(unreleased(why), Again::Resync)),
        Broker::None(place) => {
            let why = match place {
                Place::Missing(why) | Place::Ambiguous(why) | Place::NotAllowed(why) | Place::Moved(why) => {
                    why
                }
                Place::At(_) | Place::Unknown(_) => "",
            };
            let note = format!("nothing to release: {why}");
            Step::LetGo(Note::warning("BrokerGone", note))
        }
    }
}

fn paused(subject: &Subject) -> Settled {
    let was_ready = conditions::status_of(&subject.status.conditions, READY);
    let ready = match was_ready {
        Some("True") if subject.status.observed_generation == Some(subject.generation) => Some(true),
        _ => None,
    };
    let verdict = Verdict::new(
        ready,
        Progress::Paused,
        "Paused",
        "left alone until the annotation weir.dev/pause is removed; deleting still works",
    );
    let is_known = conditions::status_of(&subject.status.conditions, PAUSED).is_some();
    let notes = if is_known { Vec::new() } else { vec![Note::normal("Paused", verdict.message.clone())] };
    Settled { verdict: Some(verdict), notes, again: Again::Woken }
}

fn nowhere(subject: &Subject, place: &Place) -> Settled {
    let verdict = match place {
        Place::Missing(why) => Verdict::working("BrokerMissing", why),
        Place::Ambiguous(why) => Verdict::stuck("BrokerAmbiguous", why),
        Place::NotAllowed(why) => Verdict::stuck("NamespaceNotAllowed", why),
        Place::Moved(why) => Verdict::stuck("BrokerChanged", why),
        Place::Unknown(why) => Verdict::new(None, Progress::Working, "BrokerUnknown", why.clone()),
        Place::At(_) => Verdict::pending(),
    };
    subject.settle(verdict, Again::Resync)
}

fn ready(subject: &Subject) -> Verdict {
    Verdict::ready(format!("{} is as declared", subject.what()))
}

fn unavailable(why: &str) -> Verdict {
    Verdict::working("BrokerUnavailable", format!("the Broker does not answer: {why}"))
}

fn unreleased(why: &str) -> Verdict {
    Verdict::working(
        "BrokerUnavailable",
        format!(
            "deletion waits for the Broker, which does not answer: {why}; the annotation weir.dev/force-release lets the \
             object go without it"
        ),
    )
}

/// What to say while an object that has drifted is not set back, because it was set back a moment ago.
pub(crate) fn fought_over(subject: &Subject) -> Settled {
    let message = format!(
        "{} was changed again after it was set back; it is set back after ever longer pauses, up to 5 min. Find who else \
         changes it: a second operator with the same --cluster-id, or somebody who uses --force",
        subject.what()
    );
    subject.settle(Verdict::working(DRIFT_REPEATED, message), Again::Repair)
}

/// What the Broker's answer means.
pub(crate) fn applied(subject: &Subject, answer: Result<Applied, AdminError>) -> Settled {
    let answer = match answer {
        Ok(answer) => answer,
        Err(AdminError::Busy) => {
            return Settled { verdict: None, notes: Vec::new(), again: Again::Backoff };
        }
        // It is not always the Broker that does not answer: nobody else may come to wake it.
        Err(AdminError::Unavailable(why)) => return subject.settle(unavailable(&why), Again::Backoff),
        Err(AdminError::Refused { refusal, message }) => {
            return subject.settle(refused(refusal, message), Again::Resync);
        }
    };
    let mut settled = match &answer.state {
        State::Ready => Settled { verdict: Some(ready(subject)), notes: Vec::new(), again: Again::Woken },
        State::Unknown => {
            let message = format!("{} is as declared; the broker cannot say yet how it is", subject.what());
            let verdict = Verdict::new(None, Progress::Working, "Starting", message);
            Settled { verdict: Some(verdict), notes: Vec::new(), again: Again::Backoff }
        }
        State::NotReady { reason, message } => {
            subject.settle(Verdict::impaired(reason, message), Again::Backoff)
        }
    };
    if let Some(note) = done(subject, &answer) {
        settled.notes.insert(0, note);
    }
    settled
}

/// What was done, for people.
fn done(subject: &Subject, answer: &Applied) -> Option<Note> {
    let what = subject.what();
    let fields = match answer.changed.as_slice() {
        [] => String::new(),
        changed => format!(": {}", changed.join(", ")),
    };
    let was_deleted = answer.outcome == Outcome::Created && (subject.was_ready() || subject.is_fought_over());
    match answer.outcome {
        _ if was_deleted => {
            Some(Note::warning("DriftRepaired", format!("{what} had been deleted, and was made anew")))
        }
        _ if answer.drifted => {
            Some(Note::warning("DriftRepaired", format!("somebody had changed {what}; set back{fields}")))
        }
        Outcome::Created => Some(Note::normal("Created", format!("made {what}"))),
        Outcome::Updated => Some(Note::normal("Updated", format!("changed {what}{fields}"))),
        Outcome::Adopted => {
            Some(Note::normal("Adopted", format!("took {what} over with its messages{fields}")))
        }
        Outcome::Unchanged => None,
    }
}

/// Whether what was done set something back that somebody else had changed.
pub(crate) fn is_repair(settled: &Settled) -> bool {
    settled.notes.iter().any(|note| note.reason == "DriftRepaired")
}

fn refused(refusal: Refusal, message: String) -> Verdict {
    let reason = refusal.reason();
    match refusal {
        Refusal::Invalid | Refusal::NameConflict | Refusal::ImmutableMismatch | Refusal::TooMany => {
            Verdict::stuck(reason, message)
        }
        // Another operator is at work, or this one has seen an old state: both pass.
        Refusal::StaleWriter | Refusal::StaleGeneration => Verdict::working(reason, message),
    }
}

/// What the Broker's answer to a release means: either the object may go, or why not yet. `is_namespace_ending`: it has waited
/// long enough, and its namespace waits for it.
pub(crate) fn released(
    subject: &Subject,
    answer: Result<Released, AdminError>,
    is_namespace_ending: bool,
) -> Step {
    let what = subject.what();
    let note = match answer {
        Ok(Released::Kept) => {
            Note::normal("Released", format!("{what} takes no more messages; those it has are kept"))
        }
        Ok(Released::Deleted) => Note::normal("Deleted", format!("deleted {what} with its messages")),
        Ok(Released::Missing) => Note::normal("Released", format!("{what} was not there")),
        Ok(Released::NotOwned) => {
            Note::normal("Released", format!("{what} is declared by somebody else, and stays as it is"))
        }
        Err(AdminError::Busy) => {
            return Step::Say(Settled { verdict: None, notes: Vec::new(), again: Again::Backoff });
        }
        Err(error) if is_namespace_ending => {
            Note::warning("BrokerGone", format!("the namespace ends; {what} was not released: {error}"))
        }
        Err(AdminError::Unavailable(why)) => {
            return Step::Say(subject.settle(unreleased(&why), Again::Backoff));
        }
        Err(AdminError::Refused { refusal, message }) => {
            let message = format!(
                "the Broker does not release it: {message}; the annotation weir.dev/force-release lets the object go \
                 without it"
            );
            return Step::Say(subject.settle(Verdict::working(refusal.reason(), message), Again::Backoff));
        }
    };
    Step::LetGo(note)
}
