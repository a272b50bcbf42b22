//! The share of the reads of foreign test suites whose results larder stores.
//!
//! `cargo bench -p benches --bench cacheable_reads -- postgres DIRECTORY` takes PostgreSQL's own tests
//! (`src/test/regress` of its sources), `-- sqlite DIRECTORY` SQLite's (`test`). Each statement is sent to a real server
//! by the client for which the tests were written. Each statement that a new connection can run as a read is given to
//! larder's analysis, with the catalog of that moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use clap::Parser;
use larder::{
    Larder, Reason,
    sql::{DatabaseService, Db, Statement},
    sqlx,
};
use sqlx_driver::{AssertSqlSafe, Executor as _, PgPool, SqlitePool};
use tests::postgres::Server;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use ::sqlx as sqlx_driver;

#[derive(Parser)]
struct Arguments {
    /// `postgres` or `sqlite`.
    suite: String,
    /// The folder of the suite.
    folder: PathBuf,
    /// Prints the statements that are not stored for this reason, or `all`.
    #[arg(long)]
    show: Option<String>,
    /// Runs only the files whose name contains this text.
    #[arg(long, default_value = "")]
    only: String,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let mut shares = Shares { show: arguments.show.clone(), ..Shares::default() };
    match &*arguments.suite {
        "postgres" => postgres(&arguments, &mut shares).await,
        "sqlite" => sqlite(&arguments, &mut shares).await,
        other => panic!("the suite is {other:?}, and must be \"postgres\" or \"sqlite\""),
    }
    shares.report();
}

/// The reads of a suite.
#[derive(Default)]
struct Shares {
    reads: u64,
    stored: u64,
    refused: BTreeMap<&'static str, u64>,
    /// The reads that depend on more than the rows of tables, as the database itself describes it.
    uncacheable: u64,
    show: Option<String>,
}

impl Shares {
    fn add(&mut self, file: &str, text: &str, (not_stored, is_cacheable): (Option<Reason>, bool)) {
        self.reads += 1;
        let Some(reason) = not_stored else { return self.stored += 1 };
        if reason == Reason::Volatile || !is_cacheable {
            self.uncacheable += 1;
            return;
        }
        *self.refused.entry(reason.as_str()).or_default() += 1;
        if self.show.as_deref().is_some_and(|show| show == "all" || show == reason.as_str()) {
            let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
            println!("{} {file}: {line}", reason.as_str());
        }
    }

    fn report(&self) {
        let cacheable = self.reads - self.uncacheable;
        let percent = |count: u64| 100.0 * count as f64 / cacheable as f64;
        println!("| reads | {} | |", self.reads);
        println!("| cacheable | {cacheable} | 100 % |");
        println!("| stored | {} | {:.1} % |", self.stored, percent(self.stored));
        for (reason, count) in &self.refused {
            println!("| `{reason}` | {count} | {:.1} % |", percent(*count));
        }
    }
}

/// A database behind a query cache, whose catalog is read anew after a definition.
struct Analysis {
    service: DatabaseService,
    db: Db,
    is_outdated: bool,
    /// Names of functions and relations, as the database describes them, whose results depend on more than tables: functions
    /// that are not immutable, system and virtual tables, materialized views, tables with row-level security.
    unsteady: BTreeSet<String>,
    unsteady_query: &'static str,
}

impl Analysis {
    async fn new(service: DatabaseService, unsteady_query: &'static str) -> Self {
        let larder = Larder::builder().build().expect("the defaults are valid");
        let db = service.clone().cached(&larder).await.expect("the catalog can be read");
        Self { service, db, is_outdated: true, unsteady: BTreeSet::new(), unsteady_query }
    }

