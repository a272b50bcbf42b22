//! The cache key of a request: scheme, authority, path, query, partition, key inputs and the content of a read.

use larder_core::{
    Kind,
    kernel::{Audience, Kernel, KeyBuf},
};
use larder_semantics::storing::Role;

use crate::{
    address::{Address, Head, QueryRule},
    body_key::BodyKey,
    response_cache::options::{KeyInput, Options},
};

/// Builds the keys of one response cache.
#[derive(Debug)]
pub(in crate::response_cache) struct KeyBuilder {
    /// The part that all keys of the layer begin with.
    start: KeyBuf,
    query: QueryRule,
    vary_by: Vec<KeyInput>,
}

impl KeyBuilder {
    pub(in crate::response_cache) fn new(kernel: &Kernel, options: &Options) -> Self {
        Self {
            start: kernel.key(Kind::Response, &fingerprint(options)),
            query: options.query.clone(),
            vary_by: options.vary_by.clone(),
        }
    }

    /// Returns the key of a request: its address, the content of a QUERY or of a POST that reads, and its audience.
    pub(in crate::response_cache) fn whole_key(
        &self,
        head: &Head<'_>,
        address: &Address<'_>,
        partition: Option<&[u8]>,
        around: &Audience,
    ) -> KeyBuf {
        let mut key = self.key(head, address, partition);
        if let Some(body) = BodyKey::of_request(head)
            && let Some(digest) = body.digest()
        {
            key.push_pieces([b" of ", body.method().as_str().as_bytes(), b" ", digest]);
        }
        key.push_audience(around);
        key
    }

    /// Returns the bytes that all keys of the layer begin with.
    pub(in crate::response_cache) fn start(&self) -> &[u8] {
        self.start.as_bytes()
    }

    /// Returns the key of an address without a partition.
    pub(in crate::response_cache) fn key_of_address(
        &self,
        head: &Head<'_>,
        address: &Address<'_>,
    ) -> KeyBuf {
        self.key(head, address, None)
    }

    fn key(&self, head: &Head<'_>, address: &Address<'_>, partition: Option<&[u8]>) -> KeyBuf {
        let mut key = self.start.clone();
        key.push_pieces([address.scheme.as_bytes(), b"://", address.authority.as_bytes()]);
        key.push(address.path.as_bytes());
        match (self.query.filtered(address.query), address.query) {
            (Some(filtered), _) if filtered.is_empty() => key.push(b""),
            (Some(filtered), _) => key.push_pieces([b"?", filtered.as_bytes()]),
            (None, Some(query)) => key.push_pieces([b"?", query.as_bytes()]),
            (None, None) => key.push(b""),
        }
        if let Some(partition) = partition {
            key.push_pieces([b" by ", partition]);
        }
        for input in &self.vary_by {
            key.push_pieces([b" as ", (input.value)(head).as_bytes()]);
        }
        key
    }
}

/// Returns the part of the key that separates the layers of a larder (name, key inputs, partition, `shared`), so that
/// no layer serves a response that was stored under other rules.
fn fingerprint(options: &Options) -> String {
    let mut text = options.name.to_string();
    for input in &options.vary_by {
        text.push('+');
        text.push_str(&input.name);
    }
    if options.partition.is_some() {
        text.push('@');
    }
    if options.shared {
        text.push('!');
    }
    if options.role == Role::Private {
        // `Key::public_url` looks for it.
        text.push('~');
    }
    if options.observes {
        // Another layer never serves these responses, from which nothing of the user was hidden.
        text.push('?');
    }
    text
}
