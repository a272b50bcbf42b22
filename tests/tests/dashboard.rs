//! The dashboard of the shop, in a browser.

use std::path::{Path, PathBuf};

use clap::Parser as _;
use tests::browser::{Browser, ENTER, RIGHT};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const TOKEN: &str = "a-token-for-the-dashboard";

fn shot(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/screenshots").join(name)
}

/// The shop on a free port.
struct Shop {
    port: u16,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Shop {
    async fn open() -> (Self, larder::Larder) {
        let flags = ["shop", "--products", "200", "--admin-token", TOKEN];
        let app = shop::App::open(&shop::Options::parse_from(flags)).await.unwrap();
        let larder = app.larder().clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            axum::serve(listener, shop::router(app)).await.unwrap();
        });
        (Self { port, serving }, larder)
    }

    async fn get(&self, path: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\r\n",
            self.port
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

/// The cells of the row of a table that begins with this text.
async fn row(browser: &Browser, table: &str, first: &str) -> Vec<String> {
    let script = format!(
        "const row = [...document.querySelectorAll('#{table} tr')].find((row) => row.cells[0].textContent === {});
         return row ? [...row.cells].map((cell) => cell.textContent) : []",
        serde_json::json!(first)
    );
    let cells = browser.run(&script).await;
    cells.as_array().unwrap().iter().map(|cell| cell.as_str().unwrap().to_owned()).collect()
}

/// Signs in, reads, explains and invalidates, by the keyboard alone; the numbers are those of the requests that were sent.
#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_chromium), ignore = "chromium or chromedriver is missing")]
async fn the_dashboard_is_used_by_the_keyboard_and_its_numbers_are_those_of_the_requests() {
    let (shop, larder) = Shop::open().await;
    let browser = Browser::start().await;
    browser.go(&shop.url("/larder/")).await;
    assert!(browser.text("body").await.contains("Admin token"), "{}", browser.text("body").await);
    browser.press("not the token").await;
    browser.press(&ENTER.to_string()).await;
    browser.wait_for("[role=alert]", |text| text.contains("This is not the token")).await;
    browser.press(TOKEN).await;
    browser.press(&ENTER.to_string()).await;
    browser.wait_for("#state", |text| text == "live").await;

    for _ in 0..20 {
        shop.get("/products/7").await;
    }
    for product in 1..=5 {
        shop.get(&format!("/products/{product}")).await;
    }
    shop.get("/search?q=%3Cimg%20src=x%20onerror=alert(1)%3E").await;
    browser.tab_to("#tab-overview").await;
    browser.press(&RIGHT.to_string()).await;
    browser
        .wait_for("#route-rows", |text| text.contains("/products/{id}") && text.contains("/search"))
        .await;
    let products = row(&browser, "route-rows", "/products/{id}").await;
    assert_eq!(products[..4], ["/products/{id}", "pages", "25", "76.0 %"], "{products:?}");

    // A name with markup is text.
    browser.press(&RIGHT.to_string()).await;
    browser.tab_to("#entry-form button").await;
    browser.press(&ENTER.to_string()).await;
    browser.wait_for("#entry-rows", |text| text.contains("onerror")).await;
    assert_eq!(
        browser.run("return document.querySelectorAll('main img, main script').length").await,
        0
    );

    browser.tab_to("#tab-entries").await;
    browser.press(&RIGHT.to_string()).await;
    browser.tab_to("#explain-form [name=url]").await;
    browser.press(&shop.url("/products/7")).await;
    browser.press(&ENTER.to_string()).await;
    let explained = browser.wait_for("#explanations", |text| text.contains("Outcome")).await;
    assert!(explained.contains("hit The stored response is served."), "{explained}");
    assert!(explained.contains("sql:main:products:7"), "{explained}");

    let before = larder.stats().invalidations;
    browser.tab_to("#tab-explain").await;
    browser.press(&RIGHT.to_string().repeat(2)).await;
    let hot = browser.wait_for("#hot-rows", |text| text.contains("/products/7")).await;
    assert!(hot.lines().next().unwrap().contains("product"), "the hottest key: {hot}");
    browser.press(&RIGHT.to_string()).await;
    browser.wait_for("#advice-cards", |text| !text.is_empty()).await;
    browser.press(&RIGHT.to_string()).await;
    browser.tab_to("#invalidate-form [name=value]").await;
    browser.press("product:7").await;
    browser.tab_to("#invalidate-form [name=because]").await;
    browser.press("<b>a test</b>").await;
    browser.press(&ENTER.to_string()).await;
    let preview =
        browser.wait_for("#preview", |text| text.contains("entries of this process")).await;
    assert!(preview.contains("2 entries of this process"), "the value and its page: {preview}");
    assert_eq!(larder.stats().invalidations, before, "a preview invalidates nothing");
    browser.press(&ENTER.to_string()).await;
    browser.wait_for("#preview", |text| text.contains("the invalidation is logged")).await;
    assert_eq!(larder.stats().invalidations, before + 1);

    browser.tab_to("#tab-invalidate").await;
    browser.press(&RIGHT.to_string()).await;
    let past = browser.wait_for("#past", |text| text.contains("product:7")).await;
    assert!(past.contains("<b>a test</b>") && past.contains("full token"), "{past}");
    browser.wait_for("#audit", |text| text.contains("invalidate") && text.contains("login")).await;

    for scheme in ["light", "dark"] {
        browser.prefer(scheme).await;
        browser.run("document.getElementById('tab-overview').click()").await;
        browser.screenshot(&shot(&format!("dashboard-{scheme}.png"))).await;
    }
    browser.run("document.getElementById('logout').click()").await;
    browser.wait_for("body", |text| text.contains("Admin token")).await;
}
