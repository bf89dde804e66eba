//! Brokers as the operator sees them: which one an object means, how it is reached, and what it was last known to have.
//! Owns one [`Link`] per Broker and the task that follows it. Knows no status and writes nothing to Kubernetes.

mod admin;
mod find;
mod follow;
mod ledger;
mod link;
mod pods;
mod remote;

pub(crate) use admin::{
    Admin, AdminError, Applied, Declaration, Kind, Outcome, Owner, Policy, Refusal, Released, State,
};
#[cfg(test)]
pub(crate) use admin::{Changes, Declared, Page, Pending, Told};
pub(crate) use find::{BrokerId, Known, Place, Unknown, find};
pub(crate) use follow::{Followers, Wake};
pub(crate) use link::{AWAY_GRACE, Health, Link, Links};
pub(crate) use pods::{Door, Pods, Whereabouts, watched};
pub(crate) use remote::Remote;
