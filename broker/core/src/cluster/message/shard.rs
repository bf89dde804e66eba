//! What pods say to each other about a virtual shard: one of them owns it, the other has clients who want something
//! of it.
//!
//! The pod that wants something opens a *talk* with the owner, under a number that grows: it announces its consumers
//! with what they hold, says that this is all ([`ToOwner::Present`]), and goes on with what it is asked for. What is
//! said in an older talk counts no more. Plain data: what it means is the affair of `shard::remote`.

use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use weir_env::clock::Timestamp;

use crate::controls::Wishes;
use crate::keyspace::group::GroupPosition;
use crate::keyspace::owner::PodId;
use crate::keyspace::segment::Record;
use crate::keyspace::{LogId, PublishId, VirtualShard};
use crate::queue::{ConsumerId, Handout, Lost, MessageState, StateFilter, Verdict};
use crate::shard::{Extent, LogReport};

/// Bytes that a message is counted as beside its records and texts.
const BASE_BYTES: usize = 96;

/// Something about one virtual shard.
#[derive(Clone, Debug)]
pub enum ShardMessage {
    /// To the pod that owns it, or is to.
    ToOwner {
        /// Which shard.
        vs: VirtualShard,
        /// In which talk of the sender's.
        talk: u64,
        /// What.
        words: ToOwner,
    },
    /// From the pod that is taken for its owner.
    FromOwner {
        /// Which shard.
        vs: VirtualShard,
        /// In which talk of the receiver's.
        talk: u64,
        /// What.
        words: FromOwner,
    },
    /// From a new owner, to all: whoever has consumers of it announces them, before anything is given out.
    RollCall {
        /// Which shard.
        vs: VirtualShard,
    },
    /// The answer of a pod that has nobody to announce.
    Absent {
        /// Which shard.
        vs: VirtualShard,
    },
}

/// A queue or stream, as a pod knows it that may be ahead of another, or behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    /// Its catalog id.
    pub id: u32,
    /// It has changed so many times.
    pub generation: u64,
}

/// A consumer as another pod has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteConsumer {
    /// As the pod of its client calls it.
    pub id: ConsumerId,
    /// Of its client.
    pub client_id: ByteString,
    /// When it began to consume.
    pub since: Timestamp,
    /// Whether it acknowledges: its deliveries take room in its connection.
    pub acknowledges: bool,
}

/// A message that a consumer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Priority class of its log.
    pub class: u8,
    /// Its offset there.
    pub offset: u64,
    /// 1 for the first delivery.
    pub delivery_count: u32,
    /// How long it has been held.
    pub age: Duration,
}

/// What is said to the owner.
#[derive(Clone, Debug)]
pub enum ToOwner {
    /// Store a record. Answered by [`FromOwner::Appended`].
    Append(Box<RemoteAppend>),
    /// Answered by [`FromOwner::Answer`].
    Ask {
        /// Names the question in its talk.
        request: u64,
        /// Of which queue or stream; none where it may be deleted.
        object: Option<ObjectRef>,
        /// Which of its logs.
        log: LogId,
        /// What.
        question: Question,
    },
    /// Here is a consumer, without credit. Answered by [`FromOwner::Answer`].
    Attach {
        /// Names the question in its talk.
        request: u64,
        /// What it consumes.
        object: ObjectRef,
        /// Which of its logs.
        log: LogId,
        /// Who.
        consumer: RemoteConsumer,
        /// What it holds: nobody else gets that.
        held: Vec<InFlight>,
    },
    /// All consumers are announced.
    Present,
    /// A consumer leaves.
    Detach {
        /// What it consumed.
        log: LogId,
        /// Who.
        consumer: ConsumerId,
        /// How.
        lost: Lost,
    },
    /// What a consumer says of a message.
    Settle {
        /// Counts them, over all talks.
        seq: u64,
        /// Which.
        handout: Handout,
        /// What.
        verdict: Verdict,
    },
    /// A consumer has room for so many messages more.
    Credit {
        /// Of which log.
        log: LogId,
        /// Who.
        consumer: ConsumerId,
        /// Messages.
        room: u32,
        /// Messages of all logs that it holds, or has given credit for elsewhere.
        taken: u32,
    },
    /// Nobody reads a stream's log any more.
    Unwatch {
        /// Which.
        log: LogId,
    },
    /// It has heard that the pod does not own the shard: the talk has ended.
    Parted,
    /// A queue or stream has changed.
    Update {
        /// What it is now.
        object: ObjectRef,
        /// One of its logs.
        log: LogId,
    },
}

/// A record that is to be stored.
#[derive(Clone, Debug)]
pub struct RemoteAppend {
    /// Names it in its talk.
    pub request: u64,
    /// What it is for.
    pub object: ObjectRef,
    /// Which log.
    pub log: LogId,
    /// The record, whole.
    pub record: Arc<Record>,
    /// Set for publishes that may be repeated; `true` if this is a repeat.
    pub publish: Option<(PublishId, bool)>,
    /// What its publisher asks for.
    pub wishes: Wishes,
}

