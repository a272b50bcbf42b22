//! Reading the catalog and installing the outbox are retried.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use larder_core::Larder;
use tower_layer::Layer as _;

use crate::*;

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 12).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_catalog_is_retried_and_nothing_is_cached_until_it_is_read() {
    let (fails, asked) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (failing, counted) = (fails.clone(), asked.clone());
    let database = tower::service_fn(move |_: Statement| {
        let n = i64::from(counted.fetch_add(1, Ordering::SeqCst));
        let rows = Rows { columns: vec!["n".to_owned()], rows: vec![vec![n.into()]] };
        std::future::ready(Ok::<_, Infallible>(StatementOutcome { rows, affected: 0 }))
    });
    let catalog = || Catalog::new().table("a", Table::new().key("id", KeyKind::Integer));
    let mut layer = QueryCacheLayer::new(&larder(), SqlDialect::Sqlite).catalog(catalog());
    layer.options.source = Some(Arc::new(move || {
        let fails =
            failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        Box::pin(std::future::ready(fails.is_err().then(catalog)))
    }));
    let db = Db::new(layer.layer(database));
    let n = async || db.query("SELECT n FROM a WHERE id = 1").fetch_scalar::<i64>().await.unwrap();
    assert_eq!(n().await, n().await);
    fails.store(5, Ordering::SeqCst);
    db.query("CREATE TABLE b (id INTEGER)").execute().await.unwrap();
    assert_ne!(n().await, n().await, "nothing is known of the tables");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_ne!(n().await, n().await, "five attempts fail");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(n().await, n().await, "the tables are known again, without another definition");
}

#[tokio::test(start_paused = true)]
async fn installing_the_outbox_again_is_retried_until_it_succeeds() {
    let database = tower::service_fn(move |_: Statement| {
        std::future::ready(Ok::<_, Infallible>(StatementOutcome {
            rows: Rows::default(),
            affected: 0,
        }))
    });
    let db = Db::new(QueryCacheLayer::new(&larder(), SqlDialect::Sqlite).layer(database));
    let attempts = Arc::new(AtomicU32::new(0));
    let counted = attempts.clone();
    *db.cache().context().outbox.lock() = Some(Arc::new(move || {
        let attempt = counted.fetch_add(1, Ordering::SeqCst) + 1;
        Box::pin(std::future::ready(attempt.is_multiple_of(4)))
    }));
    for attempts_until_now in [4, 8] {
        db.query("CREATE TABLE b (id INTEGER)").execute().await.unwrap();
        assert_eq!(attempts.load(Ordering::SeqCst), attempts_until_now - 3, "the first fails");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(attempts.load(Ordering::SeqCst), attempts_until_now, "the fourth succeeds");
    }
}
