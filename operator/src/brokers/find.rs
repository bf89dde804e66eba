//! Which Broker an object means. Pure.

use std::fmt;
use std::sync::Arc;

use weir_operator_api::{Broker, BrokerRef};

/// A Broker by its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BrokerId {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl BrokerId {
    /// The place of `broker`.
    pub(crate) fn of(broker: &Broker) -> Self {
        let metadata = &broker.metadata;
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for BrokerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The Brokers of the namespaces that are watched. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) brokers: Arc<[Arc<Broker>]>,
    /// What else there is, or may be.
    pub(crate) unknown: Arc<[Unknown]>,
}

/// Brokers of which this operator does not know what they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unknown {
    pub(crate) namespace: String,
    /// That one; none: whatever is in the namespace.
    pub(crate) name: Option<String>,
    /// What to do about it.
    pub(crate) why: String,
}

impl Unknown {
    fn is(&self, id: &BrokerId) -> bool {
        self.namespace == id.namespace && self.name.as_ref().is_none_or(|name| *name == id.name)
    }

    /// Whether an object that names `wanted` could mean it.
    fn may_be(&self, wanted: Option<&BrokerRef>) -> bool {
        wanted.is_none_or(|BrokerRef { name, namespace }| {
            namespace.as_ref().is_none_or(|namespace| *namespace == self.namespace)
                && self.name.as_ref().is_none_or(|own| own == name)
        })
    }
}

/// Where an object belongs.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// To this Broker.
    At(Arc<Broker>),
    /// There is no such Broker.
    Missing(String),
    /// It could mean several.
    Ambiguous(String),
    /// That one serves other namespaces only.
    NotAllowed(String),
    /// It was declared at a Broker that is there still, and now names another.
    Moved(String),
    /// To one of which it is not known what it is.
    Unknown(String),
}

/// The Broker that an object of `namespace` means, which names `wanted` and was last declared at `declared`.
///
/// What was declared stays where it is as long as that Broker exists: another one that comes must not make it ambiguous.
/// An object that is being `deleted` is released where it was declared, whatever it names now. What may belong to a Broker
/// that is not known goes to no other one.
pub(crate) fn find(
    known: &Known,
    namespace: &str,
    wanted: Option<&BrokerRef>,
    declared: Option<&BrokerId>,
    deleted: bool,
) -> Place {
    let Known { brokers, unknown } = known;
    if let Some(home) = declared.and_then(|id| unknown.iter().find(|unknown| unknown.is(id))) {
        return Place::Unknown(home.why.clone());
    }
    let home = declared.and_then(|declared| brokers.iter().find(|broker| BrokerId::of(broker) == *declared));
    if let Some(home) = home {
        let id = BrokerId::of(home);
        let same = wanted.is_none_or(|wanted| {
            wanted.name == id.name
                && wanted.namespace.as_ref().is_none_or(|namespace| *namespace == id.namespace)
        });
        return match (deleted, same, allows(home, namespace)) {
            (true, ..) | (false, true, true) => Place::At(home.clone()),
            (false, true, false) => not_allowed(&id, namespace),
            (false, false, _) => Place::Moved(format!(
                "it was declared at the Broker {id} and is there still: set brokerRef back, or delete the object and \
                 make it anew"
            )),
        };
    }
    let named: Vec<&Arc<Broker>> = brokers
        .iter()
        .filter(|broker| match wanted {
            Some(BrokerRef { name, namespace }) => {
                let id = BrokerId::of(broker);
                id.name == *name && namespace.as_ref().is_none_or(|namespace| *namespace == id.namespace)
            }
            None => true,
        })
        .collect();
    let own: Vec<&Arc<Broker>> =
        named.iter().copied().filter(|broker| BrokerId::of(broker).namespace == namespace).collect();
    let candidates = match own.is_empty() {
        false => own,
        true => {
            let mut unknown = unknown.iter().filter(|unknown| unknown.may_be(wanted));
            if let Some(own) = unknown.clone().find(|unknown| unknown.namespace == namespace) {
                return Place::Unknown(own.why.clone());
            }
            let allowing: Vec<_> = named.iter().copied().filter(|broker| allows(broker, namespace)).collect();
            if let (true, Some(other)) = (allowing.is_empty(), unknown.next()) {
                return Place::Unknown(other.why.clone());
            }
            allowing
        }
    };
    match (candidates.as_slice(), named.as_slice()) {
        ([broker], _) => Place::At((*broker).clone()),
        ([], []) => Place::Missing(match wanted {
            Some(BrokerRef { name, namespace: Some(namespace) }) => {
                format!("there is no Broker {namespace}/{name}")
            }
            Some(BrokerRef { name, namespace: None }) => {
                format!("there is no Broker {name} in any namespace")
            }
            None => "there is no Broker; make one, or let brokerRef name it".to_owned(),
        }),
        ([], [broker]) => not_allowed(&BrokerId::of(broker), namespace),
        ([], several) => Place::NotAllowed(format!(
            "none of the Brokers {} serves the namespace {namespace}; add it to spec.allowedNamespaces of one",
            names(several)
        )),
        (several, _) => Place::Ambiguous(format!(
            "it could be any of the Brokers {}; let brokerRef say which by name and namespace",
            names(several)
        )),
    }
}

