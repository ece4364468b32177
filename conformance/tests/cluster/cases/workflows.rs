//! Workflows as people use them: the commands of docs/workflows.md, with its examples.

use anyhow::Result;

use super::predecessors::page;
use crate::cluster::Cluster;

/// Every tested command of the page.
pub(crate) fn workflows(c: &mut Cluster, _ns: &str) -> Result<()> {
    page(c, "workflows", 5)
}
