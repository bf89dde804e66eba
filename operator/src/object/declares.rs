//! How a kind says what it declares. The one place that tells MessageQueues from Streams.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;
use weir_operator_api::{BrokerRef, DeletionPolicy, MessageQueue, ObjectStatus, Problem, Stream};

use crate::brokers::{Kind, Policy};

/// A kind of object that declares a queue or a stream.
pub(crate) trait Declares:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
    /// What it declares.
    const KIND: Kind;

    /// Name at the Broker.
    fn backend(&self) -> &str;
    /// The Broker that it names.
    fn broker_ref(&self) -> Option<&BrokerRef>;
    /// What becomes of the messages.
    fn policy(&self) -> Policy;
    /// What is wrong with it.
    fn problems(&self) -> Vec<Problem>;
    /// What was said of it last.
    fn status(&self) -> Option<&ObjectStatus>;
    /// What it declares, as JSON.
    fn spec_json(&self) -> String;
}

impl Declares for MessageQueue {
    const KIND: Kind = Kind::Queue;

    fn backend(&self) -> &str {
        self.queue_name()
    }

    fn broker_ref(&self) -> Option<&BrokerRef> {
        self.spec.broker_ref.as_ref()
    }

    fn policy(&self) -> Policy {
        policy(self.spec.settings.deletion_policy)
    }

    fn problems(&self) -> Vec<Problem> {
        Self::problems(self)
    }

    fn status(&self) -> Option<&ObjectStatus> {
        self.status.as_ref()
    }

    fn spec_json(&self) -> String {
        json(&self.spec)
    }
}

impl Declares for Stream {
    const KIND: Kind = Kind::Stream;

    fn backend(&self) -> &str {
        self.stream_name()
    }

    fn broker_ref(&self) -> Option<&BrokerRef> {
        self.spec.broker_ref.as_ref()
    }

    fn policy(&self) -> Policy {
        policy(self.spec.settings.deletion_policy)
    }

    fn problems(&self) -> Vec<Problem> {
        Self::problems(self)
    }

    fn status(&self) -> Option<&ObjectStatus> {
        self.status.as_ref()
    }

    fn spec_json(&self) -> String {
        json(&self.spec)
    }
}

fn policy(policy: DeletionPolicy) -> Policy {
    match policy {
        DeletionPolicy::Retain => Policy::Retain,
        DeletionPolicy::Delete => Policy::Delete,
    }
}

fn json(spec: &impl Serialize) -> String {
    serde_json::to_string(spec).expect("a spec is JSON")
}
