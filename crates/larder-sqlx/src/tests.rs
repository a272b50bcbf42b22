//! Queries through the cache of a real database, compared with the same queries without it.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use larder_core::{
    ByteSize, Larder, LoadHandle, Policy, Reason,
    values::{SetOutcome, WriteHandle},
};
use larder_testkit::SeededRng;
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use tower_layer::Layer as _;

use larder_sql::*;

const SCHEMA: &str = "
    CREATE TABLE a (id INTEGER PRIMARY KEY, name TEXT UNIQUE, v INTEGER);
    CREATE TABLE b (id INTEGER PRIMARY KEY, a_id INTEGER REFERENCES a (id) ON DELETE CASCADE ON UPDATE CASCADE,
        v INTEGER);
    CREATE TABLE c (x TEXT, y INTEGER, v INTEGER, PRIMARY KEY (x, y)) WITHOUT ROWID;
    CREATE TABLE n (slug TEXT PRIMARY KEY COLLATE NOCASE, v INTEGER);
    CREATE TABLE t (slug TEXT PRIMARY KEY, v INTEGER);
    CREATE TABLE log (id INTEGER PRIMARY KEY, what TEXT);
    CREATE TRIGGER a_changes AFTER UPDATE ON a BEGIN
        INSERT INTO log (what) VALUES (old.name || ' to ' || new.name);
        UPDATE t SET v = v + 1 WHERE slug = 'count';
    END;
    CREATE VIEW cheap AS SELECT * FROM a WHERE v < 3;
    CREATE VIEW pairs AS SELECT cheap.id, b.v FROM cheap JOIN b ON b.a_id = cheap.id;
    INSERT INTO t VALUES ('count', 0);
";

/// Queries; each pair of braces is replaced by a random value.
const READS: [&str; 36] = [
    "SELECT count(*) FROM b WHERE id = {i}",
    "SELECT (SELECT v FROM b WHERE id = {i})",
    "SELECT * FROM a WHERE id = {i}",
    "SELECT * FROM a WHERE id = {s}",
    "SELECT * FROM a WHERE id = {r}",
    "SELECT * FROM a WHERE id IN ({i}, {i})",
    "SELECT * FROM a WHERE id = {i} OR v = {i}",
    "SELECT * FROM a WHERE id = {i} AND v > {i}",
    "SELECT * FROM a WHERE name = {n}",
    "SELECT count(*), sum(v) FROM a",
    "SELECT * FROM a ORDER BY v, id LIMIT 2",
    "SELECT * FROM a LEFT JOIN b ON b.a_id = a.id WHERE a.id = {i} ORDER BY b.id",
    "SELECT * FROM a LEFT JOIN b ON b.a_id = a.id WHERE b.id = {i}",
    "SELECT * FROM b LEFT JOIN a ON a.id = b.a_id AND a.id = {i} ORDER BY b.id",
    "SELECT * FROM a, b WHERE a.id = {i} AND b.id = {i}",
    "SELECT * FROM a p, a q WHERE p.id = {i} AND q.id = {i}",
    "SELECT * FROM a p, a q WHERE p.id = {i} AND q.v = p.v ORDER BY q.id",
    "SELECT (SELECT count(*) FROM b WHERE a_id = p.id) FROM a p WHERE p.id = {i}",
    "SELECT * FROM a WHERE id = {i} AND EXISTS (SELECT 1 FROM b WHERE b.id = {i})",
    "SELECT * FROM a WHERE id = (SELECT max(a_id) FROM b)",
    "SELECT name FROM a WHERE id = {i} UNION SELECT slug FROM t WHERE slug = {n} ORDER BY 1",
    "SELECT name FROM a WHERE id = {i} EXCEPT SELECT name FROM a WHERE v = {i}",
    "WITH w AS (SELECT * FROM a WHERE v > {i}) SELECT count(*) FROM w",
    "WITH w AS (SELECT * FROM b WHERE id = {i}) SELECT * FROM w JOIN a ON a.id = w.a_id",
    "SELECT * FROM b WHERE id = {i}",
    "SELECT * FROM b WHERE a_id = {i} ORDER BY id",
    "SELECT * FROM c WHERE x = {n} AND y = {i}",
    "SELECT * FROM c WHERE y IN ({i}, {i}) AND x = {n} ORDER BY y",
    "SELECT * FROM c WHERE x = {n} ORDER BY y",
    "SELECT * FROM n WHERE slug = {n}",
    "SELECT * FROM t WHERE slug = {n}",
    "SELECT * FROM t WHERE slug = 'count'",
    "SELECT * FROM log WHERE id = {i}",
    "SELECT count(*) FROM log",
    "SELECT * FROM cheap WHERE id = {i}",
    "SELECT * FROM pairs ORDER BY id, v",
];

