//! How links get to other pods: by gRPC in a broker, by memory in tests. Knows nothing of what is sent.

use std::fmt;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::message::{Lane, PeerMessage};
use crate::keyspace::owner::PodId;

/// Frames that a half of a pipe may hold.
const FRAMES_MAX: usize = 2;

/// A pod to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub pod: PodId,
    /// Where it listens for other pods: `HOST:PORT`.
    pub address: String,
}

/// What a pod says of itself to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who it is.
    pub pod: PodId,
    /// The keyspace that it works on: pods of different ones have nothing to say to each other.
    pub cluster: [u8; 16],
}

/// The way to other pods.
pub trait Network: fmt::Debug + Send + Sync {
    /// Connects `me` to `peer` and makes sure that it is who it should be. Bounded in time. A connection without a sign
    /// of life breaks within some seconds.
    ///
    /// # Errors
    /// Why there is no connection, in words for a log.
    fn connect(&self, me: &Identity, peer: &Peer) -> BoxFuture<'static, Result<Pipe, Broken>>;
}

/// Why there is no connection to another pod, in words for a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

/// A connection to another pod: frames arrive in order, and none is lost until it breaks. Either side breaks it by
/// dropping its halves.
#[derive(Debug)]
pub struct Pipe {
    /// To the other pod. Closed once the connection is broken.
    pub frames_tx: mpsc::Sender<Frame>,
    /// From the other pod. The last thing that comes may say why the connection is broken.
    pub frames_rx: mpsc::Receiver<Result<Frame, Broken>>,
}

/// The network's side of a [`Pipe`].
#[derive(Debug)]
pub struct PipeEnd {
    /// Frames to be carried to the other pod.
    pub frames_rx: mpsc::Receiver<Frame>,
    /// Frames that came from there.
    pub frames_tx: mpsc::Sender<Result<Frame, Broken>>,
}

impl Pipe {
    /// A pipe and the end of it that the network holds.
    #[must_use]
    pub fn new() -> (Self, PipeEnd) {
        let (outgoing_tx, outgoing_rx) = mpsc::channel(FRAMES_MAX);
        let (incoming_tx, incoming_rx) = mpsc::channel(FRAMES_MAX);
        let pipe = Self { frames_tx: outgoing_tx, frames_rx: incoming_rx };
        (pipe, PipeEnd { frames_rx: outgoing_rx, frames_tx: incoming_tx })
    }
}

/// Messages that travel together, and what keeps a link going.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// In the order in which they were sent, lane by lane.
    pub messages: Vec<Parcel>,
    /// By lane, how many bytes the receiver of this frame may have sent in all, since the link is up. What is more
    /// waits with its sender.
    pub allowed: [u64; Lane::COUNT],
    /// Asks for a [`Frame::pong`] with this number.
    pub ping: Option<u64>,
    /// Answers a [`Frame::ping`].
    pub pong: Option<u64>,
}

/// A message and what it counts as, on both sides.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// Bytes.
    pub cost: u32,
    /// The message.
    pub message: PeerMessage,
}

impl Parcel {
    /// Bytes that a message counts as at least: a bound of how many there can be.
    pub const COST_MIN: usize = 64;

    /// `message`, with what it costs.
    #[must_use]
    pub fn new(message: PeerMessage) -> Self {
        let cost = u32::try_from(message.size().max(Self::COST_MIN)).unwrap_or(u32::MAX);
        Self { cost, message }
    }
}

impl Frame {
    /// Bytes that its messages count as.
    #[must_use]
    pub fn cost(&self) -> u64 {
        self.messages.iter().map(|parcel| u64::from(parcel.cost)).sum()
    }
}
