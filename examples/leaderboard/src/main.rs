//! A leaderboard over a write-behind queue:
//! `cargo run --release -p leaderboard -- --database sqlite://scores.db --journal journal`.
//!
//! `POST /scores` with `{"player": "ada", "points": 3}` adds points, and answers once they are on disk; the database is
//! written ten times a second. `GET /scores/{player}` and `GET /top?n=10` show every acknowledged point at once, and after
//! `kill -9` and a restart each of them is there, once.

use std::{
    fmt, fs,
    net::SocketAddr,
    path::{Path as FilePath, PathBuf},
    process::ExitCode,
    str::FromStr as _,
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use clap::Parser;
use larder::{
    Larder, LoadError,
    sql::{Db, QueryError, TableSink},
    write_behind::{Add, Disk, SinkError, WriteBehind, WriteError},
};
use serde::{Deserialize, Serialize};
use sqlx::{
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};
use tokio::net::TcpListener;

/// The flags of the leaderboard.
#[derive(Clone, Debug, Parser)]
#[command(about = "A leaderboard over a write-behind queue")]
struct Options {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:3002")]
    listen: SocketAddr,
    /// sqlite://FILE, created when new, or postgres://USER@HOST/NAME, which has to exist.
    #[arg(long)]
    database: String,
    /// The directory of the journal, created when new. It belongs to one process.
    #[arg(long)]
    journal: PathBuf,
    /// Go on with this journal although it does not belong to the database. The error names the identity to give here.
    #[arg(long)]
    accept_journal: Option<String>,
}

type Scores = WriteBehind<TableSink<String, Add>>;

/// The state that all handlers share.
#[derive(Clone, Debug)]
struct App {
    larder: Larder,
    scores: Scores,
}

impl App {
    async fn open(
        database: &str,
        journal: &FilePath,
        accepted: Option<String>,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let larder = Larder::builder().build()?;
        let db = connect(database, &larder).await?;
        db.query(SCHEMA).execute().await?;
        let sink = TableSink::open(&db, "scores", ["player"], ["points"]).await?;
        let journal = Disk::open(journal)?;
        let mut scores = WriteBehind::builder("scores", &larder, sink, journal);
        if let Some(id) = accepted {
            scores = scores.accept_journal(id);
        }
        let scores = scores.open().await?;
        Ok(Self { larder, scores })
    }

    /// The players with the most points, with all points that are acknowledged.
    async fn top(&self, n: usize) -> Result<Arc<Vec<Score>>, LoadError<TopError>> {
        let scores = self.scores.clone();
        let load = move |_| async move { top(&scores, n).await };
        self.larder.get_or_load(("top", n), Duration::from_secs(60), load).await
    }
}

async fn connect(database: &str, larder: &Larder) -> Result<Db, Box<dyn std::error::Error>> {
    let service = if database.starts_with("postgres") {
        larder::sqlx::postgres(PgPoolOptions::new().connect(database).await?)
    } else if database.starts_with("sqlite:") {
        let options = SqliteConnectOptions::from_str(database)?.create_if_missing(true);
        // Readers do not wait for the writer.
        let options = options.journal_mode(SqliteJournalMode::Wal);
        larder::sqlx::sqlite(SqlitePoolOptions::new().connect_with(options).await?)
    } else {
        return Err(format!(
            "--database is {database}, allowed are sqlite://FILE and postgres://USER@HOST/NAME"
        )
        .into());
    };
    Ok(service.cached(larder).await?)
}

async fn top(scores: &Scores, n: usize) -> Result<Vec<Score>, TopError> {
    let mut snapshot = scores.snapshot().await?;
    let unflushed = snapshot.unflushed().await?;
    // Points that are not in the table yet may lower as many players as there are, so that others take their places.
    let rows = i64::try_from(n + unflushed.len()).unwrap_or(i64::MAX);
    let query = "SELECT player, points FROM scores ORDER BY points DESC, player LIMIT $1";
    let stored: Vec<Score> = snapshot.sink().query(query).bind(rows).fetch_all().await?;
    let is_current = |score: &Score| unflushed.iter().all(|(player, _)| *player != score.player);
    let mut all: Vec<Score> = stored.into_iter().filter(is_current).collect();
    let new = |(player, points): &(String, Option<i64>)| {
        points.map(|points| Score { player: player.clone(), points })
    };
    all.extend(unflushed.iter().filter_map(new));
    all.sort_by(|a, b| (b.points, &a.player).cmp(&(a.points, &b.player)));
    all.truncate(n);
    Ok(all)
}

fn router(app: App) -> Router {
    Router::new()
        .route("/scores", post(add))
        .route("/scores/{player}", get(show))
        .route("/top", get(list))
        .route("/stats", get(stats))
        .with_state(app)
}

/// Points of a player: those to add, or those that the player has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Score {
    player: String,
    points: i64,
}

