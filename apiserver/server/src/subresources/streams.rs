//! Logs, exec, attach, port-forward: checked here, carried out by the node agent.

use std::net::IpAddr;
use std::sync::Arc;

use http::Method;
use serde_json::Value;
use skiff_core::status::Status;

use super::sockets;
use crate::kubelets::{Forward, relay};
use crate::registry::Kind;
use crate::server::Inner;
use crate::verbs::{Answer, Call};

/// Port of the node agent when its Node does not say.
const KUBELET_PORT: u16 = 10250;

async fn pod(kind: &Kind, call: &Call) -> Result<Value, Status> {
    let (ns, name) = (&call.target.namespace, &call.target.name);
    let found = kind.stored()?.get(ns, name).await?.ok_or_else(|| kind.not_found(name))?;
    kind.load(&found)
}

/// Where the node agent of a node listens.
///
/// # Errors
/// 500 when the node is unknown or has no address.
pub fn agent_of(server: &Inner, node: &str) -> Result<(IpAddr, u16), Status> {
    let n = server.peek("", "nodes", "", node).ok_or_else(|| Status::not_found("", "nodes", node))?;
    let addresses = n["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let pick = |t: &str| addresses.iter().find(|a| a["type"] == t).and_then(|a| a["address"].as_str()?.parse().ok());
    let address = pick("InternalIP").or_else(|| pick("ExternalIP")).ok_or_else(|| {
        Status::internal(format!("no preferred addresses found; known addresses: {}", addresses.len()))
    })?;
    let port = n["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().and_then(|p| u16::try_from(p).ok());
    Ok((address, port.filter(|p| *p > 0).unwrap_or(KUBELET_PORT)))
}

fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    pod["spec"][list].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
}

/// The container meant, which must exist.
fn container(pod: &Value, asked: &str) -> Result<String, Status> {
    let name = skiff_core::meta::name(pod);
    let (init, main, ephemeral) =
        (names(pod, "initContainers"), names(pod, "containers"), names(pod, "ephemeralContainers"));
    if asked.is_empty() {
        return match main.as_slice() {
            [one] if init.is_empty() || main.len() == 1 => Ok((*one).to_owned()),
            [] => Err(Status::bad_request(format!("a container name must be specified for pod {name}"))),
            _ => {
                let all: Vec<&str> = init.iter().chain(&main).chain(&ephemeral).copied().collect();
                let list = all.join(" ");
                Err(Status::bad_request(format!(
                    "a container name must be specified for pod {name}, choose one of: [{list}]"
                )))
            }
        };
    }
    let known = init.iter().chain(&main).chain(&ephemeral).any(|c| *c == asked);
    if known {
        Ok(asked.to_owned())
    } else {
        Err(Status::bad_request(format!("container {asked} is not valid for pod {name}")))
    }
}

fn host_of(pod: &Value) -> Option<&str> {
    pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty())
}

/// `pods/log`.
///
/// # Errors
/// 400, 404, 500.
pub async fn log(server: &Arc<Inner>, kind: &Arc<Kind>, call: &mut Call, raw_query: &str) -> Result<Answer, Status> {
    skiff_core::kinds::validate_log_options(&call.target.name, &|k| call.query.get(k).map(str::to_owned))?;
    let pod = pod(kind, call).await?;
    let c = container(&pod, call.query.get("container").unwrap_or_default())?;
    let Some(node) = host_of(&pod) else {
        // Not scheduled yet: there is nothing to read, which is no error.
        let mut r = http::Response::new(crate::body::Body::empty());
        *r.status_mut() = http::StatusCode::NO_CONTENT;
        return Ok(Answer::Http(r));
    };
    let (address, port) = agent_of(server, node)?;
    let socket = sockets::asked(call)?;
    let (ns, name) = (&call.target.namespace, &call.target.name);
    let path = format!("/containerLogs/{ns}/{name}/{c}?{raw_query}");
    let io = server.kubelets.connect(address, port).await?;
    let to = Forward { method: &Method::GET, path, host: format!("{address}:{port}"), extra: vec![] };
    let answer = relay_text(relay(io, call, to).await?).await?;
    Ok(match socket {
        Some(socket) => sockets::send(socket, answer),
        None => answer,
    })
}

/// A node agent's plain-text refusal becomes a Status.
async fn relay_text(answer: Answer) -> Result<Answer, Status> {
    let Answer::Http(r) = answer else { return Ok(answer) };
    if r.status().as_u16() < 400 {
        return Ok(Answer::Http(r));
    }
    let code = r.status().as_u16();
    let is_status = r.headers().get("content-type").is_some_and(|v| v.as_bytes().starts_with(b"application/json"));
    if is_status {
        return Ok(Answer::Http(r));
    }
    let text = crate::kubelets::collect(r.into_body()).await?;
    let text = String::from_utf8_lossy(&text).trim_end().to_owned();
    Err(match code {
        400 => Status::bad_request(text),
        404 => Status::new(404, "NotFound", text),
        403 => Status::new(403, "Forbidden", text),
        _ => Status::internal(text),
    })
}

/// `pods/exec`, `pods/attach`, `pods/portforward`.
///
/// # Errors
/// 400, 403, 404, 500.
pub async fn stream(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    method: &Method,
    call: &mut Call,
    raw_query: &str,
) -> Result<Answer, Status> {
    if !matches!(*method, Method::GET | Method::POST) {
        return Err(Status::method_not_allowed());
    }
    if *method == Method::GET {
        // Upgrading over GET must not do what only `create` allows (since 1.35).
        crate::chain::authorise_create(server, call)?;
    }
    let pod = pod(kind, call).await?;
    let sub = call.target.subresource.clone();
    let (ns, name) = (call.target.namespace.clone(), call.target.name.clone());
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    let path = if sub == "portforward" {
        if phase != "Running" && host_of(&pod).is_some() {
            return Err(Status::bad_request(format!(
                "unable to forward port because pod is not running. Current status={phase}"
            )));
        }
        format!("/portForward/{ns}/{name}?{raw_query}")
    } else {
        let c = container(&pod, call.query.get("container").unwrap_or_default())?;
        if matches!(phase, "Succeeded" | "Failed") && sub == "exec" {
            return Err(Status::untyped(format!(
                "cannot exec into a container in a completed pod; current phase is {phase}"
            )));
        }
        format!("/{sub}/{ns}/{name}/{c}?{raw_query}")
    };
    let Some(node) = host_of(&pod) else {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    };
    let (address, port) = agent_of(server, node)?;
    if !call.headers.contains_key("upgrade") {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let io = server.kubelets.connect(address, port).await?;
    let to = Forward { method, path, host: format!("{address}:{port}"), extra: vec![] };
    relay_text(relay(io, call, to).await?).await
}
