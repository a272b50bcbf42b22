//! The dashboard of the shop, in a browser.

use std::path::{Path, PathBuf};

use tests::{
    browser::{Browser, ENTER, RIGHT},
    until,
};

use crate::running_shop::{Shop, TOKEN};

fn shot(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/screenshots").join(name)
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
    let (shop, larder) = Shop::open(&[]).await;
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

/// The bar of the shop tells how a page was served, and shows that each page with a product is new after its price changed.
#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_chromium), ignore = "chromium or chromedriver is missing")]
async fn the_bar_of_the_shop_shows_a_change_of_a_price_on_every_page() {
    let (shop, _) = Shop::open(&[]).await;
    let browser = Browser::start().await;
    browser.go(&shop.url("/products/7")).await;
    browser.wait_for("#bar", |text| text.contains("made for you")).await;
    browser.go(&shop.url("/products/7")).await;
    let bar = browser.wait_for("#bar", |text| text.contains("depends on")).await;
    assert!(bar.contains("from the cache in") && bar.contains("instead of"), "{bar}");
    let before = browser.text(".price").await;
    browser.run("document.querySelector('#bar .buttons button:nth-child(2)').click()").await;
    let result = browser.wait_for("#bar .result", |text| text.contains("costs")).await;
    let after = browser.text(".price").await;
    assert_ne!(before, after);
    assert!(
        result.contains(&format!("Product 7 costs {after} now, and {before} before.")),
        "{result}"
    );
    for page in ["/products/7", "/category/"] {
        let row =
            result.lines().find(|line| line.contains(page)).unwrap_or_else(|| panic!("{result}"));
        assert!(row.contains("fwd=") && row.ends_with("hit"), "{row}");
    }
    browser.screenshot(&shot("bar.png")).await;

    let (plain, _) = Shop::open(&["--plain"]).await;
    browser.go(&plain.url("/products/7")).await;
    assert_eq!(browser.run("return document.querySelectorAll('#bar').length").await, 0);
    let refused = plain.request("POST", "/bar/products/7/price", "").await;
    assert!(refused.starts_with("HTTP/1.1 404"), "{refused}");
    let foreign = shop.request("POST", "/bar/products/7/price", "").await;
    assert!(foreign.starts_with("HTTP/1.1 403"), "a form of another site: {foreign}");
    let rebound = "X-Shop-Bar: 1\r\nHost: evil.example\r\n";
    let rebound = shop.request("POST", "/bar/products/7/price", rebound).await;
    assert!(!rebound.starts_with("HTTP/1.1 200"), "a name of another site: {rebound}");
}

/// The numbers of the dashboard are those that a load generator has sent.
#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_chromium), ignore = "chromium or chromedriver is missing")]
async fn the_dashboard_agrees_with_a_load_generator() {
    let (shop, larder) = Shop::open(&["--traffic", "200"]).await;
    let browser = Browser::start().await;
    browser.go(&shop.url("/larder/")).await;
    browser.press(TOKEN).await;
    browser.press(&ENTER.to_string()).await;
    browser.wait_for("#state", |text| text == "live").await;
    until("there were enough requests", || async { shop.sent().values().sum::<u64>() > 1_500 })
        .await;
    browser.prefer("light").await;
    browser.screenshot(&shot("dashboard.png")).await;
    shop.stop_traffic().await;
    let sent = shop.sent();
    let of = |route: &str| {
        let of =
            |outcome: &str| sent.get(&format!("{route} {outcome}")).copied().unwrap_or_default();
        (of("hit"), of("other"))
    };
    browser.run("document.getElementById('tab-routes').click()").await;
    for route in ["/products/{id}", "/category/{slug}", "/search"] {
        let (hits, others) = of(route);
        let requests = thousands(hits + others);
        let ratio = format!("{:.1} %", 100.0 * hits as f64 / (hits + others) as f64);
        let mut cells = Vec::new();
        for _ in 0..100 {
            cells = row(&browser, "route-rows", route).await;
            if cells.get(2).is_some_and(|cell| *cell == requests) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert_eq!(cells.get(2), Some(&requests), "{route}: {cells:?}, {sent:?}");
        assert_eq!(cells.get(3), Some(&ratio), "{route}: {cells:?}, {sent:?}");
    }
    let changes = of("PUT /api/products/{id}");
    assert!(larder.stats().invalidations >= changes.0 + changes.1, "{changes:?}");
}

fn thousands(number: u64) -> String {
    match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", number / 1000, number % 1000),
    }
}
