//! Promise 1 under random schedules: processes, a log, a shared store and an origin, with delays, losses, cut lines and
//! logs that lose records. Every read is checked against the history of writes.
//!
//! `LARDER_SEEDS` is the number of schedules to run, `LARDER_SEED` replays one.

use std::{sync::Arc, time::Duration};

use larder::{Invalidation, Larder, Lifetime, LoadError, LoadHandle, Policy, Target, Tiers};
use larder_testkit::{
    FaultyStore, History, MemoryStore, NetworkConditions, SeededRng, SimulatedCluster,
};

const KEYS: u64 = 3;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const LEASE: Duration = Duration::from_millis(300);
/// The maximum lag, and the time a command may take.
const BOUND: Duration = Duration::from_millis(900);

/// The faults that occur during a run.
#[derive(Clone, Copy, Debug)]
enum Plan {
    /// One process with a log of its own and a shared store.
    Alone,
    /// Three processes; everything is slow, nothing fails.
    Calm,
    /// Three processes; commands fail, half of them after they were carried out.
    Lossy,
    /// Three processes; lines are cut and mended, the log is replaced, trimmed, or loses its tail.
    Stormy,
}

struct World {
    cluster: SimulatedCluster,
    larders: Vec<Larder>,
    history: History,
    dice: SeededRng,
    plan: Plan,
}

impl World {
    fn new(plan: Plan, seed: u64) -> Arc<Self> {
        let dice = SeededRng::new(seed);
        let (failing_percent, bound) = match plan {
            Plan::Alone | Plan::Calm => (0, Some(BOUND)),
            // Under faults the delay of other processes depends on the log, so it is not bounded.
            Plan::Lossy | Plan::Stormy => (10, None),
        };
        let longest = Duration::from_millis(20);
        let weather = NetworkConditions { dice: dice.clone(), failing_percent, longest };
        let cluster = SimulatedCluster::under(&weather, 3, |builder| builder.max_lag(LEASE));
        let larders = match plan {
            Plan::Alone => {
                let store =
                    FaultyStore::new(MemoryStore::new(), dice.clone(), failing_percent, longest);
                let builder =
                    Larder::builder().tag_table_slots(1 << 10).max_lag(LEASE).store(store);
                vec![builder.build().unwrap()]
            }
            _ => cluster.processes().to_vec(),
        };
        Arc::new(Self { cluster, larders, history: History::new(bound), dice, plan })
    }

    async fn write(self: Arc<Self>) {
        for _ in 0..6 {
            self.dice.pause(Duration::from_millis(120)).await;
            let process = self.dice.roll(self.larders.len() as u64) as usize;
            let key = self.dice.roll(KEYS);
            let version = self.history.commit(key);
            self.dice.pause(Duration::from_millis(5)).await;
            let target = match self.dice.roll(4) {
                0 => Target::everything(),
                1 => Target::prefix("item"),
                _ => Target::tag(("item", key)),
            };
            if self.dice.chance(25) {
                // A soft invalidation allows stale serving: the history demands nothing of it.
                let stale = Invalidation::from(target).soft(Duration::from_millis(200));
                let _acting = self.larders[process].invalidate(stale).await;
            } else {
                let _acting = self.larders[process].invalidate(target).await;
                self.history.invalidated(process, key, version);
            }
        }
        // After the last writes and invalidations no process may serve an older version.
        for key in 0..KEYS {
            let _acting = self.larders[0].invalidate(("item", key)).await;
        }
    }

    async fn read(self: Arc<Self>, client: u64) {
        for _ in 0..12 {
            self.dice.pause(Duration::from_millis(60)).await;
            let process = self.dice.roll(self.larders.len() as u64) as usize;
            let key = self.dice.roll(KEYS);
            let began = self.history.begin();
            let (thing, read) = if self.dice.chance(50) {
                (key, self.item(process, key).await)
            } else {
                (KEYS + key, self.page(process, key).await)
            };
            // The origin failed, and there was no stale entry to serve.
            let Ok(read) = read else { continue };
            self.history.read(process, key, began, read);
            // Replacing the log empties memory, and the store may hold an older entry that is not yet known to be
            // invalidated.
            if !matches!(self.plan, Plan::Stormy) {
                self.history.seen(client, process, thing, read);
            }
        }
    }

    /// Once faults end, all processes serve the same version: no invalidation was lost.
    async fn assert_they_agree(self: &Arc<Self>, seed: u64) {
        let plan = self.plan;
        for larder in &self.larders {
            larder.close(MINUTE).await;
        }
        tokio::time::sleep(MINUTE).await;
        for process in 0..self.larders.len() {
            assert_eq!(self.larders[process].stats().invalidations_pending, 0, "{plan:?} {seed}");
            for key in 0..KEYS {
                let current = self.history.current(key);
                let place = format!("{plan:?}, LARDER_SEED={seed}: key {key} in process {process}");
                let item = insist(async || self.item(process, key).await).await;
                assert_eq!(item, current, "{place}");
                let page = insist(async || self.page(process, key).await).await;
                assert_eq!(page, current, "the page, {place}");
            }
        }
    }

