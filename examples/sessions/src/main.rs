//! Sessions in a database, with larder in front of it: `cargo run --release -p sessions`.
//!
//! Every request with a session cookie loads its session. Here a hit loads it from memory, a change is written through to
//! the database and to the cache, and a session that another process has ended is gone at the next request, if the processes
//! share a log.
//!
//! # Why larder alone is not a session store
//!
//! A cache may forget anything at any time: it evicts entries when memory is full, it drops all of them when the log loses
//! its place, and no entry outlives `max_lifetime`. Each of these would log users out. So the sessions are in a table, and
//! larder holds copies. What a session decides with money or rights, such as a one-time token, is read from the table in
//! the transaction that uses it.

use std::{fmt, net::SocketAddr, process::ExitCode, str::FromStr as _, sync::Arc, time::Duration};

use axum::{Router, extract::State, response::Html, routing::get};
use clap::Parser;
use larder::{
    Larder, LoadHandle, Policy,
    values::{Values, WriteError, WriteHandle},
};
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tower_sessions::{
    Expiry, Session, SessionManagerLayer,
    session::{Id, Record},
    session_store::{self, SessionStore},
};

/// The flags of the example.
#[derive(Clone, Debug, Parser)]
#[command(about = "Sessions in a database, with larder in front of it")]
struct Options {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:3003")]
    listen: SocketAddr,
    /// sqlite://FILE, created when new. Without this flag the database is in memory.
    #[arg(long, default_value = "sqlite::memory:")]
    database: String,
}

/// Sessions in a table, with a cache in front of it.
#[derive(Clone)]
struct CachedSessions {
    pool: SqlitePool,
    /// They stay in the memory of this process, because a session is of no use to others; a shared log keeps the copies of
    /// several processes current.
    sessions: Values<Record>,
}

impl CachedSessions {
    async fn open(larder: &Larder, database: &str) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::from_str(database)?.create_if_missing(true);
        // A database in memory belongs to its connection.
        let most = if database.contains(":memory:") { 1 } else { 4 };
        let pool = SqlitePoolOptions::new().max_connections(most).idle_timeout(None);
        let pool = pool.max_lifetime(None).connect_with(options).await?;
        let table = "CREATE TABLE IF NOT EXISTS sessions
            (id TEXT PRIMARY KEY, record TEXT NOT NULL, expires INTEGER NOT NULL)";
        sqlx::query(table).execute(&pool).await?;
        let policy = Policy::ttl(LONGEST_COPY).name("sessions");
        Ok(Self { pool, sessions: Values::local(larder, policy) })
    }

    /// Writes a session. A new one whose id is taken, or an old one that has ended, is an error, so that nothing is stored.
    async fn write(pool: SqlitePool, record: Record, is_new: bool) -> Result<Record, Failure> {
        let text = serde_json::to_string(&record).map_err(Failure::new)?;
        let statement = match is_new {
            true => {
                "INSERT INTO sessions (record, expires, id) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
            }
            // Not an insertion: another request may have ended the session while this one ran.
            false => "UPDATE sessions SET record = ?, expires = ? WHERE id = ?",
        };
        let statement = sqlx::query(statement).bind(text).bind(record.expiry_date.unix_timestamp());
        let written = statement.bind(record.id.to_string()).execute(&pool).await;
        match written.map_err(Failure::new)?.rows_affected() {
            0 => Err(Failure::Other),
            _ => Ok(record),
        }
    }

    async fn write_through(
        &self,
        record: &Record,
        is_new: bool,
    ) -> Result<(), WriteError<Failure>> {
        let (pool, record) = (self.pool.clone(), record.clone());
        let name = ("session", record.id.to_string());
        let write = move |write: WriteHandle| async move {
            write.ttl(lifetime(&record));
            Self::write(pool, record, is_new).await
        };
        self.sessions.write_through(name, write).await.map(|_| ())
    }
}

/// How long a copy of a session may be served: no longer than the session lives.
fn lifetime(record: &Record) -> Duration {
    let left = record.expiry_date - OffsetDateTime::now_utc();
    Duration::try_from(left).unwrap_or_default().min(LONGEST_COPY)
}

#[async_trait::async_trait]
impl SessionStore for CachedSessions {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        loop {
            match self.write_through(record, true).await {
                Err(WriteError::Failed(Failure::Other)) => record.id = Id::default(),
                written => return written.map_err(|error| backend(&error)),
            }
        }
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        match self.write_through(record, false).await {
            // It has ended, and stays so.
            Err(WriteError::Failed(Failure::Other)) => Ok(()),
            written => written.map_err(|error| backend(&error)),
        }
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        let (pool, id) = (self.pool.clone(), id.to_string());
        let name = ("session", id.clone());
        let load = move |fill: LoadHandle| async move {
            let select = "SELECT record FROM sessions WHERE id = ? AND expires > ?";
            let now = OffsetDateTime::now_utc().unix_timestamp();
            let found = sqlx::query_scalar::<_, String>(select).bind(id).bind(now);
            let Some(text) = found.fetch_optional(&pool).await.map_err(Failure::new)? else {
                return Ok(None);
            };
            let record: Record = serde_json::from_str(&text).map_err(Failure::new)?;
            fill.ttl(lifetime(&record));
            Ok::<_, Failure>(Some(record))
        };
        let loaded = self.sessions.get_or_load_optional(name, load).await;
        let loaded = loaded.map_err(|error| session_store::Error::Backend(error.to_string()))?;
        // A copy is served until its lifetime has ended, which is when the session ends at the latest.
        Ok(loaded.map(|record| Record::clone(&record)))
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        let (pool, id) = (self.pool.clone(), id.to_string());
        let name = ("session", id.clone());
        let delete = move |_| async move {
            let delete = sqlx::query("DELETE FROM sessions WHERE id = ?").bind(id);
            delete.execute(&pool).await.map_err(Failure::new)?;
            Ok::<_, Failure>(None)
        };
        let deleted = self.sessions.write_through_optional(name, delete).await;
        deleted.map(drop).map_err(|error| backend(&error))
    }
}

