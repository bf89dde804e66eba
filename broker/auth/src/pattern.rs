//! Topic filters with placeholders for the client, and names with a trailing star. Knows no rules: whether a match
//! allows or denies, its caller says.

use std::fmt;

use weir_topic::TopicFilter;

use crate::rules::Client;

/// What queue and stream subscriptions begin with; rules speak of names and plain topics instead.
const SUBSCRIPTION_PREFIXES: [&str; 5] = ["$share/", "$queue/", "$q/", "$stream/", "$s/"];

/// A topic filter in which `%u` stands for the user name and `%c` for the client id.
///
/// A user name or client id with `+`, `#` or `/` in it, or an empty one, or one that begins with `$` where the filter
/// begins with the placeholder, cannot be put in its place: it would make the filter another one than its author
/// meant. [`Self::covers`] then says no; [`Self::touches`], which is for denials, says yes to everything from
/// that level on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPattern {
    text: String,
    levels: Vec<Level>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Level {
    /// `+`
    Any,
    /// `#`
    Rest,
    Text(Box<str>),
    Template(Box<[Part]>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    User,
    ClientId,
}

/// How a level compares with the text of one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Same {
    Yes,
    No,
    /// The client's name cannot stand in the filter.
    Unusable,
}

impl TopicPattern {
    /// Reads a filter.
    ///
    /// # Errors
    /// What is wrong with it and what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(prefix) = SUBSCRIPTION_PREFIXES.iter().find(|prefix| text.starts_with(**prefix)) {
            return Err(format!(
                "`{text}` begins with {prefix}; allowed: plain topic filters here, names of queues and streams in \
                 `names`"
            ));
        }
        TopicFilter::parse(text.replace("%u", "u").replace("%c", "c"))
            .map_err(|error| format!("`{text}` is no topic filter: {error}"))?;
        let levels = text.split('/').map(Level::parse).collect();
        Ok(Self { text: text.to_owned(), levels })
    }

    /// Whether every topic that `filter` matches, is matched by this one. `filter` is a topic or a topic filter.
    #[must_use]
    pub fn covers(&self, filter: &str, client: &Client<'_>) -> bool {
        let mut first = true;
        let mut theirs = filter.split('/');
        for level in &self.levels {
            match (level, theirs.next()) {
                // `a/#` matches `a` too. Wildcards do not match a first level that begins with `$`.
                (Level::Rest, theirs) => return !(first && theirs.is_some_and(is_reserved)),
                (_, None) => return false,
                // `#` alone needs one level at least, so `+/#` is the same.
                (Level::Any, Some("#")) => {
                    return first && matches!(self.levels.as_slice(), [_, Level::Rest]);
                }
                (Level::Any, Some(theirs)) => {
                    if first && is_reserved(theirs) {
                        return false;
                    }
                }
                (_, Some("+" | "#")) => return false,
                (level, Some(theirs)) => {
                    if level.compare(theirs, first, client) != Same::Yes {
                        return false;
                    }
                }
            }
            first = false;
        }
        theirs.next().is_none()
    }

    /// Whether some topic is matched by both `filter` and this one. `filter` is a topic or a topic filter.
    #[must_use]
    pub fn touches(&self, filter: &str, client: &Client<'_>) -> bool {
        let mut first = true;
        let mut theirs = filter.split('/');
        for level in &self.levels {
            match (level, theirs.next()) {
                (Level::Rest, theirs) => return !(first && theirs.is_some_and(is_reserved)),
                (level, Some("#")) => return !(first && level.is_reserved()),
                (_, None) => return false,
                (Level::Any, Some(theirs)) => {
                    if first && is_reserved(theirs) {
                        return false;
                    }
                }
                (level, Some("+")) => {
                    if first && level.is_reserved() {
                        return false;
                    }
                    if !level.is_usable(first, client) {
                        return true;
                    }
                }
                (level, Some(theirs)) => match level.compare(theirs, first, client) {
                    Same::Yes => {}
                    Same::No => return false,
                    Same::Unusable => return true,
                },
            }
            first = false;
        }
        matches!(theirs.next(), None | Some("#"))
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the names of `client` can be put in for the placeholders.
    #[must_use]
    pub fn is_usable(&self, client: &Client<'_>) -> bool {
        self.levels.iter().enumerate().all(|(at, level)| level.is_usable(at == 0, client))
    }
}

