//! The configuration of the application.

use std::fmt;

use argon2::Params;
use jsonwebtoken::{DecodingKey, EncodingKey};

use crate::error::StartError;

/// The secrets and limits of the application.
#[derive(Clone)]
pub struct Config {
    pub(crate) signing: EncodingKey,
    pub(crate) verifying: DecodingKey,
    pub(crate) passwords: Params,
    pub(crate) cache: bool,
}

impl Config {
    /// Creates a configuration with this secret for the tokens of the API.
    ///
    /// # Errors
    ///
    /// When the secret is too short.
    pub fn new(secret: &str) -> Result<Self, StartError> {
        let given = secret.len();
        if given < SHORTEST_SECRET {
            let error = format!("the secret has {given} characters, {SHORTEST_SECRET} are needed");
            return Err(error.into());
        }
        Ok(Self {
            signing: EncodingKey::from_secret(secret.as_bytes())?,
            verifying: DecodingKey::from_secret(secret.as_bytes())?,
            passwords: Params::DEFAULT,
            cache: true,
        })
    }

    /// Disables the caches, to compare.
    #[must_use]
    pub fn without_cache(mut self) -> Self {
        self.cache = false;
        self
    }

    /// Hashes passwords with the least effort, for tests.
    #[must_use]
    pub fn with_cheap_passwords(mut self) -> Self {
        let least = Params::new(Params::MIN_M_COST, Params::MIN_T_COST, Params::MIN_P_COST, None);
        self.passwords = least.expect("the minima are valid");
        self
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").finish_non_exhaustive()
    }
}

const SHORTEST_SECRET: usize = 32;
