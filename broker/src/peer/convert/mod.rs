//! What pods say to each other, to protobuf and back: once, at the edge. Whatever another pod sends is checked here.

mod answer;
mod feed;
mod group;
mod live;
mod message;
mod question;
mod session;
mod shard;

use bytes::Bytes;
use weir_core::cluster::message::{Lane, PeerMessage};
use weir_core::cluster::network::{Frame, Parcel};
use weir_proto::peer::v1 as wire;
use weir_proto::peer::v1::parcel;

/// What another pod sent and cannot have meant: the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is missing or wrong")]
pub(super) struct Malformed(pub(super) &'static str);

/// The frame as it travels.
pub(super) fn frame_to_wire(frame: Frame) -> wire::Frame {
    wire::Frame {
        parcels: frame.messages.into_iter().map(parcel_to_wire).collect(),
        allowed: frame.allowed.to_vec(),
        ping: frame.ping,
        pong: frame.pong,
    }
}

/// The frame that came.
pub(super) fn frame_from_wire(frame: wire::Frame) -> Result<Frame, Malformed> {
    let mut allowed = [0; Lane::COUNT];
    // One from a pod that knows more kinds of messages has more.
    for (allowed, sent) in allowed.iter_mut().zip(frame.allowed) {
        *allowed = sent;
    }
    let messages = frame.parcels.into_iter().map(parcel_from_wire).collect::<Result<_, _>>()?;
    Ok(Frame { messages, allowed, ping: frame.ping, pong: frame.pong })
}

fn parcel_to_wire(parcel: Parcel) -> wire::Parcel {
    let message = match parcel.message {
        PeerMessage::Shard(message) => parcel::Message::Shard(shard::to_wire(message)),
        PeerMessage::Live(message) => parcel::Message::Live(live::to_wire(message)),
        PeerMessage::Session(message) => parcel::Message::Session(session::to_wire(message)),
        PeerMessage::Feed(message) => parcel::Message::Feed(feed::to_wire(message)),
        PeerMessage::Group(message) => parcel::Message::Group(group::to_wire(message)),
    };
    wire::Parcel { cost: parcel.cost, message: Some(message) }
}

fn parcel_from_wire(parcel: wire::Parcel) -> Result<Parcel, Malformed> {
    let message = match parcel.message.ok_or(Malformed("message"))? {
        parcel::Message::Shard(message) => PeerMessage::Shard(shard::from_wire(message)?),
        parcel::Message::Live(message) => PeerMessage::Live(live::from_wire(message)?),
        parcel::Message::Session(message) => PeerMessage::Session(session::from_wire(message)?),
        parcel::Message::Feed(message) => PeerMessage::Feed(feed::from_wire(message)?),
        parcel::Message::Group(message) => PeerMessage::Group(group::from_wire(message)?),
    };
    Ok(Parcel { cost: parcel.cost, message })
}

/// An id of 16 bytes, as it travels.
pub(super) fn id_to_wire(id: [u8; 16]) -> Bytes {
    Bytes::copy_from_slice(&id)
}

/// The id that came as `field`.
pub(super) fn id_from_wire(bytes: &[u8], field: &'static str) -> Result<[u8; 16], Malformed> {
    bytes.try_into().map_err(|_| Malformed(field))
}

/// A number that is smaller than its type on the way.
fn narrow<T: TryFrom<u32>>(number: u32, field: &'static str) -> Result<T, Malformed> {
    T::try_from(number).map_err(|_| Malformed(field))
}

#[cfg(test)]
mod tests {
    use weir_core::cluster::message::SessionMessage;

    use super::*;

    /// Sends a message through the wire format and returns how it comes out.
    pub(super) fn through(message: impl Into<PeerMessage>) -> PeerMessage {
        use prost::Message;
        let parcel = Parcel::new(message.into());
        let cost = parcel.cost;
        let frame = Frame { messages: vec![parcel], allowed: [1, 2, 3, 4], ping: Some(5), pong: None };
        let bytes = frame_to_wire(frame).encode_to_vec();
        let mut frame = frame_from_wire(wire::Frame::decode(Bytes::from(bytes)).unwrap()).unwrap();
        assert_eq!((frame.allowed, frame.ping, frame.pong), ([1, 2, 3, 4], Some(5), None));
        let parcel = frame.messages.pop().unwrap();
        assert_eq!(parcel.cost, cost);
        parcel.message
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let empty = wire::Frame { parcels: vec![wire::Parcel::default()], ..wire::Frame::default() };
        assert_eq!(frame_from_wire(empty).err(), Some(Malformed("message")));
        assert_eq!(id_from_wire(b"short", "pod"), Err(Malformed("pod")));
        let fewer = frame_from_wire(wire::Frame { allowed: vec![9], ..wire::Frame::default() }).unwrap();
        assert_eq!(fewer.allowed, [9, 0, 0, 0]);
        let PeerMessage::Session(changed) = through(SessionMessage::AllInboxesChanged) else {
            panic!("another kind");
        };
        assert_eq!(changed, SessionMessage::AllInboxesChanged);
    }
}
