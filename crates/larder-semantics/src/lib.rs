//! What the HTTP caching specifications say, as plain functions of request, response, what was stored, and
//! the time. Nothing here reads a clock, does I/O or waits; layers carry out what these functions say.
//!
//! Applications depend on `larder`, which has all of this as `larder::semantics`.
//!
//! - [`authority`]: hosts and ports in one spelling ([RFC 3986, section 6.2]);
//! - [`cache_control`]: the directives of a request or a response ([RFC 9111, section 5.2]);
//! - [`freshness`]: how long a response is fresh, and how old it is ([RFC 9111, section 4.2]);
//! - [`storing`]: whether a response may be kept, and for whom ([RFC 9111, section 3]);
//! - [`reuse`]: whether what a client demands can be met by what is kept ([RFC 9111, section 4]);
//! - [`vary`]: which of several variants a request selects ([RFC 9111, section 4.1]);
//! - [`validation`]: entity tags and conditional requests ([RFC 9110, section 13]);
//! - [`date`]: the dates of HTTP ([RFC 9110, section 5.6.7]);
//! - [`targeted`]: fields that speak to one kind of cache ([RFC 9213]);
//! - [`ranges`]: parts of a representation ([RFC 9110, section 14]);
//! - [`no_vary_search`]: queries that mean the same;
//! - [`cache_status`]: how a cache says what it did ([RFC 9211]);
//! - [`groups`]: cache groups ([RFC 9875]);
//! - [`fields`]: fields that are not the response's own.
//!
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
pub mod validation;
pub mod vary;

pub mod list;
