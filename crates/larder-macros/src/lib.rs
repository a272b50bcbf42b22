//! `#[cached]` and `#[cached_fragment]`: functions whose results larder stores. Applications use them through the crate
//! `larder`, with its feature `macros`.

use proc_macro::TokenStream;

mod duration;
mod expand;
mod options;
mod text;

/// Stores the results of an async function, which keeps its signature.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use larder::{Larder, cached};
///
/// #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
/// struct User { name: String }
///
/// #[cached(ttl = "5m", tag = "user:{id}")]
/// async fn user(larder: &Larder, id: u64) -> Result<User, Arc<std::io::Error>> {
///     // SELECT name FROM users WHERE id = $1
///     Ok(User { name: format!("user {id}") })
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let larder = Larder::builder().build()?;
/// assert_eq!(user(&larder, 7).await?, User { name: "user 7".to_owned() });
/// let _logged = larder.invalidate(("user", 7)).await;
/// # Ok(())
/// # }
/// ```
///
/// # The larder
///
/// It is the argument of type `&Larder`, in a method without one `self.larder`, or the expression of `larder = ..`. It is
/// never a global.
///
/// # The key
///
/// By default it is the path of the module, the name of the function, its type parameters, and all arguments but the
/// larder and those in `skip(..)`. Arguments are integers, `bool`, `char`, strings, and options, lists, arrays, pairs and
/// triples of them; for others use `key` or `skip`. `key = "user:{id}"` is the name that `get_or_load(("user", id), ..)` has too.
///
/// A method needs a `key`, or `namespace = ..` with an expression that distinguishes two values of its type: otherwise two
/// repositories would answer for each other. With a `namespace`, the type of `self` is part of the default key, too.
///
/// # Results
///
/// | the function returns | stored |
/// |---|---|
/// | `T` | every result |
/// | `Option<T>` | `None` as a negative result, for `negative_ttl` |
/// | `Result<T, E>` | `Ok`; an error never |
/// | `Result<Option<T>, E>` | `Ok`, `None` as a negative result |
///
/// `T` has to be `Clone` and known to serde, and `E` has to be `Clone`, because callers that wait for one load share its
/// error; `Arc<E>` is, and `?` converts into it. If larder cannot use a load (it panicked for another caller, a function of
/// another type has the same key, the runtime shuts down), the function runs as it would without the attribute. There is no
/// time limit on the function, unless `policy` sets one; after such a limit the function runs again for its caller.
///
/// # Options
///
/// | option | meaning |
/// |---|---|
/// | `ttl = "5m"` | the freshness lifetime: `ms`, `s`, `m`, `h` or `d` |
/// | `stale_while_revalidate = ".."`, `stale_if_error = ".."`, `negative_ttl = ".."` | the windows, and the lifetime of `None` |
/// | `refresh_ahead = 0.2` | refreshes a hot result before it expires |
/// | `tag = "user:{id}"` | a tag; may be repeated |
/// | `shared` | the result is the same for all users |
/// | `local` | the result stays in the process, and serde need not know it |
/// | `policy = ..` | an expression in place of the lifetimes and of `shared` |
/// | `key = ".."`, `skip(a, b)`, `namespace = ..`, `larder = ..` | see above |
#[proc_macro_attribute]
pub fn cached(options: TokenStream, function: TokenStream) -> TokenStream {
    expand::function(options.into(), &function.into(), expand::Target::Value).into()
}

/// Stores the rendered text of an async function, as a fragment of the page. The function returns `String` or
/// `Result<String, E>`, and takes a `&FragmentCache`, or names one by `fragments = ..`. The options are those of
/// [`macro@cached`].
///
/// ```
/// use larder::{axum::FragmentCache, cached_fragment};
///
/// #[cached_fragment(ttl = "10m", tag = "product:{id}", shared)]
/// async fn card(fragments: &FragmentCache, id: u64) -> String {
///     format!("<b>product {id}</b>")
/// }
///
/// async fn page(fragments: FragmentCache) -> String {
///     format!("<main>{}</main>", card(&fragments, 42).await)
/// }
/// # let _ = page;
/// ```
#[proc_macro_attribute]
pub fn cached_fragment(options: TokenStream, function: TokenStream) -> TokenStream {
    expand::function(options.into(), &function.into(), expand::Target::Fragment).into()
}
