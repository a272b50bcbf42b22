//! What operators see of entries and invalidations.

use super::*;
use crate::{
    Kind, Tag,
    kernel::{Partitions, PastInvalidation},
};

async fn store(larder: &Larder, name: impl crate::IntoName, tag: impl Into<Tag>) {
    let policy = Policy::ttl(MINUTE).tag(tag);
    larder.get_or_load(name, policy, |_| async { Ok::<_, Infallible>(7_u64) }).await.unwrap();
}

const SECOND: Duration = Duration::from_secs(1);

/// What a preview counts is what the invalidation then reaches: no entry of it is served again, and all others are.
#[tokio::test(start_paused = true)]
async fn a_preview_counts_exactly_the_entries_that_the_invalidation_reaches() {
    type Make = fn() -> Invalidation;
    let cases: [(Make, usize); 8] = [
        (|| ("product", 3).into(), 2),
        (|| Target::prefix("product").into(), 20),
        (|| Target::pattern("*:1?").into(), 10),
        (|| Target::name(("page", 7)).into(), 1),
        (|| Target::tag("catalog").into(), 2),
        (|| Target::kind(Kind::Query).into(), 0),
        (|| Target::everything().into(), 21),
        (|| Target::tag("nothing").into(), 0),
    ];
    for (invalidation, expected) in cases {
        let larder = Larder::builder().depends("catalog", "product:3").build().unwrap();
        for number in 0..20 {
            store(&larder, ("page", number), ("product", number % 10)).await;
        }
        store(&larder, "other", "other").await;
        let before = format!("{:?}", larder.stats());
        let preview = larder.kernel().preview(invalidation(), SECOND, Partitions::Hashed);
        assert_eq!((preview.entries, preview.is_estimate), (expected, false), "{preview:?}");
        assert!(preview.bytes >= expected * 100 && preview.examples.len() == expected.min(10));
        assert_eq!(format!("{:?}", larder.stats()), before, "a preview changes nothing");
        let _logged = larder.invalidate(invalidation()).await;
        let names = (0..20).map(|number| format!("page:{number}")).chain(["other".to_owned()]);
        let mut reached = 0;
        for name in names {
            let misses = larder.stats().cache("objects").unwrap().total.misses;
            store(&larder, name, "again").await;
            reached += larder.stats().cache("objects").unwrap().total.misses - misses;
        }
        assert_eq!(reached, expected as u64, "{preview:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_scan_that_runs_out_of_time_says_that_its_numbers_are_estimates() {
    let larder = larder();
    for number in 0..2_000 {
        store(&larder, ("page", number), "t").await;
    }
    let preview = larder.kernel().preview(Target::tag("t"), Duration::ZERO, Partitions::Hashed);
    assert!(preview.is_estimate, "{preview:?}");
    assert!((1_500..2_500).contains(&preview.entries), "each entry has the tag: {preview:?}");
    let scan = larder.kernel().scan(3, Duration::ZERO, |_| true);
    assert!(!scan.is_complete && scan.entries.len() == 3 && scan.visited < 2_000);
}

#[tokio::test(start_paused = true)]
async fn the_last_invalidations_are_remembered_with_their_reasons() {
    let larder = larder();
    let import = Invalidation::of([Target::prefix("price"), Target::path("/a")]);
    let _logged = larder.invalidate(import.because("price import").by("job 7").soft(None)).await;
    let _logged = larder.invalidate("t").await;
    let all: Vec<PastInvalidation> = larder.kernel().past_invalidations(0, Partitions::Hashed);
    let [first, second] = &all[..] else { panic!("{all:?}") };
    assert_eq!(
        (first.because.as_deref(), first.by.as_deref()),
        (Some("price import"), Some("job 7"))
    );
    assert_eq!((first.mode, first.own, second.mode), ("soft", true, "hard"));
    let targets: Vec<_> = first.targets.iter().map(|it| (it.class, &*it.text)).collect();
    assert_eq!(targets, [("prefix", "price"), ("tag", "price"), ("path", "/a")]);
    assert_eq!(larder.kernel().past_invalidations(first.number, Partitions::Hashed).len(), 1);
    for number in 0..300 {
        let many = (0..30).map(|n| Target::tag(format!("t:{number}:{n}")));
        let _logged = larder.invalidate(Invalidation::of(many)).await;
    }
    let all = larder.kernel().past_invalidations(0, Partitions::Hashed);
    assert_eq!((all.len(), all[255].number), (256, 302));
    assert_eq!((all[255].targets.len(), all[255].more_targets), (20, 10));
}

#[tokio::test(start_paused = true)]
async fn an_explained_value_has_its_policy_and_its_tags() {
    let larder = larder().namespace("tenant-7");
    store(&larder, ("user", 7), "team").await;
    let scan = larder.kernel().scan(10, SECOND, |_| true);
    let entry = larder.kernel().explain_entry(&scan.entries[0], Partitions::Hashed);
    assert_eq!((entry.key.kind, &*entry.key.name), ("object", "user:7"));
    assert_eq!((entry.lifetime.word, entry.state.word), ("policy", "fresh"));
    let tags: Vec<_> =
        entry.tags.iter().map(|tag| (&*tag.tag, &*tag.namespace, tag.source.as_str())).collect();
    assert!(tags.contains(&("user:7", "tenant-7", "larder")), "{tags:?}");
    assert!(tags.contains(&("team", "tenant-7", "handler")), "{tags:?}");
}
