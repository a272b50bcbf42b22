//! Gathers the rows of a statement.

use futures_util::{TryStreamExt as _, stream::BoxStream};
use larder_sql::{
    Rows, Statement, StatementOutcome,
    driver::{DriverError, DriverErrorKind},
};

use super::sqlx::{self, Either};

/// Gathers all rows of a statement, and the number of changed rows.
pub(super) async fn gathered<D, R>(
    mut brought: BoxStream<'_, Result<Either<D, R>, sqlx::Error>>,
    text: &str,
    affected: fn(&D) -> u64,
    mut add: impl FnMut(&R, &mut Rows) -> Result<(), sqlx::Error>,
) -> Result<StatementOutcome, sqlx::Error> {
    let is_empty = Statement::is_empty(text);
    let (mut answer, mut is_done, mut unread) = (StatementOutcome::default(), false, None);
    while let Some(next) = brought.try_next().await? {
        match next {
            Either::Left(done) => {
                answer.affected += affected(&done);
                is_done = true;
            }
            // Continues to the end, because a write must be complete before its error is returned.
            Either::Right(row) => unread = unread.or(add(&row, &mut answer.rows).err()),
        }
    }
    match unread {
        Some(error) => Err(error),
        None if answer.rows.rows.iter().any(|row| row.len() != answer.rows.columns.len()) => {
            Err(sqlx::Error::Protocol("the columns changed while the rows were read".to_owned()))
        }
        // If the driver fails while it reads, the stream ends without an error and without this final count.
        None if !is_done && !is_empty => Err(sqlx::Error::Protocol(
            "the result of the statement ended early, without a count of rows".to_owned(),
        )),
        None => Ok(answer),
    }
}

/// Converts an error of sqlx.
pub(super) fn driver_error(error: sqlx::Error) -> DriverError {
    let code = error.as_database_error().and_then(|error| Some(error.code()?.into_owned()));
    let kind = match (&error, &code) {
        (_, Some(code)) => DriverErrorKind::of_sqlstate(code),
        (sqlx::Error::Encode(_), None) => DriverErrorKind::NotSent,
        (sqlx::Error::ColumnDecode { .. }, None) => DriverErrorKind::Unreadable,
        _ => DriverErrorKind::Failed,
    };
    let converted = DriverError::new(kind, error);
    match code {
        Some(code) => converted.with_code(&code),
        None => converted,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _, stream};

    use super::*;

    type Said = Result<Either<u64, &'static [i64]>, sqlx::Error>;

    /// The outcome of a stream with these items.
    fn gathering(said: Vec<Said>, text: &str) -> Result<StatementOutcome, sqlx::Error> {
        let add = |row: &&'static [i64], rows: &mut Rows| {
            if row.is_empty() {
                return Err(sqlx::Error::ColumnNotFound("v".to_owned()));
            }
            rows.columns = vec!["v".to_owned()];
            rows.rows.push(row.iter().map(|value| (*value).into()).collect());
            Ok(())
        };
        let gathered = gathered(stream::iter(said).boxed(), text, |done: &u64| *done, add);
        gathered.now_or_never().expect("the stream is ready")
    }

    #[test]
    fn a_statement_outcome_is_complete_or_an_error() {
        let whole =
            gathering(vec![Ok(Either::Right(&[1])), Ok(Either::Left(3))], "SELECT").unwrap();
        assert_eq!((whole.affected, whole.rows.rows.len()), (3, 1));
        // If the driver fails while it reads, the stream ends.
        assert!(gathering(vec![], "SELECT 1").is_err());
        assert!(gathering(vec![Ok(Either::Right(&[1]))], "SELECT 1").is_err());
        // The columns changed while the rows were read.
        assert!(
            gathering(vec![Ok(Either::Right(&[1, 2])), Ok(Either::Left(0))], "SELECT").is_err()
        );
        // A row cannot be read, and another row follows.
        let unread = vec![Ok(Either::Right(&[][..])), Ok(Either::Right(&[1])), Ok(Either::Left(1))];
        assert!(matches!(gathering(unread, "SELECT"), Err(sqlx::Error::ColumnNotFound(_))));
        for nothing in ["", " ;", "-- nothing", "/* nothing */"] {
            assert_eq!(gathering(vec![], nothing).unwrap().affected, 0, "{nothing}");
        }
    }
}
