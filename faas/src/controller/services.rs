//! The Services that lead to the gateway: one per function and tag, and the gateway's own.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use skiff_controllers::runtime::controller_ref;
use skiff_controllers::runtime::informer::controller_of;
use skiff_controllers::runtime::worker::{Error, code, text};

use super::status::Fault;
use super::{Controller, names};
use crate::api::{FUNCTION, Function};

/// How long what was made is believed to be there.
const BELIEVED: Duration = Duration::from_secs(600);
/// Namespace and name of the gateway's own Service.
const GATEWAY: (&str, &str) = ("kube-system", "skiff-gateway");
/// The label by which slices belong to Services.
const SERVICE: &str = "kubernetes.io/service-name";
/// The label that keeps the cluster's own controllers away from slices.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Who manages ours.
const MANAGER: &str = "functions.skiff.dev";

/// Where the gateway is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Address that pods reach it at. None: it has no Services.
    pub address: Option<IpAddr>,
    /// Port of HTTP.
    pub http: u16,
    /// Port of HTTPS.
    pub https: Option<u16>,
    /// Domain of cluster DNS.
    pub domain: String,
}

/// What was made for a function, and when: its uid, the names of its Services, its hosts.
pub(super) type Ensured = HashMap<String, (String, Vec<String>, Vec<String>, Instant)>;

fn port(name: &str, port: u16, target: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(port),
        target_port: Some(IntOrString::Int(i32::from(target))),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}

impl Place {
    fn meta(namespace: &str, name: &str, owner: Option<&OwnerReference>, labels: &[(&str, &str)]) -> ObjectMeta {
        let labels: BTreeMap<_, _> = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels).filter(|l| !l.is_empty()),
            owner_references: owner.map(|o| vec![o.clone()]),
            ..ObjectMeta::default()
        }
    }

    fn slice(&self, meta: ObjectMeta, address: IpAddr, https: bool) -> EndpointSlice {
        let of = |name: &str, port: u16| EndpointPort {
            name: Some(name.to_owned()),
            port: Some(i32::from(port)),
            protocol: Some("TCP".to_owned()),
            ..EndpointPort::default()
        };
        let conditions = EndpointConditions { ready: Some(true), serving: Some(true), terminating: Some(false) };
        let endpoint =
            Endpoint { addresses: vec![address.to_string()], conditions: Some(conditions), ..Endpoint::default() };
        let https = self.https.filter(|_| https).map(|p| of("https", p));
        EndpointSlice {
            metadata: meta,
            address_type: if address.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(),
            endpoints: Some(vec![endpoint]),
            ports: Some([of("http", self.http)].into_iter().chain(https).collect()),
        }
    }

    /// Makes the gateway's own Service.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn announce(&self, client: &Client) -> Result<(), Error> {
        let Some(address) = self.address else { return Ok(()) };
        let mut ports = vec![port("http", 80, self.http)];
        ports.extend(self.https.map(|p| port("https", 443, p)));
        ensure(client, GATEWAY.0, GATEWAY.1, None, ports, &[]).await?;
        let labels = [(SERVICE, GATEWAY.1), (MANAGED_BY, MANAGER)];
        let meta = Self::meta(GATEWAY.0, GATEWAY.1, None, &labels);
        put_slice(client, self.slice(meta, address, true)).await
    }
}

/// Makes a Service without selector. What is in the way, where one is there that is not ours.
async fn ensure(
    client: &Client,
    namespace: &str,
    name: &str,
    owner: Option<&OwnerReference>,
    ports: Vec<ServicePort>,
    labels: &[(&str, &str)],
) -> Result<Option<Fault>, Error> {
    let api = Api::<Service>::namespaced(client.clone(), namespace);
    if let Some(found) = api.get_opt(name).await? {
        let ours = controller_of(&found).map(|o| &o.uid) == owner.map(|o| &o.uid);
        let message = format!("there is a Service {name} that does not belong to the function");
        return Ok((!ours).then(|| Fault { reason: "ServiceConflict".into(), message }));
    }
    let service = Service {
        metadata: Place::meta(namespace, name, owner, labels),
        spec: Some(ServiceSpec { ports: Some(ports), ..ServiceSpec::default() }),
        status: None,
    };
    match api.create(&PostParams::default(), &service).await {
        Ok(_) => Ok(None),
        // It just came: the next look sees whose it is.
        Err(e) if code(&e) == 409 => Err(Error::Other(format!("the Service {name} was just made by somebody else"))),
        Err(e) if code(&e) == 422 => Ok(Some(Fault {
            reason: "ServiceRefused".into(),
            message: format!("the Service {name} was refused: {}", text(&e)),
        })),
        Err(e) => Err(e.into()),
    }
}

