//! Shows how far a warmer is.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::warmer::WarmReport;

/// The progress of a warmer: a bar on a terminal, or events.
pub(crate) struct Progress {
    /// `None` if nothing is shown.
    title: Option<String>,
    count: Option<usize>,
    done: AtomicUsize,
    #[cfg(feature = "progress-bar")]
    bar: Option<indicatif::ProgressBar>,
}

impl Progress {
    pub(crate) fn new(title: Option<&str>, count: Option<usize>) -> Self {
        Self {
            #[cfg(feature = "progress-bar")]
            bar: title.and_then(|title| bar(title, count)),
            title: title.map(str::to_owned),
            count,
            done: AtomicUsize::new(0),
        }
    }

    pub(crate) fn advance(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        #[cfg(feature = "progress-bar")]
        if let Some(bar) = &self.bar {
            bar.inc(1);
            return;
        }
        let Some(title) = &self.title else { return };
        if self
            .count
            .is_some_and(|count| count >= 10 && done * 10 / count > (done - 1) * 10 / count)
        {
            tracing::info!(target: "larder", title, done, count = self.count, "warming");
        }
    }

    pub(crate) fn finish(&self, report: &WarmReport) {
        #[cfg(feature = "progress-bar")]
        if let Some(bar) = &self.bar {
            bar.finish_with_message(report.to_string());
            return;
        }
        if let Some(title) = &self.title {
            tracing::info!(target: "larder", title, %report, "warmed");
        }
    }
}

/// Returns a bar, if stderr is a terminal.
#[cfg(feature = "progress-bar")]
fn bar(title: &str, count: Option<usize>) -> Option<indicatif::ProgressBar> {
    use std::io::IsTerminal as _;
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let bar = match count {
        Some(count) => indicatif::ProgressBar::new(count as u64),
        None => indicatif::ProgressBar::no_length(),
    };
    let template = "{prefix} {wide_bar} {pos}/{len} {msg}";
    let style = indicatif::ProgressStyle::with_template(template);
    Some(bar.with_style(style.expect("the template is valid")).with_prefix(title.to_owned()))
}
