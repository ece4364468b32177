//! Who is asking, and may they.

pub mod bootstrap;
pub mod escalation;
pub mod identity;
pub mod impersonation;
pub mod node;
pub mod rbac;
pub mod token;

pub use identity::User;
