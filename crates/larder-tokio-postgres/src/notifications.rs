//! Listens for the notifications of a channel.

use std::{sync::Arc, time::Duration};

use futures_util::future::poll_fn;
use larder_core::store::BoxFuture;
use larder_sql::driver::Notifications;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tokio_postgres::{AsyncMessage, Client, Connection, Socket};

use crate::Connect;

/// A connection that listens. It is closed when this is dropped.
pub(super) struct Listening {
    _client: Client,
    notified: mpsc::Receiver<()>,
}

/// Listens on a new connection.
pub(super) async fn listen<S>(
    client: Client,
    mut connection: Connection<Socket, S>,
    channel: &str,
) -> Result<Listening, tokio_postgres::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // One notification that waits stands for all that follow.
    let (notify, notified) = mpsc::channel(1);
    let forward = async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if matches!(message, AsyncMessage::Notification(_)) {
                let _waiting_already = notify.try_send(());
            }
        }
    };
    drop(tokio::spawn(forward));
    client.batch_execute(&format!("LISTEN \"{channel}\"")).await?;
    Ok(Listening { _client: client, notified })
}

/// The notifications of a channel, over a connection that is opened again when it is lost.
pub(super) struct NotificationChannel {
    connect: Arc<dyn Connect>,
    channel: &'static str,
    listening: Option<Listening>,
}

impl NotificationChannel {
    pub(super) fn new(
        connect: Arc<dyn Connect>,
        channel: &'static str,
        listening: Listening,
    ) -> Self {
        Self { connect, channel, listening: Some(listening) }
    }
}

impl Notifications for NotificationChannel {
    fn next(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            match &mut self.listening {
                Some(listening) => {
                    if listening.notified.recv().await.is_none() {
                        self.listening = None;
                    }
                }
                None => {
                    tokio::time::sleep(AFTER_A_LOSS).await;
                    self.listening = self.connect.listen(self.channel).await.ok();
                }
            }
        })
    }
}

const AFTER_A_LOSS: Duration = Duration::from_millis(200);
