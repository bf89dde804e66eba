//! Each state of an object and its Broker, and the step that follows.

use weir_operator_api::{ObjectStatus, Problem};

use crate::brokers::{AdminError, Applied, Health, Kind, Outcome, Place, Policy, Refusal, Released, State};
use crate::conditions::{Progress, Verdict};
use crate::leader::wall;
use crate::object::plan::{self, Again, Broker, Step, Subject};

fn subject() -> Subject {
    Subject {
        kind: Kind::Queue,
        backend: "traffic".to_owned(),
        generation: 2,
        is_deleted: false,
        is_held: true,
        is_paused: false,
        is_forced: false,
        policy: Policy::Retain,
        problems: Vec::new(),
        status: ObjectStatus::default(),
    }
}

fn said(verdict: &Verdict, generation: i64) -> ObjectStatus {
    let conditions = verdict.conditions(&[], generation, wall(weir_env::clock::Clock::system()));
    ObjectStatus { observed_generation: Some(generation), conditions, broker_ref: None }
}

fn with(change: impl FnOnce(&mut Subject)) -> Subject {
    let mut subject = subject();
    change(&mut subject);
    subject
}

fn at(health: Health, in_sync: Option<State>) -> Broker {
    Broker::At { health, in_sync }
}

fn down(long: bool) -> Health {
    Health::Down { why: "refused".to_owned(), long }
}

/// A step in a few words.
fn brief(step: &Step) -> String {
    match step {
        Step::Nothing => "nothing".to_owned(),
        Step::Hold => "hold".to_owned(),
        Step::Apply => "apply".to_owned(),
        Step::Release => "release".to_owned(),
        Step::LetGo(note) => format!("let go: {}", note.reason),
        Step::Say(settled) => {
            let verdict = settled.verdict.as_ref().map_or_else(
                || "as before".to_owned(),
                |verdict| {
                    let ready = match verdict.ready {
                        Some(true) => "ready",
                        Some(false) => "not ready",
                        None => "unknown",
                    };
                    format!("{ready}, {:?}, {}", verdict.progress, verdict.reason)
                },
            );
            let notes: Vec<&str> = settled.notes.iter().map(|note| note.reason.as_str()).collect();
            format!("{verdict} {notes:?} {:?}", settled.again)
        }
    }
}