/// What may be asked of an owner.
#[derive(Clone, Debug)]
pub enum Question {
    /// [`Answer::Report`].
    Describe,
    /// Where a stream's log begins and ends, now ([`Answer::Extent`]) and whenever that changes.
    Watch,
    /// [`Answer::Done`] once nothing is in flight.
    Settled,
    /// [`Answer::Logs`] of all priorities.
    Classes,
    /// Remove all that is stored of the log: [`Answer::Done`].
    Delete,
    /// Cut a stream's log so that it begins here: [`Answer::Extent`].
    Trim(u64),
    /// Write positions of consumer groups, or clear them: [`Answer::Done`].
    Positions(Vec<(ByteString, Option<GroupPosition>)>),
    /// Where messages are: [`Answer::States`].
    States(Vec<u64>),
    /// End all messages below an offset: [`Answer::Purged`].
    PurgeBelow(u64),
    /// End messages, given with what they cost, in some state: [`Answer::Count`].
    Purge(Vec<(u64, u64)>, StateFilter),
    /// Take messages out to be moved elsewhere: [`Answer::Offsets`].
    TakeOut(Vec<(u64, Arc<Record>)>),
    /// What became of messages that were taken out: [`Answer::Count`].
    Moved(Vec<(u64, bool)>),
}

/// What an owner answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It is done.
    Done,
    /// Where a log begins and ends.
    Extent(Extent),
    /// What there is in a log.
    Report(Box<LogReport>),
    /// Logs.
    Logs(Vec<LogId>),
    /// Offsets, where each message is, and its failed deliveries.
    States(Vec<(u64, MessageState, u32)>),
    /// How many messages have ended, and whether there are more.
    Purged(u64, bool),
    /// How many.
    Count(u64),
    /// Which.
    Offsets(Vec<u64>),
}

/// Why an owner did not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A limit has been reached.
    Full {
        /// Of the queue or stream.
        name: String,
        /// Which limit.
        what: String,
    },
    /// There is no such thing any more, or the pod shuts down.
    Closed,
    /// Something went wrong; the text says what.
    Failed(String),
}

/// What the owner says.
#[derive(Clone, Debug)]
pub enum FromOwner {
    /// Records were stored, or not.
    Appended(Vec<(u64, Result<(), Refusal>)>),
    /// What was asked.
    Answer {
        /// Which question.
        request: u64,
        /// The answer.
        answer: Result<Answer, Refusal>,
    },
    /// It does not own the shard: nothing that is open in this talk will be answered.
    NotOwner {
        /// Who does, as far as it knows.
        owner: Option<PodId>,
    },
    /// A message for a consumer, which takes one of its credits.
    Deliver {
        /// Where it is.
        log: LogId,
        /// For whom.
        consumer: ConsumerId,
        /// Its offset.
        offset: u64,
        /// 1 for the first delivery.
        delivery_count: u32,
        /// The message and its key.
        record: Arc<Record>,
    },
    /// There are messages for a consumer that has no credit.
    Wanted {
        /// In which log.
        log: LogId,
        /// Whose.
        consumer: ConsumerId,
    },
    /// Credit that nothing came to use.
    Unused {
        /// For which log.
        log: LogId,
        /// Whose.
        consumer: ConsumerId,
        /// Messages.
        room: u32,
    },
    /// It has heard all settlements up to this number.
    SettledTo(u64),
    /// A stream's log has changed.
    Extent {
        /// Which.
        log: LogId,
        /// As it is now.
        extent: Extent,
    },
    /// A stream's log is gone.
    Gone {
        /// Which.
        log: LogId,
    },
}

impl ShardMessage {
    /// Bytes it holds in memory, nearly.
    #[must_use]
    pub fn size(&self) -> usize {
        let more = match self {
            Self::ToOwner { words, .. } => words.size(),
            Self::FromOwner { words, .. } => words.size(),
            Self::RollCall { .. } | Self::Absent { .. } => 0,
        };
        BASE_BYTES + more
    }
}

impl ToOwner {
    fn size(&self) -> usize {
        match self {
            Self::Append(append) => append.record.message.size(),
            Self::Ask { question, .. } => question.size(),
            Self::Attach { consumer, held, .. } => {
                consumer.client_id.len() + held.len() * size_of::<InFlight>()
            }
            Self::Present
            | Self::Parted
            | Self::Detach { .. }
            | Self::Settle { .. }
            | Self::Credit { .. }
            | Self::Unwatch { .. }
            | Self::Update { .. } => 0,
        }
    }
}

impl Question {
    fn size(&self) -> usize {
        match self {
            Self::Positions(rows) => rows.iter().map(|(group, _)| group.len() + 64).sum(),
            Self::States(offsets) => offsets.len() * 8,
            Self::Purge(costs, _) => costs.len() * 16,
            Self::TakeOut(records) => records.iter().map(|(_, record)| record.message.size()).sum(),
            Self::Moved(results) => results.len() * 9,
            Self::Describe
            | Self::Watch
            | Self::Settled
            | Self::Classes
            | Self::Delete
            | Self::Trim(_)
            | Self::PurgeBelow(_) => 0,
        }
    }
}

impl FromOwner {
    fn size(&self) -> usize {
        match self {
            Self::Appended(answers) => answers.len() * 16,
            Self::Answer { answer: Ok(Answer::Report(report)), .. } => {
                size_of::<LogReport>() + report.queue.as_ref().map_or(0, |queue| queue.consumers.len() * 256)
            }
            Self::Answer { answer: Ok(Answer::States(states)), .. } => states.len() * 64,
            Self::Answer { answer: Ok(Answer::Offsets(offsets)), .. } => offsets.len() * 8,
            Self::Deliver { record, .. } => record.message.size(),
            Self::Answer { .. }
            | Self::NotOwner { .. }
            | Self::Wanted { .. }
            | Self::Unused { .. }
            | Self::SettledTo(_)
            | Self::Extent { .. }
            | Self::Gone { .. } => 0,
        }
    }
}
