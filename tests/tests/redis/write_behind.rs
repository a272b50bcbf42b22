//! A write-behind queue with its journal in Redis: several processes write the same keys.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use larder::{
    Larder,
    sql::{Db, TableSink},
    write_behind::{Add, OpenErrorKind, WriteBehind, WriteBehindBuilder, WriteErrorKind},
};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};

use super::server::{MINUTE, Server, until};

type Scores = WriteBehind<TableSink<String, Add>>;

const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// A database file that is removed at the end of the test.
struct File(PathBuf);

impl File {
    async fn new(name: &str) -> Self {
        let name = format!("larder-redis-journal-{name}-{}", std::process::id());
        let file = Self(std::env::temp_dir().join(name));
        let db = file.db(&larder()).await;
        let table = "CREATE TABLE scores (player text PRIMARY KEY, points bigint NOT NULL CHECK (points < 1000000))";
        db.query(table).execute().await.unwrap();
        file
    }

    async fn db(&self, larder: &Larder) -> Db {
        let options = SqliteConnectOptions::new().filename(&self.0).create_if_missing(true);
        let options = options.journal_mode(SqliteJournalMode::Wal).busy_timeout(MINUTE);
        let pool = SqlitePoolOptions::new().max_connections(3).connect_with(options).await.unwrap();
        larder::sqlx::sqlite(pool).cached(larder).await.unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        for end in ["", "-wal", "-shm"] {
            drop(std::fs::remove_file(format!("{}{end}", self.0.display())));
        }
    }
}

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 10).build().unwrap()
}

/// A process: a larder on the log of this Redis, and its queue.
async fn process(server: &Server, file: &File) -> WriteBehindBuilder<TableSink<String, Add>> {
    let larder =
        Larder::builder().tag_table_slots(1 << 10).second_level(server.redis()).build().unwrap();
    larder.synced().await;
    let db = file.db(&larder).await;
    let sink = TableSink::open(&db, "scores", ["player"], ["points"]).await.unwrap();
    WriteBehind::builder("scores", &larder, sink, server.redis().write_behind("scores"))
        .partitions(2)
}

async fn points(scores: &Scores, player: &str) -> i64 {
    scores.get(&player.to_owned()).await.unwrap().as_deref().copied().unwrap_or_default()
}

async fn add(scores: &Scores, player: &str, points: i64) {
    let _logged = scores.write(player.to_owned(), Add(points)).await.unwrap();
}

async fn stored(file: &File) -> BTreeMap<String, i64> {
    let db = file.db(&larder()).await;
    let rows = db.query("SELECT player, points FROM scores").fetch_all::<(String, i64)>().await;
    rows.unwrap().iter().cloned().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_redis), ignore = "needs Redis")]
async fn processes_write_the_same_keys_and_each_sees_all_of_them() {
    let (server, file) = (Server::start(&DURABLE).await, File::new("shared").await);
    let open = async || {
        process(&server, &file).await.interval(Duration::from_millis(20)).open().await.unwrap()
    };
    let slow = async || process(&server, &file).await.interval(MINUTE).open().await.unwrap();
    let processes = [slow().await, slow().await, slow().await];
    // What one has written, the next one sees.
    for n in 0..30_i64 {
        let (writer, reader) = (&processes[n as usize % 3], &processes[(n as usize + 1) % 3]);
        add(writer, "ada", 1).await;
        assert_eq!(points(writer, "ada").await, n + 1, "its own");
        let mut snapshot = reader.snapshot().await.unwrap();
        let unflushed = snapshot.unflushed().await.unwrap();
        assert_eq!(unflushed, [("ada".to_owned(), Some(n + 1))], "of another process");
    }
    // The connection of one process that follows the journal is cut, so that it is late.
    let clients = server.cli(&["CLIENT", "LIST"]);
    let followers = clients.lines().filter(|client| client.contains("cmd=xread"));
    let ids: Vec<_> =
        followers.filter_map(|client| client.strip_prefix("id=")?.split(' ').next()).collect();
    assert!(ids.len() >= 3, "{clients}");
    let mut n = 30;
    for id in ids {
        for writer in &processes {
            server.cli(&["CLIENT", "KILL", "ID", id]);
            add(writer, "ada", 1).await;
            n += 1;
            for reader in &processes {
                let mut snapshot = reader.snapshot().await.unwrap();
                assert_eq!(snapshot.unflushed().await.unwrap(), [("ada".to_owned(), Some(n))]);
            }
        }
    }
    for scores in &processes {
        assert_eq!(scores.close(MINUTE).await, 0);
    }
    let processes = [open().await, open().await, open().await];
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..3 {
        let scores = processes[at].clone();
        tasks.spawn(async move {
            for n in 0..100 {
                add(&scores, ["ada", "bob", "eve"][(at + n) % 3], 1).await;
            }
        });
    }
    tasks.join_all().await;
    until("all processes have caught up", || async {
        points(&processes[0], "ada").await == n + 100 && points(&processes[2], "bob").await == 100
    })
    .await;
    for scores in &processes {
        assert_eq!(scores.close(MINUTE).await, 0);
    }
    let all =
        [("ada", n + 100), ("bob", 100), ("eve", 100)].map(|(player, n)| (player.to_owned(), n));
    assert_eq!(stored(&file).await, BTreeMap::from(all));
    let stream = server.cli(&["KEYS", "*write-behind*stream"]);
    let left = server.cli(&["XLEN", stream.trim()]);
    assert!(left.trim().parse::<u32>().unwrap() < 330, "operations are removed: {left}");
}

