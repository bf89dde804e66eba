//! Answers cut down to what the client wants and can take: no reason string or user properties if it asked for
//! no problem information [MQTT-3.1.2-29], nothing above its Maximum Packet Size [MQTT-3.1.2-24]. Holds only the client's wishes.

use bytestring::ByteString;
use weir_codec::{
    Ack, AckProperties, Connect, Disconnect, Message, Packet, PacketId, ProtocolVersion, PublishHeader,
    ReasonCode, encoded_len, publish_len,
};

/// The client's wishes that concern answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answers {
    pub(crate) version: ProtocolVersion,
    problem_information: bool,
    /// `u32::MAX` if the client set none.
    packet_size_maximum: u32,
}

impl Answers {
    pub(crate) fn new(connect: &Connect) -> Self {
        let limited = connect.version.is_v5();
        Self {
            version: connect.version,
            problem_information: connect.request_problem_information != Some(false),
            packet_size_maximum: connect
                .maximum_packet_size
                .filter(|_| limited)
                .map_or(u32::MAX, std::num::NonZeroU32::get),
        }
    }

    /// Whether the client takes packets of any size, so that nothing need be measured.
    pub(crate) fn unlimited(self) -> bool {
        self.packet_size_maximum == u32::MAX
    }

    /// Whether `packet` may be sent.
    pub(crate) fn fits(self, packet: &Packet) -> bool {
        self.unlimited() || self.fits_len(encoded_len(packet, self.version))
    }

    /// Whether a PUBLISH made of these parts may be sent.
    pub(crate) fn fits_publish(
        self,
        header: &PublishHeader,
        message: &Message,
        extra: &[(ByteString, ByteString)],
    ) -> bool {
        self.unlimited() || {
            let (topic, payload) = (message.topic.as_str(), message.payload.len());
            self.fits_len(publish_len(self.version, header, topic, &message.properties, extra, payload))
        }
    }

    fn fits_len(self, len: usize) -> bool {
        u32::try_from(len).is_ok_and(|len| len <= self.packet_size_maximum)
    }

    /// PUBACK, PUBREC, PUBREL or PUBCOMP. `None` if even the bare packet is too large.
    pub(crate) fn ack(
        self,
        wrap: fn(Ack) -> Packet,
        packet_id: PacketId,
        reason: ReasonCode,
        reason_string: Option<ByteString>,
    ) -> Option<Packet> {
        if !self.version.is_v5() {
            return Some(wrap(Ack { packet_id, reason: ReasonCode::Success, properties: None }));
        }
        let full = reason_string.filter(|_| self.problem_information).map(|text| {
            let properties = AckProperties { reason_string: Some(text), user_properties: Vec::new() };
            wrap(Ack { packet_id, reason, properties: Some(Box::new(properties)) })
        });
        let bare = || Some(wrap(Ack { packet_id, reason, properties: None }));
        full.filter(|packet| self.fits(packet)).or_else(bare).filter(|packet| self.fits(packet))
    }

    /// SUBACK or UNSUBACK, which `wrap` makes of the properties that are left: all, the reason string, or none.
    /// `None` if even the bare packet is too large.
    pub(crate) fn list_ack(
        self,
        mut properties: AckProperties,
        wrap: impl Fn(AckProperties) -> Packet,
    ) -> Option<Packet> {
        if !self.version.is_v5() || !self.problem_information {
            return Some(wrap(AckProperties::default())).filter(|packet| self.fits(packet));
        }
        let full = wrap(properties.clone());
        if self.fits(&full) {
            return Some(full);
        }
        properties.user_properties = Vec::new();
        let bare = || Some(wrap(AckProperties::default()));
        let short = Some(wrap(properties)).filter(|packet| self.fits(packet));
        short.or_else(bare).filter(|packet| self.fits(packet))
    }

    /// DISCONNECT. `None` for 3.1.1, whose servers have no such packet, and if even the bare packet is too large.
    pub(crate) fn disconnect(self, disconnect: Disconnect) -> Option<Packet> {
        if !self.version.is_v5() {
            return None;
        }
        let reason = disconnect.reason;
        let bare = || Some(Packet::Disconnect(Box::new(Disconnect { reason, ..Disconnect::default() })));
        let full = Some(Packet::Disconnect(Box::new(disconnect))).filter(|packet| self.fits(packet));
        full.or_else(bare).filter(|packet| self.fits(packet))
    }
}
