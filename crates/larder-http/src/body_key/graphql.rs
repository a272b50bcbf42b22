//! Tells GraphQL queries from mutations and subscriptions.
//!
//! # Source
//!
//! [GraphQL, section 2.3](https://spec.graphql.org/October2021/#sec-Language.Operations),
//! [GraphQL over HTTP](https://graphql.github.io/graphql-over-http/draft/), and
//! [automatic persisted queries](https://www.apollographql.com/docs/apollo-server/performance/apq/).

use http::{HeaderMap, Uri, header};
use serde::{Deserialize, de::IgnoredAny};
use sha2::{Digest as _, Sha256};

use crate::address::{Head, original_uri};

/// Whether a POST can only run GraphQL queries, on any server.
///
/// Servers differ in which operation of a document they run, in the inputs from which they take the document, and in how
/// they split a text into tokens. So no document may contain the word `mutation` or `subscription` at any place: keywords
/// cannot be escaped, and an operation without a keyword is a query.
pub(super) fn is_query(head: &Head<'_>, content: &[u8]) -> bool {
    let has_own_document = [head.uri, original_uri(head)].into_iter().all(is_without_document);
    if !has_own_document || head.headers.contains_key(header::CONTENT_ENCODING) {
        return false;
    }
    match media_type(head.headers) {
        Some(MediaType::Document) => std::str::from_utf8(content).is_ok_and(has_only_queries),
        Some(MediaType::Json) => match content.trim_ascii_start().first() {
            Some(b'{') => {
                serde_json::from_slice(content).is_ok_and(|one: GraphqlRequest| one.reads())
            }
            Some(b'[') => {
                serde_json::from_slice(content).is_ok_and(|batch: Vec<GraphqlRequest>| {
                    !batch.is_empty() && batch.iter().all(GraphqlRequest::reads)
                })
            }
            _ => false,
        },
        None => false,
    }
}

/// Whether a URI has no parameter from which a server may take a document. Clients name the operation there, for logs.
fn is_without_document(uri: &Uri) -> bool {
    let names =
        uri.query().unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty());
    let mut names = names.map(|parameter| parameter.split('=').next().unwrap_or_default());
    names.all(|name| ["op", "operation", "operationName"].contains(&name))
}

enum MediaType {
    Json,
    Document,
}

/// The media type of the content, if it is one of GraphQL in UTF-8.
fn media_type(headers: &HeaderMap) -> Option<MediaType> {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(only), None) = (types.next(), types.next()) else { return None };
    let mut parts = only.to_str().ok()?.split(';').map(|part| part.trim().to_ascii_lowercase());
    let essence = parts.next()?;
    let is_known = |part: String| ["", "charset=utf-8", "charset=\"utf-8\""].contains(&&*part);
    if !parts.all(is_known) {
        return None;
    }
    match &*essence {
        "application/json" => Some(MediaType::Json),
        "application/graphql" => Some(MediaType::Document),
        _ => None,
    }
}

/// A request. One with a member that is not listed here does not deserialize, because a server may take the document from
/// it, and neither does one that only names a persisted document.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GraphqlRequest {
    query: String,
    #[serde(default, rename = "operationName")]
    _operation_name: IgnoredAny,
    #[serde(default, rename = "variables")]
    _variables: IgnoredAny,
    #[serde(default)]
    extensions: Option<Extensions>,
}

#[derive(Deserialize)]
struct Extensions {
    #[serde(default, rename = "persistedQuery")]
    persisted_query: Option<PersistedQuery>,
}

#[derive(Deserialize)]
struct PersistedQuery {
    #[serde(rename = "sha256Hash")]
    sha256_hash: String,
}

impl GraphqlRequest {
    fn reads(&self) -> bool {
        let persisted =
            self.extensions.as_ref().and_then(|extensions| extensions.persisted_query.as_ref());
        let is_same = |persisted: &PersistedQuery| {
            let digest = Sha256::digest(&self.query);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            persisted.sha256_hash.eq_ignore_ascii_case(&hex)
        };
        persisted.is_none_or(is_same) && has_only_queries(&self.query)
    }
}

fn has_only_queries(document: &str) -> bool {
    !document.contains("mutation") && !document.contains("subscription")
}