/// The process that holds the lease ends without closing, and the server is killed and comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_redis), ignore = "needs Redis")]
async fn accepted_operations_survive_their_process_and_the_server() {
    let (mut server, file) = (Server::start(&DURABLE).await, File::new("killed").await);
    let slow = process(&server, &file).await.interval(MINUTE).open().await.unwrap();
    for _ in 0..50 {
        add(&slow, "ada", 1).await;
    }
    drop(slow);
    server.kill();
    server.restart().await;
    let scores = process(&server, &file).await.open().await.unwrap();
    assert_eq!(points(&scores, "ada").await, 50);
    add(&scores, "ada", 1).await;
    assert_eq!(scores.close(MINUTE).await, 0);
    assert_eq!(stored(&file).await, BTreeMap::from([("ada".to_owned(), 51)]));
    // The server loses everything.
    server.cli(&["FLUSHALL"]);
    let refused = process(&server, &file).await.open().await.unwrap_err();
    assert_eq!(refused.kind(), OpenErrorKind::Mismatch, "{refused}");
}

/// A replica took over that lacks the last operations, here an older copy of the file. Their numbers are not given again,
/// and a process that has them writes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_redis), ignore = "needs Redis")]
async fn a_server_that_lost_its_last_operations_gives_no_number_again() {
    let (mut server, file) = (Server::start(&DURABLE).await, File::new("failover").await);
    let scores = process(&server, &file).await.interval(MINUTE).open().await.unwrap();
    let copy = async |from: &str, to: &str| {
        let place = |name: &str| server.directory.join(name).display().to_string();
        let copied =
            std::process::Command::new("cp").args(["-r", &place(from), &place(to)]).status();
        assert!(copied.unwrap().success());
    };
    for n in 0..10 {
        if n == 5 {
            copy("appendonlydir", "copy").await;
        }
        add(&scores, "ada", 1).await;
    }
    server.kill();
    std::fs::remove_dir_all(server.directory.join("appendonlydir")).unwrap();
    std::fs::rename(server.directory.join("copy"), server.directory.join("appendonlydir")).unwrap();
    server.restart().await;
    until("it accepts operations again", || async {
        scores.write("ada".to_owned(), Add(1)).await.is_ok()
    })
    .await;
    assert_eq!(points(&scores, "ada").await, 11);
    assert_eq!(scores.close(MINUTE).await, 0);
    assert_eq!(stored(&file).await, BTreeMap::from([("ada".to_owned(), 11)]));
    let next = process(&server, &file).await.open().await.unwrap();
    add(&next, "ada", 1).await;
    assert_eq!(next.close(MINUTE).await, 0);
    assert_eq!(stored(&file).await, BTreeMap::from([("ada".to_owned(), 12)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_redis), ignore = "needs Redis")]
async fn a_journal_that_is_lost_while_it_is_used_refuses_operations() {
    let (server, file) = (Server::start(&DURABLE).await, File::new("lost").await);
    let scores = process(&server, &file).await.open().await.unwrap();
    add(&scores, "ada", 1).await;
    server.cli(&["FLUSHALL"]);
    let refused = scores.write("ada".to_owned(), Add(1)).await.unwrap_err();
    assert_eq!(refused.kind(), WriteErrorKind::Journal);
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert!(source.contains("lost or replaced"), "{source}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_redis), ignore = "needs Redis")]
async fn dead_letters_are_those_of_all_processes() {
    let (server, file) = (Server::start(&DURABLE).await, File::new("dead").await);
    let open = async || {
        let scores = process(&server, &file).await.attempts(1).interval(Duration::from_millis(20));
        scores.open().await.unwrap()
    };
    let (one, two) = (open().await, open().await);
    add(&one, "ada", 5_000_000).await;
    until("it is dead in both", || async {
        one.stats().dead_letters == 1 && two.stats().dead_letters == 1
    })
    .await;
    add(&two, "ada", 3).await;
    until("the next one is behind it", || async { one.stats().dead_letters == 2 }).await;
    assert_eq!(points(&two, "ada").await, 0);
    assert_eq!(two.discard_dead(|_, add| add.0 > 1_000).await.unwrap(), 1);
    until("it is gone in both", || async { one.stats().dead_letters == 1 }).await;
    assert_eq!(one.revive(|_, _| true).await.unwrap(), 1);
    until("it is written", || async { points(&two, "ada").await == 3 }).await;
    let third = open().await;
    assert_eq!(third.stats().dead_letters, 0);
    for scores in [&one, &two, &third] {
        assert_eq!(scores.close(MINUTE).await, 0);
    }
    assert_eq!(stored(&file).await, BTreeMap::from([("ada".to_owned(), 3)]));
}

#[tokio::test]
#[cfg_attr(not(has_redis), ignore = "needs Redis")]
async fn a_server_that_may_lose_or_evict_operations_is_refused() {
    let file = File::new("settings").await;
    for (flags, why) in [
        (&["--appendonly", "no"][..], "appendonly is \"no\", and must be \"yes\""),
        (
            &["--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"],
            "maxmemory-policy is allkeys-lru",
        ),
    ] {
        let server = Server::start(flags).await;
        let refused = process(&server, &file).await.open().await.unwrap_err();
        assert_eq!(refused.kind(), OpenErrorKind::Journal);
        assert!(refused.to_string().contains(why), "{refused}");
    }
    let volatile = [&DURABLE[..], &["--maxmemory-policy", "volatile-lru"]].concat();
    let server = Server::start(&volatile).await;
    let scores = process(&server, &file).await.open().await.unwrap();
    let other = process(&server, &file).await.partitions(3).open().await.unwrap_err();
    assert!(other.to_string().contains("has 2 partitions, and the queue asks for 3"), "{other}");
    assert_eq!(scores.close(MINUTE).await, 0);
}
