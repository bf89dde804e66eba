//! What is asked of a shard, taken apart into what another pod has to know and who waits here for the answer; and put
//! together again, should this pod become the owner meanwhile. Keeps nothing.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::catalog::Object;
use crate::cluster::message::shard::{Answer, ObjectRef, Question, Refusal};
use crate::error::{Error, Result};
use crate::keyspace::LogId;
use crate::shard::ops::{Operation, States};
use crate::shard::positions::PendingPositions;
use crate::shard::{AppendError, Command, Extent, LogReport};

type Sender<T> = oneshot::Sender<Result<T>>;

/// A question, and who waits for its answer.
#[derive(Debug)]
pub(super) struct Asked {
    /// None where it may be deleted.
    pub(super) object: Option<Arc<Object>>,
    pub(super) log: LogId,
    pub(super) question: Question,
    pub(super) reply: Reply,
}

/// Who waits for an answer of some kind.
#[derive(Debug)]
pub(super) enum Reply {
    Settled(oneshot::Sender<()>),
    Done(Sender<()>),
    Extent(Sender<Extent>),
    Report(Sender<LogReport>),
    Logs(Sender<Vec<LogId>>),
    States(Sender<States>),
    Purged(Sender<(u64, bool)>),
    Count(Sender<u64>),
    Offsets(Sender<Vec<u64>>),
}

/// The limits that an owner may name, as they are named here.
const LIMITS: [&str; 3] = ["retention.maxMessages", "retention.maxBytes", "dedup.window"];

/// What `object` is called between pods.
pub(super) fn reference(object: &Object) -> ObjectRef {
    ObjectRef { id: object.id, generation: object.generation }
}

impl Asked {
    /// The question that `command` is, if it is one.
    pub(super) fn of(command: Command) -> Option<Self> {
        let (object, log, question, reply) = match command {
            Command::Describe { object, log, reply } => {
                (Some(object), log, Question::Describe, Reply::Report(reply))
            }
            Command::Classes { object, log, reply } => {
                (Some(object), log, Question::Classes, Reply::Logs(reply))
            }
            Command::Delete { log, reply } => (None, log, Question::Delete, Reply::Done(reply)),
            Command::Trim { object, log, below, reply } => {
                (Some(object), log, Question::Trim(below), Reply::Extent(reply))
            }
            Command::Positions(PendingPositions { object, log, rows, reply }) => {
                (Some(object), log, Question::Positions(rows), Reply::Done(reply))
            }
            Command::Operate { object, log, operation } => {
                let (question, reply) = taken_apart(operation);
                (Some(object), log, question, reply)
            }
            Command::Append(_)
            | Command::Watch { .. }
            | Command::Settled { .. }
            | Command::Attach { .. }
            | Command::Detach { .. }
            | Command::Settle { .. }
            | Command::Kick { .. }
            | Command::Update { .. }
            | Command::Resume { .. }
            | Command::Present { .. }
            | Command::Foreign(_)
            | Command::HandOver { .. }
            | Command::Close { .. } => return None,
        };
        Some(Self { object, log, question, reply })
    }

    /// Nothing in flight of the shard of `log` may be older than the answer.
    pub(super) fn settled(log: LogId, reply: oneshot::Sender<()>) -> Self {
        Self { object: None, log, question: Question::Settled, reply: Reply::Settled(reply) }
    }

    /// The command that it was.
    pub(super) fn into_command(self) -> Option<Command> {
        let Self { object, log, question, reply } = self;
        let operation = match (question, reply) {
            (Question::Settled, Reply::Settled(reply)) => return Some(Command::Settled { reply }),
            (Question::Delete, Reply::Done(reply)) => return Some(Command::Delete { log, reply }),
            (Question::Describe, Reply::Report(reply)) => {
                return Some(Command::Describe { object: object?, log, reply });
            }
            (Question::Classes, Reply::Logs(reply)) => {
                return Some(Command::Classes { object: object?, log, reply });
            }
            (Question::Trim(below), Reply::Extent(reply)) => {
                return Some(Command::Trim { object: object?, log, below, reply });
            }
            (Question::Positions(rows), Reply::Done(reply)) => {
                return Some(Command::Positions(PendingPositions { object: object?, log, rows, reply }));
            }
            (Question::States(offsets), Reply::States(reply)) => Operation::States { offsets, reply },
            (Question::PurgeBelow(end), Reply::Purged(reply)) => Operation::PurgeBelow { end, reply },
            (Question::Purge(costs, filter), Reply::Count(reply)) => {
                Operation::Purge { costs, filter, reply }
            }
            (Question::TakeOut(records), Reply::Offsets(reply)) => Operation::TakeOut { records, reply },
            (Question::Moved(results), Reply::Count(reply)) => Operation::Moved { results, reply },
            _ => return None,
        };
        Some(Command::Operate { object: object?, log, operation })
    }
}

