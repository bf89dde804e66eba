//! JSON Web Tokens: whom they name and until when. Knows no files and fetches nothing; time comes in as `now`.

use std::fmt;
use std::time::Duration;

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Validation};
use serde_json::{Map, Value};
use weir_env::clock::Timestamp;

/// Longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Longest user name in a token, in bytes.
const USER_BYTES_MAX: usize = 1024;
/// Keys there may be; a token without a key id is tried against each.
const KEYS_MAX: usize = 64;

/// Signature algorithms that are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Algorithms(Vec<Algorithm>);

/// What a token must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtConfig {
    /// Signed with one of these.
    pub algorithms: Algorithms,
    /// If not empty: meant for one of these (`aud`).
    pub audience: Vec<String>,
    /// If not empty: issued by one of these (`iss`).
    pub issuer: Vec<String>,
    /// The claim that holds the user name.
    pub user_claim: String,
    /// How far the clocks of issuer and broker may be apart.
    pub leeway: Duration,
}

/// Keys that verify signatures.
#[derive(Clone)]
pub struct JwtKeys(Vec<Key>);

#[derive(Clone)]
struct Key {
    id: Option<String>,
    /// The one algorithm the key is for, if it says so.
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

/// Verifies tokens.
#[derive(Clone, Debug)]
pub struct JwtVerifier {
    config: JwtConfig,
    keys: JwtKeys,
}

/// What a valid token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// User name.
    pub user: String,
    /// When it ends, leeway included.
    pub expires_at: Timestamp,
}

/// Why a token is not accepted. Says nothing of its content but the times.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Not three parts of Base64 with JSON in them, or too long.
    #[error("not a token")]
    Malformed,
    /// Its algorithm is not one that is allowed, or no key is for it.
    #[error("signed with an algorithm or key that is not accepted")]
    KeyUnknown,
    /// Somebody else signed it, or it was changed.
    #[error("signature is wrong")]
    Signature,
    /// `exp` is over.
    #[error("token has expired")]
    Expired,
    /// `nbf` is not yet reached.
    #[error("token is not valid yet")]
    NotYet,
    /// `aud` is another one.
    #[error("token is for another audience")]
    Audience,
    /// `iss` is another one.
    #[error("token is of another issuer")]
    Issuer,
    /// No `exp`, or one that is no number.
    #[error("token has no time of expiry (exp)")]
    NoExpiry,
    /// The claim with the user name is absent, empty, too long or no text.
    #[error("token has no user name in claim `{0}`")]
    NoUser(String),
}

impl Algorithms {
    /// Those with a public key: RS, PS, ES and EdDSA.
    #[must_use]
    pub fn asymmetric() -> Self {
        let families = [AlgorithmFamily::Rsa, AlgorithmFamily::Ec, AlgorithmFamily::Ed];
        Self(families.iter().flat_map(|family| family.algorithms()).copied().collect())
    }

    /// Those with a shared secret: HS.
    #[must_use]
    pub fn symmetric() -> Self {
        Self(AlgorithmFamily::Hmac.algorithms().to_vec())
    }

    /// Both.
    #[must_use]
    pub fn all() -> Self {
        Self([Self::asymmetric().0, Self::symmetric().0].concat())
    }

    /// Reads names as in `RS256`.
    ///
    /// # Errors
    /// The first name that is none.
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let parse = |name: &str| {
            let known = name.parse::<Algorithm>();
            known.map_err(|_| {
                let allowed =
                    "RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA, HS256, HS384, HS512";
                format!("`{name}` is not allowed; allowed: {allowed}")
            })
        };
        names.into_iter().map(parse).collect::<Result<_, _>>().map(Self)
    }
}

impl JwtKeys {
    /// Public keys in PEM: RSA, elliptic curve or Ed25519.
    ///
    /// # Errors
    /// What is wrong; never with the key.
    pub fn from_pem(text: &str) -> Result<Self, String> {
        const BEGIN: &str = "-----BEGIN ";
        if text.contains("PRIVATE KEY-----") {
            return Err(
                "there is a private key in it; allowed: public keys, the private one stays with the issuer"
                    .to_owned(),
            );
        }
        let blocks: Vec<String> = text.split(BEGIN).skip(1).map(|block| format!("{BEGIN}{block}")).collect();
        let parse = |pem: &String| {
            let pem = pem.as_bytes();
            DecodingKey::from_rsa_pem(pem)
                .or_else(|_| DecodingKey::from_ec_pem(pem))
                .or_else(|_| DecodingKey::from_ed_pem(pem))
                .map(|key| Key { id: None, algorithm: None, key })
                .map_err(|_| {
                    "a key in it is not understood; allowed: RSA, EC and Ed25519 public keys".to_owned()
                })
        };
        Self::checked(blocks.iter().map(parse).collect::<Result<_, _>>()?)
    }

    /// A JSON Web Key Set. Keys of other kinds or for other uses are left out.
    ///
    /// # Errors
    /// What is wrong; never with a key.
    pub fn from_jwks(text: &str) -> Result<Self, String> {
        let set: Value = serde_json::from_str(text)
            .map_err(|error| format!("not JSON (line {}, column {})", error.line(), error.column()))?;
        let keys = set.get("keys").and_then(Value::as_array);
        let keys = keys.ok_or_else(|| "no key set: it has no list `keys`".to_owned())?;
        Self::checked(keys.iter().filter_map(key_of).collect())
    }

