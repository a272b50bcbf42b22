//! A token of the session in each form, so that another site cannot send the form.

use tower_sessions::Session;

use crate::error::AppError;

/// Returns the token of a session, and creates it when the session has none.
pub(crate) async fn token(session: &Session) -> Result<String, AppError> {
    if let Some(token) = session.get::<String>(KEY).await? {
        return Ok(token);
    }
    renew(session).await
}

/// Replaces the token of a session, when its user changes.
pub(crate) async fn renew(session: &Session) -> Result<String, AppError> {
    let token = uuid::Uuid::new_v4().simple().to_string();
    session.insert(KEY, &token).await?;
    // Not the token itself, because the keys of a cache may be in a log or in a second level.
    session.insert(PAGES, uuid::Uuid::new_v4().simple().to_string()).await?;
    Ok(token)
}

/// Refuses a form without the token of the session.
pub(crate) async fn check(session: &Session, given: &str) -> Result<(), AppError> {
    let token = session.get::<String>(KEY).await?;
    match token {
        Some(token) if token == given => Ok(()),
        _ => Err(AppError::Invalid("the form is out of date: load the page again".to_owned())),
    }
}

/// The key in a session of a name for the pages that show its token.
pub(crate) const PAGES: &str = "pages";
/// The key of the token in a session.
const KEY: &str = "csrf";
