//! The audit log's flags: those of kube-apiserver.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use skiff_apiserver::audit::{Audit, LogConfig, Policy};

/// What is recorded of requests, and where.
#[derive(Clone, Debug, Args)]
pub(crate) struct AuditArgs {
    /// File with an audit.k8s.io/v1 Policy: which requests are recorded, and how much of them.
    #[arg(long, requires = "audit_log_path")]
    audit_policy_file: Option<PathBuf>,
    /// File that is written, a JSON event a line; `-` is standard output.
    #[arg(long, requires = "audit_policy_file")]
    audit_log_path: Option<PathBuf>,
    /// Days after which files that were put aside are deleted; 0 is never.
    #[arg(long, default_value_t = 30)]
    audit_log_maxage: u32,
    /// Files that were put aside that are kept; 0 is all.
    #[arg(long, default_value_t = 10)]
    audit_log_maxbackup: usize,
    /// Megabytes at which a file is put aside; 0 is never.
    #[arg(long, default_value_t = 100)]
    audit_log_maxsize: u64,
}

impl AuditArgs {
    /// Reads the policy and opens the log, where there is to be one.
    pub(crate) fn open(&self) -> anyhow::Result<Option<Arc<Audit>>> {
        let (Some(file), Some(path)) = (&self.audit_policy_file, &self.audit_log_path) else { return Ok(None) };
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let policy = Policy::parse(&text).with_context(|| format!("the audit policy {}", file.display()))?;
        let config = LogConfig {
            path: path.clone(),
            max_age_days: self.audit_log_maxage,
            max_backups: self.audit_log_maxbackup,
            max_size_mb: self.audit_log_maxsize,
        };
        let audit = Audit::open(policy, config).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Some(Arc::new(audit)))
    }
}
