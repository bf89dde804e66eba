//! Slows down whoever guesses: failures are counted for each address and each user, make the next refusal come later,
//! and from some number on credentials are not looked at any more until it has been quiet for a while.
//!
//! The numbers are bounded, whoever makes addresses and users up. Who holds 16,000 networks can push others'
//! counts out; the counts of the users stay.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use weir_env::seed::SeededHash;

use crate::address::household;
use crate::bounded::Bounded;

/// When guessing is slowed and when it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThrottleConfig {
    /// Wait before the first refusal; it doubles with each failure.
    pub delay_first: Duration,
    /// Longest wait.
    pub delay_max: Duration,
    /// Failures of an address (IPv6: a /64) until its credentials are not looked at.
    pub address_failures_max: u32,
    /// Failures of a user name until credentials for it are not looked at. Higher, because strangers can make them.
    pub user_failures_max: u32,
    /// Quiet time that halves a count.
    pub half_life: Duration,
    /// Addresses, and user names, that are remembered.
    pub entries_max: usize,
}

impl Default for ThrottleConfig {
    fn default() -> Self {
        Self {
            delay_first: Duration::from_millis(100),
            delay_max: Duration::from_secs(5),
            address_failures_max: 20,
            user_failures_max: 100,
            half_life: Duration::from_secs(60),
            entries_max: 16_384,
        }
    }
}

/// Counts failures.
#[derive(Debug)]
pub struct Throttle {
    config: ThrottleConfig,
    addresses: Bounded<IpAddr, Failures>,
    /// By the hash of their name, which may be long.
    users: Bounded<u64, Failures>,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Throttle {
    /// Nobody has failed.
    #[must_use]
    pub fn new(config: ThrottleConfig) -> Self {
        let (addresses, users) = (Bounded::new(config.entries_max), Bounded::new(config.entries_max));
        Self { config, addresses, users }
    }

    /// Whether credentials of `user` from `address` are to be looked at. Those that name no user, such as a wrong
    /// token, count for the address alone.
    #[must_use]
    pub fn admits(&self, address: Option<IpAddr>, user: Option<&str>, now: Instant) -> bool {
        self.address_failures(address, now) < self.config.address_failures_max
            && self.user_failures(user, now) < self.config.user_failures_max
    }

    /// They were wrong: how long to wait before saying so.
    pub fn failed(&mut self, address: Option<IpAddr>, user: Option<&str>, now: Instant) -> Duration {
        let of_address = self.address_failures(address, now).saturating_add(1);
        if let Some(address) = address {
            self.addresses.insert(household(address), Failures { count: of_address, last: now });
        }
        let of_user = self.user_failures(user, now).saturating_add(1);
        if let Some(user) = user {
            self.users.insert(hash(user), Failures { count: of_user, last: now });
        }
        let doublings = of_address.max(of_user).saturating_sub(1).min(31);
        self.config.delay_first.saturating_mul(1 << doublings).min(self.config.delay_max)
    }

    /// They were right: the user's failures are forgotten. Those of the address stay, since whoever has one
    /// account could go on guessing the others'.
    pub fn succeeded(&mut self, user: &str) {
        self.users.remove(&hash(user));
    }

    /// How many addresses and users are remembered.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.addresses.len() + self.users.len()
    }

    fn address_failures(&self, address: Option<IpAddr>, now: Instant) -> u32 {
        address.and_then(|address| self.addresses.get(&household(address))).map_or(0, |f| self.left(*f, now))
    }

    fn user_failures(&self, user: Option<&str>, now: Instant) -> u32 {
        user.and_then(|user| self.users.get(&hash(user))).map_or(0, |failures| self.left(*failures, now))
    }

    fn left(&self, failures: Failures, now: Instant) -> u32 {
        let quiet = now.saturating_duration_since(failures.last).as_millis();
        let halvings = quiet / self.config.half_life.as_millis().max(1);
        failures.count.checked_shr(u32::try_from(halvings).unwrap_or(u32::MAX)).unwrap_or(0)
    }
}

fn hash(user: &str) -> u64 {
    SeededHash::default().hash_one(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
    fn now() -> Instant {
        Instant::now()
    }

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn refusals_come_later_and_later_and_then_without_a_look() {
        let now = now();
        let config = ThrottleConfig::default();
        let mut throttle = Throttle::new(config);
        let mut last = Duration::ZERO;
        for n in 0..config.address_failures_max {
            assert!(throttle.admits(address(1), Some("alice"), now), "{n}");
            let delay = throttle.failed(address(1), Some(&format!("user-{n}")), now);
            assert!(delay > last || delay == config.delay_max, "{n}");
            last = delay;
        }
        assert_eq!(last, config.delay_max);
        assert!(!throttle.admits(address(1), Some("alice"), now), "the address has failed often enough");
        assert!(throttle.admits(address(2), Some("alice"), now));
        assert!(throttle.admits(None, Some("alice"), now), "a Unix socket has no address");
    }

    #[test]
    fn a_user_is_protected_from_many_addresses() {
        let now = now();
        let mut throttle = Throttle::new(ThrottleConfig::default());
        for n in 0..100_u8 {
            assert!(throttle.admits(address(n), Some("alice"), now));
            throttle.failed(address(n), Some("alice"), now);
        }
        assert!(!throttle.admits(address(200), Some("alice"), now));
        assert!(throttle.admits(address(200), Some("bob"), now));
        throttle.succeeded("alice");
        assert!(throttle.admits(address(200), Some("alice"), now));
    }

    #[test]
    fn quiet_time_forgives() {
        let now = now();
        let config = ThrottleConfig::default();
        let mut throttle = Throttle::new(config);
        for _ in 0..config.address_failures_max {
            throttle.failed(address(1), Some("alice"), now);
        }
        let almost = now + config.half_life - Duration::from_millis(1);
        assert!(!throttle.admits(address(1), Some("alice"), almost));
        assert!(throttle.admits(address(1), Some("alice"), now + config.half_life));
        let much_later = now + config.half_life * 40;
        assert_eq!(throttle.failed(address(1), Some("alice"), much_later), config.delay_first);
    }

    #[test]
    fn success_of_one_user_does_not_clear_its_address() {
        let now = now();
        let mut throttle = Throttle::new(ThrottleConfig::default());
        for n in 0..20 {
            throttle.failed(address(1), Some(&format!("user-{n}")), now);
            throttle.succeeded("mallory");
        }
        assert!(!throttle.admits(address(1), Some("mallory"), now));
    }

    #[test]
    fn made_up_addresses_and_users_are_bounded() {
        let now = now();
        let mut throttle = Throttle::new(ThrottleConfig { entries_max: 100, ..ThrottleConfig::default() });
        for n in 0..10_000_u32 {
            throttle.failed(Some(IpAddr::from(n.to_be_bytes())), Some(&n.to_string()), now);
            assert!(throttle.entries() <= 200);
        }
    }
}
