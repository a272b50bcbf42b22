//! Stampedes: many callers of one name never cause a load each, even if the first load panics, fails, hangs or is slow.

use std::sync::atomic::AtomicBool;

use futures_util::{FutureExt as _, future::join_all};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const CALLERS: usize = 200;

/// The number of loads that ran, and the maximum number that ran concurrently.
#[derive(Clone, Default)]
struct Count {
    all: Arc<AtomicUsize>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Count {
    /// Counts a load until the guard is dropped, even by a panic.
    fn begin(&self) -> impl Drop + Send + use<> {
        struct Ends(Count);
        impl Drop for Ends {
            fn drop(&mut self) {
                self.0.now.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.all.fetch_add(1, Ordering::SeqCst);
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        Ends(self.clone())
    }

    fn all(&self) -> usize {
        self.all.load(Ordering::SeqCst)
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn a_panicking_loader_runs_four_times_and_not_once_per_caller() {
    let (larder, count) = (larder(), Count::default());
    let calls = (0..CALLERS).map(|_| {
        let (larder, count) = (larder.clone(), count.clone());
        tokio::spawn(async move {
            let load = move |_: LoadHandle| async move {
                let _running = count.begin();
                tokio::time::sleep(SECOND).await;
                panic!("the loader is broken");
                #[allow(unreachable_code)]
                Ok::<u32, Infallible>(1)
            };
            larder.get_or_load("a", MINUTE, load).await
        })
    });
    let outcomes = join_all(calls.collect::<Vec<_>>()).await;
    let panics = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    let told = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Err(LoadError::Panicked))));
    assert_eq!((panics, told.count()), (4, CALLERS - 4));
    assert_eq!((count.all(), count.most()), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn a_loader_slower_than_the_coalesce_timeout_gets_few_parallel_fills() {
    let (larder, count) = (larder(), Count::default());
    let calls = (0..CALLERS).map(|at| {
        let (larder, count) = (larder.clone(), count.clone());
        async move {
            tokio::time::sleep(Duration::from_millis(at as u64)).await;
            let load = move |_: LoadHandle| async move {
                let _running = count.begin();
                tokio::time::sleep(25 * SECOND).await;
                Ok::<_, Infallible>(7)
            };
            let value = *larder.get_or_load("a", Policy::ttl(MINUTE), load).await.unwrap();
            assert_eq!(value, 7);
            tokio::time::Instant::now()
        }
    });
    let began = tokio::time::Instant::now();
    let ends = join_all(calls).await;
    let soon = ends.iter().filter(|end| **end - began < 26 * SECOND).count();
    assert_eq!(
        soon,
        CALLERS - 2,
        "all take the value of the first, except for the two that load beside it"
    );
    assert_eq!((count.all(), count.most()), (3, 3), "one more every ten seconds");
}

#[tokio::test(start_paused = true)]
async fn at_most_four_endless_loads_run_for_one_name() {
    let (larder, count) = (larder(), Count::default());
    let release = Arc::new(AtomicBool::new(false));
    let policy = || Policy::ttl(MINUTE).fill_timeout(Duration::MAX).coalesce_timeout(SECOND);
    let calls = (0..CALLERS).map(|at| {
        let (larder, count, release) = (larder.clone(), count.clone(), release.clone());
        async move {
            tokio::time::sleep(SECOND / 10 * at as u32).await;
            let load = move |_: LoadHandle| async move {
                let _running = count.begin();
                while !release.load(Ordering::SeqCst) {
                    tokio::time::sleep(SECOND).await;
                }
                Ok::<_, Infallible>(7)
            };
            *larder.get_or_load("a", policy(), load).await.unwrap()
        }
    });
    let all = tokio::spawn(join_all(calls.collect::<Vec<_>>()));
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!((count.all(), count.most()), (4, 4));
    release.store(true, Ordering::SeqCst);
    assert_eq!(all.await.unwrap(), [7; CALLERS]);
    assert_eq!(count.all(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_refresh_gets_one_parallel_load() {
    let (larder, count) = (larder(), Count::default());
    let lifetime = Lifetime::fresh_for(SECOND).stale_while_revalidate(SECOND);
    let policy = || Policy::from(lifetime).fill_timeout(Duration::MAX);
    let first = |_: LoadHandle| async { Ok::<_, Infallible>(1) };
    larder.get_or_load("a", policy(), first).await.unwrap();
    tokio::time::advance(SECOND + SECOND / 2).await;
    let hangs = {
        let count = count.clone();
        move |_: LoadHandle| async move {
            let _running = count.begin();
            std::future::pending::<()>().await;
            Ok::<_, Infallible>(2)
        }
    };
    assert_eq!(*larder.get_or_load("a", policy(), hangs).await.unwrap(), 1, "stale meanwhile");
    tokio::time::advance(SECOND).await;
    let calls = (0..50).map(|_| {
        let count = count.clone();
        let load = move |_: LoadHandle| async move {
            let _running = count.begin();
            tokio::time::sleep(SECOND).await;
            Ok::<_, Infallible>(3)
        };
        let larder = larder.clone();
        async move { *larder.get_or_load("a", policy(), load).await.unwrap() }
    });
    assert_eq!(join_all(calls).await, [3; 50]);
    assert_eq!((count.all(), count.most()), (2, 2), "the refresh, and one beside it");
}

#[tokio::test(start_paused = true)]
async fn waiters_with_another_error_type_do_not_all_load() {
    let (larder, count) = (larder(), Count::default());
    let failing = |error: bool| {
        let (larder, count) = (larder.clone(), count.clone());
        async move {
            if error {
                let load = move |_: LoadHandle| async move {
                    let _running = count.begin();
                    tokio::time::sleep(SECOND).await;
                    Err::<u32, _>("one type")
                };
                matches!(
                    larder.get_or_load("a", MINUTE, load).await,
                    Err(LoadError::Failed(_) | LoadError::FailedElsewhere)
                )
            } else {
                let load = move |_: LoadHandle| async move {
                    let _running = count.begin();
                    tokio::time::sleep(SECOND).await;
                    Err::<u32, _>(500)
                };
                matches!(
                    larder.get_or_load("a", MINUTE, load).await,
                    Err(LoadError::Failed(_) | LoadError::FailedElsewhere)
                )
            }
        }
    };
    let all = join_all((0..CALLERS).map(|at| failing(at % 2 == 0))).await;
    assert!(all.into_iter().all(|failed| failed));
    assert_eq!((count.all(), count.most()), (4, 1));
}

/// Loads a value whose loader requests the next of these names.
fn needing<'a>(
    larder: &'a Larder,
    names: &'static [&'static str],
    at: usize,
    count: &'a Count,
) -> futures_util::future::BoxFuture<'a, Result<Arc<u32>, LoadError<String>>> {
    let (inner, counted) = (larder.clone(), count.clone());
    let load = move |_: LoadHandle| async move {
        let _running = counted.begin();
        tokio::time::sleep(SECOND / 100).await;
        let next = needing(&inner, names, (at + 1) % names.len(), &counted).await;
        next.map(|value| *value).map_err(|error| error.to_string())
    };
    larder.get_or_load(names[at], MINUTE, load).boxed()
}

#[tokio::test(start_paused = true)]
async fn values_that_need_each_other_fail_soon_with_an_error_that_names_them() {
    for names in [&["a"][..], &["a", "b"], &["a", "b", "c"]] {
        for callers in 1..=names.len() {
            let (larder, count) = (larder(), Count::default());
            let began = tokio::time::Instant::now();
            let calls = (0..callers).map(|at| needing(&larder, names, at, &count));
            for outcome in join_all(calls).await {
                let error = outcome.unwrap_err().to_string();
                let last = names.last().unwrap();
                assert!(error.contains(" -> ") && error.contains(last), "{error}");
            }
            assert!(began.elapsed() < SECOND, "{names:?}: {:?}", began.elapsed());
            assert!(count.all() <= 4 * names.len() * callers, "{names:?}: {}", count.all());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_loaders_that_need_the_same_value_load_it_once() {
    let (larder, count) = (larder(), Count::default());
    let load = |value: u32, seconds: u32| {
        let count = count.clone();
        move |_: LoadHandle| async move {
            let _running = count.begin();
            tokio::time::sleep(SECOND * seconds).await;
            Ok::<_, Infallible>(value)
        }
    };
    // Both values need `c`, which does not need another value.
    let both = ["a", "b"].map(|name| {
        let (inner, load) = (larder.clone(), load(3, 5));
        let outer = move |_: LoadHandle| async move {
            inner.get_or_load("c", MINUTE, load).await.map(|value| *value)
        };
        larder.get_or_load(name, MINUTE, outer)
    });
    for outcome in join_all(both).await {
        assert_eq!(*outcome.unwrap(), 3);
    }
    assert_eq!(count.all(), 1);
}
