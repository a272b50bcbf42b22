//! The options of the attributes.

use proc_macro2::{Span, TokenStream};
use syn::{
    Error, Expr, Ident, LitFloat, LitStr, Token, parenthesized,
    parse::{Parse, ParseStream},
    punctuated::Punctuated,
};

use crate::duration;

/// The options of one attribute.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) ttl: Option<u64>,
    pub(crate) stale_while_revalidate: Option<u64>,
    pub(crate) stale_if_error: Option<u64>,
    pub(crate) negative_ttl: Option<u64>,
    pub(crate) refresh_ahead: Option<LitFloat>,
    pub(crate) tags: Vec<LitStr>,
    pub(crate) is_shared: bool,
    pub(crate) is_local: bool,
    pub(crate) policy: Option<Expr>,
    pub(crate) key: Option<LitStr>,
    pub(crate) skip: Vec<Ident>,
    pub(crate) namespace: Option<Expr>,
    /// The expression of the larder, or of the fragment cache.
    pub(crate) cache: Option<Expr>,
}

const NAMES: &str = "`ttl`, `stale_while_revalidate`, `stale_if_error`, `negative_ttl`, `refresh_ahead`, `tag`, `shared`, \
                     `local`, `policy`, `key`, `skip`, `namespace`, `larder`, `fragments`";

impl Options {
    pub(crate) fn parse(tokens: TokenStream) -> Result<Self, Error> {
        syn::parse2(tokens)
    }

    fn check(self) -> Result<Self, Error> {
        let sets_lifetime = self.ttl.is_some();
        let sets_more = sets_lifetime
            || self.stale_while_revalidate.is_some()
            || self.stale_if_error.is_some()
            || self.negative_ttl.is_some()
            || self.refresh_ahead.is_some()
            || self.is_shared;
        if self.policy.is_some() && sets_more {
            return Err(call_site(
                "`policy` replaces the lifetimes and `shared`: set these in the policy",
            ));
        }
        if self.policy.is_none() && !sets_lifetime {
            return Err(call_site("`ttl` is missing, as in `ttl = \"5m\"`; or give a `policy`"));
        }
        if self.key.is_some() && !self.skip.is_empty() {
            return Err(call_site(
                "`skip` has no effect beside `key`, which names the arguments that count",
            ));
        }
        if self.key.is_some() && self.namespace.is_some() {
            return Err(call_site(
                "`namespace` has no effect beside `key`: put an argument that distinguishes two values into the key",
            ));
        }
        Ok(self)
    }
}

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> Result<Self, Error> {
        let mut options = Self::default();
        while !input.is_empty() {
            let name: Ident = input.parse()?;
            match name.to_string().as_str() {
                "ttl" => options.ttl = Some(duration(input)?),
                "stale_while_revalidate" => options.stale_while_revalidate = Some(duration(input)?),
                "stale_if_error" => options.stale_if_error = Some(duration(input)?),
                "negative_ttl" => options.negative_ttl = Some(duration(input)?),
                "refresh_ahead" => options.refresh_ahead = Some(value(input)?),
                "tag" => options.tags.push(value(input)?),
                "shared" => options.is_shared = true,
                "local" => options.is_local = true,
                "policy" => options.policy = Some(value(input)?),
                "key" => options.key = Some(value(input)?),
                "namespace" => options.namespace = Some(value(input)?),
                "larder" | "fragments" => options.cache = Some(value(input)?),
                "skip" => {
                    let names;
                    parenthesized!(names in input);
                    options.skip.extend(Punctuated::<Ident, Token![,]>::parse_terminated(&names)?);
                }
                other => {
                    return Err(Error::new(
                        name.span(),
                        format!("`{other}` is no option; the options are: {NAMES}"),
                    ));
                }
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        options.check()
    }
}

fn call_site(message: &str) -> Error {
    Error::new(Span::call_site(), message)
}

fn value<T: Parse>(input: ParseStream<'_>) -> Result<T, Error> {
    input.parse::<Token![=]>()?;
    input.parse()
}

fn duration(input: ParseStream<'_>) -> Result<u64, Error> {
    let text: LitStr = value(input)?;
    duration::millis(&text.value()).map_err(|message| Error::new(text.span(), message))
}
