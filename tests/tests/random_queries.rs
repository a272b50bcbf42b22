//! Random schemas, queries and writes: a cached result always equals the uncached one, in SQLite and in PostgreSQL.

use std::fmt::Write as _;

use larder::{
    Larder,
    sql::{Db, SqlValue, Statement},
};
use larder_testkit::SeededRng;
use sqlx::{AssertSqlSafe, sqlite::SqlitePoolOptions};

use tests::postgres::Server;

/// A randomly drawn table.
struct Table {
    name: String,
    key: Key,
    has_unique: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Key {
    Number,
    Word,
    /// Text in which two spellings are equal.
    Folded,
    Pair,
    None,
}

struct Schema {
    tables: Vec<Table>,
    views: Vec<String>,
    definition: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Dialect {
    Sqlite,
    Postgres,
}

fn pick<T: Copy>(dice: &SeededRng, from: &[T]) -> T {
    from[dice.roll(from.len() as u64) as usize]
}

impl Schema {
    fn drawn(dice: &SeededRng, dialect: Dialect) -> Self {
        let mut schema = Self { tables: Vec::new(), views: Vec::new(), definition: String::new() };
        for at in 0..2 + dice.roll(3) as usize {
            schema.add_table(at, dice, dialect);
        }
        for at in 0..dice.roll(3) {
            schema.add_view(at, dice);
        }
        if dice.chance(40) {
            schema.add_trigger(dice, dialect);
        }
        schema
    }

    fn add_table(&mut self, at: usize, dice: &SeededRng, dialect: Dialect) {
        let key = pick(
            dice,
            &[Key::Number, Key::Number, Key::Word, Key::Folded, Key::Folded, Key::Pair, Key::None],
        );
        let has_unique = dice.chance(40);
        let numbers: Vec<usize> =
            (0..at).filter(|at| self.tables[*at].key == Key::Number).collect();
        let parent = (!numbers.is_empty() && dice.chance(60)).then(|| pick(dice, &numbers));
        let folded = match dialect {
            Dialect::Sqlite => "TEXT COLLATE NOCASE",
            Dialect::Postgres => "varchar(1)",
        };
        let word = if key == Key::Folded { folded } else { "TEXT" };
        let mut columns = vec![
            "k INTEGER".to_owned(),
            format!("s {word}"),
            "v INTEGER".to_owned(),
            "w TEXT".to_owned(),
        ];
        match key {
            Key::Number => columns[0].push_str(" PRIMARY KEY"),
            Key::Word | Key::Folded => columns[1].push_str(" PRIMARY KEY"),
            Key::Pair => columns.push("PRIMARY KEY (s, k)".to_owned()),
            Key::None => {}
        }
        if has_unique {
            columns[3].push_str(" UNIQUE");
        }
        if let Some(parent) = parent {
            let act = || pick(dice, &["CASCADE", "SET NULL", "NO ACTION"]);
            let reference = format!(
                "v INTEGER REFERENCES t{parent} (k) ON DELETE {} ON UPDATE {}",
                act(),
                act()
            );
            columns[2] = reference;
        }
        writeln!(self.definition, "CREATE TABLE t{at} ({});", columns.join(", ")).unwrap();
        self.tables.push(Table { name: format!("t{at}"), key, has_unique });
    }

    fn add_view(&mut self, at: u64, dice: &SeededRng) {
        let of = self.relation(dice);
        let view = match dice.roll(3) {
            0 => format!("SELECT k, s, v, w FROM {of} WHERE v < 3"),
            1 => {
                let other = self.relation(dice);
                format!("SELECT a.k, a.s, b.v, b.w FROM {of} a JOIN {other} b ON b.k = a.k")
            }
            _ => format!(
                "SELECT k, s, v, w FROM {of} UNION SELECT k, s, v, w FROM {}",
                self.relation(dice)
            ),
        };
        writeln!(self.definition, "CREATE VIEW view{at} AS {view};").unwrap();
        self.views.push(format!("view{at}"));
    }

