//! Terminals: `exec -it`, `attach`, `run --rm -it`. `script` of util-linux gives kubectl a terminal.

use anyhow::{Result, ensure};

use super::start;
use crate::cluster::Cluster;

/// exec with a terminal of a size, attach to a running process.
pub(crate) fn terminal(c: &mut Cluster, ns: &str) -> Result<()> {
    start(c, ns, "a", "sleep 3600")?;
    // The size comes beside the input, not before it: until it is there, stty has none to tell (and ends well all the same).
    let input = "tty; until stty size 2>&1 | grep -q '^[1-9]'; do sleep 0.1; done; stty size; exit 3\n";
    let said = c.terminal(&["-n", ns, "exec", "-it", "a", "--", "sh"], input)?;
    ensure!(said.out.contains("/dev/pts/") || said.out.contains("/dev/console"), "{said:?}");
    ensure!(said.out.lines().any(|l| l.trim() == "40 100"), "the size of the terminal arrives: {said:?}");
    ensure!(said.code == 3, "{said:?}");
    // A program that reads what it is told.
    let echo = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"echo"},"spec":{"restartPolicy":"Never",
        "containers":[{"name":"c","image":"skiff/busybox:1","stdin":true,"tty":true,"command":["sh","-c","read a; echo got $a"]}]}}"#;
    ensure!(c.apply(&["-n", ns, "apply"], echo)?.code == 0);
    c.ok(&["-n", ns, "wait", "--for=condition=Ready", "pod/echo", "--timeout=60s"])?;
    let said = c.terminal(&["-n", ns, "attach", "-it", "echo"], "hello\n")?;
    ensure!(said.out.contains("got hello"), "{said:?}");
    c.eventually("the log has it too", |c| Ok(c.ok(&["-n", ns, "logs", "echo"])?.contains("got hello")))
}

/// A pod for one command: it runs, its output arrives, it is gone.
pub(crate) fn run_and_remove(c: &mut Cluster, ns: &str) -> Result<()> {
    let args = [
        "-n",
        ns,
        "run",
        "once",
        "--image=skiff/busybox:1",
        "--restart=Never",
        "--rm",
        "-i",
        "--",
        "echo",
        "here I am",
    ];
    let said = c.kubectl(&args)?;
    ensure!(said.code == 0 && said.out.contains("here I am"), "{said:?}");
    let args = ["-n", ns, "run", "shell", "--image=skiff/busybox:1", "--restart=Never", "--rm", "-it", "--", "sh"];
    let said = c.terminal(&args, "echo sum $((40+2)); exit\n")?;
    ensure!(said.out.contains("sum 42") && said.out.contains("pod \"shell\" deleted"), "{said:?}");
    ensure!(c.ok(&["-n", ns, "get", "pods", "-o", "name"])?.is_empty());
    Ok(())
}
