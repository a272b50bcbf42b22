//! A check that no response contains data of another user: [`assert_no_leak`].

use std::{collections::BTreeSet, fmt, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body::Body;
use http_body_util::{BodyExt as _, Full};
use tower::{Service, ServiceExt as _};

/// A user of the application under test. [`assert_no_leak`] sends requests as each of them.
pub struct TestUser<S> {
    name: String,
    sign_in: SignIn<S>,
}

type SignIn<S> = Arc<dyn Fn(S) -> Pin<Box<dyn Future<Output = HeaderMap> + Send>> + Send + Sync>;

impl<S: Send + 'static> TestUser<S> {
    /// A visitor who is not signed in.
    pub fn anonymous(name: impl Into<String>) -> Self {
        Self::signed_in(name, |_| std::future::ready(HeaderMap::new()))
    }

    /// A user whose requests have these fields, such as `authorization`.
    ///
    /// # Panics
    ///
    /// If a name or a value is not valid.
    pub fn with_fields<'a>(
        name: impl Into<String>,
        fields: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let field = |(name, value): (&str, &str)| {
            let name: HeaderName = name.parse().expect("a valid name of a field");
            (name, HeaderValue::from_str(value).expect("a valid value of a field"))
        };
        let fields: HeaderMap = fields.into_iter().map(field).collect();
        Self::signed_in(name, move |_| std::future::ready(fields.clone()))
    }

    /// A user who signs in to each new instance of the application. The closure sends the form of the sign-in, and returns
    /// the fields of the user's requests, such as the cookie of the session ([`cookies_of`]).
    pub fn signed_in<F>(
        name: impl Into<String>,
        sign_in: impl Fn(S) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = HeaderMap> + Send + 'static,
    {
        Self { name: name.into(), sign_in: Arc::new(move |app| Box::pin(sign_in(app))) }
    }
}

impl<S> Clone for TestUser<S> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), sign_in: Arc::clone(&self.sign_in) }
    }
}

impl<S> fmt::Debug for TestUser<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestUser").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Returns the `Cookie` field that answers the `Set-Cookie` fields of a response.
pub fn cookies_of<B>(response: &Response<B>) -> HeaderMap {
    let set = response.headers().get_all(header::SET_COOKIE).iter();
    let pairs: Vec<&str> =
        set.filter_map(|cookie| cookie.to_str().ok()?.split(';').next()).map(str::trim).collect();
    let mut fields = HeaderMap::new();
    if !pairs.is_empty() {
        let cookie = HeaderValue::from_str(&pairs.join("; "));
        fields.insert(header::COOKIE, cookie.expect("parts of valid values are valid"));
    }
    fields
}

