//! Write-behind queues over real databases, and processes that are killed.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use larder::{
    Larder, LoadError,
    sql::{Db, SqlColumns, SqlValue, TableSink},
    write_behind::{
        Add, Disk, MergePatch, OpenErrorKind, Operation, Sink as _, Write, WriteBehind,
        WriteBehindBuilder,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use tests::{postgres::Server, until};

const MINUTE: Duration = Duration::from_secs(60);

const SCHEMA: &str = "
    CREATE TABLE scores (player text PRIMARY KEY, points bigint NOT NULL CHECK (points < 1000000));
    CREATE TABLE stock (shop text, product bigint, n bigint NOT NULL, price double precision, PRIMARY KEY (shop, product));
    CREATE TABLE profiles (name text PRIMARY KEY, profile text NOT NULL);
    INSERT INTO scores VALUES ('ada', 7);
";

/// A directory that is removed at the end of the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("larder-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&directory));
        std::fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    async fn sqlite(&self, larder: &Larder) -> Db {
        let options =
            SqliteConnectOptions::new().filename(self.0.join("database")).create_if_missing(true);
        let options = options.busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new().max_connections(3).connect_with(options).await.unwrap();
        larder::sqlx::sqlite(pool).cached(larder).await.unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 12).build().unwrap()
}

/// A key of two columns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
struct Place(String, i64);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.1, self.0)
    }
}

impl SqlColumns for Place {
    fn to_columns(&self) -> Vec<SqlValue> {
        vec![self.0.clone().into(), self.1.into()]
    }

    fn of_columns(columns: Vec<SqlValue>) -> Option<Self> {
        let (shop, product) = SqlColumns::of_columns(columns)?;
        Some(Self(shop, product))
    }
}

async fn scores(
    larder: &Larder,
    db: &Db,
    journal: &Path,
) -> WriteBehindBuilder<TableSink<String, Add>> {
    let sink = TableSink::open(db, "scores", ["player"], ["points"]).await.unwrap();
    WriteBehind::builder("scores", larder, sink, Disk::open(journal).unwrap())
}

async fn points(queue: &WriteBehind<TableSink<String, Add>>, player: &str) -> Option<i64> {
    queue.get(&player.to_owned()).await.unwrap().as_deref().copied()
}

async fn add(queue: &WriteBehind<TableSink<String, Add>>, player: &str, points: i64) {
    let _logged = queue.write(player.to_owned(), Add(points)).await.unwrap();
}

/// The highest scores, with everything that is accepted.
async fn top(queue: &WriteBehind<TableSink<String, Add>>, n: usize) -> Vec<(String, i64)> {
    let mut snapshot = queue.snapshot().await.unwrap();
    let query = "SELECT player, points FROM scores ORDER BY points DESC LIMIT $1";
    let stored = snapshot.sink().query(query).bind(n as i64).fetch_all::<(String, i64)>().await;
    let mut all: BTreeMap<String, i64> = stored.unwrap().into_iter().collect();
    for (player, points) in snapshot.unflushed().await.unwrap() {
        all.insert(player, points.unwrap_or_default());
    }
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_by_key(|(player, points)| (-points, player.clone()));
    all.truncate(n);
    all
}

