//! Conformance tests for database drivers.

use std::time::Duration;

use larder_sql::{
    Rows, SqlDialect, SqlValue, Statement, StatementOutcome,
    driver::{Connection, Driver, DriverError, DriverErrorKind},
};

/// Tests a driver on an empty database.
///
/// The driver must be able to give three connections at a time. The test creates the table `larder_driver`, and
/// drops it at its end. A driver without notifications passes.
///
/// # Panics
///
/// If the driver does not conform; the message names the requirement.
pub async fn driver(driver: &dyn Driver) {
    script(driver, "CREATE TABLE larder_driver (id INTEGER PRIMARY KEY, v TEXT)").await;
    values(driver).await;
    outcomes(driver).await;
    errors(driver).await;
    transactions(driver).await;
    cancelled_calls(driver).await;
    schema_changes(driver).await;
    notifications(driver).await;
    script(driver, "DROP TABLE larder_driver").await;
}

/// Each bound value comes back as it is.
async fn values(driver: &dyn Driver) {
    let is_sqlite = driver.dialect() == SqlDialect::Sqlite;
    let mut rows = vec![
        ("bigint", SqlValue::Int(i64::MIN)),
        ("bigint", SqlValue::Int(i64::MAX)),
        ("double precision", SqlValue::Real(-0.1)),
        ("double precision", SqlValue::Real(1e300)),
        ("text", SqlValue::from("")),
        ("text", SqlValue::from("it's \"quoted\", \u{1f980} \\ $1 ?\n")),
        ("text", SqlValue::Null),
        ("bigint", SqlValue::Null),
        (if is_sqlite { "blob" } else { "bytea" }, SqlValue::Blob(vec![0, 255, 0])),
        (if is_sqlite { "blob" } else { "bytea" }, SqlValue::Blob(Vec::new())),
    ];
    if !is_sqlite {
        rows.extend([
            ("boolean", SqlValue::Bool(true)),
            ("uuid", SqlValue::from("00000000-0000-0000-0000-00000000000a")),
            ("numeric", SqlValue::from("12345678901234567890.5")),
            ("date", SqlValue::from("2024-02-29")),
            ("jsonb", SqlValue::Json("{\"a\": [1, null]}".to_owned())),
            ("bigint[]", SqlValue::array([1_i64, 2])),
        ]);
    }
    let mut connection = acquired(driver).await;
    for (kind, value) in rows {
        // The type of SQLite is that of the value.
        let text = match is_sqlite {
            true => "SELECT $1 AS v".to_owned(),
            false => format!("SELECT CAST($1 AS {kind}) AS v"),
        };
        let statement = Statement::new(text).bind(value.clone());
        let outcome = connection.run(&statement).await.expect("the value can be bound");
        let expected = Rows { columns: vec!["v".to_owned()], rows: vec![vec![value]] };
        assert_eq!(outcome.rows, expected, "a value of the type {kind} comes back as it was bound");
    }
    let unbindable = match is_sqlite {
        true => Statement::new("SELECT $1").bind(SqlValue::array([1_i64])),
        false => Statement::new("SELECT CAST($1 AS uuid)").bind("no uuid"),
    };
    let kind = failure(&mut *connection, &unbindable).await.kind();
    assert_eq!(kind, DriverErrorKind::NotSent, "a value that cannot be bound is not sent");
    let two = Statement::new("SELECT $2 || '', $1 || ''").bind("a").bind("b");
    let outcome = run(&mut *connection, &two).await;
    let expected = vec![vec![SqlValue::from("b"), SqlValue::from("a")]];
    assert_eq!(outcome.rows.rows, expected, "parameters are bound by their numbers");
}

/// An outcome has the names, the rows and the counts of its statement.
async fn outcomes(driver: &dyn Driver) {
    let mut connection = acquired(driver).await;
    let mut outcome = async |text: &'static str| run(&mut *connection, &Statement::new(text)).await;
    let inserted = outcome("INSERT INTO larder_driver VALUES (1, 'a'), (2, 'b'), (3, NULL)").await;
    assert_eq!(inserted.affected, 3, "a write returns the number of its rows");
    let updated = outcome("UPDATE larder_driver SET v = 'c' WHERE id > 1 RETURNING id AS n").await;
    assert_eq!(updated.affected, 2, "a write that returns rows returns their number, too");
    assert_eq!(updated.rows.columns, ["n"], "a column has the name of its alias");
    assert_eq!(updated.rows.rows.len(), 2, "a write returns its rows");
    let none = outcome("DELETE FROM larder_driver WHERE id = 99").await;
    assert_eq!(none.affected, 0, "a write of no rows has no rows");
    let read = outcome("SELECT v, id FROM larder_driver ORDER BY id").await;
    assert_eq!(read.rows.columns, ["v", "id"], "the columns have the order of the statement");
    assert_eq!(read.rows.rows.len(), 3, "all rows are returned");
    let empty = outcome("SELECT v FROM larder_driver WHERE id = 99").await;
    assert!(empty.rows.rows.is_empty(), "no row is no error");
    for nothing in ["", " ;", "-- nothing"] {
        assert_eq!(outcome(nothing).await.rows.rows.len(), 0, "an empty text is no error");
    }
}