#[cfg(test)]
mod tests {
    use http::{Method, Request};

    use super::*;

    fn is_query_of(request: http::request::Builder, content: &str) -> bool {
        let request: Request<()> = request.method(Method::POST).body(()).unwrap();
        is_query(&Head::from(&request), content.as_bytes())
    }

    fn is_query_as(media_type: &str, content: &str) -> bool {
        is_query_of(Request::builder().header("content-type", media_type), content)
    }

    fn is_query_document(document: &str) -> bool {
        let content = serde_json::json!({ "query": document }).to_string();
        let as_json = is_query_as("application/json; charset=utf-8", &content);
        assert_eq!(as_json, is_query_as("application/graphql", document), "{document}");
        as_json
    }

    #[test]
    fn a_document_that_may_have_another_operation_is_no_read() {
        let reads = [
            "{ me { name } }",
            "query A { a } query B { b }",
            "fragment F on User { name } query Q($id: Int) { me { ...F } }",
            "# a comment\n{ me(text: \"a \\\"text\\\"\") }",
            "\u{feff}{ me }",
        ];
        for document in reads {
            assert!(is_query_document(document), "{document}");
        }
        let others = [
            "mutation { a }",
            "subscription { a }",
            "query A { a } mutation B { b }",
            // Other servers end a comment at U+2028, or do not know block strings.
            "query Q { me } #\u{2028} mutation M { buy }",
            "query Q { a(x: [\"\"\"b\" ]) } mutation M { buy } #\"\"\"]) }",
            "query Q { a #\u{2028} }\n mutation M { c #\u{2028} { d\n } }",
            "{ mutations }",
        ];
        for document in others {
            assert!(!is_query_document(document), "{document}");
        }
    }

    #[test]
    fn content_from_which_a_server_may_take_another_document_is_no_read() {
        let query =
            r#"{"query":"{ me }","operationName":null,"variables":{"a":[1]},"extensions":{}}"#;
        // The SHA-256 of the document.
        let hash =
            Sha256::digest("{ me }").iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let persisted = format!(
            r#"{{"query":"{{ me }}","extensions":{{"persistedQuery":{{"version":1,"sha256Hash":"{hash}"}}}}}}"#
        );
        assert!(is_query_as("application/json", query));
        assert!(is_query_as("application/json", &persisted));
        assert!(is_query_as("Application/JSON; charset=\"UTF-8\"", &format!("[{query},{query}]")));
        for content in [
            r#"{"query":"{ me }","query":"mutation { a }"}"#,
            r#"{"query":"mutation { a }","query":"{ me }"}"#,
            r#"{"query":"{ me }","Query":"mutation { a }"}"#,
            r#"{"query":"{ me }","documentId":"abc"}"#,
            r#"{"query":"muta\u0074ion { a }"}"#,
            r#"{"id":"abc"}"#,
            r#"{"query":null,"extensions":{"persistedQuery":{"version":1,"sha256Hash":"00"}}}"#,
            r#"{"query":"{ me }","extensions":{"persistedQuery":{"version":1,"sha256Hash":"00"}}}"#,
            r#"[{"query":"{ me }"},{"query":"mutation { a }"}]"#,
            r#"[{"query":"{ me }"},{}]"#,
            r#"["{ me }"]"#,
            "[]",
            "{}",
            "",
            r#"{"query":"{ me }"} {"query":"mutation { a }"}"#,
        ] {
            assert!(!is_query_as("application/json", content), "{content}");
        }
        for media_type in
            ["multipart/form-data; boundary=a", "text/plain", "application/json; charset=utf-7"]
        {
            assert!(!is_query_as(media_type, query), "{media_type}");
        }
        let json = || Request::builder().header("content-type", "application/json");
        assert!(!is_query_of(Request::builder(), query));
        assert!(!is_query_of(json().header("content-type", "multipart/form-data"), query));
        assert!(!is_query_of(json().header("content-encoding", "gzip"), query));
        assert!(is_query_of(json().uri("/graphql?op=Me&operationName=Me"), query));
        for uri in ["/graphql?query=mutation%7Bbuy%7D", "/graphql?q%75ery=x", "/graphql?id=7"] {
            assert!(!is_query_of(json().uri(uri), query), "{uri}");
        }
    }
}
