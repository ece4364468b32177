//! `skiff hpc` as a process of its own, of a cluster that knows nothing of jobs.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use skiff_apiserver::pki::Pki;

use crate::cases::Person;
use crate::cluster::{Cluster, repository};
use crate::rig::Rig;

/// Of the other API server, of the door for results, of metrics and health.
const PORTS: [u16; 3] = [26943, 26944, 26945];

/// Programs that end with this.
struct Programs(Vec<Child>);

impl Programs {
    fn start(&mut self, program: &Path, args: &[&str], dir: &Path) -> Result<()> {
        let log = File::options().create(true).append(true).open(dir.join("log"))?;
        let mut c = Command::new(program);
        c.args(args).env("HOME", dir).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.0.push(c.spawn()?);
        Ok(())
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One job by it: submitted, followed, fetched; its health and what it counts.
pub(crate) fn alone(c: &mut Cluster, rig: &mut Rig, ns: &str) -> Result<()> {
    let [api, door, health] = PORTS;
    let dir = tempfile::tempdir()?;
    let at = |p: &str| dir.path().join(p).display().to_string();
    let program = c.binary().to_owned();
    let mut programs = Programs(vec![]);
    let listen = format!("127.0.0.1:{api}");
    let server = ["apiserver", "--listen", &listen, "--data-dir", &at("data"), "--kubeconfig", &at("config")];
    programs.start(&program, &server, dir.path())?;
    let p = Person::new(c, ns)?;
    let (config, url) = (at("config"), format!("https://127.0.0.1:{door}"));
    let line = |line: &str| format!("export KUBECONFIG={config} SKIFF_HPC={url}; {line}");
    let eventually = |what: &str, ask: &str, is: &dyn Fn(&str) -> bool| {
        c.eventually(what, |_| {
            let o = p.run(&line(ask))?;
            Ok(o.code == 0 && is(&o.out))
        })
    };
    let result = (|| {
        eventually("the other API answers", "kubectl get namespace default -o name", &|o| o.contains("default"))?;
        let pki = Pki::load_or_create(&dir.path().join("data/pki"))?;
        let leaf = pki.cluster.server("skiff-hpc", &["localhost".into()], &[[127, 0, 0, 1].into()])?;
        std::fs::write(at("door.crt"), &leaf.cert)?;
        std::fs::write(at("door.key"), &leaf.key)?;
        let (ca, identity) = (at("data/pki/ca.crt"), at("data/kubeconfig/hpc.yaml"));
        let (crt, key, results) = (at("door.crt"), at("door.key"), at("results"));
        let (door, health) = (door.to_string(), health.to_string());
        let mut hpc = vec!["hpc", "--kubeconfig", &identity, "--data-dir", &results, "--secure-port", &health];
        hpc.extend(["--hpc-port", &door, "--tls-cert", &crt, "--tls-key", &key, "--client-ca", &ca]);
        programs.start(&program, &hpc, dir.path())?;
        let own = format!("https://127.0.0.1:{health}");
        eventually("it is alive", &format!("curl -ksSf {own}/healthz"), &|o| o == "ok")?;
        let o = p.run(&line(&format!("curl -ksSf {own}/metrics")))?;
        ensure!(o.code != 0, "anybody may read its metrics: {}", o.out);
        eventually("it has made its definitions", "kubectl get crd -o name", &|o| o.contains("hpcclusters.skiff.dev"))?;
        let manifest = at("manifest");
        std::fs::write(&manifest, rig.ok(&["manifest", "local"])?)?;
        p.ok(&line(&format!(
            "kubectl apply -f {manifest} && kubectl wait --for=condition=Ready hpccluster/local --timeout=60s"
        )))?;
        let matrix = repository().join("docs/examples/hpc/matrix");
        p.ok(&line(&format!("kubectl gpu submit {} --name one --wait", matrix.display())))?;
        let log = p.ok(&line("kubectl gpu logs one"))?;
        ensure!(log.contains("multiply of 192x192"), "{log}");
        let fetched = p.ok(&line("cd $HOME && kubectl gpu get one -f sum.txt -d got && cat got/sum.txt"))?;
        ensure!(fetched.contains("5 7 9 6"), "{fetched}");
        let metrics = format!(
            "kubectl create serviceaccount reads -n default >&2 && kubectl create clusterrole reads --verb=get \
             --non-resource-url=/metrics >&2 && kubectl create clusterrolebinding reads --clusterrole=reads \
             --serviceaccount=default:reads >&2 && curl -ksSf -H \"Authorization: Bearer $(kubectl create token reads -n default)\" \
             {own}/metrics"
        );
        let counted = p.ok(&line(&metrics))?;
        for wanted in [
            "skiff_hpc_submissions_total{cluster=\"local\",result=\"accepted\"} 1",
            "skiff_hpc_attempts_ended_total{cluster=\"local\",reason=\"Completed\"} 1",
            "skiff_hpc_submission_seconds_count{cluster=\"local\"} 1",
        ] {
            ensure!(counted.contains(wanted), "{wanted} is not among what it counts: {counted}");
        }
        p.ok(&line("kubectl delete gpujob one --timeout=60s")).map(drop)
    })();
    let log = std::fs::read_to_string(at("log")).unwrap_or_default();
    let last: Vec<&str> = log.lines().rev().take(12).collect();
    result.with_context(|| format!("its log ends with {}", last.into_iter().rev().collect::<Vec<_>>().join("\n")))
}