async fn a_table_is_a_sink(
    db: Db,
    larder: Larder,
    directory: &Directory,
    other: impl AsyncFn(&str),
) {
    let journal = |name: &str| directory.0.join(name);
    // Relative operations on rows that are there and rows that are not.
    let queue =
        scores(&larder, &db, &journal("scores")).await.interval(MINUTE).open().await.unwrap();
    let sum = async || {
        db.query("SELECT CAST(sum(points) AS bigint) FROM scores")
            .fetch_scalar::<i64>()
            .await
            .unwrap()
    };
    assert_eq!((sum().await, points(&queue, "ada").await), (7, Some(7)));
    for _ in 0..1_000 {
        add(&queue, "ada", 1).await;
    }
    add(&queue, "bob", 5).await;
    assert_eq!((points(&queue, "ada").await, points(&queue, "bob").await), (Some(1_007), Some(5)));
    assert_eq!(sum().await, if queue.stats().written == 0 { 7 } else { 1_007 });
    let expected = [("ada".to_owned(), 1_007), ("bob".to_owned(), 5)];
    assert_eq!(top(&queue, 2).await, expected);
    assert_eq!(top(&queue, 1).await, expected[..1]);
    // Another program changes the row in between, and another one comes.
    other("UPDATE scores SET points = points + 100000 WHERE player = 'ada'; INSERT INTO scores VALUES ('eve', 1)").await;
    add(&queue, "ada", 1).await;
    add(&queue, "eve", 1).await;
    assert_eq!(queue.close(MINUTE).await, 0);
    assert_eq!(sum().await, 101_008 + 5 + 2, "the cached query is invalidated by the flush");
    drop(queue);
    // A constraint stops only its key.
    let queue = scores(&larder, &db, &journal("scores")).await.attempts(1).open().await.unwrap();
    for (player, points) in [("bob", 1), ("ada", 5_000_000), ("ada", 1), ("carl", 3)] {
        add(&queue, player, points).await;
    }
    assert_eq!(queue.flush(MINUTE).await, 0);
    let dead = queue.dead_letters();
    assert_eq!(dead.iter().map(|dead| &*dead.key).collect::<Vec<_>>(), ["ada", "ada"]);
    assert!(dead[0].error.as_ref().unwrap().to_lowercase().contains("check"), "{dead:?}");
    assert_eq!((points(&queue, "carl").await, points(&queue, "bob").await), (Some(3), Some(6)));
    assert_eq!(queue.discard_dead(|_, add| add.0 > 1_000).await.unwrap(), 1);
    assert_eq!(queue.revive(|_, _| true).await.unwrap(), 1);
    assert_eq!(queue.close(MINUTE).await, 0);
    assert_eq!(points(&queue, "ada").await, Some(101_009));
    drop(queue);

    // Keys and values of several columns, many rows at once, and deletions.
    let sink = TableSink::open(&db, "stock", ["shop", "product"], ["n", "price"]).await.unwrap();
    let stock = WriteBehind::builder("stock", &larder, sink, Disk::open(journal("stock")).unwrap());
    let stock = stock.batch(5_000).interval(MINUTE).partitions(3).open().await.unwrap();
    let place = |product| Place("x".to_owned(), product);
    for product in 0..1_500 {
        let put = Write::Put((product, Some(0.5)));
        let _logged = stock.write(place(product), put).await.unwrap();
    }
    for product in 0..700 {
        let write = if product % 2 == 0 { Write::Delete } else { Write::Put((-product, None)) };
        let _logged = stock.write(place(product), write).await.unwrap();
    }
    let read = async |product| stock.get(&place(product)).await.unwrap().as_deref().copied();
    let expected =
        [(0, None), (3, Some((-3, None))), (1_400, Some((1_400, Some(0.5)))), (2_000, None)];
    for (product, value) in expected {
        assert_eq!(read(product).await, value);
    }
    assert_eq!(stock.flush(MINUTE).await, 0);
    for (product, value) in expected {
        assert_eq!(read(product).await, value, "{product} in the table");
    }
    let count = db.query("SELECT CAST(count(*) AS bigint) FROM stock").fetch_scalar::<i64>().await;
    assert_eq!(count.unwrap(), 1_500 - 350);
    assert_eq!(stock.close(MINUTE).await, 0);

    // Documents that are patched.
    let sink = TableSink::open(&db, "profiles", ["name"], ["profile"]).await.unwrap();
    let profiles = WriteBehind::<TableSink<String, MergePatch>>::builder(
        "profiles",
        &larder,
        sink,
        Disk::open(journal("profiles")).unwrap(),
    );
    let profiles = profiles.open().await.unwrap();
    for patch in [json!({"a": {"x": 1}, "b": 2}), json!({"a": null}), json!({"a": {"y": 3}})] {
        let _logged = profiles.write("ada".to_owned(), MergePatch(patch)).await.unwrap();
    }
    assert_eq!(profiles.close(MINUTE).await, 0);
    let profile = db.query("SELECT profile FROM profiles").fetch_scalar::<String>().await.unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&profile).unwrap(),
        json!({"a": {"y": 3}, "b": 2})
    );
    // Columns that do not exist, a key that is not unique, and no columns.
    for (key, columns) in [
        (&["nme"][..], &["profile"][..]),
        (&["profile"], &["name"]),
        (&[], &["profile"]),
        (&["name"], &[]),
    ] {
        let columns = (key.iter().copied(), columns.iter().copied());
        assert!(
            TableSink::<String, MergePatch>::open(&db, "profiles", columns.0, columns.1)
                .await
                .is_err()
        );
    }
    // A value that the type cannot read.
    other("UPDATE profiles SET profile = 'not JSON'").await;
    let unreadable = profiles.get(&"bob".to_owned()).await;
    assert_eq!(unreadable.unwrap(), None);
    let LoadError::Failed(error) = profiles.get(&"ada".to_owned()).await.unwrap_err() else {
        panic!()
    };
    // It was a hit until now.
    assert!(error.to_string().contains("\"profiles\""), "{error}");
}

