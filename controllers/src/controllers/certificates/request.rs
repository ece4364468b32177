//! What a signing request asks for, and whether its signer may sign that. No I/O.

use std::collections::BTreeSet;
use std::net::IpAddr;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::{CLIENT, NODE_CLIENT, NODE_SERVING};

/// What names of node agents begin with.
pub const NODE_PREFIX: &str = "system:node:";
const NODES: &str = "system:nodes";

/// The parts of a PKCS#10 request that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The subject, as encoded.
    pub subject: Vec<u8>,
    /// The public key with its algorithm, as encoded.
    pub key: Vec<u8>,
    /// Common name of the subject; the last, should there be several.
    pub common_name: String,
    /// Organisations of the subject, in order.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Mail addresses.
    pub emails: Vec<String>,
    /// URIs.
    pub uris: Vec<String>,
}

impl Request {
    /// Reads the PEM of a request and verifies that the asker has the key.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem).map_err(|e| e.to_string())?;
        if pem.label != "CERTIFICATE REQUEST" {
            return Err("PEM block type must be CERTIFICATE REQUEST".into());
        }
        let (_, csr) = X509CertificationRequest::from_der(&pem.contents).map_err(|e| e.to_string())?;
        csr.verify_signature().map_err(|e| e.to_string())?;
        let info = &csr.certification_request_info;
        let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().unwrap_or_default().to_owned();
        let mut request = Self {
            subject: info.subject.as_raw().to_vec(),
            key: info.subject_pki.raw.to_vec(),
            common_name: info.subject.iter_common_name().last().map(text).unwrap_or_default(),
            organizations: info.subject.iter_organization().map(text).collect(),
            ..Self::default()
        };
        for extension in csr.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(n) => request.dns.push((*n).to_owned()),
                    GeneralName::RFC822Name(n) => request.emails.push((*n).to_owned()),
                    GeneralName::URI(n) => request.uris.push((*n).to_owned()),
                    GeneralName::IPAddress(bytes) => request.addresses.push(address(bytes)?),
                    // What is not understood is not signed.
                    _ => {}
                }
            }
        }
        Ok(request)
    }

    /// The node whose agent this is about.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.common_name.strip_prefix(NODE_PREFIX).filter(|n| !n.is_empty())
    }

    /// Whether `signer` may sign this for `usages`. A signer that is not served here never may.
    ///
    /// # Errors
    /// Why not, in upstream's words.
    pub fn check(&self, signer: &str, usages: &[String]) -> Result<(), String> {
        match signer {
            CLIENT => {
                let optional = ["digital signature", "key encipherment"];
                if let Some(u) = usages.iter().find(|u| *u != "client auth" && !optional.contains(&u.as_str())) {
                    return Err(format!("invalid usage for client certificate: {u}"));
                }
                if usages.iter().any(|u| u == "client auth") {
                    return Ok(());
                }
                Err("missing required usage for client certificate: client auth".into())
            }
            NODE_CLIENT => {
                self.of_nodes()?;
                for (names, kind) in [
                    (self.dns.is_empty(), "DNS"),
                    (self.emails.is_empty(), "Email"),
                    (self.addresses.is_empty(), "IP"),
                    (self.uris.is_empty(), "URI"),
                ] {
                    if !names {
                        return Err(format!("{kind} subjectAltNames are not allowed"));
                    }
                }
                exactly(usages, "client auth")?;
                self.named_as_node()
            }
            NODE_SERVING => {
                self.of_nodes()?;
                if self.dns.is_empty() && self.addresses.is_empty() {
                    return Err("DNS or IP subjectAltName is required".into());
                }
                for (names, kind) in [(self.emails.is_empty(), "Email"), (self.uris.is_empty(), "URI")] {
                    if !names {
                        return Err(format!("{kind} subjectAltNames are not allowed"));
                    }
                }
                exactly(usages, "server auth")?;
                self.named_as_node()
            }
            other => Err(format!("signer {other} is not served")),
        }
    }

    fn of_nodes(&self) -> Result<(), String> {
        let good = self.organizations == [NODES];
        if good { Ok(()) } else { Err("subject organization is not system:nodes".into()) }
    }

    fn named_as_node(&self) -> Result<(), String> {
        let good = self.common_name.starts_with(NODE_PREFIX);
        if good { Ok(()) } else { Err("subject common name does not begin with system:node:".into()) }
    }
}

fn address(bytes: &[u8]) -> Result<IpAddr, String> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).map_err(|_| "an address of odd length".to_owned())
}

/// The usage, with a signature, and with what keys of RSA need besides or without.
fn exactly(usages: &[String], usage: &str) -> Result<(), String> {
    let given: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let with = BTreeSet::from([usage, "digital signature", "key encipherment"]);
    let without = BTreeSet::from([usage, "digital signature"]);
    if given == with || given == without {
        return Ok(());
    }
    let list: Vec<&str> = with.into_iter().collect();
    Err(format!("usages did not match [{}]", list.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(common_name: &str, organizations: &[&str], dns: &[&str]) -> Request {
        Request {
            common_name: common_name.into(),
            organizations: organizations.iter().map(|s| (*s).into()).collect(),
            dns: dns.iter().map(|s| (*s).into()).collect(),
            ..Request::default()
        }
    }

    #[test]
    fn signers_sign_what_is_theirs() {
        let client = "client auth,digital signature";
        let server = "server auth,digital signature,key encipherment";
        let node = "system:node:a";
        for (signer, common_name, organization, dns, usages, error) in [
            (NODE_CLIENT, node, "system:nodes", "", client, ""),
            (NODE_CLIENT, node, "system:nodes", "", "client auth,digital signature,key encipherment", ""),
            (NODE_CLIENT, node, "system:masters", "", client, "subject organization is not system:nodes"),
            (NODE_CLIENT, "a", "system:nodes", "", client, "subject common name does not begin with system:node:"),
            (NODE_CLIENT, node, "system:nodes", "a", client, "DNS subjectAltNames are not allowed"),
            (
                NODE_CLIENT,
                node,
                "system:nodes",
                "",
                server,
                "usages did not match [client auth digital signature key encipherment]",
            ),
            (NODE_SERVING, node, "system:nodes", "a", server, ""),
            (NODE_SERVING, node, "system:nodes", "", server, "DNS or IP subjectAltName is required"),
            (CLIENT, "x", "y", "", client, ""),
            (CLIENT, "x", "y", "", server, "invalid usage for client certificate: server auth"),
            (CLIENT, "x", "y", "", "digital signature", "missing required usage for client certificate: client auth"),
        ] {
            let dns: Vec<&str> = dns.split_terminator(',').collect();
            let usages: Vec<String> = usages.split(',').map(String::from).collect();
            let got = request(common_name, &[organization], &dns).check(signer, &usages);
            assert_eq!(got.err().unwrap_or_default(), error, "{signer} {common_name} {organization} {usages:?}");
        }
        let two = request(node, &["system:nodes", "x"], &[]);
        assert!(two.check(NODE_CLIENT, &["client auth".into(), "digital signature".into()]).is_err());
    }
}