const WRITES: [&str; 34] = [
    "INSERT OR IGNORE INTO a (name, v) VALUES ({n}, {i})",
    "INSERT INTO b (a_id, v) SELECT id, v FROM a WHERE v = {i}",
    "INSERT OR IGNORE INTO a (id, name, v) VALUES ({i}, {n}, {i})",
    "INSERT OR REPLACE INTO a (id, name, v) VALUES ({i}, {n}, {i})",
    "REPLACE INTO a (name, v) VALUES ({n}, {i})",
    "INSERT INTO a (name, v) VALUES ({n}, {i}) ON CONFLICT (name) DO UPDATE SET v = excluded.v",
    "INSERT INTO a (id, name, v) VALUES ({i}, {n}, {i}) ON CONFLICT (id) DO UPDATE SET v = v + 1",
    "INSERT INTO a (id, name, v) VALUES ({i}, {n}, {i}) ON CONFLICT (name) DO UPDATE SET v = v + 1",
    "INSERT INTO a (id, v) VALUES ({i}, 1), ({i}, 2) ON CONFLICT DO NOTHING",
    "UPDATE a SET v = {i} WHERE id = {i}",
    "UPDATE a SET v = {i} WHERE id = {s}",
    "UPDATE a SET v = v + 1 WHERE id = {r}",
    "UPDATE a SET v = {i} WHERE id = {i} OR v = {i}",
    "UPDATE a SET v = {i}",
    "UPDATE a SET id = id + 7 WHERE id = {i}",
    "UPDATE OR REPLACE a SET name = {n} WHERE id = {i}",
    "UPDATE OR IGNORE a SET name = {n} WHERE id = {i}",
    "UPDATE a SET v = b.v FROM b WHERE b.a_id = a.id AND a.id = {i}",
    "DELETE FROM a WHERE id = {i}",
    "DELETE FROM a WHERE v = {i}",
    "INSERT OR IGNORE INTO b (id, a_id, v) VALUES ({i}, {i}, {i})",
    "INSERT OR IGNORE INTO b (a_id, v) SELECT id, v FROM a WHERE id = {i}",
    "UPDATE b SET v = {i} WHERE id IN ({i}, {i})",
    "DELETE FROM b WHERE id = {i}",
    "INSERT OR REPLACE INTO c (x, y, v) VALUES ({n}, {i}, {i})",
    "UPDATE c SET v = {i} WHERE x = {n} AND y = {i}",
    "UPDATE OR IGNORE c SET y = {i} WHERE x = {n}",
    "DELETE FROM c WHERE x = {n} AND y = {i}",
    "INSERT OR REPLACE INTO n (slug, v) VALUES ({n}, {i})",
    "UPDATE n SET v = {i} WHERE slug = {n}",
    "INSERT OR IGNORE INTO t (slug, v) VALUES ({n}, {i})",
    "UPDATE t SET v = {i} WHERE slug = {n}",
    "DELETE FROM t WHERE slug = {n} AND slug <> 'count'",
    "WITH w AS (SELECT {i} AS id) UPDATE b SET v = v + 1 WHERE id = (SELECT id FROM w)",
];

async fn pool(schema: &str) -> SqlitePool {
    let options = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
    let pool = options.connect("sqlite::memory:").await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(schema.to_owned())).execute(&pool).await.unwrap();
    pool
}

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 12).build().unwrap()
}

/// A statement of this form, with random values that are bound or written into the text.
fn drawn(form: &str, dice: &SeededRng) -> Statement {
    let (mut text, mut values) = (String::new(), Vec::new());
    for (at, part) in form.split(['{', '}']).enumerate() {
        if at % 2 == 0 {
            text.push_str(part);
            continue;
        }
        let number = dice.roll(6) as i64;
        let value: SqlValue = match part {
            "i" => number.into(),
            "s" => number.to_string().into(),
            "r" => (number as f64).into(),
            _ => ["x", "X", "y", "y:1", "5", "count"][number as usize].into(),
        };
        match (&value, dice.chance(30)) {
            (SqlValue::Int(number), true) => text.push_str(&number.to_string()),
            (SqlValue::Text(word), true) => text.push_str(&format!("'{word}'")),
            _ => {
                text.push('?');
                values.push(value);
            }
        }
    }
    values.into_iter().fold(Statement::new(text), Statement::bind)
}

/// A row with any columns and values.
type AnyRow = std::collections::BTreeMap<String, Option<Held>>;

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum Held {
    Int(i64),
    Real(f64),
    Text(String),
}

