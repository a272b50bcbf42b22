//! A model of the patterns for values: random operations of many tasks in several processes, against a naive source, with
//! a store and a log that fail.
//!
//! The guarantee of all patterns is one: a read that begins after a write has returned in the same process returns that
//! write or a later one. When all is quiet, all processes return the last write.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use larder::{
    Larder, Policy,
    values::{Missing, ReadThrough, Values, WriteHandle},
};
use larder_testkit::{NetworkConditions, SeededRng, SimulatedCluster};

const MINUTE: Duration = Duration::from_secs(60);
const MILLI: Duration = Duration::from_millis(1);
const NAMES: u64 = 4;

/// The source: a version for each name. Version 0 stands for no value.
#[derive(Clone, Default)]
struct Source(Arc<Mutex<HashMap<u64, u64>>>);

impl Source {
    fn version(&self, name: u64) -> u64 {
        self.0.lock().unwrap().get(&name).copied().unwrap_or_default()
    }

    fn write(&self, name: u64) -> u64 {
        let mut versions = self.0.lock().unwrap();
        let version = versions.entry(name).or_default();
        *version += 1;
        *version
    }

    /// Reads, and takes a while before and after.
    async fn read(self, name: u64, rng: SeededRng) -> Option<u64> {
        rng.pause(2 * MILLI).await;
        let version = self.version(name);
        rng.pause(2 * MILLI).await;
        (version > 0).then_some(version)
    }
}

/// One process with the versions of the writes that have returned in it.
#[derive(Clone)]
struct Process {
    larder: Larder,
    source: Source,
    returned: Arc<Mutex<HashMap<u64, u64>>>,
    rng: SeededRng,
    seed: u64,
}

impl Process {
    fn values(&self) -> Values<u64> {
        self.larder.values(Policy::ttl(MINUTE).negative_ttl(MINUTE).error_backoff(MILLI))
    }

    fn through(&self) -> ReadThrough<u64, u64, Infallible> {
        let (source, rng) = (self.source.clone(), self.rng.clone());
        let load = move |missing: Missing<u64>| {
            let (source, rng) = (source.clone(), rng.clone());
            async move {
                let mut found = Vec::new();
                for name in missing.into_names() {
                    if let Some(version) = source.clone().read(name, rng.clone()).await {
                        found.push((name, version));
                    }
                }
                Ok(found)
            }
        };
        ReadThrough::batch(self.values(), load)
    }

    fn floor(&self, name: u64) -> u64 {
        self.returned.lock().unwrap().get(&name).copied().unwrap_or_default()
    }

    fn note(&self, name: u64, version: u64) {
        let mut returned = self.returned.lock().unwrap();
        let floor = returned.entry(name).or_default();
        *floor = version.max(*floor);
    }

    fn check(&self, what: &str, name: u64, floor: u64, found: Option<u64>) {
        let found = found.unwrap_or_default();
        assert!(found >= floor, "{what} of {name}: {found} after {floor}, seed {}", self.seed);
    }

    /// Runs one random operation.
    async fn act(&self) {
        let (name, rng) = (self.rng.roll(NAMES), &self.rng);
        match rng.roll(10) {
            0..=2 => {
                let floor = self.floor(name);
                let found = self.through().get(name).await.unwrap().as_deref().copied();
                self.check("a read", name, floor, found);
            }
            3 | 4 => {
                let floors: Vec<u64> = (0..NAMES).map(|name| self.floor(name)).collect();
                let found = self.through().get_many(0..NAMES).await.unwrap();
                for (name, (found, floor)) in (0..).zip(found.iter().zip(floors)) {
                    self.check("a batch", name, floor, found.as_deref().copied());
                }
            }
            5 => {
                // Only a value that is there has a floor: `get` may also find nothing.
                let floor = self.floor(name);
                if let Some(found) = self.values().get(name).await {
                    self.check("a look", name, floor, Some(*found));
                }
            }
            6 => {
                let point = self.larder.read_point();
                let version = point.read(self.source.clone().read(name, rng.clone())).await;
                rng.pause(3 * MILLI).await;
                if let Some(version) = version {
                    self.values().set(&point, name, version).await;
                }
            }
            7 => {
                let version = self.source.write(name);
                rng.pause(2 * MILLI).await;
                let _logged_or_queued = self.values().remove(name).await;
                self.note(name, version);
            }
            8 => {
                let (source, rng, fails) = (self.source.clone(), rng.clone(), rng.chance(20));
                let write = move |_: WriteHandle| async move {
                    rng.pause(2 * MILLI).await;
                    let version = source.write(name);
                    rng.pause(2 * MILLI).await;
                    if fails { Err(version) } else { Ok(version) }
                };
                let version = match self.values().write_through(name, write).await {
                    Ok(written) => *written.value,
                    Err(larder::values::WriteError::Failed(version)) => version,
                    Err(other) => panic!("{other:?}"),
                };
                self.note(name, version);
            }
            _ => {
                let floor = self.floor(name);
                let found = self.through().refresh(name).await.unwrap().as_deref().copied();
                self.check("a refresh", name, floor, found);
            }
        }
    }
}

async fn simulate(seed: u64, failing_percent: u64) {
    let rng = SeededRng::new(seed);
    let conditions = NetworkConditions { dice: rng.clone(), failing_percent, longest: 3 * MILLI };
    let cluster = SimulatedCluster::under(&conditions, 3, |builder| builder);
    cluster.synced().await;
    let source = Source::default();
    let processes: Vec<Process> = cluster
        .processes()
        .iter()
        .map(|larder| Process {
            larder: larder.clone(),
            source: source.clone(),
            returned: Arc::default(),
            rng: rng.clone(),
            seed,
        })
        .collect();
    let tasks = processes.iter().flat_map(|process| (0..4).map(move |_| process.clone()));
    let tasks: Vec<_> = tasks
        .map(|process| {
            tokio::spawn(async move {
                for _ in 0..60 {
                    process.act().await;
                    process.rng.pause(3 * MILLI).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    // The log may still have to be reached.
    for _ in 0..3 {
        cluster.settled().await;
    }
    for process in &processes {
        for name in 0..NAMES {
            let found = process.through().get(name).await.unwrap().as_deref().copied();
            let last = source.version(name);
            assert_eq!(found.unwrap_or_default(), last, "name {name} at the end, seed {seed}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_read_returns_a_version_from_before_a_write_that_has_returned() {
    for seed in 0..40 {
        simulate(seed, if seed % 2 == 0 { 0 } else { 5 }).await;
    }
}
