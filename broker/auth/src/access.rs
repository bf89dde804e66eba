//! The rules as one client meets them: what concerns others is left out, so that a publish costs no more than
//! the rules that can decide it. Allocates nothing after it is made.

use std::net::IpAddr;
use std::sync::Arc;

use bytestring::ByteString;

use crate::{Client, Decision, Request, Rules};

/// What one client may do, by the rules that were in force when it was made.
#[derive(Clone, Debug)]
pub struct Access {
    rules: Arc<Rules>,
    /// Positions of the rules that concern the client.
    concerning: Box<[u16]>,
    user: Option<ByteString>,
    client_id: ByteString,
    address: Option<IpAddr>,
    certificate: bool,
}

impl Access {
    /// Of `client`, under `rules`.
    #[must_use]
    pub fn new(rules: Arc<Rules>, client: &Client<'_>) -> Self {
        let concerning = rules
            .all()
            .iter()
            .enumerate()
            .filter(|(_, rule)| rule.concerns(client).is_ok())
            .filter_map(|(at, _)| u16::try_from(at).ok())
            .collect();
        Self {
            concerning,
            user: client.user.map(|user| user.to_owned().into()),
            client_id: client.client_id.to_owned().into(),
            address: client.address,
            certificate: client.certificate,
            rules,
        }
    }

    /// The same client under other rules.
    #[must_use]
    pub fn under(&self, rules: Arc<Rules>) -> Self {
        Self::new(rules, &self.client())
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> Client<'_> {
        Client {
            user: self.user.as_deref(),
            client_id: &self.client_id,
            address: self.address,
            certificate: self.certificate,
        }
    }

    /// What the rules say of a request.
    #[must_use]
    pub fn decide(&self, request: &Request<'_>) -> Decision<'_> {
        let all = self.rules.all();
        let concerning = self.concerning.iter().filter_map(|at| all.get(usize::from(*at)));
        self.rules.first_of(concerning, &self.client(), request)
    }
}
