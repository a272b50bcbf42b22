//! A process under test: it writes to two write-behind queues on disk over a SQLite database until it is killed. Its
//! argument is a directory.
//!
//! It prints what it finds for each key (`found QUEUE KEY VALUE`), and then each operation that is accepted
//! (`accepted QUEUE KEY VALUE`): `count` counts by ones, and `put` stores the numbers 1, 2, 3 and so on. With a second
//! argument it only prints what it finds, and closes the queues.

use std::{io::Write as _, time::Duration};

use larder::{
    Larder,
    sql::TableSink,
    write_behind::{Add, Disk, Operation, Write, WriteBehind},
};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};

const TASKS: usize = 4;

fn say(what: &str) {
    let mut out = std::io::stdout().lock();
    // If the pipe is closed, the test has ended.
    if writeln!(out, "{what}").and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

async fn queue<O: Operation<Value = i64>>(
    larder: &Larder,
    db: &larder::sql::Db,
    name: &str,
    directory: &str,
) -> WriteBehind<TableSink<String, O>> {
    let sink = TableSink::<String, O>::open(db, name, ["k"], ["v"]).await.expect("it answers");
    let journal = Disk::open(format!("{directory}/{name}")).expect("no other process has it");
    let queue = WriteBehind::builder(name, larder, sink, journal);
    // Small and frequent batches, so that many kills hit one.
    let queue = queue.interval(Duration::from_millis(2)).batch(7);
    queue.open().await.expect("the journal belongs to the database")
}

async fn find<O: Operation<Value = i64>>(
    queue: &WriteBehind<TableSink<String, O>>,
    name: &str,
) -> Vec<i64> {
    let mut all = Vec::new();
    for task in 0..TASKS {
        let found = queue.get(&task.to_string()).await.expect("the database answers");
        all.push(found.as_deref().copied().unwrap_or_default());
        say(&format!("found {name} {task} {}", all[task]));
    }
    all
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, directory, rest @ ..] = &arguments[..] else {
        eprintln!("usage: counts-until-it-is-killed DIRECTORY [close]");
        std::process::exit(2);
    };
    let options = SqliteConnectOptions::new()
        .filename(format!("{directory}/database"))
        .create_if_missing(true);
    let options =
        options.journal_mode(SqliteJournalMode::Wal).busy_timeout(Duration::from_secs(10));
    let pool =
        SqlitePoolOptions::new().max_connections(2).connect_with(options).await.expect("it opens");
    let tables = "CREATE TABLE IF NOT EXISTS count (k TEXT PRIMARY KEY, v INTEGER NOT NULL);
        CREATE TABLE IF NOT EXISTS put (k TEXT PRIMARY KEY, v INTEGER NOT NULL)";
    sqlx::raw_sql(tables).execute(&pool).await.expect("it answers");
    let larder = Larder::builder().build().expect("the defaults are valid");
    let db = larder::sqlx::sqlite(pool).cached(&larder).await.expect("it answers");
    let counts = queue::<Add>(&larder, &db, "count", directory).await;
    let puts = queue::<Write<i64>>(&larder, &db, "put", directory).await;
    let (counted, put) = (find(&counts, "count").await, find(&puts, "put").await);
    if !rest.is_empty() {
        let minute = Duration::from_secs(60);
        let left = counts.close(minute).await + puts.close(minute).await;
        std::process::exit(if left == 0 { 0 } else { 1 });
    }
    say("ready");
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (counts, puts) = (counts.clone(), puts.clone());
        let (mut counted, mut put) = (counted[task], put[task]);
        tasks.spawn(async move {
            loop {
                counted += 1;
                let _logged = counts.write(task.to_string(), Add(1)).await.expect("the disk works");
                say(&format!("accepted count {task} {counted}"));
                put += 1;
                let _logged =
                    puts.write(task.to_string(), Write::Put(put)).await.expect("the disk works");
                say(&format!("accepted put {task} {put}"));
            }
        });
    }
    tasks.join_all().await;
}
