use larder_core::Target;

use super::*;
use crate::{
    catalog::{KeyKind, Table},
    tags::Tags,
    value::SqlValue,
};

fn catalog() -> Catalog {
    let id = || Table::new().key("id", KeyKind::Integer);
    Catalog::new()
        .table("products", id().child("reviews", true, false))
        .table("reviews", id())
        .table("categories", Table::new().key("slug", KeyKind::Text))
        .table("lines", Table::new().key("cart", KeyKind::Text).key("product", KeyKind::Integer))
        .table("notes", Table::new())
        .table("audited", id().triggers(["notes"]))
        .table("replaced", id().replaces_conflicts())
        .table("strange", id().triggers_anything())
        .view("cheap", ["products"])
        .view("cheaper", ["cheap", "categories"])
}

fn analysed(text: &str) -> Analysis {
    Analysis::of(text, SqlDialect::Sqlite, Some(&catalog()))
}

fn read(text: &str, values: &[SqlValue]) -> String {
    let analysis = analysed(text);
    let tags = Tags::new("d").read_by(&analysis, Some(&catalog()), values, true);
    let texts = tags.iter().map(|tag| tag.as_str().trim_start_matches("sql:d:").to_owned());
    let mut texts: Vec<_> = texts.collect();
    texts.sort();
    match analysis.nature {
        StatementKind::Query => texts.join(" "),
        other => format!("{other:?} {}", texts.join(" ")),
    }
}