    fn add_trigger(&mut self, dice: &SeededRng, dialect: Dialect) {
        let [on, of] = [0, 1].map(|_| dice.roll(self.tables.len() as u64));
        let event = pick(dice, &["INSERT", "UPDATE", "DELETE"]);
        let act = match dice.roll(3) {
            0 => format!("UPDATE t{of} SET w = w || '.' WHERE k = 1"),
            1 => format!("DELETE FROM t{of} WHERE v = 4"),
            _ => format!("INSERT INTO t{of} (k, s) VALUES (9, 'n') ON CONFLICT DO NOTHING"),
        };
        let trigger = match dialect {
            Dialect::Sqlite => format!("CREATE TRIGGER fires AFTER {event} ON t{on} BEGIN {act}; END;"),
            Dialect::Postgres => format!(
                "CREATE FUNCTION fires() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {}; RETURN NULL; END';
                 CREATE TRIGGER fires AFTER {event} ON t{on} FOR EACH ROW EXECUTE FUNCTION fires();",
                act.replace('\'', "''")
            ),
        };
        writeln!(self.definition, "{trigger}").unwrap();
    }

    fn table(&self, dice: &SeededRng) -> &Table {
        &self.tables[dice.roll(self.tables.len() as u64) as usize]
    }

    /// The name of a table or a view.
    fn relation(&self, dice: &SeededRng) -> String {
        match self.views.is_empty() || dice.chance(70) {
            true => self.table(dice).name.clone(),
            false => self.views[dice.roll(self.views.len() as u64) as usize].clone(),
        }
    }
}

/// A statement under construction.
struct Text<'a> {
    dice: &'a SeededRng,
    text: String,
    values: Vec<SqlValue>,
}

impl<'a> Text<'a> {
    fn new(dice: &'a SeededRng) -> Self {
        Self { dice, text: String::new(), values: Vec::new() }
    }

    fn add(&mut self, part: &str) -> &mut Self {
        self.text.push_str(part);
        self
    }

    /// A parameter, or a literal.
    fn value(&mut self, value: impl Into<SqlValue>) -> &mut Self {
        let value = value.into();
        match (&value, self.dice.chance(30)) {
            (SqlValue::Int(number), true) => write!(self.text, "{number}").unwrap(),
            (SqlValue::Text(word), true) => write!(self.text, "'{word}'").unwrap(),
            _ => {
                self.values.push(value);
                write!(self.text, "${}", self.values.len()).unwrap();
            }
        }
        self
    }

    fn number(&mut self) -> &mut Self {
        let number = self.dice.roll(6) as i64;
        self.value(number)
    }

    fn word(&mut self) -> &mut Self {
        let word = pick(self.dice, &["x", "X", "x  ", "y", "y:1", "x"]);
        self.value(word)
    }

    /// A condition on the columns of `prefix`, of one to three members.
    fn condition(&mut self, prefix: &str) -> &mut Self {
        for member in 0..1 + self.dice.roll(3) {
            if member > 0 {
                let by = pick(self.dice, &[" AND ", " AND ", " OR "]);
                self.add(by);
            }
            match self.dice.roll(7) {
                0 | 1 => self.add(prefix).add("k = ").number(),
                2 => self.add(prefix).add("k IN (").number().add(", ").number().add(")"),
                3 | 4 => self.add(prefix).add("s = ").word(),
                5 => self.add(prefix).add("v > ").number(),
                _ => self.add(prefix).add("w = ").word(),
            };
        }
        self
    }

