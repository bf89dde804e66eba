//! Writes the acknowledgements, SUBSCRIBE, UNSUBSCRIBE, DISCONNECT and AUTH.

use super::sink::{Sink, WriteProperties};
use crate::packet::{
    Ack, AckProperties, Auth, Disconnect, ProtocolVersion, RetainHandling, SubAck, Subscribe,
    SubscriptionOptions, UnsubAck, Unsubscribe,
};
use crate::property::id;
use crate::reason::ReasonCode;

/// The shortest form: no reason if it is Success, no property length if there are no properties.
pub(super) fn ack<S: Sink>(ack: &Ack, version: ProtocolVersion, out: &mut S) {
    out.u16(ack.packet_id.get());
    let properties = ack.properties.as_deref().filter(|properties| **properties != AckProperties::default());
    if !version.is_v5() || ack.reason == ReasonCode::Success && properties.is_none() {
        return;
    }
    out.u8(ack.reason.as_u8());
    if let Some(properties) = properties {
        out.properties(properties);
    }
}

impl WriteProperties for AckProperties {
    fn write_properties<S: Sink>(&self, out: &mut S) {
        out.string_property(id::REASON_STRING, self.reason_string.as_ref());
        out.user_properties(&self.user_properties);
    }
}

pub(super) fn subscribe<S: Sink>(subscribe: &Subscribe, version: ProtocolVersion, out: &mut S) {
    out.u16(subscribe.packet_id.get());
    if version.is_v5() {
        out.properties(subscribe);
    }
    for entry in &subscribe.filters {
        out.string(&entry.filter);
        out.u8(match version {
            ProtocolVersion::V5 => options(entry.options),
            ProtocolVersion::V31 | ProtocolVersion::V311 => entry.options.qos.as_u8(),
        });
    }
}

impl WriteProperties for Subscribe {
    fn write_properties<S: Sink>(&self, out: &mut S) {
        if let Some(identifier) = self.subscription_identifier {
            out.subscription_identifier(identifier.get());
        }
        out.user_properties(&self.user_properties);
    }
}

fn options(options: SubscriptionOptions) -> u8 {
    let retain_handling = match options.retain_handling {
        RetainHandling::OnSubscribe => 0_u8,
        RetainHandling::OnNewSubscription => 1,
        RetainHandling::Never => 2,
    };
    options.qos.as_u8()
        | u8::from(options.no_local) << 2
        | u8::from(options.retain_as_published) << 3
        | retain_handling << 4
}

pub(super) fn suback<S: Sink>(suback: &SubAck, version: ProtocolVersion, out: &mut S) {
    out.u16(suback.packet_id.get());
    if version.is_v5() {
        out.properties(&suback.properties);
    }
    for reason in &suback.reasons {
        out.u8(match version {
            // 3.1 has no word for a refusal and asks for the answer all the same: the least that can be granted.
            ProtocolVersion::V31 if reason.is_error() => ReasonCode::Success.as_u8(),
            ProtocolVersion::V311 if reason.is_error() => ReasonCode::UnspecifiedError.as_u8(),
            ProtocolVersion::V31 | ProtocolVersion::V311 | ProtocolVersion::V5 => reason.as_u8(),
        });
    }
}

pub(super) fn unsubscribe<S: Sink>(unsubscribe: &Unsubscribe, version: ProtocolVersion, out: &mut S) {
    out.u16(unsubscribe.packet_id.get());
    if version.is_v5() {
        out.properties(unsubscribe);
    }
    for filter in &unsubscribe.filters {
        out.string(filter);
    }
}

impl WriteProperties for Unsubscribe {
    fn write_properties<S: Sink>(&self, out: &mut S) {
        out.user_properties(&self.user_properties);
    }
}

pub(super) fn unsuback<S: Sink>(unsuback: &UnsubAck, version: ProtocolVersion, out: &mut S) {
    out.u16(unsuback.packet_id.get());
    if version.is_v5() {
        out.properties(&unsuback.properties);
        for reason in &unsuback.reasons {
            out.u8(reason.as_u8());
        }
    }
}

pub(super) fn disconnect<S: Sink>(disconnect: &Disconnect, version: ProtocolVersion, out: &mut S) {
    let bare = Disconnect { reason: disconnect.reason, ..Disconnect::default() };
    let has_properties = *disconnect != bare;
    if !version.is_v5() || disconnect.reason == ReasonCode::Success && !has_properties {
        return;
    }
    out.u8(disconnect.reason.as_u8());
    // Their length may be left out if there are none, and some clients read such a packet as the end of the connection.
    out.properties(disconnect);
}

impl WriteProperties for Disconnect {
    fn write_properties<S: Sink>(&self, out: &mut S) {
        out.u32_property(id::SESSION_EXPIRY_INTERVAL, self.session_expiry_interval);
        out.string_property(id::REASON_STRING, self.reason_string.as_ref());
        out.string_property(id::SERVER_REFERENCE, self.server_reference.as_ref());
        out.user_properties(&self.user_properties);
    }
}

pub(super) fn auth<S: Sink>(auth: &Auth, out: &mut S) {
    if *auth == Auth::default() {
        return;
    }
    out.u8(auth.reason.as_u8());
    out.properties(auth);
}

impl WriteProperties for Auth {
    fn write_properties<S: Sink>(&self, out: &mut S) {
        out.string_property(id::AUTHENTICATION_METHOD, self.authentication_method.as_ref());
        out.binary_property(id::AUTHENTICATION_DATA, self.authentication_data.as_deref());
        out.string_property(id::REASON_STRING, self.reason_string.as_ref());
        out.user_properties(&self.user_properties);
    }
}
