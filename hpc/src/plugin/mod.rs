//! `kubectl gpu`: what a person does with jobs on Slurm from a command line.
//!
//! The program is this one under another name, which kubectl finds on the PATH. It knows the cluster only by the person's
//! kubeconfig, as kubectl does, and what jobs print by the room's Service. Messages and exit codes are kubectl's.

mod change;
mod convert;
mod files;
mod logs;
mod sbatch;
mod show;
mod submit;

use clap::{Args, Subcommand};
use http::Uri;
use kube::Client;
pub use skiff_plugin::told;
use skiff_plugin::{Door, alone};

/// Who writes objects.
const MANAGER: &str = "kubectl-gpu";

/// What jobs print and bring home.
const DOOR: Door = Door {
    what: "the server of job logs and results",
    option: "--server-of-results",
    namespace: "kube-system",
    service: "skiff-hpc",
    port: 8444,
};

/// `kubectl gpu`.
#[derive(Clone, Debug, Args)]
pub struct GpuArgs {
    #[command(flatten)]
    connection: skiff_plugin::Connection,
    /// Where logs and results are, as in https://192.0.2.1:8444. Default: looked up in the cluster.
    #[arg(long = "server-of-results", global = true, env = "SKIFF_HPC")]
    door: Option<Uri>,
    #[command(subcommand)]
    command: Gpu,
}

/// A cluster, a namespace in it, and where results are.
struct Session {
    cluster: skiff_plugin::Session,
    door: Option<Uri>,
}

impl std::ops::Deref for Session {
    type Target = skiff_plugin::Session;

    fn deref(&self) -> &Self::Target {
        &self.cluster
    }
}

impl Session {
    /// A client of the server of results.
    async fn results(&self) -> anyhow::Result<Client> {
        self.cluster.door(&DOOR, self.door.as_ref()).await
    }
}

// There is one, for the life of the program.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, Subcommand)]
enum Gpu {
    /// Submit a directory, a ZIP file, a batch script with its #SBATCH lines, or a manifest.
    #[command(alias = "run")]
    Submit(submit::SubmitArgs),
    /// Print the batch script of a job, or of a manifest that was not submitted yet.
    Script(show::ScriptArgs),
    /// List jobs.
    #[command(alias = "ls")]
    List(show::ListArgs),
    /// Show a job: where it is, what it waits for, what happened.
    Describe(show::DescribeArgs),
    /// Print what a job prints, while it runs and after.
    Logs(logs::LogsArgs),
    /// List the results of a job.
    Files(files::FilesArgs),
    /// Fetch results of a job.
    #[command(alias = "download")]
    Get(files::GetArgs),
    /// Cancel jobs: they are ended in Slurm, and their objects go.
    #[command(alias = "rm", alias = "delete")]
    Cancel(change::CancelArgs),
    /// Keep jobs from starting.
    Hold(change::HoldArgs),
    /// Let held jobs go, or jobs that wait for their next try.
    Release(change::ReleaseArgs),
    /// Turn a predecessor's GpuJob, or a batch script, into a manifest of ours.
    Convert(convert::ConvertArgs),
    /// Show where jobs could start: partitions with their limits and free GPUs.
    #[command(alias = "sinfo")]
    Partitions(show::PartitionsArgs),
}

impl GpuArgs {
    /// Carries the command out.
    ///
    /// # Errors
    /// What went wrong; [`told`] says it in kubectl's words.
    pub fn run(self) -> anyhow::Result<()> {
        // These need no cluster.
        if let Gpu::Convert(a) = self.command {
            return convert::convert(&a);
        }
        if let Gpu::Submit(a) = &self.command
            && a.prints_only()
        {
            return submit::print(a);
        }
        alone(async move {
            let session = Session { cluster: self.connection.open().await?, door: self.door };
            match self.command {
                Gpu::Submit(a) => submit::submit(&session, a).await,
                Gpu::Script(a) => show::script(&session, a).await,
                Gpu::List(a) => show::list(&session, a).await,
                Gpu::Describe(a) => show::describe(&session, a).await,
                Gpu::Logs(a) => logs::logs(&session, a).await,
                Gpu::Files(a) => files::files(&session, a).await,
                Gpu::Get(a) => files::get(&session, a).await,
                Gpu::Cancel(a) => change::cancel(&session, a).await,
                Gpu::Hold(a) => change::hold(&session, a).await,
                Gpu::Release(a) => change::release(&session, a).await,
                Gpu::Convert(a) => convert::convert(&a),
                Gpu::Partitions(a) => show::partitions(&session, a).await,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_sound() {
        GpuArgs::augment_args(clap::Command::new("gpu")).debug_assert();
    }

    #[test]
    fn a_cluster_of_slurm_is_none_of_kubectl() {
        for words in [&["submit", "d", "--on", "c"][..], &["partitions", "--on", "c"], &["convert", "f", "--on", "c"]] {
            let command = GpuArgs::augment_args(clap::Command::new("gpu"));
            let found = command.try_get_matches_from([&["gpu"], words].concat()).unwrap();
            assert!(found.get_one::<String>("cluster").is_none(), "{words:?}");
        }
    }
}
