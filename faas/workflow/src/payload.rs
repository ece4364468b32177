//! Long data of runs in objects of their own, named by what is in them: writing again what is there changes nothing.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Resource as _};
use skiff_controllers::runtime::worker::code;

use crate::api::{PayloadRef, RUN, WorkflowMapRun, WorkflowPayload, WorkflowPayloadSpec, WorkflowRun};
use crate::pack::{self, UnpackError};

/// Deflated bytes in one part: 48 KiB of base64.
const PART: usize = 36 * 1024;
/// Parts of one payload.
const PARTS_MAX: usize = 8192;

/// Why long data is not there.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The API does not answer, or refuses.
    #[error("the payload {name} cannot be reached: {source}")]
    Api {
        /// The object.
        name: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// A part is not there.
    #[error("the payload {0} is missing")]
    Missing(String),
    /// What is there is something else.
    #[error("the payload {0} is damaged")]
    Damaged(String),
    /// It cannot be unpacked.
    #[error("the payload {name} is damaged: {source}")]
    Packed {
        /// The object.
        name: String,
        /// Why.
        #[source]
        source: UnpackError,
    },
    /// It is too long to be stored.
    #[error("a payload of {0} bytes is too long")]
    TooLong(usize),
}

/// The run, or the run of a map, that owns data.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl Owner {
    /// What belongs to a run.
    #[must_use]
    pub fn of(run: &WorkflowRun) -> Self {
        Self {
            kind: "WorkflowRun",
            namespace: run.metadata.namespace.clone().unwrap_or_default(),
            name: run.metadata.name.clone().unwrap_or_default(),
            uid: run.metadata.uid.clone().unwrap_or_default(),
        }
    }

    /// What belongs to a run of a map.
    #[must_use]
    pub fn of_map(map: &WorkflowMapRun) -> Self {
        Self {
            kind: "WorkflowMapRun",
            namespace: map.metadata.namespace.clone().unwrap_or_default(),
            name: map.metadata.name.clone().unwrap_or_default(),
            uid: map.metadata.uid.clone().unwrap_or_default(),
        }
    }

    /// The metadata of an object of the run.
    #[must_use]
    pub fn meta(&self, name: String) -> ObjectMeta {
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace.clone()),
            labels: Some([(RUN.to_owned(), self.uid.clone())].into()),
            owner_references: Some(vec![OwnerReference {
                api_version: WorkflowRun::api_version(&()).into_owned(),
                kind: self.kind.to_owned(),
                name: self.name.clone(),
                uid: self.uid.clone(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        }
    }
}

/// Text, cut into parts.
#[derive(Clone, Debug)]
pub struct Payload {
    /// What names it.
    pub reference: PayloadRef,
    deflated: Vec<u8>,
}

impl Payload {
    /// Cuts text.
    ///
    /// # Errors
    /// When it is too long.
    pub fn of(text: &str) -> Result<Self, PayloadError> {
        let deflated = pack::deflate(text.as_bytes());
        let parts = deflated.len().div_ceil(PART).max(1);
        if parts > PARTS_MAX {
            return Err(PayloadError::TooLong(text.len()));
        }
        let reference = PayloadRef {
            digest: pack::digest(text.as_bytes()),
            parts: u32::try_from(parts).unwrap_or(u32::MAX),
            size: text.len() as u64,
        };
        Ok(Self { reference, deflated })
    }

    /// Stores it. It is there afterwards, whether it was before or not.
    ///
    /// # Errors
    /// When the API does not answer or refuses.
    pub async fn store(&self, client: &Client, owner: &Owner) -> Result<(), PayloadError> {
        let api = Api::<WorkflowPayload>::namespaced(client.clone(), &owner.namespace);
        for (n, part) in (0..self.reference.parts).zip(self.deflated.chunks(PART)) {
            let name = self.reference.name_of(&owner.uid, n);
            let object = WorkflowPayload {
                metadata: owner.meta(name.clone()),
                spec: WorkflowPayloadSpec { part: n, data: STANDARD.encode(part) },
            };
            match api.create(&PostParams::default(), &object).await {
                Ok(_) => {}
                Err(e) if code(&e) == 409 => {}
                Err(e) => return Err(PayloadError::Api { name, source: Box::new(e) }),
            }
        }
        Ok(())
    }
}

/// Reads text that was stored.
///
/// # Errors
/// When a part is missing or damaged, or the API does not answer.
pub async fn load(client: &Client, owner: &Owner, reference: &PayloadRef) -> Result<String, PayloadError> {
    let api = Api::<WorkflowPayload>::namespaced(client.clone(), &owner.namespace);
    let mut deflated = Vec::new();
    let first = reference.name_of(&owner.uid, 0);
    for n in 0..reference.parts {
        let name = reference.name_of(&owner.uid, n);
        let part = match api.get(&name).await {
            Ok(part) => part,
            Err(e) if code(&e) == 404 => return Err(PayloadError::Missing(name)),
            Err(e) => return Err(PayloadError::Api { name, source: Box::new(e) }),
        };
        let part = STANDARD.decode(&part.spec.data).map_err(|_| PayloadError::Damaged(name))?;
        deflated.extend_from_slice(&part);
    }
    let text = pack::inflate(&deflated).map_err(|source| PayloadError::Packed { name: first.clone(), source })?;
    if pack::digest(text.as_bytes()) == reference.digest { Ok(text) } else { Err(PayloadError::Damaged(first)) }
}
