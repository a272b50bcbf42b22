//! Looks for the servers that some tests talk to: without them those tests are counted as ignored.

use std::process::Command;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_redis)");
    println!("cargo::rerun-if-env-changed=PATH");
    let found = ["redis-server", "redis-cli"].iter().all(|program| {
        Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
    });
    if found {
        println!("cargo::rustc-cfg=has_redis");
    }
}