fn taken_apart(operation: Operation) -> (Question, Reply) {
    match operation {
        Operation::States { offsets, reply } => (Question::States(offsets), Reply::States(reply)),
        Operation::PurgeBelow { end, reply } => (Question::PurgeBelow(end), Reply::Purged(reply)),
        Operation::Purge { costs, filter, reply } => (Question::Purge(costs, filter), Reply::Count(reply)),
        Operation::TakeOut { records, reply } => (Question::TakeOut(records), Reply::Offsets(reply)),
        Operation::Moved { results, reply } => (Question::Moved(results), Reply::Count(reply)),
    }
}

impl Reply {
    /// Tells whoever waits; an answer of another kind than was asked for is a failure. Whoever has gone misses nothing.
    pub(super) fn send(self, answer: Result<Answer>) {
        match (self, answer) {
            (Self::Settled(reply), Ok(_)) => _ = reply.send(()),
            // Its sender takes the silence for the end of the shard.
            (Self::Settled(_), Err(_)) => {}
            (Self::Done(reply), Ok(Answer::Done)) => _ = reply.send(Ok(())),
            (Self::Extent(reply), Ok(Answer::Extent(extent))) => _ = reply.send(Ok(extent)),
            (Self::Report(reply), Ok(Answer::Report(report))) => _ = reply.send(Ok(*report)),
            (Self::Logs(reply), Ok(Answer::Logs(logs))) => _ = reply.send(Ok(logs)),
            (Self::States(reply), Ok(Answer::States(states))) => _ = reply.send(Ok(states)),
            (Self::Purged(reply), Ok(Answer::Purged(count, more))) => _ = reply.send(Ok((count, more))),
            (Self::Count(reply), Ok(Answer::Count(count))) => _ = reply.send(Ok(count)),
            (Self::Offsets(reply), Ok(Answer::Offsets(offsets))) => _ = reply.send(Ok(offsets)),
            (other, Ok(_)) => other.fail(Error::Remote("another answer than was asked for".into())),
            (other, Err(error)) => other.fail(error),
        }
    }

    fn fail(self, error: Error) {
        match self {
            Self::Settled(_) => {}
            Self::Done(reply) => _ = reply.send(Err(error)),
            Self::Extent(reply) => _ = reply.send(Err(error)),
            Self::Report(reply) => _ = reply.send(Err(error)),
            Self::Logs(reply) => _ = reply.send(Err(error)),
            Self::States(reply) => _ = reply.send(Err(error)),
            Self::Purged(reply) => _ = reply.send(Err(error)),
            Self::Count(reply) => _ = reply.send(Err(error)),
            Self::Offsets(reply) => _ = reply.send(Err(error)),
        }
    }
}

/// What is said of an error to the pod that asked; none if another pod is to be asked.
pub(super) fn refusal(error: &Error) -> Option<Refusal> {
    match error {
        Error::Fenced | Error::NotOwner(_) => None,
        Error::Closed => Some(Refusal::Closed),
        Error::Store(_)
        | Error::Record(_)
        | Error::Damaged(_)
        | Error::Full(_)
        | Error::Remote(_)
        | Error::NoOwner => Some(Refusal::Failed(error.to_string())),
    }
}

/// The same of an append.
pub(super) fn append_refusal(error: AppendError) -> Option<Refusal> {
    match error {
        AppendError::Full { name, what } => Some(Refusal::Full { name, what: what.to_owned() }),
        AppendError::Invalid { .. } => Some(Refusal::Failed(error.to_string())),
        AppendError::Failed(error) => refusal(&error),
    }
}

/// What a refusal is to whoever asked.
pub(super) fn error_of(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Full { name, what } => Error::Remote(format!("{name} is full: {what}").into()),
        Refusal::Closed => Error::Closed,
        Refusal::Failed(text) => Error::Remote(text.into()),
    }
}

/// What a refusal is to a publisher.
pub(super) fn append_error_of(refusal: Refusal) -> AppendError {
    match refusal {
        Refusal::Full { name, what } => {
            let what = LIMITS.into_iter().find(|limit| *limit == what).unwrap_or("a limit");
            AppendError::Full { name, what }
        }
        Refusal::Closed | Refusal::Failed(_) => AppendError::Failed(error_of(refusal)),
    }
}
