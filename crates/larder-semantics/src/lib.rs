//! The rules of the HTTP caching specifications, as pure functions of a request, a response, a stored response and the
//! time. They do not read a clock, do no I/O and never wait; the layers act on the results.
//!
//! `larder-http` applies these rules. Applications depend on `larder`, and rarely need this crate itself.
//!
//! - [`authority`]: hosts and ports in normal form ([RFC 3986, section 6.2]);
//! - [`cache_control`]: the directives of a request or a response ([RFC 9111, section 5.2]);
//! - [`freshness`]: the lifetime and the age of a response ([RFC 9111, section 4.2]);
//! - [`storing`]: whether a response is storable ([RFC 9111, section 3]);
//! - [`reuse`]: whether a stored response meets the directives of a request ([RFC 9111, section 4]);
//! - [`vary`]: the variant that a request selects ([RFC 9111, section 4.1]);
//! - [`validation`]: entity tags and conditional requests ([RFC 9110, section 13]);
//! - [`date`]: the dates of HTTP ([RFC 9110, section 5.6.7]);
//! - [`targeted`]: `Cache-Control` for one kind of cache ([RFC 9213]);
//! - [`ranges`]: partial responses ([RFC 9110, section 14]);
//! - [`uri_reference`]: the path that `Location` or `Content-Location` names ([RFC 3986, section 5]);
//! - [`no_vary_search`]: query parameters that do not select a response;
//! - [`cache_status`]: the `Cache-Status` field ([RFC 9211]);
//! - [`groups`]: cache groups ([RFC 9875]);
//! - [`fields`]: fields of a connection or a hop, which are not stored.
//!
//! [RFC 3986, section 5]: https://www.rfc-editor.org/rfc/rfc3986#section-5
//! [RFC 3986, section 6.2]: https://www.rfc-editor.org/rfc/rfc3986#section-6.2
//! [RFC 9110, section 5.6.7]: https://www.rfc-editor.org/rfc/rfc9110#section-5.6.7
//! [RFC 9110, section 14]: https://www.rfc-editor.org/rfc/rfc9110#section-14
//! [RFC 9213]: https://www.rfc-editor.org/rfc/rfc9213
//! [RFC 9110, section 13]: https://www.rfc-editor.org/rfc/rfc9110#section-13
//! [RFC 9111, section 3]: https://www.rfc-editor.org/rfc/rfc9111#section-3
//! [RFC 9111, section 4]: https://www.rfc-editor.org/rfc/rfc9111#section-4
//! [RFC 9111, section 4.1]: https://www.rfc-editor.org/rfc/rfc9111#section-4.1
//! [RFC 9111, section 4.2]: https://www.rfc-editor.org/rfc/rfc9111#section-4.2
//! [RFC 9111, section 5.2]: https://www.rfc-editor.org/rfc/rfc9111#section-5.2
//! [RFC 9211]: https://www.rfc-editor.org/rfc/rfc9211
//! [RFC 9875]: https://www.rfc-editor.org/rfc/rfc9875

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod authority;
pub mod cache_control;
pub mod cache_status;
pub mod date;
pub mod fields;
pub mod freshness;
pub mod groups;
pub mod no_vary_search;
pub mod ranges;

pub mod reuse;
pub mod storing;
pub mod targeted;
pub mod uri_reference;
pub mod validation;
pub mod vary;

pub mod list;
