//! Tokens of several issuers and algorithms, and what is wrong with others.

use std::time::Duration;

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm};
use serde_json::{Value, json};
use weir_auth::{Algorithms, JwtConfig, JwtError, JwtKeys, JwtVerifier};
use weir_env::clock::Timestamp;

const NOW: u64 = 1_700_000_000;

struct Issuer {
    algorithm: Algorithm,
    public_pem: String,
    key: EncodingKey,
}

impl Issuer {
    fn new(algorithm: Algorithm, of: &'static SignatureAlgorithm) -> Self {
        let pair = KeyPair::generate_for(of).unwrap();
        let private = pair.serialize_pem();
        let key = match algorithm {
            Algorithm::EdDSA => EncodingKey::from_ed_pem(private.as_bytes()),
            Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_pem(private.as_bytes()),
            _ => EncodingKey::from_rsa_pem(private.as_bytes()),
        };
        Self { algorithm, public_pem: pair.public_key_pem(), key: key.unwrap() }
    }

    fn ec() -> Self {
        Self::new(Algorithm::ES256, &PKCS_ECDSA_P256_SHA256)
    }

    fn sign(&self, claims: &Value) -> Vec<u8> {
        self.sign_as(claims, None)
    }

    fn sign_as(&self, claims: &Value, kid: Option<&str>) -> Vec<u8> {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.key).unwrap().into_bytes()
    }

    fn verifier(&self) -> JwtVerifier {
        JwtVerifier::new(config(), JwtKeys::from_pem(&self.public_pem).unwrap())
    }
}

fn config() -> JwtConfig {
    JwtConfig {
        algorithms: Algorithms::asymmetric(),
        audience: Vec::new(),
        issuer: Vec::new(),
        user_claim: "sub".to_owned(),
        leeway: Duration::from_secs(30),
    }
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

fn claims() -> Value {
    json!({ "sub": "anna", "exp": NOW + 100 })
}

#[test]
fn tokens_of_every_kind_of_key() {
    for issuer in [
        Issuer::ec(),
        Issuer::new(Algorithm::ES384, &PKCS_ECDSA_P384_SHA384),
        Issuer::new(Algorithm::EdDSA, &PKCS_ED25519),
        Issuer::new(Algorithm::RS256, &rcgen::PKCS_RSA_SHA256),
    ] {
        let token = issuer.verifier().verify(&issuer.sign(&claims()), at(NOW)).unwrap();
        assert_eq!(
            (token.user.as_str(), token.expires_at),
            ("anna", at(NOW + 130)),
            "{:?}",
            issuer.algorithm
        );
    }
}

#[test]
fn what_is_wrong_is_told_apart() {
    let issuer = Issuer::ec();
    let config = JwtConfig {
        audience: vec!["weir".to_owned(), "other".to_owned()],
        issuer: vec!["https://id".to_owned()],
        ..config()
    };
    let verifier = JwtVerifier::new(config, JwtKeys::from_pem(&issuer.public_pem).unwrap());
    let good =
        json!({ "sub": "anna", "exp": NOW + 100, "nbf": NOW, "aud": ["x", "weir"], "iss": "https://id" });
    let verify = |change: Value, now: u64| {
        let mut claims = good.clone();
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        verifier.verify(&issuer.sign(&claims), at(now)).map(|token| token.user)
    };
    assert_eq!(verify(json!({}), NOW), Ok("anna".to_owned()));
    assert_eq!(verify(json!({}), NOW + 129), Ok("anna".to_owned()), "leeway");
    assert_eq!(verify(json!({}), NOW + 130), Err(JwtError::Expired));
    assert_eq!(verify(json!({}), NOW - 30), Ok("anna".to_owned()), "leeway");
    assert_eq!(verify(json!({}), NOW - 31), Err(JwtError::NotYet));
    for (change, error) in [
        (json!({ "exp": null }), JwtError::NoExpiry),
        (json!({ "exp": "tomorrow" }), JwtError::NoExpiry),
        (json!({ "exp": -1 }), JwtError::NoExpiry),
        (json!({ "nbf": "x" }), JwtError::NotYet),
        (json!({ "aud": "else" }), JwtError::Audience),
        (json!({ "aud": null }), JwtError::Audience),
        (json!({ "aud": [] }), JwtError::Audience),
        (json!({ "iss": "https://else" }), JwtError::Issuer),
        (json!({ "iss": null }), JwtError::Issuer),
        (json!({ "sub": "" }), JwtError::NoUser("sub".to_owned())),
        (json!({ "sub": 7 }), JwtError::NoUser("sub".to_owned())),
        (json!({ "sub": "a\nb" }), JwtError::NoUser("sub".to_owned())),
        (json!({ "sub": "x".repeat(2000) }), JwtError::NoUser("sub".to_owned())),
    ] {
        assert_eq!(verify(change.clone(), NOW), Err(error), "{change}");
    }
    assert_eq!(verify(json!({ "exp": 1_700_000_100.9 }), NOW), Ok("anna".to_owned()));
    assert_eq!(verify(json!({ "aud": "weir" }), NOW), Ok("anna".to_owned()));
}

#[test]
fn forged_tokens_are_refused() {
    let (issuer, stranger) = (Issuer::ec(), Issuer::ec());
    let verifier = issuer.verifier();
    assert_eq!(verifier.verify(&stranger.sign(&claims()), at(NOW)), Err(JwtError::Signature));
    // The public key as a shared secret, and no signature at all.
    let key = EncodingKey::from_secret(issuer.public_pem.as_bytes());
    let confused = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &key).unwrap();
    assert_eq!(verifier.verify(confused.as_bytes(), at(NOW)), Err(JwtError::KeyUnknown));
    let all = JwtConfig { algorithms: Algorithms::parse(["ES256", "HS256"]).unwrap(), ..config() };
    let lenient = JwtVerifier::new(all, JwtKeys::from_pem(&issuer.public_pem).unwrap());
    assert_eq!(lenient.verify(confused.as_bytes(), at(NOW)), Err(JwtError::KeyUnknown));
    let unsigned = b"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbm5hIn0.";
    assert_eq!(verifier.verify(unsigned, at(NOW)), Err(JwtError::Malformed));
    let mut changed = issuer.sign(&claims());
    let dot = changed.iter().position(|byte| *byte == b'.').unwrap();
    changed[dot + 5] ^= 1;
    assert!(verifier.verify(&changed, at(NOW)).is_err());
    for garbage in [&b""[..], b".", b"..", b"a.b.c", b"eyJ.eyJ.eyJ", &[0xff; 40], &[b'.'; 20_000]] {
        assert!(verifier.verify(garbage, at(NOW)).is_err());
    }
    let narrow = JwtConfig { algorithms: Algorithms::parse(["RS256"]).unwrap(), ..config() };
    let narrow = JwtVerifier::new(narrow, JwtKeys::from_pem(&issuer.public_pem).unwrap());
    assert_eq!(narrow.verify(&issuer.sign(&claims()), at(NOW)), Err(JwtError::KeyUnknown));
}

