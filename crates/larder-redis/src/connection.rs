//! A shared connection, which a separate task opens when it is first needed, and opens again after it broke.

use std::{future::Future, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Cmd, Pipeline, RedisError, RedisFuture, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster_async::ClusterConnection,
};
use tokio::{sync::watch, time::timeout};

use crate::server::Server;

/// A connection to a server or to a cluster. Clones use the same connection.
#[derive(Clone)]
pub(crate) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(cmd, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(cmd, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// The reason why a command returned no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The answer did not arrive in time. The server may have executed the command.
    Late,
    /// There is no connection.
    Unconnected,
    Redis(RedisError),
}

impl Failure {
    pub(crate) fn is_late(&self) -> bool {
        match self {
            Self::Late => true,
            Self::Unconnected => false,
            Self::Redis(error) => error.is_timeout(),
        }
    }
}

/// Whether the connection cannot be used any more after this error.
pub(crate) fn is_broken(error: &RedisError) -> bool {
    error.is_unrecoverable_error() || error.is_io_error()
}

/// A connection that many commands share.
pub(crate) struct SharedConnection {
    server: Server,
    /// The response timeout of the connection; `None` if the commands block, or have a deadline of their own.
    patience: Option<Duration>,
    /// The connection, if it is open. Each command reads it without a lock.
    ready: ArcSwapOption<Connection>,
    /// The connection attempt in progress. Its waiters see the channel close when it ends.
    connecting: Mutex<Option<watch::Receiver<()>>>,
}

impl std::fmt::Debug for SharedConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedConnection").finish_non_exhaustive()
    }
}

impl SharedConnection {
    pub(crate) fn new(server: Server, patience: Option<Duration>) -> Arc<Self> {
        let (ready, connecting) = (ArcSwapOption::empty(), Mutex::new(None));
        Arc::new(Self { server, patience, ready, connecting })
    }

    /// Runs commands for at most `deadline`. Drops the connection if it broke.
    pub(crate) async fn run<T, F, Fut>(
        self: &Arc<Self>,
        deadline: Duration,
        commands: F,
    ) -> Result<T, Failure>
    where
        F: FnOnce(Connection) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        let work = async {
            let connection = self.connection().await?;
            commands(connection).await.map_err(Failure::Redis)
        };
        let outcome = timeout(deadline, work).await.unwrap_or(Err(Failure::Late));
        if let Err(Failure::Redis(error)) = &outcome
            && is_broken(error)
        {
            self.forget();
        }
        outcome
    }

    /// Drops the connection; the next command opens a new one.
    pub(crate) fn forget(&self) {
        self.ready.store(None);
    }

    async fn connection(self: &Arc<Self>) -> Result<Connection, Failure> {
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        if let Some(mut connected) = self.join_or_connect() {
            // The sender is dropped when the attempt ends, so an error is the expected signal.
            drop(connected.changed().await);
        }
        self.current().ok_or(Failure::Unconnected)
    }

    fn current(&self) -> Option<Connection> {
        self.ready.load().as_ref().map(|connection| Connection::clone(connection))
    }

    /// Joins the connection attempt in progress, or starts an attempt. `None` if there already is a connection.
    fn join_or_connect(self: &Arc<Self>) -> Option<watch::Receiver<()>> {
        let mut connecting = self.connecting.lock();
        if self.ready.load().is_some() {
            return None;
        }
        match &*connecting {
            Some(connected) if connected.has_changed().is_ok() => Some(connected.clone()),
            // No attempt is running, or the runtime that ran it is gone.
            _ => {
                let (done, connected) = watch::channel(());
                *connecting = Some(connected.clone());
                // A separate task opens the connection. It outlives the request that started it, because another
                // request may have a longer deadline.
                tokio::spawn(Arc::clone(self).connect(done));
                Some(connected)
            }
        }
    }

    async fn connect(self: Arc<Self>, done: watch::Sender<()>) {
        let opened = match timeout(CONNECT_LIMIT, self.open()).await {
            Ok(Ok(connection)) => Some(Arc::new(connection)),
            Ok(Err(error)) => {
                tracing::debug!(target: "larder", %error, "cannot connect to redis");
                None
            }
            Err(_) => None,
        };
        // Both change under one lock, because a caller that sees neither a connection nor an attempt starts another
        // attempt.
        let mut connecting = self.connecting.lock();
        self.ready.store(opened);
        *connecting = None;
        drop(connecting);
        drop(done);
    }

    async fn open(&self) -> RedisResult<Connection> {
        match &self.server {
            Server::Single(client) => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(CONNECT_LIMIT))
                    .set_response_timeout(self.patience);
                let opened = client.get_multiplexed_async_connection_with_config(&config).await;
                opened.map(Connection::Single)
            }
            Server::Cluster(client) => client.get_async_connection().await.map(Connection::Cluster),
        }
    }
}

const CONNECT_LIMIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A server that answers OK to each command, and the number of connections that it has accepted.
    async fn agreeable() -> (Arc<SharedConnection>, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = link_to(listener.local_addr().unwrap().port());
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        let commands = buffer[..read].iter().filter(|byte| **byte == b'*').count();
                        stream.write_all("+OK\r\n".repeat(commands).as_bytes()).await.unwrap();
                    }
                });
            }
        });
        (link, accepted)
    }

    fn link_to(port: u16) -> Arc<SharedConnection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        SharedConnection::new(Server::Single(Box::new(client)), None)
    }

    async fn ping(link: &Arc<SharedConnection>) -> Result<String, Failure> {
        let ping =
            |mut connection| async move { redis::cmd("PING").query_async(&mut connection).await };
        link.run(CONNECT_LIMIT, ping).await
    }

    #[tokio::test]
    async fn concurrent_first_commands_open_one_connection_and_one_more_after_each_forget() {
        let (link, accepted) = agreeable().await;
        for expected in 1..=3 {
            let answers = join_all((0..50).map(|_| ping(&link))).await;
            assert!(answers.into_iter().all(|answer| answer.is_ok_and(|answer| answer == "OK")));
            assert_eq!(accepted.load(Ordering::SeqCst), expected);
            link.forget();
        }
    }

    #[tokio::test]
    async fn a_refused_connection_fails_all_waiters_and_the_next_command_tries_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = link_to(listener.local_addr().unwrap().port());
        drop(listener);
        for _ in 0..2 {
            let answers = join_all((0..50).map(|_| ping(&link))).await;
            assert!(answers.iter().all(|answer| matches!(answer, Err(Failure::Unconnected))));
            assert!(link.connecting.lock().is_none(), "no connection attempt is left");
        }
    }
}
