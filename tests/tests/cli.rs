//! The `larder` command against a running shop, a Redis, a database and a terminal.

use std::{
    ffi::OsString,
    io::{Read as _, Write as _},
    time::{Duration, Instant},
};

use larder::{LoadHandle, Policy};
use serde_json::Value;

use crate::{
    redis::server::{MINUTE, Server, synced},
    running_shop::{Shop, TOKEN},
};

/// Runs the command. Returns its exit code, its output and its errors.
async fn command(arguments: &[&str]) -> (u8, String, String) {
    let arguments: Vec<OsString> =
        ["larder"].iter().chain(arguments).map(|argument| OsString::from(*argument)).collect();
    let run = move || {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = larder_cli::run(arguments, &mut out, &mut err);
        (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// Runs the command with the admin API of a shop.
async fn at(shop: &Shop, arguments: &[&str]) -> (u8, String, String) {
    let url = shop.url("/larder");
    command(&[&["--url", &url, "--token", TOKEN], arguments].concat()).await
}

async fn output(shop: &Shop, arguments: &[&str]) -> String {
    let (code, out, err) = at(shop, arguments).await;
    assert_eq!((code, &*err), (0, ""), "{arguments:?}: {out}");
    out
}

async fn json(shop: &Shop, arguments: &[&str]) -> Value {
    let out = output(shop, &[&["--json"], arguments].concat()).await;
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {out}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_shows_and_changes_a_running_shop() {
    let (shop, larder) = Shop::open(&[]).await;
    for _ in 0..20 {
        shop.get("/products/7").await;
    }
    let stats = output(&shop, &["stats"]).await;
    assert!(stats.contains("First level") && stats.contains("/products/{id}  pages"), "{stats}");
    let stats = json(&shop, &["stats"]).await;
    assert_eq!(
        stats["caches"].as_array().unwrap().iter().filter(|it| it["name"] == "pages").count(),
        1
    );

    let url = shop.url("/products/7");
    let explained = output(&shop, &["explain", &url]).await;
    assert!(
        explained.contains("Outcome         hit: The stored response is served."),
        "{explained}"
    );
    assert!(explained.contains("sql:main:products:7 (from object)"), "{explained}");
    let post = json(&shop, &["explain", &url, "--method", "POST"]).await;
    assert_eq!(post[0]["decision"]["outcome"]["word"], "bypass");

    let hot = output(&shop, &["hot", "-n", "1"]).await;
    assert!(hot.lines().nth(2).is_some_and(|line| line.contains("/products/7")), "{hot}");
    assert!(output(&shop, &["hot", "--cold"]).await.contains("not requested for"));
    assert!(!output(&shop, &["advice"]).await.is_empty());

    let base = shop.url("");
    let warmed = output(&shop, &["warm", "--base", &base, "/products/8", "/products/7"]).await;
    assert!(warmed.contains("200 hit") && warmed.contains("200 fwd=uri-miss"), "{warmed}");
    let hot = output(&shop, &["warm", "--base", &base, "--hot", "5"]).await;
    assert!(hot.contains("200 hit"), "{hot}");

    let before = larder.stats().invalidations;
    let preview = output(&shop, &["invalidate", "--tag", "product:7", "--dry-run"]).await;
    assert!(preview.contains("It would reach 2 entries of this process"), "{preview}");
    assert_eq!(larder.stats().invalidations, before);
    let tail = tokio::spawn({
        let url = shop.url("/larder");
        async move { command(&["--url", &url, "--token", TOKEN, "tail", "-n", "1"]).await.1 }
    });
    let mut made = 0;
    while !tail.is_finished() {
        let because = ["--because", "price \u{1b}[2J"];
        let invalidate = [&["invalidate", "--tag", "product:7"], &because[..]].concat();
        let done = output(&shop, &invalidate).await;
        assert!(done.starts_with("The invalidation is logged.\n  tag product:7\n"), "{done}");
        made += 1;
        assert!(made < 1_000, "the tail does not see it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(larder.stats().invalidations, before + made);
    let line = tail.await.unwrap();
    assert!(
        line.contains("hard  tag product:7  by full token  because: price \u{fffd}[2J"),
        "{line:?}"
    );
    let explained = json(&shop, &["explain", &url]).await;
    assert_eq!(explained[0]["decision"]["outcome"]["word"], "fill");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_is_one_clear_line_with_an_exit_code() {
    let (shop, _) = Shop::open(&[]).await;
    let url = shop.url("/larder");
    let elsewhere = shop.url("/nothing");
    for (arguments, expected, said) in [
        (vec!["stats"], 2, "the URL of the admin API is missing; allowed is --url or LARDER_URL"),
        (vec!["--url", "shop", "stats"], 2, "the URL of the admin API is \"shop\", allowed is"),
        (
            vec!["--url", &url, "stats"],
            4,
            "the token is missing; allowed is --token or LARDER_TOKEN",
        ),
        (
            vec!["--url", &url, "--token", "wrong", "stats"],
            4,
            "refused: the request has no credentials",
        ),
        (vec!["--url", &elsewhere, "--token", TOKEN, "stats"], 1, "there is no admin API at"),
        (
            vec!["--url", "http://127.0.0.1:9", "--token", TOKEN, "stats"],
            3,
            "http://127.0.0.1:9 does not answer",
        ),
        (vec!["--url", &url, "--token", TOKEN, "explain", "/products/7"], 1, "an absolute URL"),
        (vec!["--url", &url, "--token", TOKEN, "top"], 2, "top needs a terminal"),
        (
            vec!["--redis", "redis://127.0.0.1:9", "invalidate", "--tag", "a"],
            3,
            "the log does not answer",
        ),
        (vec!["--redis", "http://a", "tail"], 2, "--redis: "),
        (vec!["warm", "/a"], 2, "allowed is a URL, or with --base a path"),
        (
            vec!["sql", "install", "mysql://a"],
            2,
            "allowed is a URL that begins with postgres:// or sqlite:",
        ),
    ] {
        let (code, out, err) = command(&arguments).await;
        assert_eq!((code, &*out), (expected, ""), "{arguments:?}: {err}");
        assert!(err.starts_with("error: ") && err.contains(said), "{arguments:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    for arguments in
        [vec!["invalidate"], vec!["invalidate", "--tag", "a", "--path", "/a"], vec!["stat"]]
    {
        assert_eq!(command(&arguments).await.0, 2, "{arguments:?}");
    }
    let (code, script, _) = command(&["completions", "bash"]).await;
    assert!(code == 0 && script.contains("--dry-run"), "{script}");
    assert!(command(&["--help"]).await.1.contains("Exit codes"));
}

/// Rule: dependents do not stay stale. A client applies the rules that the application has published, or refuses.
#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn a_bare_client_applies_the_rules_of_the_application_or_refuses() {
    let server = Server::start(&[]).await;
    let url = format!("redis://127.0.0.1:{}", server.port);
    let (code, _, err) = command(&["--redis", &url, "invalidate", "--tag", "product:7"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("no process has published its dependency rules"), "{err}");

    let builder = larder::Larder::builder().second_level(server.redis());
    let larder = builder.depends("product:*", "catalog").build().unwrap();
    synced(&larder).await;
    let load = |value: u64| {
        let load = move |_: LoadHandle| async move { Ok::<_, std::convert::Infallible>(value) };
        larder.get_or_load("list", Policy::ttl(MINUTE).tag("catalog"), load)
    };
    assert_eq!(*load(1).await.unwrap(), 1);
    let began = Instant::now();
    while !server.cli(&["KEYS", "*"]).contains(":rules") {
        assert!(began.elapsed() < MINUTE, "the rules are not published");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let dry = command(&["--redis", &url, "invalidate", "--tag", "product:7", "--dry-run"]).await.1;
    assert!(dry.contains("not made") && dry.contains("  tag catalog\n"), "{dry}");
    assert_eq!(*load(2).await.unwrap(), 1, "a dry run changes nothing");

    let tail = tokio::spawn({
        let url = url.clone();
        async move { command(&["--redis", &url, "tail", "-n", "1", "--json"]).await.1 }
    });
    // The tail has begun when it has a connection that reads.
    while !server.cli(&["CLIENT", "LIST"]).contains("cmd=xread") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let done =
        command(&["--redis", &url, "invalidate", "--tag", "product:7", "--because", "import"])
            .await;
    assert_eq!(done.0, 0, "{done:?}");
    let began = Instant::now();
    let mut next = 2;
    while *load(next).await.unwrap() == 1 {
        assert!(began.elapsed() < MINUTE, "the dependent stays");
        next += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let line: Value = serde_json::from_str(&tail.await.unwrap()).unwrap();
    assert_eq!((&line["because"], &line["by"]), (&"import".into(), &"larder command".into()));
    assert_eq!(line["targets"][1]["text"], "catalog");
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_install_prints_or_installs_the_outbox() {
    let directory = std::env::temp_dir().join(format!("larder-cli-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let url = format!("sqlite://{}?mode=rwc", directory.join("a.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    sqlx::raw_sql("CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT)")
        .execute(&pool)
        .await
        .unwrap();
    let triggers = async || {
        let count = "SELECT count(*) FROM sqlite_master WHERE type = 'trigger'";
        sqlx::query_scalar::<_, i64>(count).fetch_one(&pool).await.unwrap()
    };
    let (code, sql, err) = command(&["sql", "install", &url, "--print"]).await;
    assert!(code == 0 && sql.contains("CREATE TRIGGER"), "{sql} {err}");
    assert_eq!(triggers().await, 0);
    let (code, out, err) = command(&["sql", "install", &url]).await;
    assert_eq!((code, &*out), (0, "The outbox is installed.\n"), "{err}");
    assert!(triggers().await > 0);
    std::fs::remove_dir_all(directory).unwrap();
}

/// A trace of a shop is replayed with several settings, and has no names.
#[tokio::test(flavor = "multi_thread")]
async fn replay_compares_settings_on_a_recorded_trace() {
    let (shop, larder) = Shop::open(&[]).await;
    let file = std::env::temp_dir().join(format!("larder-cli-trace-{}", std::process::id()));
    larder.record_trace(&file).unwrap();
    for product in (1..20).chain(1..20) {
        shop.get(&format!("/products/{product}")).await;
    }
    larder.finish_trace().unwrap();
    assert!(!std::fs::read_to_string(&file).unwrap().contains("products"));
    let path = file.to_str().unwrap();
    let flags = ["--memory", "64MiB", "--memory", "1KiB", "--policy", "tinylfu", "--policy", "lru"];
    let (code, table, err) = command(&[&["replay", path], &flags[..]].concat()).await;
    assert_eq!((code, table.lines().count()), (0, 5), "{table} {err}");
    let (code, json, _) = command(&[&["--json", "replay", path], &flags[..]].concat()).await;
    let all: Value = serde_json::from_str(&json).unwrap();
    let ratio = |place: usize| all[place]["hit_ratio"].as_f64().unwrap();
    assert!(code == 0 && ratio(0) > ratio(2), "a large memory has more hits: {json}");
    let (code, _, err) = command(&["replay", path, "--memory", "64MB"]).await;
    assert!(code == 2 && err.contains("allowed is a number with B, KiB, MiB or GiB"), "{err}");
    std::fs::remove_file(file).unwrap();
}

/// `top` in a terminal: it shows the counters, and ends by `q`, with the screen as it was.
#[tokio::test(flavor = "multi_thread")]
async fn top_shows_the_counters_in_a_terminal_and_ends_by_a_key() {
    let (shop, _) = Shop::open(&[]).await;
    for _ in 0..5 {
        shop.get("/products/7").await;
    }
    let url = shop.url("/larder");
    let shown = tokio::task::spawn_blocking(move || {
        let size = portable_pty::PtySize { rows: 40, cols: 140, pixel_width: 0, pixel_height: 0 };
        let pty = portable_pty::native_pty_system().openpty(size).unwrap();
        let mut top = portable_pty::CommandBuilder::new(env!("CARGO_BIN_EXE_larder"));
        top.args(["--url", &url, "--token", TOKEN, "top"]);
        top.env("TERM", "xterm-256color");
        let mut child = pty.slave.spawn_command(top).unwrap();
        drop(pty.slave);
        let mut keys = pty.master.take_writer().unwrap();
        let mut reader = pty.master.try_clone_reader().unwrap();
        let mut screen = vt100::Parser::new(40, 140, 0);
        let mut shown = String::new();
        let mut bytes = [0; 4096];
        while let Ok(read @ 1..) = reader.read(&mut bytes) {
            screen.process(&bytes[..read]);
            let now = screen.screen().contents();
            if now.contains("/products/{id}")
                && now.contains("requests/s   hit ratio")
                && shown.is_empty()
            {
                shown = now;
                keys.write_all(b"q").unwrap();
            }
        }
        let ended = child.wait().unwrap();
        (shown, ended.success(), screen.screen().alternate_screen())
    });
    let (shown, is_success, is_alternate) = shown.await.unwrap();
    assert!(is_success && !is_alternate, "{shown}");
    assert!(
        shown.contains("First level") && shown.contains("pages") && shown.contains("80.0 %"),
        "{shown}"
    );
}