impl fmt::Debug for CachedSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedSessions").finish_non_exhaustive()
    }
}

fn backend(error: &WriteError<Failure>) -> session_store::Error {
    session_store::Error::Backend(error.to_string())
}

/// A failure of the table of sessions.
#[derive(Clone, Debug)]
enum Failure {
    /// Another session has the id, or the session has ended.
    Other,
    Failed(Arc<str>),
}

impl Failure {
    fn new(error: impl fmt::Display) -> Self {
        Self::Failed(error.to_string().into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other => f.write_str("the table has another session, or none"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Failure {}

fn router(larder: &Larder, sessions: CachedSessions) -> Router {
    let sessions = SessionManagerLayer::new(sessions)
        .with_secure(false) // for http://localhost; leave it out in production
        .with_expiry(Expiry::OnInactivity(time::Duration::hours(1)));
    Router::new()
        .route("/", get(visit))
        .route("/end", axum::routing::post(end))
        .with_state(larder.clone())
        .layer(sessions)
}

async fn visit(State(larder): State<Larder>, session: Session) -> Result<Html<String>, String> {
    let visits: u64 =
        session.get("visits").await.map_err(|error| error.to_string())?.unwrap_or(0) + 1;
    session.insert("visits", visits).await.map_err(|error| error.to_string())?;
    let loads = larder.stats().cache("sessions").map_or(0, |sessions| sessions.total.misses);
    Ok(Html(format!(
        "<p>Visit {visits} of this session. Sessions were read from the database {loads} times.</p>\
         <form method=\"post\" action=\"/end\"><button>End the session</button></form>"
    )))
}

async fn end(session: Session) -> Result<axum::response::Redirect, String> {
    session.flush().await.map_err(|error| error.to_string())?;
    Ok(axum::response::Redirect::to("/"))
}

async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", options.listen))?;
    let larder = Larder::builder().build()?;
    let sessions = CachedSessions::open(&larder, &options.database).await?;
    println!("sessions on http://{}", listener.local_addr()?);
    axum::serve(listener, router(&larder, sessions))
        .with_graceful_shutdown(program::interrupted())
        .await?;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    program::start(run).await
}

/// The longest time for which a copy of a session is served without a look at the table.
const LONGEST_COPY: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        http::{Request, StatusCode, header},
    };
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn send(
        router: &Router,
        method: &str,
        path: &str,
        cookie: &str,
    ) -> (StatusCode, String, String) {
        let request = Request::builder().method(method).uri(path).header(header::COOKIE, cookie);
        let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status();
        let set = response.headers().get(header::SET_COOKIE).map(|set| set.to_str().unwrap());
        let set = set.and_then(|set| set.split(';').next()).unwrap_or(cookie).to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, set, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn a_session_is_read_from_memory_survives_the_cache_and_ends_at_once() {
        let larder = Larder::builder().build().unwrap();
        let sessions = CachedSessions::open(&larder, "sqlite::memory:").await.unwrap();
        let router = router(&larder, sessions.clone());
        let (_, cookie, first) = send(&router, "GET", "/", "").await;
        assert!(first.contains("Visit 1 "), "{first}");
        for visit in 2..=10 {
            let (_, _, text) = send(&router, "GET", "/", &cookie).await;
            assert!(text.contains(&format!("Visit {visit} ")), "{text}");
            assert!(text.contains("read from the database 0 times"), "{text}");
        }
        // Another user has another session.
        let (_, other, text) = send(&router, "GET", "/", "").await;
        assert!(other != cookie && text.contains("Visit 1 "));
        // The cache forgets everything, and the session is still there.
        let _logged = larder.clear().await;
        let (_, _, text) = send(&router, "GET", "/", &cookie).await;
        assert!(text.contains("Visit 11 ") && text.contains("database 1 times"), "{text}");
        let (status, ..) = send(&router, "POST", "/end", &cookie).await;
        assert_eq!(status, StatusCode::SEE_OTHER);
        let (_, _, text) = send(&router, "GET", "/", &cookie).await;
        assert!(text.contains("Visit 1 "), "the session has ended: {text}");
    }

    #[tokio::test]
    async fn a_new_session_takes_no_id_of_another_and_an_ended_one_stays_so() {
        let larder = Larder::builder().build().unwrap();
        let sessions = CachedSessions::open(&larder, "sqlite::memory:").await.unwrap();
        let expiry_date = OffsetDateTime::now_utc() + time::Duration::hours(1);
        let record = |id| Record { id, data: Default::default(), expiry_date };
        let mut first = record(Id::default());
        sessions.create(&mut first).await.unwrap();
        let mut second = record(first.id);
        sessions.create(&mut second).await.unwrap();
        assert_ne!(first.id, second.id);
        assert_eq!(sessions.load(&first.id).await.unwrap(), Some(first.clone()));
        // A request that began before the session was ended does not bring it back.
        sessions.delete(&first.id).await.unwrap();
        sessions.save(&first).await.unwrap();
        assert_eq!(sessions.load(&first.id).await.unwrap(), None);
    }
}
