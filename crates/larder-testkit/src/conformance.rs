//! Conformance tests for stores, fill locks, logs and database drivers. Each function panics and names the requirement that is not met.

use std::time::Duration;

use bytes::Bytes;
use larder_core::{
    Mode, Selector, Tag,
    store::{Bus, CommitId, FillLockState, FillLocks, Record, RecordNote, Rules, Store, WriterId},
};

#[cfg(feature = "sql")]
pub use crate::driver_conformance::driver;

const MINUTE: Duration = Duration::from_secs(60);

/// Tests an empty store.
///
/// # Panics
///
/// If the store does not conform; the message names the requirement.
pub async fn store(store: &dyn Store) {
    let get = async |key: &str| store.get(key).await.expect("a healthy store answers");
    let set = async |key: &str, value: &'static str, lifetime| {
        let written = store.set(key, Bytes::from_static(value.as_bytes()), lifetime).await;
        written.expect("a healthy store writes");
    };
    assert_eq!(get("larder:o:a").await, None, "an empty store has no value");
    set("larder:o:a", "one", MINUTE).await;
    set("larder:o:b", "", MINUTE).await;
    assert_eq!(get("larder:o:a").await.as_deref(), Some(&b"one"[..]), "a written value is found");
    assert_eq!(get("larder:o:b").await.as_deref(), Some(&b""[..]), "empty is not absent");
    set("larder:o:a", "two", MINUTE).await;
    assert_eq!(get("larder:o:a").await.as_deref(), Some(&b"two"[..]), "the last write stays");
    let many = store.get_many(&["larder:o:b", "larder:o:none", "larder:o:a"]).await;
    let many: Vec<_> = many.into_iter().map(|one| one.expect("a healthy store answers")).collect();
    let many: Vec<_> = many.iter().map(Option::as_deref).collect();
    assert_eq!(
        many,
        [Some(&b""[..]), None, Some(b"two")],
        "get_many returns values in the order of its keys"
    );
    let replace = async |key: &str, read: &'static str, value: &'static str, lifetime| {
        let (read, value) =
            (Bytes::from_static(read.as_bytes()), Bytes::from_static(value.as_bytes()));
        store.replace(key, read, value, lifetime).await.expect("a healthy store replaces")
    };
    assert!(!replace("larder:o:a", "one", "three", MINUTE).await, "other bytes are not replaced");
    assert!(!replace("larder:o:none", "", "three", MINUTE).await, "nothing is not replaced");
    assert_eq!(get("larder:o:none").await, None, "a replacement creates nothing");
    assert!(replace("larder:o:a", "two", "three", MINUTE).await, "the bytes that were read are");
    assert_eq!(get("larder:o:a").await.as_deref(), Some(&b"three"[..]), "the new bytes are found");
    set("larder:o:d", "long", MINUTE).await;
    assert!(replace("larder:o:d", "long", "long", Duration::from_millis(20)).await);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(get("larder:o:d").await, None, "a replacement sets the lifetime, too");
    store.remove("larder:o:a").await.expect("a healthy store removes");
    store.remove("larder:o:none").await.expect("removing nothing is no error");
    assert_eq!(get("larder:o:a").await, None, "a removed value is gone");
    set("larder:o:c", "short", Duration::from_millis(20)).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(get("larder:o:c").await, None, "an expired value is gone");
}

/// Tests fill locks. None of them may be held at the start.
///
/// # Panics
///
/// If the locks do not conform; the message names the requirement.
pub async fn leases(leases: &dyn FillLocks) {
    let [one, other] = [WriterId::random(), WriterId::random()];
    let key = "larder:o:a";
    let take = async |holder, expiry| {
        leases.take(key, holder, expiry).await.expect("healthy leases answer")
    };
    let give_back = async |holder, vain| {
        leases.give_back(key, holder, vain).await.expect("healthy leases answer");
    };
    assert_eq!(take(one, MINUTE).await, FillLockState::Acquired, "the first holder gets the lock");
    assert_eq!(
        take(other, MINUTE).await,
        FillLockState::Held,
        "a second holder does not get the lock"
    );
    give_back(other, None).await;
    assert_eq!(take(other, MINUTE).await, FillLockState::Held, "only its holder gives a lock back");
    give_back(one, None).await;
    assert_eq!(
        take(other, MINUTE).await,
        FillLockState::Acquired,
        "a lock that was given back is free"
    );
    give_back(other, Some(Duration::from_millis(20))).await;
    assert_eq!(
        take(one, MINUTE).await,
        FillLockState::NotStorable,
        "after `vain` there is nothing to wait for"
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        take(one, Duration::from_millis(20)).await,
        FillLockState::Acquired,
        "`vain` ends after its time"
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        take(other, MINUTE).await,
        FillLockState::Acquired,
        "the lock of a holder that died expires"
    );
    give_back(one, None).await;
    assert_eq!(
        take(one, MINUTE).await,
        FillLockState::Held,
        "a former holder does not give back the lock of its successor"
    );
    give_back(other, None).await;
}

