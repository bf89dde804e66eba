//! What one connected client may do. Owned by the task of its connection.

use std::net::IpAddr;
use std::sync::Arc;

use bytestring::ByteString;
use tokio::sync::watch;
use weir_auth::{Access, Client, Request};
use weir_core::catalog::Object;
use weir_env::clock::Instant;
use weir_topic::{Subscription, TopicFilter, TopicName};

use super::{Auth, Identity, Refused};
use crate::metrics::Forbidden;

/// What a client may do under the rules in force, and how long it is who it is.
pub(crate) struct ClientAccess {
    auth: Arc<Auth>,
    identity: Identity,
    /// `None`: there are no rules.
    access: Option<Access>,
    changes: watch::Receiver<u64>,
    expires_at: Option<Instant>,
}

/// Something a client may not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) what: Forbidden,
    /// Line of the rule; `None`: no rule allows it.
    pub(crate) line: Option<usize>,
}

impl Auth {
    /// What a client may do; `None` if everybody may everything, for ever.
    ///
    /// # Errors
    /// The user is gone since it has been proved.
    pub(crate) fn access(
        self: &Arc<Self>,
        identity: Identity,
        client_id: &ByteString,
        address: Option<IpAddr>,
        certificate: bool,
    ) -> Result<Option<Box<ClientAccess>>, Refused> {
        if !self.authenticates() && !self.has_rules() {
            return Ok(None);
        }
        // Before rules and users are looked at, so that no change is missed.
        let changes = self.generation.subscribe();
        // Since the proof began, which may wait for a hash, the user may have been removed.
        if !self.still_knows(&identity) {
            return Err(Refused::WRONG);
        }
        let client = Client { user: identity.user.as_deref(), client_id, address, certificate };
        let rules = self.state.load().rules.clone();
        let access = rules.map(|rules| Access::new(rules, &client));
        let mut access = ClientAccess { auth: Arc::clone(self), identity, access, changes, expires_at: None };
        access.set_expiry();
        Ok(Some(Box::new(access)))
    }
}

impl ClientAccess {
    pub(crate) fn auth(&self) -> &Arc<Auth> {
        &self.auth
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When the client's proof ends.
    pub(crate) fn expires_at(&self) -> Option<Instant> {
        self.expires_at
    }

    /// The same client has proved itself anew.
    pub(crate) fn renew(&mut self, identity: Identity) {
        self.identity = identity;
        self.set_expiry();
    }

    fn set_expiry(&mut self) {
        let clock = self.auth.clock;
        let left = self.identity.expires_at.map(|at| at.saturating_since(clock.wall()));
        self.expires_at = left.and_then(|left| clock.now().checked_add(left));
    }

    /// Tells of other rules or users than those of the last [`Self::refresh`].
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Whether rules or users have changed since the last [`Self::refresh`].
    pub(crate) fn is_outdated(&self) -> bool {
        self.changes.has_changed().unwrap_or(false)
    }

    /// Takes up the rules in force. False if the client's proof does not hold any more.
    pub(crate) fn refresh(&mut self) -> bool {
        self.changes.mark_unchanged();
        if let (Some(access), Some(rules)) = (&self.access, self.auth.state.load().rules.clone()) {
            self.access = Some(access.under(rules));
        }
        self.auth.still_knows(&self.identity)
    }

    /// Whether it may have the session of its client id.
    pub(crate) fn connect(&self) -> Result<(), Denied> {
        self.ask(&Request::Connect, Forbidden::Connect)
    }

    /// Whether it may receive what was published there. Without rules that costs nothing.
    pub(crate) fn receive_from(&self, topic: &TopicName) -> Result<(), Denied> {
        if self.access.is_none() { Ok(()) } else { self.receive(&topic.clone().into()) }
    }

    /// Whether it may publish there.
    pub(crate) fn publish(&self, topic: &TopicName, retain: bool) -> Result<(), Denied> {
        self.ask(&Request::Publish { topic, retain, will: false }, Forbidden::Publish)
    }

    /// Whether it may have this will.
    pub(crate) fn will(&self, topic: &TopicName, retain: bool) -> Result<(), Denied> {
        self.ask(&Request::Publish { topic, retain, will: true }, Forbidden::Will)
    }

    /// Whether it may have this subscription, as far as its text says what it is.
    pub(crate) fn subscribe(&self, to: &Subscription) -> Result<(), Denied> {
        match to {
            Subscription::Plain(filter)
            | Subscription::Shared { filter, .. }
            | Subscription::QueueByFilter { filter }
            | Subscription::StreamByFilter { filter, .. } => self.receive(filter),
            Subscription::Queue { name, filter } | Subscription::Stream { name, filter, .. } => {
                self.consume(name.as_str())?;
                filter.as_ref().map_or(Ok(()), |filter| self.receive(filter))
            }
        }
    }

    /// Whether it may consume this queue or stream: its name, and what it takes.
    pub(crate) fn attach(&self, object: &Object) -> Result<(), Denied> {
        self.consume(&object.definition.name)?;
        object.filter.as_ref().map_or(Ok(()), |filter| self.receive(filter))
    }

    /// Whether it may make a queue or stream of this name by consuming it: it then has what the filter takes.
    pub(crate) fn create(&self, name: &str, filter: &TopicFilter) -> Result<(), Denied> {
        self.consume(name)?;
        self.receive(filter)?;
        self.ask(&Request::Create { name, filter }, Forbidden::Create)
    }

    fn receive(&self, filter: &TopicFilter) -> Result<(), Denied> {
        self.ask(&Request::Subscribe { filter }, Forbidden::Subscribe)
    }

    fn consume(&self, name: &str) -> Result<(), Denied> {
        self.ask(&Request::Consume { name }, Forbidden::Consume)
    }

    fn ask(&self, request: &Request<'_>, what: Forbidden) -> Result<(), Denied> {
        let Some(access) = &self.access else { return Ok(()) };
        let decision = access.decide(request);
        if decision.is_allowed() {
            return Ok(());
        }
        Err(Denied { what, line: decision.rule.map(|rule| rule.line) })
    }
}

impl Denied {
    /// For the client and the log; names no rule, since clients need not know them.
    pub(crate) fn text(&self) -> &'static str {
        match self.what {
            Forbidden::Connect => "not allowed to connect with this client id",
            Forbidden::Publish => "not allowed to publish there",
            Forbidden::Subscribe => "not allowed to subscribe to it",
            Forbidden::Consume => "not allowed to consume it",
            Forbidden::Create => "not allowed to create it",
            Forbidden::Will => "not allowed to leave a will there",
        }
    }
}
