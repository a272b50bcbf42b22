//! A replay of a trace has the hit ratio of the live run, and with other settings that of a live run with them.

use super::*;
use crate::{ByteSize, Eviction, ReplaySettings, Trace};

/// Runs a trace with skewed keys, lifetimes, invalidations and too little memory. Returns the hit ratio.
async fn live(memory: usize, eviction: Eviction, ttl: u64, file: Option<&std::path::Path>) -> f64 {
    let larder =
        Larder::builder().memory(ByteSize::bytes(memory)).eviction(eviction).build().unwrap();
    if let Some(file) = file {
        larder.record_trace(file).unwrap();
    }
    for number in 0..40_000_u64 {
        let random = xxhash_rust::xxh3::xxh3_64(&number.to_le_bytes());
        let key = 3_000_f64.powf(random as f64 / u64::MAX as f64) as u64;
        let policy = Policy::ttl(Duration::from_secs(ttl)).tag(("group", key % 40));
        let load = move |_: LoadHandle| async move {
            Ok::<_, Infallible>("x".repeat(200 + (key % 7) as usize * 300))
        };
        larder.get_or_load(format!("secret-name-{key}"), policy, load).await.unwrap();
        if number % 500 == 0 {
            let _logged = larder.invalidate(("group", number / 500 % 40)).await;
        }
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    larder.finish_trace().unwrap();
    larder.stats().cache("objects").unwrap().total.hit_ratio
}

// moka does not follow paused time, so an entry whose lifetime has ended still takes memory in the live runs of this test. So
// they have either lifetimes that end or too little memory.
#[tokio::test(start_paused = true)]
async fn a_replay_has_the_hit_ratio_of_a_live_run_within_a_point() {
    let file = std::env::temp_dir().join(format!("larder-replay-{}", std::process::id()));
    let (small, large, hour) = (1 << 20, 16 << 20, 3600);
    let recorded = live(small, Eviction::TinyLfu, hour, Some(&file)).await;
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(
        !written.contains("secret") && !written.contains("group"),
        "no key and no tag is in the file"
    );
    let trace = Trace::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(trace.memory().as_bytes(), small);
    let near = |replayed: f64, live: f64| (replayed - live).abs() < 0.01;
    let settings = |memory| ReplaySettings::new(ByteSize::bytes(memory));
    let same = trace.replay(&settings(small));
    assert_eq!(same.requests, 40_000);
    assert!(same.invalid > 0, "{same:?}");
    assert!(near(same.hit_ratio(), recorded), "{} and {recorded}", same.hit_ratio());

    let lru = live(small, Eviction::Lru, hour, None).await;
    let replayed = trace.replay(&settings(small).eviction(Eviction::Lru)).hit_ratio();
    assert!(near(replayed, lru), "{replayed} and {lru}");
    let roomy = live(large, Eviction::TinyLfu, hour, None).await;
    let replayed = trace.replay(&settings(large)).hit_ratio();
    assert!(near(replayed, roomy) && roomy > recorded + 0.02, "{replayed} and {roomy}");
    let short = live(large, Eviction::TinyLfu, 5, None).await;
    let replayed = trace.replay(&settings(large).ttl(Duration::from_secs(5)));
    assert!(replayed.expired > 0 && short < roomy - 0.02, "{replayed:?}");
    assert!(near(replayed.hit_ratio(), short), "{} and {short}", replayed.hit_ratio());
}

#[test]
fn a_file_that_is_no_trace_is_refused_with_its_line() {
    let file = std::env::temp_dir().join(format!("larder-no-trace-{}", std::process::id()));
    for (text, said) in [
        ("hello\n", "line 1 is \"hello\", allowed is a trace"),
        ("larder trace 1 1000\nr 5 a\nr 5\n", "line 3 is \"r 5\""),
        ("larder trace 1 1000\nf 5 a 10 10 zz\n", "line 2"),
    ] {
        std::fs::write(&file, text).unwrap();
        let error = Trace::read(&file).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(Trace::read(&file).is_err());
}
