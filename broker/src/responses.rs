//! Response Information: where a client that asks for it is to have its responses sent.
//!
//! A pattern of the configuration says so, in the words of access rules: `%c` is the client id, `%u` the user name.
//! Knows no connections.

use bytestring::ByteString;
use weir_topic::TopicName;

/// What to tell clients that ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseInformation(Box<str>);

impl ResponseInformation {
    /// Reads a pattern.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(pattern: &str) -> Result<Self, String> {
        let known = pattern.replace("%c", "c").replace("%u", "u");
        if known.starts_with('$') {
            return Err(format!("{pattern}: responses do not go to topics that begin with $"));
        }
        if known.contains('%') {
            return Err(format!("{pattern}: % may only stand before c (client id) or u (user name)"));
        }
        TopicName::parse(known).map_err(|error| format!("{pattern}: {error}"))?;
        Ok(Self(pattern.into()))
    }

    /// The pattern.
    #[must_use]
    pub const fn pattern(&self) -> &str {
        &self.0
    }

    /// What one client is told: nothing if it lacks a name, or if its name would be more than one level of a topic.
    pub(crate) fn of(&self, client_id: &str, user: Option<&str>) -> Option<ByteString> {
        let mut told = String::new();
        let mut rest = &*self.0;
        while let Some((before, from)) = rest.split_once('%') {
            let (what, after) = from.split_at_checked(1)?;
            let name = if what == "c" { client_id } else { user? };
            if name.is_empty() || name.contains(['/', '+', '#']) {
                return None;
            }
            told.push_str(before);
            told.push_str(name);
            rest = after;
        }
        told.push_str(rest);
        TopicName::parse(told.clone()).ok().filter(|_| !told.starts_with('$'))?;
        Some(told.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_become_topics_of_one_client() {
        let told = |pattern: &str, user| {
            ResponseInformation::parse(pattern).unwrap().of("c1", user).map(|told| told.to_string())
        };
        assert_eq!(told("responses/%c", None).unwrap(), "responses/c1");
        assert_eq!(told("%u/%c/%u", Some("%c")).unwrap(), "%c/c1/%c");
        assert_eq!(told("responses", None).unwrap(), "responses");
        assert_eq!(told("responses/%u", None), None);
        for user in ["", "a/b", "+", "#", "a#"] {
            assert_eq!(told("responses/%u", Some(user)), None, "{user}");
        }
        assert_eq!(told("%u/a", Some("$SYS")), None);
    }

    #[test]
    fn what_is_no_topic_is_refused() {
        for pattern in ["", "a/+", "a/#", "$SYS/%c", "%d", "a/%", "100%"] {
            assert!(ResponseInformation::parse(pattern).is_err(), "{pattern}");
        }
    }
}
