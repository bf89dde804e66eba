//! Decisions for people: which rule decided, and why those before it did not. Slow and thorough.

use std::fmt;

use crate::rules::Miss;
use crate::{Client, Decision, Request, Rule, Rules, TopicPattern, Verdict};

/// Why a client may or may not do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation<'a> {
    /// What was decided, and by which rule.
    pub decision: Decision<'a>,
    /// In a few words.
    pub why: String,
    /// Rules before the one that decided, or all.
    pub passed: Vec<Passed<'a>>,
}

/// A rule that did not decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// Why it does not apply.
    pub why: &'static str,
}

impl Rules {
    /// Decides, and says why.
    #[must_use]
    pub fn explain<'a>(&'a self, client: &Client<'_>, request: &Request<'_>) -> Explanation<'a> {
        let mut passed = Vec::new();
        for rule in self.all() {
            match rule.concerns(client).and_then(|()| rule.applies(client, request)) {
                Ok(()) => {
                    let decision = Decision { verdict: rule.verdict, rule: Some(rule) };
                    return Explanation { decision, why: reason(rule, client, request), passed };
                }
                Err(Miss::Topic) => {
                    let miss = topics(request).map_or(Miss::Topic, |filter| rule.topic_miss(filter, client));
                    passed.push(Passed { rule, why: miss.words() });
                }
                Err(miss) => passed.push(Passed { rule, why: miss.words() }),
            }
        }
        let verdict = self.otherwise(request);
        let why = match verdict {
            Verdict::Allow => format!("no rule says who may {request}, so whoever comes in may"),
            Verdict::Deny => format!("no rule allows it to {request}, and what no rule allows is denied"),
        };
        Explanation { decision: Decision { verdict, rule: None }, why, passed }
    }
}

fn topics<'a>(request: &Request<'a>) -> Option<&'a str> {
    match request {
        Request::Publish { topic, .. } => Some(topic.as_str()),
        Request::Subscribe { filter } | Request::Create { filter, .. } => Some(filter.as_str()),
        Request::Connect | Request::Consume { .. } => None,
    }
}

fn reason(rule: &Rule, client: &Client<'_>, request: &Request<'_>) -> String {
    let Some(filter) = topics(request) else {
        let verb = if rule.verdict == Verdict::Allow { "allows" } else { "denies" };
        return format!("the rule in line {} {verb} it to {request}", rule.line);
    };
    let takes = |pattern: &&TopicPattern| match rule.verdict {
        Verdict::Allow => pattern.covers(filter, client),
        Verdict::Deny => pattern.touches(filter, client),
    };
    let pattern = rule.topics.iter().find(takes).map_or("", TopicPattern::as_str);
    let line = rule.line;
    match rule.verdict {
        Verdict::Allow => {
            format!("the rule in line {line} allows it to {request}: `{pattern}` covers `{filter}`")
        }
        Verdict::Deny => {
            format!("the rule in line {line} denies it to {request}: `{pattern}` has topics of `{filter}`")
        }
    }
}

impl Miss {
    fn words(self) -> &'static str {
        match self {
            Self::Action => "it speaks of other actions",
            Self::User => "it is for other users",
            Self::ClientId => "it is for other client ids",
            Self::Address => "it is for other addresses",
            Self::Anonymous => "it is for clients with, or without, a user name",
            Self::Certificate => "it is for clients with, or without, a certificate",
            Self::Topic => "it speaks of other topics",
            Self::Placeholder => {
                "the name of the client cannot stand for %u or %c: it is empty or has + # / $ in it"
            }
            Self::CoversOnlyPart => "it allows only some of the topics, and one rule must allow all of them",
            Self::Name => "it speaks of other queues and streams",
            Self::Retain => "it is for publishes that are, or are not, retained",
            Self::Will => "it is for publishes that are, or are not, wills",
        }
    }
}

impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Connect => f.write_str("connect with this client id"),
            Request::Publish { topic, retain, will } => {
                let kind = match (retain, will) {
                    (false, false) => "",
                    (true, false) => ", retained",
                    (false, true) => ", as a will",
                    (true, true) => ", as a retained will",
                };
                write!(f, "publish to `{topic}`{kind}")
            }
            Request::Subscribe { filter } => write!(f, "subscribe to `{filter}`"),
            Request::Consume { name } => write!(f, "consume `{name}`"),
            Request::Create { name, filter } => write!(f, "create `{name}` on `{filter}`"),
        }
    }
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.decision.is_allowed() { "allowed" } else { "denied" };
        writeln!(f, "{word}: {}", self.why)?;
        if let Some(rule) = self.decision.rule {
            writeln!(f, "  line {}: {rule}", rule.line)?;
        }
        if !self.passed.is_empty() {
            writeln!(f, "rules that do not apply:")?;
            for Passed { rule, why } in &self.passed {
                writeln!(f, "  line {}: {why}\n    {rule}", rule.line)?;
            }
        }
        Ok(())
    }
}