/// A database may find a row by a key that it spells in another way. The row must not be taken for one without a value.
#[tokio::test]
async fn a_key_that_the_database_spells_in_another_way_is_rejected() {
    let directory = Directory::new("spelling");
    let larder = larder();
    let db = directory.sqlite(&larder).await;
    let table = "CREATE TABLE scores (player text COLLATE NOCASE PRIMARY KEY, points bigint)";
    db.query(table).execute().await.unwrap();
    db.query("INSERT INTO scores VALUES ('ada', 1000), ('new', NULL)").execute().await.unwrap();
    let queue = scores(&larder, &db, &directory.0.join("journal")).await.open().await.unwrap();
    for player in ["ADA", "ada", "new"] {
        add(&queue, player, 1).await;
    }
    assert_eq!(queue.close(MINUTE).await, 0);
    let dead: Vec<String> = queue.dead_letters().into_iter().map(|dead| dead.key).collect();
    assert_eq!(dead, ["ADA"]);
    assert_eq!(points(&queue, "ada").await, Some(1_001));
    assert_eq!(points(&queue, "new").await, Some(1), "NULL is no value");
    // A key with more columns than the sink.
    let sink =
        TableSink::<Place, Write<i64>>::open(&db, "scores", ["player"], ["points"]).await.unwrap();
    let wrong = WriteBehind::builder(
        "wrong",
        &larder,
        sink,
        Disk::open(directory.0.join("wrong")).unwrap(),
    );
    let wrong = wrong.attempts(1).open().await.unwrap();
    let _logged = wrong.write(Place("ada".to_owned(), 1), Write::Delete).await.unwrap();
    assert_eq!(wrong.close(MINUTE).await, 0);
    assert!(wrong.dead_letters()[0].error.as_ref().unwrap().contains("a key has 2 columns"));
    assert_eq!(points(&queue, "ada").await, Some(1_001));
}

/// A snapshot inside of a value that is written through, with the outbox installed.
#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn a_value_that_is_written_through_may_read_a_queue_in_postgres() {
    let (server, directory) = (Server::start(), Directory::new("within"));
    server.psql(SCHEMA);
    let larder = larder();
    let db = server.db(&larder).await;
    db.outbox().install().await.unwrap();
    let queue = scores(&larder, &db, &directory.0.join("journal")).await.open().await.unwrap();
    let own = queue.clone();
    let write =
        move |_| async move { Ok::<_, std::convert::Infallible>(points(&own, "ada").await) };
    let values = larder.values::<Option<i64>>(MINUTE);
    let written = values.write_through("copy", write).await.unwrap();
    assert_eq!(*written.value, Some(7));
    assert_eq!(queue.close(MINUTE).await, 0);
}

