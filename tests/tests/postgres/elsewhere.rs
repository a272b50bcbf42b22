//! Writes of other clients, and of a process that died before it could invalidate.

use std::{
    convert::Infallible,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use larder::{
    Larder,
    sql::{Db, QueryErrorKind},
    values::{SetOutcome, WriteHandle},
};
use larder_testkit::{MemoryStore, SharedLog};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use crate::{redis::server as redis, second_level::process};
use tests::{Changed, postgres::Server, until};

const SCHEMA: &str = "
    CREATE TABLE a (id bigint PRIMARY KEY, v bigint);
    CREATE TABLE b (x text, y bigint, v bigint, PRIMARY KEY (x, y));
    INSERT INTO a VALUES (1, 1), (2, 1);
    INSERT INTO b VALUES ('k', 1, 1), ('l', 1, 1);
";

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 12).build().unwrap()
}

async fn v(db: &Db, id: i64) -> i64 {
    let v = db.query("SELECT v FROM a WHERE id = $1").bind(id).fetch_scalar();
    v.await.unwrap_or(-1)
}

async fn sum(db: &Db) -> i64 {
    db.query("SELECT sum(v) FROM b").fetch_scalar().await.unwrap_or(-1)
}

async fn followed() -> (Server, Larder, Db, larder::sql::OutboxFollower) {
    let server = Server::start();
    server.psql(SCHEMA);
    let larder = larder();
    let db = server.db(&larder).await;
    db.outbox().install().await.unwrap();
    let following = db.outbox().follow().await.unwrap();
    (server, larder, db, following)
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn a_write_by_another_client_invalidates_its_rows_only() {
    let (server, larder, db, _following) = followed().await;
    let hits = || larder.stats().cache("queries").map_or(0, |cache| cache.total.hits);
    let writes = [
        ("UPDATE a SET v = 2 WHERE id = 1", 2),
        ("UPDATE a SET v = v + 1", 3),
        ("DELETE FROM a WHERE id = 1", -1),
        ("INSERT INTO a VALUES (1, 5)", 5),
        ("UPDATE a SET id = 3 WHERE id = 1", -1),
        ("UPDATE a SET id = 1 WHERE id = 3", 5),
        ("TRUNCATE a", -1),
        ("INSERT INTO a SELECT n, 7 FROM generate_series(1, 1000) n", 7),
        ("WITH w AS (UPDATE a SET v = 8 WHERE id = 1 RETURNING id) SELECT count(*) FROM w", 8),
        ("INSERT INTO a VALUES (1, 0) ON CONFLICT (id) DO UPDATE SET v = 9", 9),
        ("BEGIN; UPDATE a SET v = 10 WHERE id = 1; COMMIT", 10),
    ];
    for (write, expected) in writes {
        v(&db, 1).await;
        server.psql(write);
        let took = until(write, || async { v(&db, 1).await == expected }).await;
        assert!(took < Duration::from_secs(1) || cfg!(debug_assertions), "{write}: {took:?}");
    }
    // Only results that read the written rows are invalidated.
    let before = (v(&db, 500).await, sum(&db).await);
    let kept = hits();
    server.psql("BEGIN; UPDATE a SET v = 12 WHERE id = 500; ROLLBACK");
    server.psql("UPDATE a SET v = 11 WHERE id = 1");
    until("it is seen", || async { v(&db, 1).await == 11 }).await;
    let asked = hits();
    assert_eq!((v(&db, 500).await, sum(&db).await), before);
    assert_eq!(hits(), asked + 2, "they are still there ({kept})");
    server.psql("UPDATE b SET v = 4 WHERE x = 'k'");
    until("a key of two columns", || async { sum(&db).await == 5 }).await;
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn keys_of_many_types_are_the_same_in_statements_and_in_the_outbox() {
    let server = Server::start();
    let keys = [
        (
            "u",
            "uuid",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        ),
        ("t", "text", "a", "b"),
        ("s", "varchar(8)", "a", "b"),
        ("d", "date", "2024-02-29", "2024-03-01"),
        ("n", "numeric", "1.5", "2"),
    ];
    for (name, kind, one, other) in keys {
        server.psql(&format!(
            "CREATE TABLE {name} (id {kind} PRIMARY KEY, v bigint);
            INSERT INTO {name} VALUES ('{one}', 1), ('{other}', 1)"
        ));
    }
    server.psql("CREATE TABLE b (id bytea PRIMARY KEY, v bigint); INSERT INTO b VALUES ('\\xab00', 1), ('\\xcd', 1)");
    let larder = larder();
    let db = server.db(&larder).await;
    db.outbox().install().await.unwrap();
    let following = db.outbox().follow().await.unwrap();
    let hits = || larder.stats().cache("queries").map_or(0, |cache| cache.total.hits);
    let v = async |name: &str, id: &str| {
        let query = db.query(format!("SELECT v FROM {name} WHERE id = $1"));
        let query = match name {
            "b" if id == "one" => query.bind(vec![0xab_u8, 0]),
            "b" => query.bind(vec![0xcd_u8]),
            _ => query.bind(id),
        };
        query.fetch_scalar::<i64>().await.unwrap()
    };
    // Another client, with settings that write dates and bytes in another way.
    let set = "SET datestyle = 'German'; SET bytea_output = 'escape';";
    let others = keys.map(|(name, _, one, other)| (name, one, other, format!("'{one}'")));
    for (name, one, other, literal) in
        others.into_iter().chain([("b", "one", "other", "'\\xab00'".to_owned())])
    {
        assert_eq!((v(name, one).await, v(name, other).await), (1, 1));
        server.psql(&format!("{set} UPDATE {name} SET v = 2 WHERE id = {literal}"));
        until(name, || async { v(name, one).await == 2 }).await;
        let before = hits();
        assert_eq!(v(name, other).await, 1);
        assert_eq!(hits(), before + 1, "{name}: only one row was invalidated");
        let update = format!("UPDATE {name} SET v = 3 WHERE id = {literal}");
        db.query(update).execute().await.unwrap();
        assert_eq!(v(name, one).await, 3);
        let before = hits();
        assert_eq!(v(name, other).await, 1);
        assert_eq!(hits(), before + 1, "{name}: only one row was invalidated");
    }
    drop(following);
    // A new row, whose key the server chooses, invalidates no row that exists.
    server.psql("ALTER TABLE u ALTER id SET DEFAULT gen_random_uuid()");
    let db = server.db(&larder).await;
    let (uuid, absent) = (keys[0].2, "c0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11");
    let read = async |id: &str| {
        let query = db.query("SELECT v FROM u WHERE id = $1").bind(id);
        query.fetch_optional::<i64>().await.unwrap().map(|v| *v)
    };
    assert_eq!((read(uuid).await, read(absent).await), (Some(3), None));
    let before = hits();
    db.query("INSERT INTO u (v) VALUES (9)").execute().await.unwrap();
    assert_eq!(read(uuid).await, Some(3));
    assert_eq!(hits(), before + 1);
    assert_eq!(read(absent).await, None);
    assert_eq!(hits(), before + 1, "it might have been this row");
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn a_write_invalidates_the_lookups_and_the_columns_that_it_has_changed() {
    let server = Server::start();
    server.psql(
        "CREATE TABLE lists (id bigint PRIMARY KEY, slug text UNIQUE, title text, about json);
        CREATE TABLE items (id bigint PRIMARY KEY, list bigint REFERENCES lists ON DELETE CASCADE, title text, done bool);
        INSERT INTO lists VALUES (1, 'one', 'One', '{}'), (2, 'two', 'Two', '{}'), (3, 'three', 'Three', '{}');
        INSERT INTO items SELECT n, 1 + n % 2, 'item', false FROM generate_series(10, 29) n;
        CREATE COLLATION folding (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        CREATE TABLE people (id bigint PRIMARY KEY, name text COLLATE folding, height float8, photo bytea);
        INSERT INTO people VALUES (1, 'ann', 0.1, '\\x00');
        CREATE ROLE visitor; GRANT ALL ON items TO visitor;
        DO $$ BEGIN EXECUTE (SELECT format('CREATE TABLE wide (id int PRIMARY KEY, %s)',
            string_agg(format('c%s int UNIQUE', n), ', ')) FROM generate_series(1, 60) n); END $$",
    );
    let larder = larder();
    let db = server.db(&larder).await;
    db.outbox().install().await.unwrap();
    let _following = db.outbox().follow().await.unwrap();
    let reads = [
        ("list 1", "SELECT id, done FROM items WHERE list = 1 ORDER BY id"),
        ("list 2", "SELECT id, done FROM items WHERE list = 2 ORDER BY id"),
        ("slug one", "SELECT * FROM lists WHERE slug = 'one'"),
        ("slug two", "SELECT * FROM lists WHERE slug = 'two'"),
        (
            "counts",
            "SELECT l.id, (SELECT count(*) FROM items i WHERE i.list = l.id) FROM lists l ORDER BY l.id",
        ),
        ("titles", "SELECT id, title FROM lists ORDER BY id"),
        ("row", "SELECT title FROM items WHERE id = 11"),
        ("names", "SELECT name FROM people ORDER BY id"),
        ("heights", "SELECT height FROM people ORDER BY id"),
        ("photos", "SELECT photo::text FROM people ORDER BY id"),
    ];
    type Row = std::collections::BTreeMap<String, serde_json::Value>;
    let hits = || larder.stats().cache("queries").map_or(0, |cache| cache.total.hits);
    // The names of the reads that are no hits, each compared with the answer without a cache.
    let missing = async || {
        let mut missing = Vec::new();
        for (name, text) in reads {
            let before = hits();
            let rows = db.query(text).fetch_all::<Row>().await.unwrap();
            if hits() == before {
                missing.push(name);
            }
            assert_eq!(rows, db.query(text).uncached().fetch_all::<Row>().await.unwrap(), "{name}");
        }
        missing.join(", ")
    };
    let rows = [
        ("UPDATE items SET done = NOT done WHERE id = 10", "list 1"),
        ("UPDATE items SET title = 'x' WHERE id = 11", "list 2, row"),
        ("UPDATE items SET title = 'y' WHERE list = 2 AND id > 20", "list 2"),
        ("INSERT INTO items VALUES (40, 1, 'new', false)", "list 1, counts"),
        ("INSERT INTO items VALUES (41, NULL, 'new', false)", "counts"),
        ("UPDATE items SET list = 2 WHERE id = 40", "list 1, list 2, counts"),
        ("UPDATE items SET id = 42 WHERE id = 41", "counts"),
        ("DELETE FROM items WHERE id IN (40, 42)", "list 2, counts"),
        ("UPDATE lists SET about = '{\"a\": 1}' WHERE id = 1", "slug one"),
        ("UPDATE lists SET title = 'Uno' WHERE id = 1", "slug one, titles"),
        ("UPDATE lists SET slug = 'due' WHERE id = 2", "slug two"),
        // It counts as a change of which rows exist.
        ("UPDATE lists SET title = title WHERE id = 2", "counts, titles"),
        ("INSERT INTO lists VALUES (4, 'two', 'Four', NULL)", "slug two, counts, titles"),
        // Equal for the collation of the column, as text of this client, or only as bytes.
        ("UPDATE people SET name = 'Ann' WHERE id = 1", "names"),
        (
            "SET extra_float_digits = -15; UPDATE people SET height = 0.1000001 WHERE id = 1",
            "heights",
        ),
        ("UPDATE people SET photo = '\\x0001' WHERE id = 1", "photos"),
        // More unique constraints than a function of PostgreSQL has arguments.
        ("INSERT INTO wide (id, c1, c60) VALUES (1, 2, 3)", ""),
    ];
    let mut seen = 0;
    let mut is_read = async || {
        seen += 1;
        let canary = format!("UPDATE lists SET about = '{{\"n\": {seen}}}' WHERE id = 3");
        let text = "SELECT about FROM lists WHERE id = 3";
        db.query(text).fetch_all::<Row>().await.unwrap();
        server.psql(&canary);
        until("the outbox is read", || async {
            let rows = db.query(text).fetch_all::<Row>().await.unwrap();
            rows[0]["about"]["n"] == seen
        })
        .await;
    };
    // What the follower reads when it begins invalidates everything.
    is_read().await;
    missing().await;
    for (write, expected) in rows {
        server.psql(write);
        is_read().await;
        assert_eq!(missing().await, expected, "psql: {write}");
    }
    // In a transaction of larder, the values that the statements do not name come from the outbox.
    for (write, expected) in [
        ("UPDATE items SET done = NOT done WHERE id = 10", "list 1"),
        ("DELETE FROM items WHERE id = 12", "list 1, counts"),
        ("UPDATE lists SET title = 'Due' WHERE id = 2", "titles"),
        ("INSERT INTO items (id, list) SELECT 50, 2", "list 2, counts"),
        ("UPDATE items SET done = true WHERE id = 9999", "list 1, list 2"),
    ] {
        let mut transaction = db.begin().await.unwrap();
        transaction.query(write).execute().await.unwrap();
        transaction.commit().await.unwrap();
        assert_eq!(missing().await, expected, "a transaction: {write}");
        // Its rows in the outbox invalidate the same once more.
        is_read().await;
        missing().await;
    }
    // A role that may not read the outbox commits nevertheless. A connection that has prepared the query before may.
    let fresh = server.db(&larder).await;
    let done = || server.psql("SELECT done FROM items WHERE id = 10");
    let before = done();
    let mut transaction = fresh.begin().await.unwrap();
    transaction.query("SELECT set_config('role', 'visitor', true)").execute().await.unwrap();
    let update = "UPDATE items SET done = NOT done WHERE id = 10";
    transaction.query(update).execute().await.unwrap();
    transaction.commit().await.unwrap();
    assert_ne!(done(), before);
    assert!(missing().await.contains("list 1, list 2"));
    is_read().await;
    missing().await;
    // Outside of a transaction they are unknown.
    db.query("UPDATE items SET done = NOT done WHERE id = 10").execute().await.unwrap();
    assert_eq!(missing().await, "list 1, list 2");
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn a_transaction_that_commits_after_later_ones_is_not_skipped() {
    let (server, _larder, db, _following) = followed().await;
    let pool = server.pool().await;
    let mut early = pool.begin().await.unwrap();
    sqlx::query("UPDATE a SET v = 5 WHERE id = 1").execute(&mut *early).await.unwrap();
    assert_eq!(v(&db, 1).await, 1);
    server.psql("UPDATE a SET v = 6 WHERE id = 2");
    until("the later one is seen first", || async { v(&db, 2).await == 6 }).await;
    assert_eq!(v(&db, 1).await, 1);
    early.commit().await.unwrap();
    until("and the earlier one when it is committed", || async { v(&db, 1).await == 5 }).await;
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn a_lost_listener_connection_and_a_server_crash_lose_no_write() {
    let (mut server, _larder, db, _following) = followed().await;
    assert_eq!(v(&db, 1).await, 1);
    // Terminates all connections at once, that of the listener included, and writes before any is back.
    server.psql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'postgres'",
    );
    server.psql("UPDATE a SET v = 2 WHERE id = 1");
    until("the cut is caught up", || async { v(&db, 1).await == 2 }).await;
    // The crash of one process of the server restarts all; transaction ids of lost transactions are given out again.
    server.psql("BEGIN; INSERT INTO a VALUES (77, 0); ROLLBACK");
    server.crash();
    server.psql("UPDATE a SET v = 5 WHERE id = 1");
    until("the crash is caught up", || async { v(&db, 1).await == 5 }).await;
    server.stop();
    server.start_again();
    server.psql("UPDATE a SET v = 3 WHERE id = 1");
    until("the restart is caught up", || async { v(&db, 1).await == 3 }).await;
    server.psql("UPDATE a SET v = 4 WHERE id = 1");
    until("and it is listened to again", || async { v(&db, 1).await == 4 }).await;
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn outbox_lines_are_removed_only_after_all_followers_could_read_them() {
    let (server, _larder, db, following) = followed().await;
    server.psql("UPDATE a SET v = 2 WHERE id = 1");
    until("it is seen", || async { v(&db, 1).await == 2 }).await;
    assert_eq!(server.psql("SELECT count(*) FROM larder_outbox.line"), "1");
    assert_eq!(
        server.psql("SELECT has_table_privilege('public', 'larder_outbox.line', 'INSERT')"),
        "f"
    );
    // A role that may write the table but not the outbox leaves a line all the same.
    server.psql("CREATE ROLE clerk; GRANT UPDATE, SELECT ON a TO clerk; SET ROLE clerk; UPDATE a SET v = 3 WHERE id = 1");
    until("the write of the clerk is seen", || async { v(&db, 1).await == 3 }).await;
    // A renamed key column does not block writes, and a table created since gets its triggers.
    server.psql("ALTER TABLE b RENAME COLUMN x TO z; UPDATE b SET v = 2; CREATE TABLE late (id bigint PRIMARY KEY)");
    db.outbox().install().await.unwrap();
    server.psql("UPDATE a SET v = 3 WHERE id = 1; INSERT INTO late VALUES (1)");
    drop(following);
    v(&db, 1).await;
    server.psql("UPDATE a SET v = 4 WHERE id = 1");
    assert_eq!(v(&db, 1).await, 3, "no follower runs any more");
    // Installing again changes nothing.
    let before = server.psql("SELECT string_agg(oid::text, ',' ORDER BY oid) FROM pg_trigger");
    db.outbox().install().await.unwrap();
    assert_eq!(
        server.psql("SELECT string_agg(oid::text, ',' ORDER BY oid) FROM pg_trigger"),
        before
    );
    // A role with the rights runs the printed statements instead.
    server.psql("DROP SCHEMA larder_outbox CASCADE");
    assert!(db.outbox().follow().await.is_err(), "there is none");
    server.psql(&db.outbox().sql().await.unwrap());
    let _following = db.outbox().follow().await.unwrap();
    assert_eq!(v(&db, 1).await, 4, "a new follower invalidates every result read before");
}

#[tokio::test]
#[cfg_attr(not(all(has_postgres, has_redis)), ignore = "needs PostgreSQL and Redis")]
async fn a_lost_or_blocked_outbox_position_is_recovered() {
    let (server, log) = (Server::start(), redis::Server::start(&[]).await);
    server.psql(SCHEMA);
    let larder = redis::larder(log.redis());
    redis::synced(&larder).await;
    let db = server.db(&larder).await;
    db.outbox().install().await.unwrap();
    let _following = db.outbox().follow().await.unwrap();
    until("there is a place", || async {
        server.psql("SELECT count(*) FROM larder_outbox.reader WHERE seen <> ''") == "1"
    })
    .await;
    until("it is kept", || async { v(&db, 1).await == 1 }).await;
    server.psql("TRUNCATE larder_outbox.reader; UPDATE a SET v = 2 WHERE id = 1");
    until("a follower without a position invalidates everything", || async {
        v(&db, 1).await == 2
    })
    .await;
    // A client hangs while it holds the lock on the position.
    let pool = server.pool().await;
    let mut stopped = pool.begin().await.unwrap();
    let hold = "SET LOCAL idle_in_transaction_session_timeout = '10s'";
    sqlx::query(hold).execute(&mut *stopped).await.unwrap();
    let hold = "SELECT 1 FROM larder_outbox.reader FOR UPDATE";
    sqlx::query(hold).execute(&mut *stopped).await.unwrap();
    server.psql("UPDATE a SET v = 3 WHERE id = 1");
    until("the others take it", || async { v(&db, 1).await == 3 }).await;
    // The log is down for a while: this process invalidates its own entries, and appends to the log later.
    log.signal("STOP");
    server.psql("UPDATE a SET v = 4 WHERE id = 1");
    until("it is known without the log", || async { v(&db, 1).await == 4 }).await;
    log.signal("CONT");
    until("and told", || async { larder.stats().invalidations_pending == 0 }).await;
    server.psql("UPDATE a SET v = 5 WHERE id = 1");
    until("as before", || async { v(&db, 1).await == 5 }).await;
}

/// Two processes share a log; one dies between its commit and its invalidation.
async fn a_death_between_commit_and_invalidation(url: &str, open: impl AsyncFn(&Larder) -> Db) {
    let log = redis::Server::start(&[]).await;
    let (lives, starts_later) = (redis::larder(log.redis()), || redis::larder(log.redis()));
    redis::synced(&lives).await;
    let db = open(&lives).await;
    db.outbox().install().await.unwrap();
    let following = db.outbox().follow().await.unwrap();
    until("there is a place", || async {
        let places =
            db.query("SELECT count(*) FROM outbox_places").uncached().fetch_scalar::<i64>();
        places.await.unwrap() == 1
    })
    .await;
    until("it is kept", || async { v(&db, 1).await == 1 && lives.stats().shared.writes > 0 }).await;
    dies_after_its_commit(url, &log, 2);
    until("the living process sees the write", || async { v(&db, 1).await == 2 }).await;
    // Store the result once more, now that the process has received its own record.
    assert!(lives.kernel().catch_up(larder::Consistency::Strong).await);
    assert_eq!(v(&db, 1).await, 2);
    // No process lives: the entry in the shared store is outdated.
    lives.close(Duration::from_secs(10)).await;
    drop(following);
    dies_after_its_commit(url, &log, 3);
    let later = starts_later();
    redis::synced(&later).await;
    let db = open(&later).await;
    assert_eq!(
        v(&db, 1).await,
        2,
        "the outdated entry is in the store: without it the test proves nothing"
    );
    let _following = db.outbox().follow().await.unwrap();
    until("a process that starts later sees the write", || async { v(&db, 1).await == 3 }).await;
}

/// A process dies between the commit of a transaction and its event, whose invalidation no table names.
async fn a_death_between_commit_and_event(url: &str, open: impl AsyncFn(&Larder) -> Db) {
    let log = redis::Server::start(&[]).await;
    let lives = redis::larder(log.redis());
    redis::synced(&lives).await;
    lives.on(|event: &Changed| ("watched", event.v));
    lives.receive_stored::<Changed>();
    let db = open(&lives).await;
    db.outbox().install().await.unwrap();
    let _following = db.outbox().follow().await.unwrap();
    let read = async || {
        let load =
            |_| async { Ok::<_, Infallible>(std::time::Instant::now().elapsed().as_nanos()) };
        lives.values::<u128>(Duration::from_secs(3600)).get_or_load(("watched", 7), load).await
    };
    until("the follower has its position", || async { v(&db, 1).await == 1 }).await;
    read().await.unwrap();
    let values = lives.values::<u128>(Duration::from_secs(3600));
    until("the value is stored and stays", || async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let is_there = values.get(("watched", 7)).await.is_some();
        if !is_there {
            read().await.unwrap();
        }
        is_there
    })
    .await;
    dies_after_its_commit_with(url, &log, 7, &["event"]);
    until("the event is handled", || async { values.get(("watched", 7)).await.is_none() }).await;
    until("and the write is seen", || async { v(&db, 1).await == 7 }).await;
}

fn dies_after_its_commit(url: &str, log: &redis::Server, v: i64) {
    dies_after_its_commit_with(url, log, v, &[]);
}

fn dies_after_its_commit_with(url: &str, log: &redis::Server, v: i64, rest: &[&str]) {
    let died = Command::new(env!("CARGO_BIN_EXE_dies-after-its-commit"))
        .args([url, &format!("redis://127.0.0.1:{}", log.port), &v.to_string()])
        .args(rest)
        .stderr(Stdio::inherit())
        .status()
        .unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&died), Some(9), "it is killed");
}

#[tokio::test]
#[cfg_attr(not(all(has_postgres, has_redis)), ignore = "needs PostgreSQL and Redis")]
async fn a_process_killed_between_commit_and_invalidation_loses_no_write_in_postgres() {
    let server = Server::start();
    server.psql(SCHEMA);
    let open = async |larder: &Larder| server.db(larder).await;
    let db = open(&larder()).await;
    db.outbox().install().await.unwrap();
    server.psql("CREATE VIEW outbox_places AS SELECT * FROM larder_outbox.reader");
    a_death_between_commit_and_invalidation(&server.url(), open).await;
}

#[tokio::test]
#[cfg_attr(not(all(has_postgres, has_redis)), ignore = "needs PostgreSQL and Redis")]
async fn an_event_of_a_process_that_was_killed_is_emitted_in_postgres() {
    let server = Server::start();
    server.psql(SCHEMA);
    let open = async |larder: &Larder| server.db(larder).await;
    a_death_between_commit_and_event(&server.url(), open).await;
}

#[tokio::test]
#[cfg_attr(not(has_redis), ignore = "needs Redis")]
async fn an_event_of_a_process_that_was_killed_is_emitted_in_sqlite() {
    let file = File::new("events");
    sqlx::raw_sql(SCHEMA).execute(&file.pool().await).await.unwrap();
    let open = async |larder: &Larder| file.db(larder).await;
    a_death_between_commit_and_event(&format!("sqlite://{}", file.0.display()), open).await;
}

#[tokio::test]
async fn an_event_whose_handler_fails_stays_in_the_outbox_until_it_is_handled() {
    let file = File::new("failing-handler");
    sqlx::raw_sql(SCHEMA).execute(&file.pool().await).await.unwrap();
    let larder = larder();
    let (is_broken, handled) = <(Arc<AtomicBool>, Arc<AtomicUsize>)>::default();
    is_broken.store(true, Ordering::SeqCst);
    let (broken, counted) = (is_broken.clone(), handled.clone());
    larder.on_async(move |_: Changed| {
        let is_broken = broken.load(Ordering::SeqCst);
        counted.fetch_add(1, Ordering::SeqCst);
        async move { if is_broken { Err("the search index is down") } else { Ok("watched") } }
    });
    larder.receive_stored::<Changed>();
    let db = file.db(&larder).await;
    db.outbox().install().await.unwrap();
    let _following = db.outbox().follow().await.unwrap();
    let values = larder.values::<u32>(Duration::from_secs(3600));
    values.get_or_load("watched", |_| async { Ok::<_, Infallible>(1) }).await.unwrap();
    let mut writing = db.begin().await.unwrap();
    writing.query("UPDATE a SET v = 5 WHERE id = 1").execute().await.unwrap();
    writing.emit(&Changed { v: 5 }).await.unwrap();
    let error = writing.commit().await.unwrap_err();
    assert_eq!(error.kind(), QueryErrorKind::Event, "{error}");
    assert_eq!(v(&db, 1).await, 5, "it is committed, and its rows are invalidated");
    let before = handled.load(Ordering::SeqCst);
    until("it is tried again", || async { handled.load(Ordering::SeqCst) > before + 1 }).await;
    assert!(values.get("watched").await.is_some());
    is_broken.store(false, Ordering::SeqCst);
    until("it is handled", || async { values.get("watched").await.is_none() }).await;
    // Of a transaction that is rolled back, nothing is left.
    let mut undone = db.begin().await.unwrap();
    undone.emit(&Changed { v: 6 }).await.unwrap();
    undone.rollback().await.unwrap();
    let mut outer = db.begin().await.unwrap();
    let mut nested = outer.begin().await.unwrap();
    nested.emit(&Changed { v: 7 }).await.unwrap();
    nested.rollback().await.unwrap();
    outer.commit().await.unwrap();
    let left = "SELECT count(*) FROM larder_outbox WHERE relation LIKE 'larder event %'";
    assert_eq!(db.query(left).uncached().fetch_scalar::<i64>().await.unwrap(), 1);
}

#[tokio::test]
async fn an_event_that_no_handler_knows_invalidates_everything() {
    let file = File::new("unknown-event");
    sqlx::raw_sql(SCHEMA).execute(&file.pool().await).await.unwrap();
    let larder = larder();
    let db = file.db(&larder).await;
    db.outbox().install().await.unwrap();
    let _following = db.outbox().follow().await.unwrap();
    let values = larder.values::<u32>(Duration::from_secs(3600));
    values.get_or_load("anything", |_| async { Ok::<_, Infallible>(1) }).await.unwrap();
    let event =
        "INSERT INTO larder_outbox (relation, row_key) VALUES ('larder event newer-9', '{}')";
    sqlx::raw_sql(event).execute(&file.pool().await).await.unwrap();
    until("it is gone", || async { values.get("anything").await.is_none() }).await;
}

/// A value is written through in one process while another process of the same log follows the outbox. `other` runs
/// statements of another program.
async fn own_outbox_rows_are_recognised(
    open: impl AsyncFn(&Larder) -> Db,
    other: impl AsyncFn(&str),
    (outbox, dead): (&str, &str),
) {
    let (log, store) = (SharedLog::new(), MemoryStore::new());
    let [writer, follower] = [1, 2].map(|_| process(&log, &store, |builder| builder));
    for larder in [&writer, &follower] {
        larder.synced().await;
    }
    let (db, followed) = (open(&writer).await, open(&follower).await);
    let _following = followed.outbox().follow().await.unwrap();
    let values = writer.values::<i64>(Duration::from_secs(3600));
    let everything_is_read = async || {
        // Foreign rows of a batch come first, so the second round proves that the first batch is done.
        for _ in 0..2 {
            let before = sum(&db).await;
            other("UPDATE b SET v = v + 1 WHERE x = 'k'").await;
            until("the rows before it are read", || async { sum(&db).await > before }).await;
        }
    };
    everything_is_read().await;
    for in_transaction in [false, true] {
        let db_of_write = db.clone();
        let write = move |_: WriteHandle| async move {
            let update = "UPDATE a SET v = v + 1 WHERE id = 1 RETURNING v";
            if !in_transaction {
                return db_of_write.query(update).fetch_scalar().await;
            }
            let mut transaction = db_of_write.begin().await?;
            let v = transaction.query(update).fetch_all::<i64>().await?[0];
            transaction.commit().await?;
            Ok::<_, larder::sql::QueryError>(v)
        };
        let written = values.write_through(("v", 1), write).await.unwrap();
        assert_eq!(written.stored, SetOutcome::Stored, "transaction: {in_transaction}");
        everything_is_read().await;
        let stored = values.get(("v", 1)).await;
        assert_eq!(stored, Some(written.value), "transaction: {in_transaction}");
        other("UPDATE a SET v = v + 10 WHERE id = 1").await;
        until("another program", || async { values.get(("v", 1)).await.is_none() }).await;
    }
    // What larder's record does not cover is invalidated by the row, although the transaction is larder's own.
    assert_eq!(v(&db, 2).await, 1);
    let db_of_write = db.clone();
    let write = move |_: WriteHandle| async move {
        let mut transaction = db_of_write.begin().await?;
        let hidden = "UPDATE a SET v = 2 WHERE id = 2";
        if let Some(connection) = transaction.connection::<sqlx::SqliteConnection>().await.unwrap()
        {
            sqlx::query(hidden).execute(connection).await.unwrap();
        } else if let Some(connection) =
            transaction.connection::<sqlx::PgConnection>().await.unwrap()
        {
            sqlx::query(hidden).execute(connection).await.unwrap();
        }
        transaction.query("UPDATE a SET v = 0 WHERE id = 1").execute().await?;
        transaction.commit().await?;
        Ok::<_, larder::sql::QueryError>(0)
    };
    values.write_through(("v", 1), write).await.unwrap();
    until("an unknown write", || async { v(&db, 2).await == 2 }).await;
    // The process of a transaction has died before it could invalidate, and a transaction has changed more than its record
    // covers.
    let identity = db.query(format!("SELECT max(commit_id) FROM {outbox}")).uncached();
    let own: String = identity.fetch_scalar().await.unwrap();
    for identity in ["0123456789abcdef0123456789abcdef", &own] {
        let before = sum(&db).await;
        other(&dead.replace("IDENTITY", identity)).await;
        until(identity, || async { sum(&db).await == before + 1000 }).await;
    }
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn a_value_written_through_is_not_dropped_by_its_own_outbox_row_in_postgres() {
    let server = Server::start();
    server.psql(SCHEMA);
    server.db(&larder()).await.outbox().install().await.unwrap();
    let dead = "BEGIN; SELECT set_config('larder.commit', 'IDENTITY', true);
        UPDATE b SET v = v + 1000 WHERE x = 'k'; COMMIT";
    let dead = ("larder_outbox.line", dead);
    let other = async |statement: &str| drop(server.psql(statement));
    own_outbox_rows_are_recognised(async |larder| server.db(larder).await, other, dead).await;
}

#[tokio::test]
async fn a_value_written_through_is_not_dropped_by_its_own_outbox_row_in_sqlite() {
    let file = File::new("own-rows");
    let other = file.pool().await;
    sqlx::raw_sql(SCHEMA).execute(&other).await.unwrap();
    // The outbox of an older version.
    let old = "CREATE TABLE larder_outbox (id INTEGER PRIMARY KEY AUTOINCREMENT,
        at INTEGER NOT NULL DEFAULT (CAST(strftime('%s') AS INTEGER)), relation TEXT NOT NULL, row_key TEXT)";
    sqlx::raw_sql(old).execute(&other).await.unwrap();
    file.db(&larder()).await.outbox().install().await.unwrap();
    let dead = "BEGIN IMMEDIATE; UPDATE b SET v = v + 1000 WHERE x = 'k';
        UPDATE larder_outbox SET commit_id = 'IDENTITY'
        WHERE id = (SELECT max(id) FROM larder_outbox); COMMIT";
    let dead = ("larder_outbox", dead);
    let run = async |statement: &str| {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        sqlx::raw_sql(statement).execute(&other).await.unwrap();
    };
    own_outbox_rows_are_recognised(async |larder| file.db(larder).await, run, dead).await;
}

/// A database file that is deleted at the end of the test.
struct File(std::path::PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        for end in ["", "-wal", "-shm", "-journal"] {
            drop(std::fs::remove_file(format!("{}{end}", self.0.display())));
        }
    }
}

impl File {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("larder-{name}-{}.db", std::process::id())))
    }

    async fn pool(&self) -> sqlx::SqlitePool {
        let options = SqliteConnectOptions::new().filename(&self.0).create_if_missing(true);
        let options = options.busy_timeout(Duration::from_secs(10));
        SqlitePoolOptions::new().max_connections(2).connect_with(options).await.unwrap()
    }

    async fn db(&self, larder: &Larder) -> Db {
        larder::sqlx::sqlite(self.pool().await).cached(larder).await.unwrap()
    }
}

