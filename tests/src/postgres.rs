//! Real PostgreSQL servers, each started for one test in a folder of its own and on a free port, and stopped by process
//! id.

use std::{
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use crate::PATIENCE;
use larder::{Larder, sql::Db};
use sqlx::{PgPool, postgres::PgPoolOptions};

/// A server that stops at the end of the test, also if that fails.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
    folder: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

impl Server {
    /// Starts a server with an empty database `postgres`.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("larder-postgres-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        if let Some((user, group)) = somebody() {
            chown(&folder, Some(user), Some(group)).unwrap();
        }
        let made = program("initdb", &folder)
            .args(["-A", "trust", "-U", "larder", "-E", "UTF8", "--locale=C", "--no-sync"])
            .stdout(Stdio::null())
            .status();
        assert!(made.unwrap().success());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Self { child: run(&folder, port), port, folder };
        server.answers("SELECT 1", |_| true);
        server
    }

    /// Kills the server and its processes at once, as a power cut would.
    pub fn stop(&mut self) {
        let id = self.child.id().to_string();
        drop(Command::new("kill").args(["-QUIT", &id]).status());
        drop(self.child.wait());
    }

    /// Kills one of its processes, after which the server recovers by itself.
    ///
    /// # Panics
    ///
    /// When it does not come back.
    pub fn crash(&self) {
        let writer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'";
        let killed = self.psql(writer);
        drop(Command::new("kill").args(["-KILL", &killed]).status());
        self.answers(writer, |pid| !pid.is_empty() && pid != killed);
    }

    /// Starts the server again after [`Server::stop`], on the same port and with the same data.
    pub fn start_again(&mut self) {
        self.child = run(&self.folder, self.port);
        self.answers("SELECT 1", |_| true);
    }

    /// Runs `statement` until the server answers with an `expected` result.
    fn answers(&self, statement: &str, expected: impl Fn(&str) -> bool) {
        let began = Instant::now();
        while !self.psql_as(statement, Stdio::null()).is_some_and(|answer| expected(&answer)) {
            assert!(began.elapsed() < PATIENCE, "the server does not answer {statement}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The URL of its database.
    pub fn url(&self) -> String {
        format!("postgres://larder@127.0.0.1:{}/postgres", self.port)
    }

    /// Runs statements in `psql`, as another client would, and returns the output.
    ///
    /// # Panics
    ///
    /// When the server refuses the statements.
    pub fn psql(&self, statements: &str) -> String {
        self.psql_as(statements, Stdio::inherit()).expect("it may")
    }

    fn psql_as(&self, statements: &str, errors: Stdio) -> Option<String> {
        let output = Command::new("psql")
            .args([
                "-X",
                "-q",
                "-t",
                "-A",
                "-v",
                "ON_ERROR_STOP=1",
                "-d",
                &self.url(),
                "-c",
                statements,
            ])
            .stderr(errors)
            .output()
            .unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Opens a pool of connections.
    ///
    /// # Panics
    ///
    /// When it does not answer.
    pub async fn pool(&self) -> PgPool {
        PgPoolOptions::new().max_connections(4).connect(&self.url()).await.unwrap()
    }

    /// Opens the database behind a query cache.
    ///
    /// # Panics
    ///
    /// When it does not answer.
    pub async fn db(&self, larder: &Larder) -> Db {
        larder::sqlx::postgres(self.pool().await).cached(larder).await.unwrap()
    }
}

fn run(folder: &Path, port: u16) -> Child {
    program("postgres", folder)
        .args(["-p", &port.to_string(), "-F"])
        .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A command that runs one of the programs of the server, which refuse to run as root.
fn program(name: &str, folder: &Path) -> Command {
    let programs = option_env!("POSTGRES_PROGRAMS").unwrap_or_default();
    let mut command = Command::new(Path::new(programs).join(name));
    command.arg("-D").arg(folder.join("data")).current_dir(folder);
    if let Some((user, group)) = somebody() {
        command.uid(user).gid(group);
    }
    command
}

/// The user and group that run the server where the tests run as root.
fn somebody() -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| {
        let output = Command::new("id").args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().unwrap()
    };
    (id(&["-u"]) == 0).then(|| (id(&["-u", "nobody"]), id(&["-g", "nobody"])))
}
