use super::*;
use crate::{
    bus::WriterId,
    key::{KeyBuf, Kind},
};

const NOW: Moment = Moment::START;

fn registry() -> Registry {
    Registry::new(Options {
        cells: 1 << 12,
        shared: true,
        longest: Duration::from_secs(3600),
        failover_bound: Duration::from_secs(60),
    })
}

fn key() -> Key {
    let mut key = KeyBuf::new(Kind::Object, "", "", "");
    key.push(b"user:1");
    key.finish().unwrap()
}

fn record(mode: Mode, what: Selector) -> Record {
    Record {
        origin: WriterId::random(),
        mode,
        what: vec![what],
        commit: None,
        note: crate::record_note::RecordNote::default(),
    }
}

fn tag(text: &str) -> Selector {
    Selector::Tag(Tag::new(text))
}

fn soft(seconds: u64) -> Mode {
    Mode::Soft { grace: Some(Duration::from_secs(seconds)) }
}

#[test]
fn a_fill_that_began_before_an_invalidation_is_invalid_when_it_lands_after() {
    let key = key();
    let registry = registry();
    let stamp = registry.stamp();
    registry.begin(record(Mode::Hard, tag("a")), NOW);
    let late = registry.marks(stamp, &[Tag::new("a")]);
    let other = registry.marks(stamp, &[Tag::new("b")]);
    assert_eq!(registry.reach(&late, || (&key, &[])), Verdict::Invalid);
    assert_eq!(registry.reach(&other, || (&key, &[])), Verdict::Valid);
}

#[test]
fn a_valid_verdict_moves_the_mark_so_that_the_next_check_is_one_comparison() {
    let key = key();
    let registry = registry();
    let marks = registry.marks(registry.stamp(), &[Tag::new("b")]);
    registry.begin(record(Mode::Hard, tag("a")), NOW);
    assert_eq!(registry.reach(&marks, || (&key, &[])), Verdict::Valid);
    assert_eq!(marks.checked.load(Ordering::Relaxed), registry.sequence());
    registry.reach(&marks, || unreachable!("nothing was invalidated since"));
}

#[test]
fn a_hard_invalidation_overrides_a_soft_one_in_either_order() {
    let key = key();
    for modes in [[Mode::Hard, soft(9)], [soft(9), Mode::Hard]] {
        let registry = registry();
        let marks = registry.marks(registry.stamp(), &[Tag::new("a")]);
        for mode in modes {
            registry.begin(record(mode, tag("a")), NOW);
        }
        assert_eq!(registry.reach(&marks, || (&key, &[])), Verdict::Invalid);
    }
}

#[test]
fn a_soft_invalidation_becomes_hard_when_its_grace_ends_and_spares_later_fills() {
    let key = key();
    let registry = registry();
    let old = registry.marks(registry.stamp(), &[Tag::new("a")]);
    registry.begin(record(soft(5), tag("a")), NOW);
    let new = registry.marks(registry.stamp(), &[Tag::new("a")]);
    assert_eq!(registry.reach(&old, || (&key, &[])), Verdict::Stale);
    let later = NOW.after(Duration::from_secs(5));
    assert!(registry.is_due(later));
    registry.run_due(later);
    assert_eq!(registry.reach(&old, || (&key, &[])), Verdict::Invalid);
    assert_eq!(registry.reach(&new, || (&key, &[])), Verdict::Valid);
}

#[test]
fn a_prefix_reaches_tags_below_it_and_a_pattern_reaches_matching_names() {
    let key = key();
    let registry = registry();
    let marks = registry.marks(registry.stamp(), &[Tag::new("product:1")]);
    for selector in crate::Target::prefix("product").selectors() {
        registry.begin(record(Mode::Hard, selector), NOW);
    }
    assert_eq!(registry.reach(&marks, || (&key, &[])), Verdict::Invalid);

    let marks = registry.marks(registry.stamp(), &[]);
    let pattern = |glob: &str| Selector::Pattern { namespace: String::new(), glob: glob.into() };
    registry.begin(record(Mode::Hard, pattern("product:*")), NOW);
    assert_eq!(registry.reach(&marks, || (&key, &[])), Verdict::Valid);
    registry.begin(record(Mode::Hard, pattern("user:*")), NOW);
    assert_eq!(registry.reach(&marks, || (&key, &[])), Verdict::Invalid);
}