    /// Returns why the result of a read is not stored, and whether it could be.
    async fn not_stored(&mut self, text: &str) -> (Option<Reason>, bool) {
        if std::mem::take(&mut self.is_outdated) {
            // Some tests damage the schema on purpose.
            match self.service.catalog().await {
                Ok(catalog) => {
                    self.db.learn(catalog);
                    let unsteady = self.db.query(self.unsteady_query).uncached();
                    let names = unsteady.fetch_all::<String>().await.unwrap_or_default();
                    self.unsteady = names.iter().cloned().collect();
                }
                Err(error) => {
                    eprintln!("the catalog cannot be read: {error}");
                    self.is_outdated = true;
                }
            }
        }
        let folded = text.to_ascii_lowercase();
        let is_of_name = |letter: char| letter.is_alphanumeric() || letter == '_';
        let mut names = folded.split(|letter| !is_of_name(letter));
        let is_system =
            |name: &str| ["sqlite_", "pragma_", "pg_"].iter().any(|start| name.starts_with(start));
        let is_cacheable = !names.any(|name| is_system(name) || self.unsteady.contains(name));
        (self.db.explain(&Statement::new(text.to_owned())).not_stored, is_cacheable)
    }

    /// Notes a statement that is no read.
    fn ran(&mut self, text: &str) {
        let folded = text.to_ascii_lowercase();
        let changes = [
            "alter", "call", "comment", "create", "do", "drop", "grant", "into", "refresh",
            "revoke",
        ];
        self.is_outdated |= changes.iter().any(|change| folded.contains(change));
    }
}

fn may_read(text: &str) -> bool {
    let text = text.trim_start_matches(['(', ' ', '\n', '\t']).to_ascii_lowercase();
    ["select", "values", "with", "table"].iter().any(|first| text.starts_with(first))
}

// ---------------------------------------------------------------------------------------------------------------------

async fn postgres(arguments: &Arguments, shares: &mut Shares) {
    let server = Server::start();
    let pool = server.pool().await;
    let mut analysis = Analysis::new(sqlx::postgres(pool.clone()), UNSTEADY_IN_POSTGRES).await;
    let schedule = std::fs::read_to_string(arguments.folder.join("parallel_schedule"))
        .expect("the folder is src/test/regress of the sources of PostgreSQL");
    let files = schedule.lines().filter_map(|line| line.strip_prefix("test:"));
    for name in files.flat_map(str::split_whitespace) {
        let is_setup = ["test_setup", "create_index", "create_misc"].contains(&name);
        if !is_setup && !name.contains(&arguments.only) {
            continue;
        }
        let path = arguments.folder.join("sql").join(format!("{name}.sql"));
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        let mut client = Psql::start(&server, &arguments.folder).await;
        analysis.is_outdated = true;
        for piece in postgres_pieces(&text) {
            let is_read = may_read(&piece) && reads_in_postgres(&pool, &piece).await;
            if is_read {
                let statement = piece.trim().trim_end_matches(';');
                let not_stored = analysis.not_stored(statement).await;
                shares.add(name, statement, not_stored);
            }
            if !client.send(&piece).await {
                eprintln!("{name}: psql does not answer after {piece}");
                break;
            }
            if !is_read {
                analysis.ran(&piece);
            }
        }
        client.send(DROP_CASTS).await;
        drop(client);
        eprintln!("{name}: {} of {}", shares.stored, shares.reads);
    }
    drop(pool);
}

/// Whether a new session can run a statement in a transaction that only reads.
async fn reads_in_postgres(pool: &PgPool, text: &str) -> bool {
    let Ok(mut transaction) = pool.begin().await else { return false };
    let limits = "SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = 3000";
    if (&mut *transaction).execute(limits).await.is_err() {
        return false;
    }
    let text = text.trim().trim_end_matches(';').to_owned();
    let run = sqlx_driver::query(AssertSqlSafe(text)).persistent(false).execute(&mut *transaction);
    let is_read =
        tokio::time::timeout(Duration::from_secs(5), run).await.is_ok_and(|run| run.is_ok());
    drop(transaction.rollback().await);
    is_read
}

