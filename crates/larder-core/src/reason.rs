//! The reasons for outcomes, in one table for `Cache-Status`, counters and logs.

use std::{borrow::Borrow, cmp::Ordering, fmt};

use serde::{Serialize, Serializer};

macro_rules! reasons {
    ($($name:ident = $token:literal, $sentence:literal, $remedy:expr;)*) => {
        /// The reason why a request bypassed the cache, a response or value was not stored, or a fill failed.
        ///
        /// It is displayed as the word of `Cache-Status` (`detail=`), which counters and logs also use.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Reason {
            $(#[doc = $sentence] $name,)*
        }

        impl Reason {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns the word of the reason, such as `set-cookie`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $token,)*
                }
            }

            /// Returns the sentence that explains the reason.
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Self::$name => $sentence,)*
                }
            }

            /// Returns the change that would lift the reason. `None` if it is as it should be, or if no change would.
            pub const fn remedy(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => $remedy,)*
                }
            }
        }
    };
}

reasons! {
    Method = "method", "The method is not GET or HEAD, and the request is no read (QUERY, POST) whose content was read.", Some("Send a search as QUERY, or declare POST requests that only read, by `BodyKeyLayer`.");
    Identity = "identity", "The user of the request could not be identified, or the request carries an identity and has no partition.", Some("Give the user a partition (`partition_by`), or find out why the user could not be identified: the session layer has to be outside of the cache.");
    UnknownField = "unknown-field", "The request has a field that larder does not know, and only the layer's lifetime applies.", Some("Set the lifetime in the handler (`CachePolicy::ttl`), or declare the field on the layer: `harmless_field`, `vary_by_header` or `depends_on_url_alone`.");
    RequestNoStore = "request-no-store", "The request has `Cache-Control: no-store`.", Some("If clients must not demand that, `ignore_request_cache_control` on the layer.");
    Guarded = "guarded", "The request has a write precondition, which only the origin can evaluate.", None;
    RequestBody = "request-body", "The request is a GET or HEAD with content, which is not part of any key.", Some("Send the content as QUERY, with `BodyKeyLayer`.");
    Upgrade = "upgrade", "The request asks to switch to another protocol.", None;
    ByChoice = "by-choice", "A closure of `bypass_if` returned `true`.", Some("Change the closure of `bypass_if`.");
    Off = "off", "The layer is disabled.", Some("Remove `disabled` from the layer.");
    OwnPage = "own-page", "The request is for a page of larder's own, such as the dashboard.", None;
    Nested = "nested", "The enclosing response cache decides.", Some("Remove one of the two caches, if this one is to decide.");
    KeyTooLong = "key-too-long", "The key exceeds the maximum length.", Some("Shorten the URL, or leave parameters out of the key by `query_params`.");
    Identified = "identified", "The request carries credentials, and the response or value is not declared fit for all users.", Some("Declare the response fit for all users (`public`, `s-maxage`, `shared`), or give the user a partition (`partition_by`).");
    Unsynchronised = "unsynchronised", "larder has not verified recently enough that this process has applied every invalidation.", Some("Check the server of the log and `Stats::log`, or choose `Consistency::Eventual`.");
    SelfWaiting = "self-waiting", "A loader requested the value that it loads.", Some("Do not request a value in its own loader.");
    Overtaken = "overtaken", "An invalidation arrived during the fill.", None;
    OnlyIfCached = "only-if-cached", "The request accepts only a stored response, and no stored response may be served.", None;
    AmbiguousHost = "ambiguous-host", "The request names two hosts, or a host that is not an authority.", Some("Let the proxy in front of the server refuse such requests.");
    ShuttingDown = "shutting-down", "The runtime shut down during the fill.", None;
    Unlogged = "unlogged", "The log has not confirmed the invalidation of the write.", Some("Check the server of the log.");
    OldReadPoint = "old-read-point", "The read point is older than the longest lifetime of an entry.", Some("Take the read point shortly before the read.");
    NoLifetime = "no-lifetime", "Neither the handler nor the response nor the layer sets a lifetime.", Some("Set a lifetime: `CachePolicy::ttl` in the handler, `Cache-Control`, or `ttl` on the layer, which does not apply to errors and redirects.");
    Policy = "policy", "The handler or the loader called `no_store`.", Some("Remove `no_store` from the handler or the loader.");
    NoStore = "no-store", "It has `Cache-Control: no-store`.", Some("Remove `no-store` from the response, or override it by `override_ttl`.");
    Private = "private", "It has `Cache-Control: private`.", Some("Give the user a partition (`partition_by`), if the response belongs to a user.");
    NoCache = "no-cache", "It has `Cache-Control: no-cache` and no validator.", Some("Add an `ETag` (`ConditionalLayer` outside of the cache), or set a lifetime.");
    SetCookie = "set-cookie", "It sets a cookie.", Some("Set the cookie on another route, or strip it in a layer between handler and cache.");
    VaryStar = "vary-star", "Its `Vary` is `*` or has a member that is not a field name.", Some("Name the fields in `Vary`.");
    Authorization = "authorization", "The request has `Authorization`, and the response is not declared fit for all users.", Some("Declare the response fit for all users (`public`, `s-maxage`, `shared`), or give the user a partition (`partition_by`).");
    SessionWritten = "session-written", "The handler wrote to the session of its client.", Some("Do not write to the session in handlers of shared pages.");
    FinalSetCookie = "final-set-cookie", "A layer outside of the cache added a cookie.", Some("Start sessions on other routes. If the session layer refreshes its cookie on each response, switch that off.");
    FinalNoStore = "final-no-store", "A layer outside of the cache added `no-store`.", Some("Exempt cached routes from the layer that adds it.");
    FinalPrivate = "final-private", "A layer outside of the cache added `private`.", Some("Exempt cached routes from the layer that adds it.");
    FinalStatus = "final-status", "A layer outside of the cache replaced the response with an error.", None;
    FinalHeadUnknown = "final-head-unknown", "The client disconnected before the final head was sent.", None;
    Error = "error", "It is an error that has no lifetime, or it would replace a good response.", Some("`negative_ttl`, for statuses that are to be stored.");
    Status = "status", "Its status is not storable.", None;
    Stale = "stale", "It arrived without remaining lifetime, or its fill took longer than its lifetime.", Some("Set a lifetime that is longer than the fill takes.");
    Endless = "endless", "It is a stream without an end.", None;
    Part = "part", "It is a partial response that cannot be stored.", None;
    Length = "length", "Its length differs from the length that it announced.", Some("Correct the `Content-Range` or the `Content-Length` of the origin.");
    Trailers = "trailers", "It has trailers.", None;
    TooLarge = "too-large", "It exceeds the limit on its size.", Some("Raise `body_limit` of the layer.");
    FillBudget = "fill-budget", "The bodies of all running fills exceed the fill budget.", Some("Raise `LarderBuilder::fill_budget`.");
    Deadline = "deadline", "The fill exceeded its time limit.", Some("Raise `fill_timeout`, or make the origin faster.");
    PrivatePart = "private-part", "It contains a part that belongs to one user, outside of a partition.", Some("Give the user a partition (`partition_by`), or declare the value fit for all users (`Policy::shared`).");
    VariedPart = "varied-part", "It contains a part that belongs to one variant, and is shared by all clients.", Some("Remove `shared` from the value or the fragment that contains it.");
    UnstoredPart = "unstored-part", "It contains a part that was not stored.", Some("Explain that value: it has a reason of its own.");
    FailedPart = "failed-part", "It contains a part whose fill failed.", Some("Repair the loader of that value.");
    TooManyTags = "too-many-tags", "It has more tags than `max_tags`.", Some("Use fewer or coarser tags, or raise `LarderBuilder::max_tags`.");
    InnerCache = "inner-cache", "An inner response cache has inputs in its key that this one does not have.", Some("Remove one of the two caches, or give this one the same key inputs.");
    Head = "head", "No stored response can be served for this HEAD, and larder does not fill from a HEAD.", None;
    Unconfirmed = "unconfirmed", "Each request has to revalidate the response for itself.", None;
    Alone = "alone", "Waiting for the fill of another request was not possible or not useful.", None;
    Origin = "origin", "The origin failed.", Some("Repair the origin. `stale_if_error` serves stale responses meanwhile.");
    OriginStatus = "origin-status", "The origin responded with 500, 502, 503 or 504.", Some("Repair the origin. `stale_if_error` serves stale responses meanwhile.");
    Revalidation = "revalidation", "The 304 does not confirm the stored response.", Some("If it recurs without invalidations, correct the origin: its 304 names a wrong `ETag`.");
    Body = "body", "The body broke off.", Some("Find out why the body of the origin broke off.");
    Anothers = "another's", "Four fills failed, and the waiter gets the last error.", Some("Repair the origin. `stale_if_error` serves stale responses meanwhile.");
    Loader = "loader", "The loader returned an error.", Some("Repair the loader.");
    Panic = "panic", "The loader panicked.", Some("Repair the loader.");
    Elsewhere = "elsewhere", "The fill of another call failed.", Some("Repair the loader.");
    ErrorBackoff = "error-backoff", "The loader failed a moment ago, and the policy has an error backoff.", Some("Repair the loader, or shorten `Policy::error_backoff`.");
    RefreshBudget = "refresh-budget", "The maximum number of refreshes is already running.", Some("Raise `LarderBuilder::refresh_budget`.");
    RefreshBackoff = "refresh-backoff", "The last refresh failed a moment ago.", Some("Repair the origin.");
    Outbox = "outbox", "The outbox of cached queries could not be read.", Some("Check the database and the rights on the tables of the outbox.");
    UncheckedCondition = "unchecked-condition", "Neither the layer nor the handler evaluated a write precondition.", Some("Evaluate the precondition in the handler, by `Conditional::check`.");
    UnknownRelation = "unknown-relation", "The statement reads a relation that the catalog does not describe.", Some("Describe it in the `Catalog`.");
    Volatile = "volatile", "The statement calls a function whose result may change without a write.", Some("`cached_for`, if an older result is good enough.");
    StableFunction = "stable-function", "The statement calls a function of PostgreSQL that is declared `STABLE`, so it may read any table.", Some("Declare the function `IMMUTABLE`, if it reads no table.");
    UnknownFunction = "unknown-function", "The statement calls a function whose effects are unknown.", None;
    UnknownTable = "unknown-table", "The statement writes a table that the catalog does not describe.", Some("Describe it in the `Catalog`.");
    SeveralTables = "several-tables", "The statement writes several tables at once.", None;
    ForUpdate = "for-update", "The statement locks the rows that it reads.", Some("Leave `FOR UPDATE` out, if the rows are only read.");
    NotUnderstood = "not-understood", "larder cannot parse the statement.", Some("Simplify the statement.");
    TooLong = "too-long", "The statement is longer than larder analyses.", Some("Shorten the statement.");
    SeveralStatements = "several-statements", "The SQL string has several statements.", Some("Send each statement by itself.");
    UnknownQuery = "unknown-query", "The tables that the query reads are not known.", Some("Describe them in the `Catalog`.");
    Statement = "statement", "The statement is not a query.", None;
    Write = "write", "The statement writes.", None;
    Transaction = "transaction", "The statement runs in a transaction.", Some("Run the query outside of the transaction, if it need not see its writes.");
    NoCatalog = "no-catalogue", "The tables of the database could not be read.", Some("Give the user of the database the right to read its catalog.");
    Uncached = "uncached", "The query is declared uncached.", Some("Remove `uncached` from the query.");
    ShowsSettings = "shows-settings", "The statement shows settings of the session.", None;
    TransactionControl = "transaction-control", "The statement begins or ends a transaction.", None;
    Redefined = "redefined", "The tables were redefined during the query.", None;
}

