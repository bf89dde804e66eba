//! Writes CONNECT and CONNACK.

use super::publish::message_properties;
use super::sink::{Sink, WriteProperties};
use crate::packet::{ConnAck, Connect, ProtocolVersion, QoS, Will};
use crate::property::id;
use crate::reason::ReasonCode;

pub(super) fn connect<S: Sink>(connect: &Connect, out: &mut S) {
    let bridge = u8::from(connect.bridge) << 7;
    let (name, level) = match connect.version {
        ProtocolVersion::V31 => ("MQIsdp", 3 | bridge),
        ProtocolVersion::V311 => ("MQTT", 4 | bridge),
        ProtocolVersion::V5 => ("MQTT", 5),
    };
    out.string(name);
    out.u8(level);
    let (will_qos, will_retain) =
        connect.will.as_ref().map_or((QoS::AtMostOnce, false), |will| (will.qos, will.retain));
    out.u8(u8::from(connect.clean_start) << 1
        | u8::from(connect.will.is_some()) << 2
        | will_qos.as_u8() << 3
        | u8::from(will_retain) << 5
        | u8::from(connect.password.is_some()) << 6
        | u8::from(connect.username.is_some()) << 7);
    out.u16(connect.keep_alive);
    if connect.version.is_v5() {
        out.properties(connect);
    }
    out.string(&connect.client_id);
    if let Some(will) = &connect.will {
        if connect.version.is_v5() {
            out.properties(will);
        }
        out.string(will.message.topic.as_str());
        out.binary(&will.message.payload);
    }
    if let Some(username) = &connect.username {
        out.string(username);
    }
    if let Some(password) = &connect.password {
        out.binary(password);
    }
}

impl WriteProperties for Connect {
    fn write_properties<S: Sink>(&self, out: &mut S) {
        out.u32_property(id::SESSION_EXPIRY_INTERVAL, self.session_expiry_interval);
        out.u16_property(id::RECEIVE_MAXIMUM, self.receive_maximum.map(|count| count.get()));
        out.u32_property(id::MAXIMUM_PACKET_SIZE, self.maximum_packet_size.map(|bytes| bytes.get()));
        out.u16_property(id::TOPIC_ALIAS_MAXIMUM, non_zero(self.topic_alias_maximum));
        out.flag_property(
            id::REQUEST_RESPONSE_INFORMATION,
            self.request_response_information.then_some(true),
        );
        out.flag_property(id::REQUEST_PROBLEM_INFORMATION, self.request_problem_information);
        out.string_property(id::AUTHENTICATION_METHOD, self.authentication_method.as_ref());
        out.binary_property(id::AUTHENTICATION_DATA, self.authentication_data.as_deref());
        out.user_properties(&self.user_properties);
    }
}

impl WriteProperties for Will {
    fn write_properties<S: Sink>(&self, out: &mut S) {
        out.u32_property(id::WILL_DELAY_INTERVAL, Some(self.delay_interval).filter(|seconds| *seconds != 0));
        out.u32_property(id::MESSAGE_EXPIRY_INTERVAL, self.message_expiry_interval);
        message_properties(&self.message.properties, out);
    }
}

pub(super) fn connack<S: Sink>(connack: &ConnAck, version: ProtocolVersion, out: &mut S) {
    // `[MQTT-3.2.2-6]`: a refusal says that there is no session. In 3.1 the whole byte is reserved.
    let says_present = version != ProtocolVersion::V31 && connack.code == ReasonCode::Success;
    out.u8(u8::from(connack.session_present && says_present));
    match version {
        ProtocolVersion::V31 | ProtocolVersion::V311 => out.u8(connack.code.connect_return_code()),
        ProtocolVersion::V5 => {
            out.u8(connack.code.as_u8());
            out.properties(connack);
        }
    }
}

impl WriteProperties for ConnAck {
    fn write_properties<S: Sink>(&self, out: &mut S) {
        out.u32_property(id::SESSION_EXPIRY_INTERVAL, self.session_expiry_interval);
        out.u16_property(id::RECEIVE_MAXIMUM, self.receive_maximum.map(|count| count.get()));
        // QoS 2 is said by leaving the property out.
        let maximum_qos = self.maximum_qos.filter(|qos| *qos != QoS::ExactlyOnce);
        out.flag_property(id::MAXIMUM_QOS, maximum_qos.map(|qos| qos == QoS::AtLeastOnce));
        out.flag_property(id::RETAIN_AVAILABLE, self.retain_available);
        out.u32_property(id::MAXIMUM_PACKET_SIZE, self.maximum_packet_size.map(|bytes| bytes.get()));
        out.string_property(id::ASSIGNED_CLIENT_IDENTIFIER, self.assigned_client_identifier.as_ref());
        out.u16_property(id::TOPIC_ALIAS_MAXIMUM, non_zero(self.topic_alias_maximum));
        out.string_property(id::REASON_STRING, self.reason_string.as_ref());
        out.flag_property(id::WILDCARD_SUBSCRIPTION_AVAILABLE, self.wildcard_subscription_available);
        out.flag_property(id::SUBSCRIPTION_IDENTIFIERS_AVAILABLE, self.subscription_identifiers_available);
        out.flag_property(id::SHARED_SUBSCRIPTION_AVAILABLE, self.shared_subscription_available);
        out.u16_property(id::SERVER_KEEP_ALIVE, self.server_keep_alive);
        out.string_property(id::RESPONSE_INFORMATION, self.response_information.as_ref());
        out.string_property(id::SERVER_REFERENCE, self.server_reference.as_ref());
        out.string_property(id::AUTHENTICATION_METHOD, self.authentication_method.as_ref());
        out.binary_property(id::AUTHENTICATION_DATA, self.authentication_data.as_deref());
        out.user_properties(&self.user_properties);
    }
}

fn non_zero(count: u16) -> Option<u16> {
    Some(count).filter(|count| *count != 0)
}
