//! Messages about sessions, to protobuf and back.

use weir_core::cluster::message::SessionMessage;
use weir_core::keyspace::PublishId;
use weir_core::keyspace::session::{Incarnation, SessionEpoch};
use weir_proto::peer::v1 as wire;
use weir_proto::peer::v1::session_message::Message;

use super::{Malformed, id_from_wire, id_to_wire, narrow};

pub(super) fn to_wire(message: SessionMessage) -> wire::SessionMessage {
    let message = match message {
        SessionMessage::Kick { request, client, incarnation, epoch } => Message::Kick(wire::Kick {
            request,
            client: client.to_string(),
            incarnation: incarnation.0,
            epoch: epoch.0,
        }),
        SessionMessage::Kicked { request, received } => {
            let received = received.into_iter().map(|(packet_id, publish)| wire::ReceivedPublish {
                packet_id: packet_id.into(),
                publish: id_to_wire(publish.0),
            });
            Message::Kicked(wire::Kicked { request, received: received.collect() })
        }
        SessionMessage::InboxChanged { clients } => {
            let clients = clients.iter().map(ToString::to_string).collect();
            Message::InboxChanged(wire::InboxChanged { clients })
        }
        SessionMessage::AllInboxesChanged => Message::AllInboxesChanged(wire::AllInboxesChanged {}),
    };
    wire::SessionMessage { message: Some(message) }
}

pub(super) fn from_wire(message: wire::SessionMessage) -> Result<SessionMessage, Malformed> {
    Ok(match message.message.ok_or(Malformed("session message"))? {
        Message::Kick(wire::Kick { request, client, incarnation, epoch }) => SessionMessage::Kick {
            request,
            client: client.into(),
            incarnation: Incarnation(incarnation),
            epoch: SessionEpoch(epoch),
        },
        Message::Kicked(wire::Kicked { request, received }) => {
            let received = received.into_iter().map(|publish| {
                let packet_id = narrow(publish.packet_id, "packet id")?;
                Ok((packet_id, PublishId(id_from_wire(&publish.publish, "publish id")?)))
            });
            SessionMessage::Kicked { request, received: received.collect::<Result<_, _>>()? }
        }
        Message::InboxChanged(wire::InboxChanged { clients }) => {
            SessionMessage::InboxChanged { clients: clients.into_iter().map(Into::into).collect() }
        }
        Message::AllInboxesChanged(wire::AllInboxesChanged {}) => SessionMessage::AllInboxesChanged,
    })
}

#[cfg(test)]
mod tests {
    use weir_core::cluster::message::PeerMessage;

    use super::super::tests::through;
    use super::*;

    #[test]
    fn comes_out_as_it_went_in() {
        let kick = SessionMessage::Kick {
            request: 1,
            client: "c".into(),
            incarnation: Incarnation(u64::MAX),
            epoch: SessionEpoch(3),
        };
        let received = vec![(1, PublishId([1; 16])), (u16::MAX, PublishId([2; 16]))];
        let kicked = SessionMessage::Kicked { request: 4, received };
        let changed = SessionMessage::InboxChanged { clients: vec!["a".into(), "ä".into()] };
        for sent in [kick, kicked, changed] {
            assert!(matches!(through(sent.clone()), PeerMessage::Session(came) if came == sent), "{sent:?}");
        }
    }
}
