//! Who may connect and what they may do: which files say so. The files are read by [`crate::auth`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use weir_auth::Algorithms;

use super::settings::{PLAIN, Setting, one};
use super::value;

/// Where credentials and rules come from. Nothing set: nobody is asked who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthConfig {
    /// Users and their hashed passwords.
    pub users_file: Option<PathBuf>,
    /// Access rules, as `[[rules]]`.
    pub rules_file: Option<PathBuf>,
    /// The configuration file, if it has `[[auth.rules]]`.
    pub rules_in: Option<PathBuf>,
    /// The name in a verified certificate is the user name.
    pub certificate_as_user: bool,
    /// Tokens.
    pub jwt: JwtSettings,
    /// How often the files are looked at; zero: only at SIGHUP.
    pub reload_interval: Duration,
}

/// Which tokens are accepted. No file set: none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtSettings {
    /// Public keys in PEM.
    pub key_file: Option<PathBuf>,
    /// A JSON Web Key Set.
    pub jwks_file: Option<PathBuf>,
    /// A shared secret, for HS algorithms.
    pub secret_file: Option<PathBuf>,
    /// Names of signature algorithms; empty: all that fit the keys.
    pub algorithms: Vec<String>,
    /// Accepted values of `aud`; empty: any.
    pub audience: Vec<String>,
    /// Accepted values of `iss`; empty: any.
    pub issuer: Vec<String>,
    /// The claim that holds the user name.
    pub user_claim: String,
    /// How far clocks may be apart.
    pub leeway: Duration,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            users_file: None,
            rules_file: None,
            rules_in: None,
            certificate_as_user: false,
            jwt: JwtSettings::default(),
            reload_interval: Duration::from_secs(5),
        }
    }
}

impl Default for JwtSettings {
    fn default() -> Self {
        Self {
            key_file: None,
            jwks_file: None,
            secret_file: None,
            algorithms: Vec::new(),
            audience: Vec::new(),
            issuer: Vec::new(),
            user_claim: "sub".to_owned(),
            leeway: Duration::from_secs(30),
        }
    }
}

impl AuthConfig {
    /// Whether clients can prove who they are.
    #[must_use]
    pub fn authenticates(&self) -> bool {
        self.users_file.is_some() || self.certificate_as_user || self.jwt.is_configured()
    }

    /// The file with the rules, if there are rules.
    #[must_use]
    pub fn rules(&self) -> Option<&Path> {
        self.rules_file.as_deref().or(self.rules_in.as_deref())
    }

    /// Settings that are fine alone and say nothing together.
    pub(super) fn contradictions(&self) -> Vec<String> {
        let mut messages = Vec::new();
        if let (Some(file), Some(own)) = (&self.rules_file, &self.rules_in) {
            messages.push(format!(
                "auth.rulesFile ({}) and [[auth.rules]] ({}) both hold rules, and their order is not clear: keep one",
                file.display(),
                own.display()
            ));
        }
        let jwt = &self.jwt;
        if !jwt.is_configured() && *jwt != JwtSettings::default() {
            messages.push(
                "auth.jwt is set and there is no key to verify tokens: set auth.jwt.keyFile, auth.jwt.jwksFile or \
                 auth.jwt.secretFile"
                    .to_owned(),
            );
        }
        messages
    }
}

impl JwtSettings {
    /// Whether there is a key.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.key_file.is_some() || self.jwks_file.is_some() || self.secret_file.is_some()
    }
}

fn path(values: &[String]) -> Result<Option<PathBuf>, String> {
    one(values).map(|path| Some(path.into()))
}

