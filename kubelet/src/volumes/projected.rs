//! Volumes of several sources: ConfigMaps, Secrets, the downward API, tokens, trust bundles and certificates.

use std::sync::PoisonError;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ProjectedVolumeSource, ServiceAccount, ServiceAccountTokenProjection, Volume};
use kube::Api;
use kube::api::PostParams;

use super::atomic::Payload;
use super::files::{add, config_map_files, downward_files, restrict, secret_files};
use super::{REQUEST_TIMEOUT, Volumes};
use crate::pod::fields::Facts;
use crate::pod::spec;
use crate::trust;

/// Life of a token whose projection names none.
const TOKEN_SECONDS: i64 = 3600;

/// A token of a service account, kept until it is renewed.
#[derive(Clone)]
pub(super) struct Token {
    text: String,
    pub(super) refresh: Timestamp,
    expires: Timestamp,
}

impl Volumes {
    /// Adds the files of all sources.
    pub(super) async fn projected(
        &self,
        files: &mut Payload,
        pod: &Pod,
        volume: &Volume,
        projected: &ProjectedVolumeSource,
        facts: &Facts,
        fs_group: Option<u32>,
    ) -> Result<(), String> {
        let namespace = spec::namespace(pod);
        let mode = projected.default_mode.unwrap_or(0o644);
        let private = |files: &mut Payload, path: &str, data: String, user: Option<i64>| {
            add(files, path, data.into_bytes(), mode);
            if let Some(file) = files.get_mut(path) {
                restrict(pod, file, fs_group, user.or(projected.default_user));
            }
        };
        for (index, source) in projected.sources.iter().flatten().enumerate() {
            if let Some(source) = &source.config_map {
                let optional = source.optional.unwrap_or(false);
                let found = self.config_map(namespace, &source.name, optional).await?;
                config_map_files(files, found.as_deref(), &source.name, source.items.as_deref(), mode, optional)?;
            }
            if let Some(source) = &source.secret {
                let optional = source.optional.unwrap_or(false);
                let found = self.secret(namespace, &source.name, optional).await?;
                secret_files(files, found.as_deref(), &source.name, source.items.as_deref(), mode, optional)?;
            }
            if let Some(source) = &source.downward_api {
                downward_files(files, pod, source.items.as_deref(), mode, facts)?;
            }
            if let Some(source) = &source.service_account_token {
                let token = self.token(pod, &volume.name, source).await?;
                private(files, &source.path, token, source.user);
            }
            if let Some(source) = &source.cluster_trust_bundle {
                let bundles = self.sources.bundles().await.map_err(|e| e.to_string())?;
                private(files, &source.path, trust::anchors(&bundles, source)?, source.user);
            }
            if let Some(source) = &source.pod_certificate {
                let credential = self.certificates.credential(pod, &volume.name, index, source)?;
                let (key, chain) = (&credential.key, &credential.chain);
                let given = |path: &Option<String>| path.clone().filter(|p| !p.is_empty());
                if let Some(path) = given(&source.credential_bundle_path) {
                    private(files, &path, format!("{key}{chain}"), source.user);
                }
                if let Some(path) = given(&source.key_path) {
                    private(files, &path, key.clone(), source.user);
                }
                if let Some(path) = given(&source.certificate_chain_path) {
                    private(files, &path, chain.clone(), source.user);
                }
            }
        }
        Ok(())
    }

    /// A token for the pod's service account; a new one when the old has lived 80 % of its life.
    async fn token(
        &self,
        pod: &Pod,
        volume: &str,
        projection: &ServiceAccountTokenProjection,
    ) -> Result<String, String> {
        let key = (spec::uid(pod).to_string(), volume.to_string(), projection.path.clone());
        let now = Timestamp::now();
        let held = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(token) = held.as_ref().filter(|t| now < t.refresh) {
            return Ok(token.text.clone());
        }
        let seconds = projection.expiration_seconds.unwrap_or(TOKEN_SECONDS);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: projection.audience.clone().filter(|a| !a.is_empty()).map(|a| vec![a]),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let account = spec::spec(pod).service_account_name.clone().unwrap_or_else(|| "default".into());
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), spec::namespace(pod));
        let params = PostParams::default();
        let asked = api.create_token_request(&account, &params, &request);
        let answer = match tokio::time::timeout(REQUEST_TIMEOUT, asked).await {
            Ok(Ok(answer)) => answer.status,
            Ok(Err(error)) => return keep_or(held, format!("failed to fetch token: {error}")),
            Err(_) => return keep_or(held, "failed to fetch token: timed out".into()),
        };
        let status = answer.unwrap_or_default();
        let (Some(text), Some(expires)) = (status.token, status.expiration_timestamp.map(|t| t.0)) else {
            return Err("failed to fetch token: empty answer".into());
        };
        let life = (expires.as_second() - now.as_second()).max(1);
        let refresh = Timestamp::from_second(now.as_second() + life * 4 / 5).unwrap_or(expires);
        let token = Token { text, refresh, expires };
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(key, token.clone());
        Ok(token.text)
    }
}

/// A token that still lives is better than none.
fn keep_or(held: Option<Token>, error: String) -> Result<String, String> {
    match held {
        Some(token) if Timestamp::now() < token.expires => Ok(token.text),
        _ => Err(error),
    }
}