fn allows(broker: &Broker, namespace: &str) -> bool {
    BrokerId::of(broker).namespace == namespace
        || broker.spec.allowed_namespaces.iter().any(|allowed| allowed == "*" || allowed == namespace)
}

fn not_allowed(id: &BrokerId, namespace: &str) -> Place {
    Place::NotAllowed(format!(
        "the Broker {id} does not serve the namespace {namespace}; add it to its spec.allowedNamespaces"
    ))
}

fn names(brokers: &[&Arc<Broker>]) -> String {
    let mut names: Vec<String> = brokers.iter().map(|broker| BrokerId::of(broker).to_string()).collect();
    names.sort();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn broker(place: &str, allowed: &[&str]) -> Arc<Broker> {
        let (namespace, name) = place.split_once('/').unwrap();
        let broker = json!({
            "apiVersion": "weir.dev/v1alpha1",
            "kind": "Broker",
            "metadata": { "name": name, "namespace": namespace },
            "spec": { "store": { "embedded": { "storage": "1Gi" } }, "allowedNamespaces": allowed },
        });
        Arc::new(serde_json::from_value(broker).unwrap())
    }

    fn reference(text: &str) -> BrokerRef {
        match text.split_once('/') {
            Some((namespace, name)) => {
                BrokerRef { name: name.to_owned(), namespace: Some(namespace.to_owned()) }
            }
            None => BrokerRef { name: text.to_owned(), namespace: None },
        }
    }

    /// What an object of the namespace `city` means.
    fn look(brokers: &[Arc<Broker>], wanted: &str, declared: &str, deleted: bool) -> String {
        let known = Known { brokers: brokers.into(), ..Known::default() };
        look_in(&known, wanted, declared, deleted)
    }

    fn look_in(known: &Known, wanted: &str, declared: &str, deleted: bool) -> String {
        let wanted = (!wanted.is_empty()).then(|| reference(wanted));
        let declared = declared
            .split_once('/')
            .map(|(namespace, name)| BrokerId { namespace: namespace.to_owned(), name: name.to_owned() });
        match find(known, "city", wanted.as_ref(), declared.as_ref(), deleted) {
            Place::At(broker) => BrokerId::of(&broker).to_string(),
            Place::Missing(_) => "missing".to_owned(),
            Place::Ambiguous(_) => "ambiguous".to_owned(),
            Place::NotAllowed(_) => "not allowed".to_owned(),
            Place::Moved(_) => "moved".to_owned(),
            Place::Unknown(_) => "unknown".to_owned(),
        }
    }

    #[test]
    fn what_may_belong_to_a_broker_that_is_not_known_goes_to_no_other() {
        let all = ["*"].as_slice();
        let one = |place: &str| {
            let (namespace, name) = place.split_once('/').unwrap();
            let name = (name != "*").then(|| name.to_owned());
            Unknown { namespace: namespace.to_owned(), name, why: String::new() }
        };
        for (brokers, unknown, wanted, declared, deleted, expected) in [
            // One Broker cannot be read.
            (vec![], "city/main", "", "", false, "unknown"),
            (vec![], "city/main", "main", "", false, "unknown"),
            (vec![], "city/main", "other", "", false, "missing"),
            (vec![broker("msg/other", all)], "city/main", "", "", false, "unknown"),
            (vec![broker("msg/other", all)], "city/main", "", "city/main", false, "unknown"),
            (vec![broker("msg/other", all)], "city/main", "", "city/main", true, "unknown"),
            (vec![broker("msg/other", all)], "city/main", "other", "", false, "msg/other"),
            (vec![broker("city/other", all)], "city/main", "", "", false, "city/other"),
            (vec![broker("msg/other", all)], "msg/main", "", "", false, "msg/other"),
            (vec![broker("msg/other", &[])], "msg/main", "", "", false, "unknown"),
            (vec![], "msg/main", "msg/main", "", true, "unknown"),
            // Those of a namespace cannot be listed.
            (vec![broker("msg/main", all)], "town/*", "", "", false, "msg/main"),
            (vec![broker("msg/main", all)], "town/*", "", "msg/main", true, "msg/main"),
            (vec![broker("msg/main", all)], "town/*", "town/main", "", false, "unknown"),
            (vec![broker("msg/main", all)], "town/*", "", "town/main", true, "unknown"),
            (vec![broker("msg/main", all)], "town/*", "msg/other", "", true, "missing"),
            (vec![broker("msg/main", all)], "city/*", "main", "", false, "unknown"),
            (vec![], "town/*", "main", "", false, "unknown"),
        ] {
            let known = Known { brokers: brokers.into(), unknown: [one(unknown)].into() };
            let found = look_in(&known, wanted, declared, deleted);
            assert_eq!(found, expected, "{unknown}: {wanted} {declared} {deleted}");
        }
    }

    #[test]
    fn an_object_means_one_broker() {
        let all = ["*"].as_slice();
        for (brokers, wanted, declared, deleted, expected) in [
            (vec![], "", "", false, "missing"),
            (vec![], "main", "", false, "missing"),
            (vec![broker("city/main", &[])], "", "", false, "city/main"),
            (vec![broker("city/main", &[])], "main", "", false, "city/main"),
            (vec![broker("city/main", &[])], "other", "", false, "missing"),
            (vec![broker("msg/main", all)], "", "", false, "msg/main"),
            (vec![broker("msg/main", &["city"])], "main", "", false, "msg/main"),
            (vec![broker("msg/main", &["town"])], "main", "", false, "not allowed"),
            (vec![broker("msg/main", &["town"])], "", "", false, "not allowed"),
            (vec![broker("msg/main", all), broker("city/main", &[])], "main", "", false, "city/main"),
            (vec![broker("msg/main", all), broker("city/main", &[])], "msg/main", "", false, "msg/main"),
            (vec![broker("a/main", all), broker("b/main", all)], "", "", false, "ambiguous"),
            (vec![broker("a/main", all), broker("b/main", &[])], "main", "", false, "a/main"),
            (vec![broker("a/main", all), broker("b/main", all)], "b/main", "", false, "b/main"),
            // What was declared stays.
            (vec![broker("a/main", all), broker("b/main", all)], "", "a/main", false, "a/main"),
            (vec![broker("a/main", all), broker("b/main", all)], "b/main", "a/main", false, "moved"),
            (vec![broker("a/main", all), broker("b/main", all)], "b/main", "a/main", true, "a/main"),
            (vec![broker("a/main", &["town"])], "", "a/main", false, "not allowed"),
            (vec![broker("a/main", &["town"])], "", "a/main", true, "a/main"),
            (vec![broker("b/main", all)], "", "a/main", false, "b/main"),
        ] {
            assert_eq!(look(&brokers, wanted, declared, deleted), expected, "{wanted} {declared} {deleted}");
        }
    }
}
