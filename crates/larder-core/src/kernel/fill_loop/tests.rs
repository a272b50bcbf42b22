//! Each rule of the fill loop by its number, with a leader that the test drives.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::poll;

use super::{
    row_request::{Outcome, ReadRow, RowRequest},
    *,
};
use crate::{
    Larder,
    store::{BoxFuture, Bus, BusError, BusErrorKind, Epoch, LogPage, Position, Record},
};

const SECOND: Duration = Duration::from_secs(1);

/// A larder, and a row that each read counts.
fn world() -> (Larder, ReadRow) {
    let larder = Larder::builder().tag_table_slots(1 << 10).build().expect("the options are valid");
    (larder, counted())
}

fn counted() -> ReadRow {
    let reads = AtomicU64::new(0);
    Arc::new(move || reads.fetch_add(1, Ordering::SeqCst) + 1)
}

/// Starts a fill of the row, and returns its leader with the request that leads.
fn leader(kernel: &Kernel, row: &ReadRow) -> (Leader, RowRequest) {
    let request = RowRequest::new(kernel, row);
    match request.join() {
        FlightRole::Leader(leader) => (leader, request),
        _ => panic!("another fill is in flight"),
    }
}

/// Polls the loop of a request until it waits.
macro_rules! waiting {
    ($waiting:ident = $request:expr) => {
        let mut $waiting = Box::pin(fill_or_wait($request));
        assert!(poll!(&mut $waiting).is_pending());
    };
}

#[tokio::test(start_paused = true)]
async fn rule_2_a_waiter_reads_along_only_if_the_fill_began_after_its_request_arrived() {
    let (larder, row) = world();
    let (leader, _) = leader(larder.kernel(), &row);
    waiting!(early = RowRequest::new(larder.kernel(), &row));
    let _ = larder.invalidate(RowRequest::tag()).await;
    waiting!(late = RowRequest::new(larder.kernel(), &row));
    leader.begin(Arc::new(()));
    assert_eq!(early.await, Outcome::ReadAlong);
    assert!(poll!(&mut late).is_pending(), "the fill began before the invalidation");
    drop(leader);
}

#[tokio::test(start_paused = true)]
async fn rule_3_a_request_that_arrived_after_an_invalidation_takes_no_older_entry() {
    let (larder, row) = world();
    let (leader, leading) = leader(larder.kernel(), &row);
    waiting!(early = RowRequest::new(larder.kernel(), &row));
    let entry = leading.fill();
    let _ = larder.invalidate(RowRequest::tag()).await;
    waiting!(late = RowRequest::new(larder.kernel(), &row));
    leader.finish(FlightResult::Filled(entry));
    assert_eq!(early.await, Outcome::Took(1));
    assert_eq!(late.await, Outcome::Led(2));
}

