//! Access rules: in their order, the first that applies decides; what no rule allows is denied.
//!
//! For one topic that is all there is to say. A subscription with wildcards asks for many topics at once, and
//! is judged so that no topic in it escapes a denial:
//! * an allowing rule applies only if one of its filters covers the whole subscription;
//! * a denying rule applies as soon as one of its filters has a topic in common with the subscription.
//!
//! So whatever is granted, each single topic in it would have been granted too. The converse does not hold: a
//! subscription may be refused although its topics are allowed one by one, by several rules.

use std::fmt;
use std::net::IpAddr;

use weir_topic::{TopicFilter, TopicName};

use crate::{NamePattern, Network, TopicPattern};

/// Rules there may be; positions fit 16 bits.
pub(crate) const RULES_MAX: usize = 10_000;

/// A client, as far as rules ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client<'a> {
    /// The name it has proved; `None`: anonymous.
    pub user: Option<&'a str>,
    /// Client identifier.
    pub client_id: &'a str,
    /// Where it comes from; `None` on a Unix socket.
    pub address: Option<IpAddr>,
    /// It showed a certificate that was verified.
    pub certificate: bool,
}

/// What a client wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Come in under the client id it names, and so have the session of that id.
    Connect,
    /// Publish a message there.
    Publish {
        /// Where.
        topic: &'a TopicName,
        /// Kept as the topic's retained message.
        retain: bool,
        /// As the will of a connection.
        will: bool,
    },
    /// Receive what is published there; also what the own filter of a queue or stream stands for.
    Subscribe {
        /// Where.
        filter: &'a TopicFilter,
    },
    /// Take messages of a queue, or read a stream.
    Consume {
        /// Its name.
        name: &'a str,
    },
    /// Make a queue or stream come into being by subscribing to it.
    Create {
        /// Its name.
        name: &'a str,
        /// What it takes.
        filter: &'a TopicFilter,
    },
}

/// What a rule speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// [`Request::Connect`]
    Connect,
    /// [`Request::Publish`]
    Publish,
    /// [`Request::Subscribe`]
    Subscribe,
    /// [`Request::Consume`]
    Consume,
    /// [`Request::Create`]
    Create,
}

/// Whether the client may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Allow,
    /// No.
    Deny,
}

/// One rule. What is empty or absent does not restrict it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where it stands in its file, from 1.
    pub line: usize,
    /// What it says.
    pub verdict: Verdict,
    /// Of what it says so; never empty.
    pub actions: Vec<Action>,
    /// User names.
    pub users: Vec<NamePattern>,
    /// Client identifiers, in which `%u` stands for the user name.
    pub clients: Vec<NamePattern>,
    /// Where clients come from.
    pub addresses: Vec<Network>,
    /// Only clients without (`true`) or with (`false`) a user name.
    pub anonymous: Option<bool>,
    /// Only clients with or without a certificate.
    pub certificate: Option<bool>,
    /// Topics of publish, subscribe and create; not empty if it speaks of one of these.
    pub topics: Vec<TopicPattern>,
    /// Queues and streams of consume and create; not empty if it speaks of consume.
    pub names: Vec<NamePattern>,
    /// Only publishes that are, or are not, retained.
    pub retain: Option<bool>,
    /// Only publishes that are, or are not, wills.
    pub will: Option<bool>,
}

/// All rules, in their order. At most 10,000.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules(pub(crate) Vec<Rule>);

/// What the rules say of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Whether the client may.
    pub verdict: Verdict,
    /// The rule that decided; `None`: none applies, so it is denied, unless it is to connect and no rule speaks of that.
    pub rule: Option<&'a Rule>,
}

/// Why a rule does not decide a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    Action,
    User,
    ClientId,
    Address,
    Anonymous,
    Certificate,
    Topic,
    /// The client's names cannot be put in for the placeholders of any filter.
    Placeholder,
    /// A filter of the rule allows a part of the subscription.
    CoversOnlyPart,
    Name,
    Retain,
    Will,
}

impl Rules {
    /// The rules in their order.
    #[must_use]
    pub fn all(&self) -> &[Rule] {
        &self.0
    }

    /// What they say of a request. [`crate::Access`] says the same, faster for one client.
    #[must_use]
    pub fn decide(&self, client: &Client<'_>, request: &Request<'_>) -> Decision<'_> {
        self.first_of(self.0.iter().filter(|rule| rule.concerns(client).is_ok()), client, request)
    }

    /// What the first of `concerning`, the rules that concern `client`, says which applies.
    pub(crate) fn first_of<'a>(
        &'a self,
        mut concerning: impl Iterator<Item = &'a Rule>,
        client: &Client<'_>,
        request: &Request<'_>,
    ) -> Decision<'a> {
        match concerning.find(|rule| rule.applies(client, request).is_ok()) {
            Some(rule) => Decision { verdict: rule.verdict, rule: Some(rule) },
            None => Decision { verdict: self.otherwise(request), rule: None },
        }
    }

    /// What is said of a request to which no rule applies: no, but rules that know nothing of connecting leave it to
    /// whoever comes in.
    pub(crate) fn otherwise(&self, request: &Request<'_>) -> Verdict {
        let unspoken = || !self.0.iter().any(|rule| rule.actions.contains(&Action::Connect));
        if *request == Request::Connect && unspoken() { Verdict::Allow } else { Verdict::Deny }
    }
}

