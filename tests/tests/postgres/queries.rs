//! PostgreSQL: the values of parameters and results, and the analysis of its tables.

use larder::{
    Larder, Target,
    sql::{Db, QueryErrorKind, SqlValue, Statement},
};

use tests::postgres::Server;

async fn with(schema: &str) -> (Server, Larder, Db) {
    let server = Server::start();
    server.psql(schema);
    let larder = Larder::builder().tag_table_slots(1 << 12).build().unwrap();
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
        $14, $15, $16, $17)";
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
    let columns =
        "SELECT small, whole, real, wide, yes, word, few, who, at, local, day, money, mood
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
    let texts = ["word", "few", "who", "at", "local", "day", "money", "mood"];
    assert_eq!(
        texts.map(text),
        [
            "a 'word'",
            "few",
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
    // NULL is a value of any type.
    let nothing = "UPDATE v SET whole = $1, at = $2, word = $3 WHERE id = $4";
    let nothing = [SqlValue::Null, SqlValue::Null, SqlValue::Null, 1.into()]
        .into_iter()
        .fold(Statement::new(nothing), Statement::bind);
    assert_eq!(db.statement(nothing).execute().await.unwrap(), 1);
    let left = db.query("SELECT count(whole) + count(at) + count(word) FROM v");
    assert_eq!(left.fetch_scalar::<i64>().await.unwrap(), 0);
    // The same text with a parameter of another type is another statement.
    let word =
        |value: SqlValue| db.query("SELECT few FROM v WHERE few = $1").bind(value).uncached();
    assert_eq!(word("few".into()).fetch_all::<String>().await.unwrap().len(), 1);
    assert!(word(vec![1_u8].into()).fetch_all::<String>().await.is_err());
    assert_eq!(word("few".into()).fetch_all::<String>().await.unwrap().len(), 1);
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn types_of_postgres_are_the_usual_types_of_rust() {
    use std::ops::{Bound, Range};

    use serde::{Deserialize, Serialize};

    let (_server, _larder, db) = with(
        "CREATE TYPE mood AS ENUM ('fine', 'tired');
         CREATE TYPE place AS (street text, number int, mood mood);
         CREATE DOMAIN positive AS int CHECK (VALUE > 0);",
    )
    .await;
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mood {
        Fine,
        Tired,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Place {
        street: String,
        number: Option<i32>,
        mood: Mood,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Document {
        a: Vec<Option<u8>>,
    }
    // A sequence or a struct is a row, so a column that is one is read from a tuple.
    macro_rules! read {
        ($expression:literal as $rust:ty) => {{
            let query = db.query(concat!("SELECT ", $expression, " AS v"));
            query.uncached().fetch_one::<($rust,)>().await
        }};
    }
    macro_rules! reads {
        ($($expression:literal as $rust:ty: $expected:expr;)*) => {
            $(assert_eq!(read!($expression as $rust).unwrap().0, $expected, "{}", $expression);)*
        };
    }
    reads! {
        r#"'{"a": [1, null]}'::jsonb"# as String: r#"{"a": [1, null]}"#;
        r#"'"tired"'::json"# as Mood: Mood::Tired;
        "'null'::jsonb" as Option<i64>: None;
        "'7'::jsonb" as i64: 7;
        "ARRAY[1, NULL, 3]" as Vec<Option<i64>>: [Some(1), None, Some(3)];
        "ARRAY[[1, 2], [3, 4]]" as Vec<Vec<i32>>: [[1, 2], [3, 4]];
        "'{}'::int[]" as Vec<i32>: [0_i32; 0];
        "ARRAY['a', 'b c']" as Vec<String>: ["a", "b c"];
        "ARRAY['tired', 'fine']::mood[]" as Vec<String>: ["tired", "fine"];
        "ARRAY['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid]" as Vec<uuid::Uuid>: [uuid::Uuid::from_u128(0xa0ee_bc99_9c0b_4ef8_bb6d_6bb9_bd38_0a11)];
        "'10.1.2.3'::inet" as std::net::IpAddr: std::net::IpAddr::from([10, 1, 2, 3]);
        "'::1'::inet" as std::net::IpAddr: std::net::IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1_u16]);
        "'10.0.0.0/8'::cidr" as String: "10.0.0.0/8";
        "'08:00:2b:01:02:03'::macaddr" as String: "08:00:2b:01:02:03";
        "B'1010011010'" as String: "1010011010";
        "interval '1 year 2 mons 3 days 04:05:06.5'" as String: "P1Y2M3DT4H5M6.5S";
        "'10:30:00+01'::timetz" as String: "10:30:00+01:00";
        "int4range(1, 5)" as Range<i32>: 1..5;
        "int4range(1, 5)" as String: "[1,5)";
        "numrange(NULL, 1.5, '(]')" as (Bound<String>, Bound<rust_decimal::Decimal>): (Bound::Unbounded, Bound::Included("1.5".parse().unwrap()));
        "'[2024-02-29,2024-03-02)'::daterange" as Range<chrono::NaiveDate>: "2024-02-29".parse().unwrap().."2024-03-02".parse().unwrap();
        "7::positive" as u8: 7;
        "12.50::numeric" as rust_decimal::Decimal: "12.50".parse().unwrap();
        "'2024-02-29 10:11:12.5+00'::timestamptz" as chrono::DateTime<chrono::Utc>: "2024-02-29T10:11:12.5Z".parse::<chrono::DateTime<chrono::Utc>>().unwrap();
        "'2024-02-29 10:11:12'::timestamp" as chrono::NaiveDateTime: "2024-02-29T10:11:12".parse().unwrap();
        "'2024-02-29'::date" as chrono::NaiveDate: "2024-02-29".parse().unwrap();
        "'10:11:12.25'::time" as chrono::NaiveTime: "10:11:12.25".parse().unwrap();
        "'2024-02-29 10:11:12.5+00'::timestamptz" as time::OffsetDateTime: time::macros::datetime!(2024-02-29 10:11:12.5 UTC);
        "'2024-03-01 10:11:12'::timestamp" as time::PrimitiveDateTime: time::macros::datetime!(2024-03-01 10:11:12);
        "'2023-12-31'::date" as time::Date: time::macros::date!(2023-12-31);
        "'10:11:12.25'::time" as time::Time: time::macros::time!(10:11:12.25);
    }
    let place = db.query("SELECT ROW('High Street', 7, 'fine')::place AS place");
    let place = place.fetch_one::<Place>().await.unwrap_err();
    assert!(place.to_string().contains("cannot be decoded"), "a struct is a row");
    let places = "SELECT ARRAY[ROW('High Street', NULL, 'fine')::place] AS places";
    let places = db.query(places).fetch_one::<(Vec<Place>,)>().await.unwrap();
    let expected = Place { street: "High Street".to_owned(), number: None, mood: Mood::Fine };
    assert_eq!(places.0, [expected]);
    let document = db.query(r#"SELECT '{"a": [1, null]}'::jsonb"#);
    let document = document.fetch_one::<(Document,)>().await.unwrap();
    assert_eq!(document.0, Document { a: vec![Some(1), None] });
    let value = db.query(r#"SELECT '{"a": [1, null]}'::jsonb"#);
    let value = value.fetch_one::<(serde_json::Value,)>().await.unwrap();
    assert_eq!(value.0, serde_json::json!({"a": [1, null]}));
    let why = read!("'a b'::tsvector" as String).unwrap_err();
    let why = std::error::Error::source(&why).unwrap().to_string();
    assert!(why.contains("a column of type tsvector cannot be read: write column::text"), "{why}");

    // The values of parameters.
    let one = async |text: &'static str, value: SqlValue| {
        db.query(text).bind(value).fetch_scalar::<bool>().await
    };
    let rows: [(&str, SqlValue); 12] = [
        ("SELECT 2 = ANY ($1::int[])", vec![1_i64, 2].into()),
        ("SELECT 'b' = ANY ($1::text[])", vec!["a", "b"].into()),
        ("SELECT cardinality($1::uuid[]) = 0", SqlValue::array([0_i64; 0])),
        (
            "SELECT $1::numeric[] = ARRAY[1.5, NULL]",
            SqlValue::array(["1.5".into(), SqlValue::Null]),
        ),
        ("SELECT $1::jsonb = '{\"a\": 1}'", serde_json::json!({"a": 1}).into()),
        ("SELECT $1::json ->> 'a' = '1'", serde_json::json!({"a": 1}).into()),
        ("SELECT $1::numeric = 0.0125", "0.0125".into()),
        ("SELECT $1::numeric = 10000000000", SqlValue::text(1e10)),
        ("SELECT $1::date = '2024-02-29'", "2024-02-29".into()),
        ("SELECT $1::timestamp = '2024-02-29 10:00'", "2024-02-29T10:00:00".into()),
        ("SELECT $1::time = '10:00'", "10:00".into()),
        ("SELECT $1::inet <<= '10.0.0.0/8'", "10.1.2.3".into()),
    ];
    for (text, value) in rows {
        assert!(one(text, value).await.unwrap(), "{text}");
    }
    let why = one("SELECT $1::date = '2024-02-29'", "29.2.2024".into()).await.unwrap_err();
    let why = std::error::Error::source(&why).unwrap().to_string();
    assert!(why.contains("\"29.2.2024\" is not a date like 2024-02-29"), "{why}");
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
async fn the_catalog_of_postgres_gives_tables_and_rows_of_statements() {
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
        ("SELECT * FROM short WHERE id = 'x'", "sql:main:short:x"),
        ("SELECT * FROM short WHERE id = 'xyz '", "sql:main:short"),
        ("SELECT * FROM made WHERE id = 7", "sql:main:made:7"),
        ("SELECT * FROM part WHERE id = 7 AND at = 1", "sql:main:part:7,1"),
        ("SELECT * FROM cheap", "sql:main:a"),
        ("SELECT * FROM recent", "unknown-relation"),
        ("SELECT * FROM kept", "unknown-relation"),
        ("SELECT * FROM secret WHERE id = 7", "unknown-relation"),
        ("SELECT * FROM \"Case\"", "unknown-relation"),
        ("SELECT twice(id) FROM a WHERE id = 7", "sql:main:a:7 sql:main:a:#absent"),
        ("SELECT upper('x'), cardinality(ARRAY[1])", "sql:main"),
        ("SELECT v FROM a WHERE v = 1 AND now() > 'yesterday'", "volatile"),
        ("SELECT date 'today' FROM a", "volatile"),
        ("SELECT looks() FROM a WHERE id = 7", "stable-function"),
        ("SELECT to_char(1, '9')", "sql:main"),
        ("SELECT row_to_json(a) FROM a WHERE id = 7", "sql:main:a:7 sql:main:a:#absent"),
        ("SELECT age(TIMESTAMP '2020-01-01', TIMESTAMP '2019-01-01')", "sql:main"),
        ("SELECT age(TIMESTAMP '2019-01-01')", "volatile"),
        ("SELECT to_date('today', 'YYYY')", "volatile"),
        ("SELECT pg_get_viewdef('cheap'::regclass)", "stable-function"),
        ("SELECT col_description('a'::regclass, 1)", "stable-function"),
        ("SELECT has_table_privilege('a', 'SELECT')", "stable-function"),
        ("SELECT pg_catalog.upper('x')", "sql:main"),
        ("SELECT app.replace(1)", "unknown-function"),
        ("SELECT * FROM app.replace(1)", "unknown-function"),
        ("SELECT * FROM totals", "unknown-relation"),
        ("SELECT * FROM sizes", "unknown-relation"),
        ("SELECT a.orders FROM a WHERE id = 7", "stable-function"),
        ("SELECT (a).orders FROM a WHERE id = 7", "stable-function"),
        ("SELECT (ARRAY[1, 2])[1], ('{}'::jsonb)['a'] FROM a WHERE id = 7", "sql:main:a:7"),
        ("SELECT ('s'::regclass).nextval", "volatile"),
        ("SELECT (a.ts).age FROM a", "volatile"),
        ("SELECT * FROM age(TIMESTAMP '2019-01-01')", "volatile"),
        ("SELECT TIME '10:00'::text, timetz(TIME '10:00')", "stable-function"),
        ("SELECT tot(id) FROM a", "stable-function"),
        ("SELECT id ### 3 FROM a", "stable-function"),
        ("SELECT id OPERATOR(public.###) 3 FROM a", "stable-function"),
        ("SELECT id ~ ANY (ARRAY[3]) FROM a", "stable-function"),
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
        assert_eq!(
            explained.not_stored.map_or(reads.join(" "), |why| why.to_string()),
            expected,
            "{text}"
        );
    }
    let moving = db.explain(&Statement::new("SELECT * FROM a WHERE v > $1").bind("Today"));
    assert_eq!(moving.not_stored, Some(larder::Reason::Volatile));
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
    // A trigger of a user may do anything, and one that runs before a row decides its key.
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
async fn a_transaction_with_an_error_does_not_count_as_committed() {
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
    // An error raised before anything reached the server leaves the transaction usable.
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
    assert_eq!(v().await.unwrap(), 1, "no other connection sees it before the commit");
    transaction.commit().await.unwrap();
    assert_eq!((v().await.unwrap(), larder.stats().invalidations), (3, before + 1));
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn a_statement_is_prepared_again_after_its_table_changed() {
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

/// The value in the server's own notation, without a cast of its type.
async fn text(db: &Db, expression: &str) -> Result<Option<String>, larder::sql::QueryError> {
    let text = format!("SELECT {expression} AS value");
    db.query(text).uncached().fetch_scalar::<Option<String>>().await
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn values_at_the_limits_of_their_types_are_exact() {
    let (_server, _larder, db) = with("SET TimeZone = 'UTC'").await;
    // Values that RFC 3339 can express are written so, all others as the server writes them.
    let rows = [
        ("time '24:00:00'", "24:00:00"),
        ("time '23:59:59.999999'", "23:59:59.999999"),
        ("time '00:00'", "00:00:00"),
        ("date '0044-03-15 BC'", "0044-03-15 BC"),
        ("date '0001-01-01'", "0001-01-01"),
        ("date '0001-12-31 BC'", "0001-12-31 BC"),
        ("date '4713-01-01 BC'", "4713-01-01 BC"),
        ("date '5874897-12-31'", "5874897-12-31"),
        ("date '2000-02-29'", "2000-02-29"),
        ("date 'infinity'", "infinity"),
        ("date '-infinity'", "-infinity"),
        ("timestamp '0044-03-15 12:30:00.25 BC'", "0044-03-15 12:30:00.25 BC"),
        ("timestamp '294276-12-31 23:59:59.999999'", "294276-12-31 23:59:59.999999"),
        ("timestamp '9999-12-31 23:59:59'", "9999-12-31T23:59:59"),
        ("timestamp 'infinity'", "infinity"),
        ("timestamptz '0044-03-15 12:00:00+00 BC'", "0044-03-15 12:00:00+00 BC"),
        ("timestamptz '12000-01-01 00:00:00+00'", "12000-01-01 00:00:00+00"),
        ("timestamptz '2026-11-30 01:00:00+01'", "2026-11-30T00:00:00Z"),
        ("numeric 'NaN'", "NaN"),
        ("numeric '-Infinity'", "-Infinity"),
        ("numeric '0.0000000000000000000000001'", "0.0000000000000000000000001"),
    ];
    for (expression, expected) in rows {
        assert_eq!(text(&db, expression).await.unwrap().as_deref(), Some(expected), "{expression}");
        // A value that was read can be passed as a parameter again.
        let kind = expression.split(' ').next().unwrap();
        let same = format!("SELECT {expression} = $1::text::{kind} AS same");
        let same = db.query(same).bind(expected).uncached().fetch_scalar::<bool>().await;
        assert!(same.unwrap(), "{expression}");
    }
    let same = db.query("SELECT timestamptz 'infinity' = $1").bind("infinity");
    assert!(same.uncached().fetch_scalar::<bool>().await.unwrap());
    let error = db.query("SELECT timestamptz 'now' = $1").bind("tomorrow").fetch_scalar::<bool>();
    let error = format!("{:?}", error.await.unwrap_err());
    assert!(error.contains("tomorrow") && error.contains("$n::text::timestamptz"), "{error}");
    for (expression, remedy) in [("point '(1,2)'", "::text"), ("'a'::tsvector", "::text")] {
        let error = format!("{:?}", text(&db, expression).await.unwrap_err());
        assert!(error.contains(remedy), "{expression}: {error}");
    }
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn triggers_and_functions_invalidate_the_tables_they_may_write() {
    // Each of them writes `counters` when a row of its table is written.
    let schema = "
        CREATE TABLE counters (name text PRIMARY KEY, n bigint);
        INSERT INTO counters VALUES ('n', 0);
        CREATE FUNCTION next_no() RETURNS bigint LANGUAGE sql AS 'UPDATE counters SET n = n + 1 RETURNING n';
        CREATE FUNCTION is_counted(bigint) RETURNS bool LANGUAGE sql AS 'SELECT next_no() > 0';
        CREATE FUNCTION counts(text) RETURNS bigint LANGUAGE sql AS 'SELECT next_no()';
        CREATE FUNCTION counts_both(bigint, bigint) RETURNS bool LANGUAGE sql AS 'SELECT next_no() > 0';
        CREATE TABLE by_default (id bigint PRIMARY KEY DEFAULT next_no(), item text);
        CREATE TABLE by_check (id bigint PRIMARY KEY, item text, CHECK (is_counted(id)));
        CREATE DOMAIN with_default AS bigint DEFAULT next_no();
        CREATE TABLE of_domain (id with_default PRIMARY KEY, item text);
        CREATE TABLE plain (id bigint PRIMARY KEY, item text);
        CREATE VIEW counting AS SELECT next_no() AS n;
        CREATE VIEW over_counting AS SELECT n FROM counting;
        CREATE SCHEMA s;
        CREATE VIEW s.counting_elsewhere AS SELECT next_no() AS n;
        CREATE FUNCTION touch(plain) RETURNS bigint LANGUAGE sql AS 'SELECT next_no()';
        CREATE FUNCTION step(bigint, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT next_no()';
        CREATE AGGREGATE stepping(bigint) (SFUNC = step, STYPE = bigint, INITCOND = '0');
        CREATE VIEW aggregated AS SELECT stepping(v) AS n FROM generate_series(1, 2) AS g (v);
        INSERT INTO plain VALUES (9, 'x');";
    let (_server, _larder, db) = with(schema).await;
    let count = async || {
        let n = || db.query("SELECT n FROM counters WHERE name = 'n'");
        let kept = n().fetch_scalar::<i64>().await.unwrap();
        let fresh = n().uncached().fetch_scalar::<i64>().await.unwrap();
        assert_eq!(kept, fresh);
        kept
    };
    for text in [
        "INSERT INTO by_default (item) VALUES ('x')",
        "INSERT INTO by_check (id, item) VALUES (1, 'x')",
        "UPDATE by_check SET item = 'y' WHERE id = 1",
        "INSERT INTO of_domain (item) VALUES ('x')",
        "SELECT n FROM counting",
        "SELECT n FROM over_counting",
        "SELECT public.next_no()",
        "SELECT n FROM s.counting_elsewhere",
        "SELECT n FROM aggregated",
        "SELECT (p).touch FROM plain p",
        "SELECT p.touch FROM plain p",
        "EXPLAIN ANALYZE SELECT next_no()",
        "SELECT 1 IS NORMALIZED, next_no()",
    ] {
        let before = count().await;
        let ran = db.query(text).execute().await;
        let after = count().await;
        assert!(ran.is_err() || after > before, "{text}: {before} to {after}");
    }
    // A domain whose check writes may do so wherever a value is converted to it, and a cast or an operator wherever it
    // applies implicitly.
    for (defines, text) in [
        ("CREATE DOMAIN checked AS bigint CHECK (is_counted(VALUE))", "SELECT CAST(1 AS checked)"),
        (
            "CREATE TABLE of_checked (id checked PRIMARY KEY)",
            "INSERT INTO of_checked (id) VALUES (1)",
        ),
        ("DROP TABLE of_checked; DROP DOMAIN checked", ""),
        ("CREATE TYPE fruit AS (name text)", ""),
        ("CREATE FUNCTION of_fruit(fruit) RETURNS bigint LANGUAGE sql AS 'SELECT next_no()'", ""),
        (
            "CREATE CAST (fruit AS bigint) WITH FUNCTION of_fruit(fruit)",
            "SELECT CAST(CAST(ROW('x') AS fruit) AS bigint)",
        ),
        ("DROP CAST (fruit AS bigint)", ""),
        (
            "CREATE FUNCTION eq_fruit(fruit, bigint) RETURNS bool LANGUAGE sql AS 'SELECT next_no() > 0'",
            "",
        ),
        (
            "CREATE OPERATOR = (LEFTARG = fruit, RIGHTARG = bigint, FUNCTION = eq_fruit)",
            "SELECT CAST(ROW('x') AS fruit) IN (1::bigint)",
        ),
        ("DROP OPERATOR = (fruit, bigint)", ""),
    ] {
        for statement in defines.split(';') {
            db.query(statement.to_owned()).execute().await.unwrap();
        }
        if text.is_empty() {
            continue;
        }
        let before = count().await;
        db.query(text).execute().await.unwrap();
        assert!(count().await > before, "{text}");
    }
    // A write without any of these still names its rows.
    let writes = db.explain(&Statement::new("INSERT INTO plain (id, item) VALUES (1, 'x')")).writes;
    let named = [Target::tag(db.table_tag("plain")), Target::tag(db.row_tag("plain", [1]))];
    assert_eq!(writes[..2], named);
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn a_cast_that_reads_a_table_is_not_cached() {
    let schema = "
        CREATE TABLE rates (rate bigint);
        INSERT INTO rates VALUES (2);
        CREATE TYPE price AS (cents bigint);
        CREATE FUNCTION in_euro(price) RETURNS bigint LANGUAGE sql STABLE AS 'SELECT $1.cents * rate FROM rates';
        CREATE CAST (price AS bigint) WITH FUNCTION in_euro(price);
        CREATE TABLE things (id bigint PRIMARY KEY, c price);
        INSERT INTO things VALUES (1, ROW(10));";
    let (_server, _larder, db) = with(schema).await;
    for text in [
        "SELECT c::bigint FROM things WHERE id = 1",
        "SELECT CAST(c AS bigint) FROM things WHERE id = 1",
    ] {
        db.query("UPDATE rates SET rate = 2").execute().await.unwrap();
        assert_eq!(db.query(text).fetch_scalar::<i64>().await.unwrap(), 20);
        db.query("UPDATE rates SET rate = 3").execute().await.unwrap();
        assert_eq!(db.query(text).fetch_scalar::<i64>().await.unwrap(), 30, "{text}");
    }
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn columns_whose_names_differ_only_by_case_name_no_row() {
    let long = "k".repeat(70);
    let schema = format!(
        "CREATE TABLE t (\"Id\" bigint PRIMARY KEY, id bigint, v bigint);
         INSERT INTO t VALUES (1, 7, 1), (7, 1, 1);
         CREATE TABLE l ({long} bigint PRIMARY KEY, v bigint);
         INSERT INTO l VALUES (1, 1);"
    );
    let (_server, _larder, db) = with(&schema).await;
    let v = || db.query("SELECT v FROM t WHERE id = 7").fetch_scalar::<i64>();
    assert_eq!(v().await.unwrap(), 1);
    db.query("UPDATE t SET v = 2 WHERE \"Id\" = 1").execute().await.unwrap();
    assert_eq!(v().await.unwrap(), 2);
    let v = || db.query(format!("SELECT v FROM l WHERE {long} = 2")).fetch_optional::<i64>();
    assert!(v().await.unwrap().is_none());
    db.query(format!("UPDATE l SET {long}x = 2 WHERE {long} = 1")).execute().await.unwrap();
    assert!(v().await.unwrap().is_some());
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn sessions_with_other_roles_or_settings_share_no_result() {
    let (server, larder, db) = with(
        "CREATE TABLE secrets (v text);
         INSERT INTO secrets VALUES ('hidden');
         CREATE TABLE moments (at timestamptz);
         INSERT INTO moments VALUES ('2026-11-30 00:30:00+00');
         CREATE ROLE guest LOGIN;
         GRANT SELECT ON moments TO guest;",
    )
    .await;
    let with = async |setting: &'static str| {
        let options = sqlx::postgres::PgPoolOptions::new().after_connect(move |connection, _| {
            Box::pin(async move { sqlx::query(setting).execute(connection).await.map(|_| ()) })
        });
        let pool = options.connect(&server.url()).await.unwrap();
        larder::sqlx::postgres(pool).cached(&larder).await.unwrap()
    };
    let secret = db.query("SELECT v FROM secrets").fetch_scalar::<String>().await.unwrap();
    assert_eq!(secret, "hidden");
    let guest = with("SET ROLE guest").await;
    let refused = guest.query("SELECT v FROM secrets").fetch_scalar::<String>().await.unwrap_err();
    assert_eq!(refused.kind(), QueryErrorKind::Database);
    for (setting, expected) in [
        ("SET TimeZone = 'UTC'", "2026-11-30 00:30:00+00"),
        ("SET TimeZone = 'Asia/Tokyo'", "2026-11-30 09:30:00+09"),
        ("SET DateStyle = 'German'", "30.11.2026 00:30:00 "),
    ] {
        let db = with(setting).await;
        let at = db.query("SELECT at::text FROM moments").fetch_scalar::<String>().await.unwrap();
        assert!(at.starts_with(expected), "{setting}: {at}");
    }
    // Equal settings are the same session.
    let hits = || larder.stats().cache("queries").map_or(0, |cache| cache.total.hits);
    let before = hits();
    let again = with("SET TimeZone = 'Asia/Tokyo'").await;
    again.query("SELECT at::text FROM moments").fetch_scalar::<String>().await.unwrap();
    assert_eq!(hits(), before + 1);
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn statements_are_prepared_again_after_ddl_also_in_transactions() {
    let server = Server::start();
    server.psql("CREATE TABLE a (id bigint PRIMARY KEY, v int); INSERT INTO a VALUES (1, 1)");
    let larder = Larder::builder().tag_table_slots(1 << 12).build().unwrap();
    // One connection, so that all statements meet its prepared ones.
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(&server.url()).await;
    let db = larder::sqlx::postgres(pool.unwrap()).cached(&larder).await.unwrap();
    let all = "SELECT * FROM a";
    let row = "SELECT v FROM a WHERE v = $1";
    let columns = async |db: &Db| {
        let mut transaction = db.begin().await.unwrap();
        let rows =
            transaction.query(all).fetch_all::<std::collections::BTreeMap<String, i64>>().await;
        let columns = rows.map(|rows| rows[0].len());
        transaction.rollback().await.unwrap();
        columns
    };
    assert_eq!(columns(&db).await.unwrap(), 2);
    let found = db.query(row).bind("1").uncached().fetch_all::<i64>().await.unwrap();
    assert_eq!(*found, [1]);
    server.psql("ALTER TABLE a ADD COLUMN w bigint DEFAULT 7");
    assert_eq!(columns(&db).await.unwrap_err().kind(), QueryErrorKind::Database);
    assert_eq!(columns(&db).await.unwrap(), 3, "the next transaction works");
    server.psql("ALTER TABLE a ALTER COLUMN v TYPE text USING v::text");
    let found = db.query(row).bind("1").uncached().fetch_all::<String>().await.unwrap();
    assert_eq!(*found, ["1"]);
    let found = db.query(row).bind("no number").uncached().fetch_all::<String>().await.unwrap();
    assert!(found.is_empty());
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn a_write_whose_returned_rows_cannot_be_decoded_reports_that_it_was_executed() {
    let (server, _larder, db) =
        with("CREATE TABLE a (id bigint PRIMARY KEY, words tsvector)").await;
    let count = || db.query("SELECT count(*) FROM a").fetch_scalar::<i64>();
    assert_eq!(count().await.unwrap(), 0);
    let insert = db.query("INSERT INTO a VALUES (1, 'a'), (2, 'b') RETURNING *");
    let error = insert.fetch_all::<(i64, String)>().await.unwrap_err();
    assert_eq!(error.kind(), QueryErrorKind::WrittenUnread);
    assert_eq!(
        (count().await.unwrap(), server.psql("SELECT count(*) FROM a")),
        (2, "2".to_owned())
    );
    let error = db.query("SELECT * FROM a").fetch_all::<(i64, String)>().await.unwrap_err();
    assert_eq!(error.kind(), QueryErrorKind::Database, "nothing was written");
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn a_nested_transaction_outlives_the_error_within_it() {
    let (_server, _larder, db) =
        with("CREATE TABLE a (id bigint PRIMARY KEY, v int); INSERT INTO a VALUES (1, 1)").await;
    let v = || db.query("SELECT v FROM a WHERE id = 1").fetch_scalar::<i64>();
    assert_eq!(v().await.unwrap(), 1);
    let mut outer = db.begin().await.unwrap();
    outer.query("UPDATE a SET v = 2 WHERE id = 1").execute().await.unwrap();
    let mut nested = outer.begin().await.unwrap();
    assert!(nested.query("INSERT INTO a VALUES (1, 9)").execute().await.is_err());
    assert!(nested.query("UPDATE a SET v = 9").execute().await.is_err(), "it was aborted");
    nested.rollback().await.unwrap();
    outer.commit().await.unwrap();
    assert_eq!(v().await.unwrap(), 2);
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn statements_that_cannot_write_invalidate_nothing() {
    let (_server, larder, db) = with(
        "CREATE EXTENSION pgcrypto;
         CREATE TABLE a (id bigint PRIMARY KEY, v int); INSERT INTO a VALUES (1, 1);
         CREATE FUNCTION twice(bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 2 * $1';",
    )
    .await;
    let before = larder.stats().invalidations;
    for text in [
        "SELECT ROW(1, 2)::text",
        "SELECT (ARRAY(SELECT v FROM a))::text",
        "SELECT v, GROUPING(v) FROM a GROUP BY CUBE (v)",
        "TABLE a",
        "SELECT public.twice(2)",
        "EXPLAIN SELECT 1",
        "EXPLAIN (COSTS OFF) DELETE FROM a",
        "SHOW TimeZone",
        "SELECT length(gen_salt('bf'))",
        "SELECT pg_sleep(0)::text",
    ] {
        let ran = db.query(text).execute().await;
        assert!(ran.is_ok(), "{text}: {ran:?}");
        assert_eq!(larder.stats().invalidations, before, "{text}");
    }
    assert!(db.is_cached(&Statement::new("SELECT public.twice(2)")));
}
