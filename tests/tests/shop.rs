//! The shop, over real sockets, HTTP/1.1 and HTTP/2.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use clap::Parser;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{io::AsyncWriteExt as _, net::TcpListener};

const TOKEN: &str = "let-me-in-with-this";

struct Shop {
    address: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn cache_status(&self) -> &str {
        self.headers.get(header::CACHE_STATUS).map_or("", |value| value.to_str().unwrap())
    }
}

impl Shop {
    async fn open(http2: bool) -> Self {
        Self::open_on("sqlite::memory:", http2).await
    }

    async fn open_on(database: &str, http2: bool) -> Self {
        let flags = ["shop", "--products", "200", "--admin-token", TOKEN, "--database", database];
        let app = shop::App::open(&shop::Options::parse_from(flags)).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            axum::serve(listener, shop::router(app)).await.unwrap();
        });
        let client = Client::builder(TokioExecutor::new()).http2_only(http2).build_http();
        Self { address, client, serving }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        fields: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let mut request =
            Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body.to_owned())).unwrap();
        let (head, body) = self.client.request(request).await.unwrap().into_parts();
        let text = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&text).into_owned();
        Answer { status: head.status, headers: head.headers, text }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    async fn change(&self, id: u32, change: &str) -> Answer {
        let bearer = format!("Bearer {TOKEN}");
        let fields = [("authorization", &*bearer), ("content-type", "application/json")];
        self.send(Method::PUT, &format!("/api/products/{id}"), &fields, change).await
    }
}

