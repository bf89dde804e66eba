//! The way to other pods: gRPC `weir.peer.v1`.
//!
//! One long call between two pods carries the frames of their link, both ways; its end is the end of the link. Knows what
//! messages look like on the way, not what they mean. [`weir_core::cluster::links`] owns what is in line.

mod convert;
mod entrance;
mod network;
mod security;
mod server;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use weir_core::cluster::network::{Broken, Frame, Identity};
use weir_core::keyspace::owner::PodId;
use weir_proto::peer::v1 as wire;

pub(crate) use entrance::Entrance;

#[cfg(test)]
use network::GrpcNetwork;
#[cfg(test)]
use security::Security;
#[cfg(test)]
use server::PeerServer;

use convert::{Malformed, id_from_wire, id_to_wire};

/// The newest version of the contract that this program speaks, and the oldest.
const PROTOCOL: u32 = 1;
const PROTOCOL_OLDEST: u32 = 1;
/// How often a silent pod is asked whether it is still there, and how long its answer may take.
const KEEPALIVE: Duration = Duration::from_secs(1);
const KEEPALIVE_WAIT: Duration = Duration::from_secs(2);
/// Longest wait for the hello of the other side.
const HELLO_WAIT: Duration = Duration::from_secs(2);
/// What may be on its way in a call, and in all calls of a connection.
const WINDOWS_BYTES: (u32, u32) = (2 << 20, 4 << 20);
/// Largest frame: some of each kind of message, and one of each that is larger. Far above what a link sends, to protect
/// from what is no frame at all.
const FRAME_BYTES_MAX: usize = 256 << 20;

/// Why a hello is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error(
        "it speaks versions {oldest} to {newest} of the protocol between pods, this pod {PROTOCOL_OLDEST} to {PROTOCOL}: \
             run versions of Weir that are close to each other"
    )]
    Protocol { oldest: u32, newest: u32 },
    #[error("it works on another keyspace: all pods of a cluster need the same store")]
    Cluster,
    #[error("this is pod {me}, not {meant}, which was here before")]
    NotMe { me: PodId, meant: PodId },
    #[error("it says no hello that can be understood: {0}")]
    Malformed(#[from] Malformed),
}

/// What `me` says to `to`.
fn hello(me: &Identity, to: PodId) -> wire::Hello {
    wire::Hello {
        protocol: PROTOCOL,
        protocol_oldest: PROTOCOL_OLDEST,
        pod: id_to_wire(me.pod.0),
        to: id_to_wire(to.0),
        cluster: id_to_wire(me.cluster),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Who says `hello` to `me`. What is not understood counts less than the version, which may be the reason.
fn check(hello: Option<wire::Hello>, me: &Identity) -> Result<PodId, Refusal> {
    let hello = hello.ok_or(Malformed("hello"))?;
    if hello.protocol < PROTOCOL_OLDEST || hello.protocol_oldest > PROTOCOL {
        return Err(Refusal::Protocol { oldest: hello.protocol_oldest, newest: hello.protocol });
    }
    let pod = |id: &Bytes, field| id_from_wire(id, field).map(PodId);
    let (from, meant) = (pod(&hello.pod, "pod")?, pod(&hello.to, "receiver")?);
    if id_from_wire(&hello.cluster, "cluster")? != me.cluster {
        return Err(Refusal::Cluster);
    }
    if meant != me.pod {
        return Err(Refusal::NotMe { me: me.pod, meant });
    }
    Ok(from)
}

/// What a link sends, as packets.
fn outgoing<P>(frames_rx: mpsc::Receiver<Frame>, packet: fn(wire::Frame) -> P) -> impl Stream<Item = P> {
    stream::unfold(frames_rx, move |mut frames_rx| async move {
        let frame = frames_rx.recv().await?;
        Some((packet(convert::frame_to_wire(frame)), frames_rx))
    })
}

/// Brings what comes to a link, until one of them ends.
async fn bring<P>(
    mut incoming: Streaming<P>,
    frame_of: fn(P) -> Option<wire::Frame>,
    frames_tx: mpsc::Sender<Result<Frame, Broken>>,
) {
    let broken = loop {
        let packet = tokio::select! {
            packet = incoming.message() => packet,
            () = frames_tx.closed() => return,
        };
        let frame = match packet {
            Ok(Some(packet)) => frame_of(packet).ok_or(Malformed("frame")),
            Ok(None) => break Broken("the pod ended the connection".to_owned()),
            Err(status) => break Broken(in_words(&status)),
        };
        match frame.and_then(convert::frame_from_wire) {
            Ok(frame) => {
                if frames_tx.send(Ok(frame)).await.is_err() {
                    return;
                }
            }
            Err(malformed) => break Broken(format!("the pod sent what makes no sense: {malformed}")),
        }
    };
    // A link that has ended does not ask why.
    let _ = frames_tx.send(Err(broken)).await;
}

/// A status and what it comes from, for a log.
fn in_words(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}