fn written(text: &str, values: &[SqlValue]) -> String {
    let tags = Tags::new("d");
    let targets = tags.written_by(&analysed(text), Some(&catalog()), values).all(&tags);
    let texts = targets.into_iter().map(|target| format!("{target:?}"));
    // What depends on columns has a test of its own.
    let texts = texts.filter(|text| !text.contains(":#set") && !text.contains(":#rows"));
    let short = |text: String| {
        let of = |text: &str| text.split('"').nth(1).unwrap_or(text).to_owned();
        of(&text).replace("sql:d:", "")
    };
    texts.map(short).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_query_depends_on_the_rows_it_names_and_on_all_tables_it_reads() {
    let bound = [SqlValue::from(42), SqlValue::from("x")];
    let rows = [
        ("SELECT * FROM products WHERE id = 7", "products:7"),
        ("SELECT * FROM Products AS p WHERE ((p.ID = ?) AND p.price > 3)", "products:42"),
        ("SELECT * FROM products WHERE ?1 = id", "products:42"),
        ("SELECT * FROM products WHERE id IN (1, ?, -3)", "products:-3 products:1 products:42"),
        ("SELECT * FROM \"main\".\"products\" WHERE \"id\" = 7", "products:7"),
        // These are not a conjunction, not the key, or not a value that is compared as it is written.
        ("SELECT * FROM products WHERE id = 7 OR stock = 0", "products"),
        ("SELECT * FROM products WHERE NOT (id = 7)", "products"),
        ("SELECT * FROM products WHERE id NOT IN (7)", "products"),
        ("SELECT * FROM products WHERE id > 7", "products"),
        ("SELECT * FROM products WHERE id = '7'", "products"),
        ("SELECT * FROM products WHERE id = 7.0", "products"),
        ("SELECT * FROM products WHERE id = ?2", "products"),
        ("SELECT * FROM products WHERE id = ?9", "products"),
        ("SELECT * FROM products WHERE id = NULL", "products"),
        ("SELECT * FROM products WHERE id = stock", "products"),
        ("SELECT * FROM products WHERE id + 0 = 7", "products"),
        ("SELECT * FROM products WHERE stock > ?1 AND id = ?", "products"),
        ("SELECT * FROM other.products WHERE id = 7", "Volatile(UnknownRelation) sql:d"),
        ("SELECT * FROM products p(a, id) WHERE p.id = 7", "products"),
        ("SELECT * FROM categories WHERE slug = 'a'", "categories:a"),
        ("SELECT * FROM categories WHERE slug = 'a' COLLATE NOCASE", "categories"),
        ("SELECT * FROM categories WHERE slug = 5", "categories"),
        ("SELECT * FROM lines WHERE cart = 'a' AND product IN (1, 2)", "lines:a,1 lines:a,2"),
        ("SELECT * FROM lines WHERE cart = 'a'", "lines"),
        ("SELECT * FROM notes WHERE id = 7", "notes"),
        // Joins pin each table separately; a column name without a table belongs to neither table.
        (
            "SELECT * FROM products p JOIN categories c ON c.slug = p.slug WHERE p.id = 7",
            "categories products:7",
        ),
        (
            "SELECT * FROM products p LEFT JOIN reviews r ON true WHERE r.id = 1",
            "products reviews:1",
        ),
        ("SELECT * FROM products p, reviews r WHERE id = 7", "products reviews"),
        ("SELECT * FROM products p JOIN products q ON p.id = q.slug WHERE p.id = 7", "products"),
        (
            "SELECT * FROM products p JOIN products q ON true WHERE p.id = 7 AND q.id = 8",
            "products:7 products:8",
        ),
        ("SELECT * FROM products p ON p.id = 7", "Volatile(NotUnderstood) sql:d"),
        // Subqueries, CTEs, unions and views follow.
        (
            "SELECT (SELECT count(*) FROM reviews WHERE product = p.id) FROM products p WHERE p.id = 7",
            "products:7 reviews",
        ),
        ("SELECT * FROM products WHERE id = (SELECT max(id) FROM reviews)", "products reviews"),
        ("SELECT * FROM (SELECT * FROM products WHERE id = 7)", "products:7"),
        ("SELECT * FROM (SELECT * FROM products) WHERE id = 7", "products"),
        ("SELECT 1 WHERE EXISTS (SELECT 1 FROM reviews WHERE id = 3)", "reviews:3"),
        ("WITH x AS (SELECT * FROM reviews) SELECT * FROM x, products", "products reviews"),
        (
            "WITH products AS (SELECT * FROM products) SELECT * FROM products WHERE id = 7",
            "products",
        ),
        (
            "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT * FROM x",
            "sql:d",
        ),
        (
            "SELECT name FROM products WHERE id = 7 UNION SELECT name FROM products WHERE id = 8",
            "products:7 products:8",
        ),
        ("SELECT name FROM products WHERE id = 7 UNION SELECT name FROM products", "products"),
        ("SELECT * FROM cheap WHERE id = 7", "products"),
        ("SELECT * FROM cheaper", "categories products"),
        ("SELECT count(*), lower(name) FROM products GROUP BY 2 HAVING max(id) > 3", "products"),
    ];
    for (text, expected) in rows {
        assert_eq!(read(text, &bound), expected, "{text}");
    }
}

#[test]
fn volatile_and_unparsed_queries_are_not_storable() {
    let rows = [
        ("SELECT random()", "Volatile(Volatile) sql:d"),
        ("SELECT CURRENT_TIMESTAMP, * FROM products", "Volatile(Volatile) products"),
        ("SELECT * FROM products WHERE made < date('now')", "Volatile(Volatile) products"),
        ("SELECT * FROM products WHERE made < date(?)", "Volatile(Volatile) products"),
        ("SELECT date('2026-11-21')", "sql:d"),
        ("SELECT strftime('%Y')", "Volatile(Volatile) sql:d"),
        ("SELECT unixepoch('subsec')", "Volatile(Volatile) sql:d"),
        ("SELECT * FROM sqlite_sequence", "Volatile(UnknownRelation) sql:d"),
        (
            "SELECT 1 UNION SELECT id FROM (WITH cheap AS (SELECT 1 AS id) SELECT id FROM cheap)",
            "products",
        ),
        ("SELECT * FROM products FOR UPDATE", "Volatile(ForUpdate) products"),
        ("SELECT * FROM nobody_knows", "Volatile(UnknownRelation) sql:d"),
        ("SELECT charge_card(7)", "Unknown(UnknownFunction) sql:d"),
        ("SELECT 1; SELECT 2", "Unknown(SeveralStatements) sql:d"),
        ("SELEC 1", "Unknown(NotUnderstood) sql:d"),
        ("BEGIN", "Unknown(TransactionControl) sql:d"),
        ("TABLE products", "Unknown(NotUnderstood) sql:d"),
    ];
    for (text, expected) in rows {
        assert_eq!(read(text, &[]), expected, "{text}");
    }
}

/// A value that is made of the rows that a write returns depends on what the write reads.
#[test]
fn a_write_reads_the_rows_that_it_names() {
    for (text, expected) in [
        ("UPDATE products SET price = 1 WHERE id = 7 RETURNING *", "Write products:7"),
        ("UPDATE products SET price = 1 RETURNING *", "Write products"),
        ("DELETE FROM products WHERE id = 7", "Write products:7"),
        ("DELETE FROM products WHERE stock = 0", "Write products"),
        (
            "UPDATE products SET price = (SELECT max(price) FROM products) WHERE id = 7",
            "Write products",
        ),
        (
            "UPDATE products SET price = (SELECT price FROM products WHERE id = 8) WHERE id = 7",
            "Write products:7 products:8",
        ),
        ("UPDATE products SET price = (SELECT price FROM products WHERE id = 8)", "Write products"),
        (
            "UPDATE products SET price = r.x FROM reviews r WHERE products.id = 7",
            "Write products:7 reviews",
        ),
    ] {
        assert_eq!(read(text, &[]), expected, "{text}");
    }
}

#[test]
fn a_write_invalidates_the_rows_it_names_or_the_whole_table() {
    let bound = [SqlValue::from(42), SqlValue::from("x")];
    let rows = [
        ("UPDATE products SET price = 1 WHERE id = ?", "products products:42"),
        ("UPDATE products SET price = 1 WHERE id = ?1 AND stock > 0", "products products:42"),
        ("UPDATE products SET price = 1 WHERE id = ?2", "products:*"),
        ("UPDATE products SET price = 1 WHERE id = 7 OR id = 8", "products:*"),
        ("UPDATE products SET price = 1", "products:*"),
        ("UPDATE products SET id = 8 WHERE id = 7", "products:*"),
        ("UPDATE OR REPLACE products SET name = 'a' WHERE id = 7", "products:* reviews:*"),
        ("UPDATE products SET price = r.x FROM reviews r WHERE products.id = 7", "products:*"),
        (
            "INSERT INTO products (id, name) VALUES (7, 'a'), (?, 'b')",
            "products products:7 products:42",
        ),
        ("INSERT INTO products (name) VALUES ('a')", "products products:#absent"),
        ("INSERT INTO products VALUES (7, 'a')", "products products:#absent"),
        ("INSERT INTO products (id, rowid) VALUES (7, 8)", "products products:#absent"),
        ("INSERT INTO products (id, id) VALUES (7, 8)", "products products:#absent"),
        ("UPDATE products SET rowid = 8 WHERE id = 7", "products:*"),
        ("UPDATE replaced SET x = 1 WHERE id = 7", "replaced:*"),
        ("INSERT INTO replaced (id) VALUES (7)", "replaced:*"),
        ("UPDATE other.products SET price = 1 WHERE id = 7", "*"),
        ("UPDATE products SET price = ?1 WHERE id = ?", "products:*"),
        ("INSERT INTO products (id) VALUES (NULL)", "products products:#absent"),
        ("INSERT INTO products (id) VALUES ('7')", "products products:#absent"),
        ("INSERT INTO products (id) SELECT 7", "products products:#absent"),
        ("INSERT OR IGNORE INTO products (id) VALUES (7)", "products products:7"),
        ("INSERT OR REPLACE INTO products (id, slug) VALUES (7, 'a')", "products:* reviews:*"),
        ("REPLACE INTO products (id, slug) VALUES (7, 'a')", "products:* reviews:*"),
        (
            "INSERT INTO products (id) VALUES (7) ON CONFLICT (id) DO UPDATE SET name = 'a'",
            "products products:7",
        ),
        (
            "INSERT INTO products (id) VALUES (7) ON CONFLICT (slug) DO UPDATE SET name = 'a'",
            "products:*",
        ),
        (
            "INSERT INTO products (id) VALUES (7) ON CONFLICT (id) DO UPDATE SET id = 9",
            "products:*",
        ),
        ("INSERT INTO products (id) VALUES (7) ON CONFLICT DO NOTHING", "products products:7"),
        ("DELETE FROM products WHERE id = 7", "products products:7 reviews:*"),
        ("DELETE FROM products", "products:* reviews:*"),
        ("DELETE FROM lines WHERE product = 1 AND cart = 'a'", "lines lines:a,1"),
        ("UPDATE audited SET x = 1 WHERE id = 7", "audited audited:7 notes:*"),
        ("UPDATE strange SET x = 1 WHERE id = 7", "*"),
        ("UPDATE cheap SET x = 1", "*"),
        ("UPDATE nobody_knows SET x = 1", "*"),
        ("WITH x AS (SELECT 1) UPDATE products SET price = 1 WHERE id = 7", "products products:7"),
        ("CREATE TABLE more (id INTEGER PRIMARY KEY)", "*"),
        ("DROP TABLE products", "*"),
        ("SELECT charge_card(7)", "*"),
        ("nonsense", "*"),
    ];
    for (text, expected) in rows {
        assert_eq!(written(text, &bound), expected, "{text}");
    }
    assert!(written("SELECT * FROM products", &[]).is_empty(), "a query writes nothing");
}

#[test]
fn whitespace_and_comments_do_not_change_the_fingerprint() {
    let one = analysed("SELECT *  FROM products -- all\n WHERE id = ?");
    assert_eq!(one.fingerprint, analysed("SELECT * FROM products WHERE id=?").fingerprint);
    let [two, words] = ["SELECT 1 IN ('x'' , ''y')", "SELECT 1 IN ('x' , 'y')"]
        .map(|text| analysed(text).fingerprint);
    assert_ne!(two, words, "escaped quotes are part of the literal");
    assert_ne!(one.fingerprint, analysed("SELECT * FROM products WHERE id = 'a  b'").fingerprint);
    let [narrow, wide] = ["SELECT 'a b'", "SELECT 'a  b'"].map(|text| analysed(text).fingerprint);
    assert_ne!(narrow, wide);
}

#[test]
fn a_cte_hides_a_table_only_where_it_is_visible() {
    let rows = [
        ("WITH x AS (SELECT 1 AS n) SELECT n FROM x", "sql:d"),
        ("WITH sqlite_master AS (SELECT 1 AS n) SELECT n FROM sqlite_master", "sql:d"),
        (
            "SELECT n FROM (WITH sqlite_master AS (SELECT 1 AS n) SELECT n FROM sqlite_master) JOIN sqlite_master",
            "Volatile(UnknownRelation) sql:d",
        ),
        (
            "SELECT (WITH x AS (SELECT 1 AS n) SELECT n FROM x), n FROM x",
            "Volatile(UnknownRelation) sql:d",
        ),
        (
            "WITH x AS (SELECT 1 AS n), y AS (SELECT n FROM x) SELECT (SELECT n FROM x) FROM y",
            "sql:d",
        ),
        ("WITH x AS (SELECT id FROM products WHERE id = 7) SELECT id FROM x", "products:7"),
        ("WITH x AS (SELECT 1 AS n) SELECT n FROM main.x", "Volatile(UnknownRelation) sql:d"),
        // A function that is used like a table is not a table elsewhere.
        ("SELECT value FROM json_each('[1]')", "sql:d"),
        ("SELECT 1 FROM json_each('[1]') JOIN json_each", "Volatile(UnknownRelation) sql:d"),
    ];
    for (text, expected) in rows {
        assert_eq!(read(text, &[]), expected, "{text}");
    }
    let postgres = |text: &str| Analysis::of(text, SqlDialect::Postgres, Some(&catalog()));
    let hidden = postgres(
        "WITH RECURSIVE pg_class AS (SELECT 1 AS n UNION SELECT n FROM pg_class) SELECT n FROM pg_class",
    );
    assert_eq!(hidden.nature, StatementKind::Query);
    let quoted = postgres("WITH \"Pg_Class\" AS (SELECT 1) SELECT count(*) FROM pg_class");
    assert_eq!(
        quoted.nature,
        StatementKind::Volatile(larder_core::Reason::UnknownRelation),
        "quoted names preserve their case"
    );
    let seen = postgres("WITH pg_class AS (SELECT n FROM pg_class) SELECT n FROM pg_class");
    assert_eq!(
        seen.nature,
        StatementKind::Volatile(larder_core::Reason::UnknownRelation),
        "within its own definition, the name refers to the relation of the server"
    );
}

#[test]
fn forms_of_sqlite_are_analysed_as_forms_that_the_parser_knows() {
    let rows = [
        ("SELECT name FROM products INDEXED BY by_id WHERE id = 7", "products:7"),
        ("SELECT name FROM products NOT INDEXED WHERE id = 7", "products:7"),
        ("SELECT * FROM products AS p INDEXED BY by_id, reviews INDEXED BY b", "products reviews"),
        ("SELECT * FROM notes WHERE id IN products", "notes products"),
        ("SELECT * FROM notes WHERE id NOT IN main.products AND id = 7", "notes products"),
        (
            "SELECT * FROM products WHERE id IN (7) AND name IN \"categories\"",
            "categories products:7",
        ),
        ("SELECT * FROM notes WHERE id IN cheap", "notes products"),
        (
            "WITH cheap AS MATERIALIZED (SELECT 1) SELECT * FROM notes WHERE id IN cheap",
            "notes products",
        ),
        ("WITH x AS NOT MATERIALIZED (SELECT 1) SELECT * FROM notes WHERE id IN x", "notes"),
        ("SELECT * FROM notes WHERE id IN nothing", "Volatile(UnknownRelation) notes"),
        // A comparison with a value that may be null pins nothing.
        ("SELECT * FROM products WHERE id IS 7", "products"),
        ("SELECT * FROM products WHERE id IS NOT ?1 AND id = 7", "products:7"),
        ("SELECT * FROM products WHERE name IS 'a' AND stock IS NOT NULL", "products"),
        ("SELECT * FROM products WHERE name ISNULL OR name NOTNULL", "products"),
        ("SELECT * FROM products WHERE name NOT GLOB 'a*' AND id = 7", "products:7"),
        ("SELECT 1 << ~~~stock AS n FROM products WHERE id = 7", "products:7"),
        (
            "SELECT sum(stock) OVER (ROWS UNBOUNDED PRECEDING EXCLUDE TIES) FROM products",
            "products",
        ),
        (
            "SELECT sum(stock) OVER (ORDER BY a RANGE 1 PRECEDING EXCLUDE CURRENT ROW), \
             sum(a) OVER (ORDER BY a RANGE 1 PRECEDING EXCLUDE NO OTHERS) FROM products",
            "products",
        ),
        ("SELECT * FROM products CROSS JOIN reviews ON a = b", "products reviews"),
    ];
    for (text, expected) in rows {
        assert_eq!(read(text, &[]), expected, "{text}");
    }
    let rows = [
        ("DELETE FROM products INDEXED BY by_id WHERE id = 7", "products products:7 reviews:*"),
        ("UPDATE products SET stock = stock << 1 WHERE id = 7", "products products:7"),
        ("DELETE FROM notes WHERE id IN products", "notes:*"),
    ];
    for (text, expected) in rows {
        assert_eq!(written(text, &[]), expected, "{text}");
    }
}

#[test]
fn columns_that_are_named_like_forms_stay_columns() {
    let catalog = catalog();
    let is_stored = |text: &str, dialect| {
        let analysis = Analysis::of(text, dialect, Some(&catalog));
        let tables = analysis.reads.into_keys().collect::<Vec<_>>().join(" ");
        (analysis.nature == StatementKind::Query).then_some((tables, analysis.columns))
    };
    for text in [
        "SELECT p.exclude ties FROM products p WHERE p.id IS 1",
        "SELECT exclude ties FROM products WHERE id IS 1",
        "SELECT * FROM products WHERE id IN (NOT indexed) AND id IS 1",
        "SELECT p.variadic FROM products p WHERE p.id IS 1",
        "SELECT id AS materialized FROM products WHERE id IS 1",
    ] {
        let stored = is_stored(text, SqlDialect::Sqlite);
        assert!(
            stored.as_ref().is_none_or(|(tables, _)| tables == "products"),
            "{text}: {stored:?}"
        );
    }
    assert_ne!(
        read("SELECT * FROM products WHERE id IN (NOT indexed) AND stock IS 1", &[]),
        "",
        "no empty list of keys"
    );
    for text in [
        "SELECT p.exclude ties FROM products p WHERE p.stock BETWEEN SYMMETRIC 3 AND 1",
        "SELECT exclude ties FROM products WHERE stock BETWEEN SYMMETRIC 3 AND 1",
        "SELECT p.variadic FROM products p WHERE p.stock BETWEEN SYMMETRIC 3 AND 1",
        "SELECT a IS DISTINCT FROM stock * qty FROM products WHERE id BETWEEN SYMMETRIC 3 AND 1",
        "SELECT a IS DISTINCT FROM length * (qty + 1) FROM products WHERE id BETWEEN SYMMETRIC 3 AND 1",
    ] {
        let Some((tables, columns)) = is_stored(text, SqlDialect::Postgres) else { continue };
        assert_eq!(tables, "products", "{text}");
        let names = ["exclude", "variadic", "qty"].into_iter().filter(|name| text.contains(name));
        for name in names {
            let columns = columns.as_ref();
            assert!(columns.is_none_or(|columns| columns.contains(name)), "{text}: {columns:?}");
        }
    }
}

#[test]
fn forms_of_postgres_are_analysed_as_forms_that_the_parser_knows() {
    let read = |text: &str| {
        let analysis = Analysis::of(text, SqlDialect::Postgres, Some(&catalog()));
        assert_eq!(analysis.nature, StatementKind::Query, "{text}");
        analysis.reads.into_keys().collect::<Vec<_>>().join(" ")
    };
    let rows = [
        ("TABLE products", "products"),
        ("(TABLE products ORDER BY 1) UNION ALL TABLE reviews", "products reviews"),
        ("WITH x AS (TABLE notes) SELECT * FROM x", "notes"),
        ("SELECT concat_ws(',', VARIADIC ARRAY[name]) FROM products", "products"),
        ("SELECT * FROM products WHERE stock NOT BETWEEN SYMMETRIC 3 AND 1", "products"),
        ("SELECT * FROM products* p JOIN reviews * ON true", "products reviews"),
        ("SELECT * FROM products WHERE name NOTNULL AND NOT stock ISNULL", "products"),
        ("SELECT sum(a) OVER (ORDER BY a ROWS 1 PRECEDING EXCLUDE GROUP) FROM notes", "notes"),
    ];
    for (text, expected) in rows {
        assert_eq!(read(text), expected, "{text}");
    }
}

#[test]
fn unparsed_statements_that_cannot_write_bypass_the_cache() {
    let cannot = [
        "SELECT name FROM products INDEXED BY by_name WHERE id = 7 ORDER BY 1 COLLATE x COLLATE y",
        "WITH x AS MATERIALIZED (SELECT 1) SELECT * FROM x, products ON 1",
        "SELECT 1 << 2 AS n, abs(-1) FROM products WHERE name IS 1 ISNULL NOT NULL",
        "EXPLAIN QUERY PLAN DELETE FROM products",
        "PRAGMA table_info(products)",
        "PRAGMA foreign_keys;",
    ];
    for text in cannot {
        let analysis = analysed(text);
        let bypasses = matches!(analysis.nature, StatementKind::Volatile(_) | StatementKind::Query);
        assert!(bypasses && analysis.changes.is_empty(), "{text}: {:?}", analysis.nature);
    }
    let may = [
        "SELECT charge_card(1) FROM products INDEXED BY by_name",
        "SELECT charge_card (1)",
        "SELECT charge_card() AS n",
        "SELECT reset() AS n",
        "SELECT charge_card(1) AS x INDEXED BY y",
        "WITH x AS MATERIALIZED (SELECT 1) DELETE FROM products",
        "SELECT 1 INDEXED BY x; DROP TABLE products",
        "PRAGMA foreign_keys = 0",
        "PRAGMA case_sensitive_like(1)",
        "PRAGMA case_sensitive_like(table_info)",
        "PRAGMA writable_schema(1)",
        "REPLACE PRODUCTS SELEC 1",
        "VACUUM",
    ];
    for text in may {
        let analysis = analysed(text);
        let writes = matches!(
            analysis.nature,
            StatementKind::Unknown(_) | StatementKind::Definition | StatementKind::Write
        );
        assert!(writes, "{text}: {:?}", analysis.nature);
    }
    let postgres = |text: &str| Analysis::of(text, SqlDialect::Postgres, Some(&catalog())).nature;
    for text in ["SHOW TimeZone", "EXPLAIN SELECT 1", "EXPLAIN (COSTS OFF) DELETE FROM products"] {
        assert!(
            matches!(postgres(text), StatementKind::Volatile(_)),
            "{text}: {:?}",
            postgres(text)
        );
    }
    for text in [
        "SELECT ROW(1, 2)",
        "SELECT ARRAY(SELECT id FROM products)",
        "SELECT GROUPING(id) FROM products GROUP BY id",
    ] {
        assert_eq!(postgres(text), StatementKind::Query, "{text}");
    }
    for text in [
        "EXPLAIN ANALYZE DELETE FROM products",
        "EXPLAIN (ANALYZE) SELECT f(1)",
        "SET TimeZone = 'UTC'",
    ] {
        assert!(
            !matches!(postgres(text), StatementKind::Volatile(_)),
            "{text}: {:?}",
            postgres(text)
        );
    }
}

#[test]
fn deeply_nested_statements_do_not_overflow_a_small_stack() {
    let deep = |times: usize, before: &str, middle: &str, after: &str| {
        format!(
            "SELECT 1 FROM products WHERE {}{middle}{}",
            before.repeat(times),
            after.repeat(times)
        )
    };
    let texts = [
        deep(5_209, "id AND ", "id", ""),
        deep(8_000, "1+", "id", ""),
        deep(20_000, "1+", "id", ""),
        deep(20_000, "(", "id", ")"),
        deep(5_000, "NOT ", "id", ""),
        deep(1_000, "NOT EXISTS (SELECT 1 WHERE ", "id", ")"),
        deep(12, "NOT EXISTS (SELECT 1 WHERE ", "id", ")"),
        deep(10_000, "id = 1 AND ", "id = 2", ""),
        deep(3_000, "CASE WHEN id THEN ", "id", " END"),
        deep(3_000, "", "id", " UNION SELECT 1"),
    ];
    let small = std::thread::Builder::new().stack_size(256 << 10);
    let analyse = move || texts.iter().for_each(|text| drop(analysed(text)));
    small.spawn(analyse).unwrap().join().unwrap();
}

#[test]
fn stored_analyses_are_limited_in_bytes() {
    let analyses = Analyses::default();
    for at in 0..2_000 {
        let text = format!("SELECT {at} -- {}", "x".repeat(8 << 10));
        analyses.get(&text, || analysed("SELECT 1"));
        assert!(analyses.bytes() <= MOST_TEXT_BYTES);
    }
    assert!(analyses.bytes() > 0);
    let before = analyses.bytes();
    analyses.get(&"x".repeat(1 << 20), || analysed("SELECT 1"));
    assert_eq!(analyses.bytes(), before, "the analysis of a long text is not stored");
}

#[test]
fn long_names_are_cut_as_in_postgres() {
    let (long, cut) = (format!("{}äx", "k".repeat(62)), "k".repeat(62));
    let table = Table::new().key(&cut, KeyKind::Integer);
    let catalog = Catalog::new().table("t", table);
    let text = format!("UPDATE t SET {long} = 8 WHERE {cut} = 7");
    let analysis = Analysis::of(&text, SqlDialect::Postgres, Some(&catalog));
    assert_eq!(analysis.changes[0].rows, None, "the key is changed");
    let analysis = Analysis::of(&text, SqlDialect::Sqlite, Some(&catalog));
    assert!(analysis.changes[0].rows.is_some(), "SQLite does not cut names");
}

#[test]
fn whitespace_changes_the_fingerprint_of_expressions_that_name_a_column() {
    let same = |one: &str, other: &str| analysed(one).fingerprint == analysed(other).fingerprint;
    assert!(!same("SELECT id+1 FROM products", "SELECT id + 1 FROM products"));
    assert!(!same("SELECT x'01'", "SELECT X'01'"));
    assert!(!same("SELECT id <> 1 FROM products", "SELECT id != 1 FROM products"));
    assert!(!same(
        "SELECT * FROM (SELECT id+1 FROM products)",
        "SELECT * FROM (SELECT id +1 FROM products)"
    ));
    assert!(same("SELECT id+1 AS n FROM products", "SELECT id + 1 AS n FROM products"));
    assert!(same(
        "SELECT id FROM products WHERE id+1 > 2",
        "SELECT id FROM products WHERE id + 1 > 2"
    ));
}

#[test]
fn keys_of_many_types_pin_rows_by_their_canonical_text() {
    let kinds = [
        ("i", KeyKind::Integer),
        ("t", KeyKind::Text),
        ("v", KeyKind::TextUpTo(3)),
        ("u", KeyKind::Uuid),
        ("d", KeyKind::Date),
        ("n", KeyKind::Numeric),
        ("b", KeyKind::Bytes),
    ];
    let catalog = kinds.into_iter().fold(Catalog::new(), |catalog, (name, kind)| {
        catalog.table(name, Table::new().key("id", kind))
    });
    let uuid = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
    let upper = uuid.to_uppercase();
    let braces = format!("{{{}}}", uuid.replace('-', ""));
    let rows: [(&str, &str, SqlValue, &str); 38] = [
        ("u", "$1", uuid.into(), uuid),
        ("u", "$1", upper.as_str().into(), uuid),
        ("u", "$1", braces.as_str().into(), uuid),
        ("u", "$1::uuid", uuid.into(), uuid),
        ("u", "CAST($1 AS uuid)", uuid.into(), uuid),
        ("u", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", SqlValue::Null, uuid),
        ("u", "uuid 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", SqlValue::Null, uuid),
        ("u", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'::uuid", SqlValue::Null, uuid),
        ("u", "$1", "a0eebc99".into(), ""),
        ("u", "$1::text", uuid.into(), ""),
        ("u", "$1", 7.into(), ""),
        ("t", "$1::text", "a".into(), "a"),
        ("t", "$1::varchar", "a".into(), "a"),
        ("t", "$1::varchar(2)", "a".into(), ""),
        ("t", "$1::uuid", uuid.into(), ""),
        ("t", "lower($1)", "a".into(), ""),
        ("i", "$1::bigint", 7.into(), "7"),
        ("i", "$1::int8", 7.into(), "7"),
        ("i", "$1::text", 7.into(), ""),
        ("i", "$1::bigint", "7".into(), ""),
        ("v", "$1", "abc".into(), "abc"),
        ("v", "$1", "ab\u{e4}".into(), "ab\u{e4}"),
        ("v", "$1", "abc ".into(), ""),
        ("d", "$1", "2024-02-29".into(), "2024-02-29"),
        ("d", "$1::date", "2024-02-29".into(), "2024-02-29"),
        ("d", "date '2024-02-29'", SqlValue::Null, "2024-02-29"),
        ("d", "$1", "29.2.2024".into(), ""),
        ("d", "$1", "infinity".into(), ""),
        ("n", "$1", "1.50".into(), "1.5"),
        ("n", "$1", "-007".into(), "-7"),
        ("n", "$1", "-0.0".into(), "0"),
        ("n", "$1::numeric", 15.into(), "15"),
        ("n", "15", SqlValue::Null, "15"),
        ("n", "$1", "1e3".into(), ""),
        ("n", "$1::numeric(9,2)", "1.5".into(), ""),
        ("n", "$1", 1.5.into(), ""),
        ("b", "$1", vec![0xab_u8, 0].into(), "\\xab00"),
        ("b", "$1", "ab".into(), ""),
    ];
    for (table, operand, value, expected) in rows {
        let text = format!("SELECT * FROM {table} WHERE id = {operand}");
        let analysis = Analysis::of(&text, SqlDialect::Postgres, Some(&catalog));
        let tags = Tags::new("d").read_by(&analysis, Some(&catalog), &[value], true);
        let tags: Vec<_> = tags.iter().map(larder_core::Tag::as_str).collect();
        let whole = format!("sql:d:{table}");
        let row = format!("{whole}:{expected}");
        let expected = if expected.is_empty() { whole } else { row };
        assert_eq!(tags, [expected], "{text}");
    }
}

#[test]
fn only_a_result_that_proves_its_rows_does_not_depend_on_new_rows() {
    let absent = |text: &str| {
        let tags = |has_rows: bool| {
            let analysis = analysed(text);
            let all_exist = has_rows && analysis.proves_rows;
            Tags::new("d").read_by(&analysis, Some(&catalog()), &[7.into()], all_exist)
        };
        let is_absent = |tag: &larder_core::Tag| tag.as_str().ends_with("#absent");
        assert!(tags(false).iter().any(is_absent), "an empty result: {text}");
        tags(true).iter().any(is_absent)
    };
    for proves in [
        "SELECT * FROM products WHERE id = ?",
        "SELECT p.name, q.n FROM products p LEFT JOIN notes q ON q.id = p.id WHERE p.id = ?",
        "SELECT * FROM lines WHERE cart = 'a' AND product = ? LIMIT 1",
    ] {
        assert!(!absent(proves), "{proves}");
    }
    for does_not in [
        "SELECT count(*) FROM products WHERE id = ?",
        "SELECT max(name) FROM products WHERE id = ?",
        "SELECT 1 FROM products WHERE id = ? GROUP BY id",
        "SELECT * FROM products WHERE id IN (?, 8)",
        "SELECT * FROM notes n WHERE EXISTS (SELECT 1 FROM products WHERE id = ?)",
        "SELECT (SELECT name FROM products WHERE id = ?)",
        "SELECT 1 UNION SELECT id FROM products WHERE id = ?",
        "SELECT price FROM products WHERE id = ? UNION ALL VALUES (0)",
        "WITH p AS (SELECT * FROM products WHERE id = ?) SELECT * FROM notes LEFT JOIN p",
    ] {
        assert!(absent(does_not), "{does_not}");
    }
}

fn of_lists(text: &str, values: &[SqlValue]) -> (String, String) {
    let catalog = Catalog::new()
        .table("lists", Table::new().key("id", KeyKind::Integer).columns(["id", "title", "owner"]))
        .table(
            "items",
            Table::new()
                .key("id", KeyKind::Integer)
                .lookup("list", KeyKind::Integer)
                .lookup("slug", KeyKind::Text)
                .columns(["id", "list", "slug", "title", "is_read"]),
        )
        .view("open", ["items"]);
    let analysis = Analysis::of(text, SqlDialect::Postgres, Some(&catalog));
    let tags = Tags::new("d");
    let short = |text: &str| text.replace("sql:d:", "");
    let read = tags.read_by(&analysis, Some(&catalog), values, true);
    let read: Vec<_> = read.iter().map(|tag| short(tag.as_str())).collect();
    let written = tags.written_by(&analysis, Some(&catalog), values).all(&tags);
    let selector = |target: &Target| short(format!("{target:?}").split('"').nth(1).unwrap());
    let written: Vec<_> = written.iter().map(selector).collect();
    (read.join(" "), written.join(" "))
}

#[test]
fn a_lookup_column_pins_rows() {
    let rows = [
        ("SELECT * FROM items WHERE list = $1", "items:#by:list:7"),
        (
            "SELECT * FROM items WHERE list IN ($1, 8) ORDER BY title",
            "items:#by:list:7 items:#by:list:8",
        ),
        ("SELECT count(*) FROM items i WHERE i.list = $1", "items:#by:list:7"),
        ("SELECT * FROM items WHERE slug = 'a:b'", "items:#by:slug:a%3ab"),
        ("SELECT * FROM items WHERE list = $1 AND id = 3", "items:3"),
        ("SELECT * FROM items WHERE list = $1 OR id = 3", "items"),
        ("SELECT * FROM items WHERE list = (SELECT max(id) FROM lists)", "items lists"),
        ("SELECT * FROM items WHERE list > $1", "items"),
    ];
    for (text, expected) in rows {
        assert_eq!(of_lists(text, &[7.into()]).0, expected, "{text}");
    }
    let rows = [
        (
            "INSERT INTO items (id, list, slug) VALUES (1, $1, 'a')",
            "items items:1 items:#rows items:#by:list:7 items:#by:slug:a",
        ),
        (
            "INSERT INTO items (list, slug) VALUES ($1, $2)",
            "items items:#absent items:#rows items:#by:list:7",
        ),
        (
            "INSERT INTO items (id, list) VALUES (1, $1)",
            "items items:1 items:#rows items:#by:list:7 items:#by:*",
        ),
        (
            "INSERT INTO items (id, list, slug) SELECT 1, 7, 'a'",
            "items items:#absent items:#rows items:#by:*",
        ),
        ("DELETE FROM items WHERE id = 1", "items items:1 items:#rows items:#by:*"),
        (
            "DELETE FROM items WHERE id = 1 AND list = $1 AND slug = 'a'",
            "items items:1 items:#rows items:#by:list:7 items:#by:slug:a",
        ),
        ("UPDATE items SET title = 'x' WHERE id = 1", "items items:1 items:#set:title items:#by:*"),
        (
            "UPDATE items SET list = 8 WHERE id = 1 AND list = $1 AND slug = 'a'",
            "items items:1 items:#set:list items:#by:list:7 items:#by:list:8 items:#by:slug:a",
        ),
        (
            "UPDATE items SET list = list + 1 WHERE id = 1 AND list = $1 AND slug = 'a'",
            "items items:1 items:#set:list items:#by:slug:a items:#by:*",
        ),
        ("UPDATE items SET title = 'x' WHERE list = $1", "items:*"),
        ("UPDATE items SET title.part = 'x' WHERE id = 1", "items:*"),
        ("INSERT INTO items (title.id) VALUES (5)", "items items:#absent items:#rows items:#by:*"),
        (
            "INSERT INTO items (id, list, slug) VALUES (1, $1, 'a') ON CONFLICT (id) DO UPDATE SET title = 'x'",
            "items items:1 items:#rows items:#set:* items:#by:*",
        ),
    ];
    for (text, expected) in rows {
        assert_eq!(of_lists(text, &[7.into(), SqlValue::Null]).1, expected, "{text}");
    }
}

#[test]
fn a_query_depends_on_the_columns_that_it_names() {
    let lists = "lists:#rows lists:#set:title";
    let rows = [
        ("SELECT title FROM lists ORDER BY title", lists),
        ("SELECT l.title AS x FROM lists l WHERE l.id > 3", lists),
        ("SELECT count(*) FROM lists", "lists:#rows"),
        (
            "SELECT title FROM lists l JOIN items i ON i.list = l.id",
            "items:#rows items:#set:list items:#set:title lists:#rows lists:#set:title",
        ),
        (
            "SELECT l.id, (SELECT count(*) FROM items i WHERE i.list = l.id) FROM lists l",
            "items:#rows items:#set:list lists:#rows",
        ),
        ("WITH w AS (SELECT owner FROM lists) SELECT owner FROM w", "lists:#rows lists:#set:owner"),
        // It may read columns that it does not name.
        ("SELECT * FROM lists", "lists"),
        ("SELECT l.* FROM lists l", "lists"),
        ("SELECT lists FROM lists", "lists"),
        ("SELECT to_jsonb(l) FROM lists l", "lists"),
        ("SELECT to_jsonb(l.*) FROM lists l", "lists"),
        ("SELECT (l).title FROM lists l", "lists"),
        ("SELECT title FROM lists l(a, title)", "lists"),
        ("SELECT owner FROM lists JOIN items USING (title)", "items lists"),
        ("SELECT owner FROM lists NATURAL JOIN items", "items lists"),
        ("SELECT title, xmin FROM lists", "lists"),
        ("SELECT title FROM open", "items"),
        ("SELECT title FROM lists WHERE EXISTS (SELECT * FROM items)", "items lists"),
        ("UPDATE items SET title = 'x' FROM lists l WHERE l.id = list RETURNING *", "items lists"),
        ("SELECT l.to_jsonb FROM lists l", "lists"),
        (
            "SELECT l.owner, i.slug FROM lists l JOIN items i ON true",
            "items:#rows items:#set:slug lists:#rows lists:#set:owner",
        ),
        (
            "SELECT j.z FROM (lists JOIN items ON lists.id = items.list) AS j(x, y, z)",
            "items lists",
        ),
        ("SELECT j FROM (lists JOIN items ON lists.id = items.list) AS j", "items lists"),
        ("SELECT r.c FROM lists, json_each(lists.*) r", "lists"),
        ("SELECT title FROM lists WHERE U&\"\\0073\" = 'a'", "lists"),
    ];
    for (text, expected) in rows {
        assert_eq!(of_lists(text, &[]).0, expected, "{text}");
    }
}