/// An error says what the statement has done, and leaves the connection usable.
async fn errors(driver: &dyn Driver) {
    let is_sqlite = driver.dialect() == SqlDialect::Sqlite;
    let mut connection = acquired(driver).await;
    let twice = Statement::new("INSERT INTO larder_driver VALUES (1, 'again')");
    let error = failure(&mut *connection, &twice).await;
    assert_eq!(error.kind(), DriverErrorKind::Failed, "a refused write has failed");
    let code = if is_sqlite { "1555" } else { "23505" };
    assert_eq!(error.code(), Some(code), "an error has the code of the database");
    // The first rows can be computed, the last one cannot.
    let partial = match is_sqlite {
        true => "SELECT abs(v) FROM (SELECT 1 AS v UNION ALL SELECT -9223372036854775807 - 1)",
        false => "SELECT 1 / (3 - n) FROM generate_series(1, 3) AS n",
    };
    let kind = failure(&mut *connection, &Statement::new(partial)).await.kind();
    assert_eq!(kind, DriverErrorKind::Failed, "rows that end in an error are no outcome");
    if is_sqlite {
        let text = Statement::new(
            "UPDATE larder_driver SET v = v WHERE id = 1 RETURNING CAST(x'ff' AS TEXT)",
        );
        let kind = failure(&mut *connection, &text).await.kind();
        assert_eq!(kind, DriverErrorKind::Unreadable, "a text that is no UTF-8 is unreadable");
    } else {
        let point = Statement::new(
            "UPDATE larder_driver SET v = 'written' WHERE id = 3 RETURNING point(1, 2)",
        );
        let kind = failure(&mut *connection, &point).await.kind();
        assert_eq!(kind, DriverErrorKind::Unreadable, "a value without a conversion is unreadable");
        let read = Statement::new("SELECT v FROM larder_driver WHERE id = 3");
        let written = vec![vec![SqlValue::from("written")]];
        assert_eq!(run(&mut *connection, &read).await.rows.rows, written, "the write was executed");
    }
    let after = run(&mut *connection, &Statement::new("SELECT 1 AS one")).await;
    assert_eq!(after.rows.rows, [[SqlValue::Int(1)]], "the connection is usable after an error");
}

/// A transaction ends as the caller ends it, and is rolled back if it is dropped.
async fn transactions(driver: &dyn Driver) {
    let begin = match driver.dialect() {
        SqlDialect::Sqlite => "BEGIN IMMEDIATE",
        _ => "BEGIN; SELECT set_config('larder.driver', '1', true)",
    };
    let insert = Statement::new("INSERT INTO larder_driver VALUES (10, 'x')");
    let count = async || {
        let count = Statement::new("SELECT count(*) AS n FROM larder_driver WHERE id = 10");
        let outcome = run(&mut *acquired(driver).await, &count).await;
        outcome.rows.rows[0][0].clone()
    };
    let mut dropped = driver.begin(begin).await.expect("a transaction begins");
    run(&mut *dropped, &insert).await;
    drop(dropped);
    let mut rolled_back =
        driver.begin(begin).await.expect("a transaction begins after a dropped one");
    assert_eq!(count().await, SqlValue::Int(0), "a dropped transaction is rolled back");
    run(&mut *rolled_back, &insert).await;
    assert_eq!(count().await, SqlValue::Int(0), "others do not see an open transaction");
    rolled_back.rollback().await.expect("a transaction is rolled back");
    assert_eq!(count().await, SqlValue::Int(0), "a transaction that was rolled back has no effect");
    let mut committed = driver.begin(begin).await.expect("a transaction begins");
    run(&mut *committed, &insert).await;
    committed.commit().await.expect("a transaction commits");
    assert_eq!(count().await, SqlValue::Int(1), "others see a committed transaction");
    // A connection that returned to the pool in a transaction would hide the writes of others from its readers.
    let mut held = [acquired(driver).await, acquired(driver).await];
    for connection in &mut held {
        run(&mut **connection, &Statement::new("DELETE FROM larder_driver WHERE id = 10")).await;
    }
    let mut other = driver.open().await.expect("a connection opens outside of the pool");
    let gone = Statement::new("SELECT count(*) AS n FROM larder_driver WHERE id = 10");
    assert_eq!(
        run(&mut *other, &gone).await.rows.rows,
        [[SqlValue::Int(0)]],
        "no pooled connection is in a transaction"
    );
}

