//! `skiff up`: everything in one process, and `skiff down`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_apiserver::pki::{Leaf, Pki};
use skiff_storage::embedded::{Embedded, Options};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cli::{DownArgs, UpArgs, kubeconfig_path, node_name};
use crate::store::{Opened, Place};
use crate::{cluster, components, kubeconfig};

/// What runs in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parts {
    /// Everything.
    All,
    /// The API server alone; the other components run as processes with their own kubeconfigs.
    ApiServer,
}

/// Time for components to end in order.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);

/// Runs until a signal, or until a component cannot go on.
pub(crate) async fn up(args: UpArgs, parts: Parts) -> anyhow::Result<()> {
    let begun = Instant::now();
    let node = node_name(args.node_name.clone())?;
    make_private(&args.data_dir)?;
    if parts == Parts::All {
        check_engine(&args.engine)?;
    }
    let address = args.advertise_address.unwrap_or_else(|| advertise(args.listen.ip()));
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!(
            "cannot listen on {}: is another cluster running? Stop it, or choose another port with --listen",
            args.listen
        )
    })?;
    let port = listener.local_addr()?.port();
    let opened = Opened::open(&Place::of(&args.data_dir, &args.etcd), &args.etcd).await?;
    // `down` finds this node's containers by its name. Written by whoever holds the store, and nobody else.
    std::fs::write(args.data_dir.join("node"), &node).context("cannot write to the data directory")?;
    let mut failed = opened.failed();
    let pki = Arc::new(Pki::load_or_create(&args.data_dir.join("pki"))?);
    let kubelet_client = pki.cluster.client("kube-apiserver-kubelet-client", &["system:masters"])?;
    let server = Server::builder(opened.store())
        .pki(Arc::clone(&pki))
        .advertise(address, port)
        .service_cidr(args.service_cidr)
        .kubelet_client(kubelet_client)
        .extras()
        .audit(args.audit.open()?)
        .seats(args.max_requests_inflight.saturating_add(args.max_mutating_requests_inflight))
        .start()
        .await?;
    let serving = serving_certificate(&pki, &args, &server, address, &node)?;
    let url = format!("https://{}", SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    write_kubeconfigs(&args, &pki, &url, &node)?;
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    {
        let server = server.clone();
        tasks.spawn(async move { server.listen(listener, &serving).await.map_err(anyhow::Error::from) });
    }
    tracing::info!(%url, took = ?begun.elapsed(), "API server is ready");
    {
        let client = server.client(User::new("system:apiserver", &["system:masters"]));
        let url = format!("https://{}", SocketAddr::new(address, port));
        if let Err(e) = cluster::permit(&client).await {
            tracing::warn!(error = format!("{e:#}"), "components lack rights until the next start");
        }
        let prepare = cluster::prepare(client, url, pki.cluster.cert.clone(), settings(&args));
        // Machines that join are patient; nothing else waits for this.
        tokio::spawn(async move {
            if let Err(e) = prepare.await {
                tracing::warn!(error = format!("{e:#}"), "machines cannot join: what they need could not be made");
            }
        });
    }
    if parts == Parts::All {
        components::spawn_all(&mut tasks, &server, &args, &pki, address, &node, &stop)?;
    }
    if !args.no_kubeconfig {
        let file = kubeconfig_path(args.kubeconfig.clone())?;
        let own = std::fs::read_to_string(args.data_dir.join("kubeconfig/admin.yaml"))?;
        kubeconfig::merge(&file, &own, &args.context)?;
        tracing::info!(context = %args.context, file = %file.display(), "context merged");
    }
    let reason = tokio::select! {
        r = signal() => r,
        r = failed.wait_for(Option::is_some) => {
            let why = r.ok().and_then(|v| v.clone()).unwrap_or_default();
            // Nothing unacknowledged may seem stored: end at once, the next start reads what is durable.
            bail!(opened.advice(&why));
        }
        Some(ended) = tasks.join_next() => match ended {
            Ok(Ok(())) => bail!("a component ended by itself"),
            Ok(Err(e)) => return Err(e),
            Err(e) => bail!("a component panicked: {e}"),
        },
    };
    tracing::info!(signal = reason, "stopping; pods keep running");
    stop.cancel();
    server.shutdown();
    let drained = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, drained).await;
    opened.close();
    Ok(())
}

/// Settings that joining nodes take over.
pub(crate) fn settings(args: &UpArgs) -> cluster::Settings {
    cluster::Settings {
        pod_cidr: args.pod_cidr,
        service_cidr: args.service_cidr,
        domain: args.cluster_domain.clone(),
        network: args.pod_network,
    }
}

pub(crate) async fn signal() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut s) => {
                s.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::terminate()) => "SIGTERM",
        () = wait(SignalKind::interrupt()) => "SIGINT",
    }
}

