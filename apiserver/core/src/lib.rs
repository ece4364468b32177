//! Types and rules of the API, without I/O and without HTTP.
//!
//! - [`schema`]: the shape of every kind, one table; [`resources`]: which resources there are.
//! - [`codec`]: bodies on the wire; [`discovery`], [`openapi`]: how the API describes itself.
//! - [`cron`]: when schedules fire.
//! - [`kinds`]: the rules of each built-in kind; [`custom`]: those a definition makes.
//! - [`meta`], [`names`], [`selector`]: what all kinds share; [`quota`]: what objects use.
//! - [`status`], [`invalid`], [`path`]: errors in upstream's words.

pub mod codec;
pub mod cron;
pub mod custom;
pub mod discovery;
pub mod duration;
pub mod invalid;
pub mod kinds;
pub mod managed;
pub mod meta;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod path;
pub mod pem;
pub mod quantity;
pub mod quota;
pub mod resources;
pub mod schema;
pub mod selector;
pub mod status;
pub mod tables;
pub mod time;
