//! Warming again and again: at intervals, by the clock, and after invalidations.

use std::{collections::HashMap, future::Future, time::Duration};

use futures_util::FutureExt as _;
use tokio::{task::JoinHandle, time::MissedTickBehavior};

use crate::{target::WarmTarget, warmer::Warmer};

/// A task that warms again and again. It stops when this is dropped.
#[derive(Debug)]
#[must_use = "it stops when it is dropped"]
pub struct Repeated {
    task: JoinHandle<()>,
}

impl Repeated {
    pub(crate) fn spawn(warming: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { task: tokio::spawn(warming) }
    }
}

impl Drop for Repeated {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Warmer {
    /// Warms at once and then at each interval, which counts from the beginning of the warming before. `targets` is called
    /// each time.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, or if the interval is zero.
    #[doc(alias("periodic", "interval"))]
    pub fn every<F, Fut, I>(&self, interval: Duration, targets: F) -> Repeated
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = I> + Send,
        I: IntoIterator<Item: Into<WarmTarget>, IntoIter: Send> + Send,
    {
        let warmer = self.clone();
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Repeated::spawn(async move {
            loop {
                ticks.tick().await;
                warmer.warm(targets().await).await;
            }
        })
    }

    /// Warms the `most` hottest URLs again after each invalidation, once no further one has come for `calm`, or after ten
    /// times that. Entries that are still fresh are skipped.
    ///
    /// An invalidation that reaches many pages costs as many renders, before a client requests them. So choose few URLs, and
    /// a rate ([`per_second`](Self::per_second)).
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn rewarm(&self, most: usize, calm: Duration) -> Repeated {
        let warmer = self.clone();
        let mut feed = self.larder.invalidations();
        let mut hottest = Hottest::default();
        Repeated::spawn(async move {
            while feed.next().await.is_some() {
                let settled = async {
                    while tokio::time::timeout(calm, feed.next())
                        .await
                        .is_ok_and(|next| next.is_some())
                    {}
                };
                // Invalidations may never pause.
                drop(tokio::time::timeout(calm * 10, settled).await);
                while feed.next().now_or_never().flatten().is_some() {}
                warmer
                    .warm(hottest.update(warmer.larder.kernel().hottest_urls(usize::MAX), most))
                    .await;
            }
        })
    }
}

/// The hits of URLs since the last look, and half of those before, and so on.
#[derive(Debug, Default)]
struct Hottest(HashMap<String, UrlHits>);

#[derive(Debug, Default)]
struct UrlHits {
    score: u64,
    /// What the entry had counted at the last look. An entry that is stored anew counts from zero.
    counted: u64,
}

impl Hottest {
    /// Adds the hits of the present entries, and returns the hottest URLs.
    fn update(&mut self, present: Vec<(String, u64)>, most: usize) -> Vec<String> {
        self.0.values_mut().for_each(|hits| hits.score /= 2);
        for (url, counted) in present {
            let hits = self.0.entry(url).or_default();
            hits.score += counted.checked_sub(hits.counted).unwrap_or(counted);
            hits.counted = counted;
        }
        let mut all: Vec<_> = std::mem::take(&mut self.0).into_iter().collect();
        all.sort_by(|(a, more), (b, less)| less.score.cmp(&more.score).then_with(|| a.cmp(b)));
        all.truncate(4 * most);
        let urls = all.iter().take(most).map(|(url, _)| url.clone()).collect();
        self.0 = all.into_iter().collect();
        urls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_stays_hot_although_its_entry_is_new() {
        let mut hottest = Hottest::default();
        let hits =
            |hits: [u64; 3]| ["a", "b", "c"].map(str::to_owned).into_iter().zip(hits).collect();
        assert_eq!(hottest.update(hits([100, 60, 10]), 2), ["a", "b"]);
        // The entry of `a` is new, and `b` has no further hits.
        assert_eq!(hottest.update(hits([0, 60, 50]), 2), ["a", "c"], "50, 30 and 45");
        assert_eq!(hottest.update(hits([20, 60, 90]), 2), ["c", "a"], "45, 15 and 62");
        assert_eq!(hottest.update(hits([40, 60, 90]), 1), ["a"], "42, 7 and 31");
    }
}
