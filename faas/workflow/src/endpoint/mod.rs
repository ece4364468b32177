//! The Step Functions API on this cluster: clients of AWS work by changing the endpoint's URL.

mod check;
mod error;
mod model;
mod sigv4;
