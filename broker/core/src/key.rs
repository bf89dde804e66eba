//! Key expressions: what shards and orders a message within its queue or stream.
//!
//! Keys are written in CEL over `message`. Those that only name something a message has, such as `message.topic` or
//! `message.userProperties["name"]`, are read off; any other is computed (`computed`). They are checked when the
//! queue or stream is declared; a message whose key fails then has none. This knows nothing of what keys are used for.

mod computed;

use bytes::Bytes;
use bytestring::ByteString;

use self::computed::Computed;
use crate::keyspace::segment::RecordKey;
use crate::message::Message;

/// Bytes of a key. A message with a longer one has none.
pub const KEY_BYTES_MAX: usize = 1024;

/// Who published a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publisher {
    /// Client identifier.
    pub client_id: ByteString,
    /// User name, if it gave one.
    pub username: Option<ByteString>,
}

/// A key expression. Clones are cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyExpression(Form);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// `message.topic`
    Topic,
    /// `message.clientId`
    ClientId,
    /// `message.username`
    Username,
    /// `message.userProperties["name"]`
    UserProperty(String),
    /// Anything else.
    Computed(Computed),
}

/// A text that is no key expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` cannot be a key: {problem}", abridged(.text))]
pub struct InvalidKey {
    text: String,
    problem: String,
}

/// The beginning of a long text.
fn abridged(text: &str) -> String {
    const CHARACTERS: usize = 80;
    let end = text.char_indices().nth(CHARACTERS);
    end.map_or_else(|| text.to_owned(), |(end, _)| format!("{}...", &text[..end]))
}

impl KeyExpression {
    /// Reads an expression.
    ///
    /// # Errors
    /// If it is not in CEL, uses what is not allowed in keys, or is too large.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        if let Some(form) = Form::of_access(text.trim()) {
            return Ok(Self(form));
        }
        let computed = Computed::parse(text);
        computed
            .map(|computed| Self(Form::Computed(computed)))
            .map_err(|problem| InvalidKey { text: text.to_owned(), problem })
    }

    /// The key of a message; `None` if it has none, as when the user property is missing, the payload is no JSON, or
    /// the key would be longer than [`KEY_BYTES_MAX`].
    #[must_use]
    pub fn evaluate(&self, message: &Message, publisher: &Publisher) -> Option<RecordKey> {
        let key = match &self.0 {
            Form::Topic => return Some(RecordKey::Topic),
            Form::ClientId => publisher.client_id.clone().into_bytes(),
            Form::Username => publisher.username.clone()?.into_bytes(),
            Form::UserProperty(name) => {
                let (_, value) = message.properties.user.iter().rfind(|(key, _)| key == name)?;
                Bytes::copy_from_slice(value.as_bytes())
            }
            Form::Computed(computed) => computed.evaluate(message, publisher)?,
        };
        // Consumers are told the key in a user property, which cannot have the character U+0000.
        (key.len() <= KEY_BYTES_MAX && !key.contains(&0)).then_some(RecordKey::Bytes(key))
    }
}

impl Form {
    /// The plain forms.
    fn of_access(text: &str) -> Option<Self> {
        match text {
            "message.topic" => Some(Self::Topic),
            "message.clientId" => Some(Self::ClientId),
            "message.username" => Some(Self::Username),
            other => {
                let quoted = other.strip_prefix("message.userProperties[")?.strip_suffix(']')?;
                let quote = quoted.chars().next().filter(|c| matches!(c, '"' | '\''))?;
                let name = quoted.strip_prefix(quote)?.strip_suffix(quote)?;
                let plain = !name.is_empty() && !name.contains(['"', '\'', '\\']);
                plain.then(|| Self::UserProperty(name.to_owned()))
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
        check("message.userProperties[\"\"]", None);
        check(" message.payload + b'!' ", Some(RecordKey::Bytes("payload!".into())));
        for text in ["", "topic", "message.nothing", "message.userProperties[k]"] {
            assert!(KeyExpression::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn keys_are_bounded_and_can_be_told_to_consumers() {
        let publisher = Publisher::default();
        let check = |payload: &[u8], expected: bool| {
            let text = std::str::from_utf8(payload).unwrap().to_owned();
            let mut message = full_message();
            message.payload = Bytes::copy_from_slice(payload);
            message.properties.user = vec![("k".into(), text.into())];
            for expression in ["message.payload", "message.userProperties['k']"] {
                let key = KeyExpression::parse(expression).unwrap().evaluate(&message, &publisher);
                assert_eq!(key.is_some(), expected, "{expression}, {} bytes", payload.len());
            }
        };
        check(&[b'x'; KEY_BYTES_MAX], true);
        check(&[b'x'; KEY_BYTES_MAX + 1], false);
        check(b"a\0b", false);
    }
}
