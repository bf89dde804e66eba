//! Randomness, and hash maps whose order depends on nothing but the seed.
//!
//! A [`Seed`] is a tree: [`Seed::fork`] names a branch, so that adding a consumer of random numbers in one
//! place does not change what another place draws.

use std::hash::{BuildHasher, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

static HASH_SEED: AtomicU64 = AtomicU64::new(0);

/// A source of random numbers that a seed fully determines. Clones share one sequence.
#[derive(Clone, Debug)]
pub struct Seed {
    root: u64,
    rng: Arc<Mutex<StdRng>>,
}

impl Seed {
    /// A seed that nobody can predict, from the operating system.
    #[must_use]
    pub fn from_entropy() -> Self {
        Self::fixed(rand::rng().next_u64())
    }

    /// The seed `root`: the same numbers in every run.
    #[must_use]
    pub fn fixed(root: u64) -> Self {
        Self { root, rng: Arc::new(Mutex::new(StdRng::seed_from_u64(root))) }
    }

    /// The independent branch called `name`; the same name gives the same branch.
    #[must_use]
    pub fn fork(&self, name: &str) -> Self {
        Self::fixed(xxhash_rust::xxh3::xxh3_64_with_seed(name.as_bytes(), self.root))
    }

    /// Makes hash maps created from now on depend on this seed, so that outsiders cannot choose keys that
    /// collide. Call once, before the first map.
    pub fn install_for_hashing(&self) {
        HASH_SEED.store(self.fork("hash").root, Ordering::Relaxed);
    }

    /// Sixty-four random bits.
    #[must_use]
    pub fn next_u64(&self) -> u64 {
        self.rng.lock().next_u64()
    }

    /// A random number below `bound`; zero if `bound` is zero.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }

    /// Sixteen random bytes, for identifiers.
    #[must_use]
    pub fn next_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        self.rng.lock().fill_bytes(&mut id);
        id
    }
}

/// Says which seeds a test with many of them runs instead of its own: one (`17`) or a range (`0..5000`).
const TRIALS_VARIABLE: &str = "WEIR_TEST_SEEDS";

/// The seeds of a test that runs many: the first `count`, or those that the environment variable
/// `WEIR_TEST_SEEDS` asks for.
///
/// # Panics
/// If the variable says anything else than `17` or `0..5000`.
pub fn trials(count: u64) -> impl Iterator<Item = Trial> {
    let asked = std::env::var(TRIALS_VARIABLE).ok();
    let seeds = asked.map_or(0..count, |asked| {
        parse_trials(&asked)
            .unwrap_or_else(|| panic!("{TRIALS_VARIABLE} is `17` or `0..5000`, not `{asked}`"))
    });
    seeds.map(Trial)
}

fn parse_trials(asked: &str) -> Option<Range<u64>> {
    match asked.split_once("..") {
        Some((from, to)) => Some(from.parse().ok()?..to.parse().ok()?),
        None => asked.parse().ok().map(|seed: u64| seed..seed.saturating_add(1)),
    }
}

/// One run of a test that runs many. Dropped by a panic it says how to repeat this run alone.
#[derive(Debug)]
pub struct Trial(u64);

impl Trial {
    /// What determines the run.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.0
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failing seed: {}; repeat it alone with {TRIALS_VARIABLE}={}", self.0, self.0);
        }
    }
}

/// A hash map seeded by [`Seed::install_for_hashing`].
#[expect(clippy::disallowed_types, reason = "the one place that names the std type: with our hasher")]
pub type HashMap<K, V> = std::collections::HashMap<K, V, SeededHash>;

/// A hash set seeded by [`Seed::install_for_hashing`].
#[expect(clippy::disallowed_types, reason = "the one place that names the std type: with our hasher")]
pub type HashSet<K> = std::collections::HashSet<K, SeededHash>;

/// XXH3-64 under the process's hash seed.
#[derive(Clone, Copy, Debug)]
pub struct SeededHash(u64);

impl Default for SeededHash {
    fn default() -> Self {
        Self(HASH_SEED.load(Ordering::Relaxed))
    }
}

impl BuildHasher for SeededHash {
    type Hasher = SeededHasher;

    fn build_hasher(&self) -> SeededHasher {
        SeededHasher { seed: self.0, state: State::Empty }
    }
}

/// Hashes one write at a time.
#[derive(Debug)]
pub struct SeededHasher {
    seed: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Empty,
    Hash(u64),
}

impl Hasher for SeededHasher {
    fn write(&mut self, bytes: &[u8]) {
        let seed = match self.state {
            State::Empty => self.seed,
            State::Hash(previous) => previous.rotate_left(23) ^ self.seed,
        };
        self.state = State::Hash(xxhash_rust::xxh3::xxh3_64_with_seed(bytes, seed));
    }

    fn write_u8(&mut self, n: u8) {
        // `str` writes a 0xff after its bytes: mix it in without a second full hash.
        self.state = match self.state {
            State::Empty => State::Hash(mix(self.seed, u64::from(n))),
            State::Hash(previous) => State::Hash(mix(previous, u64::from(n))),
        };
    }

    fn write_u64(&mut self, n: u64) {
        self.state = match self.state {
            State::Empty => State::Hash(mix(self.seed, n)),
            State::Hash(previous) => State::Hash(mix(previous, n)),
        };
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    fn write_u16(&mut self, n: u16) {
        self.write_u64(u64::from(n));
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn finish(&self) -> u64 {
        match self.state {
            State::Empty => self.seed,
            State::Hash(hash) => hash,
        }
    }
}

fn mix(a: u64, b: u64) -> u64 {
    let wide = u128::from(a ^ 0x9e37_79b9_7f4a_7c15) * u128::from(b ^ 0xd6e8_feb8_6659_fd93);
    #[expect(clippy::cast_possible_truncation, reason = "folds the 128-bit product into 64 bits")]
    {
        (wide as u64) ^ ((wide >> 64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_fixes_every_number_and_forks_are_independent() {
        let (a, b) = (Seed::fixed(7), Seed::fixed(7));
        let fork = a.fork("wills");
        assert_eq!(a.next_u64(), b.next_u64());
        assert_eq!(a.next_id(), b.next_id());
        assert_eq!(fork.next_u64(), b.fork("wills").next_u64());
        assert_ne!(b.fork("wills").next_u64(), b.fork("pods").next_u64());
    }

    #[test]
    fn trials_are_one_seed_or_a_range() {
        assert_eq!(parse_trials("17"), Some(17..18));
        assert_eq!(parse_trials("5..40"), Some(5..40));
        assert_eq!([parse_trials(""), parse_trials("5.."), parse_trials("all")], [None, None, None]);
    }

    #[test]
    fn maps_hold_what_is_put_in() {
        let mut map = HashMap::<String, u32>::default();
        for n in 0..1000 {
            map.insert(format!("key {n}"), n);
        }
        assert!((0..1000).all(|n| map.get(&format!("key {n}")) == Some(&n)));
    }

    #[test]
    fn mix_spreads_small_integers() {
        let hashes: std::collections::BTreeSet<u64> = (0..10_000).map(|n| mix(0, n) >> 40).collect();
        assert!(hashes.len() > 9_900, "{} distinct of 10000", hashes.len());
    }
}