impl Reason {
    /// Returns whether the next fill of the same value will most likely be refused for the same reason, so that calls
    /// should not wait for it.
    pub const fn recurs(self) -> bool {
        matches!(self, Self::PrivatePart | Self::VariedPart | Self::TooManyTags)
    }

    /// Returns whether only the body of a response shows the reason, so that a head alone cannot show that the reason
    /// no longer applies.
    pub const fn shows_in_the_body(self) -> bool {
        matches!(
            self,
            Self::TooLarge | Self::FillBudget | Self::Trailers | Self::Deadline | Self::PrivatePart
        )
    }

    /// Returns whether the credentials of the request are the reason. A stored response for other clients then stays.
    pub const fn is_of_the_user(self) -> bool {
        matches!(self, Self::Authorization | Self::Identified)
    }

    /// Returns whether a layer outside of the cache caused the reason by the final head of the response.
    pub const fn is_of_the_final_head(self) -> bool {
        matches!(
            self,
            Self::FinalSetCookie | Self::FinalNoStore | Self::FinalPrivate | Self::FinalStatus
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

// Reasons hash and compare by their words, so that a word can look up an element of a map of reasons.
impl Borrow<str> for Reason {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl std::hash::Hash for Reason {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Ord for Reason {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl PartialOrd for Reason {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn each_reason_has_a_word_of_its_own_and_a_sentence() {
        let words: BTreeMap<&str, Reason> =
            Reason::ALL.iter().map(|reason| (reason.as_str(), *reason)).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert!(reason.sentence().ends_with('.'), "{reason}: {}", reason.sentence());
            assert!(reason.remedy().is_none_or(|remedy| remedy.ends_with('.')), "{reason}");
        }
    }

    #[test]
    fn a_word_finds_its_reason_in_a_map() {
        let counts: BTreeMap<Reason, u64> = Reason::ALL.iter().map(|reason| (*reason, 1)).collect();
        for reason in Reason::ALL {
            assert_eq!(counts.get(reason.as_str()), Some(&1), "{reason}");
        }
    }
}