/// Sends requests to an application as several users, in all orders, and panics if a response contains data of another
/// user.
///
/// For each order of the users, a new application is made, all users sign in, and each requests each route once. A word of
/// a response has leaked if an earlier response to another user has it, and the response that the user gets from another
/// new application, in which no other user has requested a route, does not have it. Words of the fields count, too, but not
/// of `Age`, `Cache-Control`, `Cache-Status`, `Content-Length`, `Date`, `Expires` and `Vary`. Words of fewer than three
/// characters are not compared, so use long and distinct names. All requests are GETs.
///
/// With up to four users all orders are tried, with more all ordered pairs. For n users these are n + n! or n + n(n−1)
/// applications, each with all sign-ins and routes, and more to confirm a suspicion.
///
/// The application needs its cache in `app`. Two visitors who are not signed in are two users: add
/// [`TestUser::anonymous`] twice, so that a token of one in the page of the other is found. A page that has something new
/// in each response, such as a nonce, and that visitors share on purpose, has "leaked" it, too: a cache does that to a
/// nonce. A page that shows the time needs a fixed clock, because two responses of the same second have the same
/// word.
///
/// # Panics
///
/// If a response leaks, with the route, the users and the words; or if a response cannot be read.
///
/// # Examples
///
/// ```
/// use axum::{Router, http::HeaderMap, routing::get};
/// use larder_testkit::{TestUser, assert_no_leak};
///
/// async fn greet(fields: HeaderMap) -> String {
///     let user = fields.get("authorization").and_then(|user| user.to_str().ok());
///     format!("Hello {}", user.unwrap_or("visitor"))
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let app = || async { Router::<()>::new().route("/", get(greet)) }; // with the layers of larder
/// let users = [
///     TestUser::anonymous("a visitor"),
///     TestUser::anonymous("another visitor"),
///     TestUser::with_fields("ada", [("authorization", "ada")]),
///     TestUser::with_fields("bob", [("authorization", "bob")]),
/// ];
/// assert_no_leak(app, &users, &["/"]).await;
/// # }
/// ```
pub async fn assert_no_leak<S, B, F>(app: impl Fn() -> F, users: &[TestUser<S>], routes: &[&str])
where
    F: Future<Output = S>,
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: fmt::Debug,
    B: Body<Error: fmt::Debug>,
{
    let mut leaks = BTreeSet::new();
    // The words that each user gets from an instance in which no other user has requested a route.
    let mut alone = Vec::with_capacity(users.len());
    for at in 0..users.len() {
        let instance = Instance::new(app().await, users).await;
        let mut words = Vec::with_capacity(routes.len());
        for route in routes {
            words.push(instance.words(at, route).await);
        }
        alone.push(words);
    }
    for order in orders(users.len()) {
        let instance = Instance::new(app().await, users).await;
        for (number, route) in routes.iter().enumerate() {
            let mut earlier: Vec<(usize, BTreeSet<String>)> = Vec::new();
            for at in &order {
                let words = instance.words(*at, route).await;
                let is_suspect = |word: &&String| !alone[*at][number].contains(*word);
                let suspects: Vec<(usize, &String)> = earlier
                    .iter()
                    .flat_map(|(other, theirs)| {
                        words.intersection(theirs).map(|word| (*other, word))
                    })
                    .filter(|(_, word)| is_suspect(word))
                    .collect();
                if !suspects.is_empty() {
                    // It may be new for every user: then another instance shows it to this user alone, too.
                    let own = Instance::new(app().await, users).await.words(*at, route).await;
                    for (other, word) in suspects {
                        if !own.contains(word) {
                            let (user, other) = (&users[*at].name, &users[other].name);
                            leaks.insert(format!("GET {route}: {user} gets {word:?} of {other}"));
                        }
                    }
                }
                earlier.push((*at, words));
            }
        }
    }
    let leaks: Vec<String> = leaks.into_iter().collect();
    assert!(leaks.is_empty(), "responses contain data of other users:\n{}", leaks.join("\n"));
}

/// An application to which all users have signed in.
struct Instance<S> {
    app: S,
    fields: Vec<HeaderMap>,
}

impl<S, B> Instance<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: fmt::Debug,
    B: Body<Error: fmt::Debug>,
{
    async fn new(app: S, users: &[TestUser<S>]) -> Self {
        let mut fields = Vec::with_capacity(users.len());
        for user in users {
            fields.push((user.sign_in)(app.clone()).await);
        }
        Self { app, fields }
    }

    /// The words of the response that a user gets.
    async fn words(&self, user: usize, route: &str) -> BTreeSet<String> {
        let mut request = Request::get(route).body(Full::default());
        let request = request.as_mut().expect("a valid route");
        request.headers_mut().extend(self.fields[user].clone());
        let request = std::mem::take(request);
        let response = self.app.clone().oneshot(request).await.expect("a response");
        let (head, body) = response.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes);
        let body =
            body.unwrap_or_else(|error| panic!("GET {route}: the body ends early: {error:?}"));
        let mut words = BTreeSet::new();
        for (name, value) in &head.headers {
            if !IGNORED_FIELDS.contains(name) {
                add_words(&String::from_utf8_lossy(value.as_bytes()), &mut words);
            }
        }
        add_words(&String::from_utf8_lossy(&body), &mut words);
        words
    }
}

/// Adds the words of a text that are long enough to tell users apart.
fn add_words(text: &str, words: &mut BTreeSet<String>) {
    let is_within = |letter: char| letter.is_alphanumeric() || "_-@+".contains(letter);
    let all = text.split(|letter| !is_within(letter));
    words.extend(all.filter(|word| word.chars().count() >= SHORTEST_WORD).map(str::to_owned));
}

