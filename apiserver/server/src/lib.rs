//! The API server.
pub mod auth;
pub mod body;
pub mod negotiate;
pub mod pki;
pub mod registry;
pub mod request;