#[derive(Debug, Deserialize)]
struct Listing {
    #[serde(default = "ten")]
    n: usize,
}

fn ten() -> usize {
    10
}

async fn add(
    State(app): State<App>,
    score: Result<Json<Score>, JsonRejection>,
) -> Result<Json<Score>, ApiError> {
    let Json(Score { player, points }) = score.map_err(|error| ApiError::bad(error.body_text()))?;
    if player.is_empty() || player.len() > LONGEST_NAME {
        let bytes = player.len();
        return Err(ApiError::bad(format!(
            "player has {bytes} bytes, allowed are 1 to {LONGEST_NAME}"
        )));
    }
    if !(-MOST_POINTS..=MOST_POINTS).contains(&points) {
        return Err(ApiError::bad(format!(
            "points is {points}, allowed is {} to {MOST_POINTS}",
            -MOST_POINTS
        )));
    }
    let _logged_or_queued = app.scores.write(player.clone(), Add(points)).await?;
    Ok(Json(Score { player, points }))
}

async fn show(State(app): State<App>, Path(player): Path<String>) -> Result<Json<Score>, ApiError> {
    match app.scores.get(&player).await? {
        Some(points) => Ok(Json(Score { player, points: *points })),
        None => Err(ApiError(StatusCode::NOT_FOUND, format!("there is no player {player}"))),
    }
}

async fn list(
    State(app): State<App>,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<Json<Vec<Score>>, ApiError> {
    let Query(Listing { n }) = listing.map_err(|error| ApiError::bad(error.body_text()))?;
    if !(1..=MOST_PLAYERS).contains(&n) {
        return Err(ApiError::bad(format!("n is {n}, allowed is 1 to {MOST_PLAYERS}")));
    }
    Ok(Json(app.top(n).await?.to_vec()))
}

/// The state of the queue.
#[derive(Debug, Serialize)]
struct QueueState {
    queued: usize,
    oldest_millis: u128,
    dead_letters: usize,
    written: u64,
    batches: u64,
}

async fn stats(State(app): State<App>) -> Json<QueueState> {
    let stats = app.scores.stats();
    Json(QueueState {
        queued: stats.queued,
        oldest_millis: stats.oldest.as_millis(),
        dead_letters: stats.dead_letters,
        written: stats.written,
        batches: stats.batches,
    })
}

/// An error as JSON.
#[derive(Debug)]
struct ApiError(StatusCode, String);

impl ApiError {
    fn bad(what: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, what.into())
    }

    fn unavailable(error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, "a request failed");
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body =
            Json([("error", self.1)].into_iter().collect::<std::collections::BTreeMap<_, _>>());
        match self.0 {
            StatusCode::SERVICE_UNAVAILABLE => {
                (self.0, [(header::RETRY_AFTER, "1")], body).into_response()
            }
            status => (status, body).into_response(),
        }
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        Self::unavailable(&error)
    }
}

impl<E: std::error::Error + 'static> From<LoadError<E>> for ApiError {
    fn from(error: LoadError<E>) -> Self {
        Self::unavailable(&error)
    }
}

/// The top players cannot be read.
#[derive(Debug)]
struct TopError(Box<dyn std::error::Error + Send + Sync>);

impl fmt::Display for TopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the top players cannot be read: {}", self.0)
    }
}

impl std::error::Error for TopError {}

