//! Reads PUBACK, PUBREC, PUBREL and PUBCOMP, and what all acknowledgements share.

use super::Context;
use crate::error::{Parsed, Problem};
use crate::packet::{Ack, AckProperties};
use crate::packet_type::PacketType;
use crate::property::{Properties, Property};
use crate::read::Reader;
use crate::reason::ReasonCode;

pub(super) fn ack(packet: PacketType, body: &mut Reader, context: Context) -> Parsed<Ack> {
    let packet_id = body.packet_id()?;
    let mut ack = Ack { packet_id, reason: ReasonCode::Success, properties: None };
    // In MQTT 5 the reason may be left out if it is Success, and the property length if it is zero.
    if !context.version.is_v5() || body.is_empty() {
        return Ok(ack);
    }
    ack.reason = reason(packet, body)?;
    if !body.is_empty() {
        let properties = properties(body)?;
        let any = properties.reason_string.is_some() || !properties.user_properties.is_empty();
        ack.properties = any.then(|| Box::new(properties));
    }
    Ok(ack)
}

/// One reason code that `packet` allows.
pub(super) fn reason(packet: PacketType, body: &mut Reader) -> Parsed<ReasonCode> {
    let code = body.u8("reason code")?;
    ReasonCode::from_u8(code)
        .filter(|reason| reason.is_allowed_in(packet))
        .ok_or(Problem::ReasonCode(code).at("reason code"))
}

/// A property block of Reason String and user properties only.
pub(super) fn properties(body: &mut Reader) -> Parsed<AckProperties> {
    let mut properties = Properties::read(body)?;
    let mut read = AckProperties::default();
    while let Some(property) = properties.next()? {
        match property {
            Property::ReasonString(text) => read.reason_string = Some(text),
            Property::User(name, value) => read.user_properties.push((name, value)),
            _ => return Err(properties.not_allowed()),
        }
    }
    Ok(read)
}