/// Time the engine has to answer before `up` gives up.
const ENGINE_PATIENCE: Duration = Duration::from_secs(5);

/// A cluster without an engine is a mistake that is better said at once than shown as a node that never gets ready. An
/// engine that goes away later is waited for.
pub(crate) fn check_engine(socket: &Path) -> anyhow::Result<()> {
    use std::io::{Read as _, Write as _};
    let ping = || -> std::io::Result<bool> {
        let mut s = std::os::unix::net::UnixStream::connect(socket)?;
        s.set_read_timeout(Some(ENGINE_PATIENCE))?;
        s.set_write_timeout(Some(ENGINE_PATIENCE))?;
        s.write_all(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")?;
        let mut answer = [0; 64];
        let n = s.read(&mut answer)?;
        Ok(answer[..n].starts_with(b"HTTP/1.") && answer[..n].windows(5).any(|w| w == b" 200 "))
    };
    let advice = || {
        format!(
            "no container engine answers at {}: start Docker (for example `systemctl start docker`), or name its socket with --engine",
            socket.display()
        )
    };
    match ping() {
        Ok(true) => Ok(()),
        Ok(false) => bail!("{}: it answers, but is no Docker Engine", advice()),
        Err(e) => Err(anyhow::Error::new(e).context(advice())),
    }
}

pub(crate) fn make_private(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .and_then(|()| std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)))
        .with_context(|| {
            format!(
                "cannot use {}: run as a user who may write there, or choose another with --data-dir",
                dir.display()
            )
        })
}

/// The address of the interface that the default route goes over; no packet is sent.
pub(crate) fn advertise(listen: IpAddr) -> IpAddr {
    if !listen.is_unspecified() {
        return listen;
    }
    let probe = || {
        let s = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        // A documentation address: any that only the default route leads to.
        s.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
        Some(s.local_addr().ok()?.ip())
    };
    probe().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn serving_certificate(pki: &Pki, args: &UpArgs, server: &Server, address: IpAddr, node: &str) -> anyhow::Result<Leaf> {
    let domain = &args.cluster_domain;
    let mut names = vec![
        "localhost".to_owned(),
        node.to_owned(),
        "kubernetes".into(),
        "kubernetes.default".into(),
        "kubernetes.default.svc".into(),
        format!("kubernetes.default.svc.{domain}"),
    ];
    let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), address, server.inner().addresses.first()];
    for san in &args.tls_san {
        match san.parse() {
            Ok(ip) => addresses.push(ip),
            Err(_) => names.push(san.clone()),
        }
    }
    Ok(pki.cluster.server("kube-apiserver", &names, &addresses)?)
}

/// One file per identity, so that each component can run as a process of its own.
fn write_kubeconfigs(args: &UpArgs, pki: &Pki, url: &str, node: &str) -> anyhow::Result<()> {
    let dir = args.data_dir.join("kubeconfig");
    make_private(&dir)?;
    let node_user = format!("system:node:{node}");
    let identities: [(&str, &str, &[&str]); 8] = [
        ("admin", "kubernetes-admin", &["system:masters"]),
        ("controller-manager", "system:kube-controller-manager", &[]),
        ("scheduler", "system:kube-scheduler", &[]),
        ("kubelet", &node_user, &["system:nodes"]),
        ("proxy", "system:kube-proxy", &[]),
        ("functions", crate::functions::USER, &[]),
        ("hpc", crate::hpc::USER, &[]),
        ("workflows", crate::workflows::USER, &[]),
    ];
    for (file, user, groups) in identities {
        let leaf = pki.cluster.client(user, groups)?;
        let text = kubeconfig::render(&args.context, url, &pki.cluster.cert, &leaf);
        kubeconfig::write(&dir.join(format!("{file}.yaml")), &text)?;
    }
    Ok(())
}

/// Stops what `up` left: containers, links, rules, mounts; with `--purge` the data too.
pub(crate) async fn down(args: DownArgs) -> anyhow::Result<()> {
    let store = args.data_dir.join("store");
    if store.exists() {
        match Embedded::open(&store, Options::default()) {
            Ok(s) => s.close(),
            Err(e) => bail!("the cluster still runs ({e}): stop `skiff up` first, for example with hack/down.sh"),
        }
    }
    if args.data_dir.exists() {
        // Of a node that joined.
        let _idle = crate::join::Running::take(&args.data_dir)?;
    }
    components::cleanup(&args).await?;
    let file = kubeconfig_path(args.kubeconfig.clone())?;
    kubeconfig::remove(&file, &args.context)?;
    if args.purge && args.data_dir.exists() {
        std::fs::remove_dir_all(&args.data_dir).with_context(|| {
            format!("cannot delete {}: is something still mounted below it?", args.data_dir.display())
        })?;
    }
    println!("skiff: down{}", if args.purge { ", data deleted" } else { "; data kept (delete it with --purge)" });
    Ok(())
}
