//! Advice from the histories of sampled keys.

use std::{collections::BTreeMap, time::Duration};

use super::{Advice, AdviceKind, readable};
use crate::traffic::{KeyGroup, KeyRecord};

pub(super) fn advice(records: &[KeyRecord]) -> Vec<Advice> {
    let mut groups: BTreeMap<&KeyGroup, Vec<&KeyRecord>> = BTreeMap::new();
    for record in records {
        if let Some((_, group)) = &record.key {
            groups.entry(group).or_default().push(record);
        }
    }
    groups.into_iter().flat_map(|(group, records)| of_group(group, &records)).collect()
}

fn of_group(group: &KeyGroup, records: &[&KeyRecord]) -> Vec<Advice> {
    let names = group.names.as_deref().map(|names| format!("{}: {names}:*", group.kind));
    let piece = |kind, about: Option<String>, text| Advice {
        kind,
        cache: group.cache.to_string(),
        route: group.route.as_deref().map(str::to_owned),
        about: about.or_else(|| names.clone()),
        text,
    };
    let sum = |of: fn(&KeyRecord) -> u64| records.iter().map(|record| of(record)).sum::<u64>();
    let (identical, changed, fills) =
        (sum(|it| it.identical), sum(|it| it.changed), sum(|it| it.fills));
    let refills = identical + changed;
    let lifetimes = records.iter().filter_map(|record| record.last_fill).map(|fill| fill.lifetime);
    let lifetime = readable(mean(lifetimes));
    let fill = records.iter().map(|record| record.fill_time).sum::<Duration>()
        / u32::try_from(fills.max(1)).unwrap_or(u32::MAX);
    let mut advice = Vec::new();
    if refills >= FEWEST_REFILLS && 10 * identical >= 9 * refills {
        let text = format!(
            "Of {refills} refills after a lifetime of {lifetime}, {identical} gave the same value again: a longer lifetime, \
             with invalidation where a value changes, saves most of them."
        );
        advice.push(piece(AdviceKind::LongerTtl, None, text));
    }
    if refills >= FEWEST_REFILLS && 10 * changed >= 9 * refills {
        let text = format!(
            "Of {refills} refills after a lifetime of {lifetime}, {changed} gave another value, so older values were served \
             before: invalidate where it changes, or shorten the lifetime."
        );
        advice.push(piece(AdviceKind::ShorterTtl, None, text));
    }
    let once = records.iter().filter(|record| record.requests <= 1).count();
    if records.len() >= FEWEST_KEYS && 10 * once >= 9 * records.len() {
        let text = format!(
            "Of {} sampled keys, {once} were requested once: leave parts that do not matter out of the key, or do not cache \
             it.",
            records.len()
        );
        advice.push(piece(AdviceKind::KeysRequestedOnce, None, text));
    }
    let awaited: u64 = records.iter().map(|record| record.awaited_refills).sum();
    if awaited >= FEWEST_REFILLS && fill >= SLOW_FILL && sum(|it| it.requests) >= 4 * fills {
        let text = format!(
            "Requests waited for {awaited} refills of {} each after the end of a lifetime: `refresh_ahead` or \
             `stale_while_revalidate` does them before.",
            readable(fill)
        );
        advice.push(piece(AdviceKind::RefreshAhead, None, text));
    }
    let hot: Vec<_> = records
        .iter()
        .filter(|record| record.requests >= 10 && record.mean_fill() >= VERY_SLOW_FILL)
        .collect();
    let waited: Duration = hot.iter().map(|record| record.mean_fill()).sum();
    if hot.len() >= 3 && waited >= Duration::from_millis(500) {
        let text = format!(
            "{} sampled keys are requested often, and their first fills take {} together: warm them at the start of a \
             process.",
            hot.len(),
            readable(waited)
        );
        advice.push(piece(AdviceKind::Warm, None, text));
    }
    advice.extend(records.iter().filter_map(|record| {
        let lifetime = record.last_fill?.lifetime;
        let intervals = record.intervals;
        let is_regular = intervals.count >= 5 && intervals.variation() <= 0.1;
        (is_regular && intervals.mean() > lifetime && record.mean_fill() >= SLOW_FILL).then(|| {
            let text = format!(
                "It is requested each {}, and its lifetime is {}, so each request waits for a fill of {}: warm it shortly \
                 before, or give it a longer lifetime.",
                readable(intervals.mean()),
                readable(lifetime),
                readable(record.mean_fill())
            );
            piece(AdviceKind::Preload, record.key.as_ref().map(|(key, _)| key.name()), text)
        })
    }));
    advice
}

fn mean(times: impl Iterator<Item = Duration>) -> Duration {
    let (count, sum) =
        times.fold((0_u32, 0.0), |(count, sum), time| (count + 1, sum + time.as_secs_f64()));
    Duration::try_from_secs_f64(sum / f64::from(count.max(1))).unwrap_or(Duration::MAX)
}

const FEWEST_REFILLS: u64 = 10;
const FEWEST_KEYS: usize = 50;
/// A request notices this.
const SLOW_FILL: Duration = Duration::from_millis(10);
const VERY_SLOW_FILL: Duration = Duration::from_millis(50);
