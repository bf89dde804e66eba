//! Queues and streams that come into being by a subscription of this connection.

use weir_codec::ReasonCode;
use weir_core::catalog::{ApplyError, ChangeError};
use weir_core::definition::{Definition, Kind};
use weir_topic::{Subscription, TopicFilter};

use super::Connection;
use super::external::{Refusal, derived_name, other_filter, resolve};
use crate::auto_create::Error;
use crate::metrics::AutoCreated;

/// What a subscription to something that does not exist comes to.
pub(super) enum Missing {
    /// It is to be made.
    Make(Box<Definition>),
    /// It is waited for; why, for the client.
    Wait(String),
}

impl Connection {
    /// What is to become of a subscription to a queue or stream that does not exist.
    pub(super) fn missing(&self, text: &str, to: &Subscription) -> Result<Missing, Refusal> {
        let policy = self.broker.auto_create.policy();
        let mut why = format!("{text} does not exist yet; delivery starts when it appears");
        let mut reason = ReasonCode::UnspecifiedError;
        if let Some((kind, name, filter)) = named(to)
            && let Some(definition) = policy.definition(kind, &name, filter.as_str())
        {
            let Err(denied) = self.may_create(&name, &filter) else {
                return Ok(Missing::Make(Box::new(definition)));
            };
            self.metrics.forbidden.inc(denied.what);
            reason = ReasonCode::NotAuthorized;
            why = format!(
                "{text} does not exist yet, and is {}; delivery starts when it appears",
                denied.text()
            );
        }
        if policy.wait {
            return Ok(Missing::Wait(why));
        }
        let text = match reason {
            ReasonCode::NotAuthorized => {
                format!("{text} does not exist, and you are not allowed to create it")
            }
            _ => format!("{text} does not exist"),
        };
        Err(Refusal { reason, text })
    }

    /// Makes what a granted subscription asks for. Somebody else may be quicker, and make it another way.
    pub(super) async fn create(&mut self, to: &Subscription, wanted: &Definition) -> Result<(), Refusal> {
        let made = self.broker.auto_create.make(&self.broker.core, wanted).await;
        let metrics = &self.metrics.auto_created;
        match made {
            Ok((object, is_new)) => {
                if is_new {
                    metrics.inc(AutoCreated::Created);
                    let definition = &object.definition;
                    tracing::info!(
                        client = %self.stored.client_id, kind = ?definition.kind, name = definition.name,
                        filter = definition.topic_filter, "created by a subscription"
                    );
                }
                // Its filter may not be the one that this client wants.
                let found = resolve(&self.broker.core.catalog().view(), to)?;
                match named(to) {
                    Some((_, name, asked)) if found.is_none() && object.filter.as_ref() != Some(&asked) => {
                        Err(other_filter(&name, &asked, object.filter.as_ref()))
                    }
                    _ => Ok(()),
                }
            }
            Err(error) => {
                metrics.inc(AutoCreated::Refused);
                let reason = match &error {
                    Error::Full(_) => ReasonCode::QuotaExceeded,
                    Error::Refused(ChangeError::Refused(ApplyError::Failed(_))) => {
                        ReasonCode::UnspecifiedError
                    }
                    Error::Refused(_) => ReasonCode::ImplementationSpecificError,
                };
                tracing::warn!(client = %self.stored.client_id, name = wanted.name, %error, "not created");
                Err(Refusal { reason, text: format!("{} was not created: {error}", wanted.name) })
            }
        }
    }
}

/// Kind, name and filter of what a subscription may create: both must be known.
fn named(to: &Subscription) -> Option<(Kind, String, TopicFilter)> {
    match to {
        Subscription::Queue { name, filter: Some(filter) } => {
            Some((Kind::Queue, name.as_str().to_owned(), filter.clone()))
        }
        Subscription::Stream { name, filter: Some(filter), .. } => {
            Some((Kind::Stream, name.as_str().to_owned(), filter.clone()))
        }
        Subscription::QueueByFilter { filter } => Some((Kind::Queue, derived_name(filter), filter.clone())),
        Subscription::StreamByFilter { filter, .. } => {
            Some((Kind::Stream, derived_name(filter), filter.clone()))
        }
        Subscription::Plain(_)
        | Subscription::Shared { .. }
        | Subscription::Queue { filter: None, .. }
        | Subscription::Stream { filter: None, .. } => None,
    }
}
