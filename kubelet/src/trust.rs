//! ClusterTrustBundles as volumes show them: selected, each trust anchor once, nothing but plain PEM blocks.
//!
//! The order of the anchors means nothing, so none is promised: it is another each time the agent starts, and the same
//! until then (a volume whose bundles did not change is not written).

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use skiff_core::selector::LabelSelector;

/// As much of a bundle as a volume needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    signer: String,
    labels: BTreeMap<String, String>,
    pem: String,
}

impl From<ClusterTrustBundle> for Bundle {
    fn from(b: ClusterTrustBundle) -> Self {
        Self {
            signer: b.spec.signer_name.unwrap_or_default(),
            labels: b.metadata.labels.unwrap_or_default(),
            pem: b.spec.trust_bundle,
        }
    }
}

/// All bundles by name.
pub type Bundles = BTreeMap<String, Bundle>;

/// What the projection's file holds.
///
/// # Errors
/// Says what is missing, unless the projection is optional.
pub fn anchors(bundles: &Bundles, projection: &ClusterTrustBundleProjection) -> Result<String, String> {
    let chosen: Vec<&Bundle> = if let Some(name) = &projection.name {
        bundles.get(name).into_iter().collect()
    } else if let Some(signer) = &projection.signer_name {
        let selector = projection.label_selector.as_ref().map(serde_json::to_value);
        let selector = selector.transpose().map_err(|e| format!("while parsing label selector: {e}"))?;
        let selector = LabelSelector::from_object(selector.as_ref());
        bundles.values().filter(|b| b.signer == *signer && selector.matches(&b.labels)).collect()
    } else {
        return Err("ClusterTrustBundle projection requires either name or signerName to be set".into());
    };
    if chosen.is_empty() && projection.optional != Some(true) {
        return Err(match &projection.name {
            Some(name) => {
                format!("while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io {name:?} not found")
            }
            None => "combination of signerName and labelSelector matched zero ClusterTrustBundles".into(),
        });
    }
    Ok(normal(chosen.iter().flat_map(|b| certificates(&b.pem))))
}

/// The certificates of a text; whatever else stands there is passed over.
pub fn certificates(pem: &str) -> Vec<Vec<u8>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(|c| Some(c.ok()?.to_vec())).collect()
}

fn normal(all: impl Iterator<Item = Vec<u8>>) -> String {
    static ORDER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let once: BTreeSet<(u64, Vec<u8>)> = all.map(|c| (ORDER.hash_one(&c), c)).collect();
    once.iter().map(|(_, c)| skiff_core::pem::encode("CERTIFICATE", c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pem(content: &str) -> String {
        skiff_core::pem::encode("CERTIFICATE", content.as_bytes())
    }

    fn bundles() -> Bundles {
        let bundle = |signer: &str, alive: &str, text: String| Bundle {
            signer: signer.into(),
            labels: BTreeMap::from([("alive".into(), alive.into())]),
            pem: text,
        };
        let noisy = format!("a word before\n{}between\n{}", pem("one"), pem("two"));
        [
            ("s:a", bundle("s", "yes", noisy)),
            ("s:b", bundle("s", "no", pem("two") + &pem("three"))),
            ("t:a", bundle("t", "yes", pem("four"))),
            ("own", bundle("", "yes", pem("five"))),
        ]
        .map(|(name, b)| (name.to_owned(), b))
        .into()
    }

    /// Which anchors a projection gives, or why none.
    fn shown(projection: serde_json::Value) -> Result<Vec<String>, String> {
        let text = anchors(&bundles(), &serde_json::from_value(projection).unwrap())?;
        let mut found: Vec<_> = certificates(&text).into_iter().map(|c| String::from_utf8(c).unwrap()).collect();
        assert_eq!(text, found.iter().map(|c| pem(c)).collect::<String>(), "nothing but blocks");
        found.sort();
        Ok(found)
    }

    #[test]
    fn bundles_are_chosen_and_each_anchor_is_shown_once() {
        let all = json!({});
        for (projection, wanted) in [
            (json!({"path": "p", "name": "own"}), Some(vec!["five"])),
            (json!({"path": "p", "name": "none"}), None),
            (json!({"path": "p", "name": "none", "optional": true}), Some(vec![])),
            (json!({"path": "p", "signerName": "s", "labelSelector": all}), Some(vec!["one", "three", "two"])),
            (
                json!({"path": "p", "signerName": "s", "labelSelector": {"matchLabels": {"alive": "yes"}}}),
                Some(vec!["one", "two"]),
            ),
            (json!({"path": "p", "signerName": "s", "labelSelector": {"matchLabels": {"alive": "?"}}}), None),
            // No selector chooses nothing, an empty one everything.
            (json!({"path": "p", "signerName": "s"}), None),
            (json!({"path": "p", "signerName": "s", "optional": true}), Some(vec![])),
            (json!({"path": "p"}), None),
        ] {
            let got = shown(projection.clone());
            assert_eq!(got.clone().ok(), wanted.map(|w| w.iter().map(ToString::to_string).collect()), "{projection}");
        }
        let why = shown(json!({"path": "p", "name": "none"})).unwrap_err();
        assert!(why.ends_with("\"none\" not found"), "{why}");
    }

    #[test]
    fn the_order_stays() {
        let ask = serde_json::from_value(json!({"path": "p", "signerName": "s", "labelSelector": {}})).unwrap();
        let first = anchors(&bundles(), &ask).unwrap();
        assert!((0..9).all(|_| anchors(&bundles(), &ask).unwrap() == first));
    }
}