    fn finish(self) -> Statement {
        self.values.into_iter().fold(Statement::new(self.text), Statement::bind)
    }
}

const ALL: &str = "SELECT k, s, v, w FROM ";
const ORDERED: &str = " ORDER BY 1, 2, 3, 4";

fn read(schema: &Schema, dice: &SeededRng, dialect: Dialect) -> Statement {
    let mut text = Text::new(dice);
    let (one, other) = (schema.relation(dice), schema.relation(dice));
    if dialect == Dialect::Sqlite && dice.chance(15) {
        read_in_a_form_of_sqlite(&mut text, [&one, &other]);
        return text.finish();
    }
    match dice.roll(11) {
        0..3 => text.add(ALL).add(&one).add(" WHERE ").condition("").add(ORDERED),
        3 => text.add("SELECT count(*) AS n, max(v) AS m FROM ").add(&one),
        4 => text
            .add("SELECT a.k, a.s, b.v, b.w FROM ")
            .add(&one)
            .add(" a LEFT JOIN ")
            .add(&other)
            .add(" b ON b.v = a.k WHERE ")
            .condition("a.")
            .add(ORDERED),
        5 => text
            .add("SELECT a.k, a.s, b.v, b.w FROM ")
            .add(&one)
            .add(" a, ")
            .add(&other)
            .add(" b WHERE a.k = ")
            .number()
            .add(" AND b.k = ")
            .number()
            .add(ORDERED),
        6 => text
            .add(ALL)
            .add(&one)
            .add(" WHERE k = ")
            .number()
            .add(" AND EXISTS (SELECT 1 FROM ")
            .add(&other)
            .add(" c WHERE ")
            .condition("c.")
            .add(")")
            .add(ORDERED),
        // A CTE whose name hides the relation it reads.
        9 => text
            .add(&format!("WITH {one} AS (SELECT k, s, v, w FROM {one} WHERE "))
            .condition("")
            .add(") ")
            .add(ALL)
            .add(&one)
            .add(" WHERE ")
            .condition("")
            .add(ORDERED),
        10 => text
            .add("SELECT upper(s), abs(v), coalesce(w, s), length(w) FROM ")
            .add(&one)
            .add(" WHERE lower(s) = lower(")
            .word()
            .add(") AND ")
            .condition("")
            .add(ORDERED),
        7 => text
            .add("WITH q AS (SELECT k, s, v, w FROM ")
            .add(&one)
            .add(" WHERE ")
            .condition("")
            .add(") SELECT q.k, q.s, o.v, o.w FROM q LEFT JOIN ")
            .add(&other)
            .add(" o ON o.k = q.k")
            .add(ORDERED),
        _ => text
            .add(ALL)
            .add(&one)
            .add(" WHERE ")
            .condition("")
            .add(" UNION SELECT k, s, v, w FROM ")
            .add(&other)
            .add(" WHERE ")
            .condition("")
            .add(ORDERED),
    };
    text.finish()
}

/// A query in forms that only SQLite knows.
fn read_in_a_form_of_sqlite(text: &mut Text<'_>, [one, other]: [&str; 2]) {
    text.add(&format!("WITH q AS MATERIALIZED (SELECT k FROM {other} WHERE ")).condition("");
    text.add(&format!(
        ") SELECT a.k, a.s, b.v, b.w FROM {one} a CROSS JOIN {other} b ON b.v = a.k"
    ));
    text.add(" WHERE a.k IN q AND (b.v IS ").number().add(" OR b.w IS NOT ").word();
    text.add(" OR a.v ISNULL OR a.s NOT GLOB 'x*' OR a.k << 1 > 4) AND ").condition("a.");
    text.add(ORDERED);
}

fn write(schema: &Schema, dice: &SeededRng, dialect: Dialect) -> Statement {
    let mut text = Text::new(dice);
    let table = schema.table(dice);
    match dice.roll(8) {
        0..3 => {
            let begin = match dialect {
                Dialect::Sqlite => pick(
                    dice,
                    &["INSERT INTO ", "INSERT OR IGNORE INTO ", "INSERT OR REPLACE INTO "],
                ),
                Dialect::Postgres => "INSERT INTO ",
            };
            text.add(begin).add(&table.name).add(" (k, s, v, w) VALUES (");
            text.number().add(", ").word().add(", ").number().add(", ").word().add(")");
            let key = match table.key {
                Key::Number => "(k)",
                Key::Word | Key::Folded => "(s)",
                Key::Pair => "(s, k)",
                Key::None => "",
            };
            let over = if table.has_unique && dice.chance(30) { "(w)" } else { key };
            if begin == "INSERT INTO " && !over.is_empty() && dice.chance(50) {
                text.add(" ON CONFLICT ").add(over);
                match dice.roll(3) {
                    0 => text.add(" DO NOTHING"),
                    1 => text.add(" DO UPDATE SET v = ").number(),
                    _ => text.add(" DO UPDATE SET k = excluded.k, w = excluded.w"),
                };
            }
        }
        3 | 4 => {
            let set = pick(dice, &[" SET v = ", " SET v = ", " SET k = "]);
            text.add("UPDATE ").add(&table.name).add(set).number().add(" WHERE ").condition("");
        }
        5 => {
            text.add("UPDATE ")
                .add(&table.name)
                .add(" SET w = ")
                .word()
                .add(" WHERE ")
                .condition("");
        }
        6 => {
            text.add("DELETE FROM ").add(&table.name).add(" WHERE ").condition("");
        }
        _ => {
            let from = schema.relation(dice);
            text.add("UPDATE ").add(&table.name).add(" SET v = o.v FROM ").add(&from);
            text.add(" o WHERE o.k = ").add(&table.name).add(".k AND ");
            text.condition(&format!("{}.", table.name));
        }
    }
    text.finish()
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum Held {
    Int(i64),
    Text(String),
}

/// A row with values of any type.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Row(std::collections::BTreeMap<String, Option<Held>>);

/// Compares cached and uncached results, and returns the number of hits.
async fn compare(
    db: &Db,
    larder: &Larder,
    schema: &Schema,
    dice: &SeededRng,
    seed: u64,
    dialect: Dialect,
) -> u64 {
    let reads: Vec<Statement> = (0..16).map(|_| read(schema, dice, dialect)).collect();
    let writes: Vec<Statement> = (0..12).map(|_| write(schema, dice, dialect)).collect();
    for turn in 0..60 {
        let write = &writes[dice.roll(writes.len() as u64) as usize];
        // A write that the database refuses may have changed nothing, or a part.
        let outcome = db.statement(write.clone()).execute().await;
        for _ in 0..6 {
            let read = &reads[dice.roll(reads.len() as u64) as usize];
            let cached = db.statement(read.clone()).fetch_all::<Row>().await;
            let fresh = db.statement(read.clone()).uncached().fetch_all::<Row>().await;
            let (cached, fresh) = match (cached, fresh) {
                (Ok(cached), Ok(fresh)) => (cached, fresh),
                // Both fail, or neither.
                (Err(_), Err(_)) => continue,
                (cached, fresh) => panic!("seed {seed}: {read:?}: {cached:?}, {fresh:?}"),
            };
            assert_eq!(
                cached, fresh,
                "seed {seed}, turn {turn}: {read:?} after {write:?} {outcome:?}\n{}",
                schema.definition
            );
        }
    }
    larder.stats().cache("queries").map_or(0, |cache| cache.total.hits)
}

fn seeds(usual: u64) -> std::ops::Range<u64> {
    if let Some(seed) = std::env::var("LARDER_SEED").ok().and_then(|text| text.parse().ok()) {
        return seed..seed + 1;
    }
    let seeds = std::env::var("LARDER_SEEDS").ok().and_then(|text| text.parse().ok());
    0..seeds.map_or(usual, |seeds: u64| seeds / 10 + 1)
}

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 12).build().unwrap()
}

