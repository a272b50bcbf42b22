//! Invalidations: their targets, their mode and their outcome.

use std::{borrow::Cow, fmt, time::Duration};

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use crate::{
    key::{IntoName, Key, Kind},
    tag::Tag,
};

/// A target of an invalidation: a tag, an exact name, a path, a prefix, a pattern, a kind or everything.
///
/// # Examples
///
/// ```
/// use larder_core::{Kind, Target};
///
/// let targets = [
///     Target::tag(("product", 42)),          // entries that depend on product 42
///     Target::name("user:7"),                // the object or fragment of that name
///     Target::path("/products/42"),          // every variant, query and method of the path, on all hosts
///     Target::prefix("product"),             // product and all below it
///     Target::pattern("user:*"),             // names that match, * and ? as in a shell
///     Target::kind(Kind::Fragment),
///     Target::everything(),
/// ];
/// # let _ = targets;
/// ```
#[doc(alias("wildcard invalidation", "pattern invalidation", "ban", "purge"))]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target(Vec<Selector>);

impl Target {
    /// Selects all entries that carry this tag.
    pub fn tag(tag: impl Into<Tag>) -> Self {
        Self(vec![Selector::Tag(tag.into())])
    }

    /// Selects the object, fragment or query of this name, in all its partitions and variants.
    ///
    /// The name of an object or fragment is also one of its tags, so `invalidate(("user", 7))` reaches it as well.
    pub fn name(name: impl IntoName) -> Self {
        let name = name.into_name();
        let kinds = [Kind::Object, Kind::Query];
        Self(kinds.map(|kind| Selector::Tag(Tag::of_name(kind, &name))).into())
    }

    /// Selects every response of this path: all hosts, queries, methods, partitions and variants.
    ///
    /// A leading `/` is added if it is missing, and a query is ignored.
    #[doc(alias("purge URL"))]
    pub fn path(path: impl AsRef<str>) -> Self {
        Self(vec![Selector::Tag(Tag::of_path(&path_alone(path.as_ref())))])
    }

    /// Selects every response of this path on one scheme and authority, such as `https://shop.example`.
    ///
    /// Case, the default port of the scheme, an empty port and a `/` at the end of the origin do not matter.
    pub fn path_on(origin: impl AsRef<str>, path: impl AsRef<str>) -> Self {
        let (origin, path) = (normal_origin(origin.as_ref()), path_alone(path.as_ref()));
        let tags = [Tag::of_origin_path(&origin, &path), Tag::of_partitioned_path(&origin, &path)];
        Self(tags.map(Selector::Tag).into())
    }

    /// Selects the responses of this path on one scheme and authority that do not belong to a partition.
    pub fn path_outside_partitions(origin: impl AsRef<str>, path: impl AsRef<str>) -> Self {
        let (origin, path) = (normal_origin(origin.as_ref()), path_alone(path.as_ref()));
        Self(vec![Selector::Tag(Tag::of_origin_path(&origin, &path))])
    }

    /// Selects the responses of this path on one scheme and authority in one partition.
    pub fn path_in_partition(
        origin: impl AsRef<str>,
        path: impl AsRef<str>,
        partition: &[u8],
    ) -> Self {
        let (origin, path) = (normal_origin(origin.as_ref()), path_alone(path.as_ref()));
        Self(vec![Selector::Tag(Tag::of_path_in_partition(&origin, &path, partition))])
    }

    /// Selects the cache group of RFC 9875 on one scheme and authority.
    pub fn group(origin: impl AsRef<str>, group: impl AsRef<str>) -> Self {
        Self(vec![Selector::Tag(Tag::of_group(&normal_origin(origin.as_ref()), group.as_ref()))])
    }

    /// Selects all entries that carry this tag or a tag below it. Both `product` and `product:` reach `product:42`.
    #[doc(alias("prefix invalidation", "wildcard"))]
    pub fn prefix(tag: impl Into<Tag>) -> Self {
        let tag = tag.into().without_last_colons();
        Self(vec![Selector::Tag(tag.below()), Selector::Tag(tag)])
    }

    /// Selects all entries whose name matches. `*` stands for any string and `?` for one character.
    ///
    /// The name of an object or fragment is the name by which it was requested; the name of a response is its address,
    /// such as `https://shop.example/products/42?page=2`. Tags of the application are treated like names. A pattern
    /// costs one match for each entry, at its next lookup. Larder distinguishes up to 64 patterns; if there is one
    /// more, all of them act as [`Target::everything`].
    #[doc(alias("glob", "wildcard", "ban", "regex"))]
    pub fn pattern(pattern: impl Into<String>) -> Self {
        Self(vec![Selector::Pattern { namespace: String::new(), glob: pattern.into() }])
    }

