//! The shop on a free port.

use std::collections::BTreeMap;

use clap::Parser as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

pub(crate) const TOKEN: &str = "a-token-for-the-dashboard";

/// A shop that stops at the end of the test.
pub(crate) struct Shop {
    pub(crate) port: u16,
    sent: Option<shop::Sent>,
    serving: JoinHandle<()>,
    traffic: shop::TrafficSwitch,
    _stop: oneshot::Sender<()>,
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Shop {
    pub(crate) async fn open(flags: &[&str]) -> (Self, larder::Larder) {
        let all = ["shop", "--products", "200", "--admin-token", TOKEN];
        let app =
            shop::App::open(&shop::Options::parse_from(all.iter().chain(flags))).await.unwrap();
        let (larder, sent, traffic) =
            (app.larder().clone(), app.sent().cloned(), app.traffic_switch());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(async move {
            let until = async { drop(stopped.await) };
            shop::serve(listener, app, until, std::time::Duration::ZERO).await.unwrap();
        });
        (Self { port, sent, serving, traffic, _stop: stop }, larder)
    }

    /// Returns what the traffic has sent, by route and outcome.
    pub(crate) fn sent(&self) -> BTreeMap<String, u64> {
        self.sent.as_ref().map(shop::Sent::counts).unwrap_or_default()
    }

    /// Stops the traffic, and waits until all of its requests are answered.
    pub(crate) async fn stop_traffic(&self) {
        self.traffic.stop().await;
    }

    pub(crate) async fn get(&self, path: &str) -> String {
        self.request("GET", path, "").await
    }

    /// Sends a request, and returns the response with its head.
    pub(crate) async fn request(&self, method: &str, path: &str, fields: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\nContent-Length: 0\r\n{fields}\r\n",
            self.port
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await.unwrap();
        String::from_utf8_lossy(&response).into_owned()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}
