//! Workflows as people use them: the commands of docs/workflows.md, with its examples.

use anyhow::{Result, ensure};

use crate::cluster::Cluster;
use crate::page::play_page;

/// Every tested command of the page.
pub(crate) fn workflows(c: &mut Cluster, _ns: &str) -> Result<()> {
    let sections = play_page(c, "workflows")?;
    ensure!(sections >= 5, "only {sections} sections have tested commands");
    Ok(())
}