#[tokio::test(start_paused = true)]
async fn rule_4_a_waiter_whose_process_lags_takes_nothing() {
    let larder = lagging();
    let row = counted();
    let request = || RowRequest::new(larder.kernel(), &row).bounded(SECOND);
    for finishes in [true, false] {
        let (leader, leading) = leader(larder.kernel(), &row);
        waiting!(waiter = request());
        tokio::time::advance(2 * SECOND).await;
        if finishes {
            leader.finish(FlightResult::Filled(leading.fill()));
        } else {
            leader.begin(Arc::new(()));
        }
        let outcome = waiter.await;
        assert!(matches!(outcome, Outcome::Alone(Reason::Unsynchronised, _)), "{outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn rule_5_a_waiter_whose_patience_ends_leads_a_second_fill() {
    let (larder, row) = world();
    let (slow, _) = leader(larder.kernel(), &row);
    waiting!(waiter = RowRequest::new(larder.kernel(), &row).patient_for(SECOND));
    tokio::time::advance(2 * SECOND).await;
    assert_eq!(waiter.await, Outcome::Led(1));
    drop(slow);
}

#[tokio::test(start_paused = true)]
async fn rule_6_a_waiter_looks_again_before_it_joins_again() {
    let (larder, row) = world();
    let (leader, leading) = leader(larder.kernel(), &row);
    waiting!(waiter = RowRequest::new(larder.kernel(), &row));
    leading.fill();
    leader.finish(FlightResult::Withdrawn);
    assert_eq!(waiter.await, Outcome::Hit(1));
}

#[tokio::test(start_paused = true)]
async fn rule_6_a_waiter_that_leads_after_a_wait_has_a_new_stamp() {
    let (larder, row) = world();
    let (leader, _) = leader(larder.kernel(), &row);
    let request = RowRequest::new(larder.kernel(), &row);
    assert_eq!(request.stamp(), larder.kernel().sequence());
    waiting!(waiter = request);
    let _ = larder.invalidate(RowRequest::tag()).await;
    leader.finish(FlightResult::Withdrawn);
    assert_eq!(waiter.await, Outcome::Led(1));
    // Under the old stamp the entry would have been invalid at once.
    assert_eq!(RowRequest::new(larder.kernel(), &row).look(), Some(Outcome::Hit(1)));
}

#[tokio::test(start_paused = true)]
async fn rule_7_a_waiter_goes_on_alone_after_four_results_that_it_cannot_use() {
    let (larder, row) = world();
    let (mut leading, _) = leader(larder.kernel(), &row);
    waiting!(waiter = RowRequest::new(larder.kernel(), &row));
    for round in 1.. {
        leading.finish(FlightResult::Withdrawn);
        let (next, _) = leader(larder.kernel(), &row);
        leading = next;
        if let std::task::Poll::Ready(outcome) = poll!(&mut waiter) {
            assert_eq!((round, outcome), (4, Outcome::Alone(Reason::Overtaken, 1)));
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rule_7_a_waiter_returns_the_fourth_failure() {
    let (larder, row) = world();
    let (mut leading, _) = leader(larder.kernel(), &row);
    waiting!(waiter = RowRequest::new(larder.kernel(), &row));
    for round in 1.. {
        leading.finish(FlightResult::Failed(Arc::new(())));
        let (next, _) = leader(larder.kernel(), &row);
        leading = next;
        if let std::task::Poll::Ready(outcome) = poll!(&mut waiter) {
            assert_eq!((round, outcome), (4, Outcome::Failed));
            break;
        }
    }
}

/// A larder whose shared log does not answer, so that its lag grows.
fn lagging() -> Larder {
    let builder = Larder::builder().tag_table_slots(1 << 10).bus(SilentBus);
    builder.build().expect("the options are valid")
}

/// A shared log that does not answer.
#[derive(Debug)]
struct SilentBus;

impl SilentBus {
    fn error<T: Send + 'static>() -> BoxFuture<'static, Result<T, BusError>> {
        Box::pin(std::future::ready(Err(BusError::new(BusErrorKind::Unreachable))))
    }
}

impl Bus for SilentBus {
    fn is_shared(&self) -> bool {
        true
    }

    fn keep_for(&self, _: Duration) {}

    fn append<'a>(&'a self, _: &'a Record) -> BoxFuture<'a, Result<Position, BusError>> {
        Self::error()
    }

    fn schedule<'a>(
        &'a self,
        _: u64,
        _: &'a Record,
        _: Duration,
    ) -> BoxFuture<'a, Result<Position, BusError>> {
        Self::error()
    }

    fn end(&self, _: Option<Epoch>) -> BoxFuture<'_, Result<Position, BusError>> {
        Self::error()
    }

    fn read(
        &self,
        _: Position,
        _: Duration,
    ) -> BoxFuture<'_, Result<Vec<(u64, Record)>, BusError>> {
        Self::error()
    }

    fn compacted(&self, _: u64) -> BoxFuture<'_, Result<LogPage, BusError>> {
        Self::error()
    }
}

/// Rule: a shadow stores nothing, by whichever path it comes to the store.
#[tokio::test(start_paused = true)]
async fn an_entry_of_a_shadow_is_in_no_level() {
    let larder = Larder::builder().build().unwrap();
    let read: ReadRow = Arc::new(|| 1);
    let request = || RowRequest::new(larder.kernel(), &read);
    drop(request().in_shadow().fill());
    assert_eq!((request().look(), larder.stats().memory.entries), (None, 0));
    drop(request().fill());
    assert_eq!(request().look(), Some(Outcome::Hit(1)));
}
