//! Measures the service table in a network namespace of its own: cold load of many Services, and single changes.
//!
//! `cargo run -p skiff-proxy --example bench_services [services] [endpoints each]`; root only. With `print` as the first
//! argument it writes the script for three Services instead.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use skiff_proxy::index::Index;
use skiff_proxy::model::{Endpoint, Id, Port, Protocol, Service, Slice, SlicePort};
use skiff_proxy::services::rules::{Frame, replace};
use skiff_proxy::services::{Proxy, nft};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    let print = arguments.next_if(|a| a == "print").is_some();
    let mut number = |default| arguments.next().map_or(Ok(default), |a| a.parse::<u32>());
    let (services, endpoints) = (number(if print { 3 } else { 10_000 })?, number(2)?);
    let frame = Frame {
        table: "skiff-bench".into(),
        pods: "10.244.0.0/16".parse()?,
        services: "10.96.0.0/12".parse()?,
        resolver: "10.96.0.10".parse()?,
    };
    let mut index = Index::default();
    let started = Instant::now();
    for i in 0..services {
        put(&mut index, i, endpoints, true);
    }
    println!("{services} services with {endpoints} endpoints each; index built in {:?}", started.elapsed());
    let mut proxy = Proxy::new(frame.clone());
    let started = Instant::now();
    let changes = proxy.take(&mut index);
    println!("frontends computed in {:?}", started.elapsed());
    if print {
        println!("{}", replace(&frame, proxy.rules()).0);
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNET)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // What the kernel takes however little there is: a deletion waits until nobody can see the old state.
        let mut few = Index::default();
        put(&mut few, 0, endpoints, true);
        let mut alone = Proxy::new(Frame { table: "skiff-bench-alone".into(), ..frame.clone() });
        let first = alone.take(&mut few);
        alone.apply(&first).await?;
        steps("beside no other Service", &mut few, &mut alone, 1, endpoints).await?;
        nft::remove("skiff-bench-alone").await?;

        let started = Instant::now();
        proxy.apply(&changes).await?;
        println!("cold load: {:?}", started.elapsed());
        steps("beside all Services", &mut index, &mut proxy, services, endpoints).await?;
        let started = Instant::now();
        put(&mut index, services, endpoints, true);
        let changes = proxy.take(&mut index);
        proxy.apply(&changes).await?;
        println!("one service more: {:?}", started.elapsed());
        let range = || Id { namespace: "".into(), name: "more".into() };
        for (what, widened) in [("one range more", true), ("one range less", false)] {
            let started = Instant::now();
            match widened {
                // It takes the place of the one that is there.
                true => index.put_ranges(range(), ["10.96.0.0/11".parse()?].into()),
                false => index.remove_ranges(&range()),
            };
            let changes = proxy.take(&mut index);
            proxy.apply(&changes).await?;
            println!("{what}: {:?}", started.elapsed());
        }
        let started = Instant::now();
        nft::remove(&frame.table).await?;
        println!("table removed: {:?}", started.elapsed());
        anyhow::Ok(())
    })
}

/// Takes an endpoint away from some Services one after the other, and gives it back.
async fn steps(
    beside: &str,
    index: &mut Index,
    proxy: &mut Proxy,
    services: u32,
    endpoints: u32,
) -> anyhow::Result<()> {
    for turn in ["first", "again"] {
        for (what, count) in [("one endpoint less", endpoints - 1), ("one endpoint more", endpoints)] {
            let mut times: Vec<Duration> = Vec::new();
            for i in 0..20 {
                let i = i * 7 % services;
                // Of one Service alone, each step undoes the one before, untimed.
                if services == 1 {
                    put(index, i, if count == endpoints { endpoints - 1 } else { endpoints }, true);
                    let changes = proxy.take(index);
                    proxy.apply(&changes).await?;
                }
                put(index, i, count, true);
                // As far apart as in service: the kernel first frees what the last change removed.
                tokio::time::sleep(Duration::from_millis(50)).await;
                let started = Instant::now();
                let changes = proxy.take(index);
                proxy.apply(&changes).await?;
                times.push(started.elapsed());
            }
            times.sort();
            println!("{what} {beside}, {turn}: median {:?}, worst {:?}", times[10], times[19]);
        }
    }
    Ok(())
}

/// Puts Service `i` in, with a virtual address and, one in ten, a node port and affinity.
fn put(index: &mut Index, i: u32, endpoints: u32, ready: bool) {
    let id = Id { namespace: "bench".into(), name: format!("service-{i}").into() };
    let rich = i.is_multiple_of(10);
    let service = Service {
        cluster_ips: [Ipv4Addr::from_bits(Ipv4Addr::new(10, 97, 0, 0).to_bits() + i).into()].into(),
        ports: [Port {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: rich.then(|| 30_000 + u16::try_from(i / 10 % 32_768).unwrap_or(0)),
        }]
        .into(),
        affinity: rich.then_some(10_800),
        proxied: true,
        ..Service::default()
    };
    let first = Ipv4Addr::new(10, 244, 0, 1).to_bits() + i * 2 % 60_000;
    let endpoints = (0..endpoints).map(|e| Endpoint {
        address: Ipv4Addr::from_bits(first + e).into(),
        hostname: None,
        local: Some(i.is_multiple_of(100)),
        ready,
        draining: false,
    });
    let ports = [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into();
    let slice = Slice { ports, endpoints: endpoints.collect(), proxied: true };
    index.put_service(id.clone(), service);
    index.put_slice(Id { namespace: "bench".into(), name: format!("service-{i}-1").into() }, id, slice);
}
