//! Messages about virtual shards, to protobuf and back.

use weir_core::cluster::message::ShardMessage;
use weir_core::keyspace::VirtualShard;
use weir_proto::peer::v1 as wire;
use weir_proto::peer::v1::shard_message::Message;

use super::{Malformed, narrow};

pub(super) fn to_wire(message: ShardMessage) -> wire::ShardMessage {
    let (vs, message) = match message {
        ShardMessage::RollCall { vs } => (vs, Message::RollCall(wire::RollCall {})),
        ShardMessage::Absent { vs } => (vs, Message::Absent(wire::Absent {})),
    };
    wire::ShardMessage { vs: vs.0.into(), message: Some(message) }
}

pub(super) fn from_wire(message: wire::ShardMessage) -> Result<ShardMessage, Malformed> {
    let vs = VirtualShard(narrow(message.vs, "virtual shard")?);
    Ok(match message.message.ok_or(Malformed("shard message"))? {
        Message::RollCall(wire::RollCall {}) => ShardMessage::RollCall { vs },
        Message::Absent(wire::Absent {}) => ShardMessage::Absent { vs },
    })
}