#[tokio::test]
async fn cached_results_always_equal_uncached_ones() {
    let seeds = std::env::var("LARDER_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let mut hits = 0;
    for seed in 0..seeds {
        let (dice, larder) = (SeededRng::new(seed), larder());
        let db = crate::v0_9::sqlite(pool(SCHEMA).await).cached(&larder).await.unwrap();
        // Each seed uses only a few forms, so that reads and writes often concern the same rows.
        let some = |forms: &[&'static str], most: u64| {
            (0..most).map(|_| forms[dice.roll(forms.len() as u64) as usize]).collect::<Vec<_>>()
        };
        let (writes, forms) = (some(&WRITES, 6), some(&READS, 8));
        let reads: Vec<_> =
            forms.iter().flat_map(|form| [(); 3].map(|()| drawn(form, &dice))).collect();
        for turn in 0..60 {
            let write = drawn(writes[dice.roll(writes.len() as u64) as usize], &dice);
            // A write that the database refuses may have changed nothing, or only some rows.
            let outcome = db.statement(write.clone()).execute().await;
            for _ in 0..8 {
                let read = &reads[dice.roll(reads.len() as u64) as usize];
                let cached = db.statement(read.clone()).fetch_all::<AnyRow>().await.unwrap();
                let fresh =
                    db.statement(read.clone()).uncached().fetch_all::<AnyRow>().await.unwrap();
                assert_eq!(
                    cached, fresh,
                    "seed {seed}, turn {turn}: {read:?} after {write:?} {outcome:?}"
                );
            }
        }
        hits += larder.stats().cache("queries").map_or(0, |cache| cache.total.hits);
    }
    assert!(hits > seeds * 50, "{hits} hits");
}

#[tokio::test]
async fn a_key_with_a_case_insensitive_collation_names_no_row() {
    let db = crate::v0_9::sqlite(pool(SCHEMA).await).cached(&larder()).await.unwrap();
    db.query("INSERT INTO n VALUES ('x', 1)").execute().await.unwrap();
    let read = || db.query("SELECT v FROM n WHERE slug = ?").bind("x").fetch_scalar::<i64>();
    assert_eq!(read().await.unwrap(), 1);
    db.query("UPDATE n SET v = 2 WHERE slug = ?").bind("X").execute().await.unwrap();
    assert_eq!(read().await.unwrap(), 2);
}

#[tokio::test]
async fn a_value_made_of_a_cached_query_is_invalidated_by_an_update() {
    let (larder, db) = with_rows().await;
    let values = larder.values::<i64>(Duration::from_secs(60));
    for (after, expected) in [(false, None), (true, None)] {
        let point = larder.read_point();
        let row = point.read(a(&db, 1)).await.unwrap();
        if after {
            point.set("doubled", Duration::from_secs(60), row.v * 2).await;
            assert!(values.get("doubled").await.is_some());
        }
        db.query("UPDATE a SET v = v + 1 WHERE id = 1").execute().await.unwrap();
        if !after {
            point.set("doubled", Duration::from_secs(60), row.v * 2).await;
        }
        assert_eq!(values.get("doubled").await, expected, "the update came after the set: {after}");
    }
}

/// The `UPDATE` of a write-through invalidates its own row, which is not the write of another.
#[tokio::test]
async fn a_row_that_is_written_through_is_a_hit_until_another_statement_writes_it() {
    let (larder, db) = with_rows().await;
    db.query("INSERT INTO t VALUES ('x', 0), ('y', 0)").execute().await.unwrap();
    let values = larder.values::<i64>(Duration::from_secs(60));
    let add = async |in_transaction: bool| {
        let db = db.clone();
        let write = move |_: WriteHandle| async move {
            let sql = "UPDATE t SET v = v + 1 WHERE slug = 'x' RETURNING v";
            if !in_transaction {
                return db.query(sql).fetch_scalar::<i64>().await;
            }
            let mut transaction = db.begin().await?;
            let rows = transaction.query(sql).fetch_all::<Returned>().await?;
            transaction.commit().await?;
            Ok(rows[0].v)
        };
        values.write_through("x", write).await.unwrap()
    };
    for (in_transaction, expected) in [(false, 1), (true, 2)] {
        let written = add(in_transaction).await;
        assert_eq!((*written.value, written.stored), (expected, SetOutcome::Stored));
        assert_eq!(values.get("x").await.as_deref(), Some(&expected));
        db.query("INSERT INTO c VALUES ('k', ?, 0)").bind(expected).execute().await.unwrap();
        assert!(values.contains("x").await, "another table");
    }
    db.query("UPDATE t SET v = 7 WHERE slug = 'x'").execute().await.unwrap();
    assert!(!values.contains("x").await, "the value depends on its row");
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Returned {
    v: i64,
}

/// Another writer of the row within the write.
#[tokio::test]
async fn a_row_that_another_statement_wrote_during_the_write_is_not_stored() {
    let (larder, db) = with_rows().await;
    let values = larder.values::<i64>(Duration::from_secs(60));
    let (writer, other) = (db.clone(), db.clone());
    let write = move |_: WriteHandle| async move {
        let row = "UPDATE a SET v = v + 1 WHERE id = 1 RETURNING v";
        let v = writer.query(row).fetch_scalar::<i64>().await?;
        // Outside of the scope of this write, as in another request.
        let elsewhere =
            async move { other.query("UPDATE a SET v = 9 WHERE id = 1").execute().await };
        tokio::spawn(elsewhere).await.unwrap()?;
        Ok::<_, QueryError>(v)
    };
    let written = values.write_through(("a", 1), write).await.unwrap();
    assert_eq!(written.stored, SetOutcome::NotStored(Reason::Overtaken));
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct A {
    id: i64,
    name: Option<String>,
    v: i64,
}

async fn with_rows() -> (Larder, Db) {
    let larder = larder();
    let db = crate::v0_9::sqlite(pool(SCHEMA).await).cached(&larder).await.unwrap();
    for id in 1..=3 {
        let insert = db.query("INSERT INTO a (id, name, v) VALUES (?, ?, 0)");
        insert.bind(id).bind(format!("name {id}")).execute().await.unwrap();
    }
    (larder, db)
}

#[tokio::test]
async fn an_own_value_without_rows_is_invalidated_by_a_new_row() {
    let (_larder, db) = with_rows().await;
    let find = async |id: i64, found: Option<i64>| {
        let value = WeighedValue { value: found, bytes: 16, has_rows: found.is_some() };
        let read = db.cached(Statement::new("SELECT v FROM a WHERE id = ?").bind(id));
        read.load_local(|| async { Ok::<_, QueryError>(value) }).await.unwrap().value
    };
    assert_eq!(find(1, Some(0)).await, Some(0));
    assert_eq!(find(4, None).await, None);
    db.query("INSERT INTO a (name, v) VALUES ('chosen', 7)").execute().await.unwrap();
    assert_eq!(find(4, Some(7)).await, Some(7));
    assert_eq!(find(1, None).await, Some(0), "a row that exists is not a new row");
}

#[tokio::test]
async fn an_own_text_with_transaction_control_invalidates_everything() {
    let pool = pool(SCHEMA).await;
    let larder = larder();
    let db = crate::v0_9::sqlite(pool.clone()).cached(&larder).await.unwrap();
    db.query("INSERT INTO a VALUES (1, 'one', 0)").execute().await.unwrap();
    assert_eq!(a(&db, 1).await.unwrap().v, 0);
    const TEXT: &str = "BEGIN; UPDATE a SET v = 5 WHERE id = 1; COMMIT; SELECT 1";
    let load = || async move { sqlx::raw_sql(TEXT).execute(&pool).await.map(|_| 1) };
    assert_eq!(*db.cached(Statement::new(TEXT)).load(load).await.unwrap(), 1);
    assert_eq!(a(&db, 1).await.unwrap().v, 5);
}

async fn a(db: &Db, id: i64) -> Option<SharedRow<A>> {
    db.query("SELECT * FROM a WHERE id = ?").bind(id).fetch_optional().await.unwrap()
}

#[tokio::test]
async fn equal_queries_share_values_and_a_row_write_invalidates_only_that_row() {
    let (larder, db) = with_rows().await;
    let hits = || larder.stats().cache("queries").map_or(0, |cache| cache.total.hits);
    let first = db.query("SELECT * FROM a WHERE id = ?").bind(1).fetch_all::<A>().await.unwrap();
    let again = db.query("SELECT  * FROM a WHERE id=?").bind(1).fetch_all::<A>().await.unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    a(&db, 2).await;
    let before = hits();
    db.query("UPDATE a SET v = 9 WHERE id = ?").bind(2).execute().await.unwrap();
    assert_eq!((a(&db, 1).await.unwrap().v, hits()), (0, before + 1), "another row is still there");
    assert_eq!((a(&db, 2).await.unwrap().v, hits()), (9, before + 1));
    assert_eq!(db.query("SELECT sum(v) FROM a").fetch_scalar::<i64>().await.unwrap(), 9);
    assert_eq!(
        db.query("SELECT v FROM a WHERE id = 99")
            .fetch_optional::<i64>()
            .await
            .unwrap()
            .map(|v| *v),
        None
    );
    let none = db.query("SELECT v FROM a WHERE id = 99").fetch_one::<i64>().await.unwrap_err();
    assert_eq!(none.kind(), QueryErrorKind::NoRow);
}

#[tokio::test]
async fn a_page_is_invalidated_with_the_rows_it_has_read() {
    let (larder, db) = with_rows().await;
    let rendered = Arc::new(AtomicU32::new(0));
    let page = async || {
        let (db, rendered) = (db.clone(), rendered.clone());
        let render = move |_: LoadHandle| async move {
            rendered.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Infallible>(a(&db, 1).await.map_or(-1, |a| a.v))
        };
        *larder.get_or_load("page", Policy::ttl(Duration::from_secs(60)), render).await.unwrap()
    };
    assert_eq!((page().await, page().await), (0, 0));
    db.query("UPDATE a SET v = 5 WHERE id = 2").execute().await.unwrap();
    assert_eq!(
        (page().await, rendered.load(Ordering::SeqCst)),
        (0, 1),
        "the page does not depend on this row"
    );
    db.query("UPDATE a SET v = 7 WHERE id = 1").execute().await.unwrap();
    assert_eq!((page().await, rendered.load(Ordering::SeqCst)), (7, 2));
    let _logged = db.invalidate_row("A", [1]).await;
    assert_eq!((page().await, rendered.load(Ordering::SeqCst)), (7, 3));
    let _logged = db.invalidate_table("a").await;
    assert_eq!((page().await, rendered.load(Ordering::SeqCst)), (7, 4));
}

#[tokio::test]
async fn a_transaction_invalidates_only_when_it_is_committed() {
    let (larder, db) = with_rows().await;
    assert_eq!(a(&db, 1).await.unwrap().v, 0);
    let invalidations = || larder.stats().invalidations;
    let before = invalidations();
    let mut transaction = db.begin().await.unwrap();
    transaction.query("UPDATE a SET v = 1 WHERE id = 1").execute().await.unwrap();
    let inside = transaction.query("SELECT * FROM a WHERE id = ?").bind(1).fetch_all::<A>().await;
    assert_eq!(inside.unwrap()[0].v, 1, "it sees what it has written");
    assert_eq!(a(&db, 1).await.unwrap().v, 0, "and other connections do not");
    transaction.rollback().await.unwrap();
    assert_eq!((a(&db, 1).await.unwrap().v, invalidations()), (0, before));
    let mut transaction = db.begin().await.unwrap();
    transaction.query("UPDATE a SET v = 2 WHERE id = 1").execute().await.unwrap();
    drop(transaction);
    assert_eq!((a(&db, 1).await.unwrap().v, invalidations()), (0, before));
    let mut transaction = db.begin().await.unwrap();
    transaction.query("UPDATE a SET v = 3 WHERE id = 1").execute().await.unwrap();
    transaction.query("INSERT INTO a (id, v) VALUES (4, 4)").execute().await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(invalidations(), before + 1, "one append");
    assert_eq!((a(&db, 1).await.unwrap().v, a(&db, 4).await.unwrap().v), (3, 4));
}

#[tokio::test]
async fn a_transaction_that_the_database_has_ended_still_invalidates() {
    let (_larder, db) = with_rows().await;
    let mut transaction = db.begin().await.unwrap();
    let ended = transaction.query("COMMIT").execute().await.unwrap_err();
    assert_eq!(ended.kind(), QueryErrorKind::NotAllowed);
    let broken = "INSERT OR ROLLBACK INTO a (id, v) VALUES (1, 5)";
    assert!(transaction.query(broken).execute().await.is_err());
    assert_eq!(a_in(&mut transaction, 1).await, 0);
    // There is no transaction any more, so this write takes effect at once.
    transaction.query("UPDATE a SET v = 8 WHERE id = 1").execute().await.unwrap();
    assert!(transaction.rollback().await.is_err());
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(a(&db, 1).await.unwrap().v, 8);
}

async fn a_in(transaction: &mut Transaction, id: i64) -> i64 {
    let read = transaction.query("SELECT * FROM a WHERE id = ?").bind(id);
    read.fetch_optional::<A>().await.unwrap().map_or(-1, |a| a.v)
}

#[tokio::test]
async fn a_page_depends_on_queries_that_bypass_the_cache() {
    let (larder, db) = with_rows().await;
    for text in [
        "SELECT v FROM a WHERE id = 1 AND random() <> 0",
        "SELECT nobody_knows.v FROM a AS nobody_knows WHERE id = 1",
        "SELECT v FROM cheap WHERE id = 1",
    ] {
        for uncached in [false, true] {
            let page = async || {
                let db = db.clone();
                let render = move |_: LoadHandle| async move {
                    let query = db.query(text);
                    let query = if uncached { query.uncached() } else { query };
                    Ok::<_, Infallible>(query.fetch_scalar::<i64>().await.unwrap_or(-1))
                };
                let policy = Policy::ttl(Duration::from_secs(60));
                *larder.get_or_load((text, u8::from(uncached)), policy, render).await.unwrap()
            };
            db.query("UPDATE a SET v = 1 WHERE id = 1").execute().await.unwrap();
            assert_eq!(page().await, 1, "{text}");
            db.query("UPDATE a SET v = 2 WHERE id = 1").execute().await.unwrap();
            assert_eq!(page().await, 2, "{text}");
        }
    }
}

#[tokio::test]
async fn a_statement_that_may_write_anything_invalidates_everything_each_time() {
    let (larder, db) = with_rows().await;
    for _ in 0..2 {
        let before = larder.stats().invalidations;
        let unknown = db.query("SELECT nobody_knows(1)").fetch_all::<i64>().await;
        assert_eq!(unknown.unwrap_err().kind(), QueryErrorKind::Database);
        assert!(larder.stats().invalidations > before);
    }
}

#[tokio::test]
async fn a_schema_change_reloads_the_catalog_and_invalidates_everything() {
    let (_larder, db) = with_rows().await;
    assert!(a(&db, 9).await.is_none());
    db.query("DROP TABLE a").execute().await.unwrap();
    db.query("CREATE TABLE a (id TEXT PRIMARY KEY, name TEXT, v INTEGER)").execute().await.unwrap();
    db.query("INSERT INTO a VALUES ('9', NULL, 1)").execute().await.unwrap();
    let v = db.query("SELECT v FROM a WHERE id = ?").bind("9");
    assert_eq!(v.fetch_scalar::<i64>().await.unwrap(), 1);
    db.query("UPDATE a SET v = 2 WHERE id = '9'").execute().await.unwrap();
    let v = db.query("SELECT v FROM a WHERE id = ?").bind("9");
    assert_eq!(v.fetch_scalar::<i64>().await.unwrap(), 2);
}

#[tokio::test]
async fn large_volatile_and_failed_results_are_not_stored() {
    let larder = larder();
    let layer = QueryCacheLayer::new(&larder, SqlDialect::Sqlite).max_bytes(ByteSize::bytes(100));
    let db = crate::v0_9::sqlite(pool(SCHEMA).await).cached_by(layer).await.unwrap();
    let refused = |why: &str| {
        let stats = larder.stats();
        let cache = stats.cache("queries").unwrap();
        cache
            .refusals
            .keys()
            .chain(cache.bypasses.keys())
            .any(|reason| reason.as_str().contains(why))
    };
    let large = || db.query("SELECT printf('%200s', 'x') AS text").fetch_all::<String>();
    large().await.unwrap();
    assert!(refused("too-large"));
    let [one, other] = [(); 2].map(|()| db.query("SELECT random()").fetch_scalar::<i64>());
    assert_ne!(one.await.unwrap(), other.await.unwrap());
    assert!(refused("volatile"));
    let asked =
        || db.query("SELECT random()").cached_for(Duration::from_secs(60)).fetch_scalar::<i64>();
    assert_eq!(
        asked().await.unwrap(),
        asked().await.unwrap(),
        "an explicit lifetime makes it storable"
    );
    let error = db.query("SELECT nothing FROM a").fetch_all::<i64>().await.unwrap_err();
    assert_eq!(error.kind(), QueryErrorKind::Database);
    let error = db.query("SELECT 'x'").fetch_scalar::<i64>().await.unwrap_err();
    assert_eq!(error.kind(), QueryErrorKind::Decode);
}

#[tokio::test(start_paused = true)]
async fn a_result_without_rows_has_a_shorter_lifetime() {
    let asked = Arc::new(AtomicU32::new(0));
    let counted = asked.clone();
    let database = tower::service_fn(move |_: Statement| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok::<_, Infallible>(StatementOutcome::default()))
    });
    let larder = larder();
    let layer = QueryCacheLayer::new(&larder, SqlDialect::Sqlite).empty_ttl(Duration::from_secs(5));
    let db = Db::new(layer.layer(database));
    let ask = async || {
        assert!(db.query("SELECT * FROM a").fetch_all::<i64>().await.unwrap().is_empty());
        asked.load(Ordering::SeqCst)
    };
    assert_eq!((ask().await, ask().await), (1, 1));
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(ask().await, 2);
}

#[tokio::test]
async fn concurrent_equal_queries_are_coalesced() {
    let asked = Arc::new(AtomicU32::new(0));
    let counted = asked.clone();
    let database = tower::service_fn(move |_: Statement| {
        counted.fetch_add(1, Ordering::SeqCst);
        async {
            tokio::task::yield_now().await;
            let rows = Rows { columns: vec!["n".to_owned()], rows: vec![vec![7.into()]] };
            Ok::<_, Infallible>(StatementOutcome { rows, affected: 0 })
        }
    });
    let db = Db::new(QueryCacheLayer::new(&larder(), SqlDialect::Sqlite).layer(database));
    let all = (0..50).map(|_| db.query("SELECT n FROM a").fetch_scalar::<i64>());
    let all = futures_util::future::join_all(all).await;
    assert!(all.into_iter().all(|n| n.is_ok_and(|n| n == 7)));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

async fn files(count: u32) -> (tempfile::TempDir, Vec<SqlitePool>) {
    let folder = tempfile::tempdir().unwrap();
    let mut pools = Vec::new();
    for at in 0..count {
        let options = SqliteConnectOptions::new().filename(folder.path().join(format!("{at}.db")));
        let options = options.create_if_missing(true).busy_timeout(Duration::from_secs(5));
        pools
            .push(SqlitePoolOptions::new().max_connections(3).connect_with(options).await.unwrap());
    }
    (folder, pools)
}

#[tokio::test]
async fn two_databases_of_one_name_share_no_result() {
    let (_folder, pools) = files(2).await;
    let larder = larder();
    let mut all = pools;
    all.extend([pool("").await, pool("").await]);
    for (tenant, pool) in all.into_iter().enumerate() {
        sqlx::raw_sql("CREATE TABLE t (v INTEGER)").execute(&pool).await.unwrap();
        sqlx::query("INSERT INTO t VALUES (?)").bind(tenant as i64).execute(&pool).await.unwrap();
        let db = crate::v0_9::sqlite(pool.clone()).cached(&larder).await.unwrap();
        assert_eq!(db.query("SELECT v FROM t").fetch_scalar::<i64>().await.unwrap(), tenant as i64);
        // A second handle to the same database shares the results of the first handle, if both can identify the
        // database.
        let again = crate::v0_9::sqlite(pool).cached(&larder).await.unwrap();
        let hits = || larder.stats().cache("queries").map_or(0, |cache| cache.total.hits);
        let before = hits();
        again.query("SELECT v FROM t").fetch_scalar::<i64>().await.unwrap();
        assert_eq!(hits() - before, u64::from(tenant < 2));
    }
}

#[tokio::test]
async fn session_settings_that_results_depend_on_are_part_of_the_key() {
    let (_folder, pools) = files(1).await;
    let larder = larder();
    let url = pools[0].connect_options();
    for (setting, expected) in [("0", 1), ("1", 0), ("0", 1)] {
        let options = (*url).clone().pragma("case_sensitive_like", setting);
        let pool = SqlitePoolOptions::new().connect_with(options).await.unwrap();
        let db = crate::v0_9::sqlite(pool).cached(&larder).await.unwrap();
        let like = db.query("SELECT 'a' LIKE 'A'").fetch_scalar::<i64>().await.unwrap();
        assert_eq!(like, expected, "case_sensitive_like = {setting}");
    }
}

#[tokio::test]
async fn a_query_without_tables_is_invalidated_with_everything() {
    let (larder, db) = with_rows().await;
    let hits = || larder.stats().cache("queries").map_or(0, |cache| cache.total.hits);
    let one = async || db.query("SELECT 'a' LIKE 'A'").fetch_scalar::<i64>().await.unwrap();
    assert_eq!((one().await, one().await, hits()), (1, 1, 1));
    db.query("PRAGMA case_sensitive_like = 1").execute().await.unwrap();
    assert_eq!(one().await, 0, "a setting of the session has changed");
    let before = hits();
    let _logged = db.invalidate_all().await;
    one().await;
    assert_eq!(hits(), before, "all of the database was invalidated");
}

#[tokio::test]
async fn columns_changed_by_another_connection_are_read_correctly() {
    let (_folder, pools) = files(1).await;
    let db = crate::v0_9::sqlite(pools[0].clone()).cached(&larder()).await.unwrap();
    db.query("CREATE TABLE t (id INTEGER PRIMARY KEY, x INTEGER, y INTEGER)")
        .execute()
        .await
        .unwrap();
    db.query("INSERT INTO t VALUES (1, 10, 20)").execute().await.unwrap();
    let read = async || {
        let rows = db.query("SELECT * FROM t WHERE id = 1").uncached().fetch_all::<AnyRow>().await;
        let rows = rows.unwrap();
        assert_eq!(rows.len(), 1);
        rows[0]
            .iter()
            .map(|(name, value)| format!("{name}={value:?}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    // All connections of the pool have prepared the text.
    futures_util::future::join_all((0..3).map(|_| read())).await;
    for (change, expected) in [
        (
            "ALTER TABLE t ADD COLUMN z INTEGER",
            "id=Some(Int(1)) x=Some(Int(10)) y=Some(Int(20)) z=None",
        ),
        (
            "ALTER TABLE t RENAME COLUMN x TO w",
            "id=Some(Int(1)) w=Some(Int(10)) y=Some(Int(20)) z=None",
        ),
        (
            "ALTER TABLE t RENAME COLUMN y TO x",
            "id=Some(Int(1)) w=Some(Int(10)) x=Some(Int(20)) z=None",
        ),
        ("ALTER TABLE t DROP COLUMN z", "id=Some(Int(1)) w=Some(Int(10)) x=Some(Int(20))"),
    ] {
        for pool in &pools {
            sqlx::query(change).execute(pool).await.unwrap();
        }
        for seen in futures_util::future::join_all((0..6).map(|_| read())).await {
            assert_eq!(seen, expected, "{change}");
        }
        let written =
            db.query("UPDATE t SET id = id WHERE id = 1 RETURNING *").fetch_all::<AnyRow>();
        assert_eq!(written.await.unwrap().len(), 1, "{change}");
    }
}

#[tokio::test]
async fn a_write_whose_driver_panics_still_invalidates() {
    let value = Arc::new(AtomicU32::new(1));
    let held = value.clone();
    let database = tower::service_fn(move |statement: Statement| {
        let held = held.clone();
        async move {
            if statement.text().starts_with("UPDATE") {
                held.store(2, Ordering::SeqCst);
                panic!("the driver");
            }
            let v = i64::from(held.load(Ordering::SeqCst));
            let rows = Rows { columns: vec!["v".to_owned()], rows: vec![vec![v.into()]] };
            Ok::<_, Infallible>(StatementOutcome { rows, affected: 0 })
        }
    });
    let catalog = Catalog::new().table("a", Table::new().key("id", KeyKind::Integer));
    let layer = QueryCacheLayer::new(&larder(), SqlDialect::Sqlite).catalog(catalog);
    let db = Db::new(layer.layer(database));
    let v = || db.query("SELECT v FROM a WHERE id = 1").fetch_scalar::<i64>();
    assert_eq!(v().await.unwrap(), 1);
    let error = db.query("UPDATE a SET v = 2 WHERE id = 1").execute().await.unwrap_err();
    assert_eq!(error.kind(), QueryErrorKind::Panicked);
    assert_eq!(v().await.unwrap(), 2);
}

#[tokio::test]
async fn statements_that_begin_or_end_a_transaction_are_refused_everywhere() {
    let (_larder, db) = with_rows().await;
    for text in [
        "BEGIN",
        " /* now */ begin immediate",
        "COMMIT",
        "END TRANSACTION",
        "ROLLBACK TO a",
        "SAVEPOINT a",
        "RELEASE a",
        "PREPARE TRANSACTION 'x'",
        "START TRANSACTION",
        "BEGIN; UPDATE a SET v = 9; ROLLBACK",
        "UPDATE a SET v = 9; COMMIT",
        "UPDATE a SET v = 9 WHERE name = 'x;y' ;;\n-- done\ncommit",
        "CREATE TRIGGER x AFTER UPDATE ON a BEGIN SELECT 1; END; COMMIT",
        "CREATE TABLE t (trigger, begin); COMMIT",
    ] {
        let refused = db.query(text).execute().await.unwrap_err();
        assert_eq!(refused.kind(), QueryErrorKind::NotAllowed, "{text}");
        let refused = db.query(text).fetch_all::<AnyRow>().await.unwrap_err();
        assert_eq!(refused.kind(), QueryErrorKind::NotAllowed, "{text}");
        let mut transaction = db.begin().await.unwrap();
        let refused = transaction.query(text).execute().await.unwrap_err();
        assert_eq!(refused.kind(), QueryErrorKind::NotAllowed, "{text}");
        transaction.rollback().await.unwrap();
    }
    for text in [
        "CREATE TRIGGER y AFTER INSERT ON a BEGIN SELECT 1; SELECT CASE WHEN 1 THEN 2 END; END",
        "UPDATE a SET name = 'commit; begin' WHERE id = 1",
        "DROP TRIGGER y; UPDATE a SET v = 1",
        "-- nothing at all",
        "",
    ] {
        db.query(text).execute().await.unwrap();
    }
}

#[tokio::test]
async fn a_write_whose_rows_cannot_be_decoded_is_reported_as_written() {
    let (_larder, db) = with_rows().await;
    let insert = db.query("INSERT INTO a (id, name, v) VALUES (7, 'seven', 0) RETURNING name");
    let error = insert.fetch_all::<i64>().await.unwrap_err();
    assert_eq!(error.kind(), QueryErrorKind::WrittenUnread);
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("seven"), "{error:?}");
    assert!(a(&db, 7).await.is_none_or(|a| a.id == 7));
    let kept = db.query("SELECT count(*) FROM a WHERE id = 7").fetch_scalar::<i64>().await.unwrap();
    assert_eq!(kept, 1);
}

#[tokio::test(start_paused = true)]
async fn a_query_has_no_deadline_by_default() {
    let database = tower::service_fn(move |_: Statement| async {
        tokio::time::sleep(Duration::from_secs(7200)).await;
        let rows = Rows { columns: vec!["n".to_owned()], rows: vec![vec![7.into()]] };
        Ok::<_, Infallible>(StatementOutcome { rows, affected: 0 })
    });
    let larder = larder();
    let layer = QueryCacheLayer::new(&larder, SqlDialect::Sqlite);
    let db = Db::new(layer.clone().layer(database));
    assert_eq!(db.query("SELECT n FROM a").fetch_scalar::<i64>().await.unwrap(), 7);
    let short = Duration::from_secs(60);
    let error =
        db.query("SELECT n FROM b").deadline(short).fetch_scalar::<i64>().await.unwrap_err();
    assert_eq!(error.kind(), QueryErrorKind::TimedOut);
    let db = Db::new(layer.deadline(short).layer(database));
    let error = db.query("SELECT n FROM c").fetch_scalar::<i64>().await.unwrap_err();
    assert_eq!(error.kind(), QueryErrorKind::TimedOut);
}

#[tokio::test]
async fn long_values_are_hashed_in_the_key() {
    let (larder, db) = with_rows().await;
    let long = |last: &str| format!("{}{last}", "x".repeat(100_000));
    for (value, expected) in [("a", 0), ("b", 0), ("a", 1), ("b", 2)] {
        let text =
            db.query("SELECT length(?)").bind(long(value)).fetch_scalar::<i64>().await.unwrap();
        assert_eq!(text, 100_001);
        let hits = larder.stats().cache("queries").map_or(0, |cache| cache.total.hits);
        assert_eq!(hits, expected, "{value}");
    }
}

#[tokio::test]
async fn a_nested_transaction_that_is_rolled_back_invalidates_nothing() {
    let (larder, db) = with_rows().await;
    for id in 1..=3 {
        a(&db, id).await;
    }
    let hits = || larder.stats().cache("queries").map_or(0, |cache| cache.total.hits);
    let set = async |transaction: &mut NestedTransaction<'_>, id: i64| {
        let text = format!("UPDATE a SET v = v + 10 WHERE id = {id}");
        transaction.query(text).execute().await.unwrap();
    };
    let mut outer = db.begin().await.unwrap();
    let mut kept = outer.begin().await.unwrap();
    set(&mut kept, 1).await;
    let mut dropped = kept.begin().await.unwrap();
    set(&mut dropped, 2).await;
    let mut within = dropped.begin().await.unwrap();
    set(&mut within, 2).await;
    drop(within);
    drop(dropped);
    kept.commit().await.unwrap();
    let mut back = outer.begin().await.unwrap();
    set(&mut back, 3).await;
    assert!(back.query("SELECT nothing FROM a").fetch_all::<i64>().await.is_err());
    back.rollback().await.unwrap();
    let mut last = outer.begin().await.unwrap();
    set(&mut last, 3).await;
    drop(last);
    outer.commit().await.unwrap();
    let before = hits();
    assert_eq!(
        (a(&db, 2).await.unwrap().v, a(&db, 3).await.unwrap().v, hits()),
        (0, 0, before + 2)
    );
    assert_eq!((a(&db, 1).await.unwrap().v, hits()), (10, before + 2));
    let all = db.query("SELECT v FROM a ORDER BY id").uncached().fetch_all::<i64>().await.unwrap();
    assert_eq!(*all, [10, 0, 0]);
}

#[tokio::test]
async fn the_outbox_is_installed_again_after_schema_changes_of_its_own_process() {
    let (_folder, pools) = files(1).await;
    let db = crate::v0_9::sqlite(pools[0].clone()).cached(&larder()).await.unwrap();
    db.outbox().install().await.unwrap();
    let triggers = async || {
        let count = "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'fresh' AND sql LIKE ?";
        let count =
            |key: &'static str| sqlx::query_scalar::<_, i64>(count).bind(key).fetch_one(&pools[0]);
        (count("%\"id\"%").await.unwrap(), count("%\"slug\"%").await.unwrap())
    };
    db.query("CREATE TABLE fresh (id INTEGER PRIMARY KEY, slug TEXT)").execute().await.unwrap();
    assert_eq!(triggers().await, (3, 0));
    let mut transaction = db.begin().await.unwrap();
    transaction.query("DROP TABLE fresh").execute().await.unwrap();
    transaction.query("CREATE TABLE fresh (slug TEXT PRIMARY KEY)").execute().await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(triggers().await.0, 0);
    assert!(triggers().await.1 > 0);
}

#[tokio::test]
async fn table_definitions_are_tokenized_and_functions_come_from_the_database() {
    let schema = "
        CREATE TABLE r (id INTEGER PRIMARY KEY, name TEXT UNIQUE ON CONFLICT/**/REPLACE, v INTEGER);
        CREATE TABLE n (slug TEXT PRIMARY KEY COLLATE/* */NOCASE, v INTEGER);
        CREATE TABLE plain (id INTEGER PRIMARY KEY, \"collate\" TEXT, note TEXT DEFAULT 'on conflict replace', v INTEGER);
        CREATE TABLE texts (id INTEGER PRIMARY KEY, body TEXT);
        CREATE VIRTUAL TABLE found USING fts5 (body, content = 'texts', content_rowid = 'id');
        CREATE TRIGGER texts_found AFTER INSERT ON texts BEGIN
            INSERT INTO found (rowid, body) VALUES (new.id, new.body);
        END;
        INSERT INTO r VALUES (1, 'x', 1), (2, 'y', 2);
        INSERT INTO n VALUES ('x', 1);
        INSERT INTO plain VALUES (1, '', '', 1), (2, '', '', 2);";
    let larder = larder();
    let db = crate::v0_9::sqlite(pool(schema).await).cached(&larder).await.unwrap();
    let hits = || larder.stats().cache("queries").map_or(0, |cache| cache.total.hits);
    let rows = async |text: &'static str| db.query(text).fetch_all::<i64>().await.unwrap().to_vec();
    assert_eq!(rows("SELECT v FROM r WHERE id = 1").await, [1]);
    db.query("UPDATE r SET name = 'x' WHERE id = 2").execute().await.unwrap();
    assert_eq!(rows("SELECT v FROM r WHERE id = 1").await, [0; 0], "it was replaced");
    assert_eq!(rows("SELECT v FROM n WHERE slug = 'x'").await, [1]);
    db.query("UPDATE n SET v = 2 WHERE slug = 'X'").execute().await.unwrap();
    assert_eq!(rows("SELECT v FROM n WHERE slug = 'x'").await, [2]);
    // Names and literals are not keywords.
    assert_eq!(rows("SELECT v FROM plain WHERE id = 1").await, [1]);
    db.query("UPDATE plain SET v = 3 WHERE id = 2").execute().await.unwrap();
    let before = hits();
    assert_eq!(rows("SELECT v FROM plain WHERE id = 1").await, [1]);
    assert_eq!(hits(), before + 1);
    // A trigger that fills a full-text index writes nothing that results depend on.
    db.query("INSERT INTO texts VALUES (1, 'a pear')").execute().await.unwrap();
    assert_eq!(rows("SELECT v FROM plain WHERE id = 1").await, [1]);
    assert_eq!(hits(), before + 2);
    assert_eq!(rows("SELECT rowid FROM found WHERE found MATCH 'pear'").await, [1]);
    db.query("INSERT INTO texts VALUES (2, 'another pear')").execute().await.unwrap();
    assert_eq!(
        rows("SELECT rowid FROM found WHERE found MATCH 'pear' ORDER BY rowid").await,
        [1, 2]
    );
    // SQLite itself declares functions that are on no list.
    let before = hits();
    for _ in 0..2 {
        rows("SELECT json_array_length(json_replace('[1]', '$[0]', 2)) AS n").await;
    }
    assert_eq!(hits(), before + 1);
    let invalidations = larder.stats().invalidations;
    db.query("PRAGMA table_info(plain)").fetch_all::<AnyRow>().await.unwrap();
    db.query("SELECT v FROM plain INDEXED BY nothing").fetch_all::<i64>().await.unwrap_err();
    assert_eq!(larder.stats().invalidations, invalidations, "neither can write");
}

#[tokio::test]
async fn a_disabled_cache_asks_the_database_each_time_and_writes_still_invalidate() {
    let larder = larder();
    let pool =
        pool("CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER); INSERT INTO t VALUES (1, 1)")
            .await;
    let layer = QueryCacheLayer::new(&larder, SqlDialect::Sqlite).disabled();
    let db = crate::v0_9::sqlite(pool.clone()).cached_by(layer).await.unwrap();
    let v = || db.query("SELECT v FROM t WHERE id = 1").fetch_scalar::<i64>();
    assert_eq!(v().await.unwrap(), 1);
    sqlx::query("UPDATE t SET v = 2").execute(&pool).await.unwrap();
    assert_eq!(v().await.unwrap(), 2);
    let before = larder.stats().invalidations;
    db.query("UPDATE t SET v = 3 WHERE id = 1").execute().await.unwrap();
    assert!(larder.stats().invalidations > before);
}
