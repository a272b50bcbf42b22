//! Warming: fills the cache before requests need it, with the requests that will come.
//!
//! # When it acts
//!
//! 1. At the start of a process: from the [hottest URLs](HotUrls) of the process before, from an [access log](AccessLog), or
//!    from a list or a query. [`Warmer::start`] does it in the background, and [`Warming::warmed`] waits for it.
//! 2. [At intervals](Warmer::every), or by the clock (`Warmer::at`, feature `cron`).
//! 3. [After invalidations](Warmer::rewarm), for the hottest URLs.
//!
//! Each request goes through the outermost service of the application ([`AppHandle`]), so it passes the same layers and
//! reaches the same key as a request from the network.
//!
//! # When it refuses
//!
//! 1. Only `GET` warms, and never with credentials. [`Warmer::warm_for`] warms the responses of a principal by an extension,
//!    and only those that belong to a partition.
//! 2. A path of an access log is requested only if a [route](Warmer::routes) allows it, because logs contain `/logout` and
//!    links that work once. A request that would bypass the response cache does not reach the handler; one that it looks up
//!    and does not find does, also if the response is not stored.
//! 3. Responses of a partition are not remembered as hot.
//!
//! # Cost
//!
//! Requests that warm are counted in the cache named `warming`, not as traffic. A fresh entry answers and costs a hit. Where
//! processes share a second level, one of them fills, and the others take its entry. [`Warmer::concurrency`] and
//! [`Warmer::per_second`] bound the requests of one run.

pub use self::{
    access_log::AccessLog,
    app_handle::AppHandle,
    hot_urls::HotUrls,
    repeat::Repeated,
    target::{NotGetError, WarmTarget},
    warmer::{WarmReport, Warmer, Warming},
};

#[cfg(feature = "cron")]
pub use self::cron::ScheduleError;

mod access_log;
mod app_handle;
#[cfg(feature = "cron")]
mod cron;
mod hot_urls;
mod progress;
mod repeat;
mod target;
mod warmer;

#[cfg(test)]
mod tests;
