//! What pods say to each other about consumer groups of a stream: one of them has the coordinator, the others have
//! members.
//!
//! A pod with members opens a *talk* with the coordinator, under a number that grows: it announces its members with the
//! shards that they hold, says that this is all ([`ToCoordinator::Present`]), and goes on. What is said in a talk is
//! numbered on either side; where a number is missing, the talk is over and another begins. Plain data: what it means is
//! the affair of `groups`.

use bytestring::ByteString;

use super::shard::ObjectRef;
use crate::groups::{GroupEvent, GroupReport};
use crate::queue::ConsumerId;

/// Bytes that a message is counted as beside its texts and lists.
const BASE_BYTES: usize = 96;

/// Something about the consumer groups of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupMessage {
    /// To the pod that owns the first shard of the stream, or is to.
    ToCoordinator {
        /// Which stream.
        stream: ObjectRef,
        /// In which talk of the sender's.
        talk: u64,
        /// Counts what is said in the talk, from 0.
        seq: u64,
        /// What.
        words: ToCoordinator,
    },
    /// From the pod that is taken for the one with the coordinator.
    FromCoordinator {
        /// Catalog id of the stream.
        stream: u32,
        /// In which talk of the receiver's.
        talk: u64,
        /// Counts what is said in the talk, from 0.
        seq: u64,
        /// What.
        words: FromCoordinator,
    },
    /// From a new coordinator, to all: whoever has members announces them, before a shard is given to anybody.
    RollCall {
        /// Catalog id of the stream.
        stream: u32,
    },
    /// The answer of a pod that has nobody to announce.
    Absent {
        /// Catalog id of the stream.
        stream: u32,
    },
}

/// A shard that a member has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Which.
    pub shard: u8,
    /// Of its assignment.
    pub generation: u64,
    /// Everything below is acknowledged.
    pub position: u64,
}

/// What is said to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToCoordinator {
    /// Here is a member that an earlier talk, or an earlier coordinator, let in.
    Announce {
        /// Of which group.
        group: ByteString,
        /// As its pod calls it.
        member: ConsumerId,
        /// Of its client.
        client_id: ByteString,
        /// What it has: nobody else gets that before it is given back.
        held: Vec<Holding>,
    },
    /// A shard was given back a moment ago, perhaps unheard.
    GaveBack {
        /// Of which group.
        group: ByteString,
        /// What it was.
        held: Holding,
    },
    /// All members are announced.
    Present,
    /// Somebody wants to be a member. Answered by [`FromCoordinator::Joined`] or [`FromCoordinator::NeedsPlaces`].
    Join {
        /// Names the question.
        request: u64,
        /// Of which group.
        group: ByteString,
        /// As its pod calls it.
        member: ConsumerId,
        /// Of its client.
        client_id: ByteString,
        /// Where each shard begins if there is no such group yet.
        places: Option<Vec<u64>>,
    },
    /// How far a member has come.
    Progress {
        /// Of which group.
        group: ByteString,
        /// Where.
        held: Holding,
    },
    /// A member gives back a shard that was revoked.
    Release {
        /// Of which group.
        group: ByteString,
        /// What it was.
        held: Holding,
    },
    /// A member leaves.
    Leave {
        /// Which group.
        group: ByteString,
        /// As its pod calls it.
        member: ConsumerId,
        /// It does not come back.
        for_good: bool,
    },
    /// Which groups are there? Answered by [`FromCoordinator::Groups`].
    List {
        /// Names the question.
        request: u64,
    },
    /// Has a group go on elsewhere. Answered by [`FromCoordinator::Done`].
    Seek {
        /// Names the question.
        request: u64,
        /// Which.
        group: ByteString,
        /// Offsets by shard.
        places: Vec<(u8, u64)>,
    },
    /// Forgets a group. Answered by [`FromCoordinator::Done`].
    Delete {
        /// Names the question.
        request: u64,
        /// Which.
        group: ByteString,
        /// Though it has members.
        force: bool,
    },
}

/// Why a coordinator did not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupRefusal {
    /// There is no such group.
    Missing,
    /// It has so many members.
    InUse(u64),
    /// A limit has been reached: its name.
    Full(String),
    /// The stream is gone, or the pod shuts down.
    Closed,
    /// Something went wrong; the text says what.
    Failed(String),
}

/// What the coordinator says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromCoordinator {
    /// The group has a member more.
    Joined {
        /// Which question this answers.
        request: u64,
    },
    /// There is no such group: where does it begin?
    NeedsPlaces {
        /// Which question this answers.
        request: u64,
    },
    /// The groups there are; how far they are behind is not measured.
    Groups {
        /// Which question this answers.
        request: u64,
        /// By name.
        reports: Vec<GroupReport>,
    },
    /// It is done.
    Done {
        /// Which question this answers.
        request: u64,
    },
    /// It is not done.
    Refused {
        /// Which question this answers.
        request: u64,
        /// Why.
        refusal: GroupRefusal,
    },
    /// Something for a member.
    Event {
        /// As its pod calls it.
        member: ConsumerId,
        /// What.
        event: GroupEvent,
    },
    /// It does not have the coordinator, or has not heard all: the talk is over. Its number counts for nothing.
    NotCoordinator,
}

impl GroupMessage {
    /// Bytes it holds in memory, nearly.
    #[must_use]
    pub fn size(&self) -> usize {
        let more = match self {
            Self::ToCoordinator { words, .. } => words.size(),
            Self::FromCoordinator { words: FromCoordinator::Groups { reports, .. }, .. } => {
                reports.iter().map(report_size).sum()
            }
            Self::FromCoordinator { .. } | Self::RollCall { .. } | Self::Absent { .. } => 0,
        };
        BASE_BYTES + more
    }
}

impl ToCoordinator {
    fn size(&self) -> usize {
        match self {
            Self::Announce { group, client_id, held, .. } => {
                group.len() + client_id.len() + size_of_val(held.as_slice())
            }
            Self::Join { group, client_id, places, .. } => {
                group.len() + client_id.len() + places.as_ref().map_or(0, |places| places.len() * 8)
            }
            Self::GaveBack { group, .. }
            | Self::Progress { group, .. }
            | Self::Release { group, .. }
            | Self::Leave { group, .. }
            | Self::Delete { group, .. } => group.len(),
            Self::Seek { group, places, .. } => group.len() + places.len() * 16,
            Self::Present | Self::List { .. } => 0,
        }
    }
}

fn report_size(report: &GroupReport) -> usize {
    let members: usize = report.members.iter().map(|member| member.len() + size_of::<ByteString>()).sum();
    report.name.len() + members + size_of_val(report.shards.as_slice())
}
