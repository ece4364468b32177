//! Kinds of the network: Ingress, IngressClass, NetworkPolicy, EndpointSlice, Endpoints, ServiceCIDR, IPAddress; and the
//! checks of addresses that they share.

mod addresses;
mod endpoints;
mod ingress;
mod policy;
mod ranges;

pub(super) use addresses::{bad_ip, default_modes, load_balancer_status};
pub(super) use endpoints::{EndpointSlice, Endpoints};
pub(super) use ingress::{Class as IngressClass, Ingress};
pub(super) use policy::Policy;
pub(super) use ranges::{Address, Range};
