//! Cached queries: a hit compared with the database and with a plain moka, the analysis of statements, and the shop
//! under traffic with writes, each response checked.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    http::{Request, header},
};
use benches::{
    Row,
    allocations::{self, Counting},
    median, report,
};
use clap::Parser as _;
use futures_util::FutureExt as _;
use larder::{
    Larder,
    sql::{Db, Statement},
};
use larder_testkit::SeededRng;
use serde::{Deserialize, Serialize};
use tower::ServiceExt as _;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Product {
    id: i64,
    name: String,
    description: String,
    price_cents: i64,
}

fn row(case: &str, (ours, baseline): (f64, f64), budget: Option<f64>, unit: &'static str) -> Row {
    let ratio = if baseline > 0.0 { ours / baseline } else { ours };
    Row { case: case.into(), ours, baseline, ratio, budget, unit }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let larder = Larder::builder().build().expect("the defaults are valid");
    let db = database(&larder).await;
    report("A cached query of 20 rows", &hits(&db).await);
    report("The analysis of a statement", &analysis(&db));
    report("The shop, Zipf, 1 % writes, every answer checked", &traffic().await);
    report("A price that another client changes in PostgreSQL", &elsewhere().await);
}

async fn database(larder: &Larder) -> Db {
    let options = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
    let pool = options.connect("sqlite::memory:").await.expect("memory is there");
    let schema = "CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, description TEXT, price_cents INTEGER)";
    sqlx::raw_sql(schema).execute(&pool).await.expect("the schema is valid");
    for id in 1..=1000_i64 {
        let insert = sqlx::query("INSERT INTO products VALUES (?, ?, ?, ?)");
        let text = "Made of plain materials, and it lasts longer than people expect. ".repeat(3);
        let insert = insert.bind(id).bind(format!("Product {id}")).bind(text).bind(id * 7);
        insert.execute(&pool).await.expect("it fits");
    }
    larder::sqlx::sqlite(pool).cached(larder).await.expect("it answers")
}

const LIST: &str = "SELECT id, name, description, price_cents FROM products WHERE price_cents > ? ORDER BY id LIMIT ?";

