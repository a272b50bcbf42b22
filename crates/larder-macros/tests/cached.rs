//! The results that the attributes store, and their keys.
#![allow(clippy::unwrap_used, reason = "a test that fails may say so by an unwrap")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Path, http::Request, routing::get};
use larder::{
    Larder, Policy,
    axum::{FragmentCache, ResponseCacheLayer},
    cached, cached_fragment,
};
use tower::ServiceExt as _;

/// Counts the calls of the original function.
type Calls = Arc<AtomicU32>;

fn count(calls: &Calls) -> u32 {
    calls.fetch_add(1, Ordering::SeqCst) + 1
}

fn calls(calls: &Calls) -> u32 {
    calls.load(Ordering::SeqCst)
}

fn larder() -> Larder {
    Larder::builder().build().unwrap()
}

#[cached(ttl = "1m", tag = "square:{number}", skip(calls))]
async fn square(larder: &Larder, calls: &Calls, number: u64) -> u64 {
    count(calls);
    number * number
}

#[cached(ttl = "1m", skip(calls))]
async fn cube(larder: &Larder, calls: &Calls, number: u64) -> u64 {
    count(calls);
    number * number * number
}

#[tokio::test]
async fn a_result_is_stored_by_its_arguments_and_invalidated_by_its_tag() {
    let (larder, counted) = (larder(), Calls::default());
    for _ in 0..3 {
        assert_eq!(square(&larder, &counted, 3).await, 9);
        assert_eq!(square(&larder, &counted, 4).await, 16);
        assert_eq!(cube(&larder, &counted, 3).await, 27, "another function has another key");
    }
    assert_eq!(calls(&counted), 3);
    let _ = larder.invalidate(("square", 3)).await;
    assert_eq!(square(&larder, &counted, 3).await, 9);
    assert_eq!(square(&larder, &counted, 4).await, 16);
    assert_eq!(calls(&counted), 4);
}

#[cached(ttl = "1m", key = "user:{id}", skip())]
async fn user(larder: &Larder, id: u64) -> Result<String, Arc<std::io::Error>> {
    if id == 0 {
        return Err(std::io::Error::other("no such user"))?;
    }
    Ok(format!("user {id}"))
}

#[tokio::test]
async fn a_key_is_the_name_that_other_calls_have_and_errors_are_not_stored() {
    let larder = larder();
    assert_eq!(user(&larder, 7).await.unwrap(), "user 7");
    let stored = larder.values::<String>(Duration::from_secs(60));
    assert_eq!(stored.get(("user", 7)).await.as_deref().map(String::as_str), Some("user 7"));
    assert_eq!(user(&larder, 0).await.unwrap_err().to_string(), "no such user");
    assert!(!stored.contains(("user", 0)).await);
}

#[cached(ttl = "1m", negative_ttl = "5s", skip(rows))]
async fn find(larder: &Larder, rows: &Calls, name: &str) -> Option<String> {
    let row = count(rows);
    (name != "nobody").then(|| format!("{name} {row}"))
}

#[cached(ttl = "1m", negative_ttl = "5s", skip(rows))]
async fn find_or_fail(larder: &Larder, rows: &Calls, name: &str) -> Result<Option<String>, String> {
    let row = count(rows);
    if name == "broken" {
        return Err(format!("failed {row}"));
    }
    Ok((name != "nobody").then(|| format!("{name} {row}")))
}

#[tokio::test(start_paused = true)]
async fn an_option_is_stored_with_the_negative_lifetime() {
    let (larder, rows) = (larder(), Calls::default());
    for _ in 0..2 {
        assert_eq!(find(&larder, &rows, "nobody").await, None);
        assert_eq!(find(&larder, &rows, "ada").await.as_deref(), Some("ada 2"));
        assert_eq!(find_or_fail(&larder, &rows, "nobody").await, Ok(None));
    }
    assert_eq!(calls(&rows), 3);
    tokio::time::advance(Duration::from_secs(5)).await;
    find(&larder, &rows, "nobody").await;
    find(&larder, &rows, "ada").await;
    assert_eq!(calls(&rows), 4, "only the negative result has expired");
    for expected in ["failed 5", "failed 6"] {
        assert_eq!(find_or_fail(&larder, &rows, "broken").await, Err(expected.to_owned()));
    }
}

/// Two arguments that would join to the same text.
#[cached(ttl = "1m", skip(rows))]
async fn joined(larder: &Larder, rows: &Calls, a: &str, b: &str, c: Option<u32>) -> String {
    format!("{a}|{b}|{c:?}|{}", count(rows))
}

#[tokio::test]
async fn no_separator_in_an_argument_makes_two_calls_one() {
    let (larder, rows) = (larder(), Calls::default());
    let all = [
        ("a:b", "c", None),
        ("a", "b:c", None),
        ("a", "", Some(0)),
        ("a", "", None),
        ("a%3Ab", "c", None),
    ];
    for (a, b, c) in all {
        joined(&larder, &rows, a, b, c).await;
    }
    assert_eq!(calls(&rows), 5);
}

#[cached(ttl = "1m", skip(rows))]
async fn described<T: Send + 'static, const N: usize>(larder: &Larder, rows: &Calls) -> String {
    format!("{} {N} {}", std::any::type_name::<T>(), count(rows))
}