#[tokio::test]
async fn in_sqlite_cached_results_equal_uncached_ones() {
    let (mut hits, seeds) = (0, seeds(60));
    for seed in seeds.clone() {
        let (dice, larder) = (SeededRng::new(seed), larder());
        let schema = Schema::drawn(&dice, Dialect::Sqlite);
        let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:");
        let pool = pool.await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(&*schema.definition)).execute(&pool).await.unwrap();
        let db = larder::sqlx::sqlite(pool).cached(&larder).await.unwrap();
        hits += compare(&db, &larder, &schema, &dice, seed, Dialect::Sqlite).await;
    }
    assert!(hits > (seeds.end - seeds.start) * 30, "{hits} hits");
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn in_postgres_cached_results_equal_uncached_ones() {
    let server = Server::start();
    let (mut hits, seeds) = (0, seeds(30));
    for seed in seeds.clone() {
        let (dice, larder) = (SeededRng::new(seed), larder());
        let schema = Schema::drawn(&dice, Dialect::Postgres);
        server.psql(&format!(
            "SET client_min_messages = warning; DROP SCHEMA public CASCADE; CREATE SCHEMA public; {}",
            schema.definition
        ));
        let db = server.db(&larder).await;
        hits += compare(&db, &larder, &schema, &dice, seed, Dialect::Postgres).await;
    }
    assert!(hits > (seeds.end - seeds.start) * 30, "{hits} hits");
}