#[test]
fn living_objects() {
    let ready = || said(&Verdict::ready(""), 2);
    let stale = || said(&Verdict::ready(""), 1);
    let blocked = || State::NotReady { reason: "DeadLetterBlocked".to_owned(), message: "m".to_owned() };
    for (subject, broker, expected) in [
        (with(|s| s.is_held = false), at(Health::Up, None), "hold"),
        (subject(), at(Health::Up, None), "apply"),
        (subject(), at(Health::Up, Some(State::Ready)), "ready, Done, Ready [] Woken"),
        (subject(), at(Health::Up, Some(State::Unknown)), "apply"),
        (subject(), at(Health::Up, Some(blocked())), "apply"),
        (subject(), at(Health::New, None), "unknown, Working, Pending [] Woken"),
        (with(|s| s.status = ready()), at(Health::New, None), "nothing"),
        (with(|s| s.status = stale()), at(Health::New, None), "unknown, Working, Pending [] Woken"),
        (
            subject(),
            at(down(false), None),
            r#"not ready, Working, BrokerUnavailable ["BrokerUnavailable"] Woken"#,
        ),
        (with(|s| s.status = ready()), at(down(false), None), "nothing"),
        (with(|s| s.status = ready()), at(down(false), Some(State::Ready)), "nothing"),
        (
            with(|s| s.status = ready()),
            at(down(true), Some(State::Ready)),
            "unknown, Working, BrokerUnavailable [] Woken",
        ),
        (
            with(|s| s.problems = vec![Problem::new("spec.topicFilter", "no")]),
            at(Health::Up, None),
            r#"not ready, Stuck, Invalid ["Invalid"] Resync"#,
        ),
        (
            subject(),
            Broker::None(Place::Missing("m".to_owned())),
            r#"not ready, Working, BrokerMissing ["BrokerMissing"] Resync"#,
        ),
        (
            subject(),
            Broker::None(Place::Ambiguous("m".to_owned())),
            r#"not ready, Stuck, BrokerAmbiguous ["BrokerAmbiguous"] Resync"#,
        ),
        (
            subject(),
            Broker::None(Place::NotAllowed("m".to_owned())),
            r#"not ready, Stuck, NamespaceNotAllowed ["NamespaceNotAllowed"] Resync"#,
        ),
        (
            subject(),
            Broker::None(Place::Moved("m".to_owned())),
            r#"not ready, Stuck, BrokerChanged ["BrokerChanged"] Resync"#,
        ),
        (
            with(|s| s.status = ready()),
            Broker::None(Place::Unknown("m".to_owned())),
            "unknown, Working, BrokerUnknown [] Resync",
        ),
        (with(|s| s.is_paused = true), at(Health::Up, None), r#"unknown, Paused, Paused ["Paused"] Woken"#),
        (
            with(|s| (s.is_paused, s.status) = (true, ready())),
            at(Health::Up, None),
            r#"ready, Paused, Paused ["Paused"] Woken"#,
        ),
        // An edit while paused: not ready, whatever it was.
        (
            with(|s| (s.is_paused, s.status) = (true, stale())),
            at(Health::Up, None),
            r#"unknown, Paused, Paused ["Paused"] Woken"#,
        ),
    ] {
        assert_eq!(brief(&plan::next(&subject, &broker)), expected, "{subject:?} {broker:?}");
    }
}

#[test]
fn dying_objects() {
    let dying = |change: fn(&mut Subject)| {
        with(|s| {
            s.is_deleted = true;
            change(s);
        })
    };
    for (subject, broker, expected) in [
        (dying(|s| s.is_held = false), at(Health::Up, None), "nothing"),
        (dying(|_| ()), at(Health::Up, None), "release"),
        (dying(|s| s.is_paused = true), at(Health::Up, None), "release"),
        (dying(|s| s.problems = vec![Problem::new("spec", "no")]), at(Health::Up, None), "release"),
        (dying(|_| ()), at(Health::New, None), "not ready, Working, Releasing [] Woken"),
        (
            dying(|_| ()),
            at(down(true), None),
            r#"not ready, Working, BrokerUnavailable ["BrokerUnavailable"] Backoff"#,
        ),
        (dying(|s| s.is_forced = true), at(down(true), None), "let go: ForceReleased"),
        (dying(|s| s.is_forced = true), at(Health::Up, None), "let go: ForceReleased"),
        (dying(|_| ()), Broker::None(Place::Missing("m".to_owned())), "let go: BrokerGone"),
        (dying(|_| ()), Broker::None(Place::Ambiguous("m".to_owned())), "let go: BrokerGone"),
        (
            dying(|_| ()),
            Broker::None(Place::Unknown("m".to_owned())),
            r#"not ready, Working, BrokerUnavailable ["BrokerUnavailable"] Resync"#,
        ),
        (
            dying(|s| s.is_forced = true),
            Broker::None(Place::Unknown("m".to_owned())),
            "let go: ForceReleased",
        ),
    ] {
        assert_eq!(brief(&plan::next(&subject, &broker)), expected, "{subject:?} {broker:?}");
    }
}

fn answer(outcome: Outcome, drifted: bool, state: State) -> Applied {
    Applied { outcome, drifted, changed: Vec::new(), generation: 1, hash: "h".to_owned(), state }
}

#[test]
fn answers_to_a_declaration() {
    let blocked = State::NotReady { reason: "DeadLetterBlocked".to_owned(), message: "m".to_owned() };
    let refused = |refusal| Err(AdminError::Refused { refusal, message: "m".to_owned() });
    let fresh = subject();
    let was_ready = with(|s| s.status = said(&Verdict::ready(""), 2));
    for (subject, answer, expected) in [
        (
            &fresh,
            Ok(answer(Outcome::Created, false, State::Ready)),
            r#"ready, Done, Ready ["Created"] Woken"#,
        ),
        (
            &fresh,
            Ok(answer(Outcome::Updated, false, State::Ready)),
            r#"ready, Done, Ready ["Updated"] Woken"#,
        ),
        (
            &fresh,
            Ok(answer(Outcome::Adopted, false, State::Ready)),
            r#"ready, Done, Ready ["Adopted"] Woken"#,
        ),
        (&fresh, Ok(answer(Outcome::Unchanged, false, State::Ready)), "ready, Done, Ready [] Woken"),
        (
            &fresh,
            Ok(answer(Outcome::Updated, true, State::Ready)),
            r#"ready, Done, Ready ["DriftRepaired"] Woken"#,
        ),
        (
            &was_ready,
            Ok(answer(Outcome::Created, false, State::Ready)),
            r#"ready, Done, Ready ["DriftRepaired"] Woken"#,
        ),
        (
            &fresh,
            Ok(answer(Outcome::Unchanged, false, blocked)),
            r#"not ready, Done, DeadLetterBlocked ["DeadLetterBlocked"] Backoff"#,
        ),
        (
            &fresh,
            Ok(answer(Outcome::Created, false, State::Unknown)),
            r#"unknown, Working, Starting ["Created"] Backoff"#,
        ),
        (&fresh, Err(AdminError::Busy), "as before [] Backoff"),
        (
            &fresh,
            Err(AdminError::Unavailable("m".to_owned())),
            r#"not ready, Working, BrokerUnavailable ["BrokerUnavailable"] Backoff"#,
        ),
        (&fresh, refused(Refusal::NameConflict), r#"not ready, Stuck, NameConflict ["NameConflict"] Resync"#),
        (
            &fresh,
            refused(Refusal::ImmutableMismatch),
            r#"not ready, Stuck, ImmutableMismatch ["ImmutableMismatch"] Resync"#,
        ),
        (&fresh, refused(Refusal::Invalid), r#"not ready, Stuck, Invalid ["Invalid"] Resync"#),
        (&fresh, refused(Refusal::TooMany), r#"not ready, Stuck, TooMany ["TooMany"] Resync"#),
        (&fresh, refused(Refusal::StaleWriter), r#"not ready, Working, StaleWriter ["StaleWriter"] Resync"#),
        (
            &fresh,
            refused(Refusal::StaleGeneration),
            r#"not ready, Working, StaleGeneration ["StaleGeneration"] Resync"#,
        ),
    ] {
        let settled = plan::applied(subject, answer.clone());
        assert_eq!(brief(&Step::Say(settled)), expected, "{answer:?}");
    }
}

#[test]
fn what_was_said_already_is_no_event_again() {
    let conflict = || Err(AdminError::Refused { refusal: Refusal::NameConflict, message: "m".to_owned() });
    let fresh = subject();
    let first = plan::applied(&fresh, conflict());
    assert_eq!(first.notes.len(), 1);
    let known = with(|s| s.status = said(&first.verdict.unwrap(), 2));
    let second = plan::applied(&known, conflict());
    assert_eq!((second.notes.len(), second.again), (0, Again::Resync));
    let edited = with(|s| (s.generation, s.status) = (3, known.status.clone()));
    assert_eq!(plan::applied(&edited, conflict()).notes.len(), 1, "the edit has not helped");
}

#[test]
fn answers_to_a_release() {
    let dying = with(|s| s.is_deleted = true);
    let gone = || Err(AdminError::Unavailable("m".to_owned()));
    let refused = || Err(AdminError::Refused { refusal: Refusal::StaleWriter, message: "m".to_owned() });
    for (answer, is_ending, expected) in [
        (Ok(Released::Kept), false, "let go: Released"),
        (Ok(Released::Deleted), false, "let go: Deleted"),
        (Ok(Released::Missing), false, "let go: Released"),
        (Ok(Released::NotOwned), false, "let go: Released"),
        (gone(), false, r#"not ready, Working, BrokerUnavailable ["BrokerUnavailable"] Backoff"#),
        (gone(), true, "let go: BrokerGone"),
        (refused(), false, r#"not ready, Working, StaleWriter ["StaleWriter"] Backoff"#),
        (refused(), true, "let go: BrokerGone"),
        (Err(AdminError::Busy), false, "as before [] Backoff"),
        (Err(AdminError::Busy), true, "as before [] Backoff"),
    ] {
        let step = plan::released(&dying, answer.clone(), is_ending);
        assert_eq!(brief(&step), expected, "{answer:?} {is_ending}");
    }
}

#[test]
fn nothing_is_ready_and_stalled() {
    let stuck = plan::applied(
        &subject(),
        Err(AdminError::Refused { refusal: Refusal::TooMany, message: String::new() }),
    );
    let verdict = stuck.verdict.unwrap();
    assert_eq!((verdict.ready, verdict.progress), (Some(false), Progress::Stuck));
}
