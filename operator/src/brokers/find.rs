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
}

/// The Broker that an object of `namespace` means, which names `wanted` and was last declared at `declared`.
///
/// What was declared stays where it is as long as that Broker exists: another one that comes must not make it ambiguous.
/// An object that is being `deleted` is released where it was declared, whatever it names now.
pub(crate) fn find(
    brokers: &[Arc<Broker>],
    namespace: &str,
    wanted: Option<&BrokerRef>,
    declared: Option<&BrokerId>,
    deleted: bool,
) -> Place {
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
        true => named.iter().copied().filter(|broker| allows(broker, namespace)).collect(),
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
        let wanted = (!wanted.is_empty()).then(|| reference(wanted));
        let declared = declared
            .split_once('/')
            .map(|(namespace, name)| BrokerId { namespace: namespace.to_owned(), name: name.to_owned() });
        match find(brokers, "city", wanted.as_ref(), declared.as_ref(), deleted) {
            Place::At(broker) => BrokerId::of(&broker).to_string(),
            Place::Missing(_) => "missing".to_owned(),
            Place::Ambiguous(_) => "ambiguous".to_owned(),
            Place::NotAllowed(_) => "not allowed".to_owned(),
            Place::Moved(_) => "moved".to_owned(),
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
