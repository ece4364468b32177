//! RSA keys of accounts: signatures by aws-lc, the crypto provider of this program.
//!
//! The SSH library signs with RSA only by a crate that has a known leak of keys through timing, and is left out here. It takes
//! signatures from elsewhere, as from an agent. A key file of OpenSSH lacks two numbers that the provider wants; they are
//! computed when the key is read, on this machine and never while somebody waits for a signature.
//!
//! # Limits
//! OpenSSH's own format of key files only. Hosts cannot prove themselves with RSA keys: their signatures are verified by the
//! same crate.

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaEncoding};
use russh::keys::HashAlg;
use russh::keys::agent::AgentIdentity;
use russh::keys::ssh_key::private::RsaKeypair;

/// An account's key.
#[derive(Clone)]
pub(super) struct Rsa {
    pair: Arc<KeyPair>,
}

/// Why there is no signature.
#[derive(Debug, thiserror::Error)]
pub(super) enum SignError {
    /// The connection ended.
    #[error("the connection ended")]
    Send(#[from] russh::SendError),
    /// The key does not sign.
    #[error("the RSA key does not sign")]
    Key,
}

impl Rsa {
    /// Of a key that was read.
    ///
    /// # Errors
    /// When the provider does not take it: its numbers do not fit each other, or it is too short.
    pub(super) fn new(key: &RsaKeypair) -> Result<Self, String> {
        let der = der(key).ok_or("its numbers are no RSA key")?;
        let pair = KeyPair::from_der(&der).map_err(|e| e.to_string())?;
        Ok(Self { pair: Arc::new(pair) })
    }

    /// A signature as SSH has it: its kind and its bytes.
    fn sign(&self, hash: Option<HashAlg>, data: &[u8]) -> Option<Vec<u8>> {
        let (encoding, word): (&'static dyn RsaEncoding, &[u8]) = match hash {
            Some(HashAlg::Sha256) => (&RSA_PKCS1_SHA256, b"rsa-sha2-256"),
            _ => (&RSA_PKCS1_SHA512, b"rsa-sha2-512"),
        };
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair.sign(encoding, &SystemRandom::new(), data, &mut signature).ok()?;
        let mut blob = string(word)?;
        blob.extend(string(&signature)?);
        Some(blob)
    }
}

impl russh::Signer for Rsa {
    type Error = SignError;

    /// What is to be signed, with the signature after it.
    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        hash: Option<HashAlg>,
        mut data: Vec<u8>,
    ) -> Result<Vec<u8>, SignError> {
        let blob = self.sign(hash, &data).and_then(|b| string(&b)).ok_or(SignError::Key)?;
        data.extend(blob);
        Ok(data)
    }
}

/// Bytes as SSH writes them: their number, and they.
fn string(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut all = u32::try_from(bytes.len()).ok()?.to_be_bytes().to_vec();
    all.extend(bytes);
    Some(all)
}

/// A key as PKCS #1 has it.
fn der(key: &RsaKeypair) -> Option<Vec<u8>> {
    let (public, private) = (key.public(), key.private());
    let [n, e] = [public.n(), public.e()].map(|m| m.as_positive_bytes());
    let [d, p, q, inverse] = [private.d(), private.p(), private.q(), private.iqmp()].map(|m| m.as_positive_bytes());
    let (n, e, d, p, q, inverse) = (n?, e?, d?, p?, q?, inverse?);
    let [dp, dq] = [p, q].map(|prime| remainder(d, &less_one(prime)));
    let mut all = integer(&[0])?;
    for number in [n, e, d, p, q, &dp, &dq, inverse] {
        all.extend(integer(number)?);
    }
    element(0x30, &all)
}

/// One less than an odd number.
fn less_one(odd: &[u8]) -> Vec<u8> {
    let mut all = odd.to_vec();
    if let Some(last) = all.last_mut() {
        *last &= !1;
    }
    all
}

/// What is left of a number, most significant byte first, after division: bit by bit.
fn remainder(number: &[u8], by: &[u8]) -> Vec<u8> {
    let mut rest = vec![0u8; by.len() + 1];
    let mut by = by.to_vec();
    by.insert(0, 0);
    if by.iter().all(|b| *b == 0) {
        return rest;
    }
    for bit in number.iter().flat_map(|byte| (0..8).rev().map(move |i| byte >> i & 1)) {
        let mut carry = bit;
        for byte in rest.iter_mut().rev() {
            (*byte, carry) = (*byte << 1 | carry, *byte >> 7);
        }
        if rest >= by {
            let mut borrow = false;
            for (byte, less) in rest.iter_mut().zip(&by).rev() {
                let (a, first) = byte.overflowing_sub(*less);
                let (b, second) = a.overflowing_sub(u8::from(borrow));
                (*byte, borrow) = (b, first || second);
            }
        }
    }
    rest
}

/// A whole number of DER that is not negative.
fn integer(bytes: &[u8]) -> Option<Vec<u8>> {
    let from = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len().saturating_sub(1));
    let mut value = bytes.get(from..)?.to_vec();
    if value.first().is_none_or(|b| b & 0x80 != 0) {
        value.insert(0, 0);
    }
    element(0x02, &value)
}

/// A piece of DER.
fn element(tag: u8, content: &[u8]) -> Option<Vec<u8>> {
    let mut all = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => all.push(short),
        _ => {
            let length = u32::try_from(content.len()).ok()?.to_be_bytes();
            let from = length.iter().position(|b| *b != 0)?;
            all.push(0x80 | u8::try_from(4 - from).ok()?);
            all.extend(&length[from..]);
        }
    }
    all.extend(content);
    Some(all)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{
        KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512, UnparsedPublicKey,
    };
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn remainders(number in any::<u64>(), by in 1..u32::MAX) {
            let rest = remainder(&number.to_be_bytes(), &by.to_be_bytes());
            let value = rest.iter().fold(0u128, |v, b| v << 8 | u128::from(*b));
            prop_assert_eq!(value, u128::from(number % u64::from(by)));
        }
    }

    #[test]
    fn numbers_of_der() {
        assert_eq!(integer(&[0]).unwrap(), [2, 1, 0]);
        assert_eq!(integer(&[0, 0x80]).unwrap(), [2, 2, 0, 0x80]);
        assert_eq!(element(0x30, &[7; 200]).unwrap()[..3], [0x30, 0x81, 200]);
        assert_eq!(element(0x30, &[7; 300]).unwrap()[..4], [0x30, 0x82, 1, 44]);
    }

    #[test]
    fn signatures_are_as_ssh_has_them() {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let rsa = Rsa { pair: Arc::new(pair) };
        let public = rsa.pair.public_key().as_ref().to_vec();
        for (hash, word) in [(HashAlg::Sha256, &b"rsa-sha2-256"[..]), (HashAlg::Sha512, b"rsa-sha2-512")] {
            let blob = rsa.sign(Some(hash), b"what is signed").unwrap();
            assert_eq!(&blob[4..16], word);
            let signature = &blob[20..];
            assert_eq!(signature.len(), 256);
            let check = if hash == HashAlg::Sha256 { &RSA_PKCS1_2048_8192_SHA256 } else { &RSA_PKCS1_2048_8192_SHA512 };
            UnparsedPublicKey::new(check, &public).verify(b"what is signed", signature).unwrap();
        }
    }
}
