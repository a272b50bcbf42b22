//! The reasons for outcomes, in one table for `Cache-Status`, counters and logs.

use std::{borrow::Borrow, cmp::Ordering, fmt};

use serde::{Serialize, Serializer};

macro_rules! reasons {
    ($($name:ident = $token:literal, $sentence:literal;)*) => {
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
        }
    };
}

reasons! {
    Method = "method", "The method is not GET or HEAD, and the request is no read (QUERY, POST) whose content was read.";
    Identity = "identity", "The user of the request could not be identified, or the request carries an identity and has no partition.";
    UnknownField = "unknown-field", "The request has a field that larder does not know, and only the layer's lifetime applies.";
    RequestNoStore = "request-no-store", "The request has `Cache-Control: no-store`.";
    Guarded = "guarded", "The request has a write precondition, which only the origin can evaluate.";
    RequestBody = "request-body", "The request is a GET or HEAD with content, which is not part of any key.";
    Upgrade = "upgrade", "The request asks to switch to another protocol.";
    ByChoice = "by-choice", "A closure of `bypass_if` returned `true`.";
    Off = "off", "The layer is disabled.";
    Nested = "nested", "The enclosing response cache decides.";
    KeyTooLong = "key-too-long", "The key exceeds the maximum length.";
    Identified = "identified", "The request carries credentials, and the response or value is not declared fit for all users.";
    Unsynchronised = "unsynchronised", "larder has not verified recently enough that this process has applied every invalidation.";
    SelfWaiting = "self-waiting", "A loader requested the value that it loads.";
    Overtaken = "overtaken", "An invalidation arrived during the fill.";
    OnlyIfCached = "only-if-cached", "The request accepts only a stored response, and no stored response may be served.";
    AmbiguousHost = "ambiguous-host", "The request names two hosts, or a host that is not an authority.";
    ShuttingDown = "shutting-down", "The runtime shut down during the fill.";
    Unlogged = "unlogged", "The log has not confirmed the invalidation of the write.";
    OldReadPoint = "old-read-point", "The read point is older than the longest lifetime of an entry.";
    NoLifetime = "no-lifetime", "Neither the handler nor the response nor the layer sets a lifetime.";
    Policy = "policy", "The handler or the loader called `no_store`.";
    NoStore = "no-store", "It has `Cache-Control: no-store`.";
    Private = "private", "It has `Cache-Control: private`.";
    NoCache = "no-cache", "It has `Cache-Control: no-cache` and no validator.";
    SetCookie = "set-cookie", "It sets a cookie.";
    VaryStar = "vary-star", "Its `Vary` is `*` or has a member that is not a field name.";
    Authorization = "authorization", "The request has `Authorization`, and the response is not declared fit for all users.";
    SessionWritten = "session-written", "The handler wrote to the session of its client.";
    FinalSetCookie = "final-set-cookie", "A layer outside of the cache added a cookie.";
    FinalNoStore = "final-no-store", "A layer outside of the cache added `no-store`.";
    FinalPrivate = "final-private", "A layer outside of the cache added `private`.";
    FinalStatus = "final-status", "A layer outside of the cache replaced the response with an error.";
    FinalHeadUnknown = "final-head-unknown", "The client disconnected before the final head was sent.";
    Error = "error", "It is an error that has no lifetime, or it would replace a good response.";
    Status = "status", "Its status is not storable.";
    Stale = "stale", "It arrived without remaining lifetime, or its fill took longer than its lifetime.";
    Endless = "endless", "It is a stream without an end.";
    Part = "part", "It is a partial response that cannot be stored.";
    Length = "length", "Its length differs from the length that it announced.";
    Trailers = "trailers", "It has trailers.";
    TooLarge = "too-large", "It exceeds the limit on its size.";
    FillBudget = "fill-budget", "The bodies of all running fills exceed the fill budget.";
    Deadline = "deadline", "The fill exceeded its time limit.";
    PrivatePart = "private-part", "It contains a part that belongs to one user, outside of a partition.";
    VariedPart = "varied-part", "It contains a part that belongs to one variant, and is shared by all clients.";
    UnstoredPart = "unstored-part", "It contains a part that was not stored.";
    FailedPart = "failed-part", "It contains a part whose fill failed.";
    TooManyTags = "too-many-tags", "It has more tags than `max_tags`.";
    InnerCache = "inner-cache", "An inner response cache has inputs in its key that this one does not have.";
    Head = "head", "No stored response can be served for this HEAD, and larder does not fill from a HEAD.";
    Unconfirmed = "unconfirmed", "Each request has to revalidate the response for itself.";
    Alone = "alone", "Waiting for the fill of another request was not possible or not useful.";
    Origin = "origin", "The origin failed.";
    OriginStatus = "origin-status", "The origin responded with 500, 502, 503 or 504.";
    Revalidation = "revalidation", "The 304 does not confirm the stored response.";
    Body = "body", "The body broke off.";
    Anothers = "another's", "Four fills failed, and the waiter gets the last error.";
    Loader = "loader", "The loader returned an error.";
    Panic = "panic", "The loader panicked.";
    Elsewhere = "elsewhere", "The fill of another call failed.";
    ErrorBackoff = "error-backoff", "The loader failed a moment ago, and the policy has an error backoff.";
    RefreshBudget = "refresh-budget", "The maximum number of refreshes is already running.";
    RefreshBackoff = "refresh-backoff", "The last refresh failed a moment ago.";
    Outbox = "outbox", "The outbox of cached queries could not be read.";
    UncheckedCondition = "unchecked-condition", "Neither the layer nor the handler evaluated a write precondition.";
    UnknownRelation = "unknown-relation", "The statement reads a relation that the catalog does not describe.";
    Volatile = "volatile", "The statement calls a function whose result may change without a write.";
    StableFunction = "stable-function", "The statement calls a function of PostgreSQL that is declared `STABLE`, so it may read any table.";
    UnknownFunction = "unknown-function", "The statement calls a function whose effects are unknown.";
    UnknownTable = "unknown-table", "The statement writes a table that the catalog does not describe.";
    SeveralTables = "several-tables", "The statement writes several tables at once.";
    ForUpdate = "for-update", "The statement locks the rows that it reads.";
    NotUnderstood = "not-understood", "larder cannot parse the statement.";
    TooLong = "too-long", "The statement is longer than larder analyses.";
    SeveralStatements = "several-statements", "The SQL string has several statements.";
    UnknownQuery = "unknown-query", "The tables that the query reads are not known.";
    Statement = "statement", "The statement is not a query.";
    Write = "write", "The statement writes.";
    Transaction = "transaction", "The statement runs in a transaction.";
    NoCatalog = "no-catalogue", "The tables of the database could not be read.";
    Uncached = "uncached", "The query is declared uncached.";
    ShowsSettings = "shows-settings", "The statement shows settings of the session.";
    TransactionControl = "transaction-control", "The statement begins or ends a transaction.";
    Redefined = "redefined", "The tables were redefined during the query.";
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
