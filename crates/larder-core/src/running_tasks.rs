//! Which of the tasks run that live as long as the larder.

use std::sync::atomic::{AtomicBool, Ordering};

/// Which of the tasks run.
#[derive(Debug)]
pub(crate) struct RunningTasks {
    /// Whether all of them run, so that a request reads one flag.
    all_run: AtomicBool,
    pub(crate) follower: TaskFlag,
    pub(crate) publisher: TaskFlag,
}

/// Whether a task is wanted, and whether it runs.
#[derive(Debug)]
pub(crate) struct TaskFlag {
    is_wanted: bool,
    runs: AtomicBool,
}

impl TaskFlag {
    fn new(is_wanted: bool) -> Self {
        Self { is_wanted, runs: AtomicBool::new(false) }
    }

    /// Whether the caller has to start it.
    pub(crate) fn take(&self) -> bool {
        self.is_wanted && !self.runs.swap(true, Ordering::AcqRel)
    }
}

impl RunningTasks {
    pub(crate) fn new(follows: bool, publishes: bool) -> Self {
        Self {
            all_run: AtomicBool::new(!follows && !publishes),
            follower: TaskFlag::new(follows),
            publisher: TaskFlag::new(publishes),
        }
    }

    #[inline]
    pub(crate) fn all_run(&self) -> bool {
        self.all_run.load(Ordering::Relaxed)
    }

    /// Notes that all tasks that are wanted will run.
    pub(crate) fn note_started(&self) {
        self.all_run.store(true, Ordering::Release);
    }

    /// Notes that a task has stopped.
    pub(crate) fn note_stopped(&self, task: fn(&Self) -> &TaskFlag) {
        task(self).runs.store(false, Ordering::Release);
        self.all_run.store(false, Ordering::Release);
    }
}
