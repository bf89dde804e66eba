//! Which queues and streams may come into being by the first subscription to them, and what they are then like.
//!
//! Owns the policy in force, which manifests may change while clients are connected, and sees to it that many clients
//! who want one thing at once make it once. Who may ask for it is for the connection to say; the catalog holds what
//! was made.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;
use weir_core::Core;
use weir_core::catalog::{ChangeError, Object, Origin};
use weir_core::definition::{Definition, Kind};

/// Why a queue or stream was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Error {
    /// As many as there may be have been made this way.
    #[error("limits.autoCreated is {0}: delete some that are not needed any more")]
    Full(u32),
    /// The catalog did not take it.
    #[error(transparent)]
    Refused(#[from] ChangeError),
}

/// What subscriptions to queues and streams that do not exist do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    /// They may wait for them.
    pub(crate) wait: bool,
    /// The first whose pattern matches says what is made; none: nothing is.
    pub(crate) templates: Vec<Template>,
}

/// What is made for names of one pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    /// Names it is for.
    pub(crate) pattern: NamePattern,
    /// Of its kind, with everything but a name and a filter.
    pub(crate) definition: Definition,
}

/// A name, or the start of one and `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(String);

impl NamePattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// What is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let start = text.strip_suffix('*').unwrap_or(text);
        let is_name = weir_topic::ObjectName::parse(start.to_owned()).is_ok();
        if is_name || text == "*" {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("`{text}` is not allowed; allowed: a name, or the start of one and `*`, as in auto-*"))
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn matches(&self, name: &str) -> bool {
        self.0.strip_suffix('*').map_or(self.0 == name, |start| name.starts_with(start))
    }
}

impl Policy {
    /// What would be made for `name` and `filter`, if anything is.
    pub(crate) fn definition(&self, kind: Kind, name: &str, filter: &str) -> Option<Definition> {
        let mut templates = self.templates.iter().filter(|template| template.definition.kind == kind);
        let template = templates.find(|template| template.pattern.matches(name))?;
        Some(Definition {
            name: name.to_owned(),
            object: name.to_owned(),
            topic_filter: Some(filter.to_owned()),
            ..template.definition.clone()
        })
    }
}

/// The policy in force.
#[derive(Debug)]
pub(crate) struct AutoCreate {
    /// As configured; manifests add to it.
    configured: Policy,
    policy: ArcSwap<Policy>,
    /// Queues and streams that may be made this way.
    limit: u32,
    /// Held while one is made, for the others who want it to find it.
    making: Mutex<()>,
}

impl AutoCreate {
    pub(crate) fn new(configured: Policy, limit: u32) -> Self {
        let policy = ArcSwap::from_pointee(configured.clone());
        Self { configured, policy, limit, making: Mutex::default() }
    }

    /// The policy in force.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// What a Broker manifest says, if there is one: it can forbid waiting, and its templates come first.
    pub(crate) fn declare(&self, declared: Option<Policy>) {
        let mut policy = declared.unwrap_or(Policy { wait: true, templates: Vec::new() });
        policy.wait &= self.configured.wait;
        policy.templates.extend(self.configured.templates.iter().cloned());
        self.policy.store(Arc::new(policy));
    }

    /// Makes a queue or stream, unless somebody was quicker. Says whether it is new.
    pub(crate) async fn make(&self, core: &Core, wanted: &Definition) -> Result<(Arc<Object>, bool), Error> {
        let _making = self.making.lock().await;
        let view = core.catalog().view();
        if let Some(object) = view.find(wanted.kind, &wanted.name) {
            return Ok((object, false));
        }
        let all = view.all(Kind::Queue).chain(view.all(Kind::Stream));
        let made = all.filter(|object| object.origin == Origin::Automatic).count();
        if u32::try_from(made).unwrap_or(u32::MAX) >= self.limit {
            return Err(Error::Full(self.limit));
        }
        match core.create(wanted, Origin::Automatic).await {
            Ok(object) => Ok((object, true)),
            // A person or a manifest was quicker.
            Err(ChangeError::Exists { kind, name }) => {
                let found = core.catalog().view().find(wanted.kind, &wanted.name);
                found.map(|object| (object, false)).ok_or(Error::Refused(ChangeError::Exists { kind, name }))
            }
            Err(error) => Err(Error::Refused(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("auto-*", "auto-x", true),
            ("auto-*", "auto-", true),
            ("auto-*", "aut", false),
            ("*", "x", true),
            ("x", "x", true),
            ("x", "xy", false),
        ] {
            assert_eq!(NamePattern::parse(pattern).unwrap().matches(name), expected, "{pattern} {name}");
        }
        for bad in ["", "**", "a*b", "-a*", "a/*"] {
            assert!(NamePattern::parse(bad).is_err(), "{bad}");
        }
    }
}
