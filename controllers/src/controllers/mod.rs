//! One module per controller.

pub mod accounts;
pub mod aggregation;
pub mod autoscaling;
pub mod bootstrap;
pub mod certificates;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod discovery;
pub mod disruption;
pub mod endpoints;
pub mod family;
pub mod garbage;
pub mod job;
pub mod mirror;
pub mod namespace;
pub mod node;
pub mod outside;
pub mod podgc;
pub mod pods;
pub mod quota;
pub mod replicas;
pub mod revisions;
pub mod statefulset;
pub mod tokens;
pub mod volumes;
