//! The Ingress by which `spec.hosts` of a function are reached from outside: of the function's name, owned by it, of the
//! cluster's default class. It leads to the function's Service and so to the gateway, which knows the hosts too.

use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressRule, IngressServiceBackend, IngressSpec,
    ServiceBackendPort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use skiff_controllers::runtime::informer::controller_of;
use skiff_controllers::runtime::worker::{Error, code};

use super::services::gone;
use super::status::Fault;
use crate::api::FUNCTION;

/// The rules for some hosts: all of each leads to the Service.
fn rules(service: &str, hosts: &[String]) -> Vec<IngressRule> {
    let port = ServiceBackendPort { name: Some("http".to_owned()), number: None };
    let backend = IngressBackend {
        service: Some(IngressServiceBackend { name: service.to_owned(), port: Some(port) }),
        resource: None,
    };
    let path = HTTPIngressPath { backend, path: Some("/".to_owned()), path_type: "Prefix".to_owned() };
    let rule = |host: &String| IngressRule {
        host: Some(host.to_ascii_lowercase()),
        http: Some(HTTPIngressRuleValue { paths: vec![path.clone()] }),
    };
    hosts.iter().map(rule).collect()
}

/// Makes the Ingress be as the hosts say; without hosts there is none. Returns what is in the way.
pub(super) async fn ensure(
    client: &Client,
    namespace: &str,
    name: &str,
    hosts: &[String],
    owner: &OwnerReference,
) -> Result<Option<Fault>, Error> {
    let api = Api::<Ingress>::namespaced(client.clone(), namespace);
    let found = api.get_opt(name).await?;
    let ours = |i: &Ingress| controller_of(i).is_some_and(|o| o.uid == owner.uid);
    let fault = |reason: &str, message: String| Ok(Some(Fault { reason: reason.to_owned(), message }));
    match found {
        None if hosts.is_empty() => Ok(None),
        Some(found) if !ours(&found) => match hosts.is_empty() {
            true => Ok(None),
            false => {
                fault("IngressConflict", format!("there is an Ingress {name} that does not belong to the function"))
            }
        },
        Some(_) if hosts.is_empty() => {
            gone(api.delete(name, &DeleteParams::default()).await.map(drop))?;
            Ok(None)
        }
        found => {
            // What else a person set there, such as certificates, stays.
            let mut ingress = found.clone().unwrap_or_else(|| Ingress {
                metadata: ObjectMeta {
                    name: Some(name.to_owned()),
                    owner_references: Some(vec![owner.clone()]),
                    labels: Some([(FUNCTION.to_owned(), name.to_owned())].into()),
                    ..ObjectMeta::default()
                },
                ..Ingress::default()
            });
            ingress.spec.get_or_insert_with(IngressSpec::default).rules = Some(rules(name, hosts));
            let answer = match &found {
                None => api.create(&PostParams::default(), &ingress).await,
                Some(before) if before.spec == ingress.spec => return Ok(None),
                Some(_) => api.replace(name, &PostParams::default(), &ingress).await,
            };
            match answer {
                Err(e) if code(&e) == 422 => fault("IngressRefused", format!("the Ingress {name} was refused: {e}")),
                other => Ok(other.map(|_| None)?),
            }
        }
    }
}
