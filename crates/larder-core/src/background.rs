//! The tasks that run as long as the larder: the follower of a shared log, and the publisher of metrics.
//!
//! `build` needs no runtime, so the first request starts them. If their runtime ends, the next request starts them
//! again, on its own.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::runtime::Handle;

use crate::{
    engine::Engine,
    log_follower,
    running_tasks::{RunningTasks, TaskFlag},
};

/// Starts the tasks that do not run, if there is a runtime.
pub(crate) fn start(engine: &Arc<Engine>) {
    if Handle::try_current().is_err() {
        return;
    }
    let tasks = &engine.running;
    tasks.note_started();
    // `close` does not wait for these tasks, which end with the larder.
    if tasks.follower.take() {
        let stopped = Stopped { engine: Arc::downgrade(engine), task: |all| &all.follower };
        let following = log_follower::run(Arc::downgrade(engine), Arc::clone(&engine.bus));
        tokio::spawn(stopped.at_the_end_of(following));
    }
    if let Some(every) = engine.publish_every
        && tasks.publisher.take()
    {
        let stopped = Stopped { engine: Arc::downgrade(engine), task: |all| &all.publisher };
        tokio::spawn(stopped.at_the_end_of(publish(Arc::downgrade(engine), every)));
    }
}

/// Publishes the metrics of a larder at each interval.
async fn publish(engine: Weak<Engine>, every: Duration) {
    loop {
        let Some(engine) = engine.upgrade() else { return };
        engine.reports.ask_for_usage().await;
        engine.publisher.publish(&engine);
        drop(engine);
        tokio::time::sleep(every).await;
    }
}

/// Notes that a task has stopped, also if its runtime has ended.
struct Stopped {
    engine: Weak<Engine>,
    task: fn(&RunningTasks) -> &TaskFlag,
}

impl Stopped {
    async fn at_the_end_of(self, task: impl Future<Output = ()>) {
        let _stopped = self;
        task.await;
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.upgrade() {
            engine.running.note_stopped(self.task);
        }
    }
}
