//! Who shows a token, and whether somebody may something: the API server is asked, so that each component knows the users
//! and rights of the cluster and keeps none.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

/// The API server's answer may take this long.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User name.
    pub user: String,
    /// Groups.
    pub groups: Vec<String>,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub enum Wish {
    /// A resource.
    Resource(Box<ResourceAttributes>),
    /// A path that is no resource.
    Path(NonResourceAttributes),
}

/// Whose token it is; none when it is nobody's, or when the server does not answer.
pub async fn token(client: &Client, token: &str) -> Option<Identity> {
    let review =
        TokenReview { spec: TokenReviewSpec { token: token.into(), ..Default::default() }, ..Default::default() };
    let api: Api<TokenReview> = Api::all(client.clone());
    let answer = tokio::time::timeout(TIMEOUT, api.create(&PostParams::default(), &review)).await.ok()?.ok()?;
    let status = answer.status?;
    let user = status.user.filter(|_| status.authenticated == Some(true))?;
    Some(Identity { user: user.username?, groups: user.groups.unwrap_or_default() })
}

/// Whether they may; no when the server does not answer.
pub async fn may(client: &Client, who: &Identity, wish: Wish) -> bool {
    let mut spec = SubjectAccessReviewSpec {
        user: Some(who.user.clone()),
        groups: Some(who.groups.clone()),
        ..SubjectAccessReviewSpec::default()
    };
    match wish {
        Wish::Resource(r) => spec.resource_attributes = Some(*r),
        Wish::Path(p) => spec.non_resource_attributes = Some(p),
    }
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let api: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = tokio::time::timeout(TIMEOUT, api.create(&PostParams::default(), &review)).await;
    answer.is_ok_and(|a| a.is_ok_and(|r| r.status.is_some_and(|s| s.allowed)))
}
