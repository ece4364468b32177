//! The Step Functions API on this cluster: clients of AWS (boto3, the AWS CLI, SDKs) work by changing the endpoint's URL.
//!
//! A request is `POST /` with `X-Amz-Target: AWSStepFunctions.OPERATION` and JSON 1.0, signed with version 4 ([`sigv4`]). Its
//! way: read the body (bounded), find who signed ([`keys`]), check the shape ([`check`]), ask whether the caller may, carry it
//! out ([`ops`]) on API objects and runs. Which namespace is meant the access key says. Faults are in the service's words
//! ([`error`]).
//!
//! Limits: no presigned URLs; nothing is encrypted with keys of the caller (`encryptionConfiguration` is accepted when it
//! says `AWS_OWNED_KEY`); logging destinations and tracing are kept and told again, no more.

pub mod arn;
mod check;
mod error;
mod keys;
mod model;
mod ops;
mod page;
mod serve;
mod sigv4;

pub use error::Fault;
pub use keys::TYPE as CREDENTIALS;
pub(crate) use ops::versions::latest_version;
pub use ops::versions::publish;
pub use serve::Endpoint;
pub(crate) use serve::gather;
