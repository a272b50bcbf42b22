//! One server, or one cluster, and whether it is worth asking.

use std::{future::Future, sync::Arc, time::Duration};

use redis::{RedisError, RedisResult};

use crate::{
    breaker::Breaker,
    link::{Connection, Failure, Link},
};

#[derive(Debug)]
pub(crate) struct Place {
    link: Arc<Link>,
    breaker: Breaker,
}

impl Place {
    pub(crate) fn new(name: &'static str, link: Arc<Link>) -> Self {
        Self { link, breaker: Breaker::new(name) }
    }

    /// Runs commands for at most `deadline`; none while the circuit is open.
    pub(crate) async fn run<T, F, Fut>(&self, deadline: Duration, commands: F) -> Result<T, Failure>
    where
        F: FnOnce(Connection) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        if !self.breaker.allows() {
            return Err(Failure::Unconnected);
        }
        let outcome = self.link.run(deadline, commands).await;
        match &outcome {
            Ok(_) => self.breaker.succeeded(),
            Err(Failure::Redis(error)) if is_an_answer(error) => {
                self.breaker.succeeded();
                if is_of_another_server(error) {
                    self.link.forget();
                }
            }
            Err(_) => {
                if self.breaker.failed() {
                    // A server that was stopped keeps its connections open for ever.
                    self.link.forget();
                }
            }
        }
        outcome
    }

    /// The next command connects anew.
    pub(crate) fn forget(&self) {
        self.link.forget();
    }
}

/// Whether the server is there, and only will not.
fn is_an_answer(error: &RedisError) -> bool {
    !(error.is_timeout() || crate::link::is_broken(error))
}

/// Whether this server is no longer the one to ask, or lets us in no longer: a new connection may lead to the one
/// that is. What is refused for want of room or while it loads would be refused on any.
fn is_of_another_server(error: &RedisError) -> bool {
    const ELSEWHERE: [&str; 7] =
        ["READONLY", "MASTERDOWN", "NOREPLICAS", "MOVED", "CLUSTERDOWN", "NOAUTH", "WRONGPASS"];
    error.code().is_some_and(|code| ELSEWHERE.contains(&code))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::server::Server;

    #[tokio::test]
    async fn after_a_few_that_were_late_nobody_waits() {
        // It takes connections, and answers nothing.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        let place = Place::new("test", Link::new(Server::Single(Box::new(client)), None));
        let ask = || {
            let ping = |mut connection| async move {
                redis::cmd("PING").query_async::<String>(&mut connection).await
            };
            place.run(Duration::from_millis(20), ping)
        };
        for _ in 0..5 {
            assert!(ask().await.is_err_and(|failure| failure.is_late()));
        }
        assert!(matches!(ask().await, Err(Failure::Unconnected)));
    }
}
