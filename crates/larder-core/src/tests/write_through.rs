//! Write-through: two writers in both orders, writes that fail, panic or are dropped, and every kind of invalidation in
//! between.

use std::sync::Mutex;

use super::*;
use crate::{
    Reason,
    values::{SetOutcome, Values, WriteError, WriteHandle, WriteOutcome},
};

/// A row of a database. A write returns the row that it made.
#[derive(Clone, Default)]
struct Row(Arc<Mutex<Option<u32>>>);

impl Row {
    fn set(&self, value: Option<u32>) -> Option<u32> {
        *self.0.lock().unwrap() = value;
        value
    }

    fn get(&self) -> Option<u32> {
        *self.0.lock().unwrap()
    }
}

fn view(larder: &Larder) -> Values<u32> {
    larder.values(Policy::ttl(MINUTE).tag("t"))
}

type Written = Result<WriteOutcome<Arc<u32>>, WriteError<&'static str>>;

/// Writes `value`, and then waits for the gate before the write returns.
fn write(
    larder: &Larder,
    row: &Row,
    value: u32,
    gate: &Arc<Notify>,
) -> tokio::task::JoinHandle<Written> {
    let (values, row, gate) = (view(larder), row.clone(), gate.clone());
    tokio::spawn(async move {
        let write = move |_: WriteHandle| async move {
            let written = row.set(Some(value)).unwrap();
            gate.notified().await;
            Ok(written)
        };
        values.write_through("a", write).await
    })
}

fn open() -> Arc<Notify> {
    let gate = Arc::new(Notify::new());
    gate.notify_one();
    gate
}

async fn read(larder: &Larder, row: &Row) -> Option<u32> {
    let row = row.clone();
    let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(row.get()) };
    view(larder).get_or_load_optional("a", load).await.unwrap().as_deref().copied()
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_written_value_is_a_hit_without_a_load_and_pages_of_the_old_one_are_gone() {
    let (larder, row) = (larder(), Row::default());
    row.set(Some(1));
    assert_eq!(read(&larder, &row).await, Some(1));
    let page = async |expected: u32| {
        let (inside, row) = (larder.clone(), row.clone());
        let load =
            move |_: LoadHandle| async move { Ok::<_, Infallible>(read(&inside, &row).await) };
        assert_eq!(*larder.get_or_load("page", MINUTE, load).await.unwrap(), Some(expected));
    };
    page(1).await;
    let written = write(&larder, &row, 2, &open()).await.unwrap().unwrap();
    assert_eq!((*written.value, written.stored), (2, SetOutcome::Stored));
    assert_eq!(written.invalidated, crate::Invalidated::Logged);
    assert_eq!(larder.stats().invalidations, 1, "one record for name and tags");
    assert_eq!(view(&larder).get("a").await.as_deref(), Some(&2));
    page(2).await;
}

/// Two writers commit in one order and reach the cache in the other.
#[tokio::test]
async fn of_two_concurrent_writers_the_newer_row_is_served_in_both_orders() {
    for first_returns_first in [true, false] {
        let (larder, row) = (larder(), Row::default());
        let gates = [Arc::new(Notify::new()), Arc::new(Notify::new())];
        let one = write(&larder, &row, 1, &gates[0]);
        settle().await;
        let two = write(&larder, &row, 2, &gates[1]);
        settle().await;
        // Writer two has committed last.
        let order = if first_returns_first { [0, 1] } else { [1, 0] };
        for at in order {
            gates[at].notify_one();
            settle().await;
        }
        let outcomes = [one, two].map(async |writing| writing.await.unwrap().unwrap().stored);
        let [one, two] = outcomes;
        let (one, two) = (one.await, two.await);
        let refused = SetOutcome::NotStored(Reason::Overtaken);
        let expected = if first_returns_first {
            (SetOutcome::Stored, refused)
        } else {
            (refused, SetOutcome::Stored)
        };
        assert_eq!((one, two), expected);
        assert_eq!(read(&larder, &row).await, Some(2));
    }
}