#[tokio::test]
async fn a_page_is_stored_revalidated_and_filled_anew_after_a_price_change() {
    for http2 in [false, true] {
        let shop = Shop::open(http2).await;
        let first = shop.get("/products/7").await;
        assert!(first.cache_status().ends_with("stored"), "{}", first.cache_status());
        let second = shop.get("/products/7").await;
        assert!(second.cache_status().contains("hit"));
        let etag = second.headers[header::ETAG].to_str().unwrap();
        let third = shop.send(Method::GET, "/products/7", &[("if-none-match", etag)], "").await;
        assert_eq!(third.status, StatusCode::NOT_MODIFIED);
        assert_eq!(shop.change(7, r#"{"price_cents": 123456}"#).await.status, StatusCode::OK);
        for path in ["/products/7", "/api/products/7"] {
            let changed = shop.get(path).await;
            assert!(changed.text.contains("1234.56") || changed.text.contains("123456"), "{path}");
        }
    }
}

/// All pages that show product 9.
async fn pages(shop: &Shop) -> [String; 6] {
    let product = shop.get("/api/products/9").await.text;
    let slug = product.split("category_slug\":\"").nth(1).unwrap().split('"').next().unwrap();
    [
        format!("/category/{slug}"),
        "/search?q=no.%209".to_owned(),
        format!("/api/products?category={slug}"),
        "/api/products".to_owned(),
        "/products/9".to_owned(),
        "/".to_owned(),
    ]
}

/// Whether a page shows a price of 777.7 followed by this digit.
async fn shows(shop: &Shop, page: &str, digit: u32) -> bool {
    let text = shop.get(page).await.text;
    text.contains(&format!("7777{digit}")) || text.contains(&format!("777.7{digit}"))
}

async fn every_page_shows_a_new_price_on_the_next_request(shop: &Shop) {
    let pages = pages(shop).await;
    // The products with the highest stock are on the first page.
    shop.change(9, "{\"stock\": 1000}").await;
    for round in 1..=3 {
        for page in &pages {
            shop.get(page).await;
            // The outbox may repeat the invalidation in between.
            tests::until(page, || async { shop.get(page).await.cache_status().contains("hit") })
                .await;
        }
        shop.change(9, &format!("{{\"price_cents\": 7777{round}}}")).await;
        for page in &pages {
            assert!(shows(shop, page, round).await, "{page} in round {round}");
        }
    }
}

#[tokio::test]
async fn every_page_that_has_the_product_shows_the_new_price_on_the_next_request() {
    every_page_shows_a_new_price_on_the_next_request(&Shop::open(false).await).await;
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn on_postgres_every_page_shows_changes_by_the_shop_and_by_psql() {
    let server = tests::postgres::Server::start();
    let shop = Shop::open_on(&server.url(), false).await;
    every_page_shows_a_new_price_on_the_next_request(&shop).await;
    let pages = pages(&shop).await;
    for round in 4..=6 {
        for page in &pages {
            shop.get(page).await;
        }
        let change = format!("UPDATE products SET price_cents = 7777{round} WHERE id = 9");
        server.psql(&change);
        for page in &pages {
            tests::until(page, || shows(&shop, page, round)).await;
        }
    }
    let form = [("content-type", "application/x-www-form-urlencoded")];
    for _ in 0..2 {
        let cart = [form[0], ("cookie", "cart=00000000000000000000000000000001")];
        shop.send(Method::POST, "/cart", &cart, "product_id=9&quantity=2").await;
    }
    assert_eq!(server.psql("SELECT quantity FROM carts"), "4");
    let other = Shop::open_on(&server.url(), false).await;
    let page = other.get("/products/9").await;
    assert!(page.text.contains("777.76"), "{} {}", page.status, page.text);
    other.change(9, "{\"price_cents\": 77779}").await;
    tests::until("the change by psql is shown", || shows(&shop, "/products/9", 9)).await;
}

#[tokio::test]
async fn carts_belong_to_their_owners() {
    let shop = Shop::open(false).await;
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let added = shop.send(Method::POST, "/cart", &form, "product_id=3").await;
    assert_eq!(added.status, StatusCode::SEE_OTHER);
    let cookie = added.headers[header::SET_COOKIE].to_str().unwrap().split(';').next().unwrap();
    let own = shop.send(Method::GET, "/cart", &[("cookie", cookie)], "").await;
    assert!(own.text.contains("No. 3<"));
    assert!(!shop.get("/cart").await.text.contains("No. 3<"));
    // Visitors with and without a cookie share the pages that are the same for both.
    shop.get("/products/3").await;
    let with_cookie = shop.send(Method::GET, "/products/3", &[("cookie", cookie)], "").await;
    assert!(with_cookie.cache_status().contains("hit"));
    assert!(!with_cookie.headers.contains_key(header::SET_COOKIE));
}

#[tokio::test]
async fn invalid_requests_get_explanatory_errors() {
    let shop = Shop::open(false).await;
    assert_eq!(shop.send(Method::PUT, "/api/products/1", &[], "{}").await.status, 401);
    let bad = shop.change(1, r#"{"stock": -1}"#).await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    assert!(bad.text.contains("stock is -1, allowed is 0 to 1000000000"));
    assert_eq!(shop.change(4_000_000, r#"{"stock": 1}"#).await.status, StatusCode::NOT_FOUND);
    assert_eq!(shop.get("/products/4000000").await.status, StatusCode::NOT_FOUND);
    assert_eq!(shop.get("/category/books?page=0").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(shop.get("/healthz").await.text, "ok\n");
}

#[tokio::test]
async fn hostile_paths_do_not_reach_the_entries_of_others() {
    let shop = Shop::open(false).await;
    let page = shop.get("/products/5").await.text;
    for path in ["/products/5%2f", "//products/5", "/products/5;.css", "/products/5/.css"] {
        let hostile = shop.get(path).await;
        assert_ne!(hostile.status, StatusCode::OK, "{path}");
    }
    let spelled = shop.get("/products/%35").await;
    assert!(!spelled.cache_status().contains("hit"), "two spellings are two entries");
    assert_eq!(shop.get("/products/5").await.text, page);
}

#[tokio::test]
async fn a_stampede_asks_the_database_once() {
    let shop = std::sync::Arc::new(Shop::open(false).await);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let shop = std::sync::Arc::clone(&shop);
        asking.spawn(async move { shop.get("/products/11").await.status });
    }
    while let Some(status) = asking.join_next().await {
        assert_eq!(status.unwrap(), StatusCode::OK);
    }
    let stats = tokio::time::timeout(Duration::from_secs(5), shop.get("/stats")).await.unwrap();
    assert!(stats.text.contains("\"misses\":1,"), "{}", stats.text);
}

async fn opened(flags: &[&str]) -> Result<shop::App, String> {
    let flags = ["shop"].iter().chain(flags);
    let options = shop::Options::try_parse_from(flags).map_err(|error| error.to_string())?;
    shop::App::open(&options).await.map_err(|error| error.to_string())
}

/// Regression: a client that never finished its request kept the shop from stopping.
#[tokio::test]
async fn the_shop_stops_although_a_client_does_not_finish() {
    let app = opened(&["--products", "1"]).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut half = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    let ended = shop::serve(listener, app, async {}, Duration::ZERO);
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it ends").unwrap();
}

#[tokio::test]
async fn without_a_cache_there_is_none() {
    let app = opened(&["--products", "20", "--no-cache"]).await.unwrap();
    let larder = app.larder().clone();
    let router = shop::router(app);
    for path in ["/", "/", "/products/1", "/products/1", "/api/products/1"] {
        let ask = Request::get(path).body(axum::body::Body::empty()).unwrap();
        let answer = tower::ServiceExt::oneshot(router.clone(), ask).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        assert!(!answer.headers().contains_key(header::CACHE_STATUS), "{path}");
        // A product of the API has the revision of its row.
        let has_revision = path.starts_with("/api/");
        assert_eq!(answer.headers().contains_key(header::ETAG), has_revision, "{path}");
    }
    assert!(larder.stats().caches.iter().all(|cache| cache.total.hits == 0));
    assert_eq!(larder.stats().memory.entries, 0);
}

#[tokio::test]
async fn harmful_flags_are_refused_and_no_error_shows_a_password() {
    assert!(
        opened(&["--admin-token", ""]).await.is_err(),
        "an empty token would admit every client"
    );
    let error = opened(&["--database", "mysql://root:secret@db/shop"]).await.unwrap_err();
    assert!(!error.contains("secret") && error.contains("mysql://"), "{error}");
}

#[tokio::test]
async fn a_change_of_an_old_revision_is_refused_and_a_sold_product_shows_at_once() {
    let shop = Shop::open(false).await;
    let bearer = format!("Bearer {TOKEN}");
    let change = async |revision: &str, stock: u32| {
        let fields = [
            ("authorization", &*bearer),
            ("content-type", "application/json"),
            ("if-match", revision),
        ];
        let change = format!("{{\"stock\": {stock}}}");
        shop.send(Method::PUT, "/api/products/7", &fields, &change).await
    };
    let first = shop.get("/api/products/7").await.headers[header::ETAG].clone();
    let changed = change(first.to_str().unwrap(), 5).await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.text);
    let second = changed.headers[header::ETAG].clone();
    assert_eq!(change(first.to_str().unwrap(), 6).await.status, StatusCode::PRECONDITION_FAILED);
    assert!(shop.get("/products/7").await.text.contains("5 in stock"));
    assert_eq!(shop.get("/api/products/7").await.headers[header::ETAG], second);
    assert_eq!(change(second.to_str().unwrap(), 0).await.status, StatusCode::OK);
    assert!(shop.get("/products/7").await.text.contains("sold out"));
}

#[tokio::test]
async fn views_are_counted_at_once_and_leave_the_page_in_the_cache() {
    let shop = Shop::open(false).await;
    shop.get("/products/7").await;
    for n in 1..=20 {
        let views = shop.send(Method::POST, "/products/7/views", &[], "").await;
        assert_eq!(views.text, format!("{{\"product\":7,\"views\":{n}}}"));
        assert!(shop.get("/products/7").await.cache_status().contains("hit"), "view {n}");
    }
    let missing = shop.send(Method::POST, "/products/999/views", &[], "").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_page_can_be_purged_by_the_admin() {
    let shop = Shop::open(false).await;
    for page in ["/products/7", "/products/8"] {
        shop.get(page).await;
        assert!(shop.get(page).await.cache_status().contains("hit"));
    }
    let purge = async |fields: &[(&str, &str)], body: &str| {
        shop.send(Method::POST, "/api/purge", fields, body).await.status
    };
    let bearer = format!("Bearer {TOKEN}");
    let admin = [("authorization", &*bearer), ("content-type", "application/json")];
    assert_eq!(purge(&admin[1..], r#"{"path": "/products/7"}"#).await, StatusCode::UNAUTHORIZED);
    assert_eq!(purge(&admin, r#"{"path": "products/7"}"#).await, StatusCode::BAD_REQUEST);
    assert!(shop.get("/products/7").await.cache_status().contains("hit"));
    assert_eq!(purge(&admin, r#"{"path": "/products/7"}"#).await, StatusCode::NO_CONTENT);
    assert!(!shop.get("/products/7").await.cache_status().contains("hit"));
    assert!(shop.get("/products/8").await.cache_status().contains("hit"));
}

/// The hit ratio of the first thousand requests after a start, without warming and with the pages of the run before.
#[tokio::test]
async fn a_shop_that_is_warmed_begins_with_the_hit_ratio_of_one_that_runs() {
    let open = async || opened(&["--products", "2000"]).await.unwrap();
    // The recorded trace: products by Zipf's law, with some lists.
    let trace: Vec<String> = {
        let keys = larder_testkit::SeededRng::new(11);
        let weights: Vec<f64> = (1..=2_000).map(|rank| 1.0 / f64::from(rank)).collect();
        let sum: f64 = weights.iter().sum();
        let path = || {
            let mut left = keys.roll(1_000_000) as f64 / 1e6 * sum;
            let rank = weights.iter().position(|weight| {
                left -= weight;
                left < 0.0
            });
            match keys.roll(10) {
                0 => "/".to_owned(),
                _ => format!("/products/{}", 1 + rank.unwrap_or_default() * 7 % 2_000),
            }
        };
        (0..7_000).map(|_| path()).collect()
    };
    let visit = async |app: &shop::App, paths: &[String]| {
        let router = shop::router(app.clone());
        let before = app.larder().stats().cache("pages").map_or(0, |pages| pages.total.hits);
        for path in paths {
            let request = Request::get(path).header("host", "shop.example");
            let request = request.body(axum::body::Body::empty()).unwrap();
            let response = tower::ServiceExt::oneshot(router.clone(), request).await.unwrap();
            drop(response.into_body().collect().await);
        }
        let hits = app.larder().stats().cache("pages").unwrap().total.hits - before;
        hits as f64 / paths.len() as f64
    };
    let (old, cold, warm) = (open().await, open().await, open().await);
    visit(&old, &trace[..5_000]).await;
    let steady = visit(&old, &trace[5_000..6_000]).await;
    let after_the_deploy = &trace[6_000..];
    let without = visit(&cold, after_the_deploy).await;
    let hot = larder::warming::HotUrls::of(old.larder(), 5_000);
    let app = larder::warming::AppHandle::axum(shop::router(warm.clone()));
    let report = larder::warming::Warmer::new(warm.larder(), app).warm(hot).await;
    assert_eq!(report.failed, 0, "{report}");
    let with = visit(&warm, after_the_deploy).await;
    println!(
        "hit ratio of the first 1,000 requests: {with:.3} warmed ({report}), {without:.3} not warmed, {steady:.3} in steady state"
    );
    assert!(with >= 0.9 * steady && without < 0.9 * steady, "{with} {without} {steady}");
}

#[tokio::test]
async fn the_json_api_reports_errors_in_json() {
    let shop = Shop::open(false).await;
    for (path, status) in [
        ("/api/products?page=", StatusCode::OK),
        ("/api/products?category=&page=1", StatusCode::OK),
        ("/api/products?page=x", StatusCode::BAD_REQUEST),
        ("/api/products/abc", StatusCode::BAD_REQUEST),
        ("/api/products/0", StatusCode::NOT_FOUND),
    ] {
        let answer = shop.get(path).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
        assert!(answer.headers[header::CONTENT_TYPE].to_str().unwrap().contains("json"), "{path}");
    }
    let all = shop.get("/api/products?category=").await;
    assert!(!all.text.contains("\"total\":0"), "{}", all.text);
    let page = shop.get("/products/abc").await;
    assert!(page.status == StatusCode::NOT_FOUND && page.text.contains("<html"), "{}", page.text);
}
