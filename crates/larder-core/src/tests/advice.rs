//! Advice on traces of which the right answer is known, and the hot and cold keys.

use super::*;
use crate::{Advice, AdviceKind, kernel::Partitions};

/// Requests a value whose fill takes some time.
async fn request(larder: &Larder, name: &str, policy: Policy, value: String, fill: Duration) {
    let load = move |_: LoadHandle| async move {
        tokio::time::sleep(fill).await;
        Ok::<_, Infallible>(value)
    };
    larder.get_or_load(name.to_owned(), policy, load).await.unwrap();
}

fn kinds(larder: &Larder) -> Vec<AdviceKind> {
    larder.advice().iter().map(|advice| advice.kind).collect()
}

fn piece(larder: &Larder, kind: AdviceKind) -> Advice {
    let all = larder.advice();
    all.iter().find(|advice| advice.kind == kind).cloned().unwrap_or_else(|| panic!("{all:?}"))
}

fn watched() -> Larder {
    let larder = larder();
    larder.watch_traffic();
    larder
}

async fn advance(time: Duration) {
    tokio::time::advance(time).await;
}

const TEN_SECONDS: Duration = Duration::from_secs(10);
const MILLISECOND: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn values_that_stay_the_same_could_live_longer_and_those_that_change_should_live_shorter() {
    let larder = watched();
    for round in 0..20 {
        for (name, value) in [
            ("constant", "the same".to_owned()),
            ("changing", format!("value {round}")),
            ("mixed", format!("value {}", round / 2)),
        ] {
            request(&larder, &format!("{name}:7"), Policy::ttl(TEN_SECONDS), value, MILLISECOND)
                .await;
        }
        advance(TEN_SECONDS).await;
    }
    let advice = larder.advice();
    let about: Vec<_> = advice.iter().map(|it| (it.kind, it.about.as_deref().unwrap())).collect();
    assert_eq!(
        about,
        [
            (AdviceKind::LongerTtl, "object: constant:*"),
            (AdviceKind::ShorterTtl, "object: changing:*")
        ],
        "{advice:?}"
    );
    assert!(
        advice[0].text.contains("Of 19 refills after a lifetime of 10 s, 19 gave the same value"),
        "{}",
        advice[0].text
    );
}