#[tokio::test]
#[cfg_attr(not(has_redis), ignore = "needs Redis")]
async fn a_process_killed_between_commit_and_invalidation_loses_no_write_in_sqlite() {
    let file = File::new("killed");
    let open = async |larder: &Larder| file.db(larder).await;
    sqlx::raw_sql(SCHEMA).execute(&file.pool().await).await.unwrap();
    let db = open(&larder()).await;
    db.outbox().install().await.unwrap();
    db.query("CREATE VIEW outbox_places AS SELECT * FROM larder_reader").execute().await.unwrap();
    a_death_between_commit_and_invalidation(&format!("sqlite://{}", file.0.display()), open).await;
}

#[tokio::test]
async fn writes_of_another_connection_to_sqlite_are_seen() {
    let file = File::new("elsewhere");
    let other = file.pool().await;
    sqlx::raw_sql(SCHEMA).execute(&other).await.unwrap();
    sqlx::raw_sql("CREATE TABLE u (id INTEGER PRIMARY KEY, slug TEXT UNIQUE, v INTEGER)")
        .execute(&other)
        .await
        .unwrap();
    let larder = larder();
    let db = file.db(&larder).await;
    db.outbox().install().await.unwrap();
    db.outbox().install().await.unwrap();
    let _following = db.outbox().follow().await.unwrap();
    let hits = || larder.stats().cache("queries").map_or(0, |cache| cache.total.hits);
    let u = || async {
        let v = db.query("SELECT v FROM u WHERE id = 1").fetch_scalar::<i64>().await;
        v.unwrap_or(-1)
    };
    let writes = [
        ("UPDATE a SET v = 2 WHERE id = 1", 2),
        ("UPDATE a SET v = v + 1", 3),
        ("DELETE FROM a", -1),
        ("INSERT INTO a VALUES (1, 5)", 5),
        ("INSERT OR IGNORE INTO a VALUES (1, 6), (9, 6)", 5),
        ("INSERT OR REPLACE INTO a VALUES (1, 7)", 7),
        ("UPDATE OR IGNORE a SET id = 3 WHERE id = 1", -1),
        ("UPDATE a SET id = 1 WHERE id = 3", 7),
    ];
    for (write, expected) in writes {
        v(&db, 1).await;
        sqlx::raw_sql(write).execute(&other).await.unwrap();
        until(write, || async { v(&db, 1).await == expected }).await;
    }
    // A row that `REPLACE` removes because another takes its unique value.
    assert_eq!(u().await, -1);
    sqlx::raw_sql("INSERT INTO u VALUES (1, 'x', 1)").execute(&other).await.unwrap();
    until("it is there", || async { u().await == 1 }).await;
    sqlx::raw_sql("INSERT OR REPLACE INTO u VALUES (2, 'x', 2)").execute(&other).await.unwrap();
    until("it is gone", || async { u().await == -1 }).await;
    // A key that is not text does not stop the following of other tables.
    sqlx::raw_sql("CREATE TABLE s (id BLOB PRIMARY KEY)").execute(&other).await.unwrap();
    db.outbox().install().await.unwrap();
    v(&db, 1).await;
    sqlx::raw_sql("INSERT INTO s VALUES (x'ff00'); UPDATE a SET v = 9 WHERE id = 1")
        .execute(&other)
        .await
        .unwrap();
    until("behind bytes", || async { v(&db, 1).await == 9 }).await;
    // A renamed table.
    sqlx::raw_sql("ALTER TABLE s RENAME TO renamed").execute(&other).await.unwrap();
    db.outbox().install().await.unwrap();
    let lines = || async {
        let lines = "SELECT count(*) FROM larder_outbox WHERE relation = ";
        let of = |table| db.query(format!("{lines}'{table}'")).uncached().fetch_scalar::<i64>();
        (of("s").await.unwrap(), of("renamed").await.unwrap())
    };
    let before = lines().await;
    sqlx::raw_sql("INSERT INTO renamed VALUES (x'01')").execute(&other).await.unwrap();
    assert_eq!(lines().await, (before.0, before.1 + 1));
    // Only results that read the written rows are invalidated, and a write by larder's own handle does not count as a
    // change of the schema.
    let rest = sum(&db).await;
    db.query("UPDATE a SET v = 8 WHERE id = $1").bind(1).execute().await.unwrap();
    assert_eq!(v(&db, 1).await, 8);
    let asked = hits();
    assert_eq!((sum(&db).await, hits()), (rest, asked + 1));
    let in_memory = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:");
    let db = larder::sqlx::sqlite(in_memory.await.unwrap()).cached(&larder).await.unwrap();
    let error = db.outbox().follow().await.unwrap_err();
    assert!(error.to_string().contains("no outbox to follow"), "{error}");
}
