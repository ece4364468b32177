//! Durable writes a second through the store, beside what the disk itself can sync.
//!
//! `cargo run --release -p skiff-storage --example bench_store [DIRECTORY] [SECONDS] [CACHE MiB]`: use a directory on the disk in
//! question, or the URLs of an etcd cluster (with commas between) in its place, which should be empty. Each line is one number of writers, each waiting for its answer before the next write; values of 1 KiB,
//! updates spread over 100,000 keys.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skiff_storage::embedded::Options;
use skiff_storage::{Compare, Embedded, Etcd, Op, Payload, Store, etcd};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const KEYS: u64 = 100_000;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let place = args.next();
    if let Some(urls) = place.as_ref().filter(|p| p.starts_with("http")) {
        let time = Duration::from_secs(args.next().map_or(Ok(3), |s| s.parse())?);
        return bench_etcd(urls.split(',').map(str::to_owned).collect(), time);
    }
    let dir = place.map_or_else(std::env::temp_dir, PathBuf::from).join("skiff-bench-store");
    let time = Duration::from_secs(args.next().map_or(Ok(3), |s| s.parse())?);
    let mut options = Options::default();
    if let Some(cache) = args.next() {
        options.disk_cache = cache.parse::<usize>()? << 20;
    }
    std::fs::create_dir_all(&dir)?;
    let result = bench(&dir, time, options);
    std::fs::remove_dir_all(&dir)?;
    result
}

fn bench(dir: &std::path::Path, time: Duration, options: Options) -> Result<(), Failure> {
    let syncs = disk(dir, time)?;
    println!("disk: {syncs:.0} x (4 KiB write + fdatasync)/s, one file, written before");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let store = Arc::new(Embedded::open(dir.join("store"), options)?);
    let start = Instant::now();
    let dynamic: Arc<dyn Store> = Arc::<Embedded>::clone(&store);
    runtime.block_on(run(&dynamic, 256, Until::Writes(KEYS)))?;
    println!("fill: {KEYS} keys in {:.1} s", start.elapsed().as_secs_f64());
    for writers in [1, 16, 64, 256] {
        let rate = step(&runtime, &dynamic, writers, time)?;
        println!("                {:.2} writes per sync the disk could do", rate / syncs);
    }
    drop(dynamic);
    println!("{:?}", store.stats());
    drop(store);
    let start = Instant::now();
    let store = Embedded::open(dir.join("store"), options)?;
    println!("open: {} keys in {:.2} s", store.stats().entries, start.elapsed().as_secs_f64());
    Ok(())
}

fn bench_etcd(urls: Vec<String>, time: Duration) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let store: Arc<dyn Store> = runtime.block_on(Etcd::open(etcd::Options::new(urls)))?;
    for writers in [1, 16, 64, 256] {
        step(&runtime, &store, writers, time)?;
    }
    Ok(())
}

/// One line; answers the writes a second.
fn step(
    runtime: &tokio::runtime::Runtime,
    store: &Arc<dyn Store>,
    writers: u64,
    time: Duration,
) -> Result<f64, Failure> {
    let start = Instant::now();
    let mut waits = runtime.block_on(run(store, writers, Until::Time(start + time)))?;
    let rate = waits.len() as f64 / start.elapsed().as_secs_f64();
    waits.sort_unstable();
    let at = |part: usize| waits[(waits.len() - 1) * part / 100].as_secs_f64() * 1e3;
    println!("{writers:>4} in flight: {rate:>7.0} writes/s  p50 {:.2} ms  p99 {:.2} ms", at(50), at(99));
    Ok(rate)
}

/// Synced writes a second of the disk alone.
fn disk(dir: &std::path::Path, time: Duration) -> Result<f64, Failure> {
    use std::os::unix::fs::FileExt;
    let mut file = std::fs::File::create(dir.join("disk"))?;
    let block = [7u8; 4096];
    for _ in 0..4096 {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    let (start, mut count) = (Instant::now(), 0u64);
    while start.elapsed() < time {
        file.write_all_at(&block, count % 4096 * 4096)?;
        file.sync_data()?;
        count += 1;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

#[derive(Clone, Copy)]
enum Until {
    Writes(u64),
    Time(Instant),
}

/// Lets `writers` write; answers how long each write took.
async fn run(store: &Arc<dyn Store>, writers: u64, until: Until) -> Result<Vec<Duration>, Failure> {
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let mut waits = Vec::new();
                let mut n = writer;
                loop {
                    match until {
                        Until::Writes(count) if n >= count => break,
                        Until::Time(end) if Instant::now() >= end => break,
                        _ => {}
                    }
                    let key = match until {
                        Until::Writes(_) => n,
                        // A fixed multiplier spreads the keys without a random generator in the loop.
                        Until::Time(_) => n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32,
                    };
                    let key = format!("/registry/configmaps/default/object-number-{:010}", key % KEYS);
                    let value = vec![b'a' + u8::try_from(n % 26)?; 1024];
                    let start = Instant::now();
                    store.commit(&key, Compare::Any, Op::Put(Payload::plain(value))).await?;
                    waits.push(start.elapsed());
                    n += writers;
                }
                Ok::<_, Failure>(waits)
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await??);
    }
    Ok(all)
}
