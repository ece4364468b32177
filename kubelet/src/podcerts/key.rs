//! Keys of pods' certificates, and the proof that the agent has them.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, RsaKeySize};

use super::Error;

/// DER of an Ed25519 key in the first version of PKCS #8, before its 32 bytes.
const ED25519: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// A new key, PEM, and a signing request that names nobody, DER. Takes seconds for long RSA keys: not on a thread that
/// others wait for.
pub(super) fn make(kind: &str) -> Result<(String, Vec<u8>), Error> {
    let rsa = |size| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size);
    let key = match kind {
        "RSA3072" => rsa(RsaKeySize::_3072),
        "RSA4096" => rsa(RsaKeySize::_4096),
        "ECDSAP256" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        "ECDSAP384" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        "ECDSAP521" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512),
        "ED25519" => KeyPair::generate_for(&rcgen::PKCS_ED25519),
        other => return Err(Error::KeyType(other.to_owned())),
    }?;
    let mut nobody = CertificateParams::default();
    nobody.distinguished_name = DistinguishedName::new();
    let request = nobody.serialize_request(&key)?.der().to_vec();
    let mut der = key.serialize_der();
    // The second version, with the public key in it, is not read by all libraries.
    if kind == "ED25519"
        && let Some(secret) = der.get(ED25519.len()..ED25519.len() + 32)
    {
        der = [&ED25519, secret].concat();
    }
    Ok((skiff_core::pem::encode("PRIVATE KEY", &der), request))
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::{FromDer, X509CertificationRequest};

    #[test]
    fn every_kind_of_key_proves_itself() {
        for kind in ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"] {
            let (pem, der) = make(kind).unwrap();
            let (rest, request) = X509CertificationRequest::from_der(&der).unwrap();
            assert!(rest.is_empty() && request.certification_request_info.subject.iter().count() == 0, "{kind}");
            assert_eq!(request.certification_request_info.iter_attributes().count(), 0, "{kind}");
            // The key that is handed out is the one that signed.
            let key = KeyPair::from_pem(&pem).unwrap();
            assert_eq!(
                rcgen::PublicKeyData::subject_public_key_info(&key),
                request.certification_request_info.subject_pki.raw,
                "{kind}"
            );
        }
        assert!(make("RSA2048").is_err());
    }
}
