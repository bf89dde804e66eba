//! Whether an object that is there already is this Broker's to change. Pure: knows no client.
//!
//! Objects are applied with force, so that what people change is put right. What others have made under the same name must not
//! be put right.

use kube::core::{ObjectMeta, ResourceExt as _};
use weir_operator_api::{Broker, GROUP};

use super::desired::BROKER_LABEL;
use crate::conditions::Verdict;

const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "weir-operator");

/// Whether the object of this `kind` may be changed for `broker`; if not, what to say of the Broker.
pub(super) fn check(broker: &Broker, kind: &str, there: &ObjectMeta) -> Result<(), Verdict> {
    let name = broker.name_any();
    let object = format!(
        "the {kind} {}/{}",
        there.namespace.as_deref().unwrap_or_default(),
        there.name.as_deref().unwrap_or_default()
    );
    let owners = there.owner_references.as_deref().unwrap_or_default();
    let Some(owner) = owners.iter().find(|owner| owner.controller == Some(true)) else {
        let label = |key: &str| there.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
        // The volume of an embedded store, and what stays when a Broker is deleted without what it owns.
        if label(MANAGED_BY.0) == Some(MANAGED_BY.1) && label(BROKER_LABEL) == Some(name.as_str()) {
            return Ok(());
        }
        return Err(Verdict::stuck(
            "NameTaken",
            format!(
                "{object} is there and was not made for this Broker: delete it, choose another name for the Broker, or hand it \
                 over with the labels {}={} and {BROKER_LABEL}={name}",
                MANAGED_BY.0, MANAGED_BY.1
            ),
        ));
    };
    if Some(&owner.uid) == broker.metadata.uid.as_ref() {
        return Ok(());
    }
    let is_ours = owner.kind == "Broker" && owner.api_version.starts_with(&format!("{GROUP}/"));
    if is_ours && owner.name == name {
        let message = format!("{object} is of an earlier Broker of this name and about to be deleted");
        return Err(Verdict::working("NameTaken", message));
    }
    let message = format!(
        "{object} belongs to the {} {}: delete it, or choose another name for the Broker",
        owner.kind, owner.name
    );
    Err(Verdict::stuck("NameTaken", message))
}