impl Rule {
    /// Whether the rule is for `client` at all.
    pub(crate) fn concerns(&self, client: &Client<'_>) -> Result<(), Miss> {
        if self.anonymous.is_some_and(|wanted| wanted != client.user.is_none()) {
            return Err(Miss::Anonymous);
        }
        let named = |user: &str| self.users.iter().any(|pattern| pattern.matches(user));
        if !self.users.is_empty() && !client.user.is_some_and(named) {
            return Err(Miss::User);
        }
        let denies = self.verdict == Verdict::Deny;
        let meant = |pattern: &NamePattern| pattern.matches_client(client, denies);
        if !self.clients.is_empty() && !self.clients.iter().any(meant) {
            return Err(Miss::ClientId);
        }
        let near = |address| self.addresses.iter().any(|network| network.contains(address));
        if !self.addresses.is_empty() && !client.address.is_some_and(near) {
            return Err(Miss::Address);
        }
        if self.certificate.is_some_and(|wanted| wanted != client.certificate) {
            return Err(Miss::Certificate);
        }
        Ok(())
    }

    /// Whether the rule, which is for `client`, decides `request`.
    pub(crate) fn applies(&self, client: &Client<'_>, request: &Request<'_>) -> Result<(), Miss> {
        if !self.actions.contains(&request.action()) {
            return Err(Miss::Action);
        }
        match *request {
            Request::Connect => Ok(()),
            Request::Publish { topic, retain, will } => {
                if self.retain.is_some_and(|wanted| wanted != retain) {
                    return Err(Miss::Retain);
                }
                if self.will.is_some_and(|wanted| wanted != will) {
                    return Err(Miss::Will);
                }
                self.takes_topics(topic.as_str(), client)
            }
            Request::Subscribe { filter } => self.takes_topics(filter.as_str(), client),
            Request::Consume { name } => self.takes_name(name),
            Request::Create { name, filter } => {
                self.takes_name(name)?;
                self.takes_topics(filter.as_str(), client)
            }
        }
    }

    fn takes_name(&self, name: &str) -> Result<(), Miss> {
        let taken = self.names.is_empty() || self.names.iter().any(|pattern| pattern.matches(name));
        if taken { Ok(()) } else { Err(Miss::Name) }
    }

    fn takes_topics(&self, filter: &str, client: &Client<'_>) -> Result<(), Miss> {
        let taken = match self.verdict {
            Verdict::Allow => self.topics.iter().any(|pattern| pattern.covers(filter, client)),
            Verdict::Deny => self.topics.iter().any(|pattern| pattern.touches(filter, client)),
        };
        if taken { Ok(()) } else { Err(Miss::Topic) }
    }

    /// Says more precisely why no filter of the rule applies.
    pub(crate) fn topic_miss(&self, filter: &str, client: &Client<'_>) -> Miss {
        if self.topics.iter().all(|pattern| !pattern.is_usable(client)) {
            return Miss::Placeholder;
        }
        let touched = |pattern: &TopicPattern| pattern.is_usable(client) && pattern.touches(filter, client);
        if self.topics.iter().any(touched) { Miss::CoversOnlyPart } else { Miss::Topic }
    }
}

impl Request<'_> {
    /// What kind of request it is.
    #[must_use]
    pub fn action(&self) -> Action {
        match self {
            Request::Connect => Action::Connect,
            Request::Publish { .. } => Action::Publish,
            Request::Subscribe { .. } => Action::Subscribe,
            Request::Consume { .. } => Action::Consume,
            Request::Create { .. } => Action::Create,
        }
    }
}

impl Decision<'_> {
    /// Whether the client may.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allow
    }
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 5] = [Self::Connect, Self::Publish, Self::Subscribe, Self::Consume, Self::Create];

    /// Its word in files and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Consume => "consume",
            Self::Create => "create",
        }
    }
}

impl fmt::Display for Rule {
    /// On one line, as in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T: ToString>(
            f: &mut fmt::Formatter<'_>,
            name: &str,
            values: impl Iterator<Item = T>,
        ) -> fmt::Result {
            let values: Vec<String> = values.map(|value| format!("{:?}", value.to_string())).collect();
            if values.is_empty() { Ok(()) } else { write!(f, ", {name} = [{}]", values.join(", ")) }
        }
        fn flag(f: &mut fmt::Formatter<'_>, name: &str, value: Option<bool>) -> fmt::Result {
            value.map_or(Ok(()), |value| write!(f, ", {name} = {value}"))
        }
        let verdict = match self.verdict {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
        };
        let actions: Vec<String> = self.actions.iter().map(|a| format!("{:?}", a.as_str())).collect();
        write!(f, "{verdict} = [{}]", actions.join(", "))?;
        list(f, "users", self.users.iter())?;
        list(f, "clients", self.clients.iter())?;
        list(f, "addresses", self.addresses.iter())?;
        flag(f, "anonymous", self.anonymous)?;
        flag(f, "certificate", self.certificate)?;
        list(f, "topics", self.topics.iter())?;
        list(f, "names", self.names.iter())?;
        flag(f, "retain", self.retain)?;
        flag(f, "will", self.will)
    }
}