/// Tests an empty log.
///
/// # Panics
///
/// If the log does not conform; the message names the requirement.
pub async fn bus(bus: &dyn Bus) {
    let record = |tag: &str| Record {
        origin: WriterId::random(),
        mode: Mode::Hard,
        what: vec![Selector::Tag(Tag::new(tag))],
        commit: Some(CommitId::random()),
        note: RecordNote::new(Some("a reason"), Some("an actor")),
    };
    let start = bus.end(None).await.expect("a healthy log knows its end");
    let a = record("a");
    let first = bus.append(&a).await.expect("a healthy log appends");
    let second = bus.append(&record("b")).await.expect("a healthy log appends");
    assert_eq!(first.number, start.number + 1, "numbers go up by one");
    assert_eq!(second.number, first.number + 1, "numbers go up by one");
    assert_eq!(second.epoch, start.epoch, "the epoch stays");
    let end = bus.end(None).await.expect("a healthy log knows its end");
    assert_eq!(end, second, "the end is the last record");
    if !bus.is_shared() {
        return;
    }
    let read = bus.read(start, MINUTE).await.expect("a healthy log is read");
    let numbers: Vec<_> = read.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [first.number, second.number], "records come in order");
    assert_eq!(read[0].1, a, "records come as they were appended");
    let note = &read[0].1.note;
    assert_eq!(
        (note.because(), note.by()),
        (Some("a reason"), Some("an actor")),
        "with their notes"
    );
    let none = bus.read(end, Duration::from_millis(10)).await.expect("a healthy log is read");
    assert!(none.is_empty(), "there is nothing after the end");
    let later = record("later");
    for _ in 0..2 {
        let kept = bus.schedule(1, &later, Duration::from_millis(20)).await;
        assert_eq!(
            kept.expect("a healthy log keeps").epoch,
            end.epoch,
            "schedule returns the epoch"
        );
    }
    assert_eq!(
        bus.end(None).await.expect("it answers"),
        end,
        "a scheduled record is not appended before it is due"
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    let due = bus.end(None).await.expect("a healthy log knows its end");
    assert_eq!(due.number, end.number + 1, "the next command appends a due record, once");
    let read = bus.read(end, MINUTE).await.expect("a healthy log is read");
    assert_eq!(read[0].1.what, record("later").what, "a scheduled record is appended unchanged");
    let end = due;
    let mut after = 0;
    let mut seen = Vec::new();
    loop {
        let page = bus.compacted(after).await.expect("a healthy log is compacted");
        assert_eq!(page.end.epoch, end.epoch, "every page names the epoch");
        seen.extend(page.records.iter().map(|(number, _)| *number));
        after = seen.last().copied().unwrap_or(after);
        if !page.more {
            break;
        }
    }
    assert!(seen.is_sorted(), "pages are in order");
    assert!(seen.contains(&second.number), "the compacted log has the newest of each target");
    rules(bus).await;
    let lost = bus.end(Some(end.epoch)).await.expect("a healthy log draws an epoch");
    assert_ne!(lost.epoch, end.epoch, "a log that lost records draws a new epoch");
    assert!(bus.read(end, Duration::ZERO).await.is_err(), "a position in another epoch is gone");
}

/// Tests a log that stores the rules of the processes, which is optional.
async fn rules(bus: &dyn Bus) {
    let [mut a, mut b] = [Rules::default(), Rules::default()];
    a.add("product:*", "catalog");
    b.add("catalog", "home");
    for rules in [&a, &b, &a] {
        bus.publish_rules(rules).await.expect("a healthy log takes rules, or ignores them");
    }
    if let Some(published) = bus.published_rules().await.expect("a healthy log answers") {
        let mut both = a.clone();
        both.extend(b.clone());
        b.extend(a);
        assert!(
            published == both || published == b,
            "the rules of all processes are there, once each"
        );
    }
}

