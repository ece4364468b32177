//! The commands of docs/predecessors.md, run as they stand there.

use anyhow::{Result, ensure};

use crate::cluster::Cluster;
use crate::page::play_page;

/// Every tested command of the page.
pub(crate) fn predecessors(c: &mut Cluster, _ns: &str) -> Result<()> {
    let sections = play_page(c, "predecessors")?;
    ensure!(sections >= 10, "only {sections} sections have tested commands");
    Ok(())
}
