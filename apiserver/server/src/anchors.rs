//! The anchors of ClusterTrustBundles: what is in them is read as certificates, which the rules of kinds do not.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use skiff_core::invalid::Errors;
use skiff_core::path::Path;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::registry::Hooks;

/// Bytes of a ClusterTrustBundle.
const BUNDLE_MAX: usize = 1024 * 1024;

/// Rules of ClusterTrustBundles that the kind's own lack: anchors are looked at where they are not those of before.
pub(crate) struct AnchorHooks;

impl Hooks for AnchorHooks {
    fn validate(&self, new: &Value, old: Option<&Value>, errors: &mut Errors) {
        let given = &new["spec"]["trustBundle"];
        if old.is_none_or(|o| o["spec"]["trustBundle"] != *given) {
            validate(given.as_str().unwrap_or_default(), &Path::new("spec.trustBundle"), errors);
        }
    }
}

/// The authorities that a bundle consists of: PEM blocks of X.509 certificates that may sign others, each of them once.
fn validate(bundle: &str, path: &Path<'_>, errors: &mut Errors) {
    const OMITTED: &str = "<value omitted>";
    if bundle.len() > BUNDLE_MAX {
        errors.too_long(path, BUNDLE_MAX);
        return;
    }
    let (mut seen, mut sound) = (Vec::<(Vec<u8>, Vec<String>)>::new(), true);
    for (i, block) in pem_blocks(bundle).into_iter().enumerate() {
        let fault = block.fault();
        sound &= fault.is_none();
        match (fault, seen.iter_mut().find(|(der, _)| *der == block.der)) {
            (Some(why), _) => errors.invalid(path, OMITTED, format!("entry {i} {why}")),
            (None, Some((_, places))) => places.push(i.to_string()),
            (None, None) => seen.push((block.der, vec![i.to_string()])),
        }
    }
    if sound && seen.is_empty() {
        errors.invalid(path, OMITTED, "at least one trust anchor must be provided");
    }
    for (_, places) in seen.iter().filter(|(_, places)| sound && places.len() > 1) {
        errors.invalid(path, OMITTED, format!("duplicate trust anchor (indices [{}])", places.join(" ")));
    }
}

/// A block of PEM: what it says that it is, whether it has headers, and its content.
struct Block {
    label: String,
    headers: bool,
    der: Vec<u8>,
}

impl Block {
    /// Why it is no trust anchor.
    fn fault(&self) -> Option<String> {
        if self.label != "CERTIFICATE" {
            return Some(format!("has bad block type: {}", self.label));
        }
        if self.headers {
            return Some("has PEM block headers".to_owned());
        }
        let Ok((_, certificate)) = X509Certificate::from_der(&self.der) else {
            return Some("does not parse as X.509".to_owned());
        };
        (!certificate.is_ca()).then(|| "does not have the CA bit set".to_owned())
    }
}

/// All whole blocks in a text, with anything between them.
fn pem_blocks(text: &str) -> Vec<Block> {
    let (mut all, mut open) = (vec![], None::<(String, bool, String)>);
    for line in text.lines().map(str::trim_end) {
        let mark = |word: &str| line.strip_prefix(word)?.strip_suffix("-----").map(str::to_owned);
        if let Some(label) = mark("-----BEGIN ") {
            open = Some((label, false, String::new()));
        } else if let Some(end) = mark("-----END ") {
            if let Some((label, headers, content)) = open.take()
                && label == end
                && let Ok(der) = STANDARD.decode(content)
            {
                all.push(Block { label, headers, der });
            }
        } else if let Some((_, headers, content)) = &mut open {
            if line.contains(':') {
                *headers = true;
            } else {
                content.push_str(line.trim());
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_of_trust() {
        const CA: &str = include_str!("testdata/ca.pem");
        const LEAF: &str = include_str!("testdata/leaf.pem");
        let told = |bundle: &str| {
            let mut errors = Errors::new();
            validate(bundle, &Path::new("spec.trustBundle"), &mut errors);
            errors.sentence().replace("spec.trustBundle: Invalid value: \"<value omitted>\": ", "")
        };
        let with_header = CA.replacen("-----\n", "-----\nProc-Type: 4,ENCRYPTED\n\n", 1);
        for (bundle, why) in [
            (CA, "[]"),
            ("", "at least one trust anchor must be provided"),
            ("words", "at least one trust anchor must be provided"),
            (LEAF, "entry 0 does not have the CA bit set"),
            (&format!("{CA}words between\n{CA}"), "duplicate trust anchor (indices [0 1])"),
            (&CA.replace("CERTIFICATE", "KEY"), "entry 0 has bad block type: KEY"),
            (&with_header, "entry 0 has PEM block headers"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "entry 0 does not parse as X.509"),
        ] {
            assert_eq!(told(bundle), why, "{bundle}");
        }
    }
}
