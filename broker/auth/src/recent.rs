//! Clients that have just proved who they are, so that a storm of reconnects does not pay for each password again.
//!
//! What is kept is no password and no hash of it that could be tried elsewhere: it is an HMAC-SHA-256 of user,
//! password and the stored hash's stamp, under a key that is drawn when the process starts and never leaves it. Who can
//! read the process's memory could guess passwords against it faster than against Argon2id, but could read the passwords
//! of the next CONNECTs there as well. An entry ends after a few minutes, and at once when the user's line changes,
//! because the stamp is part of it.

use std::fmt;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;

use crate::bounded::Bounded;

/// Proofs there may be.
const PROOFS_MAX: usize = 20_000;

/// What one set of credentials comes to under the key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Proof([u8; 32]);

/// Proofs of the last minutes.
pub struct Recent {
    key: hmac::Key,
    until: Bounded<Proof, Instant>,
    lifetime: Duration,
}

impl Recent {
    /// Proofs that count for `lifetime`; at most 20,000 of them.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn new(lifetime: Duration) -> Result<Self, String> {
        let random = aws_lc_rs::rand::SystemRandom::new();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random)
            .map_err(|_| "no randomness for a key".to_owned())?;
        Ok(Self { key, until: Bounded::new(PROOFS_MAX), lifetime })
    }

    /// What these credentials come to. `stamp` is that of the user's line.
    #[must_use]
    pub fn proof(&self, user: &str, password: &[u8], stamp: u64) -> Proof {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&stamp.to_be_bytes());
        context.update(&(user.len() as u64).to_be_bytes());
        context.update(user.as_bytes());
        context.update(password);
        let mut proof = [0; 32];
        proof.copy_from_slice(context.sign().as_ref());
        Proof(proof)
    }

    /// Whether these credentials were verified lately.
    #[must_use]
    pub fn holds(&self, proof: &Proof, now: Instant) -> bool {
        self.until.get(proof).is_some_and(|until| now < *until)
    }

    /// They have just been verified.
    pub fn add(&mut self, proof: Proof, now: Instant) {
        if let Some(until) = now.checked_add(self.lifetime) {
            self.until.insert(proof, until);
        }
    }

    /// How many are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.until.len()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Recent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recent").field("proofs", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_proof_is_of_these_credentials_alone_and_ends() {
        let now = now();
        let mut recent = Recent::new(Duration::from_secs(60)).unwrap();
        recent.add(recent.proof("ab", b"c", 1), now);
        assert!(recent.holds(&recent.proof("ab", b"c", 1), now));
        for (user, password, stamp) in [("a", "bc", 1), ("ab", "d", 1), ("ab", "c", 2), ("ab", "", 1)] {
            assert!(!recent.holds(&recent.proof(user, password.as_bytes(), stamp), now), "{user} {password}");
        }
        let later = now + Duration::from_secs(60);
        assert!(!recent.holds(&recent.proof("ab", b"c", 1), later));
    }

    #[test]
    fn another_process_has_other_proofs() {
        let one = Recent::new(Duration::from_secs(1)).unwrap();
        let two = Recent::new(Duration::from_secs(1)).unwrap();
        assert!(one.proof("a", b"b", 1) != two.proof("a", b"b", 1));
    }

    #[test]
    fn there_are_never_more_than_there_may_be() {
        let now = now();
        let mut recent = Recent::new(Duration::from_secs(60)).unwrap();
        for n in 0..=2 * PROOFS_MAX as u64 {
            recent.add(recent.proof("a", b"b", n), now);
            assert!(recent.len() <= PROOFS_MAX);
        }
    }
}