#[tokio::test]
async fn type_parameters_are_part_of_the_key() {
    let (larder, rows) = (larder(), Calls::default());
    described::<u8, 1>(&larder, &rows).await;
    described::<u16, 1>(&larder, &rows).await;
    described::<u8, 2>(&larder, &rows).await;
    assert_eq!(calls(&rows), 3);
    assert_eq!(described::<u8, 1>(&larder, &rows).await, "u8 1 1");
}

#[derive(Clone)]
struct Repository {
    larder: Larder,
    tenant: &'static str,
    calls: Calls,
}

impl Repository {
    #[cached(ttl = "1m", namespace = self.tenant)]
    async fn count(&self, list: u32) -> String {
        format!("{} {list} {}", self.tenant, count(&self.calls))
    }

    #[cached(policy = Policy::ttl(Duration::from_secs(60)).tag("names"), key = "name:{id}")]
    async fn name(&self, id: u32) -> Result<String, String> {
        Ok(format!("name {id} {}", count(&self.calls)))
    }
}

#[tokio::test]
async fn two_repositories_do_not_answer_for_each_other() {
    let (larder, counted) = (larder(), Calls::default());
    let of = |tenant| Repository { larder: larder.clone(), tenant, calls: counted.clone() };
    let (acme, globex) = (of("acme"), of("globex"));
    for _ in 0..2 {
        assert_eq!(acme.count(1).await, "acme 1 1");
        assert_eq!(globex.count(1).await, "globex 1 2");
    }
    assert_eq!(acme.name(1).await.unwrap(), "name 1 3");
    let _ = larder.invalidate("names").await;
    assert_eq!(acme.name(1).await.unwrap(), "name 1 4");
}

#[derive(Clone)]
struct Orders {
    larder: Larder,
    calls: Calls,
}

impl Orders {
    #[cached(ttl = "1m", namespace = "acme")]
    async fn count(&self, list: u32) -> String {
        format!("orders {list} {}", count(&self.calls))
    }
}

#[tokio::test]
async fn methods_of_one_name_and_namespace_differ_by_their_type() {
    let (larder, counted) = (larder(), Calls::default());
    let repository = Repository { larder: larder.clone(), tenant: "acme", calls: counted.clone() };
    assert_eq!(repository.count(1).await, "acme 1 1");
    assert_eq!(Orders { larder, calls: counted }.count(1).await, "orders 1 2");
}

#[cached(ttl = "1m", key = "same")]
async fn one_type(larder: &Larder) -> u32 {
    1
}

#[cached(ttl = "1m", key = "same")]
async fn another_type(larder: &Larder) -> String {
    "one".to_owned()
}

#[tokio::test]
async fn a_function_of_another_type_with_the_same_key_runs_as_without_the_attribute() {
    let larder = larder();
    assert_eq!(one_type(&larder).await, 1);
    assert_eq!(another_type(&larder).await, "one");
}

struct Compiled(u32);

#[cached(ttl = "1m", local, skip(rows))]
async fn compiled(larder: &Larder, rows: &Calls) -> Arc<Compiled> {
    Arc::new(Compiled(count(rows)))
}

#[tokio::test]
async fn a_local_result_need_not_be_known_to_serde() {
    let (larder, rows) = (larder(), Calls::default());
    compiled(&larder, &rows).await;
    assert_eq!(compiled(&larder, &rows).await.0, 1);
}

#[tokio::test]
async fn a_hundred_concurrent_calls_run_the_function_once_and_share_its_error() {
    #[cached(ttl = "1m", skip(rows))]
    async fn failing(larder: &Larder, rows: &Calls) -> Result<u32, Arc<std::io::Error>> {
        let call = count(rows);
        tokio::task::yield_now().await;
        Err(std::io::Error::other(format!("failed {call}")))?
    }
    let (larder, rows) = (larder(), Calls::default());
    let all: Vec<_> = (0..100)
        .map(|_| {
            let (larder, rows) = (larder.clone(), rows.clone());
            tokio::spawn(async move { failing(&larder, &rows).await })
        })
        .collect();
    for failed in all {
        assert!(failed.await.unwrap().is_err());
    }
    assert!(calls(&rows) <= 5, "{}", calls(&rows));
}

#[cached_fragment(ttl = "10m", tag = "product:{id}", shared)]
async fn card(fragments: &FragmentCache, id: u64) -> String {
    format!("<b>product {id}</b>")
}

#[tokio::test]
async fn a_fragment_is_a_part_of_its_page() {
    async fn page(fragments: FragmentCache, Path(_): Path<u64>) -> String {
        format!("<main>{}</main>", card(&fragments, 42).await)
    }
    let larder = larder();
    let app: Router = Router::new()
        .route("/{id}", get(page))
        .layer(ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)));
    let ask = async |path: &str| {
        let request = Request::get(path).header("host", "shop.example").body(Body::empty());
        app.clone().oneshot(request.unwrap()).await.unwrap().headers()["cache-status"].clone()
    };
    ask("/1").await;
    ask("/2").await;
    let stats = larder.stats();
    let fragments = stats.cache("fragments").unwrap();
    assert_eq!((fragments.total.misses, fragments.total.hits), (1, 1));
    let _ = larder.invalidate(("product", 42)).await;
    assert_eq!(
        ask("/1").await,
        "larder; fwd=stale; stored",
        "the page has the tag of the fragment"
    );
}

/// Each misuse is a compile error that names it.
#[test]
fn misuse_is_a_compile_error() {
    trybuild::TestCases::new().compile_fail("tests/misuse/*.rs");
}
