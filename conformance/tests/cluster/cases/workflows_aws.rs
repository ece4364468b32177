//! Clients of AWS as docs/workflows.md tells them to be set up: with TLS, and the CA of the cluster's kubeconfig.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::cluster::{Cluster, repository, run};

/// Where the endpoint is.
const URL: &str = "https://127.0.0.1:8083";

/// A program with boto3, and the AWS CLI: the interpreter that `SKIFF_BOTO3_PYTHON` names has both (hack/test.sh makes it).
pub(crate) fn workflows_aws(c: &mut Cluster, ns: &str) -> Result<()> {
    let Some(python) = std::env::var_os("SKIFF_BOTO3_PYTHON") else {
        println!("     skipped: SKIFF_BOTO3_PYTHON names no interpreter with boto3 and awscli");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let ca = dir.path().join("ca.crt");
    // The page's own line.
    let line =
        "kubectl config view --raw --minify -o 'jsonpath={..certificate-authority-data}' | base64 -d >\"$HOME/ca.crt\"";
    let page = std::fs::read_to_string(repository().join("docs/workflows.md"))?;
    ensure!(page.contains(&line.replace("\"$HOME/ca.crt\"", "ca.crt")), "the page says something else");
    let o = run(c.workplace(dir.path(), ns)?.args(["-c", line]))?;
    ensure!(o.code == 0, "{}{}", o.out, o.err);
    let (id, secret) = ("--from-literal=accessKeyId=AKIDCLUSTER", "--from-literal=secretAccessKey=not-a-secret-at-all");
    let kind = "--type=skiff.dev/aws-credentials";
    c.ok(&["-n", ns, "create", "secret", "generic", "aws-key", kind, id, secret])?;

    let script = repository().join("faas/workflow/tests/aws/cluster.py");
    let o = run(Command::new(&python).arg(script).arg(URL).arg(&ca))?;
    ensure!(o.code == 0, "{}{}", o.out, o.err);

    let cli = |args: &[&str]| {
        run(Command::new(&python)
            .args(["-m", "awscli", "--region", "skiff", "--output", "text", "stepfunctions"])
            .args(args)
            .env("HOME", dir.path())
            .env("AWS_ACCESS_KEY_ID", "AKIDCLUSTER")
            .env("AWS_SECRET_ACCESS_KEY", "not-a-secret-at-all")
            .env("AWS_DISABLE_HOST_PREFIX_INJECTION", "true")
            .env("AWS_CA_BUNDLE", &ca)
            .env("AWS_ENDPOINT_URL_SFN", URL))
    };
    if run(Command::new(&python).args(["-c", "import awscli"]))?.code != 0 {
        println!("     the AWS CLI is skipped: SKIFF_BOTO3_PYTHON has no awscli");
        return Ok(());
    }
    let ok = |args: &[&str]| -> Result<String> {
        let o = cli(args)?;
        ensure!(o.code == 0, "aws stepfunctions {}: {}{}", args.join(" "), o.out, o.err);
        Ok(o.out.trim().to_owned())
    };
    let definition = r#"{"StartAt": "P", "States": {"P": {"Type": "Pass", "Result": 7, "End": true}}}"#;
    let role = "arn:aws:iam::123456789012:role/anything";
    let create = ["create-state-machine", "--name", "quick", "--type", "EXPRESS", "--role-arn", role];
    let arn = ok(&[&create[..], &["--definition", definition, "--query", "stateMachineArn"]].concat())?;
    // The one that is sent to another host by default.
    let done = ok(&["start-sync-execution", "--state-machine-arn", &arn, "--query", "[status, output]"])?;
    ensure!(done == "SUCCEEDED\t7", "{done}");
    let names = ok(&["list-state-machines", "--query", "stateMachines[].name"])?;
    ensure!(names.contains("quick"), "{names}");
    // Without the cluster's CA nobody is believed.
    let o = run(Command::new(&python)
        .args(["-m", "awscli", "--region", "skiff", "--endpoint-url", URL, "stepfunctions", "list-state-machines"])
        .env("HOME", dir.path())
        .env("AWS_ACCESS_KEY_ID", "AKIDCLUSTER")
        .env("AWS_SECRET_ACCESS_KEY", "not-a-secret-at-all"))?;
    ensure!(o.code != 0 && o.err.contains("SSL"), "{}{}", o.out, o.err);
    c.ok(&["-n", ns, "delete", "workflowruns,workflows,secrets", "--all"])?;
    Ok(())
}
