//! The state that handlers share.

use std::sync::Arc;

use larder::{sql::OutboxFollower, sqlx_08::CachedPool};
use sqlx::Postgres;

use crate::config::Config;

#[derive(Clone)]
pub(crate) struct AppState {
    pub(crate) pool: CachedPool<Postgres>,
    pub(crate) config: Arc<Config>,
    /// Invalidates after the writes of other programs.
    _following: Arc<OutboxFollower>,
}

impl AppState {
    pub(crate) fn new(
        pool: CachedPool<Postgres>,
        following: OutboxFollower,
        config: Config,
    ) -> Self {
        Self { pool, config: Arc::new(config), _following: Arc::new(following) }
    }
}