/// All orders of the numbers below `count`, or the orders of all pairs of them if there are more than four.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let mut orders: Vec<Vec<usize>> = vec![Vec::new()];
    for _ in 0..if count > MOST_IN_ALL_ORDERS { 2 } else { count } {
        let longer = |order: Vec<usize>| {
            (0..count)
                .filter(|next| !order.contains(next))
                .map(|next| [&order[..], &[next]].concat())
                .collect::<Vec<_>>()
        };
        orders = orders.into_iter().flat_map(longer).collect();
    }
    orders
}

const SHORTEST_WORD: usize = 3;
const MOST_IN_ALL_ORDERS: usize = 4;
/// Fields that differ with the cache and the time.
const IGNORED_FIELDS: [HeaderName; 7] = [
    header::AGE,
    header::CACHE_CONTROL,
    header::CONTENT_LENGTH,
    header::DATE,
    header::EXPIRES,
    header::VARY,
    HeaderName::from_static("cache-status"),
];

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, panic::AssertUnwindSafe};

    use futures_util::FutureExt as _;
    use parking_lot::Mutex;
    use tower::service_fn;

    use super::*;

    type App =
        tower::util::BoxCloneService<Request<Full<Bytes>>, Response<Full<Bytes>>, Infallible>;

    fn users() -> [TestUser<App>; 3] {
        [
            TestUser::anonymous("a visitor"),
            TestUser::with_fields("ada", [("authorization", "ada")]),
            TestUser::with_fields("bob", [("authorization", "bob")]),
        ]
    }

    /// An application that greets its users. With `remembers`, it answers every request like the first.
    fn app(remembers: bool) -> App {
        let first = Arc::new(Mutex::new(None));
        App::new(service_fn(move |request: Request<Full<Bytes>>| {
            let user = request.headers().get("authorization");
            let user = user.map_or("visitor", |user| user.to_str().expect("ASCII")).to_owned();
            let user = match remembers {
                true => first.lock().get_or_insert(user).clone(),
                false => user,
            };
            let response = Response::builder().header("etag", format!("\"page-{user}\""));
            let response = response.body(Full::from(format!("<p>Hello {user}</p>")));
            std::future::ready(Ok(response.expect("valid fields")))
        }))
    }

    #[tokio::test]
    async fn data_of_another_user_is_found_in_bodies_and_fields() {
        assert_no_leak(|| async { app(false) }, &users(), &["/", "/other"]).await;
        let users = users();
        let leaking = assert_no_leak(|| async { app(true) }, &users, &["/"]);
        let panic = AssertUnwindSafe(leaking).catch_unwind().await.expect_err("it leaks");
        let message = panic.downcast_ref::<String>().expect("a message");
        for leak in ["ada gets \"bob\" of bob", "ada gets \"page-bob\" of bob", "a visitor gets"] {
            assert!(message.contains(leak), "{message}");
        }
    }

    #[tokio::test]
    async fn two_visitors_do_not_share_a_token() {
        let tokens = Arc::new(Mutex::new(0));
        let app = move |is_shared: bool| {
            let (tokens, page) = (Arc::clone(&tokens), Arc::new(Mutex::new(None)));
            App::new(service_fn(move |_: Request<Full<Bytes>>| {
                let fresh = {
                    let mut tokens = tokens.lock();
                    *tokens += 1;
                    format!("token-{tokens}")
                };
                let token = match is_shared {
                    true => page.lock().get_or_insert(fresh).clone(),
                    false => fresh,
                };
                std::future::ready(Ok(Response::new(Full::from(token))))
            }))
        };
        let visitors = [TestUser::anonymous("one"), TestUser::anonymous("another")];
        assert_no_leak(|| async { app(false) }, &visitors, &["/"]).await;
        let leaking = assert_no_leak(|| async { app(true) }, &visitors, &["/"]);
        assert!(AssertUnwindSafe(leaking).catch_unwind().await.is_err());
    }

    #[test]
    fn users_come_in_all_orders() {
        assert_eq!(orders(1), [[0]]);
        assert_eq!(orders(2), [[0, 1], [1, 0]]);
        assert_eq!(orders(4).len(), 24);
        assert_eq!(orders(5).len(), 20, "pairs");
    }
}