impl From<SinkError> for TopError {
    fn from(error: SinkError) -> Self {
        Self(error.into())
    }
}

impl From<QueryError> for TopError {
    fn from(error: QueryError) -> Self {
        Self(error.into())
    }
}

async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", options.listen))?;
    fs::create_dir_all(&options.journal)
        .map_err(|error| format!("--journal {}: {error}", options.journal.display()))?;
    let app = App::open(&options.database, &options.journal, options.accept_journal).await?;
    let (scores, address) = (app.scores.clone(), listener.local_addr()?);
    println!("leaderboard on http://{address}");
    println!(
        "try: curl -s http://{address}/scores -H 'Content-Type: application/json' -d '{{\"player\": \"ada\", \"points\": 3}}'"
    );
    println!("     curl -s 'http://{address}/top?n=10'");
    axum::serve(listener, router(app)).with_graceful_shutdown(program::interrupted()).await?;
    match scores.close(Duration::from_secs(10)).await {
        0 => Ok(()),
        left => {
            Err(format!("{left} operations are in the journal, and the next start writes them")
                .into())
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    program::start(run).await
}

const SCHEMA: &str =
    "CREATE TABLE IF NOT EXISTS scores (player TEXT PRIMARY KEY, points BIGINT NOT NULL)";
const LONGEST_NAME: usize = 64;
const MOST_POINTS: i64 = 1_000_000;
const MOST_PLAYERS: usize = 1_000;

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;

    async fn call(router: &Router, request: Request<Body>) -> (StatusCode, Value) {
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn read(router: &Router, path: &str) -> (StatusCode, Value) {
        call(router, Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn score(router: &Router, body: Value) -> (StatusCode, Value) {
        let request = Request::post("/scores").header(header::CONTENT_TYPE, "application/json");
        call(router, request.body(Body::from(body.to_string())).unwrap()).await
    }

    #[tokio::test]
    async fn points_are_seen_at_once_and_bad_input_is_explained() {
        let directory = std::env::temp_dir().join(format!("leaderboard-{}", std::process::id()));
        let app = App::open("sqlite::memory:", &directory, None).await.unwrap();
        let router = router(app.clone());
        let mut expected = Vec::new();
        for number in 0..30_i64 {
            let (player, points) = (format!("player-{number:02}"), number * 10);
            assert_eq!(
                score(&router, json!({"player": player, "points": points})).await.0,
                StatusCode::OK
            );
            expected.insert(0, json!({"player": player, "points": points}));
            assert_eq!(read(&router, &format!("/scores/{player}")).await.1["points"], points);
            let (_, top) = read(&router, "/top").await;
            assert_eq!(top.as_array().unwrap(), &expected[..expected.len().min(10)]);
        }
        // The first falls behind all others, whether or not the table has them.
        for flushes in [false, true] {
            score(&router, json!({"player": "player-29", "points": -100_000})).await;
            if flushes {
                assert_eq!(app.scores.flush(Duration::from_secs(60)).await, 0);
            }
            let (_, top) = read(&router, "/top?n=2").await;
            assert_eq!(top.as_array().unwrap(), &expected[1..3]);
        }
        for (body, why) in [
            (json!({"player": "", "points": 1}), "player has 0 bytes, allowed are 1 to 64"),
            (
                json!({"player": "a", "points": 2_000_000}),
                "points is 2000000, allowed is -1000000 to 1000000",
            ),
            (json!({"player": "a"}), "missing field `points`"),
        ] {
            let (status, error) = score(&router, body).await;
            assert!(
                status.is_client_error() && error["error"].as_str().unwrap().contains(why),
                "{error}"
            );
        }
        assert_eq!(read(&router, "/scores/nobody").await.0, StatusCode::NOT_FOUND);
        assert_eq!(read(&router, "/top?n=0").await.1["error"], "n is 0, allowed is 1 to 1000");
        assert_eq!(app.scores.close(Duration::from_secs(60)).await, 0);
        assert_eq!(read(&router, "/stats").await.1["queued"], 0);
        assert_eq!(
            score(&router, json!({"player": "a", "points": 1})).await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
        drop(fs::remove_dir_all(directory));
    }
}
