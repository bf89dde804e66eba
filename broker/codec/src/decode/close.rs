//! Reads DISCONNECT and AUTH.

use super::{Context, Sender, ack};
use crate::error::{Parsed, Problem};
use crate::packet::{Auth, Disconnect};
use crate::packet_type::PacketType;
use crate::property::{Properties, Property};
use crate::read::Reader;
use crate::reason::ReasonCode;

pub(super) fn disconnect(body: &mut Reader, context: Context) -> Parsed<Disconnect> {
    let mut disconnect = Disconnect::default();
    if !context.version.is_v5() || body.is_empty() {
        return Ok(disconnect);
    }
    disconnect.reason = ack::reason(PacketType::Disconnect, body)?;
    if !may_close_with(context.sender, disconnect.reason) {
        return Err(Problem::WrongSender.at("reason code"));
    }
    if body.is_empty() {
        return Ok(disconnect);
    }
    let mut properties = Properties::read(body)?;
    while let Some(property) = properties.next()? {
        match (property, context.sender) {
            (Property::SessionExpiryInterval(seconds), Sender::Client) => {
                disconnect.session_expiry_interval = Some(seconds);
            }
            (Property::ServerReference(text), Sender::Server) => disconnect.server_reference = Some(text),
            (Property::SessionExpiryInterval(_), Sender::Server)
            | (Property::ServerReference(_), Sender::Client) => return Err(properties.wrong_sender()),
            (Property::ReasonString(text), _) => disconnect.reason_string = Some(text),
            (Property::User(name, value), _) => disconnect.user_properties.push((name, value)),
            _ => return Err(properties.not_allowed()),
        }
    }
    Ok(disconnect)
}

pub(super) fn auth(body: &mut Reader, context: Context) -> Parsed<Auth> {
    let mut auth = Auth::default();
    if !body.is_empty() {
        auth.reason = ack::reason(PacketType::Auth, body)?;
        let mut properties = Properties::read(body)?;
        while let Some(property) = properties.next()? {
            match property {
                Property::AuthenticationMethod(text) => auth.authentication_method = Some(text),
                Property::AuthenticationData(data) => auth.authentication_data = Some(data),
                Property::ReasonString(text) => auth.reason_string = Some(text),
                Property::User(name, value) => auth.user_properties.push((name, value)),
                _ => return Err(properties.not_allowed()),
            }
        }
    }
    let sent_by_other_side = match context.sender {
        Sender::Client => auth.reason == ReasonCode::Success,
        Sender::Server => auth.reason == ReasonCode::ReAuthenticate,
    };
    if sent_by_other_side {
        return Err(Problem::WrongSender.at("reason code"));
    }
    let bare_success = auth == Auth::default();
    if auth.authentication_method.is_none() && !bare_success {
        return Err(Problem::AuthenticationMethodMissing.at("authentication method"));
    }
    Ok(auth)
}

/// Table 3-10 of the specification, column "sent by". 0x8C is in its section 2.4 only.
const fn may_close_with(sender: Sender, reason: ReasonCode) -> bool {
    match sender {
        Sender::Client => {
            matches!(reason.as_u8(), 0x00 | 0x04 | 0x80..=0x83 | 0x90 | 0x93..=0x99)
        }
        Sender::Server => !matches!(reason, ReasonCode::DisconnectWithWill),
    }
}