#[tokio::test]
async fn a_table_of_sqlite_is_a_sink() {
    let directory = Directory::new("sink");
    let larder = larder();
    let db = directory.sqlite(&larder).await;
    let other = directory.sqlite(&self::larder()).await;
    let run = async |statements: &str| {
        for statement in statements.split(';').filter(|statement| !statement.trim().is_empty()) {
            other.query(statement.to_owned()).execute().await.unwrap();
        }
    };
    run(SCHEMA).await;
    let db = {
        drop(db);
        directory.sqlite(&larder).await
    };
    a_table_is_a_sink(db, larder, &directory, run).await;
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn a_table_of_postgres_is_a_sink() {
    let (server, directory) = (Server::start(), Directory::new("sink-postgres"));
    server.psql(SCHEMA);
    let larder = larder();
    let db = server.db(&larder).await;
    a_table_is_a_sink(db, larder, &directory, async |statements: &str| {
        drop(server.psql(statements))
    })
    .await;
}

/// A batch that another program overtakes between its reads and its writes is tried again, and nothing is lost.
#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn increments_of_another_program_are_not_lost_in_postgres() {
    let (server, directory) = (Server::start(), Directory::new("races"));
    server.psql(SCHEMA);
    let larder = larder();
    let db = server.db(&larder).await;
    let queue = scores(&larder, &db, &directory.0.join("journal")).await;
    let queue = queue.interval(Duration::from_millis(1)).open().await.unwrap();
    let pool = server.pool().await;
    let other = tokio::spawn(async move {
        for _ in 0..300 {
            for player in ["ada", "new"] {
                let add = "INSERT INTO scores VALUES ($1, 1) ON CONFLICT (player) DO UPDATE SET points = scores.points + 1";
                sqlx::query(add).bind(player).execute(&pool).await.unwrap();
            }
        }
    });
    for _ in 0..300 {
        add(&queue, "ada", 1).await;
        add(&queue, "new", 1).await;
    }
    other.await.unwrap();
    assert_eq!(queue.close(MINUTE).await, 0);
    assert_eq!(server.psql("SELECT points FROM scores WHERE player = 'ada'"), "607");
    assert_eq!(server.psql("SELECT points FROM scores WHERE player = 'new'"), "600");
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn a_database_that_is_down_delays_operations_and_loses_none() {
    let (mut server, directory) = (Server::start(), Directory::new("down"));
    server.psql(SCHEMA);
    let larder = larder();
    let pool = PgPoolOptions::new().acquire_timeout(Duration::from_millis(200));
    let pool = pool.connect(&server.url()).await.unwrap();
    let db = larder::sqlx::postgres(pool).cached(&larder).await.unwrap();
    let queue = scores(&larder, &db, &directory.0.join("journal")).await.open().await.unwrap();
    server.stop();
    for _ in 0..50 {
        add(&queue, "ada", 1).await;
    }
    until("the database is missed", || async { queue.stats().failures > 0 }).await;
    assert_eq!(queue.close(Duration::ZERO).await, 50);
    server.start_again();
    let queue = scores(&larder, &db, &directory.0.join("journal")).await.open().await.unwrap();
    assert_eq!(queue.close(MINUTE).await, 0);
    assert_eq!(server.psql("SELECT points FROM scores WHERE player = 'ada'"), "57");
    // The database is restored from a copy without the position.
    server.psql("DELETE FROM larder_write_behind.larder_applied");
    drop(queue);
    let refused =
        scores(&larder, &db, &directory.0.join("journal")).await.open().await.unwrap_err();
    assert_eq!(refused.kind(), OpenErrorKind::Mismatch);
    assert!(refused.to_string().contains("the sink has no position"), "{refused}");
}

#[tokio::test]
async fn the_table_of_positions_is_created_once_and_is_not_watched() {
    let directory = Directory::new("positions");
    let larder = larder();
    let db = directory.sqlite(&larder).await;
    db.query("CREATE TABLE scores (player text PRIMARY KEY, points bigint NOT NULL)")
        .execute()
        .await
        .unwrap();
    db.outbox().install().await.unwrap();
    for _ in 0..2 {
        let sink =
            TableSink::<String, Add>::open(&db, "scores", ["player"], ["points"]).await.unwrap();
        assert_eq!(sink.position("scores", 0).await.unwrap(), None);
    }
    db.outbox().install().await.unwrap();
    let triggers =
        "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'larder_applied'";
    assert_eq!(db.query(triggers).uncached().fetch_scalar::<i64>().await.unwrap(), 0);
    assert!(Add(1).is_absolute() != Write::Put(1).is_absolute());
}

/// What a process says.
enum Said {
    Found(String, i64),
    Accepted(String, i64),
    Ready,
}

struct Process {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Process {
    fn start(directory: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_counts-until-it-is-killed"))
            .arg(directory)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Reads the next line. `None` if the process has ended; a line that was cut off was not said.
    fn next(&mut self) -> Option<Said> {
        let line = self.lines.next()?.ok()?;
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["ready"] => Some(Said::Ready),
            [what, queue, key, value] => {
                let (key, value) = (format!("{queue} {key}"), value.parse().ok()?);
                Some(if what == "found" {
                    Said::Found(key, value)
                } else {
                    Said::Accepted(key, value)
                })
            }
            _ => None,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Kills a process at random points. The list of what it has accepted is kept here, outside of it.
#[test]
fn a_process_that_is_killed_loses_nothing_that_it_accepted_and_applies_nothing_twice() {
    let kills = std::env::var("LARDER_KILLS").map_or(30, |kills| kills.parse().unwrap());
    let directory = Directory::new("kills");
    let mut accepted: HashMap<String, i64> = HashMap::new();
    let mut seed = 1_u64;
    for kill in 0..kills {
        let mut process = Process::start(&directory.0, &[]);
        found(&mut process, &mut accepted, kill);
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        for _ in 0..(seed >> 33) % 300 {
            match process.next() {
                Some(Said::Accepted(key, value)) => {
                    let before = accepted.insert(key.clone(), value).unwrap_or_default();
                    assert_eq!(value, before + 1, "{key}");
                }
                _ => panic!("the process has ended"),
            }
        }
        process.child.kill().unwrap();
        // What it has said before it was killed counts.
        while let Some(Said::Accepted(key, value)) = process.next() {
            accepted.insert(key, value);
        }
    }
    let mut process = Process::start(&directory.0, &["close"]);
    found(&mut process, &mut accepted, kills);
    assert!(process.child.wait().unwrap().success(), "operations are left");
    assert!(accepted.values().sum::<i64>() > 30 * i64::from(kills), "{accepted:?}");
}

/// Compares what a process finds with what was accepted: each task may have had one operation that was accepted without
/// saying so.
fn found(process: &mut Process, accepted: &mut HashMap<String, i64>, kill: u32) {
    let mut keys = 0;
    while keys < 8 {
        let Some(Said::Found(key, value)) = process.next() else {
            panic!("it found {keys} keys after kill {kill}")
        };
        let before = accepted.get(&key).copied().unwrap_or_default();
        assert!(
            (before..=before + 1).contains(&value),
            "kill {kill}, {key}: {before} accepted, {value} found"
        );
        accepted.insert(key, value);
        keys += 1;
    }
    if process.child.try_wait().unwrap().is_none() {
        drop(process.next());
    }
}
