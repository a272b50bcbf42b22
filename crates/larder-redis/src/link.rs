//! A connection that is made when it is first needed, in a task of its own, and made anew when it broke.

use std::{future::Future, sync::Arc, time::Duration};

use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Cmd, Pipeline, RedisError, RedisFuture, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster_async::ClusterConnection,
};
use tokio::{sync::watch, time::timeout};

use crate::server::Server;

/// A connection to a server or to a cluster. A clone is the same connection.
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

/// Why a command brought no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Not in time; it may have been carried out.
    Late,
    /// There is no connection.
    Unconnected,
    Redis(RedisError),
}

/// Whether the connection is of no more use after this.
pub(crate) fn is_broken(error: &RedisError) -> bool {
    error.is_unrecoverable_error() || error.is_io_error()
}

/// One connection, shared by all who use this link.
pub(crate) struct Link {
    server: Server,
    /// How long a connection waits for an answer at the longest; none where a command itself waits.
    patience: Option<Duration>,
    state: Mutex<State>,
}

enum State {
    Idle,
    /// Somebody connects; who waits hears of the end.
    Connecting(watch::Receiver<()>),
    Ready(Connection),
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn new(server: Server, patience: Option<Duration>) -> Arc<Self> {
        Arc::new(Self { server, patience, state: Mutex::new(State::Idle) })
    }

    /// Runs commands, for at most `deadline`. A connection that broke is forgotten.
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

    /// The next command connects anew.
    pub(crate) fn forget(&self) {
        let mut state = self.state.lock();
        if matches!(*state, State::Ready(_)) {
            *state = State::Idle;
        }
    }

    async fn connection(self: &Arc<Self>) -> Result<Connection, Failure> {
        let mut connected = {
            let mut state = self.state.lock();
            match &*state {
                State::Ready(connection) => return Ok(connection.clone()),
                State::Connecting(connected) if connected.has_changed().is_ok() => {
                    connected.clone()
                }
                // Nobody connects, or the runtime of whoever did is gone.
                _ => {
                    let (done, connected) = watch::channel(());
                    *state = State::Connecting(connected.clone());
                    // Not dropped with the request that needs it first: another may have more patience.
                    tokio::spawn(Arc::clone(self).connect(done));
                    connected
                }
            }
        };
        // An error is the end of whoever connects, which is what is waited for.
        drop(connected.changed().await);
        match &*self.state.lock() {
            State::Ready(connection) => Ok(connection.clone()),
            _ => Err(Failure::Unconnected),
        }
    }

    async fn connect(self: Arc<Self>, done: watch::Sender<()>) {
        let connection = timeout(CONNECT_LIMIT, self.open()).await;
        *self.state.lock() = match connection {
            Ok(Ok(connection)) => State::Ready(connection),
            Ok(Err(error)) => {
                tracing::debug!(target: "larder", %error, "no connection to redis");
                State::Idle
            }
            Err(_) => State::Idle,
        };
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