/// A caller that is cancelled harms no later caller.
async fn cancelled_calls(driver: &dyn Driver) {
    for _ in 0..8 {
        let mut connection = acquired(driver).await;
        let insert = Statement::new("INSERT INTO larder_driver VALUES (20, 'y')");
        let write = connection.run(&insert);
        // Polls the call once, and drops it.
        drop(tokio::time::timeout(Duration::ZERO, write).await);
        drop(connection);
        let mut next = acquired(driver).await;
        let read = run(&mut *next, &Statement::new("SELECT 2 AS two")).await;
        assert_eq!(read.rows.rows, [[SqlValue::Int(2)]], "the next call gets its own result");
        drop(next);
        run(
            &mut *acquired(driver).await,
            &Statement::new("DELETE FROM larder_driver WHERE id = 20"),
        )
        .await;
    }
    let mut begun = driver.begin("BEGIN").await.expect("a transaction begins");
    let insert = Statement::new("INSERT INTO larder_driver VALUES (21, 'z')");
    drop(tokio::time::timeout(Duration::ZERO, begun.run(&insert)).await);
    drop(begun);
    let count = Statement::new("SELECT count(*) AS n FROM larder_driver WHERE id = 21");
    let counted = run(&mut *acquired(driver).await, &count).await;
    assert_eq!(counted.rows.rows, [[SqlValue::Int(0)]], "a cancelled transaction is rolled back");
    // A transaction that is still open has a lock on this key.
    let mut again = acquired(driver).await;
    let inserting = tokio::time::timeout(Duration::from_secs(30), again.run(&insert)).await;
    assert!(
        inserting.is_ok_and(|inserted| inserted.is_ok()),
        "a cancelled transaction has no locks"
    );
    run(&mut *again, &Statement::new("DELETE FROM larder_driver WHERE id = 21")).await;
}

/// A statement that ran before has the columns of the new schema, or fails as outdated.
async fn schema_changes(driver: &dyn Driver) {
    let read = Statement::new("SELECT * FROM larder_driver WHERE id = 1");
    let mut before = acquired(driver).await;
    assert_eq!(run(&mut *before, &read).await.rows.columns, ["id", "v"]);
    for (change, columns) in [
        ("ALTER TABLE larder_driver ADD COLUMN w INTEGER DEFAULT 7", vec!["id", "v", "w"]),
        ("ALTER TABLE larder_driver RENAME COLUMN v TO x", vec!["id", "x", "w"]),
        ("ALTER TABLE larder_driver DROP COLUMN w", vec!["id", "x"]),
    ] {
        script(driver, change).await;
        let outcome = match before.run(&read).await {
            Ok(outcome) => outcome,
            Err(error) => {
                let kind = error.kind();
                assert_eq!(
                    kind,
                    DriverErrorKind::Outdated,
                    "{change} outdates a statement: {error}"
                );
                before.forget_prepared().await.expect("prepared statements are forgotten");
                run(&mut *before, &read).await
            }
        };
        assert_eq!(outcome.rows.columns, columns, "the names are those after {change}");
        let widths = outcome.rows.rows.iter().map(Vec::len);
        assert!(widths.eq([columns.len()]), "a row has a value for each column after {change}");
    }
}

/// A notification arrives, if the driver has notifications.
async fn notifications(driver: &dyn Driver) {
    let listening = driver.listen("larder_driver").await.expect("a channel can be listened to");
    let Some(mut channel) = listening else { return };
    script(driver, "NOTIFY larder_driver").await;
    let notified = tokio::time::timeout(Duration::from_secs(30), channel.next()).await;
    assert!(notified.is_ok(), "a notification arrives");
}

async fn acquired(driver: &dyn Driver) -> Box<dyn Connection> {
    driver.acquire().await.expect("the pool has a connection")
}

async fn script(driver: &dyn Driver, text: &str) {
    acquired(driver).await.run_script(text).await.expect("the script runs");
}

async fn run(
    connection: &mut (impl Connection + ?Sized),
    statement: &Statement,
) -> StatementOutcome {
    match connection.run(statement).await {
        Ok(outcome) => outcome,
        Err(error) => panic!("the driver must run {:?}: {error}", statement.text()),
    }
}

async fn failure(
    connection: &mut (impl Connection + ?Sized),
    statement: &Statement,
) -> DriverError {
    match connection.run(statement).await {
        Ok(outcome) => panic!("{:?} must fail, and returned {outcome:?}", statement.text()),
        Err(error) => error,
    }
}