#[test]
fn a_key_set_is_searched_by_key_id() {
    let (one, two) = (Issuer::ec(), Issuer::new(Algorithm::ES384, &PKCS_ECDSA_P384_SHA384));
    let jwk = |issuer: &Issuer, id: &str| {
        let mut jwk =
            serde_json::to_value(Jwk::from_encoding_key(&issuer.key, issuer.algorithm).unwrap()).unwrap();
        jwk["kid"] = json!(id);
        jwk
    };
    let unknown = json!({ "kty": "XYZ", "kid": "future" });
    let secret =
        json!({ "kty": "oct", "k": "c2VjcmV0LXRoYXQtaXMtcHVibGlzaGVkLXNvLW5vLXNlY3JldA", "kid": "oct" });
    let mut encryption = jwk(&one, "enc");
    encryption["use"] = json!("enc");
    let set = json!({ "keys": [unknown, secret, encryption, jwk(&one, "1"), jwk(&two, "2")] });
    let verifier = JwtVerifier::new(config(), JwtKeys::from_jwks(&set.to_string()).unwrap());
    let verify = |token: Vec<u8>| verifier.verify(&token, at(NOW)).map(|token| token.user);
    assert_eq!(verify(one.sign_as(&claims(), Some("1"))), Ok("anna".to_owned()));
    assert_eq!(verify(two.sign_as(&claims(), Some("2"))), Ok("anna".to_owned()));
    assert_eq!(verify(two.sign(&claims())), Ok("anna".to_owned()), "without an id each key is tried");
    assert_eq!(
        verify(one.sign_as(&claims(), Some("2"))),
        Err(JwtError::KeyUnknown),
        "the key of that id is for another algorithm"
    );
    assert_eq!(verify(one.sign_as(&claims(), Some("3"))), Err(JwtError::KeyUnknown));
    assert_eq!(verify(one.sign_as(&claims(), Some("enc"))), Err(JwtError::KeyUnknown), "not for signatures");
}

#[test]
fn shared_secrets() {
    let secret = [7; 32];
    let key = EncodingKey::from_secret(&secret);
    let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &key).unwrap();
    let config = JwtConfig { algorithms: Algorithms::symmetric(), ..config() };
    let verifier = JwtVerifier::new(config, JwtKeys::from_secret(&secret).unwrap());
    assert!(verifier.verify(token.as_bytes(), at(NOW)).is_ok());
    assert!(JwtVerifier::resembles_token(token.as_bytes()) && !JwtVerifier::resembles_token(b"hunter2"));
    assert!(JwtKeys::from_secret(&secret[1..]).is_err(), "too short");
    assert!(!format!("{verifier:?}").contains("7, 7"), "no key in debug output");
}

#[test]
fn key_files_that_are_none() {
    for text in ["", "hello", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
        assert!(JwtKeys::from_pem(text).is_err(), "{text}");
    }
    let private = KeyPair::generate().unwrap().serialize_pem();
    assert!(JwtKeys::from_pem(&private).unwrap_err().contains("private key"));
    for text in ["", "{}", "{\"keys\": []}", "{\"keys\": [1, {}]}", "[]"] {
        assert!(JwtKeys::from_jwks(text).is_err(), "{text}");
    }
    assert!(Algorithms::parse(["none"]).is_err() && Algorithms::parse(["ES256", "EdDSA"]).is_ok());
}

#[test]
fn tokens_and_keys_are_bounded() {
    let issuer = Issuer::ec();
    let mut large = claims();
    large["x"] = json!("x".repeat(16 * 1024));
    let token = issuer.sign(&large);
    assert_eq!(issuer.verifier().verify(&token, at(NOW)), Err(JwtError::Malformed));
    large["x"] = json!("x".repeat(8 * 1024));
    assert!(issuer.verifier().verify(&issuer.sign(&large), at(NOW)).is_ok());
    assert!(JwtKeys::from_pem(&issuer.public_pem.repeat(64)).is_ok());
    let refused = JwtKeys::from_pem(&issuer.public_pem.repeat(65)).unwrap_err();
    assert_eq!(refused, "65 keys; allowed: 64");
}
