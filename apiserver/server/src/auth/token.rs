//! ServiceAccount tokens: signing, verifying, and the facts they carry.
//!
//! Tokens are JWTs with upstream's claims, signed by the one key there is: RS256 or, for a P-256 key, ES256. A token stays valid only while the account (and the Pod, Secret or Node
//! it is bound to) exists with the same uid; that check is the caller's, through [`Claims`].

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Default issuer, as upstream's default for a cluster domain.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Why a token could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The signing key is unusable.
    #[error("the ServiceAccount key cannot be used: {0}")]
    Key(String),
    /// Signing failed.
    #[error("cannot sign a token: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

/// A named object with its uid.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Name.
    pub name: String,
    /// UID, empty where not recorded.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The private claim `kubernetes.io`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Private {
    /// Namespace of the account.
    pub namespace: String,
    /// The account.
    pub serviceaccount: Reference,
    /// The pod the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The secret the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// The node the token (or its pod) is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// After this time use of the token is worth a warning (tokens with extended life).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// The claims of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Audiences.
    pub aud: Vec<String>,
    /// Expiry, seconds since the epoch.
    pub exp: i64,
    /// Issued at.
    pub iat: i64,
    /// Issuer.
    pub iss: String,
    /// Unique id of the token.
    pub jti: String,
    /// Kubernetes facts.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Private,
    /// Not before.
    pub nbf: i64,
    /// Subject, `system:serviceaccount:NAMESPACE:NAME`.
    pub sub: String,
}

/// Signs and verifies tokens of one issuer.
pub struct Tokens {
    issuer: String,
    encoding: EncodingKey,
    decoding: DecodingKey,
    jwks: Value,
    key_id: String,
    algorithm: Algorithm,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl Tokens {
    /// From a key in PKCS#8 DER: RSA, or ECDSA on P-256.
    ///
    /// # Errors
    /// When the key cannot be read.
    pub fn new(issuer: &str, pkcs8: &[u8]) -> Result<Self, TokenError> {
        let key = Key::read(pkcs8)?;
        let mut public = key.public;
        let algorithm = key.algorithm;
        let decoding = match algorithm {
            Algorithm::ES256 => DecodingKey::from_ec_components(text(&public, "x"), text(&public, "y"))?,
            _ => DecodingKey::from_rsa_components(text(&public, "n"), text(&public, "e"))?,
        };
        let pem = skiff_core::pem::encode("PRIVATE KEY", pkcs8);
        let encoding = match algorithm {
            Algorithm::ES256 => EncodingKey::from_ec_pem(pem.as_bytes())?,
            _ => EncodingKey::from_rsa_pem(pem.as_bytes())?,
        };
        let key_id = B64.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &key.spki).as_ref());
        public["kid"] = key_id.clone().into();
        let jwks = json!({"keys": [public]});
        Ok(Self { issuer: issuer.to_owned(), encoding, decoding, jwks, key_id, algorithm })
    }

    /// Name of the algorithm that tokens are signed with.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        if self.algorithm == Algorithm::ES256 { "ES256" } else { "RS256" }
    }

    /// The issuer, which is also the default audience.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The public keys as a JSON Web Key Set.
    #[must_use]
    pub fn jwks(&self) -> &Value {
        &self.jwks
    }

    /// Signs claims (the issuer is filled in).
    ///
    /// # Errors
    /// When signing fails.
    pub fn sign(&self, mut claims: Claims) -> Result<String, TokenError> {
        claims.iss.clone_from(&self.issuer);
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(self.algorithm) };
        Ok(jsonwebtoken::encode(&header, &claims, &self.encoding)?)
    }

    /// Verifies signature, issuer and times; `None` for anything that is not a good token of ours. Audiences are the
    /// caller's business. Only the key's own algorithm is accepted, so neither
    /// `none` nor an HMAC made with the public key passes.
    #[must_use]
    pub fn verify(&self, token: &str) -> Option<Claims> {
        let mut v = Validation::new(self.algorithm);
        v.set_issuer(&[&self.issuer]);
        v.validate_aud = false;
        v.validate_nbf = true;
        v.leeway = 10;
        jsonwebtoken::decode::<Claims>(token, &self.decoding, &v).ok().map(|d| d.claims)
    }
}

/// What is needed of a private key.
struct Key {
    algorithm: Algorithm,
    /// Its public part as a JSON Web Key, without an id.
    public: Value,
    /// Its public part, DER.
    spki: Vec<u8>,
}

impl Key {
    fn read(pkcs8: &[u8]) -> Result<Self, TokenError> {
        use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
        use aws_lc_rs::rsa::{KeyPair, PublicKeyComponents};
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
        let bad = |e: &dyn std::fmt::Display| TokenError::Key(e.to_string());
        if let Ok(key) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8) {
            let spki: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|e| bad(&e))?;
            // Uncompressed: a mark, then x and y of 32 bytes each.
            let point = key.public_key().as_ref();
            let (x, y) = point.get(1..33).zip(point.get(33..65)).ok_or_else(|| bad(&"not an uncompressed point"))?;
            let public = json!({"use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256",
                "x": B64.encode(x), "y": B64.encode(y)});
            return Ok(Self { algorithm: Algorithm::ES256, public, spki: spki.as_ref().to_vec() });
        }
        let key = KeyPair::from_pkcs8(pkcs8).map_err(|e| bad(&e))?;
        let parts: PublicKeyComponents<Vec<u8>> = key.public_key().into();
        let spki: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|e| bad(&e))?;
        let public =
            json!({"use": "sig", "kty": "RSA", "alg": "RS256", "n": B64.encode(&parts.n), "e": B64.encode(&parts.e)});
        Ok(Self { algorithm: Algorithm::RS256, public, spki: spki.as_ref().to_vec() })
    }
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_tokens_pass() {
        let dir = tempfile::tempdir().unwrap();
        let kept = crate::pki::Pki::load_or_create(dir.path()).unwrap();
        let rsa = Tokens::new(ISSUER, &kept.token_key).unwrap();
        let ecdsa = Tokens::new(ISSUER, &crate::pki::Pki::ephemeral().unwrap().token_key).unwrap();
        assert_eq!((rsa.algorithm(), ecdsa.algorithm()), ("RS256", "ES256"));
        for (t, other) in [(&rsa, &ecdsa), (&ecdsa, &rsa)] {
            own_tokens_pass(t, other);
        }
    }

    fn own_tokens_pass(t: &Tokens, other: &Tokens) {
        let now = jiff::Timestamp::now().as_second();
        let claims =
            Claims { exp: now + 60, iat: now, nbf: now, sub: "x".into(), aud: vec!["a".into()], ..Claims::default() };
        let good = t.sign(claims.clone()).unwrap();
        assert_eq!(t.verify(&good).unwrap().sub, "x");
        assert!(t.verify(&format!("{good}x")).is_none());
        assert!(t.verify(&other.sign(claims.clone()).unwrap()).is_none());
        let late = t.sign(Claims { exp: now - 60, ..claims.clone() }).unwrap();
        assert!(t.verify(&late).is_none());
        let key = EncodingKey::from_secret(b"public");
        let forged = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap();
        assert!(t.verify(&forged).is_none());
    }
}