    /// A shared secret, for HS algorithms.
    ///
    /// # Errors
    /// It is shorter than 32 bytes.
    pub fn from_secret(secret: &[u8]) -> Result<Self, String> {
        if secret.len() < 32 {
            return Err(format!("a secret of {} bytes can be guessed; allowed: from 32", secret.len()));
        }
        Ok(Self(vec![Key { id: None, algorithm: None, key: DecodingKey::from_secret(secret) }]))
    }

    fn checked(keys: Vec<Key>) -> Result<Self, String> {
        match keys.len() {
            0 => Err("there is no public key in it that could verify a signature".to_owned()),
            1..=KEYS_MAX => Ok(Self(keys)),
            more => Err(format!("{more} keys; allowed: {KEYS_MAX}")),
        }
    }

    /// These and others.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }
}

fn key_of(value: &Value) -> Option<Key> {
    if value.get("use").is_some_and(|purpose| purpose != "sig") {
        return None;
    }
    let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    // A shared secret has no place in a set that is published.
    if key.family() == AlgorithmFamily::Hmac {
        return None;
    }
    let algorithm = jwk.common.key_algorithm.and_then(|algorithm| algorithm.to_string().parse().ok());
    Some(Key { id: jwk.common.key_id, algorithm, key })
}

impl JwtVerifier {
    /// Accepts what `keys` verify and `config` allows.
    #[must_use]
    pub fn new(config: JwtConfig, keys: JwtKeys) -> Self {
        Self { config, keys }
    }

    /// Whether `password` looks like a token rather than a password.
    #[must_use]
    pub fn resembles_token(password: &[u8]) -> bool {
        password.starts_with(b"eyJ") && password.iter().filter(|byte| **byte == b'.').count() == 2
    }

    /// Whom the token names, if it is valid at `now`.
    ///
    /// # Errors
    /// Why it is not.
    pub fn verify(&self, token: &[u8], now: Timestamp) -> Result<Token, JwtError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(JwtError::Malformed);
        }
        let claims = self.claims(token)?;
        self.check(&claims, now)
    }

    /// The claims of a token that one of the keys signed.
    fn claims(&self, token: &[u8]) -> Result<Map<String, Value>, JwtError> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| JwtError::Malformed)?;
        if !self.config.algorithms.0.contains(&header.alg) {
            return Err(JwtError::KeyUnknown);
        }
        let mut validation = Validation::new(header.alg);
        // Claims are checked here, by our clock.
        validation.set_required_spec_claims::<&str>(&[]);
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        let fits = |key: &&Key| {
            key.key.family() == header.alg.family()
                && key.algorithm.is_none_or(|algorithm| algorithm == header.alg)
                && (header.kid.is_none() || key.id.is_none() || key.id == header.kid)
        };
        let mut keys = self.keys.0.iter().filter(fits).peekable();
        keys.peek().ok_or(JwtError::KeyUnknown)?;
        keys.find_map(|key| jsonwebtoken::decode(token, &key.key, &validation).ok())
            .map(|data| data.claims)
            .ok_or(JwtError::Signature)
    }

    fn check(&self, claims: &Map<String, Value>, now: Timestamp) -> Result<Token, JwtError> {
        let expires = claims.get("exp").and_then(seconds).ok_or(JwtError::NoExpiry)?;
        let expires_at = at(expires).saturating_add(self.config.leeway);
        if now >= expires_at {
            return Err(JwtError::Expired);
        }
        if let Some(begins) = claims.get("nbf") {
            let begins = seconds(begins).ok_or(JwtError::NotYet)?;
            if now.saturating_add(self.config.leeway) < at(begins) {
                return Err(JwtError::NotYet);
            }
        }
        if !is_one_of(claims.get("iss"), &self.config.issuer) {
            return Err(JwtError::Issuer);
        }
        if !is_one_of(claims.get("aud"), &self.config.audience) {
            return Err(JwtError::Audience);
        }
        let user = claims.get(&self.config.user_claim).and_then(Value::as_str);
        let user = user.filter(|user| !user.is_empty() && user.len() <= USER_BYTES_MAX);
        let user = user.filter(|user| !user.contains(char::is_control));
        let user = user.ok_or_else(|| JwtError::NoUser(self.config.user_claim.clone()))?;
        Ok(Token { user: user.to_owned(), expires_at })
    }
}

/// A time in seconds; fractions are cut off.
fn seconds(value: &Value) -> Option<u64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range: checked before")]
    let whole = |value: f64| (0.0..1e15).contains(&value).then_some(value as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(whole))
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_micros(seconds.saturating_mul(1_000_000))
}

/// Whether a claim, a text or a list of them, has one of the wanted values; nothing wanted is always had.
fn is_one_of(claim: Option<&Value>, wanted: &[String]) -> bool {
    let is_wanted = |value: &Value| value.as_str().is_some_and(|text| wanted.iter().any(|w| w == text));
    wanted.is_empty()
        || match claim {
            Some(Value::Array(values)) => values.iter().any(is_wanted),
            Some(value) => is_wanted(value),
            None => false,
        }
}

impl fmt::Debug for JwtKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtKeys").field("keys", &self.0.len()).finish_non_exhaustive()
    }
}
