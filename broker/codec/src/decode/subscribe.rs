//! Reads SUBSCRIBE, SUBACK, UNSUBSCRIBE and UNSUBACK.

use std::num::NonZeroU32;

use super::{Context, ack};
use crate::error::{Parsed, Problem};
use crate::packet::{
    AckProperties, ProtocolVersion, QoS, RetainHandling, SubAck, Subscribe, SubscribeFilter,
    SubscriptionOptions, UnsubAck, Unsubscribe, UserProperties,
};
use crate::packet_type::PacketType;
use crate::property::{Properties, Property};
use crate::read::Reader;
use crate::reason::ReasonCode;

const OPTIONS: &str = "subscription options";

pub(super) fn subscribe(body: &mut Reader, context: Context) -> Parsed<Subscribe> {
    let packet_id = body.packet_id()?;
    let (subscription_identifier, user_properties) = match context.version {
        ProtocolVersion::V5 => subscribe_properties(body)?,
        ProtocolVersion::V31 | ProtocolVersion::V311 => Default::default(),
    };
    let mut filters = Vec::new();
    while !body.is_empty() {
        let filter = body.string("topic filter")?;
        let options = options(body.u8(OPTIONS)?, context.version)?;
        if options.no_local && filter.starts_with("$share/") {
            return Err(Problem::NoLocalOnShared.at(OPTIONS));
        }
        filters.push(SubscribeFilter { filter, options });
    }
    if filters.is_empty() {
        return Err(Problem::Empty.at("topic filters"));
    }
    Ok(Subscribe { packet_id, subscription_identifier, user_properties, filters })
}

fn subscribe_properties(body: &mut Reader) -> Parsed<(Option<NonZeroU32>, UserProperties)> {
    let mut identifier = None;
    let mut user_properties = UserProperties::new();
    let mut properties = Properties::read(body)?;
    while let Some(property) = properties.next()? {
        match property {
            Property::SubscriptionIdentifier(_) if identifier.is_some() => return Err(properties.repeated()),
            Property::SubscriptionIdentifier(id) => identifier = Some(id),
            Property::User(name, value) => user_properties.push((name, value)),
            _ => return Err(properties.not_allowed()),
        }
    }
    Ok((identifier, user_properties))
}

fn options(byte: u8, version: ProtocolVersion) -> Parsed<SubscriptionOptions> {
    let reserved = match version {
        ProtocolVersion::V31 | ProtocolVersion::V311 => 0b1111_1100,
        ProtocolVersion::V5 => 0b1100_0000,
    };
    if byte & reserved != 0 {
        return Err(Problem::ReservedBits(byte).at(OPTIONS));
    }
    Ok(SubscriptionOptions {
        qos: QoS::from_u8(byte & 0b11).ok_or(Problem::Value(3).at("maximum QoS"))?,
        no_local: byte & 0b100 != 0,
        retain_as_published: byte & 0b1000 != 0,
        retain_handling: match (byte >> 4) & 0b11 {
            0 => RetainHandling::OnSubscribe,
            1 => RetainHandling::OnNewSubscription,
            2 => RetainHandling::Never,
            other => return Err(Problem::Value(u32::from(other)).at("retain handling")),
        },
    })
}

pub(super) fn suback(body: &mut Reader, context: Context) -> Parsed<SubAck> {
    let packet_id = body.packet_id()?;
    let properties = match context.version {
        ProtocolVersion::V5 => ack::properties(body)?,
        ProtocolVersion::V31 | ProtocolVersion::V311 => AckProperties::default(),
    };
    let reasons = reasons(PacketType::SubAck, body)?;
    let in_version = |reason: &ReasonCode| match context.version {
        ProtocolVersion::V31 => !reason.is_error(),
        ProtocolVersion::V311 => reason.as_u8() <= 0x80,
        ProtocolVersion::V5 => true,
    };
    match reasons.iter().find(|reason| !in_version(reason)) {
        Some(reason) => Err(Problem::ReasonCode(reason.as_u8()).at("reason code")),
        None => Ok(SubAck { packet_id, reasons, properties }),
    }
}

pub(super) fn unsubscribe(body: &mut Reader, context: Context) -> Parsed<Unsubscribe> {
    let packet_id = body.packet_id()?;
    let mut user_properties = UserProperties::new();
    if context.version.is_v5() {
        let mut properties = Properties::read(body)?;
        while let Some(property) = properties.next()? {
            match property {
                Property::User(name, value) => user_properties.push((name, value)),
                _ => return Err(properties.not_allowed()),
            }
        }
    }
    let mut filters = Vec::new();
    while !body.is_empty() {
        filters.push(body.string("topic filter")?);
    }
    if filters.is_empty() {
        return Err(Problem::Empty.at("topic filters"));
    }
    Ok(Unsubscribe { packet_id, filters, user_properties })
}

pub(super) fn unsuback(body: &mut Reader, context: Context) -> Parsed<UnsubAck> {
    let packet_id = body.packet_id()?;
    let (properties, reasons) = match context.version {
        ProtocolVersion::V5 => (ack::properties(body)?, reasons(PacketType::UnsubAck, body)?),
        ProtocolVersion::V31 | ProtocolVersion::V311 => Default::default(),
    };
    Ok(UnsubAck { packet_id, reasons, properties })
}

fn reasons(packet: PacketType, body: &mut Reader) -> Parsed<Vec<ReasonCode>> {
    let mut reasons = Vec::new();
    while !body.is_empty() {
        reasons.push(ack::reason(packet, body)?);
    }
    if reasons.is_empty() { Err(Problem::Empty.at("reason codes")) } else { Ok(reasons) }
}
