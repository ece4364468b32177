//! From a pod's creation to Running.

use crate::Context;
use crate::report::Report;

pub(crate) async fn run(_cx: &Context, _report: &mut Report) -> anyhow::Result<()> {
    anyhow::bail!("later")
}
