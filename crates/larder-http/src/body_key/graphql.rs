//! Tells GraphQL queries from mutations and subscriptions.
//!
//! # Source
//!
//! [GraphQL, section 2.3](https://spec.graphql.org/October2021/#sec-Language.Operations) and
//! [GraphQL over HTTP](https://graphql.github.io/graphql-over-http/draft/).

use apollo_parser::{Parser, cst::Definition};
use http::{HeaderMap, header};
use moka::sync::Cache;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Tells queries by their documents, and remembers the verdict on a document by its digest: a client sends the same few
/// documents again and again, and to parse one takes longer than a hit.
#[derive(Clone)]
pub(super) struct GraphqlReads {
    verdicts: Cache<[u8; 32], bool>,
}

impl GraphqlReads {
    pub(super) fn new() -> Self {
        Self { verdicts: Cache::new(REMEMBERED) }
    }

    /// Whether all operations in the content of a POST are queries.
    ///
    /// All operations count, not only the one that the server executes: an operation name can stand in the content or
    /// in the URL, and servers differ in which one they take. Content that cannot be parsed is not a query.
    pub(super) fn is_query(&self, headers: &HeaderMap, content: &[u8]) -> bool {
        is_query(headers, content, |document| {
            let digest = Sha256::digest(document).into();
            self.verdicts.get_with(digest, || document_only_queries(document))
        })
    }
}

fn is_query(
    headers: &HeaderMap,
    content: &[u8],
    document_only_queries: impl Fn(&str) -> bool,
) -> bool {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(media_type), None) = (types.next(), types.next()) else { return false };
    if headers.contains_key(header::CONTENT_ENCODING) {
        return false;
    }
    let media_type = media_type.to_str().unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/graphql") {
        return std::str::from_utf8(content).is_ok_and(&document_only_queries);
    }
    if !essence.eq_ignore_ascii_case("application/json") {
        return false;
    }
    match serde_json::from_slice(content) {
        Ok(Requests::One(request)) => document_only_queries(&request.query),
        Ok(Requests::Batch(requests)) => {
            !requests.is_empty()
                && requests.iter().all(|request| document_only_queries(&request.query))
        }
        Err(_) => false,
    }
}

/// The content of a POST: one request, or a batch as Apollo's clients send it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Requests {
    One(GraphqlRequest),
    Batch(Vec<GraphqlRequest>),
}

/// A request with its document. A request that only names a persisted document does not deserialize.
#[derive(Deserialize)]
struct GraphqlRequest {
    query: String,
}

/// Whether a document has operations, and all of them are queries.
fn document_only_queries(document: &str) -> bool {
    let parser = Parser::new(document).recursion_limit(MAX_DEPTH).token_limit(MAX_TOKENS);
    let tree = parser.parse();
    if tree.errors().next().is_some() {
        return false;
    }
    let mut queries = 0;
    for definition in tree.document().definitions() {
        match definition {
            Definition::OperationDefinition(operation) => {
                // An operation without a keyword is a query.
                let is_query =
                    operation.operation_type().is_none_or(|kind| kind.query_token().is_some());
                if !is_query {
                    return false;
                }
                queries += 1;
            }
            Definition::FragmentDefinition(_) => {}
            _ => return false,
        }
    }
    queries > 0
}

/// The limits of a document. A larger document is not parsed and counts as a write.
const MAX_DEPTH: usize = 64;
const MAX_TOKENS: usize = 20_000;
/// The number of documents whose verdict is remembered.
const REMEMBERED: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn is_query_as(media_type: &'static str, content: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, media_type.parse().unwrap());
        GraphqlReads::new().is_query(&headers, content.as_bytes())
    }

    fn is_query_document(document: &str) -> bool {
        let content = serde_json::json!({ "query": document }).to_string();
        let as_json = is_query_as("application/json; charset=utf-8", &content);
        assert_eq!(as_json, is_query_as("application/graphql", document), "{document}");
        as_json
    }

    #[test]
    fn only_documents_of_queries_are_reads() {
        let reads = [
            "{ me { name } }",
            "query { me }",
            "query A { a } query B { b }",
            "fragment F on User { mutation: name } query Q($mutation: Int) { me { ...F } }",
            "# mutation { a }\n{ me(text: \"mutation { a }\") }",
            "\u{feff}{ me }",
        ];
        for document in reads {
            assert!(is_query_document(document), "{document}");
        }
        let writes = [
            "mutation { a }",
            "subscription { a }",
            "query A { a } mutation B { b }",
            "mutation B { b } query A { a }",
            "fragment F on User { name }",
            "type User { name: String }",
            "",
            "{ me",
            "{ me } }",
            "muta\\u0074ion { a }",
        ];
        for document in writes {
            assert!(!is_query_document(document), "{document}");
        }
    }

    #[test]
    fn a_document_that_is_too_deep_or_too_long_is_no_read() {
        let deep = format!("{}a{}", "{a".repeat(100_000), "}".repeat(100_000));
        assert!(!is_query_document(&deep));
        assert!(!is_query_document(&format!("{{ {} }}", "a ".repeat(100_000))));
    }

    #[test]
    fn content_that_may_mean_something_else_to_the_server_is_no_read() {
        let query = r#"{"query":"{ me }","operationName":null,"variables":{"a":[1]}}"#;
        assert!(is_query_as("application/json", query));
        assert!(is_query_as("Application/JSON", &format!("[{query},{query}]")));
        for content in [
            r#"{"query":"{ me }","query":"mutation { a }"}"#,
            r#"{"query":"mutation { a }","query":"{ me }"}"#,
            r#"{"id":"abc"}"#,
            r#"{"query":null,"extensions":{"persistedQuery":{"version":1}}}"#,
            r#"[{"query":"{ me }"},{"query":"mutation { a }"}]"#,
            r#"[{"query":"{ me }"},{}]"#,
            "[]",
            "{}",
            "",
            r#"{"query":"{ me }"} {"query":"mutation { a }"}"#,
        ] {
            assert!(!is_query_as("application/json", content), "{content}");
        }
        assert!(!is_query_as("multipart/form-data; boundary=a", query));
        assert!(!is_query_as("text/plain", query));
        let mut headers = HeaderMap::new();
        assert!(!GraphqlReads::new().is_query(&headers, query.as_bytes()));
        headers.append(header::CONTENT_TYPE, "application/json".parse().unwrap());
        headers.append(header::CONTENT_TYPE, "multipart/form-data".parse().unwrap());
        assert!(!GraphqlReads::new().is_query(&headers, query.as_bytes()));
        headers.remove(header::CONTENT_TYPE);
        headers.insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
        headers.insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
        assert!(!GraphqlReads::new().is_query(&headers, query.as_bytes()));
    }
}
