//! Write-through in several processes: the value is in both levels, and never an older one than the last write.

use std::{convert::Infallible, sync::Arc, time::Duration};

use larder::{
    Invalidated, Larder, Reason,
    values::{SetOutcome, WriteHandle},
};
use larder_testkit::{MemoryStore, SharedLog, SimulatedCluster};
use tokio::sync::Notify;

use crate::second_level::{process, settled};

const MINUTE: Duration = Duration::from_secs(60);

async fn write(larder: &Larder, value: u32) -> SetOutcome {
    let write = move |_: WriteHandle| async move { Ok::<_, Infallible>(value) };
    larder.values::<u32>(MINUTE).write_through("a", write).await.unwrap().stored
}

async fn get(larder: &Larder) -> Option<u32> {
    larder.values::<u32>(MINUTE).get("a").await.as_deref().copied()
}

#[tokio::test(start_paused = true)]
async fn a_value_written_through_is_a_hit_in_another_process() {
    let (log, store) = (SharedLog::new(), MemoryStore::new());
    let [one, two] = [1, 2].map(|_| process(&log, &store, |builder| builder));
    settled(&[&one, &two]).await;
    assert_eq!(write(&one, 1).await, SetOutcome::Stored);
    settled(&[&one, &two]).await;
    assert_eq!(get(&two).await, Some(1));
    assert_eq!(write(&two, 2).await, SetOutcome::Stored);
    settled(&[&one, &two]).await;
    assert_eq!((get(&one).await, get(&two).await), (Some(2), Some(2)));
}

/// Both processes write at the same time; each may have committed first.
#[tokio::test(start_paused = true)]
async fn of_two_processes_that_write_at_once_the_later_record_decides() {
    for first_returns_first in [true, false] {
        let (log, store) = (SharedLog::new(), MemoryStore::new());
        let larders = [1, 2].map(|_| process(&log, &store, |builder| builder));
        settled(&[&larders[0], &larders[1]]).await;
        let gates = [Arc::new(Notify::new()), Arc::new(Notify::new())];
        let writing = [0, 1].map(|at| {
            let (larder, gate) = (larders[at].clone(), gates[at].clone());
            tokio::spawn(async move {
                let write = move |_: WriteHandle| async move {
                    gate.notified().await;
                    Ok::<_, Infallible>(at as u32)
                };
                larder.values::<u32>(MINUTE).write_through("a", write).await.unwrap().stored
            })
        });
        tokio::time::sleep(MINUTE / 60).await;
        let order = if first_returns_first { [0, 1] } else { [1, 0] };
        for at in order {
            gates[at].notify_one();
            tokio::time::sleep(MINUTE / 20).await;
        }
        let mut stored = Vec::new();
        for writing in writing {
            stored.push(writing.await.unwrap());
        }
        assert_eq!(stored[order[0]], SetOutcome::Stored);
        assert_eq!(
            stored[order[1]],
            SetOutcome::NotStored(Reason::Overtaken),
            "it cannot know who is newer"
        );
        for larder in &larders {
            assert_eq!(get(larder).await, None, "the later record reaches the earlier value");
        }
    }
}

/// The log has the record of the other process, and this process has not applied it yet.
#[tokio::test(start_paused = true)]
async fn a_record_that_this_process_has_not_applied_yet_counts() {
    let cluster = SimulatedCluster::new(2);
    cluster.synced().await;
    let (slow, other) = (cluster.process(0).clone(), cluster.process(1).clone());
    let write = move |_: WriteHandle| async move {
        let _ = other.invalidate("a").await;
        Ok::<_, Infallible>(1)
    };
    let written = slow.values::<u32>(MINUTE).write_through("a", write).await.unwrap();
    assert_eq!(written.stored, SetOutcome::NotStored(Reason::Overtaken));
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_record_the_log_does_not_confirm_stores_nothing() {
    let cluster = SimulatedCluster::new(2);
    cluster.synced().await;
    assert_eq!(write(cluster.process(0), 1).await, SetOutcome::Stored);
    cluster.settled().await;
    cluster.cut_off(0);
    let write = |_: WriteHandle| async { Ok::<_, Infallible>(2) };
    let written = cluster.process(0).values::<u32>(MINUTE).write_through("a", write).await.unwrap();
    assert_eq!(written.stored, SetOutcome::NotStored(Reason::Unlogged));
    assert_eq!(written.invalidated, Invalidated::Queued);
    assert_eq!(get(cluster.process(0)).await, None, "the old value is gone at once");
    cluster.rejoin(0);
    cluster.settled().await;
    assert_eq!(get(cluster.process(1)).await, None);
}
