//! A client of the admin API of a running larder.

use std::{
    io::{BufRead as _, BufReader, Read},
    time::Duration,
};

use clap::Args;
use serde_json::Value;
use ureq::{Agent, Body, http::Response};

use crate::{error::CliError, text::printable};

/// Where the larder is.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// The URL under which the admin API is nested, such as http://127.0.0.1:3000/larder.
    #[arg(long, env = "LARDER_URL", global = true, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// The token of the admin API.
    #[arg(long, env = "LARDER_TOKEN", global = true, hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// The Redis or Valkey with the log of invalidations, for `invalidate` and `tail` without a running service; several
    /// times for the nodes of a cluster.
    #[cfg(feature = "redis")]
    #[arg(
        long,
        env = "LARDER_REDIS",
        global = true,
        value_name = "URL",
        value_delimiter = ',',
        conflicts_with = "url"
    )]
    pub(crate) redis: Vec<String>,
    /// The name of the log, if the application has given it one by `Redis::name`.
    #[cfg(feature = "redis")]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) log_name: Option<String>,
}

/// A client of the admin API.
#[derive(Clone, Debug)]
pub(crate) struct AdminClient {
    agent: Agent,
    url: String,
    token: Option<String>,
}

/// An event of the live stream.
pub(crate) struct LiveEvent {
    pub(crate) data: Value,
}

impl AdminClient {
    pub(crate) fn of(server: &Server) -> Result<Self, CliError> {
        let url = server.url.as_deref().ok_or_else(|| {
            CliError::usage(
                "the URL of the admin API is missing; allowed is --url or LARDER_URL, such as http://127.0.0.1:3000/larder",
            )
        })?;
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(CliError::usage(format!(
                "the URL of the admin API is {url:?}, allowed is one that begins with http:// or https://"
            )));
        }
        Ok(Self {
            agent: agent(),
            url: url.trim_end_matches('/').to_owned(),
            token: server.token.clone(),
        })
    }

    /// Gets an answer.
    pub(crate) fn get(&self, path: &str, parameters: &[(&str, String)]) -> Result<Value, CliError> {
        let pairs = parameters.iter().map(|(name, value)| (*name, value.as_str()));
        let mut request = self.agent.get(format!("{}/{path}", self.url)).query_pairs(pairs);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let limited = request.config().timeout_global(Some(LONGEST_CALL)).build();
        self.answer(limited.call())
    }

    /// Posts JSON.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Value, CliError> {
        let mut request = self.agent.post(format!("{}/{path}", self.url));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.header("content-type", "application/json");
        let limited = request.config().timeout_global(Some(LONGEST_CALL)).build();
        self.answer(limited.send(body.to_string()))
    }

    /// Calls `act` with each event of the live stream, until it returns `false`.
    pub(crate) fn live(
        &self,
        mut act: impl FnMut(LiveEvent) -> Result<bool, CliError>,
    ) -> Result<(), CliError> {
        let mut last = String::new();
        loop {
            let mut request = self.agent.get(format!("{}/api/live", self.url));
            if let Some(token) = &self.token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if !last.is_empty() {
                request = request.header("last-event-id", &last);
            }
            let response = self.accepted(request.call())?;
            for line in BufReader::new(response.into_body().into_reader()).lines() {
                // The server was stopped, or the network broke: the next request tells.
                let Ok(line) = line else { break };
                if let Some(id) = line.strip_prefix("id: ") {
                    last = id.to_owned();
                } else if let Some(data) = line.strip_prefix("data: ") {
                    let data =
                        serde_json::from_str(data).map_err(|error| self.not_larder(&error))?;
                    if !act(LiveEvent { data })? {
                        return Ok(());
                    }
                }
            }
            // The server ends streams after half a minute. The last event is not a second old.
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn answer(&self, sent: Result<Response<Body>, ureq::Error>) -> Result<Value, CliError> {
        let text = read(self.accepted(sent)?)?;
        serde_json::from_str(&text).map_err(|error| self.not_larder(&error))
    }

    fn not_larder(&self, error: &serde_json::Error) -> CliError {
        CliError::refused(format!(
            "the answer of {} is not that of an admin API: {error}",
            self.url
        ))
    }

    fn accepted(
        &self,
        sent: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, CliError> {
        let response = sent.map_err(|error| {
            CliError::no_answer(format!("{} does not answer: {error}", self.url))
        })?;
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(response);
        }
        let body: Value = serde_json::from_str(&read(response)?).unwrap_or_default();
        let said =
            body["error"].as_str().map(|said| format!(": {}", printable(said))).unwrap_or_default();
        Err(match status {
            401 if self.token.is_none() => CliError::denied(
                "the token is missing; allowed is --token or LARDER_TOKEN with a token of the admin API",
            ),
            401 | 403 | 429 => CliError::denied(format!("{} refused{said}", self.url)),
            404 if said.is_empty() => CliError::refused(format!(
                "there is no admin API at {}; allowed is the URL under which it is nested",
                self.url
            )),
            _ => CliError::refused(format!("{} answered with {status}{said}", self.url)),
        })
    }
}

/// Returns an agent that gives up on a server that does not accept a connection.
pub(crate) fn agent() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(5)))
        .timeout_recv_response(Some(LONGEST_CALL))
        .user_agent(concat!("larder-cli/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

fn read(response: Response<Body>) -> Result<String, CliError> {
    let mut text = String::new();
    let mut body = response.into_body().into_reader().take(LARGEST_ANSWER);
    body.read_to_string(&mut text)
        .map_err(|error| CliError::no_answer(format!("the answer broke off: {error}")))?;
    Ok(text)
}

const LONGEST_CALL: Duration = Duration::from_secs(20);
const LARGEST_ANSWER: u64 = 64 << 20;