#[test]
fn a_scheduled_invalidation_acts_in_the_first_run_after_it_is_due() {
    let key = key();
    let registry = registry();
    let marks = registry.marks(registry.stamp(), &[Tag::new("a")]);
    let at = NOW.after(Duration::from_secs(10));
    registry.schedule(at, record(Mode::Hard, tag("a")));
    registry.run_due(NOW);
    assert_eq!(registry.reach(&marks, || (&key, &[])), Verdict::Valid);
    registry.run_due(at);
    assert_eq!(registry.reach(&marks, || (&key, &[])), Verdict::Invalid);
    assert_eq!(registry.unsent().len(), 1, "it still has to reach the log");
}

#[test]
fn too_many_pending_invalidations_collapse_into_one_of_everything() {
    let key = key();
    let registry = registry();
    let marks = registry.marks(registry.stamp(), &[Tag::new("untouched")]);
    for number in 0..=writer::MAX_PENDING {
        registry.begin(record(Mode::Hard, tag(&format!("t:{number}"))), NOW);
    }
    assert_eq!(registry.reach(&marks, || (&key, &[])), Verdict::Invalid);
    let unsent = registry.unsent();
    assert_eq!(unsent.len(), 1);
    assert_eq!(unsent[0].1.what, [Selector::Everything]);
}

#[test]
fn an_entry_of_the_second_level_is_judged_by_log_numbers() {
    let registry = registry();
    let end = Position { epoch: Epoch::random(), number: 7 };
    let tags = [Tag::new("a")];
    assert_eq!(
        registry.reach_shared(&key(), &tags, &registry.places(&tags), end),
        Verdict::Invalid,
        "there is no view yet"
    );
    registry.open_view(end, 3, &[(5, record(Mode::Hard, tag("a")))], NOW);
    let filled = |number| Position { number, ..end };
    assert_eq!(
        registry.reach_shared(&key(), &tags, &registry.places(&tags), filled(4)),
        Verdict::Invalid
    );
    assert_eq!(
        registry.reach_shared(&key(), &tags, &registry.places(&tags), filled(5)),
        Verdict::Valid
    );
    assert_eq!(
        registry.reach_shared(&key(), &[], &[], filled(2)),
        Verdict::Invalid,
        "behind the horizon"
    );
    let other = Position { epoch: Epoch::random(), number: 7 };
    assert_eq!(registry.reach_shared(&key(), &[], &[], other), Verdict::Invalid, "another epoch");
}

#[test]
fn a_pending_invalidation_hides_entries_of_the_second_level() {
    let registry = registry();
    let end = Position { epoch: Epoch::random(), number: 1 };
    registry.open_view(end, 0, &[], NOW);
    let begun = registry.begin(record(Mode::Hard, tag("a")), NOW);
    let tags = [Tag::new("a")];
    assert_eq!(
        registry.reach_shared(&key(), &tags, &registry.places(&tags), end),
        Verdict::Invalid
    );
    let other = Position { epoch: Epoch::random(), number: 9 };
    assert!(!registry.settle(begun.ticket, &begun.record, other, NOW), "appended to another log");
    assert_eq!(
        registry.reach_shared(&key(), &tags, &registry.places(&tags), end),
        Verdict::Invalid
    );
    let at = Position { number: 2, ..end };
    assert!(registry.settle(begun.ticket, &begun.record, at, NOW));
    assert_eq!(
        registry.reach_shared(&key(), &tags, &registry.places(&tags), end),
        Verdict::Invalid
    );
    assert_eq!(
        registry.reach_shared(&key(), &tags, &registry.places(&tags), at),
        Verdict::Invalid,
        "ahead of what we applied"
    );
    registry.advance_local(at);
    assert_eq!(registry.reach_shared(&key(), &tags, &registry.places(&tags), at), Verdict::Valid);
}
