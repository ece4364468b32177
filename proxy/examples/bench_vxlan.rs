//! TCP through our VXLAN device beside one that is set up by hand, between two network namespaces of its own.
//!
//! `cargo run --release -p skiff-proxy --example bench_vxlan [SECONDS]`, or `hack/bench.sh vxlan`; root and `ip` only.
//! The namespaces are joined by a veth pair, which is also the limit that is shown. Runs take turns, so that whatever else
//! the machine does meets all of them; the median of each counts. The namespaces are removed at the end, also of a
//! failed run.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use skiff_proxy::nodes::{Frame, Mode, Peer, Peers, kernel};

/// The namespaces, with the address of each on the wire between them.
const ENDS: [(&str, Ipv4Addr); 2] =
    [("skiff-bench-a", Ipv4Addr::new(192, 0, 2, 1)), ("skiff-bench-b", Ipv4Addr::new(192, 0, 2, 2))];
const PORT: u16 = 5201;
const TURNS: usize = 5;
/// A connection that is not there after this will not come.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["set-up", end] => set_up(end.parse()?),
        ["receive", address] => receive(address.parse()?),
        ["send", address, seconds] => send(address.parse()?, Duration::from_secs_f64(seconds.parse()?)),
        [] => measure(2.0),
        [seconds] => measure(seconds.parse()?),
        _ => bail!("usage: bench_vxlan [SECONDS]"),
    }
}

/// Removes the namespaces, and with them everything in them.
struct Wires;

impl Drop for Wires {
    fn drop(&mut self) {
        for (name, _) in ENDS {
            // One that was never made is gone as well.
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}

fn ip(words: &str) -> anyhow::Result<()> {
    let status = Command::new("ip").args(words.split(' ')).status().context("cannot run ip")?;
    ensure!(status.success(), "ip {words}: {status}");
    Ok(())
}

/// This program in one of the namespaces.
fn within(end: usize, words: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", ENDS[end].0]).arg(std::env::current_exe()?).args(words);
    Ok(command)
}

fn measure(seconds: f64) -> anyhow::Result<()> {
    let _wires = Wires;
    for (name, _) in ENDS {
        ip(&format!("netns add {name}"))?;
    }
    let [(a, _), (b, at_b)] = ENDS;
    ip(&format!("link add wire netns {a} type veth peer name wire netns {b}"))?;
    for (end, (name, address)) in ENDS.into_iter().enumerate() {
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} addr add {address}/24 dev wire"))?;
        ip(&format!("-n {name} link set wire up"))?;
        let far = ENDS[1 - end].1;
        ip(&format!(
            "-n {name} link add hand type vxlan id 42 local {address} remote {far} dstport 4789 dev wire nolearning"
        ))?;
        ip(&format!("-n {name} addr add 10.99.0.{}/24 dev hand", end + 1))?;
        ip(&format!("-n {name} link set hand up"))?;
    }
    for end in 0..ENDS.len() {
        let status = within(end, &["set-up", &end.to_string()])?.status()?;
        ensure!(status.success(), "our device could not be set up");
    }
    let ways = [("without VXLAN", at_b), ("VXLAN by hand", Ipv4Addr::new(10, 99, 0, 2)), ("ours", range(1).network())];
    let mut rates = vec![Vec::new(); ways.len()];
    for _ in 0..TURNS {
        for ((_, address), rates) in ways.iter().zip(&mut rates) {
            rates.push(run(*address, seconds)?);
        }
    }
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let medians: Vec<f64> = rates.into_iter().map(median).collect();
    for ((name, _), rate) in ways.iter().zip(&medians) {
        println!("{name}: {rate:.2} Gbit/s");
    }
    println!("goal: within 10 % of VXLAN by hand; ours is at {:.1} % of it", medians[2] / medians[1] * 100.0);
    Ok(())
}

/// Ends a child that is still there.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends from the first to the second; answers gigabits a second.
fn run(address: Ipv4Addr, seconds: f64) -> anyhow::Result<f64> {
    let address = address.to_string();
    let mut receiver = Ended(within(1, &["receive", &address])?.stdout(Stdio::piped()).spawn()?);
    let sent = within(0, &["send", &address, &seconds.to_string()])?.status()?;
    ensure!(sent.success(), "nothing could be sent to {address}");
    let mut said = String::new();
    receiver.0.stdout.take().context("no output")?.read_to_string(&mut said)?;
    said.trim().parse().with_context(|| format!("the receiver says {said:?}"))
}

fn receive(address: Ipv4Addr) -> anyhow::Result<()> {
    let (mut stream, _) = TcpListener::bind((address, PORT))?.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; 1 << 20];
    let (begun, mut bytes) = (Instant::now(), 0_usize);
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            n => bytes += n,
        }
    }
    println!("{}", bytes as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e9);
    Ok(())
}

fn send(address: Ipv4Addr, time: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut stream = loop {
        match TcpStream::connect_timeout(&(address, PORT).into(), PATIENCE) {
            Ok(stream) => break stream,
            Err(e) if begun.elapsed() > PATIENCE => return Err(e.into()),
            // The receiver is still starting.
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    stream.set_write_timeout(Some(PATIENCE))?;
    let (buffer, begun) = (vec![7; 1 << 20], Instant::now());
    while begun.elapsed() < time {
        stream.write_all(&buffer)?;
    }
    Ok(())
}

fn range(end: usize) -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 244, if end == 0 { 1 } else { 2 }, 0), 24)
}

/// What the proxy of a node does when it sees the other one's Node.
fn set_up(end: usize) -> anyhow::Result<()> {
    let (name, address) = ENDS[end];
    let frame = Frame { node: name.into(), address, cluster: "10.244.0.0/16".parse()?, mode: Mode::Vxlan };
    let peers: Peers =
        ENDS.iter().enumerate().map(|(i, (n, a))| ((*n).to_owned(), Peer { address: *a, range: range(i) })).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ways = runtime.block_on(kernel::apply(&frame, &peers))?;
    ensure!(ways.len() == 1 && ways.iter().all(|w| w.tunnel), "no way through the tunnel: {ways:?}");
    Ok(())
}
