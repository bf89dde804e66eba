//! What the operator asks of a broker, in its own words. Knows no transport.

use std::pin::Pin;

use futures_util::Stream;
use weir_operator_api::Broker;

/// A call that has not ended.
pub(crate) type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, AdminError>> + Send + 'a>>;
/// Changes of queues and streams as they come.
pub(crate) type Changes = Pin<Box<dyn Stream<Item = Result<Told, AdminError>> + Send>>;

/// The admin API of Brokers, by any of their pods. Calls end in bounded time and may be repeated.
pub(crate) trait Admin: Send + Sync + 'static {
    /// A writer token that fences all earlier ones of the cluster off.
    fn acquire_writer<'a>(&'a self, broker: &'a Broker, cluster: &'a str) -> Pending<'a, u64>;

    /// Has a queue or stream be what an object declares.
    fn apply<'a>(
        &'a self,
        broker: &'a Broker,
        writer: u64,
        declaration: &'a Declaration,
    ) -> Pending<'a, Applied>;

    /// An object declares its queue or stream no more.
    fn release<'a>(
        &'a self,
        broker: &'a Broker,
        writer: u64,
        declaration: &'a Declaration,
        policy: Policy,
    ) -> Pending<'a, Released>;

    /// A page of what is there, with conditions; `page` is empty for the first.
    fn list<'a>(&'a self, broker: &'a Broker, page: &'a str) -> Pending<'a, Page>;

    /// Changes from now on; begins with [`Told::Reload`].
    fn watch<'a>(&'a self, broker: &'a Broker) -> Pending<'a, Changes>;
}

/// What an object declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// MessageQueue.
    Queue,
    /// Stream.
    Stream,
}

impl Kind {
    /// The kind of the object.
    pub(crate) fn object(self) -> &'static str {
        match self {
            Self::Queue => "MessageQueue",
            Self::Stream => "Stream",
        }
    }

    /// What people call it.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Stream => "stream",
        }
    }
}

/// An object of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) cluster: String,
    pub(crate) namespace: String,
    pub(crate) object: String,
    pub(crate) uid: String,
    pub(crate) generation: i64,
}

/// What an object declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declaration {
    pub(crate) owner: Owner,
    pub(crate) kind: Kind,
    /// In `$queue/<name>` or `$stream/<name>`.
    pub(crate) name: String,
    /// Its `spec` as JSON.
    pub(crate) spec: String,
}

/// What was done so that a queue or stream is as declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There was none of this name.
    Created,
    /// It differed.
    Updated,
    /// Nothing.
    Unchanged,
    /// It was there and is the object's now.
    Adopted,
}

/// How a queue or stream works, as its broker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It does.
    Ready,
    /// The broker cannot say at the moment.
    Unknown,
    /// It does not, and why.
    NotReady { reason: String, message: String },
}

/// The answer to a declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) outcome: Outcome,
    /// Somebody else had changed it since this generation of the object was declared.
    pub(crate) drifted: bool,
    /// Paths of the fields that were changed.
    pub(crate) changed: Vec<String>,
    /// How often the definition has changed.
    pub(crate) generation: u64,
    /// Equal ones mean equal definitions.
    pub(crate) hash: String,
    pub(crate) state: State,
}

/// What becomes of the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Retain,
    Delete,
}

/// The answer to a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// Its messages are kept for one of its name.
    Kept,
    /// It is gone with its messages.
    Deleted,
    /// There is none.
    Missing,
    /// It is somebody else's and was left alone.
    NotOwned,
}

/// A queue or stream that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declared {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) generation: u64,
    pub(crate) hash: String,
    /// It takes messages: it is not merely kept.
    pub(crate) active: bool,
    /// If that was asked.
    pub(crate) state: Option<State>,
}

/// A page of what is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) objects: Vec<Declared>,
    /// Empty: there are no more.
    pub(crate) next: String,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Some may have been missed: list.
    Reload,
    /// It was made or changed.
    Changed(Declared),
    /// It is gone.
    Gone(Kind, String),
}

/// Why a call did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AdminError {
    /// The broker refuses; the message says what to do.
    #[error("{message}")]
    Refused { refusal: Refusal, message: String },
    /// It does not answer, or cannot at the moment.
    #[error("{0}")]
    Unavailable(String),
    /// As many calls of this Broker are under way as may be: it was not called.
    #[error("as many calls of the Broker are under way as may be")]
    Busy,
}

/// Why a broker refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A field is wrong.
    Invalid,
    /// Another owner has the name.
    NameConflict,
    /// What is stored differs in what cannot change.
    ImmutableMismatch,
    /// Another writer is newer, or this one is not known.
    StaleWriter,
    /// A later generation of the object is there.
    StaleGeneration,
    /// There are as many as there may be.
    TooMany,
}

impl Refusal {
    /// The word for conditions, events and metrics, which is the broker's too.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Invalid => "Invalid",
            Self::NameConflict => "NameConflict",
            Self::ImmutableMismatch => "ImmutableMismatch",
            Self::StaleWriter => "StaleWriter",
            Self::StaleGeneration => "StaleGeneration",
            Self::TooMany => "TooMany",
        }
    }

    /// The refusal that a broker calls `reason`.
    pub(crate) fn parse(reason: &str) -> Option<Self> {
        [
            Self::Invalid,
            Self::NameConflict,
            Self::ImmutableMismatch,
            Self::StaleWriter,
            Self::StaleGeneration,
            Self::TooMany,
        ]
        .into_iter()
        .find(|refusal| refusal.reason() == reason)
    }
}

impl AdminError {
    /// Word for metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Refused { refusal, .. } => refusal.reason(),
            Self::Unavailable(_) => "Unavailable",
            Self::Busy => "Busy",
        }
    }
}
