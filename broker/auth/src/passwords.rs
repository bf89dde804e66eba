//! A file of users and their hashed passwords. Knows no paths, and forgets what it verified.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, Params, PasswordHasher, PasswordVerifier};
use secrecy::{ExposeSecret, SecretString};
use std::fmt;
use std::hash::BuildHasher;

use weir_env::seed::{HashMap, SeededHash};

use crate::Problem;

/// Memory that one check of a password may take, in KiB: it is taken for each that runs at the same time.
const MEMORY_KIB_MAX: u32 = 256 * 1024;
/// Passes over it.
const PASSES_MAX: u32 = 64;
/// Lanes.
const LANES_MAX: u32 = 16;
/// Users there may be.
const USERS_MAX: usize = 1_000_000;
const ALGORITHM: &str = "argon2id";

/// Users and their passwords, one `user:$argon2id$...` a line. Lines that begin with `#` are comments.
pub struct PasswordFile {
    users: HashMap<Box<str>, SecretString>,
    /// What is verified for users that are not there, so that they cost the same time.
    stand_in: SecretString,
}

impl PasswordFile {
    /// Reads a file.
    ///
    /// # Errors
    /// Every mistake, with its line and without what may be secret.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        Self::parse_at_most(USERS_MAX, text)
    }

    fn parse_at_most(users_max: usize, text: &str) -> Result<Self, Vec<Problem>> {
        let mut users = HashMap::default();
        let mut problems = Vec::new();
        let mut params = None;
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut refuse =
                |message: &str| problems.push(Problem { line: at + 1, message: message.to_owned() });
            // Hashes hold no colon; names may.
            let Some((user, hash)) = line.rsplit_once(':').filter(|(user, _)| !user.is_empty()) else {
                refuse("allowed: USER:HASH, as `weir auth hash --user USER` prints");
                continue;
            };
            match check(hash) {
                Ok(of_hash) => params = params.or(Some(of_hash)),
                Err(message) => {
                    refuse(&message);
                    continue;
                }
            }
            if users.insert(user.into(), SecretString::from(hash)).is_some() {
                refuse(&format!("user `{user}` is there twice"));
            }
        }
        if users.len() > users_max {
            problems
                .push(Problem { line: 0, message: format!("{} users; allowed: {users_max}", users.len()) });
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let stand_in = hash_with(b"nobody", params.unwrap_or_default())
            .map_err(|message| vec![Problem { line: 0, message }])?;
        Ok(Self { users, stand_in: stand_in.into() })
    }

    /// How many users there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Whether `password` is that of `user`. Takes tens of milliseconds and megabytes, whether the user exists or
    /// not.
    #[must_use]
    pub fn verify(&self, user: &str, password: &[u8]) -> bool {
        let known = self.users.get(user);
        let hash = known.unwrap_or(&self.stand_in);
        let right = PasswordHash::new(hash.expose_secret())
            .is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok());
        right && known.is_some()
    }

    /// A number that changes when the password of `user` does; `None` if there is no such user.
    #[must_use]
    pub fn stamp(&self, user: &str) -> Option<u64> {
        self.users.get(user).map(|hash| SeededHash::default().hash_one(hash.expose_secret()))
    }
}

impl fmt::Debug for PasswordFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordFile").field("users", &self.users.len()).finish_non_exhaustive()
    }
}

/// Hashes a password for a file, with a salt of its own.
///
/// # Errors
/// If the system has no randomness.
pub fn hash_password(password: &[u8]) -> Result<String, String> {
    hash_with(password, Params::default())
}

fn hash_with(password: &[u8], params: Params) -> Result<String, String> {
    Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password(password)
        .map(|hash| hash.to_string())
        .map_err(|error| format!("password could not be hashed: {error}"))
}

/// Whether a hash can be verified, and at what cost.
fn check(hash: &str) -> Result<Params, String> {
    let hash = PasswordHash::new(hash)
        .map_err(|_| format!("no {ALGORITHM} hash stands behind the colon; `weir auth hash` makes one"))?;
    if hash.algorithm.as_str() != ALGORITHM {
        return Err(format!("{} is not allowed; allowed: {ALGORITHM}", hash.algorithm));
    }
    let params = Params::try_from(&hash).map_err(|error| format!("hash with wrong parameters: {error}"))?;
    if hash.hash.is_none() || hash.salt.is_none() {
        return Err("the hash ends too early: salt or hash is missing".to_owned());
    }
    if params.m_cost() > MEMORY_KIB_MAX || params.t_cost() > PASSES_MAX || params.p_cost() > LANES_MAX {
        return Err(format!(
            "hash with m={},t={},p={}; allowed: up to m={MEMORY_KIB_MAX},t={PASSES_MAX},p={LANES_MAX}",
            params.m_cost(),
            params.t_cost(),
            params.p_cost()
        ));
    }
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cheap(password: &str) -> String {
        hash_with(password.as_bytes(), Params::new(8, 1, 1, None).unwrap()).unwrap()
    }

    #[test]
    fn passwords_are_verified() {
        let text = format!("# people\n\nalice:{}\n  bob:x:{}  \n", cheap("secret"), cheap(""));
        let file = PasswordFile::parse(&text).unwrap();
        assert_eq!(file.len(), 2);
        assert!(file.verify("alice", b"secret"));
        assert!(!file.verify("alice", b"Secret"));
        assert!(!file.verify("alice", b""));
        assert!(file.verify("bob:x", b""));
        assert!(!file.verify("carol", b"nobody"), "the stand-in is nobody's password");
        assert!(!file.verify("", b""));
        assert!(file.stamp("alice").is_some() && file.stamp("carol").is_none());
        assert!(!format!("{file:?}").contains("argon2id"), "no hash in debug output");
    }

    #[test]
    fn users_that_are_not_there_cost_what_the_others_do() {
        let file = PasswordFile::parse(&format!("alice:{}\n", cheap("x"))).unwrap();
        let cost = |hash: &SecretString| {
            Params::try_from(&PasswordHash::new(hash.expose_secret()).unwrap()).unwrap()
        };
        let (own, other) = (cost(&file.users["alice"]), cost(&file.stand_in));
        assert_eq!(
            (own.m_cost(), own.t_cost(), own.p_cost()),
            (other.m_cost(), other.t_cost(), other.p_cost())
        );
    }

    #[test]
    fn mistakes_have_their_line_and_no_secret() {
        let good = cheap("secret");
        let costly = good.replace("m=8", "m=999999999");
        let other = good.replace("argon2id", "argon2i");
        let text = format!(
            "a:{good}\nplain\nb:hunter2\n:{good}\na:{good}\nc:{costly}\nd:{other}\ne:$argon2id$v=19\n"
        );
        let problems = PasswordFile::parse(&text).unwrap_err();
        let lines: Vec<usize> = problems.iter().map(|problem| problem.line).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6, 7, 8], "{problems:?}");
        let all = format!("{problems:?}");
        assert!(!all.contains("hunter2") && !all.contains("$v="), "{all}");
    }

    #[test]
    fn users_are_bounded() {
        let text = format!("a:{0}\nb:{0}\n", cheap("x"));
        assert_eq!(PasswordFile::parse_at_most(2, &text).unwrap().len(), 2);
        let problems = PasswordFile::parse_at_most(1, &text).unwrap_err();
        assert_eq!(problems[0].message, "2 users; allowed: 1");
    }

    #[test]
    fn hashes_are_salted() {
        let (one, two) = (hash_password(b"x").unwrap(), hash_password(b"x").unwrap());
        assert_ne!(one, two);
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{one}");
    }
}