fn show(path: Option<&PathBuf>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "auth.usersFile",
        flag: "auth-users-file",
        env: "WEIR_AUTH_USERS_FILE",
        value_name: "FILE",
        help: "Users and passwords, as `weir auth hash` prints them; read again when it changes",
        set: |config, values| {
            config.auth.users_file = path(values)?;
            Ok(())
        },
        show: |config| show(config.auth.users_file.as_ref()),
        ..PLAIN
    },
    Setting {
        key: "auth.rulesFile",
        flag: "auth-rules-file",
        env: "WEIR_AUTH_RULES_FILE",
        value_name: "FILE",
        help: "Access rules (TOML, [[rules]]): the first that applies decides, what none allows is denied",
        set: |config, values| {
            config.auth.rules_file = path(values)?;
            Ok(())
        },
        show: |config| show(config.auth.rules_file.as_ref()),
        ..PLAIN
    },
    Setting {
        key: "auth.certificateAsUser",
        flag: "auth-certificate-as-user",
        env: "WEIR_AUTH_CERTIFICATE_AS_USER",
        value_name: "BOOL",
        help: "The common name of a verified client certificate is the user name; CONNECT may name no other",
        switch: true,
        set: |config, values| {
            config.auth.certificate_as_user = value::boolean(one(values)?)?;
            Ok(())
        },
        show: |config| config.auth.certificate_as_user.to_string(),
        ..PLAIN
    },
    Setting {
        key: "auth.reloadInterval",
        flag: "auth-reload-interval",
        env: "WEIR_AUTH_RELOAD_INTERVAL",
        value_name: "DURATION",
        help: "How often the files of users, rules and keys are looked at; 0s: only at SIGHUP",
        set: |config, values| {
            config.auth.reload_interval = value::interval(one(values)?)?;
            Ok(())
        },
        show: |config| value::show_duration(config.auth.reload_interval),
        ..PLAIN
    },
    Setting {
        key: "auth.jwt.keyFile",
        flag: "auth-jwt-key-file",
        env: "WEIR_AUTH_JWT_KEY_FILE",
        value_name: "FILE",
        help: "Public keys (PEM) that verify tokens; clients send a token as password or by AUTH method JWT",
        set: |config, values| {
            config.auth.jwt.key_file = path(values)?;
            Ok(())
        },
        show: |config| show(config.auth.jwt.key_file.as_ref()),
        ..PLAIN
    },
    Setting {
        key: "auth.jwt.jwksFile",
        flag: "auth-jwt-jwks-file",
        env: "WEIR_AUTH_JWT_JWKS_FILE",
        value_name: "FILE",
        help: "JSON Web Key Set (JWKS file) that verifies tokens",
        set: |config, values| {
            config.auth.jwt.jwks_file = path(values)?;
            Ok(())
        },
        show: |config| show(config.auth.jwt.jwks_file.as_ref()),
        ..PLAIN
    },
    Setting {
        key: "auth.jwt.secretFile",
        flag: "auth-jwt-secret-file",
        env: "WEIR_AUTH_JWT_SECRET_FILE",
        value_name: "FILE",
        help: "Shared secret, from 32 bytes, that verifies tokens (HS256, HS384, HS512)",
        set: |config, values| {
            config.auth.jwt.secret_file = path(values)?;
            Ok(())
        },
        show: |config| show(config.auth.jwt.secret_file.as_ref()),
        ..PLAIN
    },
    Setting {
        key: "auth.jwt.algorithms",
        flag: "auth-jwt-algorithms",
        env: "WEIR_AUTH_JWT_ALGORITHMS",
        value_name: "NAME",
        help: "Accepted signature algorithms, as in ES256; by default all that fit the keys; repeatable",
        many: true,
        set: |config, values| {
            Algorithms::parse(values.iter().map(String::as_str))?;
            config.auth.jwt.algorithms = values.to_vec();
            Ok(())
        },
        show: |config| config.auth.jwt.algorithms.join(","),
        ..PLAIN
    },
    Setting {
        key: "auth.jwt.audience",
        flag: "auth-jwt-audience",
        env: "WEIR_AUTH_JWT_AUDIENCE",
        value_name: "TEXT",
        help: "What a token must be meant for (aud), one of these; repeatable",
        many: true,
        set: |config, values| {
            config.auth.jwt.audience = values.to_vec();
            Ok(())
        },
        show: |config| config.auth.jwt.audience.join(","),
        ..PLAIN
    },
    Setting {
        key: "auth.jwt.issuer",
        flag: "auth-jwt-issuer",
        env: "WEIR_AUTH_JWT_ISSUER",
        value_name: "TEXT",
        help: "Who must have issued a token (iss), one of these; repeatable",
        many: true,
        set: |config, values| {
            config.auth.jwt.issuer = values.to_vec();
            Ok(())
        },
        show: |config| config.auth.jwt.issuer.join(","),
        ..PLAIN
    },
    Setting {
        key: "auth.jwt.userClaim",
        flag: "auth-jwt-user-claim",
        env: "WEIR_AUTH_JWT_USER_CLAIM",
        value_name: "NAME",
        help: "Claim of a token that holds the user name",
        set: |config, values| {
            config.auth.jwt.user_claim = one(values)?.to_owned();
            Ok(())
        },
        show: |config| config.auth.jwt.user_claim.clone(),
        ..PLAIN
    },
    Setting {
        key: "auth.jwt.leeway",
        flag: "auth-jwt-leeway",
        env: "WEIR_AUTH_JWT_LEEWAY",
        value_name: "DURATION",
        help: "How far the clocks of issuer and broker may be apart",
        set: |config, values| {
            config.auth.jwt.leeway =
                value::within(one(values)?, &(Duration::ZERO..=Duration::from_mins(10)))?;
            Ok(())
        },
        show: |config| value::show_duration(config.auth.jwt.leeway),
        ..PLAIN
    },
];