/// A running `psql`.
struct Psql {
    _child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Psql {
    async fn start(server: &Server, folder: &Path) -> Self {
        let mut child = Command::new("psql")
            .args(["-X", "-q", "-d", &server.url()])
            .env("PG_ABS_SRCDIR", folder)
            .env("PG_ABS_BUILDDIR", std::env::temp_dir())
            .env("PG_LIBDIR", "/usr/lib/postgresql/15/lib")
            .env("PG_DLSUFFIX", ".so")
            .env("PGTZ", "PST8PDT")
            .env("PGDATESTYLE", "Postgres, MDY")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("psql is installed");
        let input = child.stdin.take().expect("it is piped");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut client = Self { _child: child, input, output };
        client.send("SET statement_timeout = '20s';").await;
        client
    }

    /// Sends a part of a file and waits until it has run.
    async fn send(&mut self, piece: &str) -> bool {
        let run = async {
            self.input.write_all(format!("{piece}\n\\echo {MARK}\n").as_bytes()).await.ok()?;
            self.input.flush().await.ok()?;
            let mut line = Vec::new();
            while !line.starts_with(MARK.as_bytes()) {
                line.clear();
                if self.output.read_until(b'\n', &mut line).await.ok()? == 0 {
                    return None;
                }
            }
            Some(())
        };
        tokio::time::timeout(Duration::from_secs(60), run).await.is_ok_and(|ran| ran.is_some())
    }
}

/// After an implicit cast that calls an unknown function, any statement may call it. One file makes such casts, and they
/// must not count for all files that follow.
const DROP_CASTS: &str = "SELECT format('DROP CAST (%s AS %s) CASCADE', castsource::regtype, casttarget::regtype) \
                          FROM pg_cast WHERE oid >= 16384 AND castcontext <> 'e' \\gexec";

/// Stable functions that depend on their arguments and on settings alone are cacheable.
const UNSTEADY_IN_POSTGRES: &str = "
    SELECT DISTINCT lower(proname)::text FROM pg_proc WHERE (provolatile = 'v' OR provolatile = 's' AND oid >= 16384)
        AND prokind <> 'a' AND proname !~ '^(count|sum|max|min)$'
    UNION SELECT DISTINCT lower(proname)::text FROM pg_proc WHERE provolatile = 's' AND oid < 16384
        AND proname ~ '^(pg_|has_|to_reg|reg|inet_|query_to|table_to|schema_to|database_to|cursor_to|ts_debug|ts_parse|ts_token|col_desc|obj_desc|shobj|txid_|current|session_user|version|now$|row_security|get_current|getdatabase|format_type|aclexplode)'
    UNION SELECT lower(c.relname)::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('m', 'f', 'S') OR c.relrowsecurity OR n.nspname IN ('pg_catalog', 'information_schema')
    UNION SELECT 'information_schema'";
const UNSTEADY_IN_SQLITE: &str = "SELECT lower(name) FROM pragma_table_list WHERE type IN ('virtual', 'shadow') UNION SELECT 'dbstat'";

const MARK: &str = "larder-end-of-piece";

/// `psql` reads the rows of a `COPY` from its input, also for `FROM stdout`.
const READING_ROWS: [&str; 2] = ["from stdin", "from stdout"];

/// Splits a file for `psql` into its statements and commands. Rows after `COPY .. FROM stdin` belong to the statement.
fn postgres_pieces(text: &str) -> Vec<String> {
    let (mut pieces, mut piece) = (Vec::new(), String::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if piece.trim().is_empty() && line.trim_start().starts_with('\\') {
            let mut command = std::mem::take(&mut piece) + line;
            if line.trim_start().starts_with("\\if") {
                // `psql` does not answer within a block that it skips.
                for line in lines.by_ref() {
                    command = command + "\n" + line;
                    if line.trim_start().starts_with("\\endif") {
                        break;
                    }
                }
            }
            pieces.push(command);
            continue;
        }
        piece.push_str(line);
        piece.push('\n');
        if !is_complete(&piece) {
            continue;
        }
        let folded = piece.to_ascii_lowercase();
        if folded.contains("copy") && READING_ROWS.iter().any(|from| folded.contains(from)) {
            for row in lines.by_ref() {
                piece.push_str(row);
                piece.push('\n');
                if row == "\\." {
                    break;
                }
            }
        }
        pieces.extend(statements(&piece));
        piece.clear();
    }
    pieces.push(piece);
    pieces
}

/// Splits complete statements on one line, unless they are the rows of a `COPY`.
fn statements(text: &str) -> Vec<String> {
    let folded = text.to_ascii_lowercase();
    if READING_ROWS.iter().any(|from| folded.contains(from))
        || folded.contains("begin atomic")
        || folded.contains("\\;")
    {
        return vec![text.to_owned()];
    }
    let mut found = Vec::new();
    let mut start = 0;
    for (at, _) in text.match_indices(';') {
        if is_complete(&text[start..=at]) {
            found.push(text[start..=at].to_owned());
            start = at + 1;
        }
    }
    found.push(text[start..].to_owned());
    found.retain(|piece| !piece.trim().is_empty());
    found
}

/// Returns the length of a comment, in which comments may be nested.
fn comment_length(text: &[u8]) -> Option<usize> {
    let (mut at, mut depth) = (0, 0);
    loop {
        match text.get(at..at + 2)? {
            b"/*" => (at, depth) = (at + 2, depth + 1),
            b"*/" => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

/// Whether a text ends with a semicolon or a command of `psql` that is outside of quotes, comments and parentheses.
fn is_complete(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (mut at, mut depth, mut complete) = (0, 0_i32, false);
    let folded = text.to_ascii_lowercase();
    let mut atomic = folded.contains("begin atomic");
    while at < bytes.len() {
        let rest = &text.as_bytes()[at..];
        match rest[0] {
            b'-' if rest.starts_with(b"--") => {
                at += rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                continue;
            }
            b'/' if rest.starts_with(b"/*") => {
                let Some(length) = comment_length(rest) else { return false };
                at += length;
                continue;
            }
            quote @ (b'\'' | b'"') => {
                let escapes = quote == b'\'' && at > 0 && matches!(bytes[at - 1], b'e' | b'E');
                let mut end = 1;
                loop {
                    match rest.get(end) {
                        None => return false,
                        Some(b'\\') if escapes => end += 2,
                        Some(byte) if *byte == quote => break,
                        Some(_) => end += 1,
                    }
                }
                at += end + 1;
                complete = false;
                continue;
            }
            b'$' => {
                let tag = rest[1..]
                    .iter()
                    .position(|byte| !(byte.is_ascii_alphanumeric() || *byte == b'_'));
                if let Some(length) = tag.filter(|length| {
                    rest[1 + length] == b'$' && !rest.get(1).is_some_and(u8::is_ascii_digit)
                }) {
                    let mark = &rest[..length + 2];
                    let Some(end) =
                        rest[mark.len()..].windows(mark.len()).position(|found| found == mark)
                    else {
                        return false;
                    };
                    at += mark.len() * 2 + end;
                    complete = false;
                    continue;
                }
            }
            b'(' => depth += 1,
            b')' => depth -= 1,
            b'\\' if depth == 0 => {
                // A command of psql (`\gset`, `\crosstabview`) ends the statement, and its line.
                at += rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                complete = true;
                continue;
            }
            b';' if depth == 0 && !atomic => {
                complete = true;
                at += 1;
                continue;
            }
            b'e' | b'E' if atomic && folded[at..].starts_with("end;") => atomic = false,
            byte if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            _ => {}
        }
        complete = false;
        at += 1;
    }
    complete
}

// ---------------------------------------------------------------------------------------------------------------------

async fn sqlite(arguments: &Arguments, shares: &mut Shares) {
    let mut files: Vec<_> = std::fs::read_dir(&arguments.folder)
        .expect("the folder can be read")
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "test"))
        .collect();
    files.sort();
    for path in files {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // The files that kill processes, damage databases, exhaust memory, or run other files.
        let skipped = [
            "all",
            "corrupt",
            "crash",
            "fuzz",
            "malloc",
            "memsubsys",
            "permutations",
            "soak",
            "thread",
            "veryquick",
        ];
        if !name.contains(&arguments.only) || skipped.iter().any(|skipped| name.contains(skipped)) {
            continue;
        }
        let text =
            String::from_utf8_lossy(&std::fs::read(&path).expect("it can be read")).into_owned();
        let folder = std::env::temp_dir().join(format!("larder-suite-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&folder));
        std::fs::create_dir_all(&folder).expect("it can be created");
        let url = format!("sqlite://{}?mode=rwc", folder.join("test.db").display());
        let pool = SqlitePool::connect(&url).await.expect("it can be opened");
        let mut analysis = Analysis::new(sqlx::sqlite(pool.clone()), UNSTEADY_IN_SQLITE).await;
        let mut session = pool.acquire().await.expect("it can be opened");
        'file: for script in scripts_of_tcl(&text) {
            for statement in statements_of_sqlite(&script) {
                let is_read = may_read(&statement) && reads_in_sqlite(&pool, &statement).await;
                if is_read {
                    let not_stored = analysis.not_stored(&statement).await;
                    shares.add(&name, &statement, not_stored);
                }
                let run = (&mut *session).execute(AssertSqlSafe(statement.clone()));
                if tokio::time::timeout(Duration::from_secs(3), run).await.is_err() {
                    eprintln!("{name} does not end: {statement}");
                    break 'file;
                }
                if !is_read {
                    analysis.ran(&statement);
                }
            }
        }
        // A connection on which a statement still runs cannot be closed.
        drop((session, analysis, pool));
        drop(std::fs::remove_dir_all(&folder));
        eprintln!("{name}: {} of {}", shares.stored, shares.reads);
    }
}

/// Whether a new connection can run a statement that only reads.
async fn reads_in_sqlite(pool: &SqlitePool, text: &str) -> bool {
    let run = async {
        let mut connection = pool.acquire().await.ok()?;
        (&mut *connection).execute("PRAGMA query_only = ON").await.ok()?;
        let ran = sqlx_driver::query(AssertSqlSafe(text.to_owned()))
            .persistent(false)
            .fetch_all(&mut *connection)
            .await;
        drop(connection.close().await);
        ran.ok()
    };
    tokio::time::timeout(Duration::from_secs(3), run).await.is_ok_and(|ran| ran.is_some())
}

/// Returns the scripts in braces after the commands of Tcl that run SQL.
fn scripts_of_tcl(text: &str) -> Vec<String> {
    let mut scripts = Vec::new();
    let commands =
        ["execsql", "do_execsql_test", "db eval", "catchsql", "do_catchsql_test", "do_eqp_test"];
    for (at, _) in text.match_indices('{') {
        let line_start = text[..at].rfind('\n').map_or(0, |end| end + 1);
        let before = &text[line_start..at];
        let before = before.rsplit(['{', '[']).next().unwrap_or_default().trim_start();
        if commands.iter().any(|command| before.starts_with(command))
            && let Some(script) = braced(&text[at..])
            && !script.contains(['$', '['])
        {
            scripts.push(script.to_owned());
        }
    }
    scripts
}

/// Returns the text between a brace and its counterpart.
fn braced(text: &str) -> Option<&str> {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&text[1..at]);
        }
    }
    None
}

fn statements_of_sqlite(script: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut start = 0;
    for (at, _) in script.match_indices(';') {
        let text = &script[start..at];
        let folded = text.to_ascii_lowercase();
        let is_trigger =
            folded.contains("trigger") && folded.contains("create") && folded.contains("begin");
        if is_complete(&script[start..=at]) && (!is_trigger || folded.trim_end().ends_with("end")) {
            found.push(text.trim().to_owned());
            start = at + 1;
        }
    }
    found.push(script[start..].trim().to_owned());
    found.retain(|statement| !statement.is_empty());
    found
}
