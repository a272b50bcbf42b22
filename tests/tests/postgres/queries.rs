//! What is asked of PostgreSQL, what comes back, and what is known of its tables.

use larder::{
    Larder, Target,
    sql::{Db, QueryErrorKind, SqlValue, Statement},
};

use tests::postgres::Server;

async fn with(schema: &str) -> (Server, Larder, Db) {
    let server = Server::start();
    server.psql(schema);
    let larder = Larder::builder().cells(1 << 12).build().unwrap();
    let db = server.db(&larder).await;
    (server, larder, db)
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn values_go_there_and_come_back() {
    let (_server, _larder, db) = with(
        "CREATE TYPE mood AS ENUM ('fine', 'tired');
         CREATE TABLE v (id bigint PRIMARY KEY, small int2, whole int4, real float4, wide float8, yes bool, word text,
            few varchar(5), bytes bytea, tree jsonb, plain json, who uuid, at timestamptz, local timestamp, day date,
            money numeric(10, 2), mood mood);",
    )
    .await;
    let insert = "INSERT INTO v VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,
        $14::text::timestamp, $15::text::date, $16::text::numeric, $17)";
    let values: [SqlValue; 17] = [
        1.into(),
        (-2).into(),
        3.into(),
        0.1.into(),
        0.25.into(),
        true.into(),
        "a 'word'".into(),
        "few".into(),
        vec![0_u8, 255].into(),
        r#"{"a": [1, null]}"#.into(),
        "[1,  2]".into(),
        "A0EEBC99-9c0b-4ef8-bb6d-6bb9bd380a11".into(),
        "2025-11-30T01:10:15.5+01:00".into(),
        "1999-12-31 23:59:59".into(),
        "2000-02-29".into(),
        "19.90".into(),
        "tired".into(),
    ];
    let statement = values.iter().cloned().fold(Statement::new(insert), Statement::bind);
    assert_eq!(db.statement(statement).execute().await.unwrap(), 1);
    type Row = std::collections::BTreeMap<String, SqlRow>;
    let columns = "SELECT small, whole, real, wide, yes, word, few, tree, plain, who, at, local, day, money, mood
        FROM v WHERE id = $1";
    let row = db.query(columns).bind(1).fetch_one::<Row>().await.unwrap();
    let bytes =
        db.query("SELECT bytes, mood FROM v").fetch_one::<(Vec<u8>, String)>().await.unwrap();
    assert_eq!(bytes.0, [0, 255]);
    let text = |name: &str| match &row[name] {
        SqlRow::Text(text) => text.clone(),
        other => panic!("{name} is {other:?}"),
    };
    assert_eq!((&row["small"], &row["whole"]), (&SqlRow::Int(-2), &SqlRow::Int(3)));
    assert_eq!((&row["real"], &row["wide"]), (&SqlRow::Real(0.1), &SqlRow::Real(0.25)));
    assert_eq!(row["yes"], SqlRow::Bool(true));
    let texts = ["word", "few", "tree", "plain", "who", "at", "local", "day", "money", "mood"];
    assert_eq!(
        texts.map(text),
        [
            "a 'word'",
            "few",
            r#"{"a": [1, null]}"#,
            "[1,  2]",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "2025-11-30T00:10:15.5Z",
            "1999-12-31T23:59:59",
            "2000-02-29",
            "19.90",
            "tired"
        ]
    );
    let sum = db.query("SELECT sum(id) FROM v").fetch_scalar::<i64>().await.unwrap();
    let money = db.query("SELECT money FROM v").fetch_scalar::<f64>().await.unwrap();
    assert_eq!((sum, money), (1, 19.9));
    // Nothing is a value of whatever type is wanted.
    let nothing = "UPDATE v SET whole = $1, at = $2, word = $3 WHERE id = $4";
    let nothing = [SqlValue::Null, SqlValue::Null, SqlValue::Null, 1.into()]
        .into_iter()
        .fold(Statement::new(nothing), Statement::bind);
    assert_eq!(db.statement(nothing).execute().await.unwrap(), 1);
    let left = db.query("SELECT count(whole) + count(at) + count(word) FROM v");
    assert_eq!(left.fetch_scalar::<i64>().await.unwrap(), 0);
    // The same text with a value of another type is another statement.
    let word =
        |value: SqlValue| db.query("SELECT few FROM v WHERE few = $1").bind(value).uncached();
    assert_eq!(word("few".into()).fetch_all::<String>().await.unwrap().len(), 1);
    assert!(word(vec![1_u8].into()).fetch_all::<String>().await.is_err());
    assert_eq!(word("few".into()).fetch_all::<String>().await.unwrap().len(), 1);
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum SqlRow {
    Bool(bool),
    Int(i64),
    Real(f64),
    Text(String),
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn what_is_known_of_tables_says_what_depends_on_what() {
    let (server, _larder, db) = with(
        "CREATE TABLE a (id bigint PRIMARY KEY, v int);
         CREATE TABLE b (id int PRIMARY KEY, a_id bigint REFERENCES a ON DELETE CASCADE);
         CREATE TABLE short (id varchar(3) PRIMARY KEY);
         CREATE TABLE made (id bigint PRIMARY KEY, double bigint GENERATED ALWAYS AS (id * 2) STORED);
         CREATE TABLE part (id bigint, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
         CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (20);
         CREATE TABLE ruled (id bigint PRIMARY KEY);
         CREATE RULE elsewhere AS ON INSERT TO ruled DO ALSO INSERT INTO a VALUES (99, 99);
         CREATE TABLE secret (id bigint PRIMARY KEY);
         ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
         CREATE TABLE \"Case\" (id bigint PRIMARY KEY);
         CREATE TABLE \"case\" (id bigint PRIMARY KEY);
         CREATE VIEW cheap AS SELECT * FROM a WHERE v < 3;
         CREATE VIEW recent AS SELECT * FROM a WHERE now() > '2000-01-01';
         CREATE MATERIALIZED VIEW kept AS SELECT * FROM a;
         CREATE SCHEMA other;
         CREATE TABLE other.a (id bigint PRIMARY KEY);
         CREATE FUNCTION twice(bigint) RETURNS bigint IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2';
         CREATE FUNCTION lower(a) RETURNS text LANGUAGE sql AS 'DELETE FROM a; SELECT ''''';
         CREATE FUNCTION looks() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM b';
         CREATE FUNCTION version(bigint) RETURNS bigint LANGUAGE sql AS 'DELETE FROM b; SELECT 1::bigint';
         CREATE SCHEMA app;
         CREATE FUNCTION app.replace(bigint) RETURNS bigint LANGUAGE sql AS 'DELETE FROM b; SELECT 1::bigint';
         CREATE FUNCTION total(bigint) RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM b';
         CREATE VIEW totals AS SELECT id, total(id) FROM a;
         CREATE VIEW sizes AS SELECT relname, reltuples FROM pg_class;
         CREATE FUNCTION orders(a) RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM b';
         CREATE FUNCTION step(bigint, bigint) RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM b';
         CREATE AGGREGATE tot(bigint) (SFUNC = step, STYPE = bigint);
         CREATE OPERATOR ### (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = step);
         CREATE OPERATOR ~ (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = step);
         CREATE TABLE wide (id bigint, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE app.wide_1 PARTITION OF wide FOR VALUES FROM (0) TO (10);
         CREATE SCHEMA main;
         CREATE TABLE main.a (id bigint PRIMARY KEY);",
    )
    .await;
    let rows = [
        ("SELECT * FROM a WHERE id = 7", "sql:main:a:7"),
        ("SELECT * FROM public.a WHERE id = 7", "sql:main:a:7"),
        ("SELECT * FROM a WHERE id = '7'", "sql:main:a"),
        ("SELECT * FROM other.a WHERE id = 7", "unknown-relation"),
        ("SELECT * FROM short WHERE id = 'x'", "sql:main:short"),
        ("SELECT * FROM made WHERE id = 7", "sql:main:made:7"),
        ("SELECT * FROM part WHERE id = 7 AND at = 1", "sql:main:part:7,1"),
        ("SELECT * FROM cheap", "sql:main:a"),
        ("SELECT * FROM recent", "unknown-relation"),
        ("SELECT * FROM kept", "unknown-relation"),
        ("SELECT * FROM secret WHERE id = 7", "unknown-relation"),
        ("SELECT * FROM \"Case\"", "unknown-relation"),
        ("SELECT twice(id) FROM a WHERE id = 7", "sql:main:a:7"),
        ("SELECT upper('x'), cardinality(ARRAY[1])", ""),
        ("SELECT v FROM a WHERE v = 1 AND now() > 'yesterday'", "volatile"),
        ("SELECT date 'today' FROM a", "volatile"),
        ("SELECT looks() FROM a WHERE id = 7", "unknown-relation"),
        ("SELECT to_char(1, '9')", "unknown-relation"),
        ("SELECT pg_catalog.upper('x')", ""),
        ("SELECT app.replace(1)", "unknown-function"),
        ("SELECT * FROM app.replace(1)", "unknown-function"),
        ("SELECT * FROM totals", "unknown-relation"),
        ("SELECT * FROM sizes", "unknown-relation"),
        ("SELECT a.orders FROM a WHERE id = 7", "unknown-relation"),
        ("SELECT (a).orders FROM a WHERE id = 7", "unknown-relation"),
        ("SELECT tot(id) FROM a", "unknown-relation"),
        ("SELECT id ### 3 FROM a", "unknown-relation"),
        ("SELECT id OPERATOR(public.###) 3 FROM a", "unknown-relation"),
        ("SELECT id ~ ANY (ARRAY[3]) FROM a", "unknown-relation"),
        ("SELECT version(id) FROM a", "unknown-function"),
        ("SELECT * FROM wide", "unknown-relation"),
        ("SELECT * FROM main.a", "unknown-relation"),
        ("WITH kept AS (SELECT * FROM kept WHERE id = 1) SELECT * FROM kept", "unknown-relation"),
        ("WITH secret AS (SELECT * FROM secret) SELECT * FROM secret", "unknown-relation"),
        ("SELECT * FROM a WHERE '[today,tomorrow)'::daterange @> now()::date", "volatile"),
        ("SELECT '10:00 today'::timestamp", "volatile"),
        ("SELECT * FROM a FOR UPDATE", "for-update"),
        ("SELECT pg_notify('x', '')", "unknown-function"),
        ("SELECT lower(a) FROM a", "unknown-function"),
    ];
    for (text, expected) in rows {
        let explained = db.explain(&Statement::new(text));
        let reads: Vec<&str> = explained.reads.iter().map(|tag| tag.as_str()).collect();
        assert_eq!(explained.not_kept.unwrap_or(&reads.join(" ")), expected, "{text}");
    }
    let moving = db.explain(&Statement::new("SELECT * FROM a WHERE v > $1").bind("Today"));
    assert_eq!(moving.not_kept, Some("volatile"));
    let everything = format!("{:?}", [Target::prefix("sql:main")]);
    let writes = |text: &'static str| format!("{:?}", db.explain(&Statement::new(text)).writes);
    let tree = writes("UPDATE part_1 SET id = 1 WHERE id = 7 AND at = 1");
    assert!(tree.contains("part") && tree.contains("part_1") && tree.contains("part_2"), "{tree}");
    let cascades = writes("DELETE FROM a WHERE id = 7");
    assert!(cascades.contains("sql:main:a:7") && cascades.contains("sql:main:b"), "{cascades}");
    for text in
        ["INSERT INTO ruled (id) VALUES (1)", "INSERT INTO a (id) VALUES (1) RETURNING lower(a)"]
    {
        assert_eq!(writes(text), everything, "{text}");
    }
    // A trigger of somebody may do anything, and one that runs before a row decides its key.
    server.psql(
        "CREATE FUNCTION moves() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.id := NEW.id + 1; RETURN NEW; END';
         CREATE TRIGGER moves BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION moves();",
    );
    db.query("ANALYZE b").execute().await.unwrap();
    assert_eq!(writes("INSERT INTO a (id) VALUES (1)"), everything);
    let reads = db.explain(&Statement::new("SELECT * FROM a WHERE id = 7")).reads;
    assert_eq!(reads[0].as_str(), "sql:main:a");
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn a_transaction_with_an_error_is_not_taken_for_committed() {
    let (_server, larder, db) = with("CREATE TABLE a (id bigint PRIMARY KEY, v int)").await;
    db.query("INSERT INTO a (id, v) VALUES (1, 1)").execute().await.unwrap();
    let v = || db.query("SELECT v FROM a WHERE id = $1").bind(1).fetch_scalar::<i64>();
    assert_eq!(v().await.unwrap(), 1);
    let mut transaction = db.begin().await.unwrap();
    transaction.query("UPDATE a SET v = 2 WHERE id = 1").execute().await.unwrap();
    assert!(transaction.query("INSERT INTO a (id) VALUES (1)").execute().await.is_err());
    let ended = transaction.commit().await.unwrap_err();
    assert_eq!(ended.kind(), QueryErrorKind::RolledBack);
    assert_eq!(v().await.unwrap(), 1);
    // An error that never reached the server has spoiled nothing.
    let mut transaction = db.begin().await.unwrap();
    let unwritten = transaction.query("SELECT $1::interval").bind("1 day").fetch_all::<String>();
    assert!(unwritten.await.is_err());
    transaction.query("UPDATE a SET v = 2 WHERE id = 1").execute().await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(v().await.unwrap(), 2);
    db.query("UPDATE a SET v = 1 WHERE id = 1").execute().await.unwrap();
    assert_eq!(v().await.unwrap(), 1);
    let before = larder.stats().invalidations;
    let mut transaction = db.begin().await.unwrap();
    transaction.query("UPDATE a SET v = 3 WHERE id = $1").bind(1).execute().await.unwrap();
    assert_eq!(v().await.unwrap(), 1, "nobody sees it before");
    transaction.commit().await.unwrap();
    assert_eq!((v().await.unwrap(), larder.stats().invalidations), (3, before + 1));
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn a_statement_that_was_prepared_for_other_tables_is_prepared_anew() {
    let (server, _larder, db) = with("CREATE TABLE a (id bigint PRIMARY KEY, v int)").await;
    let all = || {
        db.query("SELECT * FROM a")
            .uncached()
            .fetch_all::<std::collections::BTreeMap<String, i64>>()
    };
    server.psql("INSERT INTO a VALUES (1, 1)");
    assert_eq!(all().await.unwrap()[0].len(), 2);
    for _ in 0..8 {
        all().await.unwrap();
    }
    server.psql("ALTER TABLE a ADD COLUMN w bigint NOT NULL DEFAULT 7");
    assert_eq!(all().await.unwrap()[0]["w"], 7);
}
