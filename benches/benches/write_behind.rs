//! Write-behind with the journal on disk: the time of one accepted write beside an append with an `fsync`, writes from many
//! callers at once, and the rows that increments of one counter become.

use std::{
    fs::OpenOptions,
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use larder::{
    Larder,
    write_behind::{Add, Disk, MapSink, WriteBehind},
};

const MINUTE: Duration = Duration::from_secs(60);

fn main() {
    let directory = Directory::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.expect("a runtime starts");
    let bare = bare_fsync(&directory);
    let alone = runtime.block_on(alone(&directory));
    println!("One accepted write, one caller");
    println!("  append and fsync of 64 bytes   p50 {:?}  p99 {:?}", at(&bare, 50), at(&bare, 99));
    println!("  write                          p50 {:?}  p99 {:?}", at(&alone, 50), at(&alone, 99));
    println!(
        "  ratio of p50 {:.2} (one transaction of the journal synchronises more than one block)",
        at(&alone, 50).as_secs_f64() / at(&bare, 50).as_secs_f64()
    );
    for callers in [1, 16, 256, 1024] {
        let (written, took, mut times) = runtime.block_on(at_once(&directory, callers));
        times.sort_unstable();
        println!(
            "{callers:5} callers: {:8.0} accepted writes a second  p50 {:?}  p99 {:?}",
            written as f64 / took.as_secs_f64(),
            at(&times, 50),
            at(&times, 99)
        );
    }
    let rows = runtime.block_on(increments(&directory));
    println!("1,000 increments of one counter: {rows} row(s) written");
}

/// Returns a percentile.
fn at(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}

fn bare_fsync(directory: &Directory) -> Vec<Duration> {
    let file = OpenOptions::new().create(true).append(true).open(directory.0.join("bare"));
    let mut file = file.expect("the directory can be written");
    (0..400)
        .map(|_| {
            let start = Instant::now();
            file.write_all(&[7; 64]).and_then(|()| file.sync_data()).expect("there is room");
            start.elapsed()
        })
        .collect()
}

async fn open(
    directory: &Directory,
    name: &str,
) -> (MapSink<String, Add>, WriteBehind<MapSink<String, Add>>) {
    let (larder, sink) =
        (Larder::builder().build().expect("the defaults are valid"), MapSink::default());
    let journal = Disk::open(directory.0.join(name)).expect("no other process has it");
    let queue = WriteBehind::builder("counters", &larder, sink.clone(), journal);
    // The sink is a map, so the figures are those of the journal.
    let queue = queue.batch(10_000).open().await.expect("a new journal opens");
    (sink, queue)
}

async fn alone(directory: &Directory) -> Vec<Duration> {
    let (_, queue) = open(directory, "alone").await;
    let mut times = Vec::new();
    for n in 0..400 {
        let start = Instant::now();
        let _logged = queue.write(format!("page-{}", n % 50), Add(1)).await.expect("there is room");
        times.push(start.elapsed());
    }
    queue.close(MINUTE).await;
    times
}

/// Writes of many callers for three seconds.
async fn at_once(directory: &Directory, callers: usize) -> (usize, Duration, Vec<Duration>) {
    let (sink, queue) = open(directory, &format!("at-once-{callers}")).await;
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..callers {
        let queue = queue.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            while start.elapsed() < Duration::from_secs(3) {
                let began = Instant::now();
                let key = format!("page-{}", (caller * 31 + times.len()) % 1_000);
                let _logged = queue.write(key, Add(1)).await.expect("there is room");
                times.push(began.elapsed());
            }
            times
        });
    }
    let times = tasks.join_all().await.concat();
    let took = start.elapsed();
    assert_eq!(queue.close(MINUTE).await, 0);
    let sum: i64 = (0..1_000).filter_map(|page| sink.value(&format!("page-{page}"))).sum();
    assert_eq!(sum as usize, times.len(), "every accepted write is written once");
    (times.len(), took, times)
}

async fn increments(directory: &Directory) -> usize {
    let (sink, queue) = open(directory, "increments").await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let queue = queue.clone();
        tasks.spawn(async move { queue.write("page".to_owned(), Add(1)).await.is_ok() });
    }
    assert!(tasks.join_all().await.into_iter().all(|is_accepted| is_accepted));
    queue.close(MINUTE).await;
    assert_eq!(sink.value(&"page".to_owned()), Some(1_000));
    sink.rows_written()
}

/// A directory that is removed at the end. It is in the working directory, because the directory for temporary files may be
/// in memory.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("write-behind-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("the target directory can be written");
        Self(directory)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}
