//! Detects the servers that some tests need; without them cargo reports those tests as ignored.

use std::{path::PathBuf, process::Command};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_redis, has_postgres, has_promtool, has_chromium)");
    println!("cargo::rerun-if-env-changed=PATH");
    if ["redis-server", "redis-cli"].iter().all(|program| answers(&PathBuf::from(program))) {
        println!("cargo::rustc-cfg=has_redis");
    }
    if ["chromium", "chromedriver"].iter().all(|program| answers(&PathBuf::from(program))) {
        println!("cargo::rustc-cfg=has_chromium");
    }
    if answers(&PathBuf::from("promtool")) {
        println!("cargo::rustc-cfg=has_promtool");
    }
    if let Some(programs) = postgres().filter(|_| answers(&PathBuf::from("psql"))) {
        println!("cargo::rustc-cfg=has_postgres");
        println!("cargo::rustc-env=POSTGRES_PROGRAMS={}", programs.display());
    }
}

fn answers(program: &PathBuf) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// The folder of `initdb` and `postgres`. Debian keeps them out of the `PATH`, in a folder for each version.
fn postgres() -> Option<PathBuf> {
    let has_all = |folder: &PathBuf| {
        ["initdb", "postgres"].iter().all(|program| answers(&folder.join(program)))
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    versions.sort();
    folders.splice(0..0, versions.into_iter().rev());
    folders.into_iter().find(has_all)
}