/// Runs the cases of each round in turn, to compare them pairwise.
async fn hits(db: &Db) -> [Row; 3] {
    const TURNS: u32 = 20_000;
    let list = |rows: i64| db.query(LIST).bind(70).bind(rows);
    let moka = moka::sync::Cache::new(1000);
    moka.insert(7_u64, list(20).fetch_all::<Product>().await.expect("it is cached"));
    let (mut ours, mut database, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..15 {
        let began = Instant::now();
        for _ in 0..TURNS {
            drop(list(20).fetch_all::<Product>().await.expect("it is cached"));
        }
        ours.push(began.elapsed().as_secs_f64() * 1e6 / f64::from(TURNS));
        let began = Instant::now();
        for _ in 0..100 {
            drop(list(20).uncached().fetch_all::<Product>().await.expect("it answers"));
        }
        database.push(began.elapsed().as_secs_f64() * 1e6 / 100.0);
        let began = Instant::now();
        for _ in 0..TURNS {
            drop(std::hint::black_box(moka.get(&7)));
        }
        bare.push(began.elapsed().as_secs_f64() * 1e6 / f64::from(TURNS));
    }
    let (ours, database, bare) = (median(ours), median(database), median(bare));
    list(500).fetch_all::<Product>().await.expect("it is cached");
    let counted = |rows: i64| {
        allocations::count(|| {
            let hit = list(rows).fetch_all::<Product>().now_or_never();
            drop(hit.expect("a hit waits for nothing"));
        }) as f64
    };
    [
        Row {
            budget: Some(1.0),
            ratio: ours,
            ..row(
                "a hit (budget in microseconds), beside in-memory SQLite",
                (ours, database),
                None,
                "us",
            )
        },
        row("the same beside a bare moka get", (ours, bare), None, "us"),
        row(
            "allocations of a hit of 500 rows, beside 20",
            (counted(500), counted(20)),
            Some(1.0),
            "",
        ),
    ]
}

fn analysis(db: &Db) -> [Row; 2] {
    const TURNS: u32 = 1_000;
    let text = |number: u32| {
        format!(
            "SELECT p.*, c.name AS category{number} FROM products p JOIN products c ON c.id = p.id \
             WHERE p.id = ? AND (p.price_cents > ? OR p.name LIKE 'a%') ORDER BY p.id LIMIT 24"
        )
    };
    let statements: Vec<_> =
        (0..TURNS).map(|number| Statement::new(text(number)).bind(1).bind(2)).collect();
    let of = |statement: &Statement| {
        let began = Instant::now();
        std::hint::black_box(db.is_cached(statement));
        began.elapsed().as_secs_f64() * 1e6
    };
    let first = median(statements.iter().map(of).collect());
    let again = {
        let began = Instant::now();
        for _ in 0..100 {
            for statement in &statements[..100] {
                std::hint::black_box(db.is_cached(statement));
            }
        }
        began.elapsed().as_secs_f64() * 1e6 / 10_000.0
    };
    [
        Row { budget: Some(50.0), ratio: first, ..row("at first sight", (first, 0.0), None, "us") },
        Row { budget: Some(0.2), ratio: again, ..row("after that", (again, 0.0), None, "us") },
    ]
}

/// Measures from the end of an `UPDATE` by another connection until each page with the product shows the price.
async fn elsewhere() -> [Row; 2] {
    const ROUNDS: u64 = 300;
    let server = tests::postgres::Server::start();
    let url = server.url();
    let flags =
        ["shop", "--products", "2000", "--admin-token", "a-token-for-benches", "--database", &url];
    let app = shop::App::open(&shop::Options::parse_from(flags)).await.expect("it opens");
    let shop = shop::router(app);
    let shows = async |path: &str, price: &str| {
        let request = Request::get(path).header(header::HOST, "shop.example");
        let request = request.body(Body::empty()).expect("it is valid");
        let answer = shop.clone().oneshot(request).await.expect("it answers");
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.expect("it comes");
        String::from_utf8_lossy(&body).contains(price)
    };
    let other = server.pool().await;
    let pages = ["/products/9", "/api/products/9", "/api/products?page=1", "/search?q=no.%209"];
    let mut took = Vec::new();
    for round in 0..ROUNDS {
        for page in pages {
            shows(page, "").await;
        }
        let cents = 100_000 + round * 7;
        let update = sqlx::query("UPDATE products SET price_cents = $1 WHERE id = 9");
        let cents_bound = i64::try_from(cents).expect("it is small");
        update.bind(cents_bound).execute(&other).await.expect("it may");
        let began = Instant::now();
        for page in pages {
            let price = match page.starts_with("/api") {
                true => format!("\"price_cents\":{cents}"),
                false => format!("€ {}.{:02}", cents / 100, cents % 100),
            };
            while !shows(page, &price).await {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        }
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    let (middle, late) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    [
        row("until all pages show it: median", (middle, 0.0), None, "ms"),
        Row { budget: Some(100.0), ratio: late, ..row("p99", (late, 0.0), None, "ms") },
    ]
}

/// Sends requests as visitors do: mostly products, some lists, few others.
async fn traffic() -> [Row; 2] {
    const PRODUCTS: u64 = 2_000;
    const WARM: u64 = 60_000;
    const REQUESTS: u64 = 120_000;
    let flags = ["shop", "--products", "2000", "--admin-token", "a-token-for-benches"];
    let app = shop::App::open(&shop::Options::parse_from(flags)).await.expect("it opens");
    let larder = app.larder().clone();
    let shop = shop::router(app);
    let send = async |method: &str, path: &str, body: String| {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "shop.example")
            .header(header::AUTHORIZATION, "Bearer a-token-for-benches")
            .header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body)).expect("it is valid");
        let answer = shop.clone().oneshot(request).await.expect("it answers");
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.expect("it comes");
        String::from_utf8_lossy(&body).into_owned()
    };
    let dice = SeededRng::new(5);
    // The k-th most popular of n is requested about 1/k as often as the first.
    let harmonic: f64 = (1..=PRODUCTS).map(|rank| 1.0 / rank as f64).sum();
    let drawn = || {
        let mut left = dice.roll(1 << 32) as f64 / (1_u64 << 32) as f64 * harmonic;
        (1..=PRODUCTS)
            .find(|rank| {
                left -= 1.0 / *rank as f64;
                left <= 0.0
            })
            .unwrap_or(PRODUCTS)
    };
    let mut prices: HashMap<u64, u64> = HashMap::new();
    let hits = || larder.stats().cache("pages").map_or(0, |cache| cache.total.hits);
    let (mut stale, mut asked, mut before) = (0, 0_u64, 0);
    for turn in 0..REQUESTS {
        if turn == WARM {
            (asked, before) = (0, hits());
        }
        let product = drawn();
        if dice.chance(1) {
            let price = 1 + dice.roll(1_000_000);
            let body = format!("{{\"price_cents\": {price}}}");
            send("PUT", &format!("/api/products/{product}"), body).await;
            prices.insert(product, price);
            continue;
        }
        let (path, whole) = match dice.roll(100) {
            0..=1 => ("/".to_owned(), false),
            2..=3 => (format!("/api/products?page={}", 1 + (product - 1) / 24), true),
            4..=39 => (format!("/products/{product}"), false),
            _ => (format!("/api/products/{product}"), true),
        };
        let text = send("GET", &path, String::new()).await;
        asked += 1;
        if let Some(price) = prices.get(&product) {
            let expected = match whole {
                true => format!("\"price_cents\":{price}"),
                false if path == "/" => continue,
                false => format!("€ {}.{:02}", price / 100, price % 100),
            };
            stale += u64::from(!text.contains(&expected));
        }
    }
    let (asked, misses) = (asked as f64, (asked - (hits() - before)) as f64);
    println!("\n{asked} pages asked for, {misses} of them rendered");
    [
        Row {
            budget: Some(0.05),
            ..row("pages that were rendered, of all", (misses, asked), None, "")
        },
        Row {
            budget: Some(0.0),
            ratio: stale as f64,
            ..row("stale answers", (stale as f64, 0.0), None, "")
        },
    ]
}
