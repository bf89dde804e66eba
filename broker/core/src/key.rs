//! Key expressions: what shards and orders a message within its queue or stream.
//!
//! Keys are written in CEL over `message`. This version evaluates member accesses: `message.topic`,
//! `message.clientId`, `message.username` and `message.userProperties["name"]`; anything else is refused
//! when the queue or stream is declared.

use bytes::Bytes;
use bytestring::ByteString;

use crate::keyspace::segment::RecordKey;
use crate::message::Message;

/// Who published a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publisher {
    /// Client identifier.
    pub client_id: ByteString,
    /// User name, if it gave one.
    pub username: Option<ByteString>,
}

/// A key expression that can be evaluated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyExpression {
    /// `message.topic`
    Topic,
    /// `message.clientId`
    ClientId,
    /// `message.username`
    Username,
    /// `message.userProperties["name"]`
    UserProperty(String),
}

/// A key expression that this version cannot evaluate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "key `{0}` is not supported; supported: message.topic, message.clientId, message.username, \
     message.userProperties[\"name\"]"
)]
pub struct UnsupportedKey(String);

impl KeyExpression {
    /// Reads an expression.
    ///
    /// # Errors
    /// If it is none of the supported forms.
    pub fn parse(text: &str) -> Result<Self, UnsupportedKey> {
        match text.trim() {
            "message.topic" => return Ok(Self::Topic),
            "message.clientId" => return Ok(Self::ClientId),
            "message.username" => return Ok(Self::Username),
            other => {
                let name = other
                    .strip_prefix("message.userProperties[")
                    .and_then(|rest| rest.strip_suffix(']'))
                    .and_then(|quoted| {
                        let quote = quoted.chars().next().filter(|c| matches!(c, '"' | '\''))?;
                        quoted.strip_prefix(quote)?.strip_suffix(quote)
                    })
                    .filter(|name| !name.is_empty() && !name.contains(['"', '\'', '\\']));
                if let Some(name) = name {
                    return Ok(Self::UserProperty(name.to_owned()));
                }
            }
        }
        Err(UnsupportedKey(text.to_owned()))
    }

    /// The key of a message; `None` if it has none, as when the user property is missing.
    #[must_use]
    pub fn evaluate(&self, message: &Message, publisher: &Publisher) -> Option<RecordKey> {
        match self {
            Self::Topic => Some(RecordKey::Topic),
            Self::ClientId => Some(RecordKey::Bytes(publisher.client_id.clone().into_bytes())),
            Self::Username => publisher.username.clone().map(|name| RecordKey::Bytes(name.into_bytes())),
            Self::UserProperty(name) => {
                let (_, value) = message.properties.user.iter().rfind(|(key, _)| key == name)?;
                Some(RecordKey::Bytes(Bytes::copy_from_slice(value.as_bytes())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests::full_message;

    #[test]
    fn expressions() {
        let publisher = Publisher { client_id: "c1".into(), username: None };
        let check = |text: &str, expected: Option<RecordKey>| {
            let key = KeyExpression::parse(text).unwrap().evaluate(&full_message(), &publisher);
            assert_eq!(key, expected, "{text}");
        };
        check("message.topic", Some(RecordKey::Topic));
        check("message.clientId", Some(RecordKey::Bytes("c1".into())));
        check("message.username", None);
        check("message.userProperties[\"k\"]", Some(RecordKey::Bytes("w".into())));
        check("message.userProperties['absent']", None);
        for text in
            ["", "topic", "message.json.id", "message.userProperties[k]", "message.userProperties[\"\"]"]
        {
            assert!(KeyExpression::parse(text).is_err(), "{text}");
        }
    }
}