impl Level {
    fn parse(text: &str) -> Self {
        match text {
            "+" => return Self::Any,
            "#" => return Self::Rest,
            _ => {}
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find("%u").into_iter().chain(rest.find("%c")).min() {
            let (before, placeholder) = rest.split_at(at);
            if !before.is_empty() {
                parts.push(Part::Text(before.into()));
            }
            parts.push(if placeholder.starts_with("%u") { Part::User } else { Part::ClientId });
            rest = &placeholder[2..];
        }
        if parts.is_empty() {
            return Self::Text(text.into());
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        Self::Template(parts.into())
    }

    /// Begins with `$`, whoever the client is.
    fn is_reserved(&self) -> bool {
        match self {
            Self::Text(text) => is_reserved(text),
            Self::Template(parts) => matches!(parts.first(), Some(Part::Text(text)) if is_reserved(text)),
            Self::Any | Self::Rest => false,
        }
    }

    fn is_usable(&self, first: bool, client: &Client<'_>) -> bool {
        let Self::Template(parts) = self else { return true };
        parts.iter().enumerate().all(|(at, part)| part.value(first && at == 0, client).is_some())
    }

    /// Compares with a level that is no wildcard. Allocates nothing.
    fn compare(&self, text: &str, first: bool, client: &Client<'_>) -> Same {
        let parts = match self {
            Self::Any | Self::Rest => return Same::Yes,
            Self::Text(own) if **own == *text => return Same::Yes,
            Self::Text(_) => return Same::No,
            Self::Template(parts) => parts,
        };
        if !self.is_usable(first, client) {
            return Same::Unusable;
        }
        let mut rest = text;
        for part in parts {
            match part.value(false, client).and_then(|value| rest.strip_prefix(value)) {
                Some(behind) => rest = behind,
                None => return Same::No,
            }
        }
        if rest.is_empty() { Same::Yes } else { Same::No }
    }
}

impl Part {
    /// What stands for this part; `None` if the client's name cannot.
    fn value<'a>(&'a self, begins_filter: bool, client: &Client<'a>) -> Option<&'a str> {
        let name = match self {
            Self::Text(text) => return Some(text),
            Self::User => client.user?,
            Self::ClientId => client.client_id,
        };
        let widens =
            name.is_empty() || name.contains(['+', '#', '/']) || (begins_filter && is_reserved(name));
        (!widens).then_some(name)
    }
}

fn is_reserved(level: &str) -> bool {
    level.starts_with('$')
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A name, or all names that begin alike: `orders`, `orders-*`, `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    text: String,
    prefix: bool,
}

impl NamePattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// It is empty, or has a star that is not its last character.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, prefix) = match text.strip_suffix('*') {
            Some(name) => (name, true),
            None => (text, false),
        };
        if text.is_empty() || name.contains('*') {
            return Err(format!(
                "`{text}` is not allowed; allowed: a name, or the beginning of names and a `*`"
            ));
        }
        Ok(Self { text: name.to_owned(), prefix })
    }

    /// Whether the client id of `client` is meant, `%u` being its user name. Who has none is meant by no such
    /// pattern, and by all of them if that is `otherwise`: a denial must not be escaped by coming without a name.
    pub(crate) fn matches_client(&self, client: &Client<'_>, otherwise: bool) -> bool {
        let Some((before, rest)) = self.text.split_once("%u") else { return self.matches(client.client_id) };
        let Some(user) = client.user.filter(|user| !user.is_empty()) else {
            return otherwise && client.client_id.starts_with(before);
        };
        let Some(mut left) = client.client_id.strip_prefix(before) else { return false };
        for after in rest.split("%u") {
            match left.strip_prefix(user).and_then(|left| left.strip_prefix(after)) {
                Some(behind) => left = behind,
                None => return false,
            }
        }
        self.prefix || left.is_empty()
    }

    /// Whether `name` is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if self.prefix { name.starts_with(&self.text) } else { name == self.text }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.prefix { "*" } else { "" })
    }
}