    /// Loads an item; the origin is slow before and after its read.
    async fn item(self: &Arc<Self>, process: usize, key: u64) -> Result<u64, Down> {
        let world = Arc::clone(self);
        let load = move |_: LoadHandle| async move {
            world.dice.pause(Duration::from_millis(30)).await;
            let version = world.history.current(key);
            world.dice.pause(Duration::from_millis(30)).await;
            if world.dice.chance(10) { Err(Down) } else { Ok(version) }
        };
        let policy = self.placed(self.lifetime()).tag(("item", key));
        loaded(self.larders[process].get_or_load(("item", key), policy, load).await)
    }

    /// A lifetime with or without stale serving.
    fn lifetime(&self) -> Policy {
        let lifetime = Lifetime::fresh_for(HOUR);
        Policy::from(match self.dice.roll(3) {
            0 => lifetime,
            1 => lifetime.stale_while_revalidate(HOUR),
            _ => lifetime.stale_if_error(HOUR),
        })
    }

    /// Calls for the same key may differ in level placement and in whether they use a fill lock.
    fn placed(&self, policy: Policy) -> Policy {
        match self.dice.roll(6) {
            0 => policy.tiers(Tiers::SHARED),
            1 => policy.tiers(Tiers::BOTH.memory_for(Duration::from_millis(50))),
            2 | 3 => policy.fill_once_per_cluster(Duration::from_millis(200)),
            _ => policy,
        }
    }

    /// Loads a page, which reads an item and has no tag of its own.
    async fn page(self: &Arc<Self>, process: usize, key: u64) -> Result<u64, Down> {
        let world = Arc::clone(self);
        let load = move |_: LoadHandle| async move {
            world.dice.pause(Duration::from_millis(10)).await;
            let version = world.item(process, key).await;
            world.dice.pause(Duration::from_millis(10)).await;
            version
        };
        let policy = self.placed(self.lifetime());
        loaded(self.larders[process].get_or_load(("page", key), policy, load).await)
    }

    async fn storm(self: Arc<Self>) {
        for _ in 0..8 {
            self.dice.pause(Duration::from_millis(150)).await;
            match self.dice.roll(6) {
                0 => self.cluster.log().replace(),
                1 => self.cluster.log().trim(),
                2 => self.cluster.log().lose_tail(1 + self.dice.roll(2) as usize),
                _ => {
                    let process = self.dice.roll(self.larders.len() as u64) as usize;
                    match self.dice.chance(50) {
                        true => self.cluster.cut_off(process),
                        false => self.cluster.rejoin(process),
                    }
                }
            }
        }
        (0..self.larders.len()).for_each(|process| self.cluster.rejoin(process));
    }
}

/// The origin failed.
#[derive(Clone, Copy, Debug)]
struct Down;

fn loaded(loaded: Result<Arc<u64>, LoadError<Down>>) -> Result<u64, Down> {
    match loaded {
        Ok(version) => Ok(*version),
        Err(LoadError::Failed(_)) => Err(Down),
        Err(other) => panic!("the origin fails, and nothing else: {other:?}"),
    }
}

/// Repeats a request until the origin answers.
async fn insist(ask: impl AsyncFn() -> Result<u64, Down>) -> u64 {
    loop {
        if let Ok(version) = ask().await {
            return version;
        }
    }
}

fn run(plan: Plan, seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new(plan, seed);
        for larder in &world.larders {
            larder.synced().await;
        }
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..2 {
            tasks.spawn(Arc::clone(&world).write());
        }
        for client in 0..4 {
            tasks.spawn(Arc::clone(&world).read(client));
        }
        if matches!(plan, Plan::Stormy) {
            tasks.spawn(Arc::clone(&world).storm());
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        let violations = world.history.violations();
        assert!(
            violations.is_empty(),
            "{plan:?}, LARDER_SEED={seed}: {}",
            violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        );
        world.assert_they_agree(seed).await;
    });
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("LARDER_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("LARDER_SEEDS").unwrap_or(300)).collect(),
    }
}

#[test]
fn one_process_never_serves_what_it_has_invalidated() {
    seeds().into_iter().for_each(|seed| run(Plan::Alone, seed));
}

#[test]
fn processes_follow_each_other_within_the_bound() {
    seeds().into_iter().for_each(|seed| run(Plan::Calm, seed));
}

#[test]
fn failures_cost_hits_and_not_freshness() {
    seeds().into_iter().for_each(|seed| run(Plan::Lossy, seed));
}

#[test]
fn entries_of_a_log_that_lost_records_are_not_trusted() {
    seeds().into_iter().for_each(|seed| run(Plan::Stormy, seed));
}
