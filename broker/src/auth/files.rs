//! Files of users, rules and keys, read as a whole: either all of them are right, or every mistake is reported with
//! file and line. Blocking.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use weir_auth::{Algorithms, JwtConfig, JwtKeys, JwtVerifier, PasswordFile, Problem, Rules};

use super::State;
use crate::config::{AuthConfig, JwtSettings};

/// Largest file.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Everything that is wrong, as `FILE:LINE: what`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// Reads every file, keeps nothing, and says in a line each what they hold.
///
/// # Errors
/// Every mistake.
pub fn check(config: &AuthConfig) -> Result<Vec<String>, Problems> {
    let state = load(config)?;
    let mut lines = Vec::new();
    if let (Some(path), Some(users)) = (&config.users_file, &state.users) {
        lines.push(format!("{}: {} users", path.display(), users.len()));
    }
    if let (Some(path), Some(rules)) = (config.rules(), &state.rules) {
        lines.push(format!("{}: {} rules", path.display(), rules.all().len()));
    }
    let jwt = [&config.jwt.key_file, &config.jwt.jwks_file, &config.jwt.secret_file];
    lines.extend(jwt.into_iter().flatten().map(|path| format!("{}: verifies tokens", path.display())));
    if config.certificate_as_user {
        lines.push("the name in a verified client certificate is the user name".to_owned());
    }
    Ok(lines)
}

/// Reads every file that `config` names.
pub(super) fn load(config: &AuthConfig) -> Result<State, Problems> {
    let mut problems = Vec::new();
    let mut keep = |result: Result<(), Vec<String>>| problems.extend(result.err().unwrap_or_default());
    let mut state = State::default();
    if let Some(path) = &config.users_file {
        keep(users(path).map(|users| state.users = Some(Arc::new(users))));
    }
    keep(jwt(&config.jwt).map(|jwt| state.jwt = jwt));
    keep(rules(config).map(|rules| state.rules = rules.map(Arc::new)));
    if problems.is_empty() { Ok(state) } else { Err(Problems(problems)) }
}

/// Reads the rules; `None` if none are configured.
///
/// # Errors
/// Every mistake in them.
pub fn load_rules(config: &AuthConfig) -> Result<Option<Rules>, Problems> {
    rules(config).map_err(Problems)
}

fn rules(config: &AuthConfig) -> Result<Option<Rules>, Vec<String>> {
    let Some(path) = config.rules() else { return Ok(None) };
    let text = read(path)?;
    let rules = if config.rules_file.is_some() {
        Rules::parse(&text)
    } else {
        Rules::parse_configuration(&text).and_then(|rules| {
            // It had some when the broker started.
            let message = "there is no [[auth.rules]] any more".to_owned();
            rules.ok_or_else(|| vec![Problem { line: 0, message }])
        })
    };
    rules.map(Some).map_err(|problems| at(path, &problems))
}

fn users(path: &Path) -> Result<PasswordFile, Vec<String>> {
    PasswordFile::parse(&read(path)?).map_err(|problems| at(path, &problems))
}

fn jwt(settings: &JwtSettings) -> Result<Option<JwtVerifier>, Vec<String>> {
    let mut keys: Option<JwtKeys> = None;
    let mut problems = Vec::new();
    let mut add = |path: &Path, parse: &dyn Fn(&str) -> Result<JwtKeys, String>| match read(path)
        .and_then(|text| parse(&text).map_err(|error| vec![in_file(path, &error)]))
    {
        Ok(more) => {
            keys = Some(match keys.take() {
                Some(keys) => keys.and(more),
                None => more,
            });
        }
        Err(more) => problems.extend(more),
    };
    if let Some(path) = &settings.key_file {
        add(path, &JwtKeys::from_pem);
    }
    if let Some(path) = &settings.jwks_file {
        add(path, &JwtKeys::from_jwks);
    }
    if let Some(path) = &settings.secret_file {
        add(path, &|text| JwtKeys::from_secret(text.trim_end_matches(['\r', '\n']).as_bytes()));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let Some(keys) = keys else { return Ok(None) };
    let algorithms = if settings.algorithms.is_empty() {
        // Keys of another kind than the algorithm's never verify.
        let secret = settings.secret_file.is_some();
        if secret { Algorithms::all() } else { Algorithms::asymmetric() }
    } else {
        Algorithms::parse(settings.algorithms.iter().map(String::as_str)).map_err(|error| vec![error])?
    };
    let config = JwtConfig {
        algorithms,
        audience: settings.audience.clone(),
        issuer: settings.issuer.clone(),
        user_claim: settings.user_claim.clone(),
        leeway: settings.leeway,
    };
    Ok(Some(JwtVerifier::new(config, keys)))
}

fn read(path: &Path) -> Result<String, Vec<String>> {
    let read = || {
        let length = std::fs::metadata(path)?.len();
        if length > FILE_BYTES_MAX {
            return Err(std::io::Error::other(format!("{length} bytes; allowed: {FILE_BYTES_MAX}")));
        }
        std::fs::read_to_string(path)
    };
    read().map_err(|error| vec![in_file(path, &format!("can't be read: {error}"))])
}

fn in_file(path: &Path, message: &str) -> String {
    format!("{}: {message}", path.display())
}

fn at(path: &Path, problems: &[Problem]) -> Vec<String> {
    let show = |problem: &Problem| match problem.line {
        0 => in_file(path, &problem.message),
        line => format!("{}:{line}: {}", path.display(), problem.message),
    };
    problems.iter().map(show).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users");
        let file = std::fs::File::create(&path).unwrap();
        // Without blocks on the disk.
        file.set_len(FILE_BYTES_MAX + 1).unwrap();
        let problems = read(&path).unwrap_err();
        assert!(problems[0].ends_with("268435457 bytes; allowed: 268435456"), "{problems:?}");
    }
}
