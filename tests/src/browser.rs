//! A headless Chromium, driven through chromedriver.
//!
//! The W3C WebDriver protocol is JSON over HTTP, and the tests have an HTTP client. A client library would bring 25 crates
//! for the few commands here.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

/// A browser window. The processes end with it, also if a test fails.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    /// The process id of the browser, which does not end with its driver.
    process: u64,
    /// Its profile.
    profile: PathBuf,
}

impl Drop for Browser {
    fn drop(&mut self) {
        if self.process > 0 {
            let process = self.process.to_string();
            drop(Command::new("kill").arg(process).stderr(Stdio::null()).status());
        }
        drop(self.driver.kill());
        drop(self.driver.wait());
        // The last files are written while it ends.
        for _ in 0..100 {
            if std::fs::remove_dir_all(&self.profile).is_ok() || !self.profile.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Browser {
    /// Starts a browser with a window of 1280 × 900.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let profile =
            std::env::temp_dir().join(format!("larder-browser-{}-{port}", std::process::id()));
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut browser = Self { driver, port, session: String::new(), process: 0, profile };
        let profile = format!("--user-data-dir={}", browser.profile.display());
        let args = [
            &*profile,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1280,900",
        ];
        let options = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": { "args": args } } } });
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(began.elapsed() < crate::PATIENCE, "chromedriver does not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let session = browser.send("POST", "/session", &options).await;
        browser.session = session["sessionId"].as_str().unwrap().to_owned();
        browser.process = session["capabilities"]["goog:processID"].as_u64().unwrap();
        browser
    }

    /// Sends a command, and returns its value.
    async fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "GET" { String::new() } else { body.to_string() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        );
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let body = tokio::time::timeout(crate::PATIENCE, content_of(stream)).await;
        let body = body.unwrap_or_else(|_| panic!("chromedriver does not answer {method} {path}"));
        let json: Value = serde_json::from_slice(&body).unwrap();
        let value = json["value"].clone();
        assert!(value.get("error").is_none(), "{method} {path}: {value}");
        value
    }

    async fn command(&self, method: &str, path: &str, body: Value) -> Value {
        self.send(method, &format!("/session/{}{path}", self.session), &body).await
    }

    /// Opens a URL.
    pub async fn go(&self, url: &str) {
        self.command("POST", "/url", json!({ "url": url })).await;
    }

    /// Runs a script in the page, and returns what it returns.
    pub async fn run(&self, script: &str) -> Value {
        self.command("POST", "/execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// Returns the text of the first element that matches.
    pub async fn text(&self, selector: &str) -> String {
        let script = format!("return document.querySelector({})?.innerText ?? ''", json!(selector));
        self.run(&script).await.as_str().unwrap_or_default().to_owned()
    }

    /// Presses keys, one after the other, in the element that has the focus. A character of the private area stands for a key:
    /// see [`TAB`], [`ENTER`], [`RIGHT`].
    pub async fn press(&self, keys: &str) {
        let keys: Vec<_> = keys
            .chars()
            .flat_map(|key| {
                ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }))
            })
            .collect();
        let actions = json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": keys }] });
        self.command("POST", "/actions", actions).await;
    }

    /// Presses the tabulator until the element that matches has the focus.
    ///
    /// # Panics
    ///
    /// If no number of presses reaches it.
    pub async fn tab_to(&self, selector: &str) {
        for _ in 0..40 {
            self.press(&TAB.to_string()).await;
            let script = format!("return document.activeElement.matches({})", json!(selector));
            if self.run(&script).await == json!(true) {
                return;
            }
        }
        panic!("{selector} cannot be reached by the keyboard");
    }

    /// Waits until the text of the first element that matches satisfies `is`.
    ///
    /// # Panics
    ///
    /// If it does not within a minute.
    pub async fn wait_for(&self, selector: &str, is: impl Fn(&str) -> bool) -> String {
        let began = Instant::now();
        loop {
            let text = self.text(selector).await;
            if is(&text) {
                return text;
            }
            assert!(began.elapsed() < crate::PATIENCE, "{selector} is {text:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Shows pages as in this colour scheme: `light` or `dark`.
    pub async fn prefer(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        let body =
            json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } });
        self.command("POST", "/goog/cdp/execute", body).await;
    }

    /// Saves a screenshot.
    ///
    /// # Panics
    ///
    /// If it cannot be written.
    pub async fn screenshot(&self, file: &Path) {
        let body = json!({ "cmd": "Page.captureScreenshot", "params": { "format": "png" } });
        let image = self.command("POST", "/goog/cdp/execute", body).await;
        let bytes = decoded(image["data"].as_str().unwrap());
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
}

/// Returns the content of an answer. chromedriver does not close its connections.
async fn content_of(stream: TcpStream) -> Vec<u8> {
    let mut stream = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
    }
    let mut content = vec![0; length];
    stream.read_exact(&mut content).await.unwrap();
    content
}

/// Decodes base64.
fn decoded(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

/// The tabulator key.
pub const TAB: char = '\u{e004}';
/// The enter key.
pub const ENTER: char = '\u{e007}';
/// The right arrow key.
pub const RIGHT: char = '\u{e014}';