#[tokio::test]
async fn a_value_that_any_invalidation_reached_during_its_write_is_not_stored() {
    type Invalidation = crate::Invalidation;
    let soft = || Invalidation::of(["a"]).soft(MINUTE);
    let all: [(&str, Invalidation, bool); 11] = [
        ("name", Target::name("a").into(), true),
        ("tag", Target::tag("t").into(), true),
        ("tag of the write", Target::tag("late").into(), true),
        ("prefix", Target::prefix("late").into(), true),
        ("pattern", Target::pattern("?").into(), true),
        ("kind", Target::kind(crate::Kind::Object).into(), true),
        ("everything", Target::everything().into(), true),
        ("soft", soft(), true),
        ("another name", Target::name("b").into(), false),
        ("another pattern", Target::pattern("b*").into(), false),
        ("another kind", Target::kind(crate::Kind::Query).into(), false),
    ];
    for (what, invalidation, reaches) in all {
        let larder = larder();
        let gate = Arc::new(Notify::new());
        let (values, opened) = (view(&larder), gate.clone());
        let writing = tokio::spawn(async move {
            let write = move |write: WriteHandle| async move {
                write.tag("late");
                opened.notified().await;
                Ok::<u32, Infallible>(1)
            };
            values.write_through("a", write).await.unwrap().stored
        });
        settle().await;
        let _ = larder.invalidate(invalidation).await;
        gate.notify_one();
        let expected =
            if reaches { SetOutcome::NotStored(Reason::Overtaken) } else { SetOutcome::Stored };
        assert_eq!(writing.await.unwrap(), expected, "{what}");
        assert_eq!(view(&larder).get("a").await.is_some(), !reaches, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_that_becomes_due_during_a_write_counts() {
    let (larder, row) = (larder(), Row::default());
    let gate = Arc::new(Notify::new());
    let _ = larder.invalidate(crate::Invalidation::of(["a"]).after(MINUTE / 60)).await;
    let writing = write(&larder, &row, 1, &gate);
    settle().await;
    tokio::time::advance(MINUTE / 60).await;
    gate.notify_one();
    assert_eq!(writing.await.unwrap().unwrap().stored, SetOutcome::NotStored(Reason::Overtaken));
}

/// A request reads the stock, another request changes it, and the first writes what it has computed.
#[tokio::test]
async fn what_the_request_read_before_the_write_counts() {
    let (larder, row) = (larder(), Row::default());
    row.set(Some(1));
    view(&larder).write_through("warm", |_| async { Ok::<_, Infallible>(1) }).await.unwrap();
    let request = larder.kernel().open_scope().gathering(Audience::Everyone);
    let inside = larder.clone();
    let handler = async {
        let read = read(&inside, &row).await.unwrap();
        let _ = inside.invalidate("a").await;
        view(&inside).write_through("a", move |_| async move { Ok::<_, Infallible>(read) }).await
    };
    let written = request.scoped(handler).await.unwrap();
    assert_eq!(written.stored, SetOutcome::NotStored(Reason::Overtaken));
}

#[tokio::test]
async fn a_write_that_fails_invalidates_and_stores_nothing() {
    let (larder, row) = (larder(), Row::default());
    row.set(Some(1));
    read(&larder, &row).await;
    let committed = row.clone();
    let write = move |write: WriteHandle| async move {
        // The commit has happened, and its answer is lost.
        committed.set(Some(2));
        write.invalidate("other");
        Err::<u32, _>("timeout at COMMIT")
    };
    load(&larder, "other", 1).await;
    let failed = view(&larder).write_through("a", write).await;
    assert_eq!(failed, Err(WriteError::Failed("timeout at COMMIT")));
    assert_eq!(read(&larder, &row).await, Some(2));
    assert_eq!(larder.values::<u32>(MINUTE).get("other").await, None);
}

#[tokio::test]
async fn a_write_that_panics_invalidates() {
    let (larder, row) = (larder(), Row::default());
    row.set(Some(1));
    read(&larder, &row).await;
    let (values, committed) = (view(&larder), row.clone());
    let writing = tokio::spawn(async move {
        let write = move |_: WriteHandle| async move {
            committed.set(Some(2));
            panic!("after the commit");
            #[allow(unreachable_code, reason = "it gives the type")]
            Ok::<u32, Infallible>(2)
        };
        values.write_through("a", write).await
    });
    assert!(writing.await.unwrap_err().is_panic(), "the panic resumes");
    assert_eq!(read(&larder, &row).await, Some(2));
    assert_eq!(larder.stats().invalidations, 1);
}

#[tokio::test]
async fn a_write_whose_caller_is_dropped_goes_on_and_invalidates_after_its_commit() {
    let (larder, row) = (larder(), Row::default());
    row.set(Some(1));
    read(&larder, &row).await;
    let (gate, values, committed) = (Arc::new(Notify::new()), view(&larder), row.clone());
    let opened = gate.clone();
    let write = move |_: WriteHandle| async move {
        opened.notified().await;
        committed.set(Some(2));
        Ok::<u32, Infallible>(2)
    };
    let mut writing = Box::pin(values.write_through("a", write));
    assert!(futures_util::poll!(&mut writing).is_pending());
    drop(writing);
    settle().await;
    assert_eq!(read(&larder, &row).await, Some(1), "not yet written");
    gate.notify_one();
    settle().await;
    assert_eq!(read(&larder, &row).await, Some(2));
}

#[tokio::test]
async fn a_reader_that_read_the_old_row_during_the_write_does_not_replace_the_new_one() {
    let (larder, row) = (larder(), Row::default());
    row.set(Some(1));
    let (read_old, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let reading = tokio::spawn({
        let (larder, row) = (larder.clone(), row.clone());
        let (read_old, release) = (read_old.clone(), release.clone());
        async move {
            let load = move |_: LoadHandle| async move {
                let old = row.get().unwrap();
                read_old.notify_one();
                release.notified().await;
                Ok::<_, Infallible>(old)
            };
            view(&larder).get_or_load("a", load).await.map(|value| *value)
        }
    });
    read_old.notified().await;
    write(&larder, &row, 2, &open()).await.unwrap().unwrap();
    release.notify_one();
    assert_eq!(reading.await.unwrap().unwrap(), 1, "it arrived before the write");
    assert_eq!(view(&larder).get("a").await.as_deref(), Some(&2));
}

#[tokio::test]
async fn a_deletion_stores_that_there_is_no_value() {
    let (larder, row) = (larder(), Row::default());
    row.set(Some(1));
    read(&larder, &row).await;
    let deleted = row.clone();
    let delete = move |_: WriteHandle| async move {
        deleted.set(None);
        Ok::<Option<u32>, Infallible>(None)
    };
    let written = view(&larder).write_through_optional("a", delete).await.unwrap();
    assert_eq!((written.value, written.stored), (None, SetOutcome::Stored));
    row.set(Some(9));
    assert_eq!(read(&larder, &row).await, None, "the negative result is stored");
}

#[tokio::test]
async fn a_written_value_has_the_parts_that_its_write_has_read_and_the_audience_of_the_request() {
    let larder = larder();
    let inside = larder.clone();
    let write =
        move |_: WriteHandle| async move { Ok::<u32, Infallible>(load(&inside, "part", 1).await) };
    let values = larder.values::<u32>(MINUTE);
    values.write_through("a", write).await.unwrap();
    let _ = larder.invalidate("part").await;
    assert_eq!(values.get("a").await, None);
    let [ada, bob] = [&b"ada"[..], b"bob"]
        .map(|user| larder.kernel().scope().gathering(Audience::Partition(user.into())));
    let write = |_: WriteHandle| async { Ok::<u32, Infallible>(1) };
    let written = ada.clone().scoped(values.write_through("cart", write)).await.unwrap();
    assert_eq!(written.stored, SetOutcome::Stored);
    assert_eq!(bob.scoped(values.get("cart")).await, None);
    assert!(ada.scoped(values.get("cart")).await.is_some());
    let unknown = larder.kernel().scope().gathering(Audience::Unknown);
    let written = unknown.scoped(values.write_through("cart", write)).await.unwrap();
    assert_eq!(written.stored, SetOutcome::NotStored(Reason::Identified));
}