/// A refill because of an invalidation says nothing about the lifetime.
#[tokio::test(start_paused = true)]
async fn refills_after_invalidations_do_not_count() {
    let larder = watched();
    for _ in 0..20 {
        request(&larder, "a", Policy::ttl(MINUTE).tag("t"), "the same".to_owned(), MILLISECOND)
            .await;
        let _logged = larder.invalidate("t").await;
    }
    assert_eq!(kinds(&larder), []);
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_requested_once_are_noticed_and_others_are_not() {
    let larder = watched();
    for number in 0..100 {
        let once = Policy::ttl(MINUTE);
        request(&larder, &format!("search:{number}"), once, String::new(), MILLISECOND).await;
        for _ in 0..2 {
            let twice = Policy::ttl(MINUTE);
            request(&larder, &format!("user:{number}"), twice, String::new(), MILLISECOND).await;
        }
    }
    let advice = larder.advice();
    let about: Vec<_> = advice.iter().map(|it| (it.kind, it.about.as_deref().unwrap())).collect();
    assert_eq!(about, [(AdviceKind::KeysRequestedOnce, "object: search:*")], "{advice:?}");
}

/// A loop over more bytes than the capacity never hits under recency, and one over less always does.
#[tokio::test(start_paused = true)]
async fn memory_pays_exactly_for_a_loop_that_does_not_fit() {
    let looped = async |memory: usize, keys: u32, bytes: usize| {
        let larder = Larder::builder().memory(crate::ByteSize::bytes(memory)).build().unwrap();
        larder.watch_traffic();
        for number in 0..40 * keys {
            let name = (number % keys).to_string();
            request(&larder, &name, Policy::ttl(100 * MINUTE), "x".repeat(bytes), Duration::ZERO)
                .await;
        }
        larder
    };
    // 100 values of 15 KB are 1.5 MB: too much for 1 MiB, and little for 2 MiB.
    let small = looped(1 << 20, 100, 15_000).await;
    let text = piece(&small, AdviceKind::MoreMemory).text;
    assert!(
        text.contains(
            "0.0 % of the requested keys at its 1 MiB, 0.0 % at half and 97.5 % at twice"
        ),
        "{text}"
    );
    let enough = looped(2 << 20, 100, 15_000).await;
    assert_eq!(kinds(&enough), [], "half of it would not do");
    let large = looped(64 << 20, 100, 15_000).await;
    let text = piece(&large, AdviceKind::LessMemory).text;
    assert!(text.contains("97.5 % of the requested keys at its 64 MiB, 97.5 % at half"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn refresh_ahead_is_advised_where_requests_wait_for_slow_refills() {
    let slow = Duration::from_millis(40);
    for (policy, expected) in [
        (Policy::ttl(TEN_SECONDS), vec![AdviceKind::RefreshAhead]),
        (Policy::from(Lifetime::from(TEN_SECONDS).stale_while_revalidate(MINUTE)), vec![]),
    ] {
        let larder = watched();
        for second in 0..200 {
            let value = format!("{}", second / 20);
            request(&larder, "a", policy.clone(), value, slow).await;
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(kinds(&larder), expected, "{:?}", larder.advice());
    }
}

#[tokio::test(start_paused = true)]
async fn warming_is_advised_for_hot_keys_with_slow_fills() {
    let larder = watched();
    for _ in 0..10 {
        for number in 0..5 {
            let policy = Policy::ttl(MINUTE);
            request(
                &larder,
                &number.to_string(),
                policy,
                String::new(),
                Duration::from_millis(200),
            )
            .await;
        }
    }
    assert!(piece(&larder, AdviceKind::Warm).text.contains("5 sampled keys"));
    assert!(piece(&larder, AdviceKind::Warm).text.contains("take 1.0 s together"));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_requested_each_hour_is_to_be_preloaded_and_one_at_random_times_is_not() {
    let larder = watched();
    let fill = Duration::from_millis(30);
    for hour in 0..8_u64 {
        request(&larder, "hourly report", Policy::ttl(MINUTE), format!("{hour}"), fill).await;
        let minutes = [3, 50, 20, 45, 8, 33, 59, 1][hour as usize];
        advance(MINUTE * minutes).await;
        request(&larder, "now and then", Policy::ttl(MINUTE), format!("{hour}"), fill).await;
        advance(MINUTE * (60 - minutes) - 2 * fill).await;
    }
    let preload = piece(&larder, AdviceKind::Preload);
    assert_eq!(preload.about.as_deref(), Some("hourly report"));
    assert!(
        preload.text.contains("requested each 60 min, and its lifetime is 60 s"),
        "{}",
        preload.text
    );
    let all = larder.advice();
    assert_eq!(all.iter().filter(|it| it.kind == AdviceKind::Preload).count(), 1, "{all:?}");
}

#[tokio::test(start_paused = true)]
async fn hot_keys_have_their_requests_and_cold_keys_their_idle_times() {
    let larder = larder();
    assert!(larder.kernel().key_report(Partitions::Hashed).is_none());
    larder.watch_traffic();
    for (name, requests) in [("hot", 300), ("warm", 20), ("cold", 1)] {
        for _ in 0..requests {
            request(&larder, name, Policy::ttl(60 * MINUTE), name.to_owned(), Duration::ZERO).await;
        }
        advance(Duration::from_secs(15)).await;
    }
    let report = larder.kernel().key_report(Partitions::Hashed).unwrap();
    let hot: Vec<_> = report.hot.iter().map(|it| (&*it.key.name, it.requests)).collect();
    // Hits are reported in steps of up to 64.
    assert!(matches!(hot[..], [("hot", 237..=300), ("warm", 12..=20), ("cold", 1)]), "{hot:?}");
    let cold: Vec<_> = report
        .cold
        .iter()
        .map(|it| (&*it.key.name, it.requests, it.idle_seconds.unwrap()))
        .collect();
    assert_eq!(cold, [("hot", 300, 45), ("warm", 20, 30), ("cold", 1, 15)]);
    assert!((report.sampled - 1.0).abs() < 1e-9);
    let _logged = larder.invalidate(crate::Target::everything()).await;
    assert_eq!(kinds(&larder), []);
}