    /// Selects all entries of one kind.
    pub fn kind(kind: Kind) -> Self {
        Self(vec![Selector::Tag(Tag::of_kind(kind))])
    }

    /// Selects all entries.
    #[doc(alias("clear", "flush"))]
    pub fn everything() -> Self {
        Self(vec![Selector::Everything])
    }

    pub(crate) fn selectors(self) -> Vec<Selector> {
        self.0
    }
}

/// Returns a path in the form that the tags of responses use.
fn path_alone(path: &str) -> Cow<'_, str> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    match path.starts_with('/') {
        true => Cow::Borrowed(path),
        false => Cow::Owned(format!("/{path}")),
    }
}

/// Returns an origin in the form that the tags of responses use: lower case, without an empty port or the default port
/// of its scheme.
fn normal_origin(origin: &str) -> String {
    let origin = origin.to_ascii_lowercase();
    let Some((scheme, authority)) = origin.split_once("://") else { return origin };
    let authority = authority.trim_end_matches('/');
    let implied = if scheme == "https" { 443 } else { 80 };
    let authority = match authority.rsplit_once(':') {
        Some((host, "")) => host.to_owned(),
        Some((host, port)) => match port.parse::<u16>() {
            Ok(port) if port == implied => host.to_owned(),
            Ok(port) => format!("{host}:{port}"),
            Err(_) => authority.to_owned(),
        },
        None => authority.to_owned(),
    };
    format!("{scheme}://{authority}")
}

impl<T: Into<Tag>> From<T> for Target {
    fn from(tag: T) -> Self {
        Self::tag(tag)
    }
}

/// One selector of a record of the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Selector {
    /// All entries that carry the tag.
    Tag(Tag),
    /// All entries whose name matches, in one namespace.
    Pattern {
        /// The namespace, empty for none.
        namespace: String,
        /// The pattern over names.
        glob: String,
    },
    /// All entries.
    Everything,
}

impl Selector {
    pub(crate) fn within(self, namespace: &str) -> Self {
        if namespace.is_empty() {
            return self;
        }
        match self {
            Self::Tag(tag) => Self::Tag(tag.within(namespace)),
            Self::Pattern { glob, .. } => Self::Pattern { namespace: namespace.to_owned(), glob },
            Self::Everything => Self::Tag(Tag::of_namespace(namespace)),
        }
    }
}

/// A compiled pattern.
#[derive(Clone, Debug)]
pub(crate) struct Glob {
    namespace: String,
    pattern: String,
    matcher: WildMatch,
}

impl PartialEq for Glob {
    fn eq(&self, other: &Self) -> bool {
        self.namespace == other.namespace && self.pattern == other.pattern
    }
}

impl Glob {
    pub(crate) fn new(namespace: &str, glob: &str) -> Self {
        let (namespace, pattern) = (namespace.to_owned(), glob.to_owned());
        Self { namespace, pattern, matcher: WildMatch::new(glob) }
    }

    /// Whether it matches the name of an entry or of one of its parts.
    pub(crate) fn matches(&self, key: &Key, tags: &[Tag]) -> bool {
        // An entry that serves many queries has several names, and any pattern may match one of them.
        let own = key.namespace() == self.namespace.as_bytes()
            && (key.is_for_many() || self.matcher.matches(&key.name()));
        own || tags
            .iter()
            .filter_map(|tag| tag.name_in(&self.namespace))
            .any(|name| self.matcher.matches(name))
    }
}

/// The mode of an invalidation: hard or soft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Entries may no longer be served, not even in a stale window, on errors or after revalidation.
    Hard,
    /// Entries become stale. They may be served while they are refreshed and on errors, if they have such windows.
    Soft {
        /// After this time the invalidation becomes hard.
        grace: Option<Duration>,
    },
}

/// An invalidation: its targets, its mode and its delay.
///
/// A value that converts into a [`Target`] converts into a hard and immediate invalidation.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use larder_core::{Invalidation, Target};
///
/// let sale_ends = Invalidation::of([Target::tag("sale"), Target::path("/")])
///     .soft(Duration::from_secs(30))
///     .after(Duration::from_secs(3600));
/// # let _ = sale_ends;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "an invalidation does nothing until `invalidate` is given it"]
pub struct Invalidation {
    pub(crate) targets: Vec<Target>,
    pub(crate) mode: Mode,
    pub(crate) after: Duration,
    pub(crate) because: Option<String>,
    pub(crate) by: Option<String>,
}

