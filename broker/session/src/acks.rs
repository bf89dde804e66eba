//! Answers cut down to what the client wants and can take: no reason string or user properties if it asked for
//! no problem information [MQTT-3.1.2-29], nothing above its Maximum Packet Size [MQTT-3.1.2-24]. Holds only the client's wishes.

use bytestring::ByteString;
use weir_codec::{
    Ack, AckProperties, Connect, Disconnect, Packet, PacketId, ProtocolVersion, ReasonCode, SubAck, UnsubAck,
};

use crate::size;

/// The client's wishes that concern answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answers {
    pub(crate) version: ProtocolVersion,
    problem_information: bool,
    /// `u32::MAX` if the client set none.
    pub(crate) packet_size_maximum: u32,
}

impl Answers {
    pub(crate) fn new(connect: &Connect) -> Self {
        let limited = connect.version == ProtocolVersion::V5;
        Self {
            version: connect.version,
            problem_information: connect.request_problem_information != Some(false),
            packet_size_maximum: connect
                .maximum_packet_size
                .filter(|_| limited)
                .map_or(u32::MAX, std::num::NonZeroU32::get),
        }
    }

    /// Whether a packet of `size` bytes may be sent.
    pub(crate) fn fits(self, size: usize) -> bool {
        u32::try_from(size).is_ok_and(|size| size <= self.packet_size_maximum)
    }

    /// PUBACK, PUBREC, PUBREL or PUBCOMP. `None` if even the bare packet is too large.
    pub(crate) fn ack(
        self,
        wrap: fn(Ack) -> Packet,
        packet_id: PacketId,
        reason: ReasonCode,
        reason_string: Option<ByteString>,
    ) -> Option<Packet> {
        if self.version == ProtocolVersion::V311 {
            return Some(wrap(Ack { packet_id, reason: ReasonCode::Success, properties: None }));
        }
        let properties = reason_string
            .filter(|_| self.problem_information)
            .map(|text| Box::new(AckProperties { reason_string: Some(text), user_properties: Vec::new() }))
            .filter(|properties| self.fits(size::ack(reason, Some(properties))));
        (properties.is_some() || self.fits(size::ack(reason, None)))
            .then(|| wrap(Ack { packet_id, reason, properties }))
    }

    /// SUBACK. `None` if even the bare packet is too large.
    pub(crate) fn suback(
        self,
        packet_id: PacketId,
        reasons: Vec<ReasonCode>,
        properties: AckProperties,
    ) -> Option<Packet> {
        let properties = self.list_ack(reasons.len(), properties)?;
        Some(Packet::SubAck(Box::new(SubAck { packet_id, reasons, properties })))
    }

    /// UNSUBACK. `None` if even the bare packet is too large.
    pub(crate) fn unsuback(
        self,
        packet_id: PacketId,
        reasons: Vec<ReasonCode>,
        properties: AckProperties,
    ) -> Option<Packet> {
        let properties = self.list_ack(reasons.len(), properties)?;
        Some(Packet::UnsubAck(Box::new(UnsubAck { packet_id, reasons, properties })))
    }

    /// DISCONNECT. `None` for 3.1.1, whose servers have no such packet, and if even the bare packet is too large.
    pub(crate) fn disconnect(self, reason: ReasonCode, reason_string: Option<ByteString>) -> Option<Packet> {
        if self.version == ProtocolVersion::V311 {
            return None;
        }
        let mut packet = Disconnect { reason, reason_string, ..Disconnect::default() };
        if !self.fits(size::disconnect(&packet)) {
            packet.reason_string = None;
        }
        self.fits(size::disconnect(&packet)).then(|| Packet::Disconnect(Box::new(packet)))
    }

    /// What is left of the properties: all, the reason string, or nothing.
    fn list_ack(self, reasons: usize, mut properties: AckProperties) -> Option<AckProperties> {
        if self.version == ProtocolVersion::V311 || !self.problem_information {
            properties = AckProperties::default();
        }
        if !self.fits(size::list_ack(reasons, &properties)) {
            properties.user_properties = Vec::new();
        }
        if !self.fits(size::list_ack(reasons, &properties)) {
            properties.reason_string = None;
        }
        self.fits(size::list_ack(reasons, &properties)).then_some(properties)
    }
}