/// Tests a store whose commands fail, are executed although they fail, arrive late or twice, or get the answer to
/// another command. Each value that it returns must have been written to it, and a command that is repeated often
/// enough must succeed.
///
/// # Panics
///
/// If the store does not conform; the message names the requirement.
pub async fn store_that_fails(store: &dyn Store) {
    let written = |key: u64, version: u64| Bytes::from(format!("{key} {version}"));
    for version in 0..20_u64 {
        for key in 0..5_u64 {
            let name = format!("larder:o:{key}");
            let set = async || store.set(&name, written(key, version), MINUTE).await.is_ok();
            insist(set, "a write").await;
            let Ok(Some(found)) = store.get(&name).await else { continue };
            let known = (0..5).flat_map(|key| (0..=version).map(move |at| (key, at)));
            let known = known.map(|(key, at)| written(key, at)).any(|known| known == found);
            assert!(known, "the store returned a value that was never written: {found:?}");
        }
    }
    let names: Vec<String> = (0..5).map(|key| format!("larder:o:{key}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let many = store.get_many(&names).await;
    assert_eq!(many.len(), names.len(), "get_many returns one result for each key");
    for name in names {
        insist(async || store.remove(name).await.is_ok(), "a removal").await;
    }
}

/// Tests a log whose commands fail, half of them after they were executed. Each acknowledged record must be at its
/// acknowledged position, and a reader must not miss a record. Returns the number of failed appends.
///
/// # Panics
///
/// If the log does not conform; the message names the requirement.
pub async fn bus_that_fails(bus: &dyn Bus) -> usize {
    let mut start = None;
    let end = async || {
        start = bus.end(None).await.ok();
        start.is_some()
    };
    insist(end, "an end").await;
    let start = start.expect("insist ended with an answer");
    let (mut taken, mut failed) = (Vec::new(), 0);
    for number in 0..50 {
        let record = Record {
            origin: WriterId::random(),
            mode: Mode::Hard,
            what: vec![Selector::Tag(Tag::new(format!("t:{number}")))],
            commit: None,
            note: RecordNote::default(),
        };
        let append = async || match bus.append(&record).await {
            Ok(at) => {
                taken.push((at.number, record.clone()));
                true
            }
            Err(_) => {
                failed += 1;
                false
            }
        };
        insist(append, "an append").await;
    }
    let (mut at, mut read) = (start, Vec::new());
    let last = taken.iter().map(|(number, _)| *number).max().unwrap_or_default();
    for turn in 0.. {
        if at.number >= last {
            break;
        }
        assert!(turn < 1_000, "1,000 reads reach the end of the log");
        for (number, record) in bus.read(at, Duration::from_millis(10)).await.unwrap_or_default() {
            assert_eq!(number, at.number + 1, "records come in order, none is left out");
            at.number = number;
            read.push((number, record));
        }
    }
    for taken in taken {
        assert!(read.contains(&taken), "an acknowledged record is not at its position: {taken:?}");
    }
    failed
}

/// Repeats `act` until it succeeds, at most 1,000 times and 10 ms apart.
async fn insist(mut act: impl AsyncFnMut() -> bool, what: &str) {
    for _ in 0..1_000 {
        if act().await {
            return;
        }
        // A circuit breaker may have opened, and needs time to close again.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} failed 1,000 times in a row");
}

#[cfg(test)]
mod tests {
    use larder_core::store::LocalBus;

    use crate::{FaultyStore, MemoryStore, SeededRng, SharedLog};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stores_of_the_testkit_conform() {
        store(&MemoryStore::new()).await;
        leases(&MemoryStore::new()).await;
        let slow = Duration::from_millis(3);
        store(&FaultyStore::new(MemoryStore::new(), SeededRng::new(1), 0, slow)).await;
        for seed in 0..20 {
            let faulty = FaultyStore::new(MemoryStore::new(), SeededRng::new(seed), 30, slow);
            store_that_fails(&faulty).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn logs_of_the_testkit_conform() {
        bus(&LocalBus::new()).await;
        let line = SharedLog::new().line(SeededRng::new(1), 0, Duration::from_millis(1));
        bus(&line).await;
        for seed in 0..20 {
            let line = SharedLog::new().line(SeededRng::new(seed), 30, Duration::from_millis(1));
            assert!(bus_that_fails(&line).await > 0);
        }
    }
}