impl Invalidation {
    /// Creates a hard and immediate invalidation of all these targets. It takes one append to the log per 5,000
    /// selectors, of which a target has one or two.
    pub fn of<T: Into<Target>>(targets: impl IntoIterator<Item = T>) -> Self {
        Self {
            targets: targets.into_iter().map(Into::into).collect(),
            mode: Mode::Hard,
            after: Duration::ZERO,
            because: None,
            by: None,
        }
    }

    /// Gives the invalidation a reason, such as `price import`, for operators. It travels with the record, is shown in the
    /// log of invalidations, and takes no part in what is invalidated. It is truncated after 256 bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// # use larder_core::{Invalidation, Larder, Target};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// let prices = Invalidation::of([Target::prefix("price")]).because("price import").by("import job");
    /// let _logged = larder.invalidate(prices).await;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("audit", "comment"))]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.because = Some(reason.into());
        self
    }

    /// Names the actor that makes the invalidation, such as a user or a job, for operators. It travels with the record like
    /// the [reason](Self::because).
    pub fn by(mut self, actor: impl Into<String>) -> Self {
        self.by = Some(actor.into());
        self
    }

    /// Makes the invalidation soft, so that entries become stale, for at most `grace`. An entry without a stale window
    /// is nevertheless no longer served.
    #[doc(alias("soft purge", "grace", "mark stale", "logical expiration"))]
    pub fn soft(mut self, grace: impl Into<Option<Duration>>) -> Self {
        self.mode = Mode::Soft { grace: grace.into() };
        self
    }

    /// Delays the invalidation by `delay`.
    #[doc(alias("scheduled invalidation", "delayed invalidation"))]
    pub fn after(mut self, delay: Duration) -> Self {
        self.after = delay;
        self
    }
}

impl<T: Into<Tag>> From<T> for Invalidation {
    fn from(tag: T) -> Self {
        Self::of([Target::tag(tag)])
    }
}

impl From<Target> for Invalidation {
    fn from(target: Target) -> Self {
        Self::of([target])
    }
}

impl From<Vec<Target>> for Invalidation {
    fn from(targets: Vec<Target>) -> Self {
        Self::of(targets)
    }
}

impl<const N: usize> From<[Target; N]> for Invalidation {
    fn from(targets: [Target; N]) -> Self {
        Self::of(targets)
    }
}

/// The outcome of an invalidation. In this process the invalidation takes effect in every case, at once or after its
/// delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a queued invalidation has not reached other processes yet"]
#[non_exhaustive]
pub enum Invalidated {
    /// It is in the log, and other processes will apply it.
    Logged,
    /// The log is unreachable, or too few of its servers have the record. The invalidation takes effect in this
    /// process, now or after its delay. Larder has queued it, and appends it as soon as that is needed and possible. If
    /// the process ends before that, the invalidation is lost for other processes.
    Queued,
    /// It will take effect after its delay. A shared log has registered it, so it takes effect even if this process
    /// ends before, as soon as another process requests the end of the log. Each process does that three times per
    /// [`max_lag`](crate::LarderBuilder::max_lag).
    Scheduled,
}

impl Invalidated {
    /// Returns the worse of two outcomes, which is `Queued` if either of them is `Queued`.
    pub(crate) fn worse(self, other: Self) -> Self {
        if self == Self::Queued { self } else { other }
    }
}

impl fmt::Display for Invalidated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Logged => "logged",
            Self::Queued => "queued",
            Self::Scheduled => "scheduled",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_of_one_namespace_does_not_reach_another() {
        let key = |namespace| {
            let mut key = crate::key::KeyBuf::new(Kind::Object, namespace, "", "");
            key.push(b"user:1");
            key.finish().unwrap()
        };
        let glob = Glob::new("a", "user:*");
        assert!(glob.matches(&key("a"), &[]));
        assert!(!glob.matches(&key("b"), &[]));
        let part = |namespace| Tag::of_name(Kind::Object, "user:9").within(namespace);
        assert!(glob.matches(&key("b"), &[part("a")]), "a part of it is meant");
        assert!(!glob.matches(&key("b"), &[part("b"), part("")]));
    }
}
