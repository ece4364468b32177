//! ServiceAccount tokens: signing, verifying, and the facts they carry.
//!
//! Tokens are RS256 JWTs with upstream's claims. A token stays valid only while the account (and the Pod, Secret or Node
//! it is bound to) exists with the same uid; that check is the caller's, through [`Claims`].

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
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl Tokens {
    /// From an RSA key in PKCS#8 DER.
    ///
    /// # Errors
    /// When the key cannot be read.
    pub fn new(issuer: &str, pkcs8: &[u8]) -> Result<Self, TokenError> {
        use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
        use aws_lc_rs::rsa::{KeyPair, PublicKeyComponents};
        use aws_lc_rs::signature::KeyPair as _;
        use base64::Engine;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
        let key = KeyPair::from_pkcs8(pkcs8).map_err(|e| TokenError::Key(e.to_string()))?;
        let public = key.public_key();
        let parts: PublicKeyComponents<Vec<u8>> = public.into();
        let spki: PublicKeyX509Der<'_> = public.as_der().map_err(|e| TokenError::Key(e.to_string()))?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, spki.as_ref());
        let key_id = B64.encode(digest.as_ref());
        let jwks = json!({"keys": [{
            "use": "sig", "kty": "RSA", "kid": key_id, "alg": "RS256", "n": B64.encode(&parts.n), "e": B64.encode(&parts.e),
        }]});
        let pem = to_pem(pkcs8);
        Ok(Self {
            issuer: issuer.to_owned(),
            encoding: EncodingKey::from_rsa_pem(pem.as_bytes())?,
            decoding: DecodingKey::from_rsa_raw_components(&parts.n, &parts.e),
            jwks,
            key_id,
        })
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
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::RS256) };
        Ok(jsonwebtoken::encode(&header, &claims, &self.encoding)?)
    }

    /// Verifies signature, issuer and times; `None` for anything that is not a good token of ours. Audiences are the
    /// caller's business. Only RS256 is accepted, so neither `none` nor an HMAC made with the public key passes.
    #[must_use]
    pub fn verify(&self, token: &str) -> Option<Claims> {
        let mut v = Validation::new(Algorithm::RS256);
        v.set_issuer(&[&self.issuer]);
        v.validate_aud = false;
        v.validate_nbf = true;
        v.leeway = 10;
        jsonwebtoken::decode::<Claims>(token, &self.decoding, &v).ok().map(|d| d.claims)
    }
}

fn to_pem(pkcs8: &[u8]) -> String {
    use base64::Engine;
    let b64 = base64::engine::general_purpose::STANDARD.encode(pkcs8);
    let lines: Vec<&str> = (0..b64.len()).step_by(64).map(|i| &b64[i..(i + 64).min(b64.len())]).collect();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_tokens_pass() {
        let pki = crate::pki::Pki::ephemeral().unwrap();
        let t = Tokens::new(ISSUER, &pki.token_key).unwrap();
        let now = jiff::Timestamp::now().as_second();
        let claims =
            Claims { exp: now + 60, iat: now, nbf: now, sub: "x".into(), aud: vec!["a".into()], ..Claims::default() };
        let good = t.sign(claims.clone()).unwrap();
        assert_eq!(t.verify(&good).unwrap().sub, "x");
        assert!(t.verify(&format!("{good}x")).is_none());
        let late = t.sign(Claims { exp: now - 60, ..claims.clone() }).unwrap();
        assert!(t.verify(&late).is_none());
        let key = EncodingKey::from_secret(b"public");
        let forged = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap();
        assert!(t.verify(&forged).is_none());
    }
}