async fn put_slice(client: &Client, mut slice: EndpointSlice) -> Result<(), Error> {
    let (namespace, name) = names(&slice);
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    let api = Api::<EndpointSlice>::namespaced(client.clone(), &namespace);
    match api.get_opt(&name).await? {
        None => {
            api.create(&PostParams::default(), &slice).await?;
        }
        Some(found) if found.endpoints == slice.endpoints && found.ports == slice.ports => {}
        Some(found) => {
            slice.metadata.resource_version = found.metadata.resource_version;
            api.replace(&name, &PostParams::default(), &slice).await?;
        }
    }
    Ok(())
}

impl Controller {
    /// Makes the function's Services, and removes those of tags that are gone. What is in the way.
    pub(super) async fn services(&self, function: &Arc<Function>) -> Result<Option<Fault>, Error> {
        let Some(address) = self.place.address else { return Ok(None) };
        let (namespace, name) = names(&**function);
        let key = format!("{namespace}/{name}");
        let uid = function.metadata.uid.clone().unwrap_or_default();
        let tags = function.spec.traffic.iter().filter_map(|t| t.tag.as_ref()).map(|t| format!("{t}-{name}"));
        let wanted: Vec<String> = [name.to_owned()].into_iter().chain(tags).collect();
        let hosts = &function.spec.hosts;
        let known = self.ensured.lock().get(&key).cloned();
        if known
            .is_some_and(|(of, names, to, at)| of == uid && names == wanted && to == *hosts && at.elapsed() < BELIEVED)
        {
            return Ok(None);
        }
        let owner = controller_ref(&**function);
        let labels = [(FUNCTION, name)];
        for service in &wanted {
            let ports = vec![port("http", 80, self.place.http)];
            if let Some(fault) = ensure(&self.client, namespace, service, Some(&owner), ports, &labels).await? {
                return Ok(Some(fault));
            }
            let labels = [(SERVICE, service.as_str()), (MANAGED_BY, MANAGER), (FUNCTION, name)];
            let meta = Place::meta(namespace, &format!("{service}-gateway"), Some(&owner), &labels);
            put_slice(&self.client, self.place.slice(meta, address, false)).await?;
        }
        let api = Api::<Service>::namespaced(self.client.clone(), namespace);
        let of_function = ListParams::default().labels(&format!("{FUNCTION}={name}"));
        for service in api.list(&of_function).await? {
            let old = names(&service).1;
            let ours = controller_of(&service).is_some_and(|o| o.uid == uid);
            if ours && !wanted.iter().any(|w| w == old) {
                let slices = Api::<EndpointSlice>::namespaced(self.client.clone(), namespace);
                gone(slices.delete(&format!("{old}-gateway"), &DeleteParams::default()).await.map(drop))?;
                gone(api.delete(old, &DeleteParams::default()).await.map(drop))?;
            }
        }
        if let Some(fault) = super::ingress::ensure(&self.client, namespace, name, hosts, &owner).await? {
            return Ok(Some(fault));
        }
        self.ensured.lock().insert(key, (uid, wanted, hosts.clone(), Instant::now()));
        Ok(None)
    }
}

pub(super) fn gone(answer: kube::Result<()>) -> Result<(), Error> {
    match answer {
        Err(e) if code(&e) == 404 => Ok(()),
        other => Ok(other?),
    }
}
